//! Clusters and packets as chance has them, in spaces so small that rules and packets meet.

use crate::common::*;
use bulkhead_api::objects::{
    Action, EgressRule, Empty, Established, IngressRule, IpBlockPeer, IpNetwork, Isolation, LabelSelector,
    NetworkGroupSpec, PartitionSpec, Protocol, RulePeer, RulePort,
};
use bulkhead_ebpf_abi::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use bulkhead_policy::{Labels, Named, NodeInfo, Objects, selector};
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

#[path = "cluster_cases.rs"]
mod cluster_cases;
#[path = "pods.rs"]
mod pods;

pub const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];

/// A whole cluster.
pub fn any_objects() -> impl Strategy<Value = Objects> {
    let policies = (pods::any_network_policies(), cluster_cases::any_policies());
    let labelled = (pods::any_namespaces(), prop::collection::vec(pods::any_labels(), 3));
    let selectors = prop::collection::vec(prop::option::of(pods::any_selector()), 4);
    (partitions_and_nodes(), pods::any_pods(), policies, labelled, selectors).prop_map(
        |(
            mut objects,
            pods,
            (network_policies, cluster_network_policies),
            (namespaces, labels),
            selectors,
        )| {
            select_namespaces(&mut objects, &namespaces, selectors);
            let names: Vec<String> = objects.nodes.keys().cloned().collect();
            for (name, labels) in names.iter().zip(labels) {
                Arc::make_mut(objects.nodes.get_mut(name).unwrap()).labels = labels;
            }
            Objects { pods, network_policies, cluster_network_policies, namespaces, ..objects }
        },
    )
}

/// Partitions with selectors, as far as no namespace that is told of comes into two of them.
fn select_namespaces(
    objects: &mut Objects,
    namespaces: &Named<Labels>,
    selectors: Vec<Option<LabelSelector>>,
) {
    let owners = objects.partitions.values().flat_map(|p| p.spec.namespaces.clone());
    let mut taken: BTreeSet<String> = owners.collect();
    let names: Vec<String> = objects.partitions.keys().cloned().collect();
    for (name, selector) in names.iter().zip(selectors) {
        let Some(selector) = selector else { continue };
        let partition = Arc::make_mut(objects.partitions.get_mut(name).unwrap());
        let own = partition.spec.namespaces.clone();
        let picked = NAMESPACES.map(String::from).into_iter().filter(|namespace| {
            let labels = namespaces.get(namespace).map(|l| Labels::clone(l)).unwrap_or_default();
            let labels = labels.with("kubernetes.io/metadata.name", namespace);
            let told = namespaces.contains_key(namespace) || taken.contains(namespace);
            told && !own.contains(namespace) && selector::matches(&selector, &labels)
        });
        let picked: Vec<String> = picked.collect();
        if picked.iter().all(|namespace| !taken.contains(namespace)) {
            taken.extend(picked);
            partition.spec.namespace_selector = Some(selector);
        }
    }
}

/// Addresses in a small space, so that prefixes nest and addresses fall into them.
pub(super) fn any_address() -> impl Strategy<Value = IpAddr> {
    let v4 = (8..14u8, 0..4u8, 0..4u8, 0..4u8).prop_map(|(a, b, c, d)| Ipv4Addr::new(a, b, c, d).into());
    let v6 = (0..3u16, 0..4u16, 0..4u16)
        .prop_map(|(a, b, c)| Ipv6Addr::new(0xfd00 + a, b, 0, 0, 0, 0, 0, c).into());
    prop_oneof![3 => v4, 1 => v6]
}

pub(super) fn any_network() -> impl Strategy<Value = IpNetwork> {
    let lengths =
        prop_oneof![Just(0u8), Just(6), Just(8), Just(15), Just(16), Just(24), Just(30), Just(31), Just(32)];
    (any_address(), lengths).prop_map(|(ip, length)| {
        let length =
            if ip.is_ipv4() { length } else { [0, 8, 15, 16, 30, 32, 64, 127, 128][usize::from(length) % 9] };
        let network = IpNetwork::new(ip, length).unwrap();
        IpNetwork::new(network.network(), length).unwrap()
    })
}

