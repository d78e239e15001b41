//! What a partition and its rules mean, told by the tables.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::objects::IPBlockSpec;
use bulkhead_ebpf_abi::*;
use bulkhead_policy::{
    Compiled, Interner, LocalPod, NodeInfo, Objects, Witness, compile, diff::Side, strays,
};
use common::*;
use std::sync::Arc;

const WEB: &str = "10.65.0.7";
const PAY: &str = "10.66.0.7";
const DEFAULT: &str = "10.64.0.7";
const VM: &str = "172.16.9.9";
const DB: &str = "172.16.5.5";
const WORLD: &str = "8.8.8.8";
const LOCAL_NODE: &str = "192.168.0.1";
const OTHER_NODE: &str = "192.168.0.2";
const CONTROL_PLANE: &str = "192.168.0.3";

/// Verdict of `web` and the rule's name, for TCP.
fn web(c: &Compiled, dir: u32, peer: &str, port: u16) -> (bool, String) {
    web_proto(c, dir, peer, PROTO_TCP, port)
}

fn web_proto(c: &Compiled, dir: u32, peer: &str, proto: u8, port: u16) -> (bool, String) {
    let decision = decide(c, "web", dir, peer, proto, port);
    (decision.allowed, rule_name(c, decision).to_string())
}

fn yes(rule: &str) -> (bool, String) {
    (true, rule.into())
}

fn no(rule: &str) -> (bool, String) {
    (false, rule.into())
}

#[test]
fn pods_of_one_partition_talk_freely_in_both_families() {
    let c = compiled(&cluster());
    for dir in [DIR_EGRESS, DIR_INGRESS] {
        for peer in [WEB, "fd00:65::7"] {
            for (proto, port) in
                [(PROTO_TCP, 0), (PROTO_UDP, 65535), (PROTO_ICMP, 8), (PROTO_ICMPV6, 128), (47, 0)]
            {
                assert_eq!(web_proto(&c, dir, peer, proto, port), yes("same partition"));
            }
        }
    }
}

#[test]
fn a_deny_rule_does_not_part_a_partition() {
    let c = compiled(&web_with("egress: [{action: Deny}]\ningress: [{action: Deny}]"));
    assert_eq!(web(&c, DIR_EGRESS, WEB, 80), yes("same partition"));
    assert_eq!(web(&c, DIR_INGRESS, WEB, 80), yes("same partition"));
    assert_eq!(web(&c, DIR_EGRESS, PAY, 80), no("Partition/web egress[0]"));
}

#[test]
fn nothing_passes_across_partitions_unless_a_rule_allows_it() {
    let c = compiled(&cluster());
    for dir in [DIR_EGRESS, DIR_INGRESS] {
        for peer in [PAY, DEFAULT, VM, WORLD, OTHER_NODE, "fd00:66::1", "2001:db8::1", "fd00:1::2"] {
            assert_eq!(web(&c, dir, peer, 80), no("no rule allows it"), "{peer}");
        }
    }
}

#[test]
fn each_direction_has_its_own_rules() {
    let c = compiled(&web_with("egress: [{name: to-pay, to: [{partition: pay}]}]"));
    assert_eq!(web(&c, DIR_EGRESS, PAY, 80), yes("Partition/web egress \"to-pay\""));
    assert_eq!(web(&c, DIR_INGRESS, PAY, 80), no("no rule allows it"));
    assert!(!decide(&c, "pay", DIR_INGRESS, WEB, PROTO_TCP, 80).allowed, "the other end has not said yes");
}

