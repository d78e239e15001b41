//! The oracle's NetworkPolicy tier.

use super::{Packet, partition_at, pod_at};
use bulkhead_api::objects::Protocol;
use bulkhead_api::objects::{
    IpNetwork, LabelSelector, Labels, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule,
    NetworkPolicySpec, NumberOrName,
};
use bulkhead_ebpf_abi::{DIR_EGRESS, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use bulkhead_policy::{LocalPod, Objects, Pod};

/// Verdict and the name of the rule; None: no policy isolates the pod in this direction.
pub fn tier(objects: &Objects, pod: &LocalPod, dir: u32, packet: &Packet) -> Option<(bool, String)> {
    let unknown = Pod::default();
    let subject = objects.pod(&format!("{}/{}", pod.namespace, pod.name)).unwrap_or(&unknown);
    let mut isolating = Vec::new();
    for (key, policy) in &objects.network_policies {
        let (namespace, _) = key.split_once('/').unwrap();
        let selects = picks(&policy.spec.pod_selector, &subject.labels);
        if namespace != pod.namespace || !selects || !has_type(&policy.spec, dir) {
            continue;
        }
        let direction = if dir == DIR_EGRESS { "egress" } else { "ingress" };
        for (i, NetworkPolicyRule { peers, ports }) in rules(&policy.spec, dir).iter().enumerate() {
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
    if spec.policy_types.is_empty() {
        return wanted == "Ingress" || !spec.egress.is_empty();
    }
    spec.policy_types.contains(&wanted.into())
}

fn rules(spec: &NetworkPolicySpec, dir: u32) -> &[NetworkPolicyRule] {
    if dir == DIR_EGRESS { &spec.egress } else { &spec.ingress }
}

fn is_peer(objects: &Objects, own_namespace: &str, peer: &NetworkPolicyPeer, packet: &Packet) -> bool {
    if let Some(block) = &peer.ip_block {
        let holds = |text: &str| text.parse::<IpNetwork>().unwrap().contains(packet.peer);
        return holds(&block.cidr) && !block.except.iter().any(|e| holds(e));
    }
    let everybody = LabelSelector::default();
    let pods = peer.pod_selector.as_deref().unwrap_or(&everybody);
    is_picked(objects, packet, pods, |namespace, labels| match &peer.namespace_selector {
        Some(selector) => picks(selector, labels),
        None => namespace == own_namespace,
    }) || peer.namespace_selector.as_deref().is_some_and(asks_nothing)
        && asks_nothing(pods)
        && partition_at(objects, packet.peer).is_some()
}

/// Also an address in a pod range that no source tells of is a pod of some namespace.
pub fn asks_nothing(selector: &LabelSelector) -> bool {
    selector.match_labels.is_empty() && selector.match_expressions.is_empty()
}

pub fn is_picked(
    objects: &Objects,
    packet: &Packet,
    pods: &LabelSelector,
    namespace_is: impl Fn(&str, &Labels) -> bool,
) -> bool {
    let Some((namespace, pod)) = pod_at(objects, packet.peer) else { return false };
    let labels = objects.namespaces.get(namespace).map(|l| Labels::clone(l)).unwrap_or_default();
    let labels = labels.with("kubernetes.io/metadata.name", namespace);
    namespace_is(namespace, &labels) && picks(pods, &pod.labels)
}

pub fn picks(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in selector.match_labels.iter() {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    selector.match_expressions.iter().all(|e| {
        let listed = |label: &str| e.values.iter().any(|v| &**v == label);
        match (&*e.operator, labels.get(&e.key)) {
            ("In", Some(label)) => listed(label),
            ("NotIn", Some(label)) => !listed(label),
            ("Exists", label) => label.is_some(),
            ("In" | "DoesNotExist", label) => &*e.operator != "In" && label.is_none(),
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
        Some(NumberOrName::Number(first)) => {
            (*first..=port.end_port.unwrap_or(*first)).contains(&i32::from(packet.port))
        }
        Some(NumberOrName::Name(name)) => {
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
