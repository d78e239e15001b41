//! What NetworkPolicies mean, sentence by sentence, told by the tables.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_ebpf_abi::*;
use bulkhead_policy::{Compiled, Interner, Local, LocalPod, Objects, admit, compile, compile_at_once};
use common::*;
use std::sync::Arc;

const CLIENT: &str = "10.64.0.2";
const OTHER: &str = "10.64.0.3";
const ELSEWHERE: &str = "10.64.0.4";
const UNTOLD: &str = "10.64.0.99";

/// `shop/db` and `shop/client`, `shop/other`, `dev/client`, all of the default partition.
fn shop(policies: &[&str]) -> Objects {
    let mut objects = cluster();
    objects.namespaces.insert("shop".into(), Arc::new([("team", "shop")].into_iter().collect()));
    objects.namespaces.insert("dev".into(), Arc::new([("team", "dev")].into_iter().collect()));
    add_pod(
        &mut objects,
        "shop/db",
        "10.64.0.1",
        "{labels: {app: db}, ports: [{name: sql, protocol: TCP, port: 5432}]}",
    );
    add_pod(
        &mut objects,
        "shop/client",
        CLIENT,
        "{labels: {app: client}, ports: [{name: http, protocol: TCP, port: 8080}]}",
    );
    add_pod(
        &mut objects,
        "shop/other",
        OTHER,
        "{labels: {app: other}, ports: [{name: http, protocol: TCP, port: 9090}]}",
    );
    add_pod(&mut objects, "dev/client", ELSEWHERE, "{labels: {app: client}}");
    for (i, yaml) in policies.iter().enumerate() {
        add_network_policy(&mut objects, &format!("shop/p{i}"), yaml);
    }
    objects
}

struct Asked {
    objects: Objects,
    compiled: Compiled,
    pod: LocalPod,
}

fn db(policies: &[&str]) -> Asked {
    of(shop(policies), "shop/db")
}

fn of(objects: Objects, key: &str) -> Asked {
    let pod = local(&objects, key);
    let compiled = compiled_for(&objects, std::slice::from_ref(&pod));
    Asked { objects, compiled, pod }
}

impl Asked {
    fn decide(&self, dir: u32, peer: &str, proto: u8, port: u16) -> (bool, String) {
        let policy = self.compiled.place(&self.objects, &self.pod).unwrap().policy;
        let decision = self.compiled.evaluate(policy, dir, self.compiled.identity(ip(peer)).id, proto, port);
        (decision.allowed, rule_name(&self.compiled, decision).to_string())
    }

    fn takes(&self, peer: &str, port: u16) -> bool {
        self.decide(DIR_INGRESS, peer, PROTO_TCP, port).0
    }

    fn reaches(&self, peer: &str, port: u16) -> bool {
        self.decide(DIR_EGRESS, peer, PROTO_TCP, port).0
    }
}

#[test]
fn a_pod_that_no_policy_selects_is_not_isolated() {
    let asked = db(&["{podSelector: {matchLabels: {app: client}}}"]);
    assert_eq!(asked.decide(DIR_INGRESS, OTHER, PROTO_TCP, 1), (true, "the partition is open".into()));
    assert_eq!(
        asked.compiled.place(&asked.objects, &asked.pod).unwrap().policy,
        asked.compiled.policies["default"]
    );
}

#[test]
fn an_empty_policy_isolates_every_pod_of_its_namespace_for_ingress_alone() {
    for empty in ["{podSelector: {}}", "{}", "{podSelector: {}, egress: []}"] {
        let asked = db(&[empty]);
        let isolates = (false, "NetworkPolicy/shop/p0 (isolates)".to_string());
        assert_eq!(asked.decide(DIR_INGRESS, CLIENT, PROTO_TCP, 5432), isolates, "{empty}");
        assert!(asked.reaches(CLIENT, 80), "{empty}");
        assert!(of(shop(&[empty]), "dev/client").takes(CLIENT, 80), "another namespace");
    }
}

#[test]
fn without_types_an_egress_rule_isolates_for_egress_too() {
    let asked = db(&["{podSelector: {}, egress: [{ports: [{port: 53, protocol: UDP}]}]}"]);
    assert!(asked.decide(DIR_EGRESS, CLIENT, PROTO_UDP, 53).0);
    assert!(!asked.reaches(CLIENT, 53) && !asked.takes(CLIENT, 80));
}