#[test]
fn every_kind_of_peer_is_matched_and_nobody_else() {
    let everybody = [WEB, PAY, DEFAULT, VM, DB, WORLD, LOCAL_NODE, OTHER_NODE, CONTROL_PLANE];
    for (peer, expected) in [
        ("{partition: pay}", vec![PAY]),
        ("{partition: default}", vec![DEFAULT]),
        ("{allPartitions: {}}", vec![PAY, DEFAULT]),
        ("{networkGroup: db}", vec![DB]),
        ("{networkGroup: vms}", vec![VM, DB]),
        ("{ipBlock: {cidr: 8.0.0.0/8}}", vec![WORLD]),
        ("{nodes: {}}", vec![LOCAL_NODE, OTHER_NODE, CONTROL_PLANE]),
        ("{controlPlane: {}}", vec![CONTROL_PLANE]),
    ] {
        let c = compiled(&web_with(&format!("egress: [{{name: r, to: [{peer}]}}]")));
        let allowed: Vec<_> = everybody
            .into_iter()
            .filter(|p| web(&c, DIR_EGRESS, p, 80) == yes("Partition/web egress \"r\""))
            .collect();
        assert_eq!(allowed, expected, "{peer}");
    }
}

#[test]
fn no_peers_are_any_peer_and_no_ports_are_every_protocol() {
    let c = compiled(&web_with("egress: [{name: out}]"));
    for peer in [PAY, WORLD, OTHER_NODE, "fd00:66::1", "2606::1"] {
        for (proto, port) in
            [(PROTO_TCP, 1), (PROTO_UDP, 65535), (PROTO_SCTP, 7), (PROTO_ICMP, 8), (47, 0), (0, 0)]
        {
            assert_eq!(web_proto(&c, DIR_EGRESS, peer, proto, port), yes("Partition/web egress \"out\""));
        }
    }
}

#[test]
fn a_rule_with_ports_matches_only_those() {
    let c = compiled(&web_with(
        "egress: [{name: r, to: [{partition: pay}], ports: [{port: 80}, {protocol: UDP, port: 1000, endPort: 61000}, \
         {protocol: SCTP}]}]",
    ));
    let open = |proto, port| web_proto(&c, DIR_EGRESS, PAY, proto, port).0;
    assert_eq!([79, 80, 81].map(|p| open(PROTO_TCP, p)), [false, true, false]);
    assert_eq!(
        [999, 1000, 1023, 1024, 61000, 61001].map(|p| open(PROTO_UDP, p)),
        [false, true, true, true, true, false]
    );
    assert_eq!([0, 65535].map(|p| open(PROTO_SCTP, p)), [true, true]);
    assert!(!open(PROTO_ICMP, 80) && !open(47, 80) && !open(80, 0));
}

#[test]
fn icmp_is_both_versions_and_its_port_is_the_type() {
    let c = compiled(&web_with(
        "egress: [{name: ping, ports: [{protocol: ICMP, port: 8}, {protocol: ICMP, port: 128}]}]",
    ));
    assert!(web_proto(&c, DIR_EGRESS, PAY, PROTO_ICMP, 8).0);
    assert!(web_proto(&c, DIR_EGRESS, "fd00:66::1", PROTO_ICMPV6, 128).0);
    assert!(!web_proto(&c, DIR_EGRESS, PAY, PROTO_ICMP, 5).0);
    assert!(!web_proto(&c, DIR_EGRESS, PAY, PROTO_TCP, 8).0);
}

#[test]
fn any_deny_that_matches_wins_wherever_it_stands() {
    let c = compiled(&web_with(
        "egress: [{name: all, to: [{networkGroup: vms}]}, {name: not-db, action: Deny, to: [{networkGroup: db}], ports: \
         [{port: 22}]}]",
    ));
    assert_eq!(web(&c, DIR_EGRESS, DB, 22), no("Partition/web egress \"not-db\""));
    assert_eq!(web(&c, DIR_EGRESS, DB, 23), yes("Partition/web egress \"all\""));
    assert_eq!(web(&c, DIR_EGRESS, VM, 22), yes("Partition/web egress \"all\""));
}

#[test]
fn the_first_of_the_allow_rules_names_the_decision() {
    let c = compiled(&web_with(
        "ingress: [{name: a, from: [{partition: pay}], ports: [{port: 80}]}, {name: b, from: [{allPartitions: {}}]}]",
    ));
    assert_eq!(web(&c, DIR_INGRESS, PAY, 80), yes("Partition/web ingress \"a\""));
    assert_eq!(web(&c, DIR_INGRESS, PAY, 81), yes("Partition/web ingress \"b\""));
    assert_eq!(web(&c, DIR_INGRESS, DEFAULT, 80), yes("Partition/web ingress \"b\""));
}

