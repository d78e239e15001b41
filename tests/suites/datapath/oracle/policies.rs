//! Random namespaces, pods with labels and named ports, and the policies that select them.

use super::{
    objects::{address, block, network, port},
    random::Random,
};
use bulkhead_api::objects::{
    ClusterEgressRule, ClusterIngressRule, ClusterNetworkPolicySpec, ClusterPolicyAction, ClusterPolicyPeer,
    ClusterPolicyPort, ClusterPolicyPortRange, ClusterPolicyPorts, ClusterPolicyProtocol,
    ClusterPolicySubject, ClusterPolicyTier, LabelSelector, LabelSelectorRequirement, NamespacedPods,
    NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, NetworkPolicySpec, NumberOrName, PolicyIpBlock,
    Protocol,
};
use bulkhead_policy::{ContainerPort, Labels, Objects, Pod, Sourced};
use std::{collections::BTreeSet, sync::Arc};

pub const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
const NAMES: [&str; 3] = ["http", "dns", "nobodys"];

/// Adds all of it to a cluster that has none.
pub fn add(random: &mut Random, objects: &mut Objects) {
    for namespace in NAMESPACES {
        if random.percent(70) {
            objects.namespaces.insert(namespace.into(), Arc::new(labels(random)));
        }
    }
    for i in 0..random.below(10) {
        let pod = Pod {
            addresses: some(random, 2, |r| {
                let v6 = r.percent(30);
                address(r, v6)
            }),
            ..pod(random)
        };
        objects.pods.insert(format!("{}/pod-{i}", random.pick(&NAMESPACES)), Arc::new(pod));
    }
    for i in 0..random.below(7) {
        let key = format!("{}/policy-{i}", random.pick(&NAMESPACES));
        let spec = network_policy(random);
        objects.network_policies.insert(key, Arc::new(Sourced::new(spec, None)));
    }
    for i in 0..random.below(5) {
        let spec = cluster_policy(random);
        objects.cluster_network_policies.insert(format!("policy-{i}"), Arc::new(Sourced::new(spec, None)));
    }
}

/// What selectors and rules can see of a pod, without its addresses.
pub fn pod(random: &mut Random) -> Pod {
    let port = |random: &mut Random| ContainerPort {
        name: random.pick(&NAMES).into(),
        protocol: random.pick(&[Protocol::TCP, Protocol::TCP, Protocol::UDP, Protocol::SCTP]),
        port: port(random).max(1),
    };
    Pod {
        labels: labels(random),
        host_network: random.percent(8),
        ports: some(random, 2, port),
        ..Pod::default()
    }
}

/// Names of rules, as counters and drops have them, that ask for ports by name.
pub fn by_named_ports(objects: &Objects) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let is_name = |p: &NetworkPolicyPort| matches!(p.port, Some(NumberOrName::Name(_)));
    for (key, policy) in &objects.network_policies {
        for (i, rule) in policy.spec.ingress.iter().enumerate() {
            if rule.ports.iter().any(is_name) {
                names.insert(format!("NetworkPolicy/{key} ingress[{i}]"));
            }
        }
        for (i, rule) in policy.spec.egress.iter().enumerate() {
            if rule.ports.iter().any(is_name) {
                names.insert(format!("NetworkPolicy/{key} egress[{i}]"));
            }
        }
    }
    for (key, policy) in &objects.cluster_network_policies {
        let is_name = |p: &ClusterPolicyProtocol| p.destination_named_port.is_some();
        let ingress = policy.spec.ingress.iter().map(|r| ("ingress", &r.protocols)).enumerate();
        let egress = policy.spec.egress.iter().map(|r| ("egress", &r.protocols)).enumerate();
        let named = ingress.chain(egress).filter(|(_, (_, protocols))| protocols.iter().any(is_name));
        names.extend(named.map(|(i, (dir, _))| format!("ClusterNetworkPolicy/{key} {dir}[{i}]")));
    }
    names
}

fn some<T>(random: &mut Random, most: usize, mut one: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..random.below(most + 1)).map(|_| one(random)).collect()
}

fn maybe<T>(random: &mut Random, percent: usize, one: impl FnOnce(&mut Random) -> T) -> Option<T> {
    if random.percent(percent) { Some(one(random)) } else { None }
}

fn labels(random: &mut Random) -> Labels {
    some(random, 2, |r| (r.pick(&["a", "b"]).to_string(), r.pick(&["x", "y"]).to_string()))
        .into_iter()
        .collect()
}

/// All operators; often empty.
fn selector(random: &mut Random) -> LabelSelector {
    let requirement = |random: &mut Random| {
        let key = random.pick(&["a", "b", "kubernetes.io/metadata.name"]);
        let operator = random.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
        let values: &[&str] = if key.len() > 1 { &NAMESPACES } else { &["x", "y", "z"] };
        let values = if operator.ends_with("In") { [random.pick(values).into()].into() } else { [].into() };
        LabelSelectorRequirement { key: key.into(), operator: operator.into(), values }
    };
    LabelSelector {
        match_labels: maybe(random, 40, labels).unwrap_or_default(),
        match_expressions: maybe(random, 30, |r| some(r, 2, requirement)).unwrap_or_default().into(),
    }
}

