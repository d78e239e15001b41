//! ClusterNetworkPolicies as chance has them.

use super::{
    any_network, any_port,
    pods::{any_port_name, any_selector},
};
use crate::common::sourced;
use bulkhead_api::objects::{
    ClusterEgressRule, ClusterIngressRule, ClusterNetworkPolicySpec, ClusterPolicyAction, ClusterPolicyPeer,
    ClusterPolicyPort, ClusterPolicyPortRange, ClusterPolicyPorts, ClusterPolicyProtocol,
    ClusterPolicySubject, ClusterPolicyTier, NamespacedPods,
};
use bulkhead_policy::{Named, Sourced};
use proptest::{prelude::*, sample::select};

fn any_pods() -> impl Strategy<Value = NamespacedPods> {
    (any_selector(), any_selector())
        .prop_map(|(namespace_selector, pod_selector)| NamespacedPods { namespace_selector, pod_selector })
}

fn pods_peer() -> impl Strategy<Value = ClusterPolicyPeer> {
    let none = ClusterPolicyPeer::default;
    prop_oneof![
        any_selector().prop_map(move |s| ClusterPolicyPeer { namespaces: Some(s), ..none() }),
        any_pods().prop_map(move |p| ClusterPolicyPeer { pods: Some(p), ..none() }),
    ]
}

fn any_peer() -> impl Strategy<Value = ClusterPolicyPeer> {
    let none = ClusterPolicyPeer::default;
    let networks = prop::collection::vec(any_network(), 1..3);
    prop_oneof![
        2 => pods_peer(),
        1 => any_selector().prop_map(move |s| ClusterPolicyPeer { nodes: Some(s), ..none() }),
        1 => networks.prop_map(move |networks| ClusterPolicyPeer {
            networks: Some(networks.iter().map(ToString::to_string).collect()),
            ..none()
        }),
    ]
}

fn any_protocol() -> impl Strategy<Value = ClusterPolicyProtocol> {
    let number =
        any_port().prop_map(|p| ClusterPolicyPort { number: Some(i32::from(p.max(1))), range: None });
    let range = (any_port(), any_port()).prop_map(|(a, b)| {
        let (a, b) = (i32::from(a.max(1)), i32::from(b.max(1)));
        let range = ClusterPolicyPortRange { start: a.min(b), end: a.max(b) };
        ClusterPolicyPort { number: None, range: Some(range) }
    });
    let ports = prop::option::of(prop_oneof![number, range]);
    let ports = ports.prop_map(|destination_port| Some(ClusterPolicyPorts { destination_port }));
    let none = ClusterPolicyProtocol::default;
    (ports, any_port_name(), 0..6).prop_map(move |(ports, name, which)| match which {
        0 | 1 => ClusterPolicyProtocol { tcp: ports, ..none() },
        2 => ClusterPolicyProtocol { udp: ports, ..none() },
        3 => ClusterPolicyProtocol { sctp: ports, ..none() },
        _ => ClusterPolicyProtocol { destination_named_port: Some(name), ..none() },
    })
}

pub(super) fn any_policies() -> impl Strategy<Value = Named<Sourced<ClusterNetworkPolicySpec>>> {
    use ClusterPolicyAction::{Accept, Deny, Pass};
    let any_action = || select(vec![Accept, Deny, Pass]);
    let any_name = || prop::option::of(Just("named".to_string()));
    let any_protocols = || prop::collection::vec(any_protocol(), 0..3);
    let from = prop::collection::vec(pods_peer(), 1..3);
    let ingress = (any_name(), any_action(), from, any_protocols())
        .prop_map(|(name, action, from, protocols)| ClusterIngressRule { name, action, from, protocols });
    let to = prop::collection::vec(any_peer(), 1..3);
    let egress = (any_name(), any_action(), to, any_protocols())
        .prop_map(|(name, action, to, protocols)| ClusterEgressRule { name, action, to, protocols });
    let tier = select(vec![ClusterPolicyTier::Admin, ClusterPolicyTier::Baseline]);
    let subject = prop_oneof![
        any_selector().prop_map(|s| ClusterPolicySubject { namespaces: Some(s), pods: None }),
        any_pods().prop_map(|p| ClusterPolicySubject { namespaces: None, pods: Some(p) }),
    ];
    let rules = (prop::collection::vec(ingress, 0..3), prop::collection::vec(egress, 0..3));
    let policy = (tier, 0..3i32, subject, rules).prop_map(|(tier, priority, subject, (ingress, egress))| {
        sourced(ClusterNetworkPolicySpec { tier, priority, subject, ingress, egress }, "cnp")
    });
    prop::collection::btree_map((0..6).prop_map(|i| format!("policy-{i}")), policy, 0..5)
        .prop_map(Named::from)
}