#[test]
fn rules_without_a_name_are_named_by_place_and_equal_names_are_told_apart() {
    let c = compiled(&web_with(
        "egress: [{to: [{partition: pay}]}, {name: x, to: [{networkGroup: db}]}, {name: x, to: [{networkGroup: vms}]}]",
    ));
    assert_eq!(web(&c, DIR_EGRESS, PAY, 1), yes("Partition/web egress[0]"));
    assert_eq!(web(&c, DIR_EGRESS, DB, 1), yes("Partition/web egress \"x\""));
    assert_eq!(web(&c, DIR_EGRESS, VM, 1), yes("Partition/web egress \"x\" #2"));
    let decision = decide(&c, "web", DIR_EGRESS, PAY, PROTO_TCP, 1);
    assert_eq!(c.rules.get(decision.rule).unwrap().file.as_deref(), Some("web.yaml"));
}

#[test]
fn the_default_partition_is_open_to_everybody() {
    let c = compiled(&cluster());
    for dir in [DIR_EGRESS, DIR_INGRESS] {
        for peer in [WEB, DEFAULT, WORLD, LOCAL_NODE] {
            let decision = decide(&c, "default", dir, peer, PROTO_TCP, 80);
            assert!(decision.allowed && decision.open && !decision.audit);
            assert_eq!(decision.rule, RULE_OPEN);
        }
    }
}

#[test]
fn an_open_partition_passes_everything_its_own_denies_included() {
    let c = compiled(&web_with("isolation: Open\negress: [{action: Deny}]"));
    for dir in [DIR_EGRESS, DIR_INGRESS] {
        let decision = decide(&c, "web", dir, PAY, PROTO_TCP, 80);
        assert!(decision.allowed && decision.open);
        assert_eq!(decision.rule, RULE_OPEN);
    }
}

#[test]
fn audit_decides_as_enforced_does_and_says_so() {
    let rules = "egress: [{name: r, to: [{networkGroup: vms}], ports: [{port: 80}]}]";
    let enforced = compiled(&web_with(rules));
    let audit = compiled(&web_with(&format!("isolation: Audit\n{rules}")));
    for (peer, port) in [(VM, 80), (VM, 81), (PAY, 80)] {
        let (e, a) = (web(&enforced, DIR_EGRESS, peer, port), web(&audit, DIR_EGRESS, peer, port));
        assert_eq!(e, a);
        let decision = decide(&audit, "web", DIR_EGRESS, peer, PROTO_TCP, port);
        assert!(decision.audit && !decision.open && decision.passes());
        assert!(!decide(&enforced, "web", DIR_EGRESS, peer, PROTO_TCP, port).audit);
    }
}

#[test]
fn keep_stands_on_the_cells_of_its_allow_rule_only() {
    let c = compiled(&web_with(
        "egress: [{established: Keep, to: [{networkGroup: db}]}, {to: [{networkGroup: vms}]}, {action: Deny, \
         established: Keep, to: [{partition: pay}]}]",
    ));
    let keep = |peer| decide(&c, "web", DIR_EGRESS, peer, PROTO_TCP, 80).keep;
    assert_eq!([DB, VM, PAY, WORLD, WEB].map(keep), [true, false, false, false, false]);
}

#[test]
fn cluster_dns_is_admitted_on_port_53_only_unless_opted_out() {
    let c = compiled(&cluster());
    for peer in ["10.64.0.10", "fd00:64::10"] {
        for proto in [PROTO_TCP, PROTO_UDP] {
            assert_eq!(web_proto(&c, DIR_EGRESS, peer, proto, 53), yes("cluster DNS (allowClusterDNS)"));
            assert!(!web_proto(&c, DIR_EGRESS, peer, proto, 54).0);
        }
        assert!(!web_proto(&c, DIR_INGRESS, peer, PROTO_UDP, 53).0, "DNS does not call pods");
    }
    assert!(!web_proto(&c, DIR_EGRESS, DEFAULT, PROTO_UDP, 53).0);
    let c = compiled(&web_with("allowClusterDNS: false"));
    assert!(!web_proto(&c, DIR_EGRESS, "10.64.0.10", PROTO_UDP, 53).0);
}

