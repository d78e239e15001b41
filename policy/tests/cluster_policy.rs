//! What ClusterNetworkPolicies mean, and the order of tiers, told by the tables.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::objects::ClusterNetworkPolicySpec;
use bulkhead_ebpf_abi::*;
use bulkhead_policy::{Flow, Objects, admit, explain};
use common::*;
use std::sync::Arc;

const WEB: &str = "web/shop";
const PAY: &str = "10.66.0.1";

fn add_cluster_policy(objects: &mut Objects, name: &str, yaml: &str) {
    let spec: ClusterNetworkPolicySpec =
        serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    objects.cluster_network_policies.insert(name.into(), sourced(spec, name));
}

/// Verdict and rule of `web/shop` about TCP from or to `peer`.
fn decide(objects: &Objects, dir: u32, peer: &str, port: u16) -> (bool, String) {
    decide_on(objects, dir, peer, PROTO_TCP, port)
}

fn decide_on(objects: &Objects, dir: u32, peer: &str, proto: u8, port: u16) -> (bool, String) {
    let pod = local(objects, WEB);
    let c = compiled_for(objects, std::slice::from_ref(&pod));
    let policy = c.place(objects, &pod).unwrap().policy;
    let decision = c.evaluate(policy, dir, c.identity(ip(peer)).id, proto, port);
    (decision.passes(), rule_name(&c, decision).to_string())
}

fn with(fields: &str, policies: &[(&str, &str)]) -> Objects {
    let mut objects = web_with(fields);
    add_pod(
        &mut objects,
        WEB,
        "10.65.0.1",
        "{labels: {app: shop}, ports: [{name: http, protocol: TCP, port: 8080}]}",
    );
    add_pod(&mut objects, "pay/db", PAY, "{labels: {app: db}}");
    for (name, yaml) in policies {
        add_cluster_policy(&mut objects, name, yaml);
    }
    objects
}

const SUBJECT: &str = "subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: shop}}}}";

fn policy(tier: &str, priority: u32, rules: &str) -> String {
    format!("{{tier: {tier}, priority: {priority}, {SUBJECT}, {rules}}}")
}

#[test]
fn the_admin_tier_ends_it_with_accept_and_deny_before_the_partition_is_asked() {
    let accept = policy("Admin", 1, "ingress: [{action: Accept, from: [{namespaces: {}}]}]");
    let objects = with("", &[("open", &accept)]);
    assert_eq!(decide(&objects, DIR_INGRESS, PAY, 1), (true, "ClusterNetworkPolicy/open ingress[0]".into()));
    let deny = policy("Admin", 1, "ingress: [{name: shut, action: Deny, from: [{namespaces: {}}]}]");
    let objects = with("isolation: Audit", &[("shut", &deny)]);
    let denied = (false, "ClusterNetworkPolicy/shut ingress[0] \"shut\"".to_string());
    assert_eq!(decide(&objects, DIR_INGRESS, "10.65.0.9", 1), denied, "also in one partition, also in Audit");
}

#[test]
fn pass_goes_on_to_the_partition_and_spares_the_rest_of_the_tier() {
    let pass = policy("Admin", 1, "ingress: [{action: Pass, from: [{namespaces: {}}]}]");
    let accept = policy("Admin", 2, "ingress: [{action: Accept, from: [{namespaces: {}}]}]");
    let objects = with("", &[("a-accept", &accept), ("b-pass", &pass)]);
    assert_eq!(decide(&objects, DIR_INGRESS, PAY, 1), (false, "no rule allows it".into()));
}

#[test]
fn the_lower_priority_goes_first_and_within_a_policy_the_rule_written_first() {
    let deny = policy("Admin", 10, "egress: [{action: Deny, to: [{networks: [10.1.2.3/8]}]}]");
    let accept = policy(
        "Admin",
        9,
        "egress: [{action: Accept, to: [{networks: [10.66.0.0/16]}]}, {action: Deny, to: [{networks: [10.66.0.0/16]}]}]",
    );
    let objects = with("", &[("a", &deny), ("b", &accept)]);
    assert!(decide(&objects, DIR_EGRESS, PAY, 1).0, "networks are of pods too");
    assert_eq!(
        decide(&objects, DIR_EGRESS, "10.67.0.1", 1),
        (false, "ClusterNetworkPolicy/a egress[0]".into())
    );
}

