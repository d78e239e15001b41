//! From what the maps of identities hold to what a generation wants. Pure.
//!
//! The maps are shared by both generations, the tables are not. An entry that changed before the switch would put the new
//! generation's addresses under the old one's rules, and behind it the other way round. So for as long as both may be read,
//! what changes holds a number that is the old to the one and the new to the other:
//!
//! ```text
//! entries of both generations, each (class of the old, class of the new) ─▶ switch ─▶ grace period ─▶ the new one's entries
//! ```
//! Mostly a number that is there anyway says so: one that nobody has yet is given the old class in the running half. Where
//! none does, a spare one from the top of the table of classes stands in, for every pair of classes one.
//!
//! Each step alone is safe: a look-up finds the longest key of both, and every key answers for the longest of each that
//! covers it.

use super::identities::{Exact, Identities, Lookup, Prefix, Prefixes};
use bulkhead_ebpf_abi::{Addr, ID_WORLD, Identity, ORIGIN_ITSELF};
use imbl::{OrdMap, ordmap::DiffItem};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Who addresses are to a generation.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub prefixes: &'a Prefixes,
    pub exact: &'a Exact,
    /// Of pods that are wired; an address that no pod has is passed over, and so is one that is not named.
    pub pods: &'a BTreeMap<Addr, Identity>,
}

/// The tables of classes, and which spare numbers may be had.
#[derive(Clone, Copy)]
pub struct Classes<'a> {
    pub running: &'a [u32],
    pub next: &'a [u32],
    /// Numbers that a half has room for.
    pub room: u32,
    /// Generations take turns, so that a mark of one is not the next one's.
    pub turn: u32,
    /// Numbers that pods' packets are marked with.
    pub marks: &'a [u32],
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transition {
    /// Classes of numbers, to be written before an entry has them: in the half that is running,
    pub running: BTreeMap<u32, u32>,
    /// and in the next one.
    pub next: BTreeMap<u32, u32>,
    pub before: Entries,
    /// Once no packet is decided by the running half any more.
    pub after: Entries,
    /// Entries for which no spare number was left: they change before the switch, whatever they mean.
    pub unmatched: usize,
}

/// Entries to be set, or (None) removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries {
    pub prefixes: Vec<(Prefix, Option<Identity>)>,
    pub exact: Vec<(Addr, Option<Identity>)>,
}

impl Transition {
    pub fn of(held: &Identities, wanted: &Wanted<'_>, classes: &Classes<'_>) -> Self {
        let mut transition = Self::default();
        let prefixes = differing(&held.prefixes, wanted.prefixes).collect::<Vec<_>>();
        let exact = differing_exact(held, wanted);
        if prefixes.is_empty() && exact.is_empty() {
            return transition;
        }
        let (old, new) = (Lookup::of(&held.prefixes), Lookup::of(wanted.prefixes));
        let mut numbers = Numbers::of(held, wanted, classes);
        for (key @ (addr, length), own, want) in prefixes {
            let was = own.map_or_else(|| old.covering(addr, length), |i| i.id);
            let is = want.map_or_else(|| new.covering(addr, length), |i| i.id);
            let [before, after] = numbers.steps(own, want, was, is);
            transition.before.prefixes.extend(before.map(|i| (key, i)));
            transition.after.prefixes.extend(after.map(|i| (key, i)));
        }
        for (addr, own, want) in exact {
            let was = own.map_or_else(|| old.covering(addr, 128), |i| i.id);
            let is = want.map_or_else(|| new.covering(addr, 128), |i| i.id);
            let [before, after] = numbers.steps(own, want, was, is);
            transition.before.exact.extend(before.map(|i| (addr, i)));
            transition.after.exact.extend(after.map(|i| (addr, i)));
        }
        let class = |id: u32| class(classes.running, id);
        transition.running = numbers.fresh.into_iter().filter(|(id, c)| class(*id) != *c).collect();
        for ((running, next), id) in numbers.spare {
            transition.running.insert(id, running);
            transition.next.insert(id, next);
        }
        transition.unmatched = numbers.unmatched;
        transition
    }
}

impl Entries {
    /// Of all that are set.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let prefixes = self.prefixes.iter().filter_map(|(_, identity)| *identity);
        let exact = self.exact.iter().filter_map(|(_, identity)| *identity);
        prefixes.chain(exact).map(|identity| identity.id)
    }

    /// All that differs, where both generations have the same tables and there is no switch. Pods' entries are not ours.
    pub fn of(held: &Identities, prefixes: &Prefixes, exact: &Exact) -> Self {
        let exact = differing(&held.exact, exact).filter(|(addr, ..)| !held.is_pod(addr));
        let (mut set, mut gone) = (Self::default(), Self::default());
        for (key, _, want) in differing(&held.prefixes, prefixes) {
            if want.is_some() { &mut set } else { &mut gone }.prefixes.push((key, want));
        }
        for (key, _, want) in exact {
            if want.is_some() { &mut set } else { &mut gone }.exact.push((key, want));
        }
        set.prefixes.append(&mut gone.prefixes);
        set.exact.append(&mut gone.exact);
        set
    }
}

