//! Pods, their labels, and policies that select them.

use super::{NAMESPACES, any_address, any_block, any_port};
use crate::common::sourced;
use bulkhead_api::objects::{
    IPBlock, IntOrString, LabelSelector, LabelSelectorRequirement, NetworkPolicyEgressRule,
    NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec, Protocol,
};
use bulkhead_policy::{ContainerPort, Labels, Named, Pod, Sourced};
use proptest::{prelude::*, sample::select};
use std::sync::Arc;

pub(super) fn any_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(select(vec!["a", "b"]), select(vec!["x", "y"]), 0..3)
        .prop_map(|labels| labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
}

pub(super) fn any_selector() -> impl Strategy<Value = LabelSelector> {
    let operators = select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    let values = prop::collection::vec(0..3usize, 1..3);
    let keys = select(vec!["a", "b", "kubernetes.io/metadata.name"]);
    let requirement = (keys, operators, values).prop_map(|(key, operator, values)| {
        let known = if key.len() > 1 { NAMESPACES } else { ["x", "y", "z"] };
        let values = operator.ends_with("In").then(|| values.into_iter().map(|n| known[n].into()).collect());
        LabelSelectorRequirement { key: key.into(), operator: operator.into(), values }
    });
    let expressions = prop_oneof![
        3 => Just(vec![]),
        2 => prop::collection::vec(requirement, 1..3),
    ];
    let labels = prop_oneof![1 => Just(Labels::new()), 2 => any_labels()];
    (labels, expressions).prop_map(|(labels, expressions)| LabelSelector {
        match_labels: (!labels.is_empty()).then_some(labels),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    })
}

pub(super) fn any_namespaces() -> impl Strategy<Value = Named<Labels>> {
    prop::collection::btree_map(
        select(NAMESPACES.map(String::from).to_vec()),
        any_labels().prop_map(Arc::new),
        0..4,
    )
    .prop_map(Named::from)
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::TCP), 1 => Just(Protocol::UDP), 1 => Just(Protocol::SCTP)]
}

pub(super) fn any_port_name() -> impl Strategy<Value = String> {
    select(vec!["http".to_string(), "dns".to_string(), "nobodys".to_string()])
}

pub(super) fn any_pods() -> impl Strategy<Value = Named<Pod>> {
    let port = (any_port_name(), any_protocol(), any_port())
        .prop_map(|(name, protocol, port)| ContainerPort { name, protocol, port: port.max(1) });
    let ports = prop::collection::vec(port, 0..3);
    let addresses = prop::collection::vec(any_address(), 0..3);
    let host_network = prop_oneof![7 => Just(false), 1 => Just(true)];
    let node = prop::option::weighted(0.9, (1..4).prop_map(|i| format!("node-{i}")));
    let pod = (any_labels(), addresses, host_network, ports, node).prop_map(
        |(labels, addresses, host_network, ports, node)| {
            Arc::new(Pod { labels, addresses, node, host_network, ports })
        },
    );
    let key = (select(NAMESPACES.to_vec()), 0..4).prop_map(|(namespace, i)| format!("{namespace}/pod-{i}"));
    prop::collection::btree_map(key, pod, 0..8).prop_map(Named::from)
}

fn any_peer() -> impl Strategy<Value = NetworkPolicyPeer> {
    let selectors = (prop::option::of(any_selector()), prop::option::of(any_selector()));
    let selectors = selectors.prop_map(|(namespaces, pods)| NetworkPolicyPeer {
        ip_block: None,
        pod_selector: if namespaces.is_none() && pods.is_none() {
            Some(LabelSelector::default())
        } else {
            pods
        },
        namespace_selector: namespaces,
    });
    let block = any_block().prop_map(|block| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: block.cidr.to_string(),
            except: (!block.except.is_empty())
                .then(|| block.except.iter().map(ToString::to_string).collect()),
        }),
        ..NetworkPolicyPeer::default()
    });
    prop_oneof![3 => selectors, 1 => block]
}

fn any_policy_port() -> impl Strategy<Value = NetworkPolicyPort> {
    let number = (any_port(), prop::option::of(any_port())).prop_map(|(a, b)| {
        let (a, b) = (i32::from(a.max(1)), b.map(|b| i32::from(b.max(1))));
        (Some(IntOrString::Int(b.map_or(a, |b| a.min(b)))), b.map(|b| a.max(b)))
    });
    let named = any_port_name().prop_map(|name| (Some(IntOrString::String(name)), None));
    let port = prop_oneof![1 => Just((None, None)), 3 => number, 3 => named];
    (prop::option::of(select(vec!["TCP", "UDP", "SCTP"])), port).prop_map(|(protocol, (port, end_port))| {
        NetworkPolicyPort { protocol: protocol.map(Into::into), port, end_port }
    })
}

pub(super) fn any_network_policies() -> impl Strategy<Value = Named<Sourced<NetworkPolicySpec>>> {
    let rule = || {
        let peers = prop::option::of(prop::collection::vec(any_peer(), 0..3));
        let ports = prop::option::of(prop::collection::vec(any_policy_port(), 0..3));
        (peers, ports)
    };
    let ingress = prop::option::of(prop::collection::vec(rule(), 0..3));
    let egress = prop::option::of(prop::collection::vec(rule(), 0..3));
    let types = prop::option::of(prop::collection::vec(select(vec!["Ingress", "Egress"]), 0..3));
    let selector = prop_oneof![2 => Just(None), 1 => any_selector().prop_map(Some)];
    let policy = (selector, types, ingress, egress).prop_map(|(pod_selector, types, ingress, egress)| {
        let ingress = ingress.map(|rules| {
            rules.into_iter().map(|(from, ports)| NetworkPolicyIngressRule { from, ports }).collect()
        });
        let egress = egress.map(|rules| {
            rules.into_iter().map(|(to, ports)| NetworkPolicyEgressRule { to, ports }).collect()
        });
        let policy_types = types.map(|types| types.into_iter().map(Into::into).collect());
        sourced(NetworkPolicySpec { pod_selector, policy_types, ingress, egress }, "np")
    });
    let key =
        (select(NAMESPACES.to_vec()), 0..3).prop_map(|(namespace, i)| format!("{namespace}/policy-{i}"));
    prop::collection::btree_map(key, policy, 0..6).prop_map(Named::from)
}
