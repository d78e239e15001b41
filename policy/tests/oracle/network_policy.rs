//! The oracle's NetworkPolicy tier.

use super::{Packet, partition_at, pod_at};
use bulkhead_api::objects::Protocol;
use bulkhead_api::objects::{
    IntOrString, IpNetwork, LabelSelector, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use bulkhead_ebpf_abi::{DIR_EGRESS, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use bulkhead_policy::{Labels, LocalPod, Objects, Pod};

/// Verdict and the name of the rule; None: no policy isolates the pod in this direction.
pub fn tier(objects: &Objects, pod: &LocalPod, dir: u32, packet: &Packet) -> Option<(bool, String)> {
    let unknown = Pod::default();
    let subject = objects.pod(&format!("{}/{}", pod.namespace, pod.name)).unwrap_or(&unknown);
    let mut isolating = Vec::new();
    for (key, policy) in &objects.network_policies {
        let (namespace, _) = key.split_once('/').unwrap();
        let selects = match &policy.spec.pod_selector {
            Some(selector) => picks(selector, &subject.labels),
            None => true,
        };
        if namespace != pod.namespace || !selects || !has_type(&policy.spec, dir) {
            continue;
        }
        let direction = if dir == DIR_EGRESS { "egress" } else { "ingress" };
        for (i, (peers, ports)) in rules(&policy.spec, dir).into_iter().enumerate() {
            let peer = peers.is_empty() || peers.iter().any(|p| is_peer(objects, namespace, p, packet));
            let port = ports.is_empty() || ports.iter().any(|p| is_port(objects, p, dir, subject, packet));
            if peer && port {
                return Some((true, format!("NetworkPolicy/{key} {direction}[{i}]")));
            }
        }
        isolating.push(format!("NetworkPolicy/{key}"));
    }
    match isolating.as_slice() {
        [] => None,
        [one] => Some((false, format!("{one} (isolates)"))),
        many => Some((false, format!("{} (isolate)", many.join(", ")))),
    }
}

fn has_type(spec: &NetworkPolicySpec, dir: u32) -> bool {
    let wanted = if dir == DIR_EGRESS { "Egress" } else { "Ingress" };
    let written = spec.policy_types.clone().unwrap_or_default();
    if written.is_empty() {
        return wanted == "Ingress" || spec.egress.as_ref().is_some_and(|e| !e.is_empty());
    }
    written.contains(&wanted.to_string())
}

fn rules(spec: &NetworkPolicySpec, dir: u32) -> Vec<(Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>)> {
    let or_none = |p: &Option<Vec<NetworkPolicyPeer>>| p.clone().unwrap_or_default();
    if dir == DIR_EGRESS {
        let rules = spec.egress.clone().unwrap_or_default();
        rules.into_iter().map(|r| (or_none(&r.to), r.ports.unwrap_or_default())).collect()
    } else {
        let rules = spec.ingress.clone().unwrap_or_default();
        rules.into_iter().map(|r| (or_none(&r.from), r.ports.unwrap_or_default())).collect()
    }
}

fn is_peer(objects: &Objects, own_namespace: &str, peer: &NetworkPolicyPeer, packet: &Packet) -> bool {
    if let Some(block) = &peer.ip_block {
        let holds = |text: &String| text.parse::<IpNetwork>().unwrap().contains(packet.peer);
        return holds(&block.cidr) && !block.except.iter().flatten().any(holds);
    }
    let everybody = LabelSelector::default();
    let pods = peer.pod_selector.as_ref().unwrap_or(&everybody);
    is_picked(objects, packet, pods, |namespace, labels| match &peer.namespace_selector {
        Some(selector) => picks(selector, labels),
        None => namespace == own_namespace,
    }) || peer.namespace_selector.as_ref().is_some_and(asks_nothing)
        && asks_nothing(pods)
        && partition_at(objects, packet.peer).is_some()
}

/// Also an address in a pod range that no source tells of is a pod of some namespace.
pub fn asks_nothing(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|l| l.is_empty())
        && selector.match_expressions.as_ref().is_none_or(|e| e.is_empty())
}

pub fn is_picked(
    objects: &Objects,
    packet: &Packet,
    pods: &LabelSelector,
    namespace_is: impl Fn(&str, &Labels) -> bool,
) -> bool {
    let Some((namespace, pod)) = pod_at(objects, packet.peer) else { return false };
    let mut labels = objects.namespaces.get(namespace).map(|l| Labels::clone(l)).unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".into(), namespace.into());
    namespace_is(namespace, &labels) && picks(pods, &pod.labels)
}

pub fn picks(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in selector.match_labels.iter().flatten() {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    selector.match_expressions.iter().flatten().all(|e| {
        let listed = |label: &String| e.values.iter().flatten().any(|v| v == label);
        match (e.operator.as_str(), labels.get(&e.key)) {
            ("In", Some(label)) => listed(label),
            ("NotIn", Some(label)) => !listed(label),
            ("Exists", label) => label.is_some(),
            ("In" | "DoesNotExist", label) => e.operator != "In" && label.is_none(),
            (operator, _) => operator == "NotIn",
        }
    })
}

fn is_port(objects: &Objects, port: &NetworkPolicyPort, dir: u32, subject: &Pod, packet: &Packet) -> bool {
    let proto = match port.protocol.as_deref() {
        Some("UDP") => PROTO_UDP,
        Some("SCTP") => PROTO_SCTP,
        _ => PROTO_TCP,
    };
    if proto != packet.proto {
        return false;
    }
    match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            (*first..=port.end_port.unwrap_or(*first)).contains(&i32::from(packet.port))
        }
        Some(IntOrString::String(name)) => {
            let responder =
                if dir == DIR_EGRESS { pod_at(objects, packet.peer).map(|(_, p)| p) } else { Some(subject) };
            responder.is_some_and(|pod| is_named(pod, name, packet))
        }
    }
}

pub fn is_named(pod: &Pod, name: &str, packet: &Packet) -> bool {
    pod.ports.iter().any(|p| {
        let proto = match p.protocol {
            Protocol::UDP => PROTO_UDP,
            Protocol::SCTP => PROTO_SCTP,
            _ => PROTO_TCP,
        };
        p.name == name && p.port == packet.port && proto == packet.proto
    })
}
