//! What `explain` says, whole.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::messages::Explanation;
use bulkhead_ebpf_abi::*;
use bulkhead_policy::{Compiled, Flow, Objects, RuleLines, Sourced, group_parts};
use common::*;
use std::{net::IpAddr, sync::Arc};

fn explain(c: &Compiled, objects: &Objects, from: IpAddr, to: IpAddr, proto: u8, port: u16) -> Explanation {
    bulkhead_policy::explain(c, objects, &[], Flow { from, to, proto, port }).unwrap()
}

fn told(objects: &Objects, from: &str, to: &str, proto: u8, port: u16) -> (bool, Vec<String>) {
    let explanation = explain(&compiled(objects), objects, ip(from), ip(to), proto, port);
    let line = |d: &bulkhead_api::messages::ExplainedDecision| {
        let verdict = if d.allowed { "allow" } else { "deny" };
        format!("{} {} {verdict}: {}", d.partition, d.direction, d.rule.name)
    };
    (explanation.allowed, explanation.decisions.iter().map(line).collect())
}

#[test]
fn both_ends_decide_and_both_must_say_yes() {
    let mut objects = web_with("egress: [{name: to-pay, to: [{partition: pay}]}]");
    let half = (
        false,
        vec![
            "web egress allow: Partition/web egress \"to-pay\"".to_string(),
            "pay ingress deny: no rule allows it".to_string(),
        ],
    );
    assert_eq!(told(&objects, "10.65.0.1", "10.66.0.1", PROTO_TCP, 80), half);
    add(
        &mut objects,
        "pay",
        "{policyID: 2, podCIDRs: [10.66.0.0/16], ingress: [{name: from-web, from: [{partition: web}]}]}",
    );
    let (allowed, decisions) = told(&objects, "10.65.0.1", "10.66.0.1", PROTO_TCP, 80);
    assert!(allowed);
    assert_eq!(decisions[1], "pay ingress allow: Partition/pay ingress \"from-web\"");
}

#[test]
fn an_end_outside_the_cluster_and_a_node_decide_nothing() {
    let objects = cluster();
    let from_vm = told(&objects, "172.16.9.9", "10.65.0.1", PROTO_TCP, 20880);
    assert_eq!(from_vm, (false, vec!["web ingress deny: no rule allows it".to_string()]));
    assert_eq!(told(&objects, "172.16.9.9", "8.8.8.8", PROTO_TCP, 1), (true, vec![]));
    let probe = told(&objects, "192.168.0.1", "10.65.0.1", PROTO_TCP, 80);
    assert_eq!(probe, (true, vec!["web ingress allow: a node reaches its own pods".to_string()]));
}

