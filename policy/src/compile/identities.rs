//! Numbers for everybody that rules can tell apart.
//!
//! A partition's pods are known by its prefixes. A pod has an entry of its own only where a selector or a named port tells
//! it from its prefix, or where it is a stray.
//!
//! ```text
//! addresses ─▶ base: partitions, prefixes, nodes ─┐
//! pods ─▶ owners of addresses ─▶ dirty addresses ─┴─▶ exact, uses of each identity
//! ```
//! Of the former compile all stays that this one would make again: the base where the addresses are the same, and the
//! entries of all pods but those that something they depend on has changed for.

use super::{Asked, CompileError, Local, addresses::Addresses, pods::Pods};
use crate::{Interner, LocalPod, Objects, atom::Atom, interner::Meaning, prefix::Prefix};
use bulkhead_api::objects::DEFAULT_PARTITION;
use bulkhead_ebpf_abi::{Addr, ID_WORLD, IDENTITY_LOCAL_NODE, Identity};
use imbl::OrdMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Who is who whatever pods there are.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Base {
    pub addresses: Addresses,
    pub prefixes: OrdMap<(Addr, u8), Identity>,
    pub nodes: BTreeMap<Addr, Identity>,
    /// Strays that are one address: as many as pods, so they stand where pods' entries do and take no room of prefixes.
    pub strays: BTreeMap<Addr, Identity>,
    pub of_partitions: BTreeMap<String, u32>,
    /// By partition: what its ranges' prefixes are known as.
    pub variants: BTreeMap<String, BTreeSet<Meaning>>,
    numbers: BTreeSet<u32>,
    /// Of the prefixes, longest first.
    lengths: Vec<u8>,
}

impl Base {
    fn of(objects: &Objects, addresses: Addresses, numbers: &mut Interner) -> Result<Self, CompileError> {
        let mut base = Self::default();
        let names = objects.partitions.keys().map(String::as_str).chain([DEFAULT_PARTITION]);
        for name in names.collect::<BTreeSet<_>>() {
            let atoms: Meaning = of_partition(name).into();
            let id = base.number(numbers, &atoms)?;
            base.of_partitions.insert(name.into(), id);
            base.variants.insert(name.into(), [atoms].into());
        }
        for (prefix, atoms) in &addresses.prefixes {
            let id = base.number(numbers, atoms)?;
            let identity = Identity { id, flags: 0 };
            if prefix.length == 128 && objects.strays.contains_key(&prefix.network()) {
                base.strays.insert(prefix.address, identity);
            } else {
                base.prefixes.insert((prefix.address, prefix.length), identity);
            }
            if let Some(variants) = partition(atoms).and_then(|p| base.variants.get_mut(p)) {
                variants.insert(atoms.clone());
            }
        }
        for (address, atoms) in &addresses.nodes {
            let flags = if atoms.contains(&Atom::LocalNode) { IDENTITY_LOCAL_NODE } else { 0 };
            let id = base.number(numbers, atoms)?;
            base.nodes.insert(*address, Identity { id, flags });
        }
        let lengths: BTreeSet<u8> = addresses.prefixes.keys().map(|p| p.length).collect();
        Ok(Self { addresses, lengths: lengths.into_iter().rev().collect(), ..base })
    }

    fn number(&mut self, numbers: &mut Interner, atoms: &Meaning) -> Result<u32, CompileError> {
        let id = number(numbers, atoms)?;
        self.numbers.insert(id);
        Ok(id)
    }

    /// Addresses that have an entry whatever pods there are.
    pub fn addresses(&self) -> impl Iterator<Item = &Addr> {
        self.nodes.keys().chain(self.strays.keys())
    }

    /// What rules see of an address that is no node's.
    pub fn known(&self, address: Addr) -> &[Atom] {
        let prefixes = &self.addresses.prefixes;
        let found = self.lengths.iter().find_map(|l| prefixes.get(&Prefix::of_address(address, *l)));
        found.map_or(&[], |atoms| atoms)
    }
}

/// What selectors see of pods of this node.
pub(crate) type Facts = BTreeMap<LocalPod, Arc<[Atom]>>;

/// Who is who, and the numbers in use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identities {
    pub base: Arc<Base>,
    pub pods: Pods,
    pub facts: Arc<Facts>,
    /// Numbers that pods with these facts have or may get.
    of_local: Arc<BTreeSet<u32>>,
    pub asked: Arc<[u32]>,
}

