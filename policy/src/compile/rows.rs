//! One direction of a policy as rows of cells: which row each class of addresses has.

use super::{
    CompileError,
    classes::Classes,
    policy::Policy,
    port_table::PortTable,
    ports::PortClasses,
    rules::Rule,
    spans::{Hashed, Map},
    tiers::{self, TIERS},
};
use crate::atom::Atom;
use bulkhead_ebpf_abi::Cell;
use std::{collections::BTreeSet, sync::Arc};

pub(crate) type Row = Hashed<Vec<Cell>>;

/// Rows, and who has which.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rows {
    pub policy: Arc<Policy>,
    pub ports: Arc<PortClasses>,
    pub port_table: Arc<PortTable>,
    /// The first is the world's.
    pub rows: Vec<Row>,
    /// By class, an index into `rows`; behind the last: the world's.
    pub of_class: Vec<u32>,
    /// Atoms that its rules ask of a peer, sorted.
    asked: Arc<[Atom]>,
}

impl Rows {
    pub fn of(policy: &Arc<Policy>, classes: &Classes) -> Result<Self, CompileError> {
        let ports = Arc::new(PortClasses::of(&policy.partition, &policy.rules)?);
        let maker = RowMaker::new(policy, &ports);
        let mut rows = Self {
            policy: policy.clone(),
            ports: ports.clone(),
            port_table: Arc::new(PortTable::of(&ports)),
            rows: vec![Row::new(maker.make(&[]))],
            of_class: Vec::new(),
            asked: Arc::default(),
        };
        // Rule by rule to the classes that have what it asks for: a class is asked nothing.
        let mut matched: Vec<Vec<usize>> = vec![Vec::new(); classes.atoms.len()];
        for (atom, rules) in &maker.by_atom {
            classes.having(atom).iter().for_each(|class| matched[*class].extend(rules));
        }
        let touched = matched.into_iter().enumerate().filter(|(_, rules)| !rules.is_empty());
        rows.fill(&maker, classes, touched);
        let asked: BTreeSet<&Atom> = maker.by_atom.keys().copied().collect();
        rows.asked = asked.into_iter().cloned().collect();
        rows.shrink();
        Ok(rows)
    }

    /// The same policy where only these classes are others than before. None: it is nothing to this policy.
    pub fn with(&self, classes: &Classes, changed: &[usize]) -> Option<Self> {
        let meaning = |class: usize| classes.atoms.get(class).and_then(Option::as_deref).unwrap_or_default();
        let has_row = |class: usize| self.of_class.get(class).is_some_and(|row| *row != 0);
        let concerns = |class: &&usize| has_row(**class) || meaning(**class).iter().any(|a| self.asks(a));
        if !changed.iter().any(|class| concerns(&class)) {
            return None;
        }
        let mut rows = self.clone();
        let maker = RowMaker::new(&self.policy, &self.ports);
        let touched = changed.iter().filter(concerns).map(|class| (*class, maker.asking(meaning(*class))));
        rows.fill(&maker, classes, touched);
        rows.drop_unused();
        rows.shrink();
        Some(rows)
    }

    fn asks(&self, atom: &Atom) -> bool {
        self.asked.binary_search(atom).is_ok()
    }

    /// Lists that are there for long have no room for more.
    fn shrink(&mut self) {
        self.rows.shrink_to_fit();
        self.of_class.shrink_to_fit();
    }

    /// `touched`: classes with the rules that ask for something they have, in any order.
    fn fill(
        &mut self,
        maker: &RowMaker<'_>,
        classes: &Classes,
        touched: impl Iterator<Item = (usize, Vec<usize>)>,
    ) {
        let mut known: Map<Vec<usize>, u32> = Map::default();
        let mut index: Map<Row, u32> = self.rows.iter().cloned().zip(0..).collect();
        for (class, asking) in touched {
            let atoms = classes.atoms.get(class).and_then(Option::as_deref).unwrap_or_default();
            let matched = maker.matched_by(atoms, asking);
            let row = *known.entry(matched).or_insert_with_key(|matched| {
                let row = Row::new(maker.make(matched));
                *index.entry(row).or_insert_with_key(|row| {
                    self.rows.push(row.clone());
                    self.rows.len() as u32 - 1
                })
            });
            if self.of_class.len() <= class {
                self.of_class.resize(class + 1, 0);
            }
            self.of_class[class] = row;
        }
        let used = self.of_class.iter().rposition(|row| *row != 0).map_or(1, |last| last + 1);
        self.of_class.resize(used, 0);
    }

    fn drop_unused(&mut self) {
        let mut used = vec![false; self.rows.len()];
        used[0] = true;
        self.of_class.iter().for_each(|row| used[*row as usize] = true);
        if used.iter().all(|used| *used) {
            return;
        }
        let mut left = 0u32;
        let moved: Vec<u32> = used
            .iter()
            .map(|used| {
                left += u32::from(*used);
                left.wrapping_sub(1)
            })
            .collect();
        self.of_class.iter_mut().for_each(|row| *row = moved[*row as usize]);
        let mut used = used.into_iter();
        self.rows.retain(|_| used.next().unwrap_or_default());
    }
}

/// Makes the rows of one policy: of every port class what the tiers say together.
pub(super) struct RowMaker<'a> {
    rules: &'a [Rule],
    audit: bool,
    ports: &'a PortClasses,
    /// Rules that ask for an atom, by the atom.
    pub by_atom: Map<&'a Atom, Vec<usize>>,
}

impl<'a> RowMaker<'a> {
    pub fn new(policy: &'a Policy, ports: &'a PortClasses) -> Self {
        let mut by_atom: Map<&Atom, Vec<usize>> = Map::default();
        for (i, rule) in policy.rules.iter().enumerate() {
            for atom in rule.peers.iter().flatten() {
                by_atom.entry(atom).or_default().push(i);
            }
        }
        Self { rules: &policy.rules, audit: policy.audit(), ports, by_atom }
    }

    /// Indices of the rules that ask for any of these atoms; one may come more than once.
    fn asking(&self, atoms: &[Atom]) -> Vec<usize> {
        atoms.iter().filter_map(|a| self.by_atom.get(a)).flatten().copied().collect()
    }

    /// Of the rules that ask for any of these atoms those that match, ascending.
    fn matched_by(&self, atoms: &[Atom], mut asking: Vec<usize>) -> Vec<usize> {
        asking.sort_unstable();
        asking.dedup();
        asking.retain(|i| self.rules[*i].requires.as_ref().is_none_or(|r| atoms.contains(r)));
        asking
    }

    /// `by_peer`: the rules whose peers ask for this class; those for any peer match besides.
    pub fn make(&self, by_peer: &[usize]) -> Vec<Cell> {
        let mut peer_matches: Vec<bool> = self.rules.iter().map(|r| r.peers.is_none()).collect();
        for rule in by_peer {
            peer_matches[*rule] = true;
        }
        // By tier, the first that matches every port.
        let mut any_port = [None; TIERS.len()];
        for (i, rule) in self.rules.iter().enumerate().rev() {
            if rule.ports.is_none() && peer_matches[i] {
                any_port[rule.tier as usize] = Some(i);
            }
        }
        let cell = |with_ports: &Vec<usize>| {
            let mut firsts = any_port;
            for i in with_ports.iter().copied().filter(|i| peer_matches[*i]) {
                let first = &mut firsts[self.rules[i].tier as usize];
                *first = Some(first.map_or(i, |f: usize| f.min(i)));
            }
            tiers::cell(self.audit, &firsts.map(|first| first.map(|i| &self.rules[i])))
        };
        self.ports.matched.iter().map(cell).collect()
    }
}
