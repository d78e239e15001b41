//! What one end decides about one kind of peer, as a function of protocol and port; equal functions have one number.
//!
//! A function depends on the peer only by which rules of the list ask for it, and most rules ask for few: so there are
//! far fewer functions than pairs of groups.

use super::{ports, side::Side};
use crate::{atom::Atom, compile};
use bulkhead_ebpf_abi::{CELL_FINAL, PORT_SLOTS, VERDICT_ALLOW};
use std::collections::{BTreeSet, HashMap};

/// Of a slot and from a port on: whether it passes. Covers all slots; neighbours differ.
pub(super) type Function = Vec<(u32, u16, bool)>;

/// A set of atoms, by number.
pub(super) type SetId = u32;

/// Of an end that is no pod.
pub(super) const ALWAYS: u32 = 0;

pub(super) struct Functions<'a> {
    side: &'a Side,
    lists: HashMap<(u32, u32), List<'a>>,
    by_matched: HashMap<(u32, u32, Vec<usize>), u32>,
    by_set: HashMap<(u32, u32, SetId), u32>,
}

struct List<'a> {
    policy: &'a compile::Policy,
    for_any: Vec<usize>,
    by_peer: HashMap<u32, Vec<usize>>,
    /// What a rule requires of a peer besides.
    requires: HashMap<usize, u32>,
}

/// Numbers for atoms, for sets of them, and for functions; both sides share them.
#[derive(Default)]
pub(super) struct Numbers {
    atoms: HashMap<Atom, u32>,
    set_ids: HashMap<Vec<u32>, SetId>,
    pub sets: Vec<Vec<u32>>,
    function_ids: HashMap<Function, u32>,
    pub functions: Vec<Function>,
}

impl Numbers {
    pub fn new() -> Self {
        let mut numbers = Self::default();
        numbers.function((0..PORT_SLOTS).map(|slot| (slot, 0, true)).collect());
        numbers
    }

    pub fn atom(&mut self, atom: &Atom) -> u32 {
        if let Some(number) = self.atoms.get(atom) {
            return *number;
        }
        let number = self.atoms.len() as u32;
        self.atoms.insert(atom.clone(), number);
        number
    }

    pub fn set(&mut self, mut set: Vec<u32>) -> SetId {
        set.sort_unstable();
        *self.set_ids.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            self.sets.len() as u32 - 1
        })
    }

    fn function(&mut self, function: Function) -> u32 {
        *self.function_ids.entry(function).or_insert_with_key(|function| {
            self.functions.push(function.clone());
            self.functions.len() as u32 - 1
        })
    }
}

impl<'a> Functions<'a> {
    pub fn of(side: &'a Side, numbers: &mut Numbers) -> Self {
        let lists = side.compiled.lists.iter().map(|(key, policy)| (*key, List::of(policy, numbers)));
        Self { side, lists: lists.collect(), by_matched: HashMap::new(), by_set: HashMap::new() }
    }

    pub fn atoms(&self, identity: u32, numbers: &mut Numbers) -> Vec<u32> {
        let atoms = self.side.compiled.identities.get(&identity);
        atoms.into_iter().flatten().map(|a| numbers.atom(a)).collect()
    }

    /// Atoms that a list asks for.
    pub fn asked(&self, policy: u32, dir: u32) -> impl Iterator<Item = u32> {
        self.lists
            .get(&(policy, dir))
            .into_iter()
            .flat_map(|list| list.by_peer.keys().chain(list.requires.values()).copied())
    }

    /// What an end under this policy decides about peers with this set of atoms.
    pub fn get(&mut self, policy: Option<u32>, dir: u32, set: SetId, numbers: &mut Numbers) -> u32 {
        let Some(policy) = policy else { return ALWAYS };
        if let Some(function) = self.by_set.get(&(policy, dir, set)) {
            return *function;
        }
        let Some(list) = self.lists.get(&(policy, dir)) else { return ALWAYS };
        let matched = list.matched(&numbers.sets[set as usize]);
        let function = match self.by_matched.get(&(policy, dir, matched.clone())) {
            Some(function) => *function,
            None => {
                let function = numbers.function(list.function(&matched));
                self.by_matched.insert((policy, dir, matched), function);
                function
            }
        };
        self.by_set.insert((policy, dir, set), function);
        function
    }
}

impl<'a> List<'a> {
    fn of(policy: &'a compile::Policy, numbers: &mut Numbers) -> Self {
        let mut list =
            Self { policy, for_any: Vec::new(), by_peer: HashMap::new(), requires: HashMap::new() };
        for (i, rule) in policy.rules.iter().enumerate() {
            if let Some(atom) = &rule.requires {
                list.requires.insert(i, numbers.atom(atom));
            }
            match &rule.peers {
                None => list.for_any.push(i),
                Some(peers) => {
                    for atom in peers {
                        list.by_peer.entry(numbers.atom(atom)).or_default().push(i);
                    }
                }
            }
        }
        list
    }

    /// Rules that match a peer with these atoms on some port, in order.
    fn matched(&self, set: &[u32]) -> Vec<usize> {
        let asking = set.iter().filter_map(|a| self.by_peer.get(a)).flatten().chain(&self.for_any).copied();
        let matched: BTreeSet<usize> =
            asking.filter(|i| self.requires.get(i).is_none_or(|atom| set.contains(atom))).collect();
        matched.into_iter().collect()
    }

    fn function(&self, matched: &[usize]) -> Function {
        let rules: Vec<_> = matched.iter().map(|i| &self.policy.rules[*i]).collect();
        let audit = self.policy.audit();
        let mut function = Function::new();
        for slot in 0..PORT_SLOTS {
            for first in self.starts(&rules, slot) {
                let firsts = compile::TIERS.map(|tier| {
                    let mut of_tier = rules.iter().filter(|r| r.tier == tier);
                    of_tier.find(|r| r.is_for(slot, first)).copied()
                });
                let cell = compile::cell(audit, &firsts);
                let passes = cell.verdict == VERDICT_ALLOW || (audit && cell.flags & CELL_FINAL == 0);
                if function.last().is_none_or(|(s, _, p)| (*s, *p) != (slot, passes)) {
                    function.push((slot, first, passes));
                }
            }
        }
        function
    }

    /// First ports of ranges within which no rule turns.
    fn starts(&self, rules: &[&compile::Rule], slot: u32) -> BTreeSet<u16> {
        let ranges = rules.iter().filter_map(|r| r.ports.as_ref()).flatten().filter(|r| r.slot == slot);
        let bounds = ranges.flat_map(|r| [Some(r.first), r.last.checked_add(1)]).flatten();
        bounds.filter(|port| *port <= ports::last(slot)).chain([0]).collect()
    }
}
