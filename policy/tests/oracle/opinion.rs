//! The naive evaluator: reads the objects rule by rule, and knows of no identity, class, row or page.

use bulkhead_api::objects::{
    Action, ClusterPolicyAction, ClusterPolicyTier, EgressRule, Established, IngressRule, IpNetwork,
    Isolation, Protocol, RulePeer, RulePort,
};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, RULE_CLUSTER_DNS,
    RULE_CONTROL_PLANE, RULE_DEFAULT_DENY, RULE_OPEN, RULE_OWN_NODE, RULE_SAME_PARTITION,
};
use bulkhead_policy::{Labels, LocalPod, NodeInfo, Objects, Pod};
use std::net::IpAddr;

#[path = "cluster_policy.rs"]
mod cluster_policy;
#[path = "network_policy.rs"]
mod network_policy;

/// What the oracle says: verdict, keep, and the number of a built-in rule or the name of a written one.
#[derive(Debug, PartialEq)]
pub struct Opinion {
    pub allowed: bool,
    pub keep: bool,
    pub audit: bool,
    pub open: bool,
    /// Another tier than the partition's says no.
    pub last: bool,
    pub rule: Result<u32, String>,
}

/// The other end, and what is sent.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub peer: IpAddr,
    pub proto: u8,
    pub port: u16,
}

/// What all tiers say about a pod of this node together.
pub fn opinion(objects: &Objects, node: &str, pod: &LocalPod, dir: u32, packet: &Packet) -> Opinion {
    let partition = partition_tier(objects, &pod.partition, dir, packet);
    let isolation = network_policy::tier(objects, pod, dir, packet);
    let judged = isolation.is_some() || cluster_policy::has_rules(objects, pod, dir);
    let own_node = dir == DIR_INGRESS && is_node(objects, packet.peer, |name, _| name == node);
    let partition = Opinion { open: partition.open && !judged, ..partition };
    if own_node && !partition.open {
        return own_node_opinion(partition);
    }
    match cluster_policy::tier(objects, pod, ClusterPolicyTier::Admin, dir, packet) {
        Some((ClusterPolicyAction::Accept, rule)) => {
            return Opinion { allowed: true, keep: false, rule: Err(rule), ..partition };
        }
        Some((ClusterPolicyAction::Deny, rule)) => {
            return Opinion {
                allowed: false,
                keep: false,
                audit: false,
                last: true,
                rule: Err(rule),
                ..partition
            };
        }
        Some((ClusterPolicyAction::Pass, _)) | None => {}
    }
    let baseline = || match cluster_policy::tier(objects, pod, ClusterPolicyTier::Baseline, dir, packet) {
        Some((ClusterPolicyAction::Pass, _)) | None => None,
        Some((action, rule)) => Some((action == ClusterPolicyAction::Accept, rule)),
    };
    let Some((allowed, rule)) = isolation.or_else(baseline) else { return partition };
    match (partition.allowed, allowed) {
        (true, true) => Opinion { rule: Err(rule), ..partition },
        (false, true) => partition,
        (true, false) => {
            Opinion { allowed: false, keep: false, audit: false, last: true, rule: Err(rule), ..partition }
        }
        // An audited denial drops nothing: the policy's does.
        (false, false) if partition.audit => {
            Opinion { audit: false, last: true, rule: Err(rule), ..partition }
        }
        (false, false) => Opinion { last: true, ..partition },
    }
}

fn own_node_opinion(partition: Opinion) -> Opinion {
    Opinion { allowed: true, keep: false, rule: Ok(RULE_OWN_NODE), ..partition }
}

fn is_node(objects: &Objects, address: IpAddr, which: impl Fn(&str, &NodeInfo) -> bool) -> bool {
    objects.nodes.iter().any(|(name, node)| node.addresses.contains(&address) && which(name, node))
}

/// The pod that the source tells of at this address; none at a node's, nor where nobody's pods are.
fn pod_at(objects: &Objects, address: IpAddr) -> Option<(&str, &Pod)> {
    partition_at(objects, address)?;
    let found = objects.pods.iter().find(|(_, p)| !p.host_network && p.addresses.contains(&address));
    found.map(|(key, pod)| (key.split_once('/').unwrap().0, &**pod))
}

fn ranges<'a>(objects: &'a Objects, partition: &str) -> &'a [IpNetwork] {
    match objects.partitions.get(partition) {
        Some(p) => &p.spec.pod_cidrs,
        None if partition == "default" => &objects.default_pod_cidrs,
        None => &[],
    }
}

/// The partition of a pod's address: of a stray as it is told, else by range.
fn partition_at(objects: &Objects, address: IpAddr) -> Option<String> {
    if is_node(objects, address, |_, _| true) {
        return None;
    }
    let names = objects.partitions.keys().map(String::as_str).chain(["default"]);
    let mut of_names = names.flat_map(|n| ranges(objects, n).iter().map(move |range| (range, n)));
    let found = of_names.find(|(range, _)| range.contains(address));
    let mut holding = found.map(|(range, name)| (range.prefix(), name));
    for (cidr, stray) in objects.strays.iter().filter(|(cidr, _)| cidr.contains(address)) {
        if holding.is_none_or(|(length, _)| cidr.prefix() >= length) {
            holding = Some((cidr.prefix(), stray.partition.as_str()));
        }
    }
    holding.map(|(_, name)| name.to_string())
}

