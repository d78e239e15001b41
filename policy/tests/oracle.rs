//! The tables against a second opinion, which is written apart: over random clusters, histories and packets both say the
//! same, verdict and rule.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

#[path = "oracle/cases.rs"]
mod cases;
mod common;
#[path = "oracle/opinion.rs"]
mod opinion;

use bulkhead_ebpf_abi::{DIR_EGRESS, DIR_INGRESS, RULE_FIRST_DYNAMIC};
use bulkhead_policy::{Compiled, Decision, Interner, Local, LocalPod, Objects, admit, compile};
use cases::{NAMESPACES, any_objects, any_probe};
use common::*;
use opinion::{Opinion, Packet, opinion, partition_of_namespace};
use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestRunner},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

fn as_opinion(compiled: &Compiled, decision: Decision) -> Opinion {
    let Decision { allowed, audit, keep, rule, last, open } = decision;
    let rule = if rule < RULE_FIRST_DYNAMIC {
        Ok(rule)
    } else {
        Err(compiled.rules.get(rule).unwrap().name.clone())
    };
    Opinion { allowed, keep, audit, open, last, rule }
}

/// Every pod that the source tells of, one that it does not in each namespace, and one of each partition.
fn subjects(objects: &Objects) -> Vec<LocalPod> {
    let told = objects.pods.iter().filter(|(_, p)| !p.host_network).map(|(key, _)| local(objects, key));
    let untold = NAMESPACES.iter().map(|n| local(objects, &format!("{n}/unheard-of")));
    let untold = untold.inspect(|pod| {
        assert_eq!(pod.partition, partition_of_namespace(objects, &pod.namespace), "{objects:?}");
    });
    let of_partitions = objects.partitions.keys().map(|partition| LocalPod {
        namespace: "elsewhere".into(),
        name: "pod".into(),
        partition: partition.clone(),
        addresses: vec![],
    });
    told.chain(untold).chain(of_partitions).collect()
}

/// At an address of its partition's range, a local pod is to its node who it is to all nodes.
fn check_identities(objects: &Objects, compiled: &Compiled, pod: &LocalPod) -> Result<(), TestCaseError> {
    let placement = compiled.place(objects, pod).unwrap();
    for address in &pod.addresses {
        let told_first = objects.pods.iter().find(|(_, p)| !p.host_network && p.addresses.contains(address));
        let of_pod = told_first.is_some_and(|(key, _)| *key == pod.key());
        if of_pod && objects.partition_of_address(*address) == Some(&pod.partition) {
            prop_assert_eq!(compiled.pod_identity(&placement, *address), compiled.identity(*address).id);
        }
    }
    Ok(())
}

#[test]
fn the_tables_decide_as_the_rules_read_and_whatever_was_compiled_before() {
    let decisions = RefCell::new(BTreeMap::<String, usize>::new());
    let mut runner = TestRunner::new(ProptestConfig {
        cases: CASES,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    });
    let input = (any_objects(), any_objects(), prop::collection::vec(any_probe(), 30));
    let outcome = runner.run(&input, |(before, objects, probes)| {
        let refused = admit(&Objects::default(), objects.clone()).1;
        prop_assert_eq!(refused, vec![], "the test makes objects that are refused");
        let mut history = Interner::default();
        let pods = subjects(&before);
        let former = compile(&before, &mut history, &Local { pods: &pods, ..HERE }).unwrap();
        let pods = subjects(&objects);
        let local = Local { pods: &pods, former: Some(&former), ..HERE };
        let with_history = compile(&objects, &mut history, &local).unwrap();
        let tables = [compiled_for(&objects, &pods), with_history];
        // Of this cluster, whichever tables are asked and however often.
        let mut asked = BTreeSet::new();
        for (number, pod) in pods.iter().enumerate() {
            let policies = tables.each_ref().map(|compiled| compiled.place(&objects, pod).unwrap().policy);
            for compiled in &tables {
                check_identities(&objects, compiled, pod)?;
            }
            for (probe, dir) in probes.iter().flat_map(|p| [(p, DIR_EGRESS), (p, DIR_INGRESS)]) {
                let packet = Packet { peer: probe.peer(&objects), proto: probe.proto, port: probe.port };
                if !asked.insert((number, dir, packet.peer, packet.proto, packet.port)) {
                    continue;
                }
                let expected = opinion(&objects, NODE, pod, dir, &packet);
                for (compiled, policy) in tables.iter().zip(policies) {
                    let peer = compiled.identity(packet.peer).id;
                    let decision = compiled.evaluate(policy, dir, peer, packet.proto, packet.port);
                    let found = as_opinion(compiled, decision);
                    prop_assert_eq!(&found, &expected, "{:?} {} {:?}", pod, dir, packet);
                }
                *decisions.borrow_mut().entry(kind(&expected)).or_default() += 1;
            }
        }
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    let decisions = decisions.into_inner();
    let questions: usize = decisions.values().sum();
    println!("{questions} questions in {CASES} clusters: {decisions:?}");
    assert!(questions >= 200_000, "{questions} different questions: {decisions:?}");
    assert_eq!(decisions.len(), KINDS, "every way to decide has been seen: {decisions:?}");
}

/// So many that each `make test` asks 200,000 different questions.
const CASES: u32 = 480;

/// Ways to decide that [`kind`] tells apart.
const KINDS: usize = 15;

fn kind(opinion: &Opinion) -> String {
    let by = match &opinion.rule {
        Ok(built_in) => return format!("built-in {built_in}"),
        Err(name) if name.contains("isolate") => "isolation".to_string(),
        Err(name) => name.split('/').next().unwrap().to_string(),
    };
    format!("{by} allowed: {}, keep: {}", opinion.allowed, opinion.keep)
}