#[test]
fn types_say_which_directions_are_isolated() {
    let egress = db(&["{podSelector: {}, policyTypes: [Egress]}"]);
    assert!(egress.takes(CLIENT, 1) && !egress.reaches(CLIENT, 1));
    let rules_of_another_type =
        db(&["{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 9}]}]}"]);
    assert!(!rules_of_another_type.takes(CLIENT, 1) && rules_of_another_type.reaches(CLIENT, 1));
}

/// Such a rule is refused; what an older daemon has let in is closed rather than open.
#[test]
fn a_peer_that_names_nobody_is_nobody() {
    let asked = db(&["{podSelector: {}, ingress: [{from: [{}]}]}"]);
    assert!(![CLIENT, UNTOLD, "8.8.8.8"].into_iter().any(|peer| asked.takes(peer, 1)));
}

#[test]
fn policies_that_select_the_same_pod_add_up() {
    let asked = db(&[
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 1}]}]}",
    ]);
    assert_eq!(
        asked.decide(DIR_INGRESS, CLIENT, PROTO_TCP, 7),
        (true, "NetworkPolicy/shop/p0 ingress[0]".into())
    );
    assert_eq!(
        asked.decide(DIR_INGRESS, OTHER, PROTO_TCP, 1),
        (true, "NetworkPolicy/shop/p1 ingress[0]".into())
    );
    let none = (false, "NetworkPolicy/shop/p0, NetworkPolicy/shop/p1 (isolate)".to_string());
    assert_eq!(asked.decide(DIR_INGRESS, OTHER, PROTO_TCP, 2), none);
}

#[test]
fn a_pod_selector_alone_is_of_the_policys_namespace_and_with_a_namespace_selector_of_those() {
    let from = |peer: &str| db(&[&format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")]);
    let own = from("{podSelector: {matchLabels: {app: client}}}");
    assert!(own.takes(CLIENT, 1) && !own.takes(ELSEWHERE, 1) && !own.takes(OTHER, 1));
    let dev = from("{namespaceSelector: {matchLabels: {team: dev}}}");
    assert!(dev.takes(ELSEWHERE, 1) && !dev.takes(CLIENT, 1) && !dev.takes(UNTOLD, 1));
    let both = from(
        "{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [dev, shop]}]}, podSelector: {matchLabels: {app: client}}}",
    );
    assert!(both.takes(ELSEWHERE, 1) && both.takes(CLIENT, 1) && !both.takes(OTHER, 1));
    let by_name = from("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: dev}}}");
    assert!(by_name.takes(ELSEWHERE, 1) && !by_name.takes(CLIENT, 1));
}

#[test]
fn an_empty_namespace_selector_is_every_pod_also_one_that_no_source_tells_of_and_nobody_else() {
    let asked = db(&["{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"]);
    for peer in [CLIENT, ELSEWHERE, UNTOLD, "10.65.0.1", "fd00:64::1"] {
        assert!(asked.takes(peer, 1), "{peer}");
    }
    assert!(!asked.takes("8.8.8.8", 1) && !asked.takes("192.168.0.2", 1));
}

#[test]
fn no_peers_are_everybody_and_no_ports_every_protocol() {
    let asked = db(&["{podSelector: {}, ingress: [{}]}"]);
    for (peer, proto) in [("8.8.8.8", PROTO_TCP), (CLIENT, PROTO_ICMP), ("192.168.0.2", 47)] {
        assert!(asked.decide(DIR_INGRESS, peer, proto, 1).0, "{peer}");
    }
    let tcp = db(&[
        "{podSelector: {}, ingress: [{ports: [{protocol: SCTP}, {port: 80}, {port: 100, endPort: 200}]}]}",
    ]);
    assert!(tcp.decide(DIR_INGRESS, CLIENT, PROTO_SCTP, 65535).0);
    for (port, allowed) in [(80, true), (81, false), (99, false), (100, true), (200, true), (201, false)] {
        assert_eq!(tcp.takes(CLIENT, port), allowed, "{port}");
    }
    assert!(!tcp.decide(DIR_INGRESS, CLIENT, PROTO_ICMP, 8).0, "echo is a protocol like another");
}

#[test]
fn an_ip_block_is_of_addresses_pods_among_them_less_its_exceptions() {
    // As Kubernetes takes them, also with bits beyond the prefix.
    for (cidr, except) in [("10.64.0.0/29", "10.64.0.2/31"), ("10.64.0.5/29", "10.64.0.3/31")] {
        let block = format!("{{cidr: {cidr}, except: [{except}]}}");
        let asked = db(&[&format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {block}}}]}}]}}")]);
        assert!(asked.takes(ELSEWHERE, 1) && !asked.takes(CLIENT, 1) && !asked.takes(OTHER, 1));
        assert!(!asked.takes(UNTOLD, 1));
    }
}