/// The one that names it; else the first that selects it; else the default one.
#[allow(dead_code, reason = "one of the test files asks for it")]
pub fn partition_of_namespace<'a>(objects: &'a Objects, namespace: &str) -> &'a str {
    for (name, partition) in &objects.partitions {
        if partition.spec.namespaces.iter().any(|n| n == namespace) {
            return name;
        }
    }
    let labels = objects.namespaces.get(namespace).map(|l| Labels::clone(l)).unwrap_or_default();
    let labels = labels.with("kubernetes.io/metadata.name", namespace);
    for (name, partition) in &objects.partitions {
        if let Some(selector) = &partition.spec.namespace_selector
            && network_policy::picks(selector, &labels)
        {
            return name;
        }
    }
    "default"
}

fn is_pod_of(objects: &Objects, address: IpAddr, partition: Option<&str>) -> bool {
    let found = partition_at(objects, address);
    found.is_some_and(|found| partition.is_none_or(|p| p == found))
}

fn peer_matches(objects: &Objects, peer: &RulePeer, address: IpAddr) -> bool {
    if let Some(name) = &peer.partition {
        return is_pod_of(objects, address, Some(name));
    }
    if peer.all_partitions.is_some() {
        return is_pod_of(objects, address, None);
    }
    if let Some(name) = &peer.network_group {
        return objects.network_groups[name].spec.cidrs.iter().any(|c| c.contains(address));
    }
    if let Some(block) = &peer.ip_block {
        return block.cidr.contains(address) && !block.except.iter().any(|e| e.contains(address));
    }
    if peer.nodes.is_some() {
        return is_node(objects, address, |_, _| true);
    }
    peer.control_plane.is_some() && is_control_plane(objects, address)
}

fn is_control_plane(objects: &Objects, address: IpAddr) -> bool {
    objects.api_servers.contains(&address) || is_node(objects, address, |_, node| node.control_plane)
}

fn port_matches(rule: &RulePort, proto: u8, port: u16) -> bool {
    let protocol = match rule.protocol {
        Protocol::TCP => proto == PROTO_TCP,
        Protocol::UDP => proto == PROTO_UDP,
        Protocol::SCTP => proto == PROTO_SCTP,
        Protocol::ICMP => proto == PROTO_ICMP || proto == PROTO_ICMPV6,
    };
    let range = match (rule.port, rule.end_port) {
        (None, _) => true,
        (Some(only), None) => port == only,
        (Some(first), Some(last)) => first <= port && port <= last,
    };
    protocol && range
}

fn partition_tier(objects: &Objects, partition: &str, dir: u32, probe: &Packet) -> Opinion {
    let Packet { peer, proto, port } = *probe;
    let spec = objects.partitions.get(partition).map(|p| &p.spec);
    let isolation = spec.map_or(Isolation::Open, |s| s.isolation);
    let opinion = |allowed, keep, rule| Opinion {
        allowed,
        keep,
        audit: isolation == Isolation::Audit,
        open: isolation == Isolation::Open,
        last: false,
        rule,
    };
    let Some(spec) = spec.filter(|_| isolation != Isolation::Open) else {
        return opinion(true, false, Ok(RULE_OPEN));
    };
    if is_pod_of(objects, peer, Some(partition)) {
        return opinion(true, false, Ok(RULE_SAME_PARTITION));
    }
    let rules: Vec<(IngressRule, String)> = if dir == DIR_INGRESS {
        spec.ingress
            .iter()
            .cloned()
            .zip(0..)
            .map(|(r, i)| (r, format!("Partition/{partition} ingress[{i}]")))
            .collect()
    } else {
        let as_ingress = |r: &EgressRule| IngressRule {
            name: None,
            action: r.action,
            from: r.to.clone(),
            ports: r.ports.clone(),
            established: r.established,
        };
        spec.egress
            .iter()
            .map(as_ingress)
            .zip(0..)
            .map(|(r, i)| (r, format!("Partition/{partition} egress[{i}]")))
            .collect()
    };
    for action in [Action::Deny, Action::Allow] {
        for (rule, name) in rules.iter().filter(|(r, _)| r.action == action) {
            let peers = rule.from.is_empty() || rule.from.iter().any(|p| peer_matches(objects, p, peer));
            let ports = rule.ports.is_empty() || rule.ports.iter().any(|p| port_matches(p, proto, port));
            if peers && ports {
                let allow = action == Action::Allow;
                return opinion(allow, allow && rule.established == Established::Keep, Err(name.clone()));
            }
        }
    }
    let at_its_port = port == 53 || objects.cluster_dns_ports.contains(&port);
    let dns = at_its_port && (proto == PROTO_UDP || proto == PROTO_TCP) && spec.allow_cluster_dns;
    let hosts = || objects.cluster_dns.iter().any(|a| is_pod_of(objects, *a, Some(partition)));
    let asks = || is_pod_of(objects, peer, None) || is_node(objects, peer, |_, _| true);
    if dns && (if dir == DIR_EGRESS { objects.cluster_dns.contains(&peer) } else { hosts() && asks() }) {
        return opinion(true, false, Ok(RULE_CLUSTER_DNS));
    }
    if spec.allow_control_plane && dir == DIR_INGRESS && is_control_plane(objects, peer) {
        return opinion(true, false, Ok(RULE_CONTROL_PLANE));
    }
    opinion(false, false, Ok(RULE_DEFAULT_DENY))
}
