//! The diff against verdicts: it speaks of a packet if and only if the change turns what happens to it, by the tables of
//! both generations and by the second opinion.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

#[path = "oracle/cases.rs"]
mod cases;
mod common;
#[path = "oracle/opinion.rs"]
mod opinion;

use bulkhead_ebpf_abi::{DIR_EGRESS, DIR_INGRESS, PROTO_ICMP, PROTO_ICMPV6};
use bulkhead_policy::{
    Compiled, Interner, Local, LocalPod, Objects, Pod, compile,
    diff::{Diff, Side},
    judged,
};
use cases::{Probe, any_objects, any_probe};
use common::*;
use opinion::{Packet, opinion};
use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestRunner},
};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

#[derive(Clone, Debug)]
struct Step {
    policies: bool,
    partitions: bool,
    pods: bool,
    rest: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    any::<[bool; 4]>().prop_map(|[policies, partitions, pods, rest]| Step {
        policies,
        partitions,
        pods,
        rest,
    })
}

/// Of the cluster before, some kinds of objects as another has them; partitions of one name with their own ranges.
fn changed(before: &Objects, other: &Objects, step: &Step) -> Objects {
    let mut after = before.clone();
    if step.policies {
        after.network_policies.clone_from(&other.network_policies);
        after.cluster_network_policies.clone_from(&other.cluster_network_policies);
    }
    if step.pods {
        after.pods.clone_from(&other.pods);
        after.namespaces.clone_from(&other.namespaces);
    }
    // Rules of partitions name one another and groups.
    if step.partitions {
        after.partitions.clone_from(&other.partitions);
        after.strays.clone_from(&other.strays);
        after.network_groups.clone_from(&other.network_groups);
    }
    if step.rest {
        after.nodes.clone_from(&other.nodes);
        after.api_servers.clone_from(&other.api_servers);
        after.cluster_dns.clone_from(&other.cluster_dns);
        after.cluster_dns_ports.clone_from(&other.cluster_dns_ports);
    }
    after
}

/// The pods that stand at the addresses in question, each with the tables of its own node.
struct Generation<'a> {
    objects: &'a Objects,
    nodes: BTreeMap<String, Compiled>,
    pods: Vec<LocalPod>,
}

impl<'a> Generation<'a> {
    fn of(objects: &'a Objects, addresses: &[IpAddr]) -> Self {
        let pods = judged(objects, &[], addresses);
        let names: BTreeSet<String> = pods.iter().map(|pod| node_of(objects, pod)).collect();
        let compiled = |node: &String| {
            let local = Local { node, pods: &pods, ..HERE };
            compile(objects, &mut Interner::default(), &local).unwrap()
        };
        let nodes = names.iter().map(|node| (node.clone(), compiled(node))).collect();
        Self { objects, nodes, pods }
    }

    /// By the tables, which the second opinion confirms.
    fn allows(&self, from: IpAddr, to: IpAddr, probe: &Probe) -> Result<bool, TestCaseError> {
        let mut allowed = true;
        for (end, peer, dir) in [(from, to, DIR_EGRESS), (to, from, DIR_INGRESS)] {
            let Some(pod) = self.pods.iter().find(|p| p.addresses.contains(&end)) else { continue };
            let node = node_of(self.objects, pod);
            let compiled = &self.nodes[&node];
            let policy = compiled.place(self.objects, pod).unwrap().policy;
            let identity = compiled.identity(peer).id;
            let passes = compiled.evaluate(policy, dir, identity, probe.proto, probe.port).passes();
            let packet = Packet { peer, proto: probe.proto, port: probe.port };
            let told = opinion(self.objects, &node, pod, dir, &packet);
            prop_assert_eq!(passes, told.allowed || told.audit);
            allowed &= passes;
        }
        Ok(allowed || from == to)
    }

    /// Whether a node speaks to a pod that is told to be its own.
    fn is_own(&self, from: IpAddr, to: IpAddr) -> bool {
        let pod = self.pods.iter().find(|p| p.addresses.contains(&to));
        let node = pod.and_then(|pod| self.objects.nodes.get(&node_of(self.objects, pod)));
        node.is_some_and(|node| node.addresses.contains(&from))
    }
}