#[test]
fn cluster_dns_is_admitted_at_the_ports_of_its_backends_too() {
    let mut objects = cluster();
    objects.cluster_dns_ports = vec![5353];
    objects.cluster_dns.push(ip("10.66.0.10"));
    let c = compiled(&objects);
    for port in [53, 5353] {
        assert_eq!(
            web_proto(&c, DIR_EGRESS, "10.64.0.10", PROTO_UDP, port),
            yes("cluster DNS (allowClusterDNS)")
        );
        assert!(decide(&c, "pay", DIR_INGRESS, WEB, PROTO_TCP, port).allowed);
    }
    assert!(!web_proto(&c, DIR_EGRESS, "10.64.0.10", PROTO_UDP, 54).0);
    assert!(!web_proto(&c, DIR_EGRESS, DEFAULT, PROTO_UDP, 5353).0, "it is a port of DNS servers alone");
}

#[test]
fn an_isolated_partition_that_holds_cluster_dns_admits_all_partitions_to_it() {
    let mut objects = cluster();
    objects.cluster_dns = vec![ip("10.66.0.10")];
    let c = compiled(&objects);
    assert!(web_proto(&c, DIR_EGRESS, "10.66.0.10", PROTO_UDP, 53).0);
    for (peer, expected) in [(WEB, true), (DEFAULT, true), (WORLD, false), (OTHER_NODE, true)] {
        assert_eq!(decide(&c, "pay", DIR_INGRESS, peer, PROTO_UDP, 53).allowed, expected, "{peer}");
        assert!(!decide(&c, "pay", DIR_INGRESS, peer, PROTO_UDP, 54).allowed);
    }
    assert!(!web_proto(&c, DIR_INGRESS, PAY, PROTO_UDP, 53).0, "web holds no DNS");
    let closed = "{policyID: 2, podCIDRs: [10.66.0.0/16], allowClusterDNS: false}";
    add(&mut objects, "pay", closed);
    assert!(!decide(&compiled(&objects), "pay", DIR_INGRESS, WEB, PROTO_UDP, 53).allowed);
}

#[test]
fn dns_on_a_nodes_own_address_is_reached_too() {
    let mut objects = cluster();
    objects.cluster_dns = vec![ip("169.254.20.10")];
    Arc::make_mut(objects.nodes.get_mut(NODE).unwrap()).addresses.push(ip("169.254.20.10"));
    let c = compiled(&objects);
    assert_eq!(
        web_proto(&c, DIR_EGRESS, "169.254.20.10", PROTO_UDP, 53),
        yes("cluster DNS (allowClusterDNS)")
    );
    assert!(!web_proto(&c, DIR_EGRESS, "169.254.20.10", PROTO_UDP, 54).0);
}

#[test]
fn the_control_plane_may_call_in_unless_opted_out() {
    let c = compiled(&cluster());
    for peer in [CONTROL_PLANE, "fd00:1::3"] {
        assert_eq!(web(&c, DIR_INGRESS, peer, 8443), yes("the control plane (allowControlPlane)"));
        assert!(!web(&c, DIR_EGRESS, peer, 6443).0, "the other way needs a rule");
    }
    assert!(!web(&c, DIR_INGRESS, OTHER_NODE, 8443).0);
    let c = compiled(&web_with("allowControlPlane: false"));
    assert!(!web(&c, DIR_INGRESS, CONTROL_PLANE, 8443).0);
}

