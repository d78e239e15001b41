//! What each rule decided on: what has been folded, what live entries still hold, and what was refused.

use super::{
    Datapath, DatapathError, connections::monotonic_coarse, generation::absent_is_fine, values::Raw,
};
use bulkhead_ebpf_abi::{DROP_POLICY, DROP_REVOKED, DropKey, Flow, RULE_NONE, RuleCounter};
use std::{collections::BTreeMap, time::Duration};

impl Datapath {
    /// Counters by rule number; a packet between two pods counts at the rules of both ends, and once at one that decided
    /// at both. A connection that ends while this reads may be missing from what it reads, and is there the next time.
    pub fn rules(&self) -> Result<BTreeMap<u32, RuleCounter>, DatapathError> {
        let mut rules = BTreeMap::new();
        for entry in self.rules.iter() {
            let (rule, values) =
                entry.map_err(|source| DatapathError::Map { what: "reading rules".into(), source })?;
            values.iter().for_each(|Raw(cpu)| add(&mut rules, rule, cpu));
        }
        // The dead count, too, until somebody needs their room.
        for entry in self.flows() {
            let (_, flow) = entry?;
            add_flow(&mut rules, &flow);
        }
        for (key, drop) in self.drops()? {
            if [DROP_POLICY, DROP_REVOKED].contains(&key.reason) {
                let refused =
                    RuleCounter { packets: drop.packets, bytes: drop.bytes, connections: 0, last: drop.last };
                add(&mut rules, key.rule, &refused);
            }
        }
        Ok(rules)
    }

    /// How long ago a counter counted last (`last`).
    pub fn age(&self, last: u64) -> Result<Duration, DatapathError> {
        Ok(Duration::from_nanos(monotonic_coarse()?.saturating_sub(last)))
    }

    /// Removes the counters of rules that nobody can name any more, those of their drops among them.
    pub fn keep_rules(&mut self, known: impl Fn(u32) -> bool) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { what: "removing counters of rules".into(), source };
        let numbers: Vec<u32> = self.rules.keys().collect::<Result<_, _>>().map_err(failed)?;
        for number in numbers.into_iter().filter(|n| !known(*n)) {
            absent_is_fine(self.rules.remove(&number)).map_err(failed)?;
        }
        let drops: Vec<Raw<DropKey>> = self.drops.keys().collect::<Result<_, _>>().map_err(failed)?;
        for key in drops.into_iter().filter(|Raw(key)| key.rule != RULE_NONE && !known(key.rule)) {
            absent_is_fine(self.drops.remove(&key)).map_err(failed)?;
        }
        Ok(())
    }
}

/// As the programs fold.
fn add_flow(rules: &mut BTreeMap<u32, RuleCounter>, flow: &Flow) {
    for (rule, connections) in flow.rules.into_iter().zip(flow.begun()) {
        let counter =
            RuleCounter { packets: flow.packets, bytes: flow.bytes, connections, last: flow.last_seen };
        add(rules, rule, &counter);
        if flow.rules[0] == flow.rules[1] {
            break;
        }
    }
}

fn add(rules: &mut BTreeMap<u32, RuleCounter>, rule: u32, more: &RuleCounter) {
    if rule == RULE_NONE || (more.packets, more.connections) == (0, 0) {
        return;
    }
    let sum = rules.entry(rule).or_default();
    sum.packets += more.packets;
    sum.bytes += more.bytes;
    sum.connections += more.connections;
    sum.last = sum.last.max(more.last);
}
