//! The oracle's admin and baseline tiers.

use super::{
    Packet, is_node,
    network_policy::{asks_nothing, is_named, is_picked, picks},
    partition_at, pod_at,
};
use bulkhead_api::objects::{
    ClusterIngressRule, ClusterNetworkPolicySpec, ClusterPolicyAction, ClusterPolicyPeer, ClusterPolicyPorts,
    ClusterPolicyProtocol, ClusterPolicyTier, IpNetwork, LabelSelector,
};
use bulkhead_ebpf_abi::{DIR_EGRESS, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use bulkhead_policy::{Labels, LocalPod, Objects, Pod};

fn rules(spec: &ClusterNetworkPolicySpec, dir: u32) -> Vec<ClusterIngressRule> {
    if dir != DIR_EGRESS {
        return spec.ingress.clone();
    }
    let rules = spec.egress.iter().cloned();
    rules
        .map(|r| ClusterIngressRule { name: r.name, action: r.action, from: r.to, protocols: r.protocols })
        .collect()
}

fn subject_of<'a>(objects: &'a Objects, pod: &LocalPod) -> Vec<(&'a String, &'a ClusterNetworkPolicySpec)> {
    let unknown = Pod::default();
    let subject = objects.pod(&format!("{}/{}", pod.namespace, pod.name)).unwrap_or(&unknown);
    let labels = objects.namespaces.get(&pod.namespace).map(|l| Labels::clone(l)).unwrap_or_default();
    let labels = labels.with("kubernetes.io/metadata.name", &pod.namespace);
    let is_subject = |spec: &ClusterNetworkPolicySpec| match (&spec.subject.namespaces, &spec.subject.pods) {
        (Some(namespaces), _) => picks(namespaces, &labels),
        (None, Some(pods)) => {
            picks(&pods.namespace_selector, &labels) && picks(&pods.pod_selector, &subject.labels)
        }
        (None, None) => false,
    };
    let all = objects.cluster_network_policies.iter().map(|(name, p)| (name, &p.spec));
    let mut found: Vec<_> = all.filter(|(_, spec)| is_subject(spec)).collect();
    found.sort_by_key(|(name, spec)| (spec.priority, name.to_string()));
    found
}

/// Whether any rule of either tier could speak.
pub fn has_rules(objects: &Objects, pod: &LocalPod, dir: u32) -> bool {
    let subject = Pod::default();
    let own = objects.pod(&pod.key()).unwrap_or(&subject);
    // A rule all of whose named ports stand for nothing is none.
    let can_match = |p: &ClusterPolicyProtocol| match &p.destination_named_port {
        None => true,
        Some(name) if dir == DIR_EGRESS => {
            objects.pods.values().any(|p| !p.host_network && p.ports.iter().any(|p| p.name == *name))
        }
        Some(name) => own.ports.iter().any(|p| p.name == *name),
    };
    let speaks = |r: &ClusterIngressRule| r.protocols.is_empty() || r.protocols.iter().any(can_match);
    subject_of(objects, pod).iter().any(|(_, spec)| rules(spec, dir).iter().any(speaks))
}

pub fn tier(
    objects: &Objects,
    pod: &LocalPod,
    tier: ClusterPolicyTier,
    dir: u32,
    packet: &Packet,
) -> Option<(ClusterPolicyAction, String)> {
    let unknown = Pod::default();
    let subject = objects.pod(&pod.key()).unwrap_or(&unknown);
    let direction = if dir == DIR_EGRESS { "egress" } else { "ingress" };
    for (policy, spec) in subject_of(objects, pod).into_iter().filter(|(_, spec)| spec.tier == tier) {
        for (i, rule) in rules(spec, dir).into_iter().enumerate() {
            let responder =
                if dir == DIR_EGRESS { pod_at(objects, packet.peer).map(|(_, p)| p) } else { Some(subject) };
            let protocol =
                rule.protocols.is_empty() || rule.protocols.iter().any(|p| is_protocol(p, responder, packet));
            if protocol && rule.from.iter().any(|p| is_peer(objects, p, packet)) {
                let own = rule.name.map(|name| format!(" {name:?}")).unwrap_or_default();
                let name = format!("ClusterNetworkPolicy/{policy} {direction}[{i}]{own}");
                return Some((rule.action, name));
            }
        }
    }
    None
}

fn is_peer(objects: &Objects, peer: &ClusterPolicyPeer, packet: &Packet) -> bool {
    let everybody = LabelSelector::default();
    let pods = |namespaces: &LabelSelector, pods: &LabelSelector| {
        is_picked(objects, packet, pods, |_, labels| picks(namespaces, labels))
            || asks_nothing(namespaces) && asks_nothing(pods) && partition_at(objects, packet.peer).is_some()
    };
    peer.namespaces.as_ref().is_some_and(|n| pods(n, &everybody))
        || peer.pods.as_ref().is_some_and(|p| pods(&p.namespace_selector, &p.pod_selector))
        || peer
            .nodes
            .as_ref()
            .is_some_and(|s| is_node(objects, packet.peer, |_, node| picks(s, &node.labels)))
        || peer.networks.iter().flatten().any(|n| n.parse::<IpNetwork>().unwrap().contains(packet.peer))
}

fn is_protocol(protocol: &ClusterPolicyProtocol, responder: Option<&Pod>, packet: &Packet) -> bool {
    let ports = |proto: u8, ports: &Option<ClusterPolicyPorts>| {
        let Some(ports) = ports else { return false };
        let within = match &ports.destination_port {
            None => true,
            Some(port) => {
                port.number == Some(i32::from(packet.port))
                    || port
                        .range
                        .as_ref()
                        .is_some_and(|r| (r.start..=r.end).contains(&i32::from(packet.port)))
            }
        };
        proto == packet.proto && within
    };
    ports(PROTO_TCP, &protocol.tcp)
        || ports(PROTO_UDP, &protocol.udp)
        || ports(PROTO_SCTP, &protocol.sctp)
        || protocol
            .destination_named_port
            .as_ref()
            .is_some_and(|name| responder.is_some_and(|pod| is_named(pod, name, packet)))
}