#[test]
fn an_api_server_is_the_control_plane_whatever_else_it_is() {
    // A machine outside the cluster, a node that no label calls one of the control plane, a pod.
    let servers = ["198.51.100.7", OTHER_NODE, DEFAULT];
    let rules = "egress: [{name: api, to: [{controlPlane: {}}], ports: [{port: 6443}]}]";
    let with = |fields: &str| {
        let mut objects = web_with(fields);
        objects.api_servers = servers.map(ip).to_vec();
        compiled(&objects)
    };
    let (before, c) = (compiled(&web_with(rules)), with(rules));
    for peer in servers {
        assert!(!web(&before, DIR_INGRESS, peer, 8443).0, "{peer}");
        assert_eq!(web(&c, DIR_INGRESS, peer, 8443), yes("the control plane (allowControlPlane)"));
        assert_eq!(web(&c, DIR_EGRESS, peer, 6443), yes("Partition/web egress \"api\""));
        assert!(!web(&with("allowControlPlane: false"), DIR_INGRESS, peer, 8443).0, "{peer}");
    }
    assert!(!web(&c, DIR_INGRESS, "198.51.100.8", 8443).0);
}

#[test]
fn a_deny_rule_takes_back_what_is_built_in_and_an_allow_rule_names_it() {
    let c = compiled(&web_with(
        "egress: [{name: any, action: Deny, ports: [{protocol: UDP}]}]\ningress: [{name: in, from: [{nodes: {}}]}]",
    ));
    assert_eq!(web_proto(&c, DIR_EGRESS, "10.64.0.10", PROTO_UDP, 53), no("Partition/web egress \"any\""));
    assert_eq!(web(&c, DIR_INGRESS, CONTROL_PLANE, 80), yes("Partition/web ingress \"in\""));
}

#[test]
fn a_node_reaches_its_own_pods_and_no_rule_can_forbid_it() {
    let c = compiled(&web_with("ingress: [{action: Deny}]"));
    for peer in [LOCAL_NODE, "fd00:1::1"] {
        assert_eq!(web(&c, DIR_INGRESS, peer, 80), yes("a node reaches its own pods"));
        assert!(!web(&c, DIR_EGRESS, peer, 80).0, "pods to nodes need a rule");
        assert_eq!(c.identity(ip(peer)).flags, IDENTITY_LOCAL_NODE);
    }
    assert!(!web(&c, DIR_INGRESS, OTHER_NODE, 80).0);
    assert_eq!(c.identity(ip(OTHER_NODE)).flags, 0);
}

#[test]
fn an_except_is_not_in_the_block_but_still_in_everything_else() {
    let c = compiled(&web_with(
        "egress: [{name: block, to: [{ipBlock: {cidr: 172.16.0.0/12, except: [172.16.5.0/24]}}]}, {name: db, to: \
         [{networkGroup: db}], ports: [{port: 5432}]}]",
    ));
    assert_eq!(web(&c, DIR_EGRESS, VM, 80), yes("Partition/web egress \"block\""));
    assert_eq!(web(&c, DIR_EGRESS, DB, 80), no("no rule allows it"));
    assert_eq!(web(&c, DIR_EGRESS, DB, 5432), yes("Partition/web egress \"db\""));
    let c = compiled(&web_with("egress: [{to: [{ipBlock: {cidr: 8.0.0.0/8, except: [8.8.8.0/24]}}]}]"));
    assert_eq!(c.known_as(c.identity(ip("8.8.8.8")).id), ["world"]);
    assert!(web(&c, DIR_EGRESS, "8.8.9.1", 80).0);
}