#[test]
fn of_equal_priorities_the_first_by_name_speaks_and_the_tiers_do_not_share_them() {
    let (deny, accept) = (
        "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
        "ingress: [{action: Accept, from: [{namespaces: {}}]}]",
    );
    for (a, b, allowed) in [(deny, accept, false), (accept, deny, true)] {
        let objects = with("", &[("a", &policy("Admin", 5, a)), ("b", &policy("Admin", 5, b))]);
        let action = (allowed, "ClusterNetworkPolicy/a ingress[0]".to_string());
        assert_eq!(decide(&objects, DIR_INGRESS, PAY, 1), action);
    }
    // A baseline policy of any priority stands behind all of the admin tier.
    let objects = with("", &[("a", &policy("Baseline", 0, deny)), ("b", &policy("Admin", 1000, accept))]);
    assert_eq!(decide(&objects, DIR_INGRESS, PAY, 1), (true, "ClusterNetworkPolicy/b ingress[0]".into()));
}

#[test]
fn the_baseline_judges_only_pods_that_no_network_policy_isolates() {
    let deny = policy("Baseline", 1, "ingress: [{action: Deny, from: [{namespaces: {}}]}]");
    let mut objects = with("", &[("base", &deny)]);
    assert_eq!(
        decide(&objects, DIR_INGRESS, "10.65.0.9", 1),
        (false, "ClusterNetworkPolicy/base ingress[0]".into())
    );
    add_network_policy(&mut objects, "web/all", "{podSelector: {}, ingress: [{}]}");
    assert!(decide(&objects, DIR_INGRESS, "10.65.0.9", 1).0);
    assert_eq!(
        decide(&objects, DIR_INGRESS, PAY, 1),
        (false, "no rule allows it".into()),
        "nor does it loosen a partition"
    );
    let pass = policy("Baseline", 1, "ingress: [{action: Pass, from: [{namespaces: {}}]}]");
    let objects = with("", &[("first", &pass), ("second", &deny)]);
    let goes_on = (true, "same partition".to_string());
    assert_eq!(decide(&objects, DIR_INGRESS, "10.65.0.9", 1), goes_on, "Pass leaves it to the partition");
}

#[test]
fn nodes_are_peers_by_their_labels_and_protocols_by_number_range_and_name() {
    let to_nodes = policy(
        "Admin",
        1,
        "egress: [{action: Accept, to: [{nodes: {matchLabels: {role: store}}}], protocols: [{tcp: {destinationPort: {range: {start: 10, end: 20}}}}]}]",
    );
    let named = policy(
        "Admin",
        2,
        "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: {number: 22}}}]}]",
    );
    let mut objects = with("", &[("nodes", &to_nodes), ("named", &named)]);
    Arc::make_mut(objects.nodes.get_mut("node-2").unwrap()).labels =
        [("role", "store")].into_iter().collect();
    for (peer, port, allowed) in
        [("192.168.0.2", 10, true), ("192.168.0.2", 21, false), ("192.168.0.3", 10, false)]
    {
        assert_eq!(decide(&objects, DIR_EGRESS, peer, port).0, allowed, "{peer} {port}");
    }
    for (port, allowed) in [(8080, true), (22, true), (23, false)] {
        assert_eq!(decide(&objects, DIR_INGRESS, PAY, port).0, allowed, "{port}");
    }
}

