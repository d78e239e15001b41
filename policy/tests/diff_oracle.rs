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
    Compiled, Interner, LocalPod, Objects,
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
use std::{cell::Cell, net::IpAddr};

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
        after.network_groups.clone_from(&other.network_groups);
    }
    if step.rest {
        after.nodes.clone_from(&other.nodes);
        after.cluster_dns.clone_from(&other.cluster_dns);
    }
    after
}

struct Generation<'a> {
    objects: &'a Objects,
    compiled: Compiled,
    pods: Vec<LocalPod>,
}

impl<'a> Generation<'a> {
    fn of(objects: &'a Objects, addresses: &[IpAddr]) -> Self {
        let pods = judged(objects, &[], addresses);
        Self { objects, compiled: compiled_for(objects, &pods), pods }
    }

    /// By the tables, which the second opinion confirms.
    fn allows(&self, from: IpAddr, to: IpAddr, probe: &Probe) -> Result<bool, TestCaseError> {
        let mut allowed = true;
        for (end, peer, dir) in [(from, to, DIR_EGRESS), (to, from, DIR_INGRESS)] {
            let Some(pod) = self.pods.iter().find(|p| p.addresses.contains(&end)) else { continue };
            let policy = self.compiled.place(self.objects, pod).unwrap().policy;
            let identity = self.compiled.identity(peer).id;
            let passes = self.compiled.evaluate(policy, dir, identity, probe.proto, probe.port).passes();
            let packet = Packet { peer, proto: probe.proto, port: probe.port };
            let told = opinion(self.objects, pod, dir, &packet);
            prop_assert_eq!(passes, told.allowed || told.audit);
            allowed &= passes;
        }
        Ok(allowed || from == to)
    }
}

#[test]
fn the_diff_speaks_of_a_packet_if_and_only_if_its_verdict_turns() {
    let (turned, same) = (Cell::new(0), Cell::new(0));
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
            let addresses: Vec<IpAddr> = probes.iter().flat_map(ends).collect();
            let old = Generation::of(&before, &addresses);
            let new = Generation::of(&after, &addresses);
            let mut interner = Interner::default();
            let [was, is] = [&before, &after].map(|o| Side::of(o, &mut interner, NODE, &[]).unwrap());
            let diff = Diff::of(&was, &is);
            for change in &diff.changes {
                let e = change.example;
                let verdicts = [&was, &is].map(|s| s.verdict(e.from, e.to, e.protocol, e.port).allowed);
                prop_assert_eq!(verdicts, [!change.allows, change.allows], "{:?}", change);
                prop_assert!(!change.from.is_empty() && !change.to.is_empty(), "{:?}", change);
            }
            for probe in &probes {
                let ([from, to], packet) = (ends(probe), &probe.0);
                // ICMP is IPv4's, ICMPv6 is IPv6's, and both have no type beyond 255.
                let other_icmp = if from.is_ipv4() { PROTO_ICMPV6 } else { PROTO_ICMP };
                let no_type = matches!(packet.proto, PROTO_ICMP | PROTO_ICMPV6) && packet.port > 255;
                if from.is_ipv4() != to.is_ipv4() || packet.proto == other_icmp || no_type {
                    continue;
                }
                let verdicts = (old.allows(from, to, packet)?, new.allows(from, to, packet)?);
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
}