#[test]
fn nested_prefixes_are_all_seen() {
    let mut objects = web_with(
        "egress: [{name: a, to: [{ipBlock: {cidr: 172.0.0.0/8}}], ports: [{port: 1}]}, {name: b, to: [{networkGroup: \
         vms}], ports: [{port: 2}]}, {name: c, to: [{ipBlock: {cidr: 172.16.5.5/32}}], ports: [{port: 3}]}]",
    );
    // A node inside a group is known as both.
    let node = NodeInfo { addresses: vec![ip("172.16.5.6")], ..NodeInfo::default() };
    objects.nodes.insert("node-4".into(), Arc::new(node));
    let c = compiled(&objects);
    let open = |peer| [1, 2, 3, 4].map(|port| web(&c, DIR_EGRESS, peer, port).0);
    assert_eq!(open("172.16.5.5"), [true, true, true, false]);
    assert_eq!(open("172.16.5.6"), [true, true, false, false]);
    assert_eq!(open("172.1.1.1"), [true, false, false, false]);
    assert_eq!(open("173.1.1.1"), [false; 4]);
    assert_eq!(
        c.known_as(c.identity(ip("172.16.5.5")).id),
        ["NetworkGroup/db", "NetworkGroup/vms", "172.0.0.0/8", "172.16.5.5/32"]
    );
    assert_eq!(
        c.known_as(c.identity(ip("172.16.5.6")).id),
        ["node", "NetworkGroup/db", "NetworkGroup/vms", "172.0.0.0/8"]
    );
}

#[test]
fn everything_in_ipv6_is_nothing_in_ipv4() {
    let c = compiled(&web_with("egress: [{name: six, to: [{ipBlock: {cidr: '::/0'}}]}]"));
    assert!(web(&c, DIR_EGRESS, "2606::1", 80).0);
    assert!(web(&c, DIR_EGRESS, "fd00:66::1", 80).0);
    assert!(!web(&c, DIR_EGRESS, WORLD, 80).0);
    assert!(!web(&c, DIR_EGRESS, PAY, 80).0);
    assert_eq!(c.identity(ip(WORLD)).id, ID_WORLD);
    let c = compiled(&web_with("egress: [{name: four, to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"));
    assert!(web(&c, DIR_EGRESS, WORLD, 80).0 && web(&c, DIR_EGRESS, PAY, 80).0);
    assert!(!web(&c, DIR_EGRESS, "2606::1", 80).0);
}

#[test]
fn a_nodes_address_inside_a_pod_range_is_a_node() {
    let mut objects = web_with("ingress: [{name: n, from: [{nodes: {}}]}]");
    Arc::make_mut(objects.nodes.get_mut("node-2").unwrap()).addresses.push(ip("10.65.0.1"));
    assert_eq!(objects.partition_of_address(ip("10.65.0.1")), None);
    assert_eq!(web(&compiled(&objects), DIR_INGRESS, "10.65.0.1", 80), yes("Partition/web ingress \"n\""));
}

#[test]
fn of_nested_ranges_the_longer_has_the_address_by_name_and_in_the_tables() {
    let mut objects = cluster();
    add(&mut objects, "inner", "{policyID: 3, podCIDRs: [10.65.1.0/24]}");
    add(&mut objects, "zoo", "{policyID: 4, podCIDRs: [10.65.0.0/16]}");
    let c = compiled(&objects);
    for (address, partition) in [("10.65.1.1", "inner"), ("10.65.2.1", "web")] {
        assert_eq!(objects.partition_of_address(ip(address)), Some(partition));
        assert_eq!(c.identity(ip(address)).id, c.pod_identities[partition]);
    }
}

#[test]
fn a_pod_in_range_has_the_identity_of_its_address_and_a_stray_that_of_its_partition() {
    let objects = web_with("egress: [{to: [{ipBlock: {cidr: 10.66.1.0/24}}]}]");
    let c = compiled(&objects);
    let pay = c.pod_identities["pay"];
    let placement = c.place(&objects, &local(&objects, "pay/a")).unwrap();
    assert_eq!(placement.policy, c.policies["pay"]);
    assert_eq!(c.pod_identity(&placement, ip("10.66.2.1")), pay);
    let in_block = c.pod_identity(&placement, ip("10.66.1.1"));
    assert_ne!(in_block, pay);
    assert!(c.evaluate(c.policies["web"], DIR_EGRESS, in_block, PROTO_TCP, 1).allowed);
    assert_eq!(c.pod_identity(&placement, ip("10.65.0.1")), pay, "a stray in another's range");
    let gone = LocalPod { partition: "gone".into(), ..local(&objects, "pay/a") };
    assert_eq!(c.place(&objects, &gone).unwrap().policy, c.policies["default"]);
}