#[test]
fn a_pod_that_nobody_may_call_reaches_itself_and_its_like_does_not_reach_it() {
    let mut objects = cluster();
    for (key, address) in [("shop/a", "10.64.0.1"), ("shop/b", "10.64.0.2")] {
        add_pod(&mut objects, key, address, "{}");
    }
    add_network_policy(&mut objects, "shop/alone", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    let pods = ["shop/a", "shop/b"].map(|key| local(&objects, key));
    let c = compiled_for(&objects, &pods);
    let allowed = |from, to| {
        let flow = Flow { from: ip(from), to: ip(to), proto: PROTO_TCP, port: 80 };
        bulkhead_policy::explain(&c, &objects, &pods, flow).unwrap().allowed
    };
    assert!(allowed("10.64.0.1", "10.64.0.1"));
    assert!(!allowed("10.64.0.2", "10.64.0.1"));
}

#[test]
fn the_world_reaches_the_default_partition() {
    let expected = (true, vec!["default ingress allow: the partition is open".to_string()]);
    assert_eq!(told(&cluster(), "172.16.9.9", "10.64.0.1", PROTO_UDP, 9), expected);
}

#[test]
fn an_audited_deny_passes_and_is_told() {
    let objects = web_with("isolation: Audit");
    let explanation = explain(&compiled(&objects), &objects, ip("8.8.8.8"), ip("10.65.0.1"), PROTO_TCP, 80);
    assert!(explanation.allowed);
    assert_eq!((explanation.decisions[0].allowed, explanation.decisions[0].audit), (false, true));
}

#[test]
fn an_end_is_told_with_its_partition_its_groups_and_its_rules_file() {
    let objects = web_with("ingress: [{name: vms, from: [{networkGroup: vms}], ports: [{port: 20880}]}]");
    let c = compiled(&objects);
    let e = explain(&c, &objects, ip("172.16.5.5"), ip("10.65.0.1"), PROTO_TCP, 20880);
    assert_eq!(e.from.known_as, ["NetworkGroup/db", "NetworkGroup/vms"]);
    assert_eq!((e.from.partition, e.to.partition.as_deref()), (None, Some("web")));
    assert_eq!(e.to.known_as, Vec::<String>::new());
    assert_eq!((e.from.identity, e.to.identity), (c.identity(ip("172.16.5.5")).id, c.pod_identities["web"]));
    assert_eq!((e.protocol.as_str(), e.port), ("tcp", 20880));
    let rule = &e.decisions[0].rule;
    assert_eq!(
        (rule.name.as_str(), rule.file.as_deref()),
        ("Partition/web ingress \"vms\"", Some("web.yaml"))
    );
    assert_eq!(explain(&c, &objects, ip("8.8.8.8"), ip("10.65.0.1"), PROTO_TCP, 1).from.known_as, ["world"]);
    let node = explain(&c, &objects, ip("192.168.0.3"), ip("10.65.0.1"), PROTO_ICMP, 8);
    assert_eq!(node.from.known_as, ["node", "controlPlane"]);
    assert_eq!(node.protocol, "icmp");
}

#[test]
fn a_rule_is_told_with_the_line_of_its_own_item() {
    let mut objects =
        web_with("ingress: [{from: [{networkGroup: db}]}, {name: vms, from: [{networkGroup: vms}]}]");
    let web = Sourced::clone(&objects.partitions["web"]);
    let (file, lines) = (Some("web.yaml:3".into()), RuleLines { ingress: vec![11, 14], egress: vec![] });
    objects.partitions.insert("web".into(), Arc::new(Sourced { file, lines, ..web }));
    let told = |objects: &Objects| {
        let e = explain(&compiled(objects), objects, ip("172.16.9.9"), ip("10.65.0.1"), PROTO_TCP, 1);
        (e.decisions[0].rule.name.clone(), e.decisions[0].rule.file.clone())
    };
    assert_eq!(told(&objects), ("Partition/web ingress \"vms\"".into(), Some("web.yaml:14".into())));
    // Moved, it is no other rule.
    let mut moved = objects.clone();
    let web = Sourced::clone(&objects.partitions["web"]);
    let lines = RuleLines { ingress: vec![12, 15], egress: vec![] };
    moved.partitions.insert("web".into(), Arc::new(Sourced { lines, ..web }));
    assert_eq!(told(&moved).1.as_deref(), Some("web.yaml:15"));
    assert_eq!(bulkhead_policy::changes(&objects, &moved), Vec::<String>::new());
}

#[test]
fn a_group_is_asked_about_part_by_part_each_by_an_address_of_its_own() {
    let mut objects = web_with(
        "ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/24}}]}, {from: [{ipBlock: {cidr: 172.16.1.0/24}}]}]",
    );
    let group = serde_saphyr::from_str("cidrs: [172.16.0.0/16, 2001:db8::/32]").unwrap();
    objects.network_groups.insert("site".into(), Arc::new(Sourced::new(group, None)));
    objects.network_groups.remove("vms");
    objects.network_groups.remove("db");
    let parts = group_parts(&compiled(&objects), &objects, "site").unwrap();
    let told: Vec<String> = parts.iter().map(|p| format!("{} {}", p.network, p.address)).collect();
    assert_eq!(
        told,
        [
            "172.16.0.0/16 172.16.2.0",
            "172.16.0.0/24 172.16.0.0",
            "172.16.1.0/24 172.16.1.0",
            "2001:db8::/32 2001:db8::",
        ]
    );
    assert_eq!(group_parts(&compiled(&objects), &objects, "nobody"), None);
}
