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
use std::collections::{BTreeMap, HashSet};

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

fn class(classes: &[u32], identity: u32) -> u32 {
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
        let in_use: HashSet<u32> = held.chain([ID_WORLD]).collect();
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
mod tests {
    use super::*;
    use bulkhead_ebpf_abi::{IDENTITY_LOCAL_NODE, IDENTITY_LOCAL_POD};
    use proptest::prelude::*;

    fn id(id: u32) -> Identity {
        Identity { id, flags: 0 }
    }

    fn v4(last: u8) -> Addr {
        Addr::v4([10, 0, 0, last])
    }

    fn known(prefixes: &[(Prefix, Identity)], exact: &[(Addr, Identity)]) -> Identities {
        Identities::of(prefixes.iter().copied().collect(), exact.iter().copied().collect())
    }

    fn plan(old: &Identities, new: &Identities, running: &[u32], next: &[u32]) -> Transition {
        let wanted = Wanted { prefixes: &new.prefixes, exact: &new.exact, pods: &BTreeMap::new() };
        Transition::of(old, &wanted, &Classes { running, next, room: 64, turn: 0 })
    }

    #[test]
    fn a_new_identity_means_in_the_running_generation_what_its_address_meant() {
        let old = known(&[((v4(0), 120), id(20)), ((Addr::default(), 0), id(16))], &[]);
        let mut new = old.clone();
        new.prefixes.insert((v4(64), 122), id(30));
        new.exact.insert(Addr::v4([192, 0, 2, 1]), id(31));
        let mut classes = vec![0; 21];
        (classes[16], classes[20]) = (3, 7);
        let plan = plan(&old, &new, &classes, &[]);
        assert_eq!(plan.running, [(30, 7), (31, 3)].into());
        assert_eq!((plan.next, plan.after), Default::default());
    }

    #[test]
    fn addresses_of_a_new_identity_that_were_different_keep_their_meanings_until_the_switch() {
        let old = known(&[((v4(0), 120), id(2))], &[]);
        let mut new = old.clone();
        new.exact.insert(v4(1), id(9));
        new.exact.insert(Addr::v4([192, 0, 2, 1]), id(9));
        let plan = plan(&old, &new, &[5, 6, 7], &[5, 6, 7, 0, 0, 0, 0, 0, 0, 8]);
        assert_eq!(plan.running, [(9, 7), (62, 6)].into());
        assert_eq!(plan.next, [(62, 8)].into());
        assert_eq!(plan.after.exact, [(Addr::v4([192, 0, 2, 1]), Some(id(9)))]);
    }

    #[test]
    fn an_identity_that_addresses_have_keeps_its_class() {
        let old = known(&[], &[(v4(1), id(2))]);
        let new = known(&[], &[(v4(1), id(2)), (v4(2), id(2))]);
        let plan = plan(&old, &new, &[0, 0, 4], &[0, 0, 4]);
        assert_eq!((plan.running, plan.next), ([(62, 0)].into(), [(62, 4)].into()));
    }

    #[test]
    fn a_number_given_out_again_means_in_the_running_generation_what_its_address_meant() {
        let old = known(&[((v4(0), 120), id(2))], &[]);
        let mut new = old.clone();
        // The running generation has a class for each, which was another's.
        new.exact.insert(v4(1), id(3));
        new.exact.insert(v4(2), id(4));
        assert_eq!(plan(&old, &new, &[0, 0, 5, 0, 9], &[]).running, [(3, 5), (4, 5)].into());
    }

    #[test]
    fn two_turns_have_no_spare_number_in_common() {
        let old = known(&[], &[(v4(1), id(2)), (v4(2), id(3))]);
        let new = known(&[], &[(v4(1), id(3)), (v4(2), id(2))]);
        let wanted = Wanted { prefixes: &new.prefixes, exact: &new.exact, pods: &BTreeMap::new() };
        let classes = [0, 0, 1, 2];
        let spare = |turn| {
            let classes = Classes { running: &classes, next: &classes, room: 64, turn };
            Transition::of(&old, &wanted, &classes).next.into_keys().collect::<HashSet<_>>()
        };
        assert_eq!(spare(0).len(), 2);
        assert!(spare(0).is_disjoint(&spare(1)));
    }

    #[test]
    fn of_local_pods_only_what_their_own_list_says_is_changed() {
        let pod = |id| Identity { id, flags: IDENTITY_LOCAL_POD };
        let old = known(&[], &[(v4(1), pod(20)), (v4(2), pod(20))]);
        let exact: Exact = [(v4(1), id(5)), (v4(3), id(6))].into_iter().collect();
        let pods = [(v4(2), pod(21)), (v4(4), pod(21))].into();
        let wanted = Wanted { prefixes: &Prefixes::new(), exact: &exact, pods: &pods };
        let classes = Classes { running: &[], next: &[], room: 64, turn: 0 };
        let plan = Transition::of(&old, &wanted, &classes);
        assert_eq!(plan.before.exact, [(v4(3), Some(id(6))), (v4(2), Some(pod(21)))]);
        assert_eq!(plan.after, Entries::default());
    }

    #[test]
    fn what_is_no_longer_wanted_is_removed() {
        let old = known(&[((v4(0), 120), id(2))], &[(v4(1), id(3))]);
        let plan = plan(&old, &Identities::default(), &[], &[]);
        assert_eq!(plan.after.prefixes, [((v4(0), 120), None)]);
        assert_eq!(plan.after.exact, [(v4(1), None)]);
        assert_eq!(plan.before, Entries::default());
    }

    /// Two sets of entries over few addresses, so that they nest and collide, and classes for each.
    #[derive(Clone, Debug)]
    struct Case {
        prefixes: [Prefixes; 2],
        exact: [Exact; 2],
        pods: [BTreeMap<Addr, Identity>; 2],
        classes: [Vec<u32>; 2],
    }

    const NUMBERS: u32 = 9;

    fn any_case() -> impl Strategy<Value = Case> {
        let number = || prop_oneof![Just(ID_WORLD), 2..NUMBERS];
        let prefix = (0u8..16, prop_oneof![Just(120u8), 124u8..=128]).prop_map(|(last, length)| {
            let mask = u8::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            (v4(last & mask), length)
        });
        let prefixes = || prop::collection::vec((prefix.clone(), number().prop_map(id)), 0..8);
        let flags = prop_oneof![Just(0), Just(IDENTITY_LOCAL_NODE)];
        let identity = (number(), flags).prop_map(|(id, flags)| Identity { id, flags });
        let exact = || prop::collection::vec(((0u8..12).prop_map(v4), identity.clone()), 0..6);
        let pod = number().prop_map(|id| Identity { id, flags: IDENTITY_LOCAL_POD });
        let pods = || prop::collection::btree_map((12u8..16).prop_map(v4), pod.clone(), 0..4);
        let classes = || {
            prop::collection::vec(0u32..5, NUMBERS as usize).prop_map(|mut classes| {
                classes[ID_WORLD as usize] = 0;
                classes
            })
        };
        let side = || (prefixes(), exact(), pods(), classes());
        (side(), side()).prop_map(|(a, b)| Case {
            prefixes: [a.0.into_iter().collect(), b.0.into_iter().collect()],
            exact: [a.1.into_iter().collect(), b.1.into_iter().collect()],
            pods: [a.2, b.2],
            classes: [a.3, b.3],
        })
    }

    fn addresses() -> impl Iterator<Item = Addr> {
        (0..18).map(v4)
    }

    /// Class of every address.
    fn seen(held: &Identities, classes: &[u32]) -> Vec<u32> {
        let lookup = Lookup::of(&held.prefixes);
        let who = |a: &Addr| held.exact.get(a).map_or_else(|| lookup.covering(*a, 128), |i| i.id);
        addresses().map(|a| class(classes, who(&a))).collect()
    }

    /// The entries one by one, and what holds after each.
    fn step_by_step(
        held: &mut Identities,
        entries: &Entries,
        mut check: impl FnMut(&Identities) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        for (key, value) in &entries.prefixes {
            held.set_prefix(*key, *value);
            check(held)?;
        }
        for (addr, value) in &entries.exact {
            match value {
                Some(identity) => held.set_exact(*addr, *identity),
                None => held.remove_exact(addr),
            }
            check(held)?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        /// Before the switch every address is what it was, behind it what it is to be, at every single step.
        #[test]
        fn every_packet_finds_the_addresses_of_the_generation_it_is_decided_by(case in any_case(), turn in 0u32..2) {
            let Case { prefixes, exact, pods, classes } = case;
            let with_pods = |exact: &Exact, pods: &BTreeMap<Addr, Identity>| {
                exact.iter().chain(pods).map(|(a, i)| (*a, *i)).collect::<Exact>()
            };
            let mut held = Identities::of(prefixes[0].clone(), with_pods(&exact[0], &pods[0]));
            // Pods neither come nor go with a generation.
            let mut to_be = pods[0].clone();
            for (addr, identity) in &mut to_be {
                *identity = pods[1].get(addr).copied().unwrap_or(*identity);
            }
            let goal = Identities::of(prefixes[1].clone(), with_pods(&exact[1], &to_be));
            let (old, new) = (seen(&held, &classes[0]), seen(&goal, &classes[1]));
            let wanted = Wanted { prefixes: &prefixes[1], exact: &exact[1], pods: &pods[1] };
            let [mut running, mut next] = classes;
            let plan =
                Transition::of(&held, &wanted, &Classes { running: &running, next: &next, room: 128, turn });
            prop_assert_eq!(plan.unmatched, 0);
            running.resize(128, 0);
            next.resize(128, 0);
            for (id, class) in &plan.running {
                running[*id as usize] = *class;
                prop_assert_eq!(&seen(&held, &running), &old, "class of {}", id);
            }
            plan.next.iter().for_each(|(id, class)| next[*id as usize] = *class);
            step_by_step(&mut held, &plan.before, |held| {
                prop_assert_eq!(&seen(held, &running), &old, "before the switch");
                Ok(())
            })?;
            prop_assert_eq!(&seen(&held, &next), &new, "at the switch");
            step_by_step(&mut held, &plan.after, |held| {
                prop_assert_eq!(&seen(held, &next), &new, "behind the switch");
                Ok(())
            })?;
            prop_assert_eq!(held, goal);
        }
    }
}