impl Identities {
    pub fn of(
        objects: &Objects,
        local: &Local<'_>,
        addresses: Option<Addresses>,
        asked: &Arc<Asked>,
        numbers: &mut Interner,
    ) -> Result<Self, CompileError> {
        let former = local.former;
        let base = match (addresses, former) {
            (None, Some(former)) => former.identities.base.clone(),
            (addresses, _) => Arc::new(Base::of(objects, addresses.unwrap_or_default(), numbers)?),
        };
        let mut pods = former.map_or_else(Pods::default, |f| f.identities.pods.clone());
        pods.follow_ports(former.map(|f| &f.objects), objects);
        pods.follow(objects, former, &base, &asked.selections, numbers)?;
        let facts = facts(objects, local, asked);
        let known = former.filter(|f| Arc::ptr_eq(&f.identities.base, &base) && *f.identities.facts == facts);
        let (facts, of_local) = match known {
            Some(former) => (former.identities.facts.clone(), former.identities.of_local.clone()),
            None => {
                let of_local = of_local(&facts, &base, numbers)?;
                (Arc::new(facts), Arc::new(of_local))
            }
        };
        let all = base.numbers.iter().copied().chain(pods.identities()).chain(of_local.iter().copied());
        let mut used: Vec<u32> = all.filter(|id| *id != ID_WORLD).collect();
        used.sort_unstable();
        used.dedup();
        Ok(Self { base, pods, facts, of_local, asked: used.into() })
    }
}

impl Identities {
    /// As [`Objects::partition_of_address`] says it, at the same cost however many ranges and strays there are.
    pub fn partition_of_address(&self, address: Addr) -> Option<&str> {
        if self.base.nodes.contains_key(&address) { None } else { partition(self.base.known(address)) }
    }
}

/// Of a pod of which nothing has changed, nor of what is asked, they are the former's.
fn facts(objects: &Objects, local: &Local<'_>, asked: &Arc<Asked>) -> Facts {
    let former =
        local.former.filter(|f| Arc::ptr_eq(&f.asked, asked) && f.objects.namespaces == objects.namespaces);
    let of = |pod: &LocalPod| {
        let key = pod.key();
        let known = former.filter(|f| f.objects.pods.get(&key) == objects.pods.get(&key));
        let known = known.and_then(|f| f.identities.facts.get(pod));
        let new = || asked.selections.within(objects, &pod.namespace).facts(objects.pod(&key)).into();
        (pod.clone(), known.cloned().unwrap_or_else(new))
    };
    local.pods.iter().map(of).collect()
}

/// Pods of this node, at whatever address of their partition's ranges they may have or get.
fn of_local(facts: &Facts, base: &Base, numbers: &mut Interner) -> Result<BTreeSet<u32>, CompileError> {
    let seen: BTreeSet<(&str, &[Atom])> =
        facts.iter().map(|(pod, facts)| (pod.partition.as_str(), &**facts)).collect();
    let mut used = BTreeSet::new();
    for (name, facts) in seen {
        let there = base.variants.contains_key(name);
        let name = if there { name } else { DEFAULT_PARTITION };
        for of_prefix in base.variants.get(name).into_iter().flatten() {
            used.insert(number(numbers, &joined(of_prefix, facts))?);
        }
    }
    Ok(used)
}

pub(super) fn number(
    numbers: &mut Interner,
    atoms: &(impl AsRef<[Atom]> + Clone + Into<Meaning>),
) -> Result<u32, CompileError> {
    if atoms.as_ref().is_empty() {
        return Ok(ID_WORLD);
    }
    let owner = || partition(atoms.as_ref()).unwrap_or(DEFAULT_PARTITION);
    numbers.identity(atoms).map_err(|_| CompileError::numbers(owner()))
}

pub(super) fn of_partition(name: &str) -> Vec<Atom> {
    vec![Atom::Pod, Atom::Partition(name.into())]
}

pub(crate) fn partition(atoms: &[Atom]) -> Option<&str> {
    match atoms.last() {
        Some(Atom::Partition(name)) => Some(name),
        _ => None,
    }
}

/// What is known of an address and of its pod together.
pub(super) fn joined(of_prefix: &[Atom], facts: &[Atom]) -> Vec<Atom> {
    let mut all = [of_prefix, facts].concat();
    all.sort_unstable();
    all.dedup();
    all
}
