//! Names of rules by number: what explain, counters and drops print.

use crate::Interner;
use bulkhead_ebpf_abi::{
    RULE_CLUSTER_DNS, RULE_CONTROL_PLANE, RULE_DEFAULT_DENY, RULE_NONE, RULE_OPEN, RULE_OWN_NODE,
    RULE_SAME_PARTITION,
};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    /// `Partition/web egress "to-payments"`, `Partition/web egress[0]`, or what a built-in rule says.
    pub name: String,
    pub file: Option<String>,
}

/// The rules in force, the built-in ones, and those that went out of force not long ago.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleBook(BTreeMap<u32, RuleEntry>);

const BUILT_IN: [(u32, &str); 7] = [
    (RULE_NONE, "no rule: the tables have no answer"),
    (RULE_DEFAULT_DENY, "no rule allows it"),
    (RULE_SAME_PARTITION, "same partition"),
    (RULE_OPEN, "the partition is open"),
    (RULE_OWN_NODE, "a node reaches its own pods"),
    (RULE_CLUSTER_DNS, "cluster DNS (allowClusterDNS)"),
    (RULE_CONTROL_PLANE, "the control plane (allowControlPlane)"),
];

impl RuleBook {
    pub(crate) fn new<'a>(
        in_force: impl Iterator<Item = (&'a u32, &'a RuleEntry)>,
        numbers: &Interner,
    ) -> Self {
        let entry = |name: &str| RuleEntry { name: name.into(), file: None };
        let mut book: BTreeMap<_, _> = BUILT_IN.iter().map(|(number, name)| (*number, entry(name))).collect();
        book.extend(numbers.rules().iter().map(|(number, name)| (*number, entry(name))));
        book.extend(in_force.map(|(number, entry)| (*number, entry.clone())));
        Self(book)
    }

    pub fn get(&self, number: u32) -> Option<&RuleEntry> {
        self.0.get(&number)
    }
}
