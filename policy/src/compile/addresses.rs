//! Every address that a rule can tell from the world, as prefixes with the atoms that hold in them.
//!
//! Prefixes nest or are disjoint, so one walk in order, with the chain of covering prefixes on a stack, gives each its
//! atoms: those of the prefix around it, and its own.

use super::selection::Selections;
use crate::{Objects, atom::Atom, interner::Meaning, prefix::Prefix};
use bulkhead_ebpf_abi::Addr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What is known of the addresses of a prefix.
#[derive(Clone, Debug, PartialEq, Default)]
struct Known {
    partition: Option<Arc<str>>,
    atoms: BTreeSet<Atom>,
}

impl Known {
    fn atoms(&self) -> Meaning {
        let partition = self.partition.iter().flat_map(|p| [Atom::Pod, Atom::Partition(p.clone())]);
        self.atoms.iter().cloned().chain(partition).collect()
    }

    fn is_world(&self) -> bool {
        self.partition.is_none() && self.atoms.is_empty()
    }
}

/// What a prefix changes within itself, in the order of application.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// Nothing that holds around it holds in it: IPv4 inside `::/0`.
    Family,
    Partition(Arc<str>),
    Add(Atom),
    Remove(Atom),
}

/// Atoms (sorted) by prefix and by address of a node. Empty atoms: the world again, inside a prefix that is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Addresses {
    pub prefixes: BTreeMap<Prefix, Meaning>,
    pub nodes: BTreeMap<Addr, Meaning>,
}

impl Addresses {
    /// `blocks`: those that the policies ask for.
    pub fn of(objects: &Objects, local_node: &str, asked: &Selections, blocks: &BTreeSet<Atom>) -> Self {
        let known = walk(marks(objects, blocks));
        let mut nodes: BTreeMap<Addr, BTreeSet<Atom>> = BTreeMap::new();
        for (name, node) in &objects.nodes {
            for address in node.addresses.iter().map(|a| Addr::from_ip(*a)) {
                let atoms = nodes.entry(address).or_insert_with(|| {
                    // A node's address is no pod's, also inside a partition's range.
                    longest(&known, address).map(|k| k.atoms.clone()).unwrap_or_default()
                });
                atoms.insert(Atom::Node);
                atoms.extend(asked.node_facts(&node.labels));
                if name == local_node {
                    atoms.insert(Atom::LocalNode);
                }
                if node.control_plane {
                    atoms.insert(Atom::ControlPlane);
                }
            }
        }
        Self {
            prefixes: known.into_iter().map(|(p, k)| (p, k.atoms())).collect(),
            nodes: nodes.into_iter().map(|(a, atoms)| (a, atoms.into_iter().collect())).collect(),
        }
    }
}

/// Whether [`Addresses::of`] reads the same in both, but for what policies ask.
pub(super) fn same_addresses(a: &Objects, b: &Objects) -> bool {
    a.same_ranges(b)
        && a.strays == b.strays
        && a.cluster_dns == b.cluster_dns
        && a.api_servers == b.api_servers
        && a.nodes == b.nodes
        && a.network_groups == b.network_groups
}

/// The value of the longest prefix that holds the address.
fn longest<T>(prefixes: &BTreeMap<Prefix, T>, address: Addr) -> Option<&T> {
    (0..=128).rev().find_map(|length| prefixes.get(&Prefix::of_address(address, length)))
}

fn marks(objects: &Objects, blocks: &BTreeSet<Atom>) -> BTreeMap<Prefix, BTreeSet<Mark>> {
    let mut marks: BTreeMap<Prefix, BTreeSet<Mark>> = BTreeMap::new();
    marks.entry(Prefix::V4).or_default().insert(Mark::Family);
    let mut ranges: BTreeSet<Prefix> = BTreeSet::new();
    for (partition, cidr) in objects.ranges() {
        // Of two partitions with one range, the first has it: `Objects::partition_of_address` says the same.
        if ranges.insert(Prefix::of(*cidr)) {
            marks.entry(Prefix::of(*cidr)).or_default().insert(Mark::Partition(partition.into()));
        }
    }
    for (name, group) in &objects.network_groups {
        for cidr in &group.spec.cidrs {
            marks.entry(Prefix::of(*cidr)).or_default().insert(Mark::Add(Atom::Group(name.as_str().into())));
        }
    }
    for atom in blocks {
        let Atom::Block(block) = atom else { continue };
        let cidr = Prefix::of(block.cidr);
        let except: Vec<Prefix> = block.except.iter().map(|e| Prefix::of(*e)).collect();
        if except.iter().any(|e| e.covers(cidr)) {
            continue;
        }
        marks.entry(cidr).or_default().insert(Mark::Add(atom.clone()));
        for except in except.into_iter().filter(|e| cidr.covers(*e)) {
            marks.entry(except).or_default().insert(Mark::Remove(atom.clone()));
        }
    }
    let dns = objects.cluster_dns.iter().map(|a| (a, Atom::ClusterDns));
    for (address, atom) in dns.chain(objects.api_servers.iter().map(|a| (a, Atom::ControlPlane))) {
        let prefix = Prefix::of_address(Addr::from_ip(*address), 128);
        marks.entry(prefix).or_default().insert(Mark::Add(atom));
    }
    marks
}

fn walk(marks: BTreeMap<Prefix, BTreeSet<Mark>>) -> BTreeMap<Prefix, Known> {
    let mut around: Vec<(Prefix, Known)> = Vec::new();
    let mut result = BTreeMap::new();
    for (prefix, marks) in marks {
        while around.last().is_some_and(|(outer, _)| !outer.spans(prefix)) {
            around.pop();
        }
        let outer = around.last().map(|(_, known)| known.clone()).unwrap_or_default();
        let mut known = outer.clone();
        for mark in marks {
            match mark {
                Mark::Family => known = Known::default(),
                Mark::Partition(name) => known.partition = Some(name),
                Mark::Add(atom) => drop(known.atoms.insert(atom)),
                Mark::Remove(atom) => drop(known.atoms.remove(&atom)),
            }
        }
        if !(known.is_world() && outer.is_world()) {
            result.insert(prefix, known.clone());
        }
        around.push((prefix, known));
    }
    result
}
