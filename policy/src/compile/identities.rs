//! Numbers for everybody that rules can tell apart.
//!
//! A partition's pods are known by its prefixes. A pod has an entry of its own only where a selector or a named port tells
//! it from its prefix, or where its address lies in no partition's range.

use super::{CompileError, Local, addresses::Addresses, selection::Selections};
use crate::{Interner, Objects, atom::Atom, prefix::Prefix};
use bulkhead_api::objects::DEFAULT_PARTITION;
use bulkhead_ebpf_abi::{Addr, ID_WORLD, IDENTITY_LOCAL_NODE, Identity};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Identities {
    pub prefixes: BTreeMap<(Addr, u8), Identity>,
    pub exact: BTreeMap<Addr, Identity>,
    pub of_partitions: BTreeMap<String, u32>,
    pub meanings: BTreeMap<u32, Vec<Atom>>,
    pub variants: BTreeMap<String, BTreeSet<Vec<Atom>>>,
}

impl Identities {
    pub fn of(
        objects: &Objects,
        local: &Local<'_>,
        addresses: &Addresses,
        asked: &Selections,
        numbers: &mut Interner,
    ) -> Result<Self, CompileError> {
        let mut all = Self::default();
        let names = objects.partitions.keys().map(String::as_str).chain([DEFAULT_PARTITION]);
        for name in names.collect::<BTreeSet<_>>() {
            let atoms = of_partition(name);
            let id = all.number(numbers, &atoms)?;
            all.of_partitions.insert(name.into(), id);
            all.variants.insert(name.into(), [atoms].into());
        }
        for (Prefix { address, length }, atoms) in &addresses.prefixes {
            let id = all.number(numbers, atoms)?;
            all.prefixes.insert((*address, *length), Identity { id, flags: 0 });
            if let Some(variants) = partition(atoms).and_then(|p| all.variants.get_mut(p)) {
                variants.insert(atoms.clone());
            }
        }
        for (address, atoms) in &addresses.nodes {
            let flags = if atoms.contains(&Atom::LocalNode) { IDENTITY_LOCAL_NODE } else { 0 };
            let id = all.number(numbers, atoms)?;
            all.exact.insert(*address, Identity { id, flags });
        }
        all.add_pods(objects, asked, numbers)?;
        all.add_local(objects, local, asked, numbers)?;
        Ok(all)
    }

    fn number(&mut self, numbers: &mut Interner, atoms: &Vec<Atom>) -> Result<u32, CompileError> {
        let id = if atoms.is_empty() {
            ID_WORLD
        } else {
            let owner = partition(atoms).unwrap_or(DEFAULT_PARTITION);
            numbers.identity(atoms).map_err(|_| CompileError::numbers(owner))?
        };
        self.meanings.entry(id).or_insert_with(|| atoms.clone());
        Ok(id)
    }

    /// All pods that the source tells of, this node's among them.
    fn add_pods(
        &mut self,
        objects: &Objects,
        asked: &Selections,
        numbers: &mut Interner,
    ) -> Result<(), CompileError> {
        let lengths: BTreeSet<u8> = self.prefixes.keys().map(|(_, length)| *length).collect();
        // Of two pods with one address the first has it.
        let mut taken: BTreeSet<Addr> = self.exact.keys().copied().collect();
        let mut within = None;
        for (key, pod) in objects.pods.iter().filter(|(_, pod)| !pod.host_network) {
            let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
            // Pods of a namespace stand together.
            if within.as_ref().is_none_or(|(n, _)| *n != namespace) {
                within = Some((namespace, asked.within(objects, namespace)));
            }
            let facts = within.as_ref().map(|(_, within)| within.facts(Some(pod))).unwrap_or_default();
            let addresses = pod.addresses.iter().map(|a| Addr::from_ip(*a));
            for address in addresses.filter(|a| taken.insert(*a)) {
                let found = lengths.iter().rev().find_map(|length| {
                    let prefix = Prefix::of_address(address, *length);
                    self.prefixes.get(&(prefix.address, prefix.length))
                });
                let of_prefix = found.and_then(|i| self.meanings.get(&i.id)).cloned().unwrap_or_default();
                let in_range = partition(&of_prefix).is_some();
                if in_range && facts.is_empty() {
                    continue;
                }
                let stray = (!in_range).then(|| objects.partition_of_namespace(namespace));
                let id = self.number(numbers, &joined(&of_prefix, &facts, stray))?;
                self.exact.insert(address, Identity { id, flags: 0 });
            }
        }
        Ok(())
    }

    /// Pods of this node, at whatever address of their partition's ranges they may have or get.
    fn add_local(
        &mut self,
        objects: &Objects,
        local: &Local<'_>,
        asked: &Selections,
        numbers: &mut Interner,
    ) -> Result<(), CompileError> {
        let seen: BTreeSet<(&str, Vec<Atom>)> = local
            .pods
            .iter()
            .map(|pod| {
                let facts = asked.within(objects, &pod.namespace).facts(objects.pod(&pod.key()));
                (pod.partition.as_str(), facts)
            })
            .collect();
        for (name, facts) in seen {
            let there = self.variants.contains_key(name);
            let name = if there { name } else { DEFAULT_PARTITION };
            for of_prefix in self.variants.get(name).cloned().unwrap_or_default() {
                self.number(numbers, &joined(&of_prefix, &facts, None))?;
            }
        }
        Ok(())
    }
}

pub(super) fn of_partition(name: &str) -> Vec<Atom> {
    vec![Atom::Pod, Atom::Partition(name.into())]
}

pub(super) fn partition(atoms: &[Atom]) -> Option<&str> {
    match atoms.last() {
        Some(Atom::Partition(name)) => Some(name),
        _ => None,
    }
}

/// What is known of an address and of its pod together; `stray`: the partition of a pod outside all ranges.
pub(super) fn joined(of_prefix: &[Atom], facts: &[Atom], stray: Option<&str>) -> Vec<Atom> {
    let stray = stray.map(of_partition).unwrap_or_default();
    let all: BTreeSet<&Atom> = of_prefix.iter().chain(facts).chain(&stray).collect();
    all.into_iter().cloned().collect()
}
