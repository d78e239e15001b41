//! The partition tier of one direction as an ordered list of rules, the built-in ones among them: the first match speaks.
//!
//! ```text
//! same partition ▶ Deny rules ▶ Allow rules ▶ cluster DNS ▶ control plane (ingress) ▶ deny
//! ```
//! Of two rules that match, a user's stands before a built-in one: its name is what the user looks for, and a Deny
//! takes back what `allowClusterDNS` and `allowControlPlane` give.

use super::tiers::Tier;
use crate::{Interner, Objects, Sourced, atom::Atom, rulebook::RuleEntry};
use bulkhead_api::objects::{
    Action, DEFAULT_PARTITION, Established, Isolation, PartitionSpec, Protocol, RulePeer, RulePort,
};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, RULE_CLUSTER_DNS, RULE_CONTROL_PLANE, RULE_DEFAULT_DENY, RULE_NONE, RULE_OPEN,
    RULE_SAME_PARTITION, SLOT_ICMP, SLOT_ICMPV6, SLOT_SCTP, SLOT_TCP, SLOT_UDP,
};
use std::{collections::BTreeMap, sync::Arc};

const DNS_PORT: u16 = 53;

/// Ports of one slot, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRange {
    pub slot: u32,
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny,
    /// To the next tier.
    Pass,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub number: u32,
    pub tier: Tier,
    pub verdict: Verdict,
    /// `established: Keep`.
    pub keep: bool,
    /// None: any peer. Else any address that has one of these.
    pub peers: Option<Vec<Atom>>,
    /// The peer must have this besides.
    pub requires: Option<Atom>,
    /// None: all protocols and ports.
    pub ports: Option<Vec<PortRange>>,
}

impl Rule {
    /// For all ports, without a number yet.
    pub fn of(tier: Tier, verdict: Verdict, peers: Option<Vec<Atom>>, requires: Option<Atom>) -> Self {
        let (peers, requires) = match (peers, requires) {
            (None, Some(only)) => (Some(vec![only]), None),
            other => other,
        };
        Self { number: RULE_NONE, tier, verdict, keep: false, peers, requires, ports: None }
    }

    /// Whether both mean the same, whatever they are called.
    pub fn says_what(&self, other: &Self) -> bool {
        let Self { number: _, keep: _, tier, verdict, peers, requires, ports } = self;
        (tier, verdict) == (&other.tier, &other.verdict)
            && (peers, requires, ports) == (&other.peers, &other.requires, &other.ports)
    }

    /// Whether it speaks of this port of a slot.
    pub fn is_for(&self, slot: u32, port: u16) -> bool {
        let in_range = |r: &PortRange| r.slot == slot && r.first <= port && port <= r.last;
        self.ports.as_ref().is_none_or(|ports| ports.iter().any(in_range))
    }

    /// A rule that nobody wrote, for all ports.
    pub fn built_in(tier: Tier, verdict: Verdict, number: u32, peer: Option<Atom>) -> Self {
        Self { number, ..Self::of(tier, verdict, peer.map(|p| vec![p]), None) }
    }
}

/// Name and file of every rule that was written, by its number.
pub(crate) type Book = BTreeMap<u32, Arc<RuleEntry>>;

/// The partition tier of a partition, which is the default one if it is not among the objects; the last rule matches
/// everything. `hosts_dns`: some of its pods answer cluster DNS. None: no number is left.
pub(crate) fn partition_tier(
    objects: &Objects,
    partition: &str,
    dir: u32,
    hosts_dns: bool,
    numbers: &mut Interner,
    book: &mut Book,
) -> Option<Vec<Rule>> {
    let open = || vec![built_in(Verdict::Allow, RULE_OPEN, None)];
    let Some(source) = written(objects, partition) else { return Some(open()) };
    let spec = &source.spec;
    let rules = user_rules(partition, spec, dir, numbers)?;
    for (i, (name, rule)) in rules.iter().enumerate() {
        let entry = RuleEntry { name: name.clone(), file: source.origin(dir, i) };
        book.insert(rule.number, Arc::new(entry));
    }
    if spec.isolation == Isolation::Open {
        return Some(open());
    }
    let rules = rules.into_iter().map(|(_, rule)| rule).collect();
    let dns_peers = match dir {
        _ if !spec.allow_cluster_dns => Vec::new(),
        DIR_EGRESS => vec![Atom::ClusterDns],
        // A cache on the node asks for its pods, and pods of the host's network are nodes.
        _ if hosts_dns => vec![Atom::Pod, Atom::Node],
        _ => Vec::new(),
    };
    let dns = (!dns_peers.is_empty()).then(|| cluster_dns(dns_peers, &objects.cluster_dns_ports));
    Some(with_built_in(partition, spec, dir, dns, rules))
}

fn cluster_dns(peers: Vec<Atom>, more_ports: &[u16]) -> Rule {
    let at = |port| [SLOT_TCP, SLOT_UDP].map(|slot| PortRange { slot, first: port, last: port });
    let ports = [DNS_PORT].iter().chain(more_ports).flat_map(|port| at(*port)).collect();
    Rule { peers: Some(peers), ports: Some(ports), ..built_in(Verdict::Allow, RULE_CLUSTER_DNS, None) }
}

