//! The tables against a second opinion: an evaluator that reads the objects rule by rule, and knows of no identity,
//! class, row or page.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::objects::{
    Action, EgressRule, Empty, Established, IngressRule, IpBlockPeer, IpNetwork, Isolation, NetworkGroupSpec,
    PartitionSpec, Protocol, RulePeer, RulePort,
};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, RULE_CLUSTER_DNS,
    RULE_CONTROL_PLANE, RULE_DEFAULT_DENY, RULE_FIRST_DYNAMIC, RULE_OPEN, RULE_OWN_NODE, RULE_SAME_PARTITION,
};
use bulkhead_policy::{Compiled, Decision, Interner, NodeInfo, Objects, admit, compile};
use common::*;
use proptest::{prelude::*, test_runner::TestRunner};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What the oracle says: verdict, keep, and the number of a built-in rule or the name of a written one.
#[derive(Debug, PartialEq)]
struct Opinion {
    allowed: bool,
    keep: bool,
    audit: bool,
    open: bool,
    rule: Result<u32, String>,
}

fn is_node(objects: &Objects, address: IpAddr, which: impl Fn(&str, &NodeInfo) -> bool) -> bool {
    objects.nodes.iter().any(|(name, node)| node.addresses.contains(&address) && which(name, node))
}

fn is_pod_of(objects: &Objects, address: IpAddr, partition: Option<&str>) -> bool {
    let within = |ranges: &[IpNetwork]| ranges.iter().any(|r| r.contains(address));
    let ranges = match partition {
        None => {
            return within(&objects.default_pod_cidrs)
                || objects.partitions.keys().any(|p| is_pod_of(objects, address, Some(p)));
        }
        Some("default") => &objects.default_pod_cidrs,
        Some(name) => match objects.partitions.get(name) {
            Some(p) => &p.spec.pod_cidrs,
            None => return false,
        },
    };
    within(ranges) && !is_node(objects, address, |_, _| true)
}

