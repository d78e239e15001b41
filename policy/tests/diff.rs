//! What a change does, in words that can be read off.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use bulkhead_api::objects::{NetworkGroupSpec, PartitionSpec};
use bulkhead_ebpf_abi::RULE_OWN_NODE;
use bulkhead_policy::{
    Interner, LocalPod, NodeInfo, Objects, Pod, Sourced,
    diff::{Diff, Side},
};
use std::sync::Arc;

fn partition(yaml: &str) -> Arc<Sourced<PartitionSpec>> {
    Arc::new(Sourced::new(serde_saphyr::from_str(yaml).unwrap(), Some("p.yaml:1".into())))
}

fn objects(web_ingress: &str) -> Objects {
    let mut objects =
        Objects { default_pod_cidrs: vec!["10.64.0.0/16".parse().unwrap()], ..Objects::default() };
    let web = format!("policyID: 1\npodCIDRs: [10.66.0.0/16, 'fd00:66::/64']\ningress: {web_ingress}\n");
    objects.partitions.insert("web".into(), partition(&web));
    let shop = "policyID: 2\npodCIDRs: [10.67.0.0/16, 'fd00:67::/64']\negress: [{to: [{partition: web}]}]\n";
    objects.partitions.insert("shop".into(), partition(shop));
    let spec = NetworkGroupSpec { cidrs: vec!["172.20.0.0/16".parse().unwrap()] };
    objects.network_groups.insert("vms".into(), Arc::new(Sourced::new(spec, None)));
    objects
}

/// `+ from -> to protocol ports` of each change.
fn lines(before: &Objects, after: &Objects) -> Vec<String> {
    let mut interner = Interner::default();
    let [before, after] = [before, after].map(|o| Side::of(o, &mut interner, "n1", &[]).unwrap());
    let diff = Diff::of(&before, &after);
    for (n, change) in diff.changes.iter().enumerate() {
        // The example is one of the flows the line speaks of, and it turns as the line says.
        let e = change.example;
        let [was, is] = [&before, &after].map(|s| s.verdict(e.from, e.to, e.protocol, e.port).allowed);
        assert_eq!((was, is), (!change.allows, change.allows), "{change:?}");
        assert_eq!(diff.find(e.from, e.to, e.protocol, e.port), Some(n));
    }
    let sign = |allows| if allows { '+' } else { '-' };
    let line = |c: &bulkhead_api::messages::PolicyChange| {
        format!("{} {} -> {} {} {}", sign(c.allows), c.from.join("; "), c.to.join("; "), c.protocol, c.ports)
    };
    diff.changes.iter().map(line).collect()
}

fn changes(before: &str, after: &str) -> Vec<String> {
    lines(&objects(before), &objects(after))
}

const FROM_SHOP: &str = "[{from: [{partition: shop}], ports: [{port: 8000, endPort: 8090}]}]";

#[test]
fn the_same_objects_change_nothing() {
    assert_eq!(changes(FROM_SHOP, FROM_SHOP), [""; 0]);
}

#[test]
fn a_moved_range_shows_both_ends_of_the_move_once_for_both_ip_versions() {
    let after = "[{from: [{partition: shop}], ports: [{port: 8081, endPort: 8091}]}]";
    assert_eq!(
        changes(FROM_SHOP, after),
        ["- partition shop -> partition web tcp 8000-8080", "+ partition shop -> partition web tcp 8091"]
    );
}

#[test]
fn a_rule_that_repeats_another_changes_nothing() {
    let after = "[{from: [{partition: shop}], ports: [{port: 8000, endPort: 8090}]}, \
                 {name: again, from: [{partition: shop}], ports: [{port: 8010}]}]";
    assert_eq!(changes(FROM_SHOP, after), [""; 0]);
}

#[test]
fn a_rule_for_a_group_names_the_group() {
    let after = "[{from: [{partition: shop}], ports: [{port: 8000, endPort: 8090}]}, \
                 {from: [{networkGroup: vms}], ports: [{protocol: UDP, port: 53}]}]";
    assert_eq!(changes(FROM_SHOP, after), ["+ NetworkGroup/vms -> partition web udp 53"]);
}

#[test]
fn a_rule_without_ports_opens_every_protocol() {
    let lines = changes("[]", "[{from: [{ipBlock: {cidr: 192.0.2.7/32}}]}]");
    assert_eq!(lines, ["+ 192.0.2.7/32 -> partition web any all"]);
}

