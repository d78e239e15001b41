//! The shape of tables, numbers over time, and what does not fit.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::objects::{EgressRule, PartitionSpec, Protocol, RulePeer, RulePort};
use bulkhead_ebpf_abi::*;
use bulkhead_policy::{CompileError, Compiled, Interner, Objects, Tables, compile};
use common::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::Hash,
};

/// Every index that the kernel follows leads into its table, and every cell it can reach was written.
fn check_shape(c: &Compiled) {
    let Tables { classes, policies, port_directories, port_pages, rows, cells } = &c.tables;
    for table in
        [classes.len(), policies.len(), port_directories.len(), port_pages.len(), rows.len(), cells.len()]
    {
        assert_ne!(table, 0, "no table is ever empty");
    }
    let (port_directories, rows, cells) = (port_directories.to_vec(), rows.to_vec(), cells.to_vec());
    assert!(classes.len() > ID_WORLD as usize && classes[ID_WORLD as usize] == 0);
    let identities =
        c.prefixes.values().chain(c.exact.values()).map(|i| i.id).chain(c.pod_identities.values().copied());
    for id in identities {
        assert!(id == ID_WORLD || (id >= ID_FIRST_DYNAMIC && (id as usize) < classes.len()));
    }
    assert!(c.policies.values().all(|p| (*p as usize) < policies.len()));
    for policy in policies.iter().flatten() {
        assert!(policy.row_count >= 1);
        let first = (policy.port_table * PORT_SLOTS) as usize;
        let directories = &port_directories[first..first + PORT_SLOTS as usize];
        let pages: BTreeSet<u32> = directories.iter().flatten().copied().collect();
        let widest = pages.iter().flat_map(|p| port_pages[*p as usize]).max().unwrap();
        for row in &rows[policy.row_base as usize..][..policy.row_count as usize] {
            let row = &cells[*row as usize..][..=usize::from(widest)];
            assert!(row.iter().all(|cell| cell.rule != RULE_NONE && cell.reserved == 0));
        }
    }
}

fn assert_distinct<T: Hash + Eq + Debug + Ord>(values: &[T]) {
    let distinct: BTreeSet<&T> = values.iter().collect();
    assert_eq!(distinct.len(), values.len());
}

#[test]
fn without_any_object_there_is_an_open_default_partition() {
    let c = compiled(&Objects::default());
    check_shape(&c);
    assert_eq!(c.policies, BTreeMap::from([("default".to_string(), 0)]));
    assert_eq!(c.pod_identities.keys().collect::<Vec<_>>(), ["default"]);
    for dir in [DIR_EGRESS, DIR_INGRESS] {
        assert!(c.evaluate(0, dir, ID_WORLD, PROTO_TCP, 80).allowed);
    }
}

#[test]
fn every_index_leads_into_its_table() {
    check_shape(&compiled(&cluster()));
    check_shape(&compiled(&web_with(
        "ingress: [{from: [{networkGroup: db}], ports: [{port: 250, endPort: 600}, {port: 65535}]}, {action: Deny, from: \
         [{allPartitions: {}}], ports: [{protocol: ICMP}]}]",
    )));
}

#[test]
fn the_size_of_a_port_range_costs_nothing() {
    let wide = compiled(&web_with("egress: [{ports: [{port: 1024, endPort: 61023}]}]"));
    let narrow = compiled(&web_with("egress: [{ports: [{port: 1024}]}]"));
    assert_eq!(wide.tables.cells.len(), narrow.tables.cells.len());
    assert!(wide.tables.port_pages.len() <= narrow.tables.port_pages.len() + 1);
}

#[test]
fn equal_parts_are_stored_once() {
    let mut objects = Objects::default();
    let ports = "ports: [{port: 80}, {port: 443}, {protocol: UDP, port: 53}]";
    let rules = format!(
        "ingress: [{{from: [{{partition: p0}}], {ports}}}], egress: [{{to: [{{nodes: {{}}}}], {ports}}}]"
    );
    for i in 0..20 {
        add(
            &mut objects,
            &format!("p{i}"),
            &format!("{{policyID: {}, podCIDRs: [10.{i}.0.0/16], {rules}}}", i + 1),
        );
    }
    let c = compiled(&objects);
    check_shape(&c);
    assert_distinct(&c.tables.port_pages.to_vec());
    let directories = c.tables.port_directories.to_vec();
    let tables: Vec<_> = directories.chunks(PORT_SLOTS as usize).collect();
    assert_distinct(&tables);
    assert_eq!(
        tables.len(),
        3,
        "the default partition's, and of the others one a direction: egress has DNS besides"
    );
    let starts: BTreeSet<u32> = c.tables.rows.iter().copied().collect();
    let ends = starts.iter().skip(1).copied().chain([c.tables.cells.len() as u32]);
    let cell = |c: &Cell| (c.rule, c.verdict, c.flags);
    let rows: Vec<Vec<_>> = starts
        .iter()
        .zip(ends)
        .map(|(start, end)| (*start as usize..end as usize).map(|at| cell(&c.tables.cells[at])).collect())
        .collect();
    assert_distinct(&rows);
}