fn peer_matches(objects: &Objects, peer: &RulePeer, address: IpAddr) -> bool {
    if let Some(name) = &peer.partition {
        return is_pod_of(objects, address, Some(name));
    }
    if peer.all_partitions.is_some() {
        return is_pod_of(objects, address, None) && !is_node(objects, address, |_, _| true);
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
    peer.control_plane.is_some() && is_node(objects, address, |_, node| node.control_plane)
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

fn opinion(objects: &Objects, partition: &str, dir: u32, peer: IpAddr, proto: u8, port: u16) -> Opinion {
    let spec = objects.partitions.get(partition).map(|p| &p.spec);
    let isolation = spec.map_or(Isolation::Open, |s| s.isolation);
    let opinion = |allowed, keep, rule| Opinion {
        allowed,
        keep,
        audit: isolation == Isolation::Audit,
        open: isolation == Isolation::Open,
        rule,
    };
    let Some(spec) = spec.filter(|_| isolation != Isolation::Open) else {
        return opinion(true, false, Ok(RULE_OPEN));
    };
    if is_pod_of(objects, peer, Some(partition)) {
        return opinion(true, false, Ok(RULE_SAME_PARTITION));
    }
    if dir == DIR_INGRESS && is_node(objects, peer, |name, _| name == NODE) {
        return opinion(true, false, Ok(RULE_OWN_NODE));
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
    let dns = port == 53 && (proto == PROTO_UDP || proto == PROTO_TCP) && spec.allow_cluster_dns;
    let hosts = || objects.cluster_dns.iter().any(|a| is_pod_of(objects, *a, Some(partition)));
    let pod = || is_pod_of(objects, peer, None) && !is_node(objects, peer, |_, _| true);
    if dns && (if dir == DIR_EGRESS { objects.cluster_dns.contains(&peer) } else { hosts() && pod() }) {
        return opinion(true, false, Ok(RULE_CLUSTER_DNS));
    }
    if spec.allow_control_plane && dir == DIR_INGRESS && is_node(objects, peer, |_, node| node.control_plane)
    {
        return opinion(true, false, Ok(RULE_CONTROL_PLANE));
    }
    opinion(false, false, Ok(RULE_DEFAULT_DENY))
}

fn as_opinion(compiled: &Compiled, decision: Decision) -> Opinion {
    let Decision { allowed, audit, keep, rule, open } = decision;
    let rule = if rule < RULE_FIRST_DYNAMIC {
        Ok(rule)
    } else {
        Err(compiled.rules.get(rule).unwrap().name.clone())
    };
    Opinion { allowed, keep, audit, open, rule }
}

/// Addresses in a small space, so that prefixes nest and addresses fall into them.
fn any_address() -> impl Strategy<Value = IpAddr> {
    let v4 = (8..14u8, 0..4u8, 0..4u8, 0..4u8).prop_map(|(a, b, c, d)| Ipv4Addr::new(a, b, c, d).into());
    let v6 = (0..3u16, 0..4u16, 0..4u16)
        .prop_map(|(a, b, c)| Ipv6Addr::new(0xfd00 + a, b, 0, 0, 0, 0, 0, c).into());
    prop_oneof![3 => v4, 1 => v6]
}

fn any_network() -> impl Strategy<Value = IpNetwork> {
    let lengths =
        prop_oneof![Just(0u8), Just(6), Just(8), Just(15), Just(16), Just(24), Just(30), Just(31), Just(32)];
    (any_address(), lengths).prop_map(|(ip, length)| {
        let length =
            if ip.is_ipv4() { length } else { [0, 8, 15, 16, 30, 32, 64, 127, 128][usize::from(length) % 9] };
        let network = IpNetwork::new(ip, length).unwrap();
        IpNetwork::new(network.network(), length).unwrap()
    })
}

fn any_block() -> impl Strategy<Value = IpBlockPeer> {
    (any_network(), prop::collection::vec(any_network(), 0..4)).prop_map(|(cidr, except)| {
        let inside = |e: &IpNetwork| {
            e.is_ipv4() == cidr.is_ipv4() && e.prefix() > cidr.prefix() && cidr.contains(e.ip())
        };
        IpBlockPeer { cidr, except: except.into_iter().filter(inside).collect() }
    })
}

fn any_peer() -> impl Strategy<Value = RulePeer> {
    let none = RulePeer::default;
    prop_oneof![
        3 => (0..5usize).prop_map(move |p| RulePeer { partition: Some(PARTITIONS[p].into()), ..none() }),
        1 => Just(RulePeer { all_partitions: Some(Empty {}), ..none() }),
        2 => (0..3usize).prop_map(move |g| RulePeer { network_group: Some(format!("g{g}")), ..none() }),
        4 => any_block().prop_map(move |b| RulePeer { ip_block: Some(b), ..none() }),
        1 => Just(RulePeer { nodes: Some(Empty {}), ..none() }),
        1 => Just(RulePeer { control_plane: Some(Empty {}), ..none() }),
    ]
}

/// Names that peers may have; of those that are no objects of the case, another stands for them.
const PARTITIONS: [&str; 5] = ["p0", "p1", "p2", "p3", "default"];

/// Ports near page ends, near one another, and the ends of the space.
fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![0..4u16, 50..56u16, 254..259u16, 510..514u16, 65280..65282u16, 65533..=65535u16]
}

fn any_rule_port() -> impl Strategy<Value = RulePort> {
    let protocol =
        prop_oneof![Just(Protocol::TCP), Just(Protocol::UDP), Just(Protocol::SCTP), Just(Protocol::ICMP)];
    (protocol, prop::option::of(any_port()), prop::option::of(any_port())).prop_map(|(protocol, a, b)| {
        let icmp = |p: u16| if protocol == Protocol::ICMP { p.min(255) } else { p };
        match (a.map(icmp), b.map(icmp)) {
            (Some(a), Some(b)) => RulePort { protocol, port: Some(a.min(b)), end_port: Some(a.max(b)) },
            (a, _) => RulePort { protocol, port: a, end_port: None },
        }
    })
}

fn any_rule() -> impl Strategy<Value = IngressRule> {
    let action = prop_oneof![3 => Just(Action::Allow), 1 => Just(Action::Deny)];
    let established = prop_oneof![Just(Established::Cut), Just(Established::Keep)];
    let peers = prop_oneof![1 => Just(vec![]), 6 => prop::collection::vec(any_peer(), 1..3)];
    let ports = prop_oneof![2 => Just(vec![]), 4 => prop::collection::vec(any_rule_port(), 1..4)];
    (action, peers, ports, established).prop_map(|(action, from, ports, established)| IngressRule {
        name: None,
        action,
        from,
        ports,
        established,
    })
}

fn any_partition() -> impl Strategy<Value = PartitionSpec> {
    let isolation =
        prop_oneof![5 => Just(Isolation::Enforced), 1 => Just(Isolation::Audit), 1 => Just(Isolation::Open)];
    let rules = || prop::collection::vec(any_rule(), 0..5);
    (isolation, rules(), rules(), any::<bool>(), any::<bool>()).prop_map(
        |(isolation, ingress, egress, dns, control_plane)| PartitionSpec {
            isolation,
            allow_cluster_dns: dns,
            allow_control_plane: control_plane,
            ingress,
            egress: egress.into_iter().map(as_egress).collect(),
            ..PartitionSpec::default()
        },
    )
}

fn as_egress(rule: IngressRule) -> EgressRule {
    let IngressRule { name, action, from, ports, established } = rule;
    EgressRule { name, action, to: from, ports, established }
}

/// Ranges are each partition's own; groups, blocks, nodes and DNS addresses fall into them as chance has it.
fn any_objects() -> impl Strategy<Value = Objects> {
    let groups = prop::collection::vec(prop::collection::vec(any_network(), 0..4), 3);
    let partitions = prop::collection::vec(any_partition(), 1..5);
    let nodes = prop::collection::vec((prop::collection::vec(any_address(), 0..3), any::<bool>()), 0..4);
    let dns = prop::collection::vec(any_address(), 0..3);
    (groups, partitions, nodes, dns).prop_map(|(groups, partitions, nodes, cluster_dns)| {
        let network = |text: &str| text.parse::<IpNetwork>().unwrap();
        let default_pod_cidrs = vec![network("10.0.0.0/15"), network("fd01::/16")];
        let mut objects = Objects { cluster_dns, default_pod_cidrs, ..Objects::default() };
        for (i, cidrs) in groups.into_iter().enumerate() {
            objects.network_groups.insert(format!("g{i}"), sourced(NetworkGroupSpec { cidrs }, "g"));
        }
        let count = partitions.len();
        for (i, mut spec) in partitions.into_iter().enumerate() {
            spec.policy_id = i as u16 + 1;
            spec.pod_cidrs = vec![network(&format!("9.{i}.0.0/16")), network(&format!("fd00:{i}::/32"))];
            spec.pod_cidrs.push(network(&format!("11.{i}.1.0/24")));
            let peers =
                spec.ingress.iter_mut().map(|r| &mut r.from).chain(spec.egress.iter_mut().map(|r| &mut r.to));
            for name in peers.flatten().filter_map(|p| p.partition.as_mut()).filter(|n| *n != "default") {
                let index: usize = name[1..].parse().unwrap();
                *name = PARTITIONS[index % count].into();
            }
            objects.partitions.insert(PARTITIONS[i].into(), sourced(spec, "p"));
        }
        for (i, (addresses, control_plane)) in nodes.into_iter().enumerate() {
            let node = NodeInfo { addresses, control_plane, ..NodeInfo::default() };
            objects.nodes.insert(format!("node-{}", i + 1), node);
        }
        objects
    })
}

/// A peer, now and then one of the cluster's own addresses; protocol and port, now and then DNS.
#[derive(Debug, Clone)]
struct Probe {
    peer: IpAddr,
    aim: Option<prop::sample::Index>,
    proto: u8,
    port: u16,
}

impl Probe {
    fn peer(&self, objects: &Objects) -> IpAddr {
        let known: Vec<IpAddr> = objects
            .cluster_dns
            .iter()
            .chain(objects.nodes.values().flat_map(|n| &n.addresses))
            .copied()
            .collect();
        self.aim.filter(|_| !known.is_empty()).map_or(self.peer, |aim| *aim.get(&known))
    }
}

fn any_probe() -> impl Strategy<Value = Probe> {
    let proto = prop_oneof![
        4 => Just(PROTO_TCP),
        2 => Just(PROTO_UDP),
        1 => Just(PROTO_SCTP),
        1 => Just(PROTO_ICMP),
        1 => Just(PROTO_ICMPV6),
        1 => any::<u8>(),
    ];
    let port = prop_oneof![3 => any_port(), 1 => Just(53)];
    let aim = prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (any_address(), aim, proto, port).prop_map(|(peer, aim, proto, port)| Probe { peer, aim, proto, port })
}

#[test]
fn the_tables_decide_as_the_rules_read_and_whatever_was_compiled_before() {
    let decisions = RefCell::new(BTreeMap::<String, usize>::new());
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let input = (any_objects(), any_objects(), prop::collection::vec(any_probe(), 40));
    let outcome = runner.run(&input, |(before, objects, probes)| {
        prop_assert_eq!(
            admit(&Objects::default(), objects.clone()).1,
            vec![],
            "the test makes objects that are refused"
        );
        let mut history = Interner::default();
        compile(&before, &mut history, NODE).unwrap();
        let with_history = compile(&objects, &mut history, NODE).unwrap();
        for compiled in [compiled(&objects), with_history] {
            for (partition, policy) in &compiled.policies {
                for (probe, dir) in probes.iter().flat_map(|p| [(p, DIR_EGRESS), (p, DIR_INGRESS)]) {
                    let (peer, Probe { proto, port, .. }) = (probe.peer(&objects), probe);
                    let decision = compiled.evaluate(*policy, dir, compiled.identity(peer).id, *proto, *port);
                    let expected = opinion(&objects, partition, dir, peer, *proto, *port);
                    let found = as_opinion(&compiled, decision);
                    prop_assert_eq!(found, expected, "{} {} {} {} {}", partition, dir, peer, proto, port);
                    let kind = decision_kind(decision);
                    *decisions.borrow_mut().entry(kind).or_default() += 1;
                }
            }
        }
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    let decisions = decisions.into_inner();
    assert!(decisions.values().sum::<usize>() >= 20_000, "{decisions:?}");
    assert_eq!(decisions.len(), 9, "every way to decide has been seen: {decisions:?}");
    assert!(decisions.values().all(|count| *count > 20), "{decisions:?}");
}

fn decision_kind(decision: Decision) -> String {
    match (decision.rule, decision.allowed, decision.keep) {
        (RULE_FIRST_DYNAMIC.., false, _) => "a Deny rule".into(),
        (RULE_FIRST_DYNAMIC.., true, true) => "an Allow rule that keeps".into(),
        (RULE_FIRST_DYNAMIC.., true, false) => "an Allow rule that cuts".into(),
        (built_in, ..) => format!("built-in {built_in}"),
    }
}
