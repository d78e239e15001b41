//! What turns, of two ends' decisions before and after; equal outcomes have one number, and 0 is none.

use super::{
    functions::{Function, Numbers},
    ports::{self, Range},
};
use std::collections::{BTreeSet, HashMap};

/// Ports of one slot that turn one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Part {
    /// Newly allowed; else newly denied.
    pub allows: bool,
    pub slot: u32,
    pub ranges: Vec<Range>,
}

type Outcome = Vec<Part>;

pub(super) struct Outcomes {
    v6: bool,
    by_functions: HashMap<[u32; 4], u32>,
    numbers: HashMap<Outcome, u32>,
    outcomes: Vec<Outcome>,
}

impl Outcomes {
    pub fn new(v6: bool) -> Self {
        let numbers = HashMap::from([(Outcome::new(), 0)]);
        Self { v6, by_functions: HashMap::new(), numbers, outcomes: vec![Outcome::new()] }
    }

    pub fn parts(&self, outcome: u32) -> &[Part] {
        &self.outcomes[outcome as usize]
    }

    /// Functions before and after: of the initiator's egress, and of the responder's ingress.
    pub fn of(&mut self, egress: [u32; 2], ingress: [u32; 2], numbers: &Numbers) -> u32 {
        if egress[0] == egress[1] && ingress[0] == ingress[1] {
            return 0;
        }
        let functions = [egress[0], ingress[0], egress[1], ingress[1]];
        if let Some(outcome) = self.by_functions.get(&functions) {
            return *outcome;
        }
        let outcome = turn(functions.map(|f| &numbers.functions[f as usize]), self.v6);
        let number = *self.numbers.entry(outcome).or_insert_with_key(|outcome| {
            self.outcomes.push(outcome.clone());
            self.outcomes.len() as u32 - 1
        });
        self.by_functions.insert(functions, number);
        number
    }
}

fn turn([egress_before, ingress_before, egress_after, ingress_after]: [&Function; 4], v6: bool) -> Outcome {
    let all = [egress_before, ingress_before, egress_after, ingress_after];
    let mut outcome = Outcome::new();
    for slot in ports::slots(v6) {
        let starts = all.into_iter().flatten().filter(|(s, _, _)| *s == slot).map(|(_, first, _)| *first);
        let starts: BTreeSet<u16> = starts.collect();
        let ends = starts.iter().skip(1).map(|first| first - 1).chain([ports::last(slot)]);
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for (first, last) in starts.iter().copied().zip(ends) {
            let passes = |function| passes(function, slot, first);
            let before = passes(egress_before) && passes(ingress_before);
            let after = passes(egress_after) && passes(ingress_after);
            if before != after {
                append(if after { &mut allowed } else { &mut denied }, (first, last));
            }
        }
        for (allows, ranges) in [(false, denied), (true, allowed)] {
            if !ranges.is_empty() {
                outcome.push(Part { allows, slot, ranges });
            }
        }
    }
    outcome
}

fn passes(function: &Function, slot: u32, port: u16) -> bool {
    let behind = function.partition_point(|(s, first, _)| (*s, *first) <= (slot, port));
    behind.checked_sub(1).and_then(|at| function.get(at)).is_some_and(|(_, _, passes)| *passes)
}

/// Neighbouring ranges are one.
fn append(ranges: &mut Vec<Range>, (first, last): Range) {
    match ranges.last_mut() {
        Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
        _ => ranges.push((first, last)),
    }
}
