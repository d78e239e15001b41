//! Pods, their labels, and policies that select them.

use super::{NAMESPACES, any_address, any_block, any_port};
use crate::common::sourced;
use bulkhead_api::objects::{
    LabelSelector, LabelSelectorRequirement, Labels, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule,
    NetworkPolicySpec, NumberOrName, PolicyIpBlock, Protocol,
};
use bulkhead_policy::{ContainerPort, Named, Pod, Sourced};
use proptest::{prelude::*, sample::select};
use std::sync::Arc;

pub(super) fn any_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(select(vec!["a", "b"]), select(vec!["x", "y"]), 0..3)
        .prop_map(|labels| labels.into_iter().collect())
}

pub(super) fn any_selector() -> impl Strategy<Value = LabelSelector> {
    let operators = select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    let values = prop::collection::vec(0..3usize, 1..3);
    let keys = select(vec!["a", "b", "kubernetes.io/metadata.name"]);
    let requirement = (keys, operators, values).prop_map(|(key, operator, values)| {
        let known = if key.len() > 1 { NAMESPACES } else { ["x", "y", "z"] };
        let values =
            values.into_iter().filter(|_| operator.ends_with("In")).map(|n| known[n].into()).collect();
        LabelSelectorRequirement { key: key.into(), operator: operator.into(), values }
    });
    let expressions = prop_oneof![
        3 => Just(vec![]),
        2 => prop::collection::vec(requirement, 1..3),
    ];
    let labels = prop_oneof![1 => Just(Labels::default()), 2 => any_labels()];
    (labels, expressions).prop_map(|(labels, expressions)| LabelSelector {
        match_labels: labels,
        match_expressions: expressions.into(),
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
    let node = prop::option::weighted(0.9, (1..4).prop_map(|i| format!("node-{i}").into()));
    let pod = (any_labels(), addresses, host_network, ports, node).prop_map(
        |(labels, addresses, host_network, ports, node)| {
            Arc::new(Pod { uid: None, labels, addresses, node, host_network, ports })
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
            Some(Box::default())
        } else {
            pods.map(Box::new)
        },
        namespace_selector: namespaces.map(Box::new),
    });
    let block = any_block().prop_map(|block| NetworkPolicyPeer {
        ip_block: Some(Box::new(PolicyIpBlock {
            cidr: block.cidr.to_string().into(),
            except: block.except.iter().map(|e| e.to_string().into()).collect(),
        })),
        ..NetworkPolicyPeer::default()
    });
    prop_oneof![3 => selectors, 1 => block]
}

fn any_policy_port() -> impl Strategy<Value = NetworkPolicyPort> {
    let number = (any_port(), prop::option::of(any_port())).prop_map(|(a, b)| {
        let (a, b) = (i32::from(a.max(1)), b.map(|b| i32::from(b.max(1))));
        (Some(NumberOrName::Number(b.map_or(a, |b| a.min(b)))), b.map(|b| a.max(b)))
    });
    let named = any_port_name().prop_map(|name| (Some(NumberOrName::Name(name.into())), None));
    let port = prop_oneof![1 => Just((None, None)), 3 => number, 3 => named];
    (prop::option::of(select(vec!["TCP", "UDP", "SCTP"])), port).prop_map(|(protocol, (port, end_port))| {
        NetworkPolicyPort { protocol: protocol.map(Into::into), port, end_port }
    })
}

pub(super) fn any_network_policies() -> impl Strategy<Value = Named<Sourced<NetworkPolicySpec>>> {
    let rule = || {
        let peers = prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec(any_peer(), 0..3)];
        let ports = prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec(any_policy_port(), 0..3)];
        (peers, ports)
            .prop_map(|(peers, ports)| NetworkPolicyRule { peers: peers.into(), ports: ports.into() })
    };
    let rules = || prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec(rule(), 0..3)];
    let types = prop_oneof![
        1 => Just(vec![]),
        1 => prop::collection::vec(select(vec!["Ingress", "Egress"]), 0..3),
    ];
    let selector = prop_oneof![2 => Just(LabelSelector::default()), 1 => any_selector()];
    let policy = (selector, types, rules(), rules()).prop_map(|(pod_selector, types, ingress, egress)| {
        let policy_types = types.into_iter().map(Into::into).collect();
        let spec =
            NetworkPolicySpec { pod_selector, policy_types, ingress: ingress.into(), egress: egress.into() };
        sourced(spec, "np")
    });
    let key =
        (select(NAMESPACES.to_vec()), 0..3).prop_map(|(namespace, i)| format!("{namespace}/policy-{i}"));
    prop::collection::btree_map(key, policy, 0..6).prop_map(Named::from)
}
