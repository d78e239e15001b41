//! Random clusters in a small space, so that prefixes nest, ports lie near one another and addresses fall into them.

use super::{policies, random::Random};
use bulkhead_api::objects::{
    Action, DEFAULT_PARTITION, EgressRule, Empty, Established, IngressRule, IpBlockPeer, IpNetwork,
    Isolation, NetworkGroupSpec, PartitionSpec, Protocol, RulePeer, RulePort,
};
use bulkhead_policy::{NodeInfo, Objects, Sourced};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub const LOCAL_NODE: &str = "node-0";
const GROUPS: usize = 3;

pub fn address(random: &mut Random, v6: bool) -> IpAddr {
    let mut below = |n: usize| random.below(n);
    if v6 {
        let (a, b, c) = (below(3) as u16, below(4) as u16, below(4) as u16);
        return Ipv6Addr::new(0xfd00 + a, b, 0, 0, 0, 0, 0, c).into();
    }
    Ipv4Addr::new(8 + below(6) as u8, below(4) as u8, below(4) as u8, below(4) as u8).into()
}

/// Near the ends of pages, near one another, and the ends of the space.
pub fn port(random: &mut Random) -> u16 {
    let near = random.pick(&[0u16, 50, 53, 80, 254, 510, 8000, 65_280, 65_532]);
    near + random.below(4) as u16
}

pub fn network(random: &mut Random) -> IpNetwork {
    let v6 = random.percent(30);
    let length = if v6 {
        random.pick(&[0, 8, 15, 16, 30, 32, 64, 127, 128])
    } else {
        random.pick(&[0, 6, 8, 15, 16, 24, 30, 31, 32])
    };
    let network = IpNetwork::new(address(random, v6), length).expect("a network");
    IpNetwork::new(network.network(), length).expect("a network")
}

pub fn block(random: &mut Random) -> IpBlockPeer {
    let cidr = network(random);
    let inside =
        |e: &IpNetwork| e.is_ipv4() == cidr.is_ipv4() && e.prefix() > cidr.prefix() && cidr.contains(e.ip());
    let except = (0..random.below(4)).map(|_| network(random)).filter(inside).collect();
    IpBlockPeer { cidr, except }
}

fn peer(random: &mut Random, partitions: usize) -> RulePeer {
    let mut peer = RulePeer::default();
    match random.below(12) {
        0..=2 => {
            let n = random.below(partitions + 1);
            peer.partition = Some(if n == partitions { DEFAULT_PARTITION.into() } else { format!("p{n}") });
        }
        3 => peer.all_partitions = Some(Empty {}),
        4..=5 => peer.network_group = Some(format!("g{}", random.below(GROUPS))),
        6 => peer.nodes = Some(Empty {}),
        7 => peer.control_plane = Some(Empty {}),
        _ => peer.ip_block = Some(block(random)),
    }
    peer
}

fn rule_port(random: &mut Random) -> RulePort {
    let protocol =
        random.pick(&[Protocol::TCP, Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP]);
    let number = |random: &mut Random| match protocol {
        Protocol::ICMP => random.pick(&[0u16, 3, 8, 13, 128, 129, 255]),
        _ => port(random),
    };
    let (a, b) = (number(random), number(random));
    match random.below(3) {
        0 => RulePort { protocol, port: None, end_port: None },
        1 => RulePort { protocol, port: Some(a), end_port: None },
        _ => RulePort { protocol, port: Some(a.min(b)), end_port: Some(a.max(b)) },
    }
}

fn rule(random: &mut Random, partitions: usize) -> IngressRule {
    let peers = if random.percent(15) { 0 } else { 1 + random.below(2) };
    let ports = if random.percent(30) { 0 } else { 1 + random.below(3) };
    IngressRule {
        name: None,
        action: if random.percent(25) { Action::Deny } else { Action::Allow },
        from: (0..peers).map(|_| peer(random, partitions)).collect(),
        ports: (0..ports).map(|_| rule_port(random)).collect(),
        established: random.pick(&[Established::Cut, Established::Keep]),
    }
}

fn as_egress(rule: IngressRule) -> EgressRule {
    let IngressRule { name, action, from, ports, established } = rule;
    EgressRule { name, action, to: from, ports, established }
}

fn partition(random: &mut Random, number: usize, partitions: usize) -> PartitionSpec {
    let range = |text: String| text.parse::<IpNetwork>().expect("a range");
    let rules =
        |random: &mut Random| -> Vec<_> { (0..random.below(6)).map(|_| rule(random, partitions)).collect() };
    PartitionSpec {
        policy_id: number as u16 + 1,
        // Two of three namespaces are of partitions.
        namespaces: policies::NAMESPACES[..2].get(number).map(|n| n.to_string()).into_iter().collect(),
        pod_cidrs: vec![
            range(format!("9.{number}.0.0/16")),
            range(format!("11.{number}.1.0/24")),
            range(format!("fd00:{number}::/32")),
        ],
        isolation: random.pick(&[
            Isolation::Enforced,
            Isolation::Enforced,
            Isolation::Enforced,
            Isolation::Audit,
            Isolation::Open,
        ]),
        allow_cluster_dns: random.percent(50),
        allow_control_plane: random.percent(50),
        ingress: rules(random),
        egress: rules(random).into_iter().map(as_egress).collect(),
        ..PartitionSpec::default()
    }
}

/// Partitions `p0` to at most `p3`; groups, nodes, pods and DNS servers wherever chance puts them; policies.
pub fn objects(random: &mut Random) -> Objects {
    let anywhere = |random: &mut Random| {
        let v6 = random.percent(30);
        address(random, v6)
    };
    let mut objects = Objects {
        default_pod_cidrs: ["10.0.0.0/15", "fd01::/16"].map(|r| r.parse().expect("a range")).into(),
        cluster_dns: (0..random.below(3)).map(|_| anywhere(random)).collect(),
        cluster_dns_ports: if random.percent(50) { vec![254, 8000] } else { Vec::new() },
        ..Objects::default()
    };
    for i in 0..GROUPS {
        let spec = NetworkGroupSpec { cidrs: (0..random.below(4)).map(|_| network(random)).collect() };
        objects.network_groups.insert(format!("g{i}"), Arc::new(Sourced::new(spec, None)));
    }
    let partitions = 1 + random.below(4);
    for i in 0..partitions {
        let spec = partition(random, i, partitions);
        objects.partitions.insert(format!("p{i}"), Arc::new(Sourced::new(spec, None)));
    }
    for i in 0..1 + random.below(3) {
        let addresses = (0..1 + random.below(2)).map(|_| anywhere(random)).collect();
        let control_plane = random.percent(50);
        let labels = policies::pod(random).labels;
        let node = NodeInfo { addresses, control_plane, labels, drain_routes: None };
        objects.nodes.insert(format!("node-{i}"), Arc::new(node));
    }
    policies::add(random, &mut objects);
    objects
}
