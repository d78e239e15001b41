//! ClusterNetworkPolicy v1alpha2: whom a policy has for its subject, and its rules of one direction.

use super::{
    network_policy::{PortNames, as_range},
    rules::{PortRange, Rule, Verdict},
    selection::{PodSelector, Scope, Selections, all_nodes, node_atom},
    tiers::Tier,
};
use crate::{
    Objects,
    atom::{Atom, NamedPort},
};
use bulkhead_api::objects::{
    ClusterEgressRule, ClusterIngressRule, ClusterNetworkPolicySpec, ClusterPolicyAction, ClusterPolicyPeer,
    ClusterPolicyPorts, ClusterPolicyProtocol, ClusterPolicyTier, IpBlockPeer, LabelSelector, Labels,
    NamespacedPods,
};
use bulkhead_ebpf_abi::{DIR_EGRESS, SLOT_SCTP, SLOT_TCP, SLOT_UDP};
use std::collections::BTreeSet;

/// Names of the policies that have a pod for their subject, in the order of decision within a tier.
pub(crate) fn selecting(objects: &Objects, namespace: &str, labels: &Labels) -> Vec<String> {
    let is_subject = |spec: &ClusterNetworkPolicySpec| {
        let selector = selector(spec.subject.namespaces.as_ref(), spec.subject.pods.as_ref());
        selector.is_some_and(|s| s.matches(objects, namespace, labels))
    };
    let found = objects.cluster_network_policies.iter().filter(|(_, p)| is_subject(&p.spec));
    let mut found: Vec<_> = found.map(|(name, p)| (p.spec.priority, name.clone())).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, name)| name).collect()
}

pub(crate) fn tier(spec: &ClusterNetworkPolicySpec) -> Tier {
    match spec.tier {
        ClusterPolicyTier::Admin => Tier::Admin,
        ClusterPolicyTier::Baseline => Tier::Baseline,
    }
}

/// None: neither is set; nobody is meant.
fn selector(namespaces: Option<&LabelSelector>, pods: Option<&NamespacedPods>) -> Option<PodSelector> {
    let (scope, labels) = match (namespaces, pods) {
        (Some(namespaces), _) => (namespaces, LabelSelector::default()),
        (None, Some(pods)) => (&pods.namespace_selector, pods.pod_selector.clone()),
        (None, None) => return None,
    };
    Some(PodSelector { scope: Scope::Namespaces(scope.clone()), labels })
}

/// One rule of a direction.
pub(crate) struct Written<'a> {
    name: Option<&'a str>,
    action: ClusterPolicyAction,
    peers: &'a [ClusterPolicyPeer],
    protocols: &'a [ClusterPolicyProtocol],
}

fn written(spec: &ClusterNetworkPolicySpec, dir: u32) -> Vec<Written<'_>> {
    fn of_egress(rule: &ClusterEgressRule) -> Written<'_> {
        let ClusterEgressRule { name, action, to, protocols } = rule;
        Written { name: name.as_deref(), action: *action, peers: to, protocols }
    }
    fn of_ingress(rule: &ClusterIngressRule) -> Written<'_> {
        let ClusterIngressRule { name, action, from, protocols } = rule;
        Written { name: name.as_deref(), action: *action, peers: from, protocols }
    }
    match dir {
        DIR_EGRESS => spec.egress.iter().map(of_egress).collect(),
        _ => spec.ingress.iter().map(of_ingress).collect(),
    }
}

/// Names of ports that its ingress rules resolve on their subject.
pub(crate) fn subject_port_names(spec: &ClusterNetworkPolicySpec) -> BTreeSet<&str> {
    spec.ingress.iter().flat_map(|r| &r.protocols).filter_map(name).collect()
}

fn name(protocol: &ClusterPolicyProtocol) -> Option<&str> {
    protocol.destination_named_port.as_deref()
}