#[test]
fn what_no_rule_can_tell_apart_is_one_class() {
    let c = compiled(&web_with("egress: [{to: [{networkGroup: vms}]}]"));
    let class = |address: &str| c.tables.classes[c.identity(ip(address)).id as usize];
    assert_eq!(class("172.16.5.5"), class("172.16.9.9"), "no rule names db");
    assert_eq!(class("10.64.0.7"), class("8.8.8.8"), "nor the default partition");
    assert_eq!(class("8.8.8.8"), 0);
    let distinct: BTreeSet<u32> = [
        "8.8.8.8",
        "172.16.9.9",
        "10.65.0.1",
        "10.66.0.1",
        "192.168.0.1",
        "192.168.0.2",
        "192.168.0.3",
        "10.64.0.10",
    ]
    .map(class)
    .into();
    // World, vms, web, pay, own node, control plane, DNS: another node is the world as long as no rule says `nodes`.
    assert_eq!(distinct.len(), 7);
}

#[test]
fn the_same_objects_and_interner_give_the_same_result() {
    let objects = web_with("egress: [{to: [{networkGroup: vms}], ports: [{port: 80}]}]");
    let mut first = Interner::default();
    compile(&cluster(), &mut first, &HERE).unwrap();
    let mut second = first.clone();
    assert_eq!(compile(&objects, &mut first, &HERE).unwrap(), compile(&objects, &mut second, &HERE).unwrap());
    assert_eq!(first, second);
}

#[test]
fn numbers_survive_a_restart_and_an_edit() {
    let mut interner = Interner::default();
    let before =
        compile(&web_with("egress: [{name: a, to: [{networkGroup: vms}]}]"), &mut interner, &HERE).unwrap();
    let text = serde_json::to_string(&interner).unwrap();
    let mut restored: Interner = serde_json::from_str(&text).unwrap();
    assert!(restored.says_the_same(&interner));
    let mut objects = web_with(
        "egress: [{name: new, to: [{partition: pay}]}, {name: a, to: [{networkGroup: vms}], ports: [{port: 1}]}]",
    );
    add(&mut objects, "aaa", "{policyID: 9, podCIDRs: [10.99.0.0/16]}");
    let after = compile(&objects, &mut restored, &HERE).unwrap();
    for (partition, number) in &before.policies {
        assert_eq!(after.policies[partition], *number);
        assert_eq!(after.pod_identities[partition], before.pod_identities[partition]);
    }
    for (prefix, identity) in &before.prefixes {
        assert_eq!(after.prefixes[prefix], *identity);
    }
    let rule = |c: &Compiled| decide(c, "web", DIR_EGRESS, "172.16.9.9", PROTO_TCP, 1).rule;
    assert_eq!(rule(&before), rule(&after));
}

#[test]
fn a_partition_that_went_leaves_a_closed_policy_and_its_rules_names() {
    let mut interner = Interner::default();
    let mut objects = web_with("");
    add(&mut objects, "pay", "{policyID: 2, podCIDRs: [10.66.0.0/16], egress: [{name: out}]}");
    let before = compile(&objects, &mut interner, &HERE).unwrap();
    let rule = decide(&before, "pay", DIR_EGRESS, "8.8.8.8", PROTO_TCP, 80).rule;
    objects.partitions.remove("pay");
    let after = compile(&objects, &mut interner, &HERE).unwrap();
    check_shape(&after);
    assert!(!after.policies.contains_key("pay") && !after.pod_identities.contains_key("pay"));
    let decision = after.evaluate(before.policies["pay"], DIR_EGRESS, ID_WORLD, PROTO_TCP, 80);
    assert_eq!((decision.allowed, decision.rule), (false, RULE_DEFAULT_DENY));
    assert_eq!(after.rules.get(rule).unwrap().name, "Partition/pay egress \"out\"");
}

#[test]
fn an_identity_just_gone_out_of_use_still_means_what_it_was_under_the_new_rules() {
    let mut interner = Interner::default();
    // A rule that sees a part of web's own range gives the pods there an identity of their own.
    let before =
        compile(&web_with("egress: [{to: [{ipBlock: {cidr: 10.65.1.0/24}}]}]"), &mut interner, &HERE)
            .unwrap();
    let old = before.identity(ip("10.65.1.1")).id;
    let after = compile(&web_with(""), &mut interner, &HERE).unwrap();
    assert_ne!(after.identity(ip("10.65.1.1")).id, old);
    let decision = after.evaluate(after.policies["web"], DIR_INGRESS, old, PROTO_TCP, 80);
    assert_eq!((decision.allowed, decision.rule), (true, RULE_SAME_PARTITION));
}