#[test]
fn a_named_port_is_the_pods_own_for_ingress_and_each_peers_for_egress() {
    let ingress = db(&["{podSelector: {}, ingress: [{ports: [{port: sql}]}]}"]);
    assert!(ingress.takes(CLIENT, 5432) && !ingress.takes(CLIENT, 5433));
    let unresolved = of(shop(&["{podSelector: {}, ingress: [{ports: [{port: sql}]}]}"]), "shop/client");
    assert!(!unresolved.takes(OTHER, 5432), "the pod has no port of that name");
    let egress =
        db(&["{podSelector: {}, egress: [{to: [{podSelector: {}}], ports: [{port: http}, {port: 22}]}]}"]);
    assert!(egress.reaches(CLIENT, 8080) && egress.reaches(OTHER, 9090));
    assert!(
        !egress.reaches(CLIENT, 9090) && !egress.reaches(OTHER, 8080) && !egress.reaches(ELSEWHERE, 8080)
    );
    assert!(egress.reaches(OTHER, 22));
    assert!(!egress.decide(DIR_EGRESS, CLIENT, PROTO_UDP, 8080).0, "the name is of a TCP port");
}

#[test]
fn a_port_range_holds_both_its_ends_and_a_port_alone_is_that_port() {
    let asked = db(&["{podSelector: {}, ingress: [{ports: [{port: 1000, endPort: 1300}, {port: 2000}]}]}"]);
    let taken: Vec<u16> = [999, 1000, 1255, 1256, 1300, 1301, 1999, 2000, 2001]
        .into_iter()
        .filter(|p| asked.takes(CLIENT, *p))
        .collect();
    assert_eq!(taken, [1000, 1255, 1256, 1300, 2000]);
    let last = db(&["{podSelector: {}, egress: [{ports: [{port: 65000, endPort: 65535}]}]}"]);
    assert!(last.reaches(CLIENT, 65535) && last.reaches(CLIENT, 65000) && !last.reaches(CLIENT, 64999));
}

#[test]
fn a_port_is_of_its_protocol_which_is_tcp_unless_it_says_otherwise() {
    let asked = db(&["{podSelector: {}, ingress: [{ports: [{port: 1}, {port: 2, protocol: UDP}, \
                      {port: 3, protocol: SCTP}, {protocol: UDP, port: 9, endPort: 10}]}, {ports: [{protocol: SCTP}]}]}"]);
    let taken = |proto| -> Vec<u16> {
        [1, 2, 3, 10, 60_000]
            .into_iter()
            .filter(|port| asked.decide(DIR_INGRESS, CLIENT, proto, *port).0)
            .collect()
    };
    assert_eq!(taken(PROTO_TCP), [1]);
    assert_eq!(taken(PROTO_UDP), [2, 10]);
    assert_eq!(taken(PROTO_SCTP), [1, 2, 3, 10, 60_000], "a protocol without a port is all its ports");
    assert_eq!(taken(PROTO_ICMP), [0; 0]);
}

#[test]
fn a_named_port_is_of_the_protocol_that_both_say() {
    let asked = db(&["{podSelector: {}, ingress: [{ports: [{port: sql, protocol: UDP}]}]}"]);
    assert!(![PROTO_TCP, PROTO_UDP].into_iter().any(|p| asked.decide(DIR_INGRESS, CLIENT, p, 5432).0));
}