#[test]
fn a_rule_is_of_the_protocols_that_it_names_and_of_all_if_it_names_none() {
    let accepting = |protocols: &str| {
        let rules = format!("ingress: [{{action: Accept, from: [{{namespaces: {{}}}}]{protocols}}}]");
        with("", &[("some", &policy("Admin", 1, &rules))])
    };
    let of = |protocols: &str| accepting(&format!(", protocols: [{protocols}]"));
    let taken = |objects: &Objects| -> Vec<(u8, u16)> {
        let all = [PROTO_TCP, PROTO_UDP, PROTO_SCTP, PROTO_ICMP].into_iter();
        let probes = all.flat_map(|proto| [9, 10, 15, 20, 21].map(|port| (proto, port)));
        probes.filter(|(proto, port)| decide_on(objects, DIR_INGRESS, PAY, *proto, *port).0).collect()
    };
    let range = "{destinationPort: {range: {start: 10, end: 20}}}";
    for (name, proto) in [("tcp", PROTO_TCP), ("udp", PROTO_UDP), ("sctp", PROTO_SCTP)] {
        let ranged = taken(&of(&format!("{{{name}: {range}}}")));
        assert_eq!(ranged, [10, 15, 20].map(|port| (proto, port)), "both ends of the range");
        let whole = taken(&of(&format!("{{{name}: {{}}}}")));
        assert_eq!(whole, [9, 10, 15, 20, 21].map(|port| (proto, port)), "all ports");
    }
    assert_eq!(taken(&accepting("")).len(), 20);
}

#[test]
fn a_named_port_is_the_peers_own_for_egress_and_needs_the_peer_too() {
    let to_named = policy(
        "Admin",
        1,
        "egress: [{action: Accept, to: [{pods: {namespaceSelector: {}, podSelector: {}}}], protocols: [{destinationNamedPort: sql}]}]",
    );
    let mut objects = with("", &[("named", &to_named)]);
    for (key, address, port) in [("pay/one", "10.66.0.3", 5432), ("pay/two", "10.66.0.4", 5433)] {
        add_pod(
            &mut objects,
            key,
            address,
            &format!("{{ports: [{{name: sql, protocol: TCP, port: {port}}}]}}"),
        );
    }
    let reached =
        |port| ["10.66.0.3", "10.66.0.4", PAY].map(|peer| decide(&objects, DIR_EGRESS, peer, port).0);
    assert_eq!(reached(5432), [true, false, false]);
    assert_eq!(reached(5433), [false, true, false]);
}

#[test]
fn namespaces_select_subjects_and_peers_by_their_labels() {
    let shop = "namespaces: {matchLabels: {team: shop}}";
    let rules = |peer: &str| {
        format!("ingress: [{{action: Accept, from: [{{namespaces: {{matchLabels: {{team: {peer}}}}}}}]}}]")
    };
    let allowed = |subject: &str, peer: &str| {
        let spec = format!("{{tier: Admin, priority: 1, subject: {{{subject}}}, {}}}", rules(peer));
        let mut objects = with("", &[("teams", &spec)]);
        for (namespace, team) in [("web", "shop"), ("pay", "money")] {
            objects.namespaces.insert(namespace.into(), Arc::new([("team", team)].into_iter().collect()));
        }
        decide(&objects, DIR_INGRESS, PAY, 1).0
    };
    assert!(allowed(shop, "money"));
    assert!(!allowed(shop, "shop"), "the peer is of another team");
    assert!(!allowed("namespaces: {matchLabels: {team: money}}", "money"), "no policy of this pod");
}

#[test]
fn a_node_reaches_its_own_pods_before_any_tier() {
    let mut deny = policy("Admin", 1, "ingress: [{action: Deny, from: [{namespaces: {}}]}]");
    deny = deny.replace("{namespaces: {}}", "{pods: {namespaceSelector: {}, podSelector: {}}}");
    assert!(decide(&with("", &[("d", &deny)]), DIR_INGRESS, "192.168.0.1", 1).0);
}