/// Of a comparison, each change's example and the rules before and after.
fn examples(before: &Objects, after: &Objects) -> Vec<String> {
    let mut interner = Interner::default();
    let [before, after] = [before, after].map(|o| Side::of(o, &mut interner, "n1", &[]).unwrap());
    let told = Diff::of(&before, &after).changes.into_iter().map(|c| {
        let e = c.example;
        format!("{} -> {} {}/{}: {} | {}", e.from, e.to, e.protocol, e.port, c.before.name, c.after.name)
    });
    told.collect()
}

#[test]
fn a_change_has_an_example_that_people_know_and_the_rules_of_both_sides() {
    let rule = "Partition/web ingress[0]";
    let all = "[{from: [{partition: shop}]}]";
    let opened = examples(&objects("[]"), &objects(all));
    assert_eq!(opened, [format!("10.67.0.1 -> 10.66.0.1 6/80: no rule allows it | {rule}")]);
    let closed = examples(&objects(FROM_SHOP), &objects("[]"));
    assert_eq!(closed, [format!("10.67.0.1 -> 10.66.0.1 6/8080: {rule} | no rule allows it")]);
}

#[test]
fn a_ping_is_one_change_for_both_ip_versions_and_so_is_one_of_ipv6_alone() {
    let pinged = changes(
        "[]",
        "[{from: [{partition: shop}], ports: [{protocol: ICMP, port: 8}, {protocol: UDP, port: 53}]}]",
    );
    assert_eq!(
        pinged,
        ["+ partition shop -> partition web udp 53", "+ partition shop -> partition web icmp 8",]
    );
    let v6 = changes("[]", "[{from: [{ipBlock: {cidr: 'fd00:67::7/128'}}]}]");
    assert_eq!(v6, ["+ partition shop (fd00:67::7/128) -> partition web any all"]);
}

#[test]
fn ports_that_turn_side_by_side_are_one_range() {
    let shop = |ports: &str, ingress: &str| {
        let mut objects = objects(ingress);
        let spec = format!(
            "policyID: 2\npodCIDRs: [10.67.0.0/16]\negress: [{{to: [{{partition: web}}], ports: [{ports}]}}]\n"
        );
        objects.partitions.insert("shop".into(), partition(&spec));
        objects
    };
    let before = shop("{port: 80, endPort: 89}", "[]");
    let after =
        shop("{port: 80, endPort: 99}", "[{from: [{partition: shop}], ports: [{port: 80, endPort: 99}]}]");
    assert_eq!(lines(&before, &after), ["+ partition shop -> partition web tcp 80-99"]);
}

#[test]
fn both_ends_must_say_yes_before_and_after() {
    let egress_alone = {
        let mut objects = objects("[]");
        objects
            .partitions
            .insert("shop".into(), partition("policyID: 2\npodCIDRs: [10.67.0.0/16, 'fd00:67::/64']\n"));
        objects
    };
    assert_eq!(lines(&egress_alone, &objects("[]")), [""; 0], "the other end still refuses");
    assert_eq!(
        lines(&egress_alone, &objects("[{from: [{partition: shop}], ports: [{port: 1}]}]")),
        ["+ partition shop -> partition web tcp 1"]
    );
}

#[test]
fn where_only_one_end_still_allows_a_flow_is_newly_denied() {
    let mut shut = objects(FROM_SHOP);
    shut.partitions
        .insert("shop".into(), partition("policyID: 2\npodCIDRs: [10.67.0.0/16, 'fd00:67::/64']\n"));
    let line = "- partition shop -> partition web tcp 8000-8090";
    assert_eq!(lines(&objects(FROM_SHOP), &shut), [line]);
    assert_eq!(changes(FROM_SHOP, "[]"), [line]);
}

#[test]
fn a_partition_in_audit_denies_nothing_and_its_network_policies_do() {
    let web = |isolation: &str, ingress: &str| {
        let mut objects = objects("[]");
        let spec = format!(
            "policyID: 1\nnamespaces: [web]\npodCIDRs: [10.66.0.0/16]\nisolation: {isolation}\ningress: {ingress}\n"
        );
        objects.partitions.insert("web".into(), partition(&spec));
        objects.pods.insert("web/a".into(), Arc::new(pod("10.66.0.1")));
        objects
    };
    assert_eq!(lines(&web("Audit", FROM_SHOP), &web("Audit", "[]")), [""; 0]);
    let enforced = lines(&web("Audit", "[]"), &web("Enforced", "[]"));
    assert!(!enforced.is_empty() && enforced.iter().all(|line| line.starts_with("- ")), "{enforced:?}");
    let mut isolated = web("Audit", "[]");
    let spec = serde_saphyr::from_str("{podSelector: {}}").unwrap();
    isolated.network_policies.insert("web/all".into(), Arc::new(Sourced::new(spec, None)));
    let denied = lines(&web("Audit", "[]"), &isolated);
    assert_eq!(denied, ["- anyone -> namespace web any all"]);
}