pub(super) fn any_block() -> impl Strategy<Value = IpBlockPeer> {
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
pub(super) fn any_port() -> impl Strategy<Value = u16> {
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
fn partitions_and_nodes() -> impl Strategy<Value = Objects> {
    let groups = prop::collection::vec(prop::collection::vec(any_network(), 0..4), 3);
    let partitions = prop::collection::vec(any_partition(), 1..5);
    let nodes = prop::collection::vec((prop::collection::vec(any_address(), 0..3), any::<bool>()), 0..4);
    let dns = (prop::collection::vec(any_address(), 0..3), prop_oneof![Just(vec![]), Just(vec![9, 5353])]);
    let api_servers = prop::collection::vec(any_address(), 0..2);
    let strays = prop::collection::vec((any_network(), 0..5usize), 0..3);
    let parts = (groups, partitions, nodes, dns, api_servers, strays);
    parts.prop_map(|(groups, partitions, nodes, (cluster_dns, cluster_dns_ports), api_servers, strays)| {
        let network = |text: &str| text.parse::<IpNetwork>().unwrap();
        let default_pod_cidrs = vec![network("10.0.0.0/15"), network("fd01::/16")];
        let known = Objects { cluster_dns, cluster_dns_ports, api_servers, ..Objects::default() };
        let mut objects = Objects { default_pod_cidrs, ..known };
        for (i, cidrs) in groups.into_iter().enumerate() {
            objects.network_groups.insert(format!("g{i}"), sourced(NetworkGroupSpec { cidrs }, "g"));
        }
        let count = partitions.len();
        for (i, mut spec) in partitions.into_iter().enumerate() {
            spec.namespaces =
                NAMESPACES.get(i).filter(|_| i < 2).map(|n| n.to_string()).into_iter().collect();
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
        for (cidr, name) in strays {
            let name = if name < count { PARTITIONS[name] } else { "default" };
            objects.strays.insert(cidr, name.into());
        }
        for (i, (addresses, control_plane)) in nodes.into_iter().enumerate() {
            let node = NodeInfo { addresses, control_plane, ..NodeInfo::default() };
            objects.nodes.insert(format!("node-{}", i + 1), Arc::new(node));
        }
        objects
    })
}

/// A peer, now and then one of the cluster's own addresses; protocol and port, now and then DNS.
#[derive(Debug, Clone)]
pub struct Probe {
    peer: IpAddr,
    aim: Option<prop::sample::Index>,
    pub proto: u8,
    pub port: u16,
}

impl Probe {
    pub fn peer(&self, objects: &Objects) -> IpAddr {
        let known: Vec<IpAddr> = objects
            .cluster_dns
            .iter()
            .chain(&objects.api_servers)
            .chain(objects.nodes.values().flat_map(|n| &n.addresses))
            .chain(objects.pods.values().flat_map(|p| &p.addresses))
            .copied()
            .collect();
        self.aim.filter(|_| !known.is_empty()).map_or(self.peer, |aim| *aim.get(&known))
    }
}

pub fn any_probe() -> impl Strategy<Value = Probe> {
    let proto = prop_oneof![
        4 => Just(PROTO_TCP),
        2 => Just(PROTO_UDP),
        1 => Just(PROTO_SCTP),
        1 => Just(PROTO_ICMP),
        1 => Just(PROTO_ICMPV6),
        1 => any::<u8>(),
    ];
    let port = prop_oneof![3 => any_port(), 1 => prop_oneof![Just(53), Just(5353)]];
    let aim = prop_oneof![3 => Just(None), 2 => any::<prop::sample::Index>().prop_map(Some)];
    (any_address(), aim, proto, port).prop_map(|(peer, aim, proto, port)| Probe { peer, aim, proto, port })
}
