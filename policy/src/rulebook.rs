//! Names of rules by number: what explain, counters and drops print.

use crate::Interner;
use bulkhead_ebpf_abi::{
    RULE_CLUSTER_DNS, RULE_CONTROL_PLANE, RULE_DEFAULT_DENY, RULE_FIRST_DYNAMIC, RULE_LOOPBACK, RULE_NONE,
    RULE_OPEN, RULE_OWN_NODE, RULE_SAME_PARTITION,
};
use std::{collections::BTreeMap, sync::Arc};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    /// `Partition/web egress "to-payments"`, `Partition/web egress[0]`, or what a built-in rule says.
    pub name: String,
    pub file: Option<String>,
}

/// The rules in force, the built-in ones, and those that went out of force not long ago. A clone shares them.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleBook {
    /// Written in objects, under policies that the tables hold.
    in_force: Arc<BTreeMap<u32, Arc<RuleEntry>>>,
    others: Arc<BTreeMap<u32, RuleEntry>>,
}

const BUILT_IN: [(u32, &str); 8] = [
    (RULE_NONE, "no rule: the tables have no answer"),
    (RULE_DEFAULT_DENY, "no rule allows it"),
    (RULE_SAME_PARTITION, "same partition"),
    (RULE_OPEN, "the partition is open"),
    (RULE_OWN_NODE, "a node reaches its own pods"),
    (RULE_CLUSTER_DNS, "cluster DNS (allowClusterDNS)"),
    (RULE_CONTROL_PLANE, "the control plane (allowControlPlane)"),
    (RULE_LOOPBACK, "a pod reaches itself"),
];

impl RuleBook {
    pub(crate) fn new<'a>(
        in_force: impl Iterator<Item = (&'a u32, &'a Arc<RuleEntry>)>,
        numbers: &Interner,
    ) -> Self {
        let entry = |name: &str| RuleEntry { name: name.into(), file: None };
        let in_force: BTreeMap<_, _> = in_force.map(|(number, entry)| (*number, entry.clone())).collect();
        let mut others: BTreeMap<_, _> =
            BUILT_IN.iter().map(|(number, name)| (*number, entry(name))).collect();
        let kept = numbers.rules().iter().filter(|(number, _)| !in_force.contains_key(number));
        others.extend(kept.map(|(number, name)| (*number, entry(name))));
        Self { in_force: Arc::new(in_force), others: Arc::new(others) }
    }

    pub fn get(&self, number: u32) -> Option<&RuleEntry> {
        self.in_force.get(&number).map(Arc::as_ref).or_else(|| self.others.get(&number))
    }

    /// Rules that objects write, and the tables of this node hold.
    pub fn in_force(&self) -> impl Iterator<Item = (u32, &RuleEntry)> {
        self.in_force.iter().map(|(number, entry)| (*number, &**entry))
    }

    /// Written in an object and gone since.
    pub fn is_gone(&self, number: u32) -> bool {
        number >= RULE_FIRST_DYNAMIC && !self.in_force.contains_key(&number)
    }
}
