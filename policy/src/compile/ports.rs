//! Port classes of one policy: (protocol, port) pairs that the same rules match.
//!
//! A sweep over the ends of all ranges: what lies between two ends is one run, and runs with the same rules are one
//! class. The cost is that of the number of ranges; how many ports they span is nothing to it.

use super::{
    CompileError,
    rules::{PortRange, Rule},
    spans::Map,
};
use bulkhead_ebpf_abi::PORT_SLOTS;
use std::collections::{BTreeMap, BTreeSet};

/// From `first` of `slot` up to the next run of the slot: this class. Every slot has a run that begins at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub slot: u32,
    pub first: u16,
    pub class: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortClasses {
    pub runs: Vec<Run>,
    /// By class: indices, ascending, of the rules with ports that match it.
    pub matched: Vec<Vec<usize>>,
}

impl PortClasses {
    pub fn of(partition: &str, rules: &[Rule]) -> Result<Self, CompileError> {
        let mut classes: Map<Vec<usize>, u16> = Map::default();
        let mut result = Self { runs: Vec::new(), matched: Vec::new() };
        for slot in 0..PORT_SLOTS {
            let ends = ends(slot, rules);
            let mut active = BTreeSet::new();
            let mut previous = None;
            for (first, (begin, end)) in ends {
                for rule in end {
                    active.remove(&rule);
                }
                active.extend(begin);
                let matched: Vec<usize> =
                    active.iter().map(|(rule, _)| *rule).collect::<BTreeSet<_>>().into_iter().collect();
                let class = match classes.get(&matched) {
                    Some(class) => *class,
                    None => {
                        let class = u16::try_from(result.matched.len())
                            .ok()
                            .filter(|c| *c < u16::MAX)
                            .ok_or_else(|| CompileError::PortClasses { partition: partition.into() })?;
                        classes.insert(matched.clone(), class);
                        result.matched.push(matched);
                        class
                    }
                };
                if previous != Some(class) {
                    result.runs.push(Run { slot, first, class });
                }
                previous = Some(class);
            }
        }
        Ok(result)
    }
}

/// A range of a rule: (rule, number of the range within it).
type Part = (usize, usize);

/// Where ranges of this slot begin, and where the port after their last is.
fn ends(slot: u32, rules: &[Rule]) -> BTreeMap<u16, (Vec<Part>, Vec<Part>)> {
    let mut ends: BTreeMap<u16, (Vec<Part>, Vec<Part>)> = BTreeMap::new();
    ends.entry(0).or_default();
    for (i, rule) in rules.iter().enumerate() {
        for (j, PortRange { slot: s, first, last }) in rule.ports.iter().flatten().enumerate() {
            if *s != slot {
                continue;
            }
            ends.entry(*first).or_default().0.push((i, j));
            if let Some(after) = last.checked_add(1) {
                ends.entry(after).or_default().1.push((i, j));
            }
        }
    }
    ends
}