#[test]
fn whom_a_policy_isolates_takes_nothing_of_unknown_origin_in_an_open_partition_either() {
    let open = |key: &str| {
        let asked = of(shop(&["{podSelector: {matchLabels: {app: db}}, ingress: [{}]}"]), key);
        let policy = asked.compiled.place(&asked.objects, &asked.pod).unwrap().policy;
        asked.compiled.evaluate(policy, DIR_INGRESS, ID_WORLD, PROTO_TCP, 1).open
    };
    assert!(open("shop/other") && !open("shop/db"));
}

#[test]
fn a_node_reaches_its_own_pods_whatever_policies_say_and_other_nodes_do_not() {
    let asked = db(&["{podSelector: {}}"]);
    assert_eq!(
        asked.decide(DIR_INGRESS, "192.168.0.1", PROTO_TCP, 1),
        (true, "a node reaches its own pods".into())
    );
    assert!(!asked.takes("192.168.0.2", 1));
}

#[test]
fn a_host_network_pod_is_its_node_and_no_selector_picks_it() {
    let mut objects = shop(&["{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"]);
    add_pod(&mut objects, "shop/agent", "192.168.0.2", "{labels: {app: client}, hostNetwork: true}");
    // Nor that of a node that nobody has told of yet.
    add_pod(&mut objects, "shop/new", "192.168.0.9", "{labels: {app: client}, hostNetwork: true}");
    let asked = of(objects, "shop/db");
    assert!(!asked.takes("192.168.0.2", 1) && !asked.takes("192.168.0.9", 1));
}

#[test]
fn a_flow_needs_a_yes_from_partition_and_network_policy() {
    let allow_all = "{podSelector: {}, ingress: [{}]}";
    let web = |np: &str, fields: &str| {
        let mut objects = web_with(fields);
        add_network_policy(&mut objects, "web/np", np);
        of(objects, "web/shop")
    };
    let partition_says_no = web(allow_all, "");
    assert_eq!(
        partition_says_no.decide(DIR_INGRESS, "10.66.0.1", PROTO_TCP, 1),
        (false, "no rule allows it".into())
    );
    let policy_says_no = web("{podSelector: {}}", "ingress: [{name: all}]");
    let isolates = (false, "NetworkPolicy/web/np (isolates)".to_string());
    assert_eq!(policy_says_no.decide(DIR_INGRESS, "10.66.0.1", PROTO_TCP, 1), isolates);
    assert_eq!(policy_says_no.decide(DIR_INGRESS, "10.65.0.1", PROTO_TCP, 1), isolates, "the same partition");
    let both_say_no = web("{podSelector: {}}", "").decide(DIR_INGRESS, "10.66.0.1", PROTO_TCP, 1);
    assert_eq!(both_say_no, (false, "no rule allows it".into()), "the first to be asked is named");
    assert!(web(allow_all, "ingress: [{name: all}]").takes("10.66.0.1", 1));
}

#[test]
fn audit_and_keep_soften_the_partitions_denials_and_no_others() {
    let mut objects =
        web_with("isolation: Audit\ningress: [{name: k, from: [{networkGroup: vms}], established: Keep}]");
    add_network_policy(
        &mut objects,
        "web/np",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.16.5.0/24}}]}]}",
    );
    let c = compiled_for(&objects, &[local(&objects, "web/a")]);
    let policy = c.place(&objects, &local(&objects, "web/a")).unwrap().policy;
    let decide = |peer: &str| c.evaluate(policy, DIR_INGRESS, c.identity(ip(peer)).id, PROTO_TCP, 1);
    assert!(decide("172.16.5.5").allowed && decide("172.16.5.5").keep);
    let denied_by_both = decide("8.8.8.8");
    assert!(!denied_by_both.passes() && denied_by_both.last);
    assert_eq!(rule_name(&c, denied_by_both), "NetworkPolicy/web/np (isolates)");
    assert!(!decide("172.16.9.9").passes(), "the policy denies what the partition allows");
    objects.network_policies.clear();
    let audited = compiled(&objects);
    let decision = audited.evaluate(audited.policies["web"], DIR_INGRESS, ID_WORLD, PROTO_TCP, 1);
    assert!(decision.passes() && !decision.last);
}