impl Transition {
    /// Numbers that addresses will have.
    pub fn ids(&self) -> BTreeSet<u32> {
        self.before.ids().chain(self.after.ids()).collect()
    }
}

impl Entries {
    /// What brings back how it is now, in reverse.
    pub fn inverse(&self, held: &Identities) -> Self {
        let prefixes = self.prefixes.iter().rev().map(|(key, _)| (*key, held.prefixes.get(key).copied()));
        let exact = self.exact.iter().rev().map(|(addr, _)| (*addr, held.exact.get(addr).copied()));
        Self { prefixes: prefixes.collect(), exact: exact.collect() }
    }
}

type Differing<K> = (K, Option<Identity>, Option<Identity>);

fn differing<K: Ord + Copy>(
    held: &OrdMap<K, Identity>,
    wanted: &OrdMap<K, Identity>,
) -> impl Iterator<Item = Differing<K>> {
    held.diff(wanted).map(|item| match item {
        DiffItem::Add(key, new) => (*key, None, Some(*new)),
        DiffItem::Update { old: (_, old), new: (key, new) } => (*key, Some(*old), Some(*new)),
        DiffItem::Remove(key, old) => (*key, Some(*old), None),
    })
}

fn differing_exact(held: &Identities, wanted: &Wanted<'_>) -> Vec<Differing<Addr>> {
    let others = differing(&held.exact, wanted.exact).filter(|(addr, ..)| !held.is_pod(addr));
    let pods = wanted.pods.iter().filter_map(|(addr, want)| {
        let own = held.pod(addr).filter(|own| own != want)?;
        Some((*addr, Some(own), Some(*want)))
    });
    others.chain(pods).collect()
}

pub(super) fn class(classes: &[u32], identity: u32) -> u32 {
    classes.get(identity as usize).copied().unwrap_or(0)
}

struct Numbers<'a> {
    classes: &'a Classes<'a>,
    in_use: HashSet<u32>,
    /// Numbers that nobody had, with the class that the running half is to have for them.
    fresh: BTreeMap<u32, u32>,
    /// By (class in the running half, class in the next).
    spare: BTreeMap<(u32, u32), u32>,
    /// The next spare number to be looked at, and the lowest.
    left: (u32, u32),
    unmatched: usize,
}

impl<'a> Numbers<'a> {
    fn of(held: &Identities, wanted: &Wanted<'_>, classes: &'a Classes<'a>) -> Self {
        let held = held.prefixes.values().chain(held.exact.values()).map(|i| i.id);
        let in_use: HashSet<u32> = held.chain([ID_WORLD]).chain(classes.marks.iter().copied()).collect();
        let wanted = wanted.prefixes.values().chain(wanted.exact.values()).chain(wanted.pods.values());
        let last = wanted.map(|i| i.id).max().unwrap_or(ID_WORLD);
        let lowest = (last + 1).max(classes.next.len() as u32);
        let left = (classes.room.min(ORIGIN_ITSELF), lowest);
        Self { classes, in_use, fresh: BTreeMap::new(), spare: BTreeMap::new(), left, unmatched: 0 }
    }

    /// What an entry becomes before the switch and after the grace period, if it becomes anything. `was` and `is`: what its
    /// addresses are to each generation, with or without an entry of their own.
    fn steps(
        &mut self,
        own: Option<Identity>,
        want: Option<Identity>,
        was: u32,
        is: u32,
    ) -> [Option<Option<Identity>>; 2] {
        let (old, new) = (class(self.classes.running, was), class(self.classes.next, is));
        if let Some(want) = want
            && self.means(want.id, old)
        {
            return [Some(Some(want)), None];
        }
        if own.is_some_and(|own| class(self.classes.next, own.id) == new) {
            return [None, Some(want)];
        }
        match self.spare(old, new) {
            Some(id) => {
                let flags = own.map_or(0, |own| own.flags);
                [Some(Some(Identity { id, flags })), Some(want)]
            }
            None => {
                self.unmatched += 1;
                if want.is_some() { [Some(want), None] } else { [None, Some(None)] }
            }
        }
    }

    /// Whether the number is, or can be made, of this class to the running generation.
    ///
    /// Whether that one has a class for a number that nobody has says nothing: the number may be one that is given out again.
    fn means(&mut self, id: u32, old: u32) -> bool {
        if self.in_use.contains(&id) {
            return class(self.classes.running, id) == old;
        }
        *self.fresh.entry(id).or_insert(old) == old
    }

    fn spare(&mut self, old: u32, new: u32) -> Option<u32> {
        if let Some(id) = self.spare.get(&(old, new)) {
            return Some(*id);
        }
        while self.left.0 > self.left.1 {
            self.left.0 -= 1;
            let id = self.left.0;
            if id % 2 == self.classes.turn % 2 && !self.in_use.contains(&id) {
                self.spare.insert((old, new), id);
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod steps;
#[cfg(test)]
mod tests;
