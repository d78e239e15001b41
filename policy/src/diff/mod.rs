//! What a change newly allows and newly denies, read off both generations' tables.
//!
//! ```text
//! prefixes of both ─▶ subjects: sets of addresses that neither generation tells apart, one address for each
//! subjects × subjects × protocols ─▶ ranges of ports ─▶ allowed before / allowed after ─▶ changes
//! ```
//! Exact, and not a guess from the objects' text: two rules may cancel out, and one edit may reach far.

mod ports;
mod subjects;

use crate::{Compiled, Objects, evaluate::Decision};
use bulkhead_api::messages::{ExampleFlow, PolicyChange, RuleInfo};
use bulkhead_ebpf_abi::{DIR_EGRESS, DIR_INGRESS, PORT_SLOTS};
use ports::Boundaries;
use std::{collections::BTreeMap, net::IpAddr};
use subjects::Subject;

/// One generation: objects and what they compile to.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub objects: &'a Objects,
    pub compiled: &'a Compiled,
}

/// What happens to a flow, and the rule that decides: the first end's that refuses, else the last's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowVerdict {
    pub allowed: bool,
    /// An end that admits it keeps its connections over changes (`established: Keep`).
    pub keep: bool,
    pub rule: u32,
}

impl Side<'_> {
    /// Only ends that are pods decide.
    pub fn verdict(&self, from: IpAddr, to: IpAddr, proto: u8, port: u16) -> FlowVerdict {
        let ends = [(from, to, DIR_EGRESS), (to, from, DIR_INGRESS)];
        let mut verdict = FlowVerdict { allowed: true, keep: false, rule: bulkhead_ebpf_abi::RULE_OPEN };
        for (end, peer, dir) in ends {
            let Some(decision) = self.decide(end, peer, dir, proto, port) else { continue };
            verdict = FlowVerdict {
                allowed: decision.passes(),
                keep: verdict.keep || decision.keep,
                rule: decision.rule,
            };
            if !verdict.allowed {
                break;
            }
        }
        verdict
    }

    /// Whether one end alone admits it: the initiator's egress, or the responder's ingress. An end outside does.
    pub fn admits(&self, dir: u32, from: IpAddr, to: IpAddr, proto: u8, port: u16) -> bool {
        let (end, peer) = if dir == DIR_EGRESS { (from, to) } else { (to, from) };
        self.decide(end, peer, dir, proto, port).is_none_or(Decision::passes)
    }

    fn decide(&self, end: IpAddr, peer: IpAddr, dir: u32, proto: u8, port: u16) -> Option<Decision> {
        let policy = self.policy(end)?;
        Some(self.compiled.evaluate(policy, dir, self.compiled.identity(peer).id, proto, port))
    }

    fn policy(&self, address: IpAddr) -> Option<u32> {
        let partition = self.objects.partition_of_address(address)?;
        self.compiled.policies.get(partition).copied()
    }

    /// Rule as messages name it.
    pub fn rule(&self, number: u32) -> RuleInfo {
        let entry = self.compiled.rules.get(number);
        RuleInfo {
            number,
            name: entry.map_or_else(|| format!("rule {number}"), |e| e.name.clone()),
            file: entry.and_then(|e| e.file.clone()),
        }
    }
}

/// Every (who, to whom, protocol, ports) whose verdict the change turns; `cut_connections` is left 0.
pub fn diff(before: Side<'_>, after: Side<'_>) -> Vec<PolicyChange> {
    let subjects = subjects::subjects(before, after);
    let mut boundaries = Boundaries::default();
    let mut changes = Changes::default();
    for from in &subjects {
        for to in subjects.iter().filter(|to| from.address.is_ipv4() == to.address.is_ipv4()) {
            // Two ends outside: not ours to decide.
            if !(from.decides || to.decides) {
                continue;
            }
            pair(before, after, from, to, &mut boundaries, &mut changes);
        }
    }
    changes.into_list()
}

/// Whether a flow is one of those that a change speaks of.
pub fn speaks_of(
    change: &PolicyChange,
    before: Side<'_>,
    after: Side<'_>,
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    port: u16,
) -> bool {
    change.from == subjects::name_of(before, after, from)
        && change.to == subjects::name_of(before, after, to)
        && ports::holds(change, proto, port)
}

fn pair(
    before: Side<'_>,
    after: Side<'_>,
    from: &Subject,
    to: &Subject,
    boundaries: &mut Boundaries,
    changes: &mut Changes,
) {
    let mut turned = Vec::new();
    for slot in (0..PORT_SLOTS).filter(|slot| ports::speaks(*slot, from.address)) {
        for range in boundaries.of(&[before, after], from.address, to.address, slot) {
            let (proto, port) = ports::example(slot, range.0);
            let [old, new] = [before, after].map(|side| side.verdict(from.address, to.address, proto, port));
            if old.allowed != new.allowed {
                turned.push((slot, range, old, new));
            }
        }
    }
    for (slot, range, old, new) in ports::join(turned) {
        let (proto, port) = ports::example(slot, range.0);
        changes.add(PolicyChange {
            allows: new.allowed,
            from: from.name.clone(),
            to: to.name.clone(),
            protocol: ports::protocol(slot, range),
            ports: ports::text(slot, range),
            example: ExampleFlow { from: from.address, to: to.address, protocol: proto, port },
            before: before.rule(old.rule),
            after: after.rule(new.rule),
            cut_connections: 0,
        });
    }
}

/// Changes in order, those of the two IP versions in one.
#[derive(Default)]
struct Changes {
    list: Vec<PolicyChange>,
    seen: BTreeMap<(bool, String, String, String, String), usize>,
}

impl Changes {
    fn add(&mut self, change: PolicyChange) {
        let c = &change;
        let protocol = c.protocol.trim_end_matches("v6").to_string();
        let key = (c.allows, c.from.clone(), c.to.clone(), protocol, c.ports.clone());
        if self.seen.insert(key, self.list.len()).is_none() {
            self.list.push(change);
        }
    }

    fn into_list(self) -> Vec<PolicyChange> {
        self.list
    }
}