#[test]
fn a_stray_in_anothers_range_is_to_every_node_of_the_partition_it_was_wired_into() {
    let mut objects = web_with("ingress: [{from: [{partition: pay}], ports: [{port: 443}]}]");
    let block =
        IPBlockSpec { cidr: "10.65.3.0/26".parse().unwrap(), partition: "pay".into(), node: "n2".into() };
    let blocks = [("10-65-3-0-26".to_string(), Arc::new(block))].into_iter().collect();
    objects.strays = strays(&objects, &blocks, Witness::None).0;
    // Its own node knows it by its wiring, any other by the claim.
    for pods in [vec![local(&objects, "pay/a")], vec![]] {
        let c = compiled_for(&objects, &pods);
        let identity = c.identity(ip("10.65.3.5")).id;
        assert_eq!(identity, c.pod_identities["pay"]);
        assert!(c.evaluate(c.policies["web"], DIR_INGRESS, identity, PROTO_TCP, 443).allowed);
        assert!(
            !c.evaluate(c.policies["web"], DIR_INGRESS, identity, PROTO_TCP, 444).allowed,
            "no pod of web"
        );
        for pod in &pods {
            let placement = c.place(&objects, pod).unwrap();
            assert_eq!(c.pod_identity(&placement, ip("10.65.3.5")), identity);
        }
        assert_eq!(c.identity(ip("10.65.4.5")).id, c.pod_identities["web"], "beside the block");
    }
    assert_eq!(objects.partition_of_address(ip("10.65.3.5")), Some("pay"));
}

#[test]
fn an_address_outside_all_ranges_is_the_world_whatever_pod_is_told_to_have_it_and_a_strays_is_its_pods() {
    let mut objects =
        web_with("ingress: [{from: [{partition: pay}, {partition: default}, {allPartitions: {}}]}]");
    let everybody = "{namespaceSelector: {}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}";
    add_network_policy(
        &mut objects,
        "web/in",
        &format!("podSelector: {{}}\ningress: [{{from: [{everybody}]}}]"),
    );
    objects.namespaces.extend(["pay", "shop", "web"].map(|name| (name.to_owned(), Arc::default())));
    // In range by one of them, so that their labels are asked for.
    for (key, address) in [("pay/far", "10.99.0.9"), ("shop/far", "10.99.0.8"), ("pay/near", PAY)] {
        add_pod(&mut objects, key, address, "{node: n2, labels: {app: a}}");
    }
    let subject = local(&objects, "web/subject");
    let told = |objects: &Objects| {
        let c = compiled_for(objects, std::slice::from_ref(&subject));
        let policy = c.place(objects, &subject).unwrap().policy;
        ["10.99.0.9", "10.99.0.8", PAY].map(|peer| {
            let id = c.identity(ip(peer)).id;
            (id == ID_WORLD, c.evaluate(policy, DIR_INGRESS, id, PROTO_TCP, 1).allowed)
        })
    };
    assert_eq!(told(&objects), [(true, false), (true, false), (false, true)]);
    for witness in [Witness::Pod, Witness::None] {
        let block =
            IPBlockSpec { cidr: "10.99.0.9/32".parse().unwrap(), partition: "pay".into(), node: "n2".into() };
        let blocks = [("10-99-0-9-32".to_string(), Arc::new(block))].into_iter().collect();
        objects.strays = strays(&objects, &blocks, witness).0;
        assert_eq!(told(&objects), [(false, true), (true, false), (false, true)], "{witness:?}");
    }
}

