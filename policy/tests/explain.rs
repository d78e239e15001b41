//! What `explain` says, whole.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::messages::Explanation;
use bulkhead_ebpf_abi::*;
use bulkhead_policy::{Compiled, Flow, LocalPod, Objects, RuleLines, Sourced, group_parts};
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
}

#[test]
fn a_node_reaches_its_own_pods_and_no_other_node_does_wherever_it_is_asked() {
    let mut objects = cluster();
    for (key, address, node) in [("web/here", "10.65.0.1", "node-1"), ("web/there", "10.65.0.2", "node-2")] {
        add_pod(&mut objects, key, address, &format!("node: {node}"));
    }
    add_pod(&mut objects, "web/somewhere", "10.65.0.3", "{}");
    let own = [local(&objects, "web/here")];
    let c = compiled_for(&objects, &own);
    let told = |from: &str, to: &str| {
        let flow = Flow { from: ip(from), to: ip(to), proto: PROTO_TCP, port: 80 };
        let e = bulkhead_policy::explain(&c, &objects, &own, flow).unwrap();
        let decision = e.decisions.into_iter().next().unwrap();
        let by_node = decision.tiers.iter().any(|t| t.tier == "node" && t.verdict == "allow");
        (e.allowed, by_node, decision.rule.name)
    };
    let own_pod = (true, true, "a node reaches its own pods".to_string());
    let nobodys = (false, false, "no rule allows it".to_string());
    let control_plane = (true, false, "the control plane (allowControlPlane)".to_string());
    for (from, to, expected) in [
        ("192.168.0.1", "10.65.0.1", &own_pod),
        ("192.168.0.2", "10.65.0.1", &nobodys),
        ("192.168.0.2", "10.65.0.2", &own_pod),
        ("192.168.0.1", "10.65.0.2", &nobodys),
        ("192.168.0.3", "10.65.0.2", &control_plane),
        // This node knows its own pods, so neither is one of them.
        ("192.168.0.1", "10.65.0.3", &nobodys),
        ("192.168.0.1", "10.65.0.9", &nobodys),
    ] {
        assert_eq!(told(from, to), *expected, "{from} -> {to}");
    }
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
fn an_own_pod_is_who_it_was_wired_as_wherever_its_address_lies() {
    let mut objects = web_with("ingress: [{from: [{partition: pay}]}]");
    // In the range of pay, and nobody tells of it.
    let stray = LocalPod {
        namespace: "web".into(),
        name: "stray".into(),
        partition: "web".into(),
        addresses: vec![ip("10.66.0.77")],
    };
    // No pod of the partition, though it lies in its range.
    add_pod(&mut objects, "web/agent", "10.65.0.9", "{hostNetwork: true}");
    let pods = [stray];
    let c = compiled_for(&objects, &pods);
    let to = |address: &str| {
        let flow = Flow { from: ip("10.66.0.77"), to: ip(address), proto: PROTO_TCP, port: 1 };
        bulkhead_policy::explain(&c, &objects, &pods, flow).unwrap()
    };
    let told = to("10.65.0.9");
    assert_eq!((told.from.pod.as_deref(), told.from.partition.as_deref()), (Some("web/stray"), Some("web")));
    assert_eq!(told.from.identity, c.pod_identities["web"]);
    assert_eq!((told.to.pod, told.to.partition.as_deref()), (None, Some("web")));
    let rules: Vec<_> = told.decisions.iter().map(|d| d.rule.name.as_str()).collect();
    assert_eq!(rules, ["same partition"; 2]);
    assert_eq!(to("10.65.0.8").to.pod, None, "nobody has that address");
}

#[test]
fn a_pod_outside_all_ranges_is_explained_as_the_world_and_a_stray_as_its_pod() {
    let mut objects = web_with("ingress: [{from: [{partition: pay}]}]");
    add_pod(&mut objects, "pay/far", "10.99.0.9", "{node: node-2}");
    let from = |objects: &Objects| {
        let told = explain(&compiled(objects), objects, ip("10.99.0.9"), ip("10.65.0.1"), PROTO_TCP, 80);
        (told.from.pod, told.from.partition, told.from.known_as, told.decisions.len())
    };
    assert_eq!(from(&objects), (None, None, vec!["world".to_owned()], 1));
    objects.strays.insert("10.99.0.9/32".parse().unwrap(), "pay".into());
    let stray = from(&objects);
    assert_eq!((stray.0.as_deref(), stray.1.as_deref(), stray.3), (Some("pay/far"), Some("pay"), 2));
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
fn a_policys_rule_is_told_with_the_line_of_its_own_item_and_isolation_with_the_policies() {
    let mut objects = cluster();
    add_pod(&mut objects, "shop/a", "10.64.0.1", "{}");
    add_pod(&mut objects, "shop/b", "10.64.0.2", "{}");
    let rules = "{podSelector: {}, ingress: [{ports: [{port: 1}]}, {ports: [{port: 2}]}]}";
    add_network_policy(&mut objects, "shop/two", rules);
    let written = |objects: &mut Objects, key: &str, file: &str, lines: RuleLines| {
        let policy = Sourced::clone(&objects.network_policies[key]);
        let policy = Sourced { file: Some(file.into()), lines, ..policy };
        objects.network_policies.insert(key.into(), Arc::new(policy));
    };
    written(&mut objects, "shop/two", "np.yaml:3", RuleLines { ingress: vec![9, 12], egress: vec![] });
    let spec = "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], \
                protocols: [{tcp: {destinationPort: {number: 7}}}]}]}";
    let (file, lines) = (Some("cnp.yaml:1".into()), RuleLines { ingress: vec![21], egress: vec![] });
    let admin = Sourced { lines, ..Sourced::new(serde_saphyr::from_str(spec).unwrap(), file) };
    objects.cluster_network_policies.insert("admin".into(), Arc::new(admin));
    let told = |objects: &Objects, port: u16| {
        let pods = ["shop/a", "shop/b"].map(|key| local(objects, key));
        let flow = Flow { from: ip("10.64.0.2"), to: ip("10.64.0.1"), proto: PROTO_TCP, port };
        let e = bulkhead_policy::explain(&compiled_for(objects, &pods), objects, &pods, flow).unwrap();
        let decided = &e.decisions.last().unwrap();
        // The tier that decides tells the same.
        let of_tier = decided.tiers.iter().filter_map(|t| t.rule.as_ref());
        assert!(of_tier.into_iter().any(|r| *r == decided.rule), "{decided:?}");
        format!("{} {}", decided.rule.name, decided.rule.file.clone().unwrap_or_default())
    };
    assert_eq!(told(&objects, 1), "NetworkPolicy/shop/two ingress[0] np.yaml:9");
    assert_eq!(told(&objects, 2), "NetworkPolicy/shop/two ingress[1] np.yaml:12");
    assert_eq!(told(&objects, 3), "NetworkPolicy/shop/two (isolates) np.yaml:3");
    assert_eq!(told(&objects, 7), "ClusterNetworkPolicy/admin ingress[0] cnp.yaml:21");
    add_network_policy(&mut objects, "shop/all", "{podSelector: {}}");
    written(&mut objects, "shop/all", "all.yaml:1", RuleLines::default());
    let both = "NetworkPolicy/shop/all, NetworkPolicy/shop/two (isolate) all.yaml:1, np.yaml:3";
    assert_eq!(told(&objects, 3), both);
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
