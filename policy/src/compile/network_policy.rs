//! Kubernetes NetworkPolicy v1: whom a policy selects, and its rules of one direction.

use super::{
    rules::{PortRange, Rule, Verdict},
    selection::{PodSelector, Scope, Selections},
    tiers::Tier,
};
use crate::{
    Objects,
    atom::{Atom, NamedPort},
    selector,
};
use bulkhead_api::objects::{
    IpBlockPeer, LabelSelector, Labels, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule,
    NetworkPolicySpec, NumberOrName, PolicyIpBlock,
};
use bulkhead_ebpf_abi::{DIR_EGRESS, DIR_INGRESS, SLOT_SCTP, SLOT_TCP, SLOT_UDP};
use std::collections::BTreeSet;

/// Keys (`namespace/name`) of the policies that select a pod.
pub(crate) fn selecting(objects: &Objects, namespace: &str, labels: &Labels) -> Vec<String> {
    Objects::within(&objects.network_policies, namespace)
        .filter(|(_, policy)| selector::matches(&policy.spec.pod_selector, labels))
        .map(|(key, _)| key.to_string())
        .collect()
}

/// Whether pods selected by it take only what rules allow. Without types: ingress always, egress if there are rules.
pub(crate) fn isolates(spec: &NetworkPolicySpec, dir: u32) -> bool {
    match &*spec.policy_types {
        [] => dir == DIR_INGRESS || !spec.egress.is_empty(),
        types => types.iter().any(|t| **t == *if dir == DIR_EGRESS { "Egress" } else { "Ingress" }),
    }
}

fn written(spec: &NetworkPolicySpec, dir: u32) -> &[NetworkPolicyRule] {
    if dir == DIR_EGRESS { &spec.egress } else { &spec.ingress }
}

/// Names of ports that its ingress rules resolve on the pod they select.
pub(crate) fn subject_port_names(spec: &NetworkPolicySpec) -> BTreeSet<&str> {
    if !isolates(spec, DIR_INGRESS) {
        return BTreeSet::new();
    }
    written(spec, DIR_INGRESS).iter().flat_map(|rule| &rule.ports).filter_map(name).collect()
}

fn name(port: &NetworkPolicyPort) -> Option<&str> {
    match &port.port {
        Some(NumberOrName::Name(name)) => Some(name),
        _ => None,
    }
}

/// What it asks of its peers: selectors, names of their ports, blocks.
pub(crate) fn ask(
    namespace: &str,
    spec: &NetworkPolicySpec,
    selections: &mut Selections,
    blocks: &mut BTreeSet<Atom>,
) {
    for dir in [DIR_EGRESS, DIR_INGRESS].into_iter().filter(|dir| isolates(spec, *dir)) {
        for NetworkPolicyRule { peers, ports } in written(spec, dir) {
            for peer in peers {
                match peer_of(namespace, peer) {
                    Some(Peer::Pods(selector)) => selections.ask(selector),
                    Some(Peer::Block(block)) => drop(blocks.insert(block)),
                    None => {}
                }
            }
            if dir == DIR_EGRESS {
                ports.iter().filter_map(name).for_each(|name| selections.ask_port(name));
            }
        }
    }
}

enum Peer {
    Pods(PodSelector),
    Block(Atom),
}

/// None: a peer that upstream would refuse; it matches nobody.
fn peer_of(namespace: &str, peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        return block_of(block).map(Peer::Block);
    }
    let scope = match &peer.namespace_selector {
        Some(selector) => Scope::Namespaces(LabelSelector::clone(selector)),
        None => Scope::Namespace(namespace.into()),
    };
    if peer.namespace_selector.is_none() && peer.pod_selector.is_none() {
        return None;
    }
    Some(Peer::Pods(PodSelector { scope, labels: peer.pod_selector.as_deref().cloned().unwrap_or_default() }))
}

fn block_of(block: &PolicyIpBlock) -> Option<Atom> {
    let except = block.except.iter().map(|e| e.parse().ok()).collect::<Option<Vec<_>>>()?;
    Some(Atom::block(&IpBlockPeer { cidr: block.cidr.parse().ok()?, except }))
}

/// What names of ports stand for: on the pod itself for ingress, on its peers for egress.
pub(crate) struct PortNames<'a> {
    pub subject: &'a [NamedPort],
    pub peers: &'a BTreeSet<NamedPort>,
}

/// The rules of one direction, all of one number each; the policy isolates in it.
pub(crate) fn rules(
    namespace: &str,
    spec: &NetworkPolicySpec,
    dir: u32,
    ports: &PortNames<'_>,
    mut number: impl FnMut(usize) -> Option<u32>,
) -> Option<Vec<Rule>> {
    let mut rules = Vec::new();
    for (i, rule) in written(spec, dir).iter().enumerate() {
        let NetworkPolicyRule { peers: written_peers, ports: written_ports } = rule;
        let number = number(i)?;
        let peers = (!written_peers.is_empty()).then(|| {
            let atoms = written_peers.iter().filter_map(|p| peer_of(namespace, p));
            atoms.map(|p| match p {
                Peer::Pods(selector) => selector.atom(),
                Peer::Block(block) => block,
            })
        });
        let peers: Option<Vec<Atom>> = peers.map(Iterator::collect);
        let rule = |requires, ports| Rule {
            number,
            ports,
            ..Rule::of(Tier::NetworkPolicy, Verdict::Allow, peers.clone(), requires)
        };
        if written_ports.is_empty() {
            rules.push(rule(None, None));
            continue;
        }
        let mut numbered: Vec<PortRange> = written_ports.iter().filter_map(range).collect();
        let named = written_ports.iter().filter_map(|p| Some((name(p)?, slot(p))));
        for (name, slot) in named {
            let stands_for = |p: &&NamedPort| p.name == name && p.slot == slot;
            if dir == DIR_INGRESS {
                numbered.extend(ports.subject.iter().filter(stands_for).map(as_range));
            } else {
                let values = ports.peers.iter().filter(stands_for);
                rules.extend(values.map(|p| rule(Some(Atom::NamedPort(p.clone())), Some(vec![as_range(p)]))));
            }
        }
        if !numbered.is_empty() {
            rules.push(rule(None, Some(numbered)));
        }
    }
    Some(rules)
}

pub(crate) fn as_range(port: &NamedPort) -> PortRange {
    PortRange { slot: port.slot, first: port.port, last: port.port }
}

fn slot(port: &NetworkPolicyPort) -> u32 {
    match port.protocol.as_deref() {
        Some("UDP") => SLOT_UDP,
        Some("SCTP") => SLOT_SCTP,
        _ => SLOT_TCP,
    }
}

fn range(port: &NetworkPolicyPort) -> Option<PortRange> {
    let (first, last) = match &port.port {
        None => (0, u16::MAX),
        Some(NumberOrName::Number(first)) => {
            (u16::try_from(*first).ok()?, u16::try_from(port.end_port.unwrap_or(*first)).ok()?)
        }
        Some(NumberOrName::Name(_)) => return None,
    };
    (first <= last).then_some(PortRange { slot: slot(port), first, last })
}
