//! Which pairs of groups have flows whose verdict turns.
//!
//! ```text
//! group from: a row over all groups to ─▶ what turns, by number ─▶ equal rows are one ─▶ sets of groups
//!     most of a row follows from a few kinds of peers; only peers that one of the two ends' rules ask for by name differ
//! ```
//! A group that is to both sides the same, and under the same rules, is compared with the others' groups only.

use super::{
    functions::{ALWAYS, Functions, Numbers, SetId},
    groups::Group,
    outcome::{Outcomes, Part},
    side::Side,
};
use bulkhead_ebpf_abi::{DIR_EGRESS, DIR_INGRESS};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Groups by number: first and last of each run.
pub(super) type Set = Vec<(u32, u32)>;

/// Flows that turn one way.
pub(super) struct Turned {
    pub part: Part,
    pub from: Set,
    pub to: Set,
}

/// Atoms that so many groups have, or one of eight, are looked at once for all kinds of groups, and not group by group.
const COMMON: usize = 64;

/// A row: runs of groups with the number of what turns.
type Row = Vec<(u32, u32, u32)>;

/// What each group decides, by number, and the functions before and after that the numbers stand for.
type ByGroup = (Vec<u32>, Vec<[u32; 2]>);

/// One group, as the search sees it.
struct End {
    policies: [Option<u32>; 2],
    sets: [SetId; 2],
    /// Of the set, the atoms that are common: by this it is alike to most of the others' rules.
    kind: usize,
    /// Something about it differs between the sides.
    changed: bool,
    /// The one node that all of it is of, or (pods) is on, by number.
    alone_on: Option<usize>,
    pods: bool,
}

pub(super) fn turned(sides: [&Side; 2], groups: &[Group], v6: bool) -> Vec<Turned> {
    let mut search = Search::new(sides, groups, v6);
    let rows = search.rows();
    merged(rows, &search.outcomes)
}

pub(super) struct Search<'a> {
    numbers: Numbers,
    functions: [Functions<'a>; 2],
    outcomes: Outcomes,
    ends: Vec<End>,
    kinds: Vec<[SetId; 2]>,
    common: BTreeSet<u32>,
    /// Groups that have an atom that is not common, and groups whose ingress rules ask for it.
    having: HashMap<u32, Vec<u32>>,
    asking: HashMap<u32, Vec<u32>>,
}