fn pod(address: &str) -> Pod {
    Pod { addresses: vec![address.parse().unwrap()], ..Pod::default() }
}

/// Partition web, where `app: db` takes TCP 1 alone, with these pods and their label `app`.
fn labelled(pods: &[(&str, &str, &str)]) -> Objects {
    let mut objects = objects("[]");
    objects
        .partitions
        .insert("web".into(), partition("policyID: 1\nnamespaces: [web]\npodCIDRs: [10.66.0.0/16]\n"));
    let spec = "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1}]}]}";
    let policy = Sourced::new(serde_saphyr::from_str(spec).unwrap(), None);
    objects.network_policies.insert("web/db".into(), Arc::new(policy));
    for (key, address, app) in pods {
        let labels = [("app", *app)].into_iter().collect();
        objects.pods.insert((*key).into(), Arc::new(Pod { labels, ..pod(address) }));
    }
    objects
}

#[test]
fn a_pod_that_is_labelled_anew_is_named_by_both_labels_and_one_that_went_by_its_own() {
    let [was, is] =
        ["front", "db"].map(|app| labelled(&[("web/a", "10.66.0.1", app), ("web/b", "10.66.0.2", "x")]));
    let relabelled = lines(&was, &is);
    assert!(
        relabelled
            .iter()
            .any(|l| l.contains("-> pods app=db (were app=front) in namespace web tcp 0, 2-65535")),
        "{relabelled:?}"
    );
    let gone = lines(&is, &labelled(&[("web/b", "10.66.0.2", "x")]));
    assert!(
        gone.iter().any(|l| l.starts_with("+ ") && l.contains("-> pods app=db in namespace web")),
        "{gone:?}"
    );
}

#[test]
fn who_is_nearly_all_of_something_is_said_by_what_is_left_out() {
    let of = |ingress: &str| {
        let mut objects = objects(ingress);
        for n in 1..=4 {
            let spec = format!("policyID: {}\npodCIDRs: [10.10{n}.0.0/16]\negress: [{{}}]\n", n + 10);
            objects.partitions.insert(format!("p{n}"), partition(&spec));
        }
        objects
    };
    let after = "[{action: Deny, from: [{partition: shop}]}, {from: [{allPartitions: {}}]}]";
    let said = lines(&of("[]"), &of(after));
    assert_eq!(said, ["+ any pod but partition shop, partition web -> partition web any all"]);
}

/// Nodes `n1` and `n2`, and a pod of partition web on each; some are not told to be anywhere.
fn with_nodes(web_ingress: &str, told: bool) -> Objects {
    let mut objects = objects(web_ingress);
    for n in 1..=2 {
        let node =
            NodeInfo { addresses: vec![format!("192.168.0.{n}").parse().unwrap()], ..NodeInfo::default() };
        objects.nodes.insert(format!("n{n}"), Arc::new(node));
        let addresses = vec![format!("10.66.0.{n}").parse().unwrap()];
        let node = told.then(|| format!("n{n}").into());
        objects.pods.insert(format!("web/pod-{n}"), Arc::new(Pod { addresses, node, ..Pod::default() }));
    }
    // Nobody else: so no pod is untold.
    let web = objects.partitions["web"].spec.clone();
    let ranges = ["10.66.0.1/32", "10.66.0.2/32"].map(|r| r.parse().unwrap()).to_vec();
    let spec = PartitionSpec { pod_cidrs: ranges, ..web };
    objects.partitions.insert("web".into(), Arc::new(Sourced::new(spec, Some("p.yaml:1".into()))));
    objects
}

const BY_NODES: &str = "[{from: [{nodes: {}}], ports: [{port: 9100}]}]";

#[test]
fn a_node_reaches_its_own_pods_whatever_changes_and_those_of_others_by_rules() {
    let (before, after) = (with_nodes(BY_NODES, true), with_nodes("[]", true));
    assert_eq!(lines(&before, &after), ["- node -> partition web tcp 9100"]);
    let mut interner = Interner::default();
    let [was, is] = [&before, &after].map(|o| Side::of(o, &mut interner, "n1", &[]).unwrap());
    let diff = Diff::of(&was, &is);
    let told =
        |from: &str, to: &str| diff.find(from.parse().unwrap(), to.parse().unwrap(), 6, 9100).is_some();
    assert!(told("192.168.0.1", "10.66.0.2") && told("192.168.0.2", "10.66.0.1"));
    assert!(!told("192.168.0.1", "10.66.0.1") && !told("192.168.0.2", "10.66.0.2"));
}