/// A kubelet may tell of any pod of its node that it has any address, also under a name that comes first.
#[test]
fn what_selectors_see_of_a_stray_is_the_pod_whose_node_has_claimed_its_address() {
    let mut objects = web_with("ingress: [{from: [{partition: pay}, {partition: default}]}]");
    add(&mut objects, "pay", "{policyID: 2, namespaces: [pay], podCIDRs: [10.66.0.0/16], egress: [{}]}");
    let peers = "{namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}";
    add_network_policy(&mut objects, "web/in", &format!("podSelector: {{}}\ningress: [{{from: [{peers}]}}]"));
    objects.namespaces.extend(["any", "pay", "web"].map(|name| (name.to_owned(), Arc::default())));
    add_pod(&mut objects, "any/told", "10.99.0.9", "{node: n3, labels: {app: a}}");
    add_pod(&mut objects, "web/subject", "10.65.0.5", "{node: n1}");
    let block =
        IPBlockSpec { cidr: "10.99.0.9/32".parse().unwrap(), partition: "pay".into(), node: "n2".into() };
    let blocks = [("10-99-0-9-32".to_string(), Arc::new(block))].into_iter().collect();
    let subject = local(&objects, "web/subject");
    for (labels, admitted) in [("{app: b}", false), ("{app: a}", true)] {
        add_pod(&mut objects, "pay/far", "10.99.0.9", &format!("{{node: n2, labels: {labels}}}"));
        objects.strays = strays(&objects, &blocks, Witness::Pod).0;
        let c = compiled_for(&objects, std::slice::from_ref(&subject));
        let (policy, peer) = (c.place(&objects, &subject).unwrap().policy, c.identity(ip("10.99.0.9")).id);
        assert_eq!(c.evaluate(policy, DIR_INGRESS, peer, PROTO_TCP, 1).allowed, admitted, "{labels}");
        let side = Side::of(&objects, &mut Interner::default(), "", &[]).unwrap();
        let verdict = side.verdict(ip("10.99.0.9"), ip("10.65.0.5"), PROTO_TCP, 1);
        assert_eq!(verdict.allowed, admitted, "{labels}");
    }
}

#[test]
fn an_address_that_nothing_names_and_a_number_that_nobody_has_judged_count_as_world() {
    // Whoever is anybody is let in.
    let all = "{partition: pay}, {allPartitions: {}}, {nodes: {}}, {networkGroup: vms}, {networkGroup: db}";
    let c = compiled(&web_with(&format!("ingress: [{{from: [{all}]}}]\negress: [{{name: out}}]")));
    assert_eq!(["203.0.113.9", "2001:db9::1"].map(|a| c.identity(ip(a)).id), [ID_WORLD; 2]);
    let beyond = c.tables.classes.len() as u32;
    for (partition, dir) in [("web", DIR_INGRESS), ("web", DIR_EGRESS), ("default", DIR_INGRESS)] {
        let decide = |peer| c.evaluate(c.policies[partition], dir, peer, PROTO_TCP, 80);
        for never_given_out in [beyond, beyond + 1, u32::from(u16::MAX), u32::MAX] {
            assert_eq!(decide(never_given_out), decide(ID_WORLD), "{partition} {never_given_out}");
        }
    }
    let decide = |peer| c.evaluate(c.policies["web"], DIR_INGRESS, peer, PROTO_TCP, 80).allowed;
    assert!(decide(c.pod_identities["pay"]) && !decide(beyond));
}

#[test]
fn a_rule_of_ours_is_never_gone_and_a_written_one_is_when_nobody_writes_it() {
    let mut interner = Interner::default();
    let before = compile(&web_with("ingress: [{name: in}]"), &mut interner, &HERE).unwrap();
    let (number, _) = before.rules.in_force().next().unwrap();
    let after = compile(&cluster(), &mut interner, &HERE).unwrap();
    assert_eq!([&before, &after].map(|c| c.rules.is_gone(number)), [false, true]);
    assert!(![RULE_DEFAULT_DENY, RULE_OPEN, RULE_OWN_NODE].into_iter().any(|n| after.rules.is_gone(n)));
    assert_eq!(after.rules.get(number).unwrap().name, "Partition/web ingress \"in\"", "it keeps its name");
}

#[test]
fn a_policy_that_does_not_exist_decides_nothing() {
    let c = compiled(&cluster());
    let decision = c.evaluate(999, DIR_EGRESS, ID_WORLD, PROTO_TCP, 80);
    assert_eq!((decision.allowed, decision.rule), (false, RULE_NONE));
}
