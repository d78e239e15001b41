//! What happens to a flow and why, in the messages' own types.

use crate::{
    Compiled, LocalPod, Objects,
    atom::Atom,
    compile::{self, Policy, Rule, TIERS, Verdict},
    evaluate::Decision,
};
use bulkhead_api::messages::{ExplainedDecision, ExplainedEnd, Explanation, RuleInfo, TierDecision};
use bulkhead_ebpf_abi::{
    Addr, DIR_EGRESS, DIR_INGRESS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, RULE_NONE,
};
use std::net::IpAddr;

/// A flow as it is asked about; the port is the responder's, or the ICMP type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub from: IpAddr,
    pub to: IpAddr,
    pub proto: u8,
    pub port: u16,
}

/// Both ends' decisions. An end decides only if it is a pod: one of `local` (of this node, all of them), a stray, or an address in a
/// partition's range (the default partition's included), whether or not the source tells of a pod there. Of a pod elsewhere its own node decides:
/// to that one, the nodes that the tables know stand in other places. The generation (0 here), connections and bandwidth are
/// the daemon's to fill in.
///
/// `objects` are those that `compiled` was made of. None: `compiled` lacks the policy of an end, so compile with
/// [`judged`] first.
pub fn explain(
    compiled: &Compiled,
    objects: &Objects,
    local: &[LocalPod],
    flow: Flow,
) -> Option<Explanation> {
    let ends = [flow.from, flow.to].map(|address| End::of(compiled, objects, local, address));
    let mut decisions = Vec::new();
    // A pod's packets to itself never leave it.
    if flow.from != flow.to {
        for (at, dir) in [(0, DIR_EGRESS), (1, DIR_INGRESS)] {
            if ends[at].pod.is_some() {
                decisions.push(decide(compiled, objects, &ends[at], &ends[1 - at].shown, dir, flow)?);
            }
        }
    }
    let [from, to] = ends.map(|end| end.shown);
    Some(Explanation {
        allowed: decisions.iter().all(|d| d.allowed || d.audit),
        generation: 0,
        from,
        to,
        protocol: protocol_name(flow.proto),
        port: flow.port,
        decisions,
        service: None,
        otherwise: Vec::new(),
        connections: Vec::new(),
        connections_found: 0,
    })
}

/// The pods at these addresses: whose policies an explanation needs.
pub fn judged(objects: &Objects, local: &[LocalPod], addresses: &[IpAddr]) -> Vec<LocalPod> {
    addresses.iter().filter_map(|a| pod_at(objects, local, *a)).collect()
}

/// Of an address in a partition's range that no source tells of, a pod without a name.
fn pod_at(objects: &Objects, local: &[LocalPod], address: IpAddr) -> Option<LocalPod> {
    if let Some(pod) = local.iter().find(|p| p.addresses.contains(&address)) {
        return Some(pod.clone());
    }
    let partition = objects.partition_of_address(address)?.to_string();
    let mut known = objects.pods.iter().filter(|(_, p)| !p.host_network && p.addresses.contains(&address));
    let of_stray = objects.pod_of_stray(Addr::from_ip(address));
    let key = of_stray.or_else(|| known.next().map(|(key, _)| key.as_str()));
    let (namespace, name) = key.and_then(|key| key.split_once('/')).unwrap_or_default();
    Some(LocalPod { namespace: namespace.into(), name: name.into(), partition, addresses: vec![address] })
}

struct End {
    shown: ExplainedEnd,
    pod: Option<LocalPod>,
    /// Of this node.
    is_local: bool,
}