#[test]
fn where_all_pods_are_their_nodes_own_no_node_is_spoken_of() {
    let one = |web_ingress: &str, told: bool| {
        let mut objects = with_nodes(web_ingress, told);
        objects.nodes.remove("n2");
        objects.pods.insert("web/pod-2".into(), {
            let pod = objects.pods["web/pod-2"].clone();
            let node = told.then(|| "n1".into());
            Arc::new(Pod { node, ..Pod::clone(&pod) })
        });
        objects
    };
    assert_eq!(lines(&one(BY_NODES, true), &one("[]", true)), [""; 0]);
    // Of a pod that is not told to be anywhere nobody can say so.
    assert_eq!(lines(&one(BY_NODES, false), &one("[]", false)), ["- node -> partition web tcp 9100"]);
}

#[test]
fn a_pod_that_comes_to_a_node_or_leaves_it_in_the_change_is_told_from_one_that_was_there() {
    let before = with_nodes(BY_NODES, true);
    let mut after = before.clone();
    let pod = Pod { node: Some("n2".into()), ..Pod::clone(&before.pods["web/pod-1"]) };
    after.pods.insert("web/pod-1".into(), Arc::new(pod));
    // By rules a node reaches port 9100 alone; its own pods on all.
    let told = lines(&before, &after);
    let came: Vec<_> =
        told.iter().filter(|line| line.starts_with("+ node n2 -> its pod web/pod-1")).collect();
    let left: Vec<_> =
        told.iter().filter(|line| line.starts_with("- node n1 -> its pod web/pod-1")).collect();
    assert_eq!(
        (came.is_empty(), left.is_empty(), came.len() + left.len()),
        (false, false, told.len()),
        "{told:?}"
    );
    assert!(told.contains(&"+ node n2 -> its pod web/pod-1 tcp 0-9099, 9101-65535".to_string()), "{told:?}");
    assert_eq!(lines(&after, &after), [""; 0]);
}

#[test]
fn pods_of_the_node_that_is_asked_are_its_own_by_its_own_word() {
    let (before, after) = (with_nodes(BY_NODES, false), with_nodes("[]", false));
    let local = |n: u8| LocalPod {
        namespace: "web".into(),
        name: format!("pod-{n}"),
        partition: "web".into(),
        addresses: vec![format!("10.66.0.{n}").parse().unwrap()],
    };
    let mut interner = Interner::default();
    let [was, is] = [&before, &after].map(|o| Side::of(o, &mut interner, "n1", &[local(1)]).unwrap());
    let diff = Diff::of(&was, &is);
    let told =
        |from: &str, to: &str| diff.find(from.parse().unwrap(), to.parse().unwrap(), 6, 9100).is_some();
    assert!(!told("192.168.0.1", "10.66.0.1"));
    assert!(told("192.168.0.1", "10.66.0.2") && told("192.168.0.2", "10.66.0.1"));
    assert_eq!(
        was.verdict("192.168.0.1".parse().unwrap(), "10.66.0.1".parse().unwrap(), 6, 1).rule,
        RULE_OWN_NODE
    );
}

#[test]
fn a_pod_outside_all_ranges_is_the_world_unless_it_is_a_stray_or_of_the_node_that_is_asked() {
    let open = "[{from: [{partition: shop}], ports: [{port: 8000, endPort: 8090}]}]";
    let with_pod = |web_ingress: &str| {
        let mut objects = objects(web_ingress);
        objects.pods.insert("shop/far".into(), Arc::new(pod("10.99.0.9")));
        objects
    };
    let local = [LocalPod {
        namespace: "shop".into(),
        name: "far".into(),
        partition: "shop".into(),
        addresses: vec!["10.99.0.9".parse().unwrap()],
    }];
    let allowed = |objects: &Objects, local: &[LocalPod]| {
        let side = Side::of(objects, &mut Interner::default(), "n1", local).unwrap();
        side.verdict("10.99.0.9".parse().unwrap(), "10.66.0.1".parse().unwrap(), 6, 8000).allowed
    };
    let mut objects = with_pod(open);
    assert!(!allowed(&objects, &[]) && allowed(&objects, &local));
    objects.strays.insert("10.99.0.9/32".parse().unwrap(), "shop".into());
    assert!(allowed(&objects, &[]));
}
