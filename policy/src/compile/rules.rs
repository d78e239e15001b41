//! A partition's end of a flow as one ordered list of rules, the built-in ones among them: the first match decides.
//!
//! ```text
//! same partition ▶ own node (ingress) ▶ Deny rules ▶ Allow rules ▶ cluster DNS ▶ control plane (ingress) ▶ deny
//! ```
//! Of two rules that match, a user's stands before a built-in one: its name is what the user looks for, and a Deny
//! takes back what `allowClusterDNS` and `allowControlPlane` give.

use super::CompileError;
use crate::{Interner, Objects, atom::Atom, rulebook::RuleEntry};
use bulkhead_api::objects::{
    Action, DEFAULT_PARTITION, Established, Isolation, PartitionSpec, Protocol, RulePeer, RulePort,
};
use bulkhead_ebpf_abi::{
    CELL_KEEP, Cell, DIR_EGRESS, DIR_INGRESS, POLICY_AUDIT, POLICY_OPEN, RULE_CLUSTER_DNS,
    RULE_CONTROL_PLANE, RULE_DEFAULT_DENY, RULE_OPEN, RULE_OWN_NODE, RULE_SAME_PARTITION, SLOT_ICMP,
    SLOT_ICMPV6, SLOT_SCTP, SLOT_TCP, SLOT_UDP, VERDICT_ALLOW, VERDICT_DENY,
};
use std::collections::BTreeMap;

const DNS_PORT: u16 = 53;

/// Ports of one slot, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRange {
    pub slot: u32,
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub cell: Cell,
    /// None: any peer. Else any address that has one of these.
    pub peers: Option<Vec<Atom>>,
    /// None: all protocols and ports.
    pub ports: Option<Vec<PortRange>>,
}

/// One direction of one partition.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub partition: String,
    pub number: u32,
    pub dir: u32,
    pub flags: u32,
    /// The last one matches everything.
    pub rules: Vec<Rule>,
}

/// Both directions of every partition, by name; and who wrote each rule.
pub(crate) fn policies(
    objects: &Objects,
    numbers: &mut Interner,
) -> Result<(Vec<Policy>, BTreeMap<u32, RuleEntry>), CompileError> {
    let mut policies = Vec::new();
    let mut book = BTreeMap::new();
    let number =
        |numbers: &mut Interner, name: &str| numbers.policy(name).map_err(|_| CompileError::numbers(name));
    let default = number(numbers, DEFAULT_PARTITION)?;
    policies.extend([DIR_EGRESS, DIR_INGRESS].map(|dir| open(DEFAULT_PARTITION, default, dir)));
    for (name, partition) in &objects.partitions {
        if name == DEFAULT_PARTITION {
            continue;
        }
        let policy = number(numbers, name)?;
        for dir in [DIR_EGRESS, DIR_INGRESS] {
            let rules = user_rules(name, &partition.spec, dir, numbers)?;
            for (entry, rule) in &rules {
                book.insert(rule.cell.rule, RuleEntry { name: entry.clone(), file: partition.file.clone() });
            }
            let rules = rules.into_iter().map(|(_, rule)| rule).collect();
            policies.push(match partition.spec.isolation {
                Isolation::Open => open(name, policy, dir),
                isolation => Policy {
                    partition: name.clone(),
                    number: policy,
                    dir,
                    flags: if isolation == Isolation::Audit { POLICY_AUDIT } else { 0 },
                    rules: with_built_in(objects, name, &partition.spec, dir, rules),
                },
            });
        }
    }
    Ok((policies, book))
}

fn open(partition: &str, number: u32, dir: u32) -> Policy {
    let rules = vec![built_in(VERDICT_ALLOW, RULE_OPEN, None)];
    Policy { partition: partition.into(), number, dir, flags: POLICY_OPEN, rules }
}

/// For numbers that stand between those in use.
pub(crate) fn closed(number: u32, dir: u32) -> Policy {
    let rules = vec![built_in(VERDICT_DENY, RULE_DEFAULT_DENY, None)];
    Policy { partition: String::new(), number, dir, flags: 0, rules }
}

fn built_in(verdict: u8, rule: u32, peer: Option<Atom>) -> Rule {
    Rule { cell: Cell { rule, verdict, flags: 0, reserved: 0 }, peers: peer.map(|p| vec![p]), ports: None }
}

fn with_built_in(
    objects: &Objects,
    name: &str,
    spec: &PartitionSpec,
    dir: u32,
    mut rules: Vec<Rule>,
) -> Vec<Rule> {
    let mut all = vec![built_in(VERDICT_ALLOW, RULE_SAME_PARTITION, Some(Atom::Partition(name.into())))];
    if dir == DIR_INGRESS {
        all.push(built_in(VERDICT_ALLOW, RULE_OWN_NODE, Some(Atom::LocalNode)));
    }
    // Stable: within Deny and within Allow the order is the user's.
    rules.sort_by_key(|rule| rule.cell.verdict != VERDICT_DENY);
    all.append(&mut rules);
    if spec.allow_cluster_dns {
        let hosts = || objects.cluster_dns.iter().any(|a| objects.partition_of_address(*a) == Some(name));
        let peer = match dir {
            DIR_EGRESS => Some(Atom::ClusterDns),
            _ => hosts().then_some(Atom::Pod),
        };
        if let Some(peer) = peer {
            let port = |slot| PortRange { slot, first: DNS_PORT, last: DNS_PORT };
            let ports = Some(vec![port(SLOT_TCP), port(SLOT_UDP)]);
            all.push(Rule { ports, ..built_in(VERDICT_ALLOW, RULE_CLUSTER_DNS, Some(peer)) });
        }
    }
    if spec.allow_control_plane && dir == DIR_INGRESS {
        all.push(built_in(VERDICT_ALLOW, RULE_CONTROL_PLANE, Some(Atom::ControlPlane)));
    }
    all.push(built_in(VERDICT_DENY, RULE_DEFAULT_DENY, None));
    all
}

/// The partition's own rules of one direction with their names, in the order written.
fn user_rules(
    partition: &str,
    spec: &PartitionSpec,
    dir: u32,
    numbers: &mut Interner,
) -> Result<Vec<(String, Rule)>, CompileError> {
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
        let number = numbers.rule(&entry).map_err(|_| CompileError::numbers(partition))?;
        let keep = action == Action::Allow && established == Established::Keep;
        let cell = Cell {
            rule: number,
            verdict: if action == Action::Allow { VERDICT_ALLOW } else { VERDICT_DENY },
            flags: if keep { CELL_KEEP } else { 0 },
            reserved: 0,
        };
        let peers = (!peers.is_empty()).then(|| peers.iter().flat_map(atoms).collect());
        let ports = (!ports.is_empty()).then(|| ports.iter().flat_map(ranges).collect());
        rules.push((entry, Rule { cell, peers, ports }));
    }
    Ok(rules)
}

fn atoms(peer: &RulePeer) -> Vec<Atom> {
    let RulePeer { partition, all_partitions, network_group, ip_block, nodes, control_plane } = peer;
    let mut atoms = Vec::with_capacity(1);
    atoms.extend(partition.clone().map(Atom::Partition));
    atoms.extend(all_partitions.map(|_| Atom::Pod));
    atoms.extend(network_group.clone().map(Atom::Group));
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
