//! Who addresses are: what the kernel's two maps hold. Pure. How it changes from one generation to the next is
//! [`super::transition`]'s.

use super::transition::Entries;
use bulkhead_ebpf_abi::{Addr, ID_WORLD, IDENTITY_LOCAL_POD, Identity};
use imbl::{OrdMap, ordmap::DiffItem};
use std::collections::{BTreeMap, BTreeSet};

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

impl Identities {
    /// As the maps hold them.
    pub fn of(prefixes: Prefixes, exact: Exact) -> Self {
        let pods = exact.iter().filter(|(_, i)| is_pod(i)).map(|(addr, i)| (*addr, *i)).collect();
        Self { prefixes, exact, pods }
    }

    pub fn set_prefix(&mut self, prefix: Prefix, identity: Option<Identity>) {
        match identity {
            Some(identity) => drop(self.prefixes.insert(prefix, identity)),
            None => drop(self.prefixes.remove(&prefix)),
        }
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

    /// Says the same as before, once all of a generation but what is `left` is in the maps, in entries that are shared with
    /// that generation: what the next one shares with it, too, need not be compared.
    pub fn share(&mut self, prefixes: &Prefixes, exact: &Exact, left: &Entries) {
        let old = std::mem::take(self);
        self.prefixes.clone_from(prefixes);
        self.exact.clone_from(exact);
        for (prefix, _) in &left.prefixes {
            self.set_prefix(*prefix, old.prefixes.get(prefix).copied());
        }
        for (addr, _) in &left.exact {
            match old.exact.get(addr) {
                Some(identity) => drop(self.exact.insert(*addr, *identity)),
                None => drop(self.exact.remove(addr)),
            }
        }
        self.exact.extend(old.pods.iter().map(|(addr, i)| (*addr, *i)));
        self.pods = old.pods;
    }

    pub fn is_pod(&self, addr: &Addr) -> bool {
        self.pods.contains_key(addr)
    }

    pub fn pod(&self, addr: &Addr) -> Option<Identity> {
        self.pods.get(addr).copied()
    }
}

/// Finds what covers an address.
pub struct Lookup<'a> {
    prefixes: &'a Prefixes,
    /// Longest first.
    lengths: Vec<u8>,
}

impl<'a> Lookup<'a> {
    pub fn of(prefixes: &'a Prefixes) -> Self {
        let lengths: BTreeSet<u8> = prefixes.keys().map(|(_, length)| *length).collect();
        Self { prefixes, lengths: lengths.into_iter().rev().collect() }
    }

    /// The identity of the longest prefix that covers `addr/length`.
    pub fn covering(&self, addr: Addr, length: u8) -> u32 {
        let mut lengths = self.lengths.iter().copied().filter(|l| *l <= length);
        lengths.find_map(|l| self.prefixes.get(&(masked(addr, l), l))).map_or(ID_WORLD, |i| i.id)
    }
}

/// How many keys the one has that the other lacks.
pub(super) fn added<K: Ord + Copy>(old: &OrdMap<K, Identity>, new: &OrdMap<K, Identity>) -> usize {
    old.diff(new).filter(|item| matches!(item, DiffItem::Add(..))).count()
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

    fn id(id: u32) -> Identity {
        Identity { id, flags: 0 }
    }

    fn v4(last: u8) -> Addr {
        Addr::v4([10, 0, 0, last])
    }

    fn known(prefixes: &[(Prefix, Identity)], exact: &[(Addr, Identity)]) -> Identities {
        Identities::of(prefixes.iter().copied().collect(), exact.iter().copied().collect())
    }

    #[test]
    fn what_is_shared_with_a_generation_is_what_the_maps_hold() {
        let pod = Identity { id: 20, flags: IDENTITY_LOCAL_POD };
        let mut held = known(&[((v4(0), 120), id(2))], &[(v4(1), pod), (v4(2), id(3)), (v4(3), id(4))]);
        let new = known(&[], &[(v4(1), id(5)), (v4(3), id(6)), (v4(4), id(6))]);
        let left = Entries {
            prefixes: vec![((v4(0), 120), None)],
            exact: vec![(v4(2), None), (v4(3), Some(id(6))), (v4(4), Some(id(6)))],
        };
        let before = held.clone();
        held.share(&new.prefixes, &new.exact, &left);
        assert_eq!(held, before);
    }

    #[test]
    fn the_longest_prefix_answers() {
        let held = known(&[((v4(0), 120), id(2)), ((v4(64), 122), id(3))], &[]);
        let lookup = Lookup::of(&held.prefixes);
        assert_eq!(
            [v4(65), v4(1), Addr::v4([10, 0, 1, 1])].map(|a| lookup.covering(a, 128)),
            [3, 2, ID_WORLD]
        );
        assert_eq!(lookup.covering(v4(64), 121), 2);
    }
}