impl<'a> Search<'a> {
    pub fn new(sides: [&'a Side; 2], groups: &[Group], v6: bool) -> Self {
        let mut numbers = Numbers::new();
        let functions = sides.map(|side| Functions::of(side, &mut numbers));
        let mut atoms = Vec::new();
        let mut holders: HashMap<u32, usize> = HashMap::new();
        for group in groups {
            let of_sides = [0, 1].map(|n| functions[n].atoms(group.views[n].identity, &mut numbers));
            let any: BTreeSet<u32> = of_sides.iter().flatten().copied().collect();
            any.into_iter().for_each(|atom| *holders.entry(atom).or_default() += 1);
            atoms.push(of_sides);
        }
        let many = COMMON.min(groups.len() / 8);
        let common: BTreeSet<u32> = holders.into_iter().filter(|(_, n)| *n > many).map(|(a, _)| a).collect();
        let mut search = Self {
            outcomes: Outcomes::new(v6),
            ends: Vec::new(),
            kinds: Vec::new(),
            common,
            having: HashMap::new(),
            asking: HashMap::new(),
            numbers,
            functions,
        };
        search.enter(sides, groups, atoms);
        search
    }

    fn enter(&mut self, sides: [&Side; 2], groups: &[Group], atoms: Vec<[Vec<u32>; 2]>) {
        let mut alike: HashMap<u32, bool> = HashMap::new();
        let mut kinds: HashMap<[SetId; 2], usize> = HashMap::new();
        let mut nodes: HashMap<&str, usize> = HashMap::new();
        for ((group, atoms), n) in groups.iter().zip(atoms).zip(0..) {
            let policies = group.views.map(|view| view.policy);
            let is_common = |atom: &&u32| self.common.contains(atom);
            let base = [0, 1].map(|s| atoms[s].iter().filter(is_common).copied().collect::<Vec<_>>());
            let base = base.map(|set| self.numbers.set(set));
            let held: BTreeSet<u32> = atoms.iter().flatten().copied().collect();
            for atom in held.difference(&self.common) {
                self.having.entry(*atom).or_default().push(n);
            }
            for atom in self.asked(policies, DIR_INGRESS) {
                self.asking.entry(atom).or_default().push(n);
            }
            let sets = atoms.map(|set| self.numbers.set(set));
            let same_rules = policies[0] == policies[1]
                && policies[0].is_none_or(|p| *alike.entry(p).or_insert_with(|| are_alike(sides, p)));
            let kind = *kinds.entry(base).or_insert_with(|| {
                self.kinds.push(base);
                self.kinds.len() - 1
            });
            let next = nodes.len();
            let alone_on = group.alone_on().map(|node| *nodes.entry(node).or_insert(next));
            let changed = !same_rules || sets[0] != sets[1];
            self.ends.push(End { policies, sets, kind, changed, alone_on, pods: group.is_pods() });
        }
    }

    /// Atoms that rules of either side ask for, without common ones.
    fn asked(&self, policies: [Option<u32>; 2], dir: u32) -> BTreeSet<u32> {
        let of_side = |n: usize| policies[n].into_iter().flat_map(move |p| self.functions[n].asked(p, dir));
        [0, 1].into_iter().flat_map(of_side).filter(|atom| !self.common.contains(atom)).collect()
    }

    /// What an end decides about peers with these sets, on both sides.
    fn decided(&mut self, end: usize, dir: u32, sets: [SetId; 2]) -> [u32; 2] {
        let policies = self.ends[end].policies;
        [0, 1].map(|n| self.functions[n].get(policies[n], dir, sets[n], &mut self.numbers))
    }

    /// Rows in which something turns, each with the groups that have it.
    fn rows(&mut self) -> BTreeMap<Row, Vec<u32>> {
        let all: Vec<u32> = (0..self.ends.len() as u32).collect();
        let changed: Vec<u32> = all.iter().copied().filter(|n| self.ends[*n as usize].changed).collect();
        let mut rows: BTreeMap<Row, Vec<u32>> = BTreeMap::new();
        if changed.is_empty() {
            return rows;
        }
        // By kind: what the groups' ingress decides about peers of the kind, by number.
        let mut by_kind: Vec<Option<ByGroup>> = vec![None; self.kinds.len()];
        for from in 0..self.ends.len() {
            let kind = self.ends[from].kind;
            if by_kind[kind].is_none() {
                by_kind[kind] = Some(self.ingress_by_kind(kind));
            }
            let Some((ingress, distinct)) = &by_kind[kind] else { continue };
            let columns = if self.ends[from].changed { &all } else { &changed };
            let row = self.row(from, columns, ingress, distinct);
            if !row.is_empty() {
                rows.entry(row).or_default().push(from as u32);
            }
        }
        rows
    }

    fn ingress_by_kind(&mut self, kind: usize) -> ByGroup {
        let mut numbers: HashMap<[u32; 2], u32> = HashMap::new();
        let mut distinct = Vec::new();
        let by_group = (0..self.ends.len()).map(|to| {
            let decided = self.decided(to, DIR_INGRESS, self.kinds[kind]);
            *numbers.entry(decided).or_insert_with(|| {
                distinct.push(decided);
                distinct.len() as u32 - 1
            })
        });
        (by_group.collect(), distinct)
    }

    fn row(&mut self, from: usize, columns: &[u32], ingress: &[u32], distinct: &[[u32; 2]]) -> Row {
        let mut usual = Vec::with_capacity(self.kinds.len() * distinct.len());
        for kind in 0..self.kinds.len() {
            let egress = self.decided(from, DIR_EGRESS, self.kinds[kind]);
            usual.extend(distinct.iter().map(|ingress| self.outcomes.of(egress, *ingress, &self.numbers)));
        }
        let named = self.named(from);
        let mut row = Row::new();
        let mut named = named.into_iter().peekable();
        for to in columns.iter().copied() {
            while named.next_if(|n| *n < to).is_some() {}
            let end = &self.ends[to as usize];
            let turns = if self.are_own(from, to as usize) {
                0
            } else if named.next_if_eq(&to).is_some() {
                self.exactly(from, to as usize)
            } else {
                usual[end.kind * distinct.len() + ingress[to as usize] as usize]
            };
            match row.last_mut() {
                _ if turns == 0 => {}
                Some((_, last, t)) if *t == turns && *last + 1 == to => *last = to,
                _ => row.push((to, to, turns)),
            }
        }
        row
    }

    /// Groups of which rules of one of the two ends ask for more than their kind, in order.
    fn named(&self, from: usize) -> BTreeSet<u32> {
        let end = &self.ends[from];
        let asked = self.asked(end.policies, DIR_EGRESS);
        let asked = asked.iter().filter_map(|atom| self.having.get(atom));
        let held = end.sets.iter().flat_map(|set| &self.numbers.sets[*set as usize]);
        let held = held.filter(|atom| !self.common.contains(atom)).filter_map(|atom| self.asking.get(atom));
        asked.chain(held).flatten().copied().collect()
    }

    /// Whether all flows are of a node to its own pods.
    fn are_own(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.ends[from], &self.ends[to]);
        !from.pods && to.pods && from.alone_on.is_some() && from.alone_on == to.alone_on
    }