#[test]
fn explain_tells_what_each_tier_says() {
    let pass = policy("Admin", 1, "ingress: [{action: Pass, from: [{namespaces: {}}]}]");
    let base = policy("Baseline", 1, "ingress: [{action: Deny, from: [{namespaces: {}}]}]");
    let objects = with("ingress: [{name: in}]", &[("pass", &pass), ("base", &base)]);
    let pods = [local(&objects, WEB)];
    let flow = Flow { from: ip("172.16.5.5"), to: ip("10.65.0.1"), proto: PROTO_TCP, port: 1 };
    let told = |flow| explain(&compiled_for(&objects, &pods), &objects, &pods, flow).unwrap();
    let tiers = |d: &bulkhead_api::messages::ExplainedDecision| -> Vec<String> {
        d.tiers.iter().map(|t| format!("{} {}", t.tier, t.verdict)).collect()
    };
    let from_vm = told(flow);
    assert!(from_vm.allowed);
    assert_eq!(tiers(&from_vm.decisions[0]), ["node none", "admin none", "partition allow", "baseline none"]);
    let from_pod = told(Flow { from: ip(PAY), ..flow });
    let ingress = &from_pod.decisions[1];
    assert_eq!(tiers(ingress), ["node none", "admin pass", "partition allow", "baseline deny"]);
    assert_eq!(ingress.rule.name, "ClusterNetworkPolicy/base ingress[0]");
}

#[test]
fn what_is_not_supported_or_wrong_is_refused_with_its_field() {
    for (rules, field) in [
        ("egress: [{action: Accept, to: [{domainNames: [a.b]}]}]", "spec.egress[0].to[0].domainNames"),
        ("ingress: [{action: Accept, from: []}]", "spec.ingress[0].from"),
        ("ingress: [{action: Accept, from: [{}]}]", "spec.ingress[0].from[0]"),
        ("ingress: [{action: Accept, from: [{networks: [10.0.0.0/8]}]}]", "spec.ingress[0].from[0].networks"),
        ("egress: [{action: Deny, to: [{networks: [10.0.0.1]}]}]", "spec.egress[0].to[0].networks[0]"),
        ("egress: [{action: Deny, to: [{nodes: {}}], protocols: [{}]}]", "spec.egress[0].protocols[0]"),
        ("egress: [{action: Deny, to: [{nodes: {}, namespaces: {}}]}]", "spec.egress[0].to[0]"),
        (
            "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{udp: {destinationPort: {range: {start: 9, end: 8}}}}]}]",
            "spec.egress[0].protocols[0].udp.destinationPort.range.end",
        ),
        (
            "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}]",
            "spec.egress[0].protocols[0].tcp.destinationPort.number",
        ),
    ] {
        let mut objects = cluster();
        add_cluster_policy(&mut objects, "cnp", &policy("Admin", 1, rules));
        let (in_force, errors) = admit(&Objects::default(), objects);
        assert!(in_force.cluster_network_policies.is_empty());
        let told = errors[0].to_string();
        assert!(told.starts_with(&format!("cnp.yaml: ClusterNetworkPolicy/cnp: {field}: ")), "{told}");
    }
    let many = |n: usize| {
        let rule = "{action: Deny, to: [{nodes: {}}]}";
        let rules = vec![rule; n].join(", ");
        let mut objects = cluster();
        add_cluster_policy(&mut objects, "cnp", &policy("Admin", 1000, &format!("egress: [{rules}]")));
        admit(&Objects::default(), objects).1.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(many(25), [""; 0]);
    assert!(many(26)[0].contains("spec.egress: 26 are too many"), "{:?}", many(26));
    for priority in [-1, 1001] {
        let mut objects = cluster();
        let spec = policy("Admin", 0, "egress: []").replace("priority: 0", &format!("priority: {priority}"));
        add_cluster_policy(&mut objects, "cnp", &spec);
        let told = admit(&Objects::default(), objects).1[0].to_string();
        assert!(told.contains(&format!("spec.priority: {priority} is no priority")), "{told}");
    }
    let unknown =
        policy("Admin", 1, "ingress: [{action: Accept, from: [{namespaces: {}}], schedule: nights}]");
    assert!(serde_saphyr::from_str::<ClusterNetworkPolicySpec>(&unknown).is_err());
}