#[test]
fn pods_that_no_selector_tells_apart_share_identity_and_policy_and_have_no_entry() {
    let objects = shop(&[
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    ]);
    let c = of(objects, "shop/db").compiled;
    assert!(c.exact.contains_key(&Addr::from_ip(ip(CLIENT))));
    for nobody in [OTHER, ELSEWHERE, "10.64.0.1"] {
        assert!(!c.exact.contains_key(&Addr::from_ip(ip(nobody))), "{nobody}");
    }
    assert_eq!(c.identity(ip(OTHER)), c.identity(ip(UNTOLD)));
}

#[test]
fn only_the_policies_of_this_nodes_pods_are_compiled() {
    let objects =
        shop(&["{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}"]);
    let bare = compiled(&objects);
    let pod = local(&objects, "shop/db");
    assert_eq!((bare.exact.len(), bare.place(&objects, &pod)), (6, None), "nodes alone");
    let none = std::collections::BTreeSet::new();
    let lean = Local { partitions: Some(&none), ..HERE };
    let c = compile(&objects, &mut Interner::default(), &lean).unwrap();
    assert_eq!(c.policies.keys().collect::<Vec<_>>(), ["default"]);
    assert!(c.tables.rows.len() < bare.tables.rows.len());
}

#[test]
fn what_pods_had_until_the_switch_stays_in_the_next_tables() {
    let before = shop(&["{podSelector: {}, ingress: [{}]}"]);
    let pod = local(&before, "shop/db");
    let (mut interner, pods) = (Interner::default(), [pod.clone()]);
    let local = Local { pods: &pods, ..HERE };
    let former = compile(&before, &mut interner, &local).unwrap();
    let old = former.place(&before, &pod).unwrap().policy;
    interner.switched();
    let after = shop(&["{podSelector: {}, ingress: [{}]}", "{podSelector: {}, ingress: [{}]}"]);
    let local_after = Local { former: Some(&former), ..local };
    let c = compile(&after, &mut interner, &local_after).unwrap();
    // Also where all is made and placed anew.
    let at_once = compile_at_once(&after, &mut interner.clone(), &local_after).unwrap();
    let new = c.place(&after, &pod).unwrap().policy;
    assert_ne!(old, new);
    for policy in [old, new] {
        for c in [&c, &at_once] {
            assert!(c.evaluate(policy, DIR_INGRESS, ID_WORLD, PROTO_TCP, 1).allowed);
        }
    }
    interner.switched();
    let last = compile(&after, &mut interner, &Local { former: Some(&c), ..local }).unwrap();
    assert!(!last.evaluate(old, DIR_INGRESS, ID_WORLD, PROTO_TCP, 1).allowed, "one generation and no longer");
}

#[test]
fn a_policy_that_upstream_would_refuse_is_refused_with_its_field() {
    let refused = |yaml: &str| {
        let mut objects = cluster();
        add_network_policy(&mut objects, "shop/np", yaml);
        let (in_force, errors) = admit(&Objects::default(), objects);
        assert!(in_force.network_policies.is_empty());
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors[0].to_string()
    };
    for (yaml, field) in [
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Is}]}}",
            "spec.podSelector.matchExpressions[0].operator",
        ),
        ("{policyTypes: [ingress]}", "spec.policyTypes[0]"),
        ("{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]"),
        ("{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}", "spec.ingress[0].from[0]"),
        ("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0}}]}]}", "spec.egress[0].to[0].ipBlock.cidr"),
        (
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        ("{egress: [{ports: [{port: 0}]}]}", "spec.egress[0].ports[0].port"),
        ("{egress: [{ports: [{port: Http}]}]}", "spec.egress[0].ports[0].port"),
        (
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        ("{egress: [{ports: [{endPort: 9}]}]}", "spec.egress[0].ports[0].endPort"),
        ("{egress: [{ports: [{port: 65536}]}]}", "spec.egress[0].ports[0].port"),
        ("{egress: [{ports: [{port: http, endPort: 9}]}]}", "spec.egress[0].ports[0].endPort"),
        ("{egress: [{ports: [{port: 9, endPort: 8}]}]}", "spec.egress[0].ports[0].endPort"),
        ("{egress: [{ports: [{protocol: ICMP}]}]}", "spec.egress[0].ports[0].protocol"),
    ] {
        let told = refused(yaml);
        assert!(told.starts_with(&format!("shop/np.yaml: NetworkPolicy/shop/np: {field}: ")), "{told}");
    }
}
