//! Who addresses are: what the kernel's two maps hold, and what changes from one generation to the next. Pure.
//!
//! Both maps are shared by the generations, so the order of changes matters: additions before the switch, with the new
//! identities' classes in the running half first; removals behind it.

use super::Generation;
use bulkhead_ebpf_abi::{Addr, ID_WORLD, IDENTITY_LOCAL_POD, Identity};
use std::collections::{BTreeMap, BTreeSet};

/// A prefix: network address, and its length counted in the mapped address (IPv4: plus 96).
pub type Prefix = (Addr, u8);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identities {
    pub prefixes: BTreeMap<Prefix, Identity>,
    pub exact: BTreeMap<Addr, Identity>,
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

    pub fn is_pod(&self, addr: &Addr) -> bool {
        self.exact.get(addr).is_some_and(|i| i.flags & IDENTITY_LOCAL_POD != 0)
    }

    /// Identities that the running generation has never heard of, with the class of what their addresses are to it.
    /// Where they differ, the world's: an identity has one class.
    fn old_meanings(
        &self,
        prefixes: &[(Prefix, Identity)],
        exact: &[(Addr, Identity)],
        running_classes: &[u32],
    ) -> BTreeMap<u32, u32> {
        let class = |identity: u32| running_classes.get(identity as usize).copied().unwrap_or(0);
        let by_prefix = prefixes.iter().map(|((addr, len), i)| (i.id, class(self.covering(*addr, *len))));
        let by_address = exact.iter().map(|(addr, i)| (i.id, class(self.who(*addr))));
        let mut classes: BTreeMap<u32, u32> = BTreeMap::new();
        for (id, class_today) in by_prefix.chain(by_address) {
            if (id as usize) < running_classes.len() {
                continue;
            }
            let entry = classes.entry(id).or_insert(class_today);
            if *entry != class_today {
                *entry = class(ID_WORLD);
            }
        }
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

fn changed<K: Ord + Copy>(
    old: &BTreeMap<K, Identity>,
    new: &BTreeMap<K, Identity>,
) -> impl Iterator<Item = (K, Identity)> {
    new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, v)| (*k, *v))
}

fn removed<K: Ord + Copy>(
    old: &BTreeMap<K, Identity>,
    new: &BTreeMap<K, Identity>,
) -> impl Iterator<Item = K> {
    old.keys().filter(|k| !new.contains_key(k)).copied()
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

    fn plan(old: &Identities, new: &Identities, classes: &[u32]) -> Change {
        let tables = Tables::default();
        old.plan(&Generation { tables: &tables, prefixes: &new.prefixes, exact: &new.exact }, classes)
    }

    #[test]
    fn a_new_identity_means_in_the_running_generation_what_its_address_meant() {
        let old = Identities {
            prefixes: [((v4(0), 120), id(20)), ((Addr::default(), 0), id(16))].into(),
            exact: BTreeMap::new(),
        };
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
        let old = Identities { prefixes: [((v4(0), 120), id(2))].into(), exact: BTreeMap::new() };
        let mut new = old.clone();
        new.exact.insert(v4(1), id(9));
        new.exact.insert(Addr::v4([192, 0, 2, 1]), id(9));
        assert_eq!(plan(&old, &new, &[5, 6, 7]).classes, [(9, 6)].into());
    }

    #[test]
    fn an_identity_the_running_generation_knows_keeps_its_class() {
        let new = Identities { prefixes: BTreeMap::new(), exact: [(v4(1), id(2))].into() };
        assert!(plan(&Identities::default(), &new, &[0, 0, 4]).classes.is_empty());
    }

    #[test]
    fn entries_of_local_pods_are_neither_changed_nor_removed() {
        let pod = Identity { id: 20, flags: IDENTITY_LOCAL_POD };
        let old = Identities { prefixes: BTreeMap::new(), exact: [(v4(1), pod), (v4(2), pod)].into() };
        let new = Identities { prefixes: BTreeMap::new(), exact: [(v4(1), id(5)), (v4(3), id(6))].into() };
        let change = plan(&old, &new, &[]);
        assert_eq!(change.set_exact, [(v4(3), id(6))]);
        assert!(change.removals.exact.is_empty());
    }

    #[test]
    fn what_is_no_longer_wanted_is_removed() {
        let old = Identities { prefixes: [((v4(0), 120), id(2))].into(), exact: [(v4(1), id(3))].into() };
        let change = plan(&old, &Identities::default(), &[]);
        assert_eq!(change.removals, Removals { prefixes: vec![(v4(0), 120)], exact: vec![v4(1)] });
    }
}