/// What it asks of its peers: selectors, names of their ports, networks.
pub(crate) fn ask(spec: &ClusterNetworkPolicySpec, asked: &mut Selections, blocks: &mut BTreeSet<Atom>) {
    let peers = spec.ingress.iter().flat_map(|r| &r.from).chain(spec.egress.iter().flat_map(|r| &r.to));
    for peer in peers {
        if let Some(selector) = selector(peer.namespaces.as_ref(), peer.pods.as_ref()) {
            asked.ask(selector);
        }
        if let Some(nodes) = peer.nodes.as_ref().filter(|s| !all_nodes(s)) {
            asked.ask_nodes(nodes.clone());
        }
        blocks.extend(networks(peer));
    }
    spec.egress.iter().flat_map(|r| &r.protocols).filter_map(name).for_each(|name| asked.ask_port(name));
}

fn networks(peer: &ClusterPolicyPeer) -> impl Iterator<Item = Atom> {
    let cidrs = peer.networks.iter().flatten().filter_map(|text| text.parse().ok());
    cidrs.map(|cidr| Atom::block(&IpBlockPeer { cidr, except: Vec::new() }))
}

fn atoms(peer: &ClusterPolicyPeer) -> Vec<Atom> {
    let pods = selector(peer.namespaces.as_ref(), peer.pods.as_ref()).map(|s| s.atom());
    pods.into_iter().chain(peer.nodes.as_ref().map(node_atom)).chain(networks(peer)).collect()
}

/// The rules of one direction in the order written.
pub(crate) fn rules(
    spec: &ClusterNetworkPolicySpec,
    dir: u32,
    ports: &PortNames<'_>,
    mut number: impl FnMut(usize, Option<&str>) -> Option<u32>,
) -> Option<Vec<Rule>> {
    let mut rules = Vec::new();
    for (i, Written { name: own, action, peers, protocols }) in written(spec, dir).into_iter().enumerate() {
        let number = number(i, own)?;
        let verdict = match action {
            ClusterPolicyAction::Accept => Verdict::Allow,
            ClusterPolicyAction::Deny => Verdict::Deny,
            ClusterPolicyAction::Pass => Verdict::Pass,
        };
        let peers: Vec<Atom> = peers.iter().flat_map(atoms).collect();
        let rule = |requires, ports| Rule {
            number,
            ports,
            ..Rule::of(tier(spec), verdict, Some(peers.clone()), requires)
        };
        if protocols.is_empty() {
            rules.push(rule(None, None));
            continue;
        }
        let mut numbered: Vec<PortRange> = protocols.iter().filter_map(range).collect();
        for name in protocols.iter().filter_map(name) {
            let stands_for = |p: &&NamedPort| p.name == name;
            if dir == DIR_EGRESS {
                let values = ports.peers.iter().filter(stands_for);
                rules.extend(values.map(|p| rule(Some(Atom::NamedPort(p.clone())), Some(vec![as_range(p)]))));
            } else {
                numbered.extend(ports.subject.iter().filter(stands_for).map(as_range));
            }
        }
        if !numbered.is_empty() {
            rules.push(rule(None, Some(numbered)));
        }
    }
    Some(rules)
}

fn range(protocol: &ClusterPolicyProtocol) -> Option<PortRange> {
    let ClusterPolicyProtocol { tcp, udp, sctp, destination_named_port: _ } = protocol;
    let slots = [(SLOT_TCP, tcp), (SLOT_UDP, udp), (SLOT_SCTP, sctp)];
    let (slot, ClusterPolicyPorts { destination_port }) =
        slots.into_iter().find_map(|(slot, ports)| Some((slot, ports.as_ref()?)))?;
    let (first, last) = match destination_port {
        None => (0, u16::MAX),
        Some(port) => match (port.number, &port.range) {
            (Some(number), _) => (u16::try_from(number).ok()?, u16::try_from(number).ok()?),
            (None, Some(range)) => (u16::try_from(range.start).ok()?, u16::try_from(range.end).ok()?),
            (None, None) => return None,
        },
    };
    (first <= last).then_some(PortRange { slot, first, last })
}
