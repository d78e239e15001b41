//! What the packets of a run have met: a run that has not met all of it in numbers has proved nothing.

use super::{
    outcome::{Outcome, Place, Way},
    reading::{Part, Reading},
};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{
    AUDIT_POLICY, DIR_INGRESS, DROP_POLICY, DROP_SPOOFED_UPLINK, RULE_FIRST_DYNAMIC, RULE_LOOPBACK,
    RULE_OWN_NODE, drop_reason_text,
};
use bulkhead_policy::Compiled;
use std::collections::{BTreeMap, BTreeSet};

pub const KINDS: [&str; 41] = [
    "Partition: a rule allows",
    "Partition: a rule denies",
    "NetworkPolicy: a rule allows",
    "NetworkPolicy: isolates",
    "NetworkPolicies: isolate",
    "ClusterNetworkPolicy: a rule allows",
    "ClusterNetworkPolicy: a rule denies",
    "a port's name allows",
    "a built-in rule allows",
    "policy",
    "audited",
    "this node's own",
    "a pod itself",
    "no flow",
    "spoofed source from pod",
    "spoofed source from uplink",
    "truncated packet",
    "malformed packet",
    "not IP",
    "fragment without its first",
    "tiny or overlapping fragment",
    "multicast",
    "unknown origin",
    "direct: allowed",
    "direct: sender denies",
    "direct: receiver denies",
    "direct: straight",
    "remote: allowed",
    "uplink: allowed",
    "uplink: denied",
    "known: straight",
    "known: by the stack",
    "IPv4: decided",
    "IPv6: decided",
    "IPv4: options pass",
    "IPv6: extension headers pass",
    "IPv6: extension headers are refused",
    "IPv4: a first fragment passes",
    "IPv6: a first fragment passes",
    "IPv4: a later fragment passes",
    "IPv6: a later fragment passes",
];

pub struct Seen<'a> {
    pub seen: &'a mut BTreeMap<&'static str, usize>,
    /// Rules of this cluster that ask for ports by name.
    pub by_name: BTreeSet<String>,
}

impl Seen<'_> {
    pub fn add(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// `both`: it goes from pod to pod past the stack, if it passes; `reading`: of what can be read.
    pub fn count(
        &mut self,
        at: &Place,
        both: bool,
        reading: Option<&Reading>,
        outcome: &Outcome,
        compiled: &Compiled,
    ) {
        self.add(decision(outcome, compiled));
        let name = |rule| compiled.rules.get(rule).map(|entry| &entry.name);
        if outcome.admitted.iter().any(|a| name(a.rule).is_some_and(|name| self.by_name.contains(name))) {
            self.add("a port's name allows");
        }
        if let Some(what) = road(at, both, outcome) {
            self.add(what);
        }
        if outcome.way == Way::Straight {
            self.add("direct: straight");
        }
        if let Some(reading) = reading {
            self.count_shape(reading, outcome);
        }
    }

    fn count_shape(&mut self, reading: &Reading, outcome: &Outcome) {
        let by_rule = |reason| [DROP_POLICY, AUDIT_POLICY].contains(&reason);
        if !outcome.admitted.is_empty() || outcome.counted.iter().any(|key| by_rule(key.reason)) {
            self.add(if reading.v6 { "IPv6: decided" } else { "IPv4: decided" });
        }
        let passes = outcome.way != Way::Dropped;
        match (reading.extended, reading.v6, passes) {
            (true, false, true) => self.add("IPv4: options pass"),
            (true, true, true) => self.add("IPv6: extension headers pass"),
            (true, true, false) if outcome.counted.iter().any(|key| key.reason == DROP_POLICY) => {
                self.add("IPv6: extension headers are refused");
            }
            _ => {}
        }
        match (reading.part, reading.v6, passes) {
            (Part::First(_), false, true) => self.add("IPv4: a first fragment passes"),
            (Part::First(_), true, true) => self.add("IPv6: a first fragment passes"),
            (Part::Later(_), false, true) => self.add("IPv4: a later fragment passes"),
            (Part::Later(_), true, true) => self.add("IPv6: a later fragment passes"),
            _ => {}
        }
    }
}

/// Where the stack is passed by.
fn road(at: &Place, both: bool, outcome: &Outcome) -> Option<&'static str> {
    let refused = outcome.counted.last().filter(|_| outcome.way == Way::Dropped);
    match (at.hook, refused) {
        (Hook::FromPod, Some(key)) if u32::from(key.dir) == DIR_INGRESS => Some("direct: receiver denies"),
        (Hook::FromPod, Some(key)) if both && key.reason == DROP_POLICY => Some("direct: sender denies"),
        (Hook::FromPod, None) if outcome.admitted.len() == 2 => Some("direct: allowed"),
        (Hook::FromPod, None) if outcome.is_direct() => Some("remote: allowed"),
        (Hook::FromUplink, Some(key)) if key.reason != DROP_SPOOFED_UPLINK => Some("uplink: denied"),
        (Hook::FromUplink, None) if outcome.is_direct() => Some("uplink: allowed"),
        _ => None,
    }
}

fn decision(outcome: &Outcome, compiled: &Compiled) -> &'static str {
    let by = |rule: u32, allows: bool| {
        let name = compiled.rules.get(rule).map_or("", |entry| &entry.name);
        match (name.split('/').next(), allows) {
            (Some("Partition"), true) => "Partition: a rule allows",
            (Some("Partition"), false) => "Partition: a rule denies",
            (Some("NetworkPolicy"), true) => "NetworkPolicy: a rule allows",
            (Some("NetworkPolicy"), false) if name.ends_with("(isolates)") => "NetworkPolicy: isolates",
            (Some("NetworkPolicy"), false) => "NetworkPolicies: isolate",
            (Some("ClusterNetworkPolicy"), true) => "ClusterNetworkPolicy: a rule allows",
            (Some("ClusterNetworkPolicy"), false) => "ClusterNetworkPolicy: a rule denies",
            _ => "nameless",
        }
    };
    match (outcome.way, outcome.counted.last(), outcome.admitted.last()) {
        (Way::Dropped, Some(key), _) if key.reason == DROP_POLICY && key.rule >= RULE_FIRST_DYNAMIC => {
            by(key.rule, false)
        }
        (Way::Dropped, Some(key), _) => drop_reason_text(key.reason),
        (_, Some(_), _) => "audited",
        (_, None, None) => "no flow",
        (_, None, Some(admitted)) => match admitted.rule {
            RULE_OWN_NODE => "this node's own",
            RULE_LOOPBACK => "a pod itself",
            rule @ RULE_FIRST_DYNAMIC.. => by(rule, true),
            _ => "a built-in rule allows",
        },
    }
}
