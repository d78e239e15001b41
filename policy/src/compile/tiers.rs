//! The order of decision, and how the tiers' answers become one cell.
//!
//! ```text
//! own node ─▶ admin ─▶ partition ─▶ NetworkPolicy, where none isolates: baseline ─▶ allowed
//!  allow   allow, deny    deny       allow, deny              allow, deny
//! ```
//! Within a tier the first rule that matches speaks; Pass, or no rule, goes on. A flow that the admin tier leaves open needs
//! a yes from partition and NetworkPolicy.

use super::rules::{Rule, Verdict};
use bulkhead_ebpf_abi::{CELL_FINAL, CELL_KEEP, Cell, VERDICT_ALLOW, VERDICT_DENY};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// A node reaches its own pods.
    Node,
    /// ClusterNetworkPolicies before all others.
    Admin,
    Partition,
    NetworkPolicy,
    /// ClusterNetworkPolicies for pods that no NetworkPolicy isolates.
    Baseline,
}

impl Tier {
    /// As the messages say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Admin => "admin",
            Self::Partition => "partition",
            Self::NetworkPolicy => "networkPolicy",
            Self::Baseline => "baseline",
        }
    }
}

pub(crate) const TIERS: [Tier; 5] =
    [Tier::Node, Tier::Admin, Tier::Partition, Tier::NetworkPolicy, Tier::Baseline];

/// The first matching rule of each tier.
pub(crate) type Firsts<'a> = [Option<&'a Rule>; TIERS.len()];

/// What the tiers say together. `audit`: the partition's denials are only recorded.
pub(crate) fn cell(audit: bool, firsts: &Firsts<'_>) -> Cell {
    let first = |tier: Tier| firsts[tier as usize];
    let allow = |rule: &Rule, keep: bool| Cell {
        rule: rule.number,
        verdict: VERDICT_ALLOW,
        flags: if keep { CELL_KEEP } else { 0 },
        reserved: 0,
    };
    let deny = |rule: &Rule, last: bool| Cell {
        rule: rule.number,
        verdict: VERDICT_DENY,
        flags: if last { CELL_FINAL } else { 0 },
        reserved: 0,
    };
    if let Some(rule) = first(Tier::Node) {
        return allow(rule, false);
    }
    match first(Tier::Admin) {
        Some(rule) if rule.verdict == Verdict::Allow => return allow(rule, false),
        Some(rule) if rule.verdict == Verdict::Deny => return deny(rule, true),
        _ => {}
    }
    // The last rule of this tier matches everything.
    let Some(partition) = first(Tier::Partition) else { return Cell::default() };
    // Where a policy isolates, one of its rules always speaks.
    let baseline = first(Tier::Baseline).filter(|rule| rule.verdict != Verdict::Pass);
    let later = first(Tier::NetworkPolicy).or(baseline);
    match (partition.verdict, later) {
        (Verdict::Deny, Some(later)) if later.verdict == Verdict::Deny => {
            deny(if audit { later } else { partition }, true)
        }
        (Verdict::Deny, _) => deny(partition, false),
        (_, Some(later)) if later.verdict == Verdict::Deny => deny(later, true),
        (_, Some(later)) => allow(later, partition.keep),
        (_, None) => allow(partition, partition.keep),
    }
}
