//! Who addresses are: what the kernel's two maps hold, and what changes from one generation to the next. Pure.
//!
//! Both maps are shared by the generations, so the order of changes matters: additions before the switch, with the new
//! identities' classes in the running half first; removals behind it.

use super::Generation;
use bulkhead_ebpf_abi::{Addr, ID_WORLD, IDENTITY_LOCAL_POD, Identity};
use imbl::{OrdMap, ordmap::DiffItem};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A prefix: network address, and its length counted in the mapped address (IPv4: plus 96).
pub type Prefix = (Addr, u8);

/// Identities by prefix. A clone shares them all.
pub type Prefixes = OrdMap<Prefix, Identity>;
/// Identities by address. A clone shares them all.
pub type Exact = OrdMap<Addr, Identity>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identities {
    pub prefixes: Prefixes,
    pub exact: Exact,
    /// Of the exact entries, those of local pods.
    pods: BTreeMap<Addr, Identity>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Classes that new identities get in the running generation: what it says of their addresses today.
    pub classes: BTreeMap<u32, u32>,
    pub set_prefixes: Vec<(Prefix, Identity)>,
    pub set_exact: Vec<(Addr, Identity)>,
    pub removals: Removals,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removals {
    pub prefixes: Vec<Prefix>,
    pub exact: Vec<Addr>,
}

impl Identities {
    /// From what the maps hold to what `new` wants. Entries of local pods are not ours: wiring sets and removes them.
    pub fn plan(&self, new: &Generation<'_>, running_classes: &[u32]) -> Change {
        let set_prefixes: Vec<_> = changed(&self.prefixes, new.prefixes).collect();
        let set_exact: Vec<_> = changed(&self.exact, new.exact).filter(|(a, _)| !self.is_pod(a)).collect();
        let removals = Removals {
            prefixes: removed(&self.prefixes, new.prefixes).collect(),
            exact: removed(&self.exact, new.exact).filter(|a| !self.is_pod(a)).collect(),
        };
        let classes = self.old_meanings(&set_prefixes, &set_exact, running_classes);
        Change { classes, set_prefixes, set_exact, removals }
    }

    /// As the maps hold them.
    pub fn of(prefixes: Prefixes, exact: Exact) -> Self {
        let pods = exact.iter().filter(|(_, i)| is_pod(i)).map(|(addr, i)| (*addr, *i)).collect();
        Self { prefixes, exact, pods }
    }

    pub fn set_exact(&mut self, addr: Addr, identity: Identity) {
        self.exact.insert(addr, identity);
        if is_pod(&identity) {
            self.pods.insert(addr, identity);
        } else {
            self.pods.remove(&addr);
        }
    }

    pub fn remove_exact(&mut self, addr: &Addr) {
        self.exact.remove(addr);
        self.pods.remove(addr);
    }

    /// Says the same as before, once all of `new` but the removals is in the maps, in entries that are shared with `new`:
    /// what the next generation shares with it, too, need not be compared.
    pub fn share(&mut self, new: &Generation<'_>, left: &Removals) {
        let old = std::mem::take(self);
        self.prefixes.clone_from(new.prefixes);
        self.exact.clone_from(new.exact);
        for prefix in &left.prefixes {
            self.prefixes.extend(old.prefixes.get(prefix).map(|i| (*prefix, *i)));
        }
        for addr in &left.exact {
            self.exact.extend(old.exact.get(addr).map(|i| (*addr, *i)));
        }
        self.exact.extend(old.pods.iter().map(|(addr, i)| (*addr, *i)));
        self.pods = old.pods;
    }

    pub fn is_pod(&self, addr: &Addr) -> bool {
        self.pods.contains_key(addr)
    }

    /// Identities that are nobody's yet, with the class of what their addresses are to the running generation. Where those
    /// differ, the world's: an identity has one class.
    ///
    /// Whether the running generation has a class for the number says nothing: the number may be one that is given out again,
    /// and what it has is another's, or none.
    fn old_meanings(
        &self,
        prefixes: &[(Prefix, Identity)],
        exact: &[(Addr, Identity)],
        running_classes: &[u32],
    ) -> BTreeMap<u32, u32> {
        if prefixes.is_empty() && exact.is_empty() {
            return BTreeMap::new();
        }
        let in_use: HashSet<u32> = self.prefixes.values().chain(self.exact.values()).map(|i| i.id).collect();
        let class = |identity: u32| running_classes.get(identity as usize).copied().unwrap_or(0);
        let by_prefix = prefixes.iter().map(|((addr, len), i)| (i.id, class(self.covering(*addr, *len))));
        let by_address = exact.iter().map(|(addr, i)| (i.id, class(self.who(*addr))));
        let mut classes: BTreeMap<u32, u32> = BTreeMap::new();
        for (id, class_today) in by_prefix.chain(by_address).filter(|(id, _)| !in_use.contains(id)) {
            let entry = classes.entry(id).or_insert(class_today);
            if *entry != class_today {
                *entry = class(ID_WORLD);
            }
        }
        // The world has the class it has.
        classes.remove(&ID_WORLD);
        classes
    }

    fn who(&self, addr: Addr) -> u32 {
        self.exact.get(&addr).map_or_else(|| self.covering(addr, 128), |i| i.id)
    }

    /// The identity of the longest prefix that covers `addr/len`.
    fn covering(&self, addr: Addr, len: u8) -> u32 {
        let lengths: BTreeSet<u8> = self.prefixes.keys().map(|(_, l)| *l).filter(|l| *l <= len).collect();
        let found = lengths.iter().rev().find_map(|l| self.prefixes.get(&(masked(addr, *l), *l)));
        found.map_or(ID_WORLD, |i| i.id)
    }
}

/// How many keys the one has that the other lacks.
pub(super) fn added<K: Ord + Copy>(old: &OrdMap<K, Identity>, new: &OrdMap<K, Identity>) -> usize {
    old.diff(new).filter(|item| matches!(item, DiffItem::Add(..))).count()
}

fn changed<K: Ord + Copy>(
    old: &OrdMap<K, Identity>,
    new: &OrdMap<K, Identity>,
) -> impl Iterator<Item = (K, Identity)> {
    old.diff(new).filter_map(|item| match item {
        DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => Some((*key, *value)),
        DiffItem::Remove(..) => None,
    })
}

fn removed<K: Ord + Copy>(old: &OrdMap<K, Identity>, new: &OrdMap<K, Identity>) -> impl Iterator<Item = K> {
    old.diff(new).filter_map(|item| match item {
        DiffItem::Remove(key, _) => Some(*key),
        _ => None,
    })
}

fn is_pod(identity: &Identity) -> bool {
    identity.flags & IDENTITY_LOCAL_POD != 0
}

fn masked(addr: Addr, len: u8) -> Addr {
    let bits = u128::from_be_bytes(addr.0);
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    Addr((bits & mask).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_policy::Tables;

    fn id(id: u32) -> Identity {
        Identity { id, flags: 0 }
    }

    fn v4(last: u8) -> Addr {
        Addr::v4([10, 0, 0, last])
    }

    fn known(prefixes: &[(Prefix, Identity)], exact: &[(Addr, Identity)]) -> Identities {
        Identities::of(prefixes.iter().copied().collect(), exact.iter().copied().collect())
    }

    fn plan(old: &Identities, new: &Identities, classes: &[u32]) -> Change {
        let tables = Tables::default();
        old.plan(&Generation { tables: &tables, prefixes: &new.prefixes, exact: &new.exact }, classes)
    }

    #[test]
    fn a_new_identity_means_in_the_running_generation_what_its_address_meant() {
        let old = known(&[((v4(0), 120), id(20)), ((Addr::default(), 0), id(16))], &[]);
        let mut new = old.clone();
        new.prefixes.insert((v4(64), 122), id(30));
        new.exact.insert(Addr::v4([192, 0, 2, 1]), id(31));
        let mut classes = vec![0; 21];
        (classes[16], classes[20]) = (3, 7);
        let change = plan(&old, &new, &classes);
        assert_eq!(change.classes, [(30, 7), (31, 3)].into());
        assert_eq!(change.removals, Removals::default());
    }

    #[test]
    fn an_identity_of_addresses_with_different_old_meanings_is_the_world_until_the_switch() {
        let old = known(&[((v4(0), 120), id(2))], &[]);
        let mut new = old.clone();
        new.exact.insert(v4(1), id(9));
        new.exact.insert(Addr::v4([192, 0, 2, 1]), id(9));
        assert_eq!(plan(&old, &new, &[5, 6, 7]).classes, [(9, 6)].into());
    }

    #[test]
    fn an_identity_that_addresses_have_keeps_its_class() {
        let old = known(&[], &[(v4(1), id(2))]);
        let new = known(&[], &[(v4(1), id(2)), (v4(2), id(2))]);
        assert!(plan(&old, &new, &[0, 0, 4]).classes.is_empty());
    }

    #[test]
    fn a_number_given_out_again_means_in_the_running_generation_what_its_address_meant() {
        let old = known(&[((v4(0), 120), id(2))], &[]);
        let mut new = old.clone();
        // The running generation has a class for each, which was another's.
        new.exact.insert(v4(1), id(3));
        new.exact.insert(v4(2), id(4));
        let change = plan(&old, &new, &[0, 0, 5, 0, 9]);
        assert_eq!(change.classes, [(3, 5), (4, 5)].into());
    }

    #[test]
    fn what_is_shared_with_a_generation_is_what_the_maps_hold() {
        let pod = Identity { id: 20, flags: IDENTITY_LOCAL_POD };
        let mut held = known(&[((v4(0), 120), id(2))], &[(v4(1), pod), (v4(2), id(3)), (v4(3), id(4))]);
        let new = known(&[], &[(v4(1), id(5)), (v4(3), id(4))]);
        let left = Removals { prefixes: vec![(v4(0), 120)], exact: vec![v4(2)] };
        let before = held.clone();
        let tables = Tables::default();
        held.share(&Generation { tables: &tables, prefixes: &new.prefixes, exact: &new.exact }, &left);
        assert_eq!(held, before);
    }

    #[test]
    fn entries_of_local_pods_are_neither_changed_nor_removed() {
        let pod = Identity { id: 20, flags: IDENTITY_LOCAL_POD };
        let old = known(&[], &[(v4(1), pod), (v4(2), pod)]);
        let new = known(&[], &[(v4(1), id(5)), (v4(3), id(6))]);
        let change = plan(&old, &new, &[]);
        assert_eq!(change.set_exact, [(v4(3), id(6))]);
        assert!(change.removals.exact.is_empty());
    }

    #[test]
    fn what_is_no_longer_wanted_is_removed() {
        let old = known(&[((v4(0), 120), id(2))], &[(v4(1), id(3))]);
        let change = plan(&old, &Identities::default(), &[]);
        assert_eq!(change.removals, Removals { prefixes: vec![(v4(0), 120)], exact: vec![v4(1)] });
    }
}