    /// What turns where no rule is asked on the sides on which the pods of `to` are the nodes' of `from` own.
    pub fn own(&mut self, from: usize, to: usize, own: [bool; 2]) -> &[Part] {
        let mut egress = self.decided(from, DIR_EGRESS, self.ends[to].sets);
        let mut ingress = self.decided(to, DIR_INGRESS, self.ends[from].sets);
        for side in [0, 1].into_iter().filter(|side| own[*side]) {
            (egress[side], ingress[side]) = (ALWAYS, ALWAYS);
        }
        let outcome = self.outcomes.of(egress, ingress, &self.numbers);
        self.outcomes.parts(outcome)
    }

    fn exactly(&mut self, from: usize, to: usize) -> u32 {
        let egress = self.decided(from, DIR_EGRESS, self.ends[to].sets);
        let ingress = self.decided(to, DIR_INGRESS, self.ends[from].sets);
        self.outcomes.of(egress, ingress, &self.numbers)
    }
}

/// Whether the rules of a policy are the same on both sides, whatever they are called.
fn are_alike(sides: [&Side; 2], policy: u32) -> bool {
    [DIR_EGRESS, DIR_INGRESS].into_iter().all(|dir| {
        let [before, after] = sides.map(|side| side.list(policy, dir));
        let (Some(before), Some(after)) = (before, after) else { return false };
        before.flags == after.flags
            && before.rules.len() == after.rules.len()
            && before.rules.iter().zip(&after.rules).all(|(a, b)| a.says_what(b))
    })
}

/// Of rows, sets: who has flows to whom that turn alike.
fn merged(rows: BTreeMap<Row, Vec<u32>>, outcomes: &Outcomes) -> Vec<Turned> {
    let mut by_target: BTreeMap<(Part, Set), Vec<u32>> = BTreeMap::new();
    for (row, from) in rows {
        let mut parts: BTreeMap<&Part, Set> = BTreeMap::new();
        for (first, last, outcome) in row {
            for part in outcomes.parts(outcome) {
                push(parts.entry(part).or_default(), first, last);
            }
        }
        for (part, to) in parts {
            by_target.entry((part.clone(), to)).or_default().extend(&from);
        }
    }
    let mut by_source: BTreeMap<(Part, Set), Vec<(u32, u32)>> = BTreeMap::new();
    for ((part, to), mut from) in by_target {
        from.sort_unstable();
        let mut set = Set::new();
        from.into_iter().for_each(|n| push(&mut set, n, n));
        by_source.entry((part, set)).or_default().extend(to);
    }
    let turned = by_source.into_iter().map(|((part, from), mut runs)| {
        runs.sort_unstable();
        let mut to = Set::new();
        runs.into_iter().for_each(|(first, last)| push(&mut to, first, last));
        Turned { part, from, to }
    });
    turned.collect()
}

/// Runs come in order.
fn push(set: &mut Set, first: u32, last: u32) {
    match set.last_mut() {
        Some((_, end)) if *end + 1 == first => *end = last,
        _ => set.push((first, last)),
    }
}