/// Some flows of nodes to pods that are told to be on them.
fn own_pods(objects: &Objects) -> Vec<[IpAddr; 2]> {
    let of_node = |pod: &Arc<Pod>| objects.nodes.get(pod.node.as_deref()?).cloned();
    let pairs = objects.pods.values().filter_map(|pod| Some((pod, of_node(pod)?))).flat_map(|(pod, node)| {
        let to_all = |from: &IpAddr| pod.addresses.iter().map(|to| [*from, *to]).collect::<Vec<_>>();
        node.addresses.iter().flat_map(to_all).collect::<Vec<_>>()
    });
    pairs.take(6).collect()
}

/// Empty: nobody tells.
fn node_of(objects: &Objects, pod: &LocalPod) -> String {
    objects.pod(&pod.key()).and_then(|p| p.node.clone()).unwrap_or_default().into()
}

#[test]
fn the_diff_speaks_of_a_packet_if_and_only_if_its_verdict_turns() {
    let [turned, same, of_own_node, moved] = [0, 0, 0, 0].map(Cell::new);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 300,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    });
    let probes = prop::collection::vec((any_probe(), any_probe()), 60);
    let outcome =
        runner.run(&(any_objects(), any_objects(), any_step(), probes), |(before, other, step, probes)| {
            let after = changed(&before, &other, &step);
            let ends = |(to, from): &(Probe, Probe)| [from.peer(&before), to.peer(&after)];
            let own = own_pods(&before).into_iter().zip(&probes).map(|(ends, (packet, _))| (ends, packet));
            let flows: Vec<_> = probes.iter().map(|pair| (ends(pair), &pair.0)).chain(own).collect();
            let addresses: Vec<IpAddr> = flows.iter().flat_map(|(ends, _)| *ends).collect();
            let old = Generation::of(&before, &addresses);
            let new = Generation::of(&after, &addresses);
            let mut interner = Interner::default();
            let [was, is] = [&before, &after].map(|o| Side::of(o, &mut interner, "", &[]).unwrap());
            let diff = Diff::of(&was, &is);
            for change in &diff.changes {
                let e = change.example;
                let verdicts = [&was, &is].map(|s| s.verdict(e.from, e.to, e.protocol, e.port).allowed);
                prop_assert_eq!(verdicts, [!change.allows, change.allows], "{:?}", change);
                prop_assert!(!change.from.is_empty() && !change.to.is_empty(), "{:?}", change);
            }
            for ([from, to], packet) in flows {
                // ICMP is IPv4's, ICMPv6 is IPv6's, and both have no type beyond 255.
                let other_icmp = if from.is_ipv4() { PROTO_ICMPV6 } else { PROTO_ICMP };
                let no_type = matches!(packet.proto, PROTO_ICMP | PROTO_ICMPV6) && packet.port > 255;
                if from.is_ipv4() != to.is_ipv4() || packet.proto == other_icmp || no_type {
                    continue;
                }
                let own = [&old, &new].map(|side| side.is_own(from, to));
                let verdicts =
                    (own[0] || old.allows(from, to, packet)?, own[1] || new.allows(from, to, packet)?);
                match own {
                    [true, true] => of_own_node.set(of_own_node.get() + 1),
                    [false, false] => {}
                    // A pod that came to the node, or left it.
                    _ if verdicts.0 != verdicts.1 => moved.set(moved.get() + 1),
                    _ => {}
                }
                let spoken = diff.find(from, to, packet.proto, packet.port).map(|n| diff.changes[n].allows);
                let expected = (verdicts.0 != verdicts.1).then_some(verdicts.1);
                prop_assert_eq!(spoken, expected, "{} -> {} {:?}", from, to, packet);
                let count = if expected.is_some() { &turned } else { &same };
                count.set(count.get() + 1);
            }
            Ok(())
        });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    assert!(turned.get() > 1_000 && same.get() > 1_000, "{} turned, {} the same", turned.get(), same.get());
    assert!(of_own_node.get() > 5, "{} of a node to its own pods", of_own_node.get());
    assert!(moved.get() > 5, "{} to pods that came to their node or left it", moved.get());
}