#[test]
fn more_port_classes_than_a_page_can_name_are_refused_naming_the_partition() {
    let mut objects = cluster();
    let rule = |protocol, port| EgressRule {
        to: vec![RulePeer { network_group: Some("vms".into()), ..RulePeer::default() }],
        ports: vec![RulePort { protocol, port: Some(port), end_port: None }],
        ..EgressRule::default()
    };
    let rules = (0..=u16::MAX).map(|port| rule(Protocol::TCP, port));
    let spec = PartitionSpec { policy_id: 5, egress: rules.collect(), ..PartitionSpec::default() };
    objects.partitions.insert("many".into(), sourced(spec, "many"));
    let mut interner = Interner::default();
    let error = compile(&objects, &mut interner, &HERE).unwrap_err();
    assert_eq!(error, CompileError::PortClasses { partition: "many".into() });
    assert!(error.to_string().starts_with("Partition/many: "));
    assert_eq!(interner, Interner::default(), "a failed compile takes no numbers");
}

#[test]
fn nodes_are_exact_and_everything_else_is_a_prefix() {
    let c = compiled(&web_with("egress: [{to: [{ipBlock: {cidr: 8.0.0.0/8, except: [8.8.0.0/16]}}]}]"));
    let exact: Vec<String> = c.exact.keys().map(|a| a.to_ip().to_string()).collect();
    assert_eq!(exact.len(), 6);
    assert!(exact.contains(&"192.168.0.1".to_string()) && exact.contains(&"fd00:1::3".to_string()));
    let key = |address: &str, length| (Addr::from_ip(ip(address)), length);
    for prefix in [
        key("10.64.0.0", 112),
        key("10.65.0.0", 112),
        key("fd00:65::", 64),
        key("172.16.0.0", 108),
        key("172.16.5.0", 120),
        key("2001:db8::", 32),
        key("8.0.0.0", 104),
        key("8.8.0.0", 112),
        key("10.64.0.10", 128),
    ] {
        assert!(c.prefixes.contains_key(&prefix), "{prefix:?}");
    }
    assert_eq!(c.prefixes[&key("8.8.0.0", 112)].id, ID_WORLD);
}

#[test]
fn a_partition_written_out_reads_back_as_it_was() {
    let text = "policyID: 7\nnamespaces: [web]\nnamespaceSelector: {matchLabels: {team: web}}\npodCIDRs: [10.65.0.0/16]\n\
                serviceCIDRs: [10.97.0.0/16]\nisolation: Audit\nallowClusterDNS: false\ningress:\n- name: dubbo\n  from:\n  \
                - networkGroup: vms\n  - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}\n  - allPartitions: {}\n  \
                ports:\n  - {port: 20880, endPort: 20889}\n  - {protocol: ICMP, port: 8}\n  established: Keep\negress:\n- \
                action: Deny\n  to: [{nodes: {}}, {controlPlane: {}}, {partition: pay}]\nbandwidth: {defaultClass: low, \
                maximum: 2G}\nbgp: {communities: ['65000:7']}\n";
    let spec = partition(text);
    let written = serde_saphyr::to_string(&spec).unwrap();
    assert_eq!(partition(&written), spec);
    let mut objects = cluster();
    objects.partitions.insert("web".into(), sourced(spec, "web"));
    let mut again = objects.clone();
    again.partitions.insert("web".into(), sourced(partition(&written), "web"));
    assert_eq!(compiled(&again), compiled(&objects));
}

/// What was remembered by a daemon that knew fewer fields than this one.
#[test]
fn objects_that_an_older_daemon_wrote_can_be_read() {
    let written = r#"{"partitions": {}, "network_groups": {}, "bandwidth_classes": {}, "namespaces": {"web": {"team": "a"}},
        "nodes": {"node-1": {"addresses": ["192.168.0.1"]}}, "pods": {"web/a": {"labels": {"app": "a"}, "addresses": ["10.65.0.1"]}},
        "network_policies": {"web/a": {"spec": {"podSelector": {}}, "file": null}}}"#;
    let objects: Objects = serde_json::from_str(written).unwrap();
    assert_eq!(objects.nodes["node-1"].addresses, [ip("192.168.0.1")]);
    assert!(objects.nodes["node-1"].labels.is_empty() && !objects.nodes["node-1"].control_plane);
    assert_eq!(objects.pods["web/a"].labels.get("app"), Some("a"));
    assert_eq!(objects.network_policies.len(), 1);
    let again: Objects = serde_json::from_str(&serde_json::to_string(&objects).unwrap()).unwrap();
    assert_eq!(again, objects);
}