pub(crate) fn isolation(objects: &Objects, partition: &str) -> Isolation {
    written(objects, partition).map_or(Isolation::Open, |p| p.spec.isolation)
}

fn written<'a>(objects: &'a Objects, partition: &str) -> Option<&'a Sourced<PartitionSpec>> {
    objects.partitions.get(partition).filter(|_| partition != DEFAULT_PARTITION).map(Arc::as_ref)
}

fn built_in(verdict: Verdict, number: u32, peer: Option<Atom>) -> Rule {
    Rule::built_in(Tier::Partition, verdict, number, peer)
}

fn with_built_in(
    name: &str,
    spec: &PartitionSpec,
    dir: u32,
    dns: Option<Rule>,
    mut rules: Vec<Rule>,
) -> Vec<Rule> {
    let mut all = vec![built_in(Verdict::Allow, RULE_SAME_PARTITION, Some(Atom::Partition(name.into())))];
    // Stable: within Deny and within Allow the order is the user's.
    rules.sort_by_key(|rule| rule.verdict != Verdict::Deny);
    all.append(&mut rules);
    all.extend(dns);
    if spec.allow_control_plane && dir == DIR_INGRESS {
        all.push(built_in(Verdict::Allow, RULE_CONTROL_PLANE, Some(Atom::ControlPlane)));
    }
    all.push(built_in(Verdict::Deny, RULE_DEFAULT_DENY, None));
    all
}

/// The partition's own rules of one direction with their names, in the order written.
fn user_rules(
    partition: &str,
    spec: &PartitionSpec,
    dir: u32,
    numbers: &mut Interner,
) -> Option<Vec<(String, Rule)>> {
    let written: Vec<_> = if dir == DIR_EGRESS {
        spec.egress.iter().map(|r| (&r.name, r.action, &r.to, &r.ports, r.established)).collect()
    } else {
        spec.ingress.iter().map(|r| (&r.name, r.action, &r.from, &r.ports, r.established)).collect()
    };
    let direction = if dir == DIR_EGRESS { "egress" } else { "ingress" };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut rules = Vec::with_capacity(written.len());
    for (i, (name, action, peers, ports, established)) in written.into_iter().enumerate() {
        let mut entry = match name {
            Some(name) => format!("Partition/{partition} {direction} {name:?}"),
            None => format!("Partition/{partition} {direction}[{i}]"),
        };
        let count = seen.entry(entry.clone()).or_default();
        *count += 1;
        if *count > 1 {
            entry = format!("{entry} #{count}");
        }
        let verdict = if action == Action::Allow { Verdict::Allow } else { Verdict::Deny };
        let peers = (!peers.is_empty()).then(|| peers.iter().flat_map(atoms).collect());
        let ports = (!ports.is_empty()).then(|| ports.iter().flat_map(ranges).collect());
        let rule = Rule {
            number: numbers.rule(&entry).ok()?,
            keep: action == Action::Allow && established == Established::Keep,
            ports,
            ..Rule::of(Tier::Partition, verdict, peers, None)
        };
        rules.push((entry, rule));
    }
    Some(rules)
}

/// Every block that the rules of a partition name.
pub(crate) fn blocks(spec: &PartitionSpec) -> impl Iterator<Item = Atom> {
    let peers = spec.ingress.iter().flat_map(|r| &r.from).chain(spec.egress.iter().flat_map(|r| &r.to));
    peers.filter_map(|p| p.ip_block.as_ref()).map(Atom::block)
}

fn atoms(peer: &RulePeer) -> Vec<Atom> {
    let RulePeer { partition, all_partitions, network_group, ip_block, nodes, control_plane } = peer;
    let mut atoms = Vec::with_capacity(1);
    atoms.extend(partition.as_deref().map(|name| Atom::Partition(name.into())));
    atoms.extend(all_partitions.map(|_| Atom::Pod));
    atoms.extend(network_group.as_deref().map(|name| Atom::Group(name.into())));
    atoms.extend(ip_block.as_ref().map(Atom::block));
    atoms.extend(nodes.map(|_| Atom::Node));
    atoms.extend(control_plane.map(|_| Atom::ControlPlane));
    atoms
}

fn ranges(port: &RulePort) -> Vec<PortRange> {
    let slots: &[u32] = match port.protocol {
        Protocol::TCP => &[SLOT_TCP],
        Protocol::UDP => &[SLOT_UDP],
        Protocol::SCTP => &[SLOT_SCTP],
        Protocol::ICMP => &[SLOT_ICMP, SLOT_ICMPV6],
    };
    let (first, last) = match port.port {
        None => (0, u16::MAX),
        Some(first) => (first, port.end_port.unwrap_or(first)),
    };
    slots.iter().filter(|_| first <= last).map(|slot| PortRange { slot: *slot, first, last }).collect()
}