fn network_policy(random: &mut Random) -> NetworkPolicySpec {
    let rule = |r: &mut Random| NetworkPolicyRule {
        peers: maybe(r, 80, |r| some(r, 2, peer)).unwrap_or_default().into(),
        ports: maybe(r, 60, |r| some(r, 2, policy_port)).unwrap_or_default().into(),
    };
    let types = |r: &mut Random| some(r, 2, |r| r.pick(&["Ingress", "Egress"]).into());
    NetworkPolicySpec {
        pod_selector: maybe(random, 50, selector).unwrap_or_default(),
        policy_types: maybe(random, 50, types).unwrap_or_default().into(),
        ingress: maybe(random, 70, |r| some(r, 2, rule)).unwrap_or_default().into(),
        egress: maybe(random, 60, |r| some(r, 2, rule)).unwrap_or_default().into(),
    }
}

fn peer(random: &mut Random) -> NetworkPolicyPeer {
    if random.percent(30) {
        let block = block(random);
        let except = block.except.iter().map(|net| net.to_string().into()).collect();
        let ip_block = Some(Box::new(PolicyIpBlock { cidr: block.cidr.to_string().into(), except }));
        return NetworkPolicyPeer { ip_block, ..NetworkPolicyPeer::default() };
    }
    let namespace_selector = maybe(random, 60, selector);
    let alone = namespace_selector.is_none();
    let pod_selector = maybe(random, if alone { 100 } else { 60 }, selector);
    let [pod_selector, namespace_selector] = [pod_selector, namespace_selector].map(|s| s.map(Box::new));
    NetworkPolicyPeer { ip_block: None, pod_selector, namespace_selector }
}

fn policy_port(random: &mut Random) -> NetworkPolicyPort {
    let (a, b) = (i32::from(port(random).max(1)), i32::from(port(random).max(1)));
    let (port, end_port) = match random.below(4) {
        0 => (None, None),
        1 => (Some(NumberOrName::Number(a)), None),
        2 => (Some(NumberOrName::Number(a.min(b))), Some(a.max(b))),
        _ => (Some(NumberOrName::Name(random.pick(&NAMES).into())), None),
    };
    let protocol = maybe(random, 70, |r| r.pick(&["TCP", "TCP", "UDP", "SCTP"]).into());
    NetworkPolicyPort { protocol, port, end_port }
}

fn cluster_policy(random: &mut Random) -> ClusterNetworkPolicySpec {
    let subject = if random.percent(50) {
        ClusterPolicySubject { namespaces: Some(selector(random)), pods: None }
    } else {
        ClusterPolicySubject { namespaces: None, pods: Some(namespaced(random)) }
    };
    let action = |r: &mut Random| {
        r.pick(&[ClusterPolicyAction::Accept, ClusterPolicyAction::Deny, ClusterPolicyAction::Pass])
    };
    let protocols = |r: &mut Random| some(r, 2, protocol);
    let ingress = |r: &mut Random| ClusterIngressRule {
        name: None,
        action: action(r),
        from: vec![pods_peer(r)],
        protocols: protocols(r),
    };
    let egress = |r: &mut Random| ClusterEgressRule {
        name: None,
        action: action(r),
        to: vec![cluster_peer(r)],
        protocols: protocols(r),
    };
    ClusterNetworkPolicySpec {
        tier: random.pick(&[ClusterPolicyTier::Admin, ClusterPolicyTier::Baseline]),
        priority: random.below(3) as i32,
        subject,
        ingress: some(random, 2, ingress),
        egress: some(random, 2, egress),
    }
}

fn namespaced(random: &mut Random) -> NamespacedPods {
    NamespacedPods { namespace_selector: selector(random), pod_selector: selector(random) }
}

fn pods_peer(random: &mut Random) -> ClusterPolicyPeer {
    if random.percent(50) {
        ClusterPolicyPeer { namespaces: Some(selector(random)), ..ClusterPolicyPeer::default() }
    } else {
        ClusterPolicyPeer { pods: Some(namespaced(random)), ..ClusterPolicyPeer::default() }
    }
}

fn cluster_peer(random: &mut Random) -> ClusterPolicyPeer {
    match random.below(4) {
        0 => ClusterPolicyPeer { nodes: Some(selector(random)), ..ClusterPolicyPeer::default() },
        1 => {
            let networks = Some(vec![network(random).to_string()]);
            ClusterPolicyPeer { networks, ..ClusterPolicyPeer::default() }
        }
        _ => pods_peer(random),
    }
}

fn protocol(random: &mut Random) -> ClusterPolicyProtocol {
    let (a, b) = (i32::from(port(random).max(1)), i32::from(port(random).max(1)));
    let destination_port = match random.below(3) {
        0 => None,
        1 => Some(ClusterPolicyPort { number: Some(a), range: None }),
        _ => {
            let range = Some(ClusterPolicyPortRange { start: a.min(b), end: a.max(b) });
            Some(ClusterPolicyPort { number: None, range })
        }
    };
    let ports = Some(ClusterPolicyPorts { destination_port });
    let none = ClusterPolicyProtocol::default();
    match random.below(5) {
        0 | 1 => ClusterPolicyProtocol { tcp: ports, ..none },
        2 => ClusterPolicyProtocol { udp: ports, ..none },
        3 => ClusterPolicyProtocol { sctp: ports, ..none },
        _ => {
            let name = Some(random.pick(&NAMES).to_string());
            ClusterPolicyProtocol { destination_named_port: name, ..none }
        }
    }
}