impl End {
    fn of(compiled: &Compiled, objects: &Objects, local: &[LocalPod], address: IpAddr) -> Self {
        let pod = pod_at(objects, local, address);
        let is_local = pod.as_ref().is_some_and(|p| local.contains(p));
        let of_local = pod.as_ref().filter(|_| is_local).and_then(|p| compiled.place(objects, p));
        let identity = match of_local {
            Some(placement) => compiled.pod_identity(&placement, address),
            None => compiled.identity(address).id,
        };
        let shown = ExplainedEnd {
            address,
            pod: pod.as_ref().filter(|p| !p.name.is_empty()).map(LocalPod::key),
            partition: pod.as_ref().map(|p| p.partition.clone()),
            known_as: compiled.known_as(identity),
            identity,
            bandwidth: None,
        };
        Self { shown, pod, is_local }
    }
}

fn decide(
    compiled: &Compiled,
    objects: &Objects,
    end: &End,
    peer: &ExplainedEnd,
    dir: u32,
    flow: Flow,
) -> Option<ExplainedDecision> {
    let pod = end.pod.as_ref()?;
    let policy = compiled.policy_of(objects, pod)?;
    let list = compiled.lists.get(&(policy, dir))?;
    let known = compiled.meaning(peer.identity);
    let seen = if end.is_local { None } else { elsewhere(objects, pod, peer.address, known) };
    let decision = match &seen {
        None => compiled.evaluate(policy, dir, peer.identity, flow.proto, flow.port),
        Some(atoms) => by_rules(list, atoms, flow),
    };
    Some(ExplainedDecision {
        direction: if dir == DIR_EGRESS { "egress" } else { "ingress" }.into(),
        partition: pod.partition.clone(),
        allowed: decision.allowed,
        audit: decision.audit,
        rule: rule_info(compiled, decision.rule),
        tiers: tiers(compiled, list, seen.as_deref().unwrap_or(known), flow),
    })
}

/// What a node is to the node of a pod elsewhere; None: the same as here.
fn elsewhere(objects: &Objects, pod: &LocalPod, peer: IpAddr, known: &[Atom]) -> Option<Vec<Atom>> {
    if !known.contains(&Atom::Node) {
        return None;
    }
    let node = objects.pod(&pod.key()).and_then(|told| objects.nodes.get(told.node.as_deref()?));
    let is_own = node.is_some_and(|node| node.addresses.contains(&peer));
    if is_own == known.contains(&Atom::LocalNode) {
        return None;
    }
    let others = known.iter().filter(|atom| **atom != Atom::LocalNode).cloned();
    Some(others.chain(is_own.then_some(Atom::LocalNode)).collect())
}

fn by_rules(list: &Policy, atoms: &[Atom], flow: Flow) -> Decision {
    Decision::of(list, &compile::cell(list.audit(), &list.firsts(atoms, flow.proto, flow.port)))
}

/// What each tier that has rules says by itself.
fn tiers(compiled: &Compiled, list: &Policy, atoms: &[Atom], flow: Flow) -> Vec<TierDecision> {
    let firsts = list.firsts(atoms, flow.proto, flow.port);
    let has_rules = |tier| list.rules.iter().any(|r| r.tier == tier);
    let told = TIERS.into_iter().zip(firsts).filter(|(tier, _)| has_rules(*tier));
    told.map(|(tier, first)| TierDecision {
        tier: tier.name().into(),
        verdict: first.map_or("none", verdict).into(),
        rule: first.map(|rule| rule_info(compiled, rule.number)),
    })
    .collect()
}

fn verdict(rule: &Rule) -> &'static str {
    match rule.verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Pass => "pass",
    }
}

fn rule_info(compiled: &Compiled, number: u32) -> RuleInfo {
    let entry = compiled.rules.get(number).or_else(|| compiled.rules.get(RULE_NONE));
    RuleInfo {
        number,
        name: entry.map(|e| e.name.clone()).unwrap_or_default(),
        file: entry.and_then(|e| e.file.clone()),
    }
}

fn protocol_name(proto: u8) -> String {
    match proto {
        PROTO_TCP => "tcp".into(),
        PROTO_UDP => "udp".into(),
        PROTO_SCTP => "sctp".into(),
        PROTO_ICMP => "icmp".into(),
        PROTO_ICMPV6 => "icmpv6".into(),
        other => other.to_string(),
    }
}
