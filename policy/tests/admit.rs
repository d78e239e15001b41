//! What may go into force, and what is said of the rest.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_api::objects::NetworkGroupSpec;
use bulkhead_policy::{Objects, Sourced, admit, admit_change};
use common::*;
use proptest::prelude::*;
use std::sync::Arc;

/// Errors of a first admission, as printed.
fn errors(candidate: Objects) -> Vec<String> {
    admit(&Objects::default(), candidate).1.iter().map(ToString::to_string).collect()
}

/// The one error of partition `web` with these fields.
fn error_of(fields: &str) -> String {
    let errors = errors(web_with(fields));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

#[test]
fn good_objects_go_into_force_as_they_are() {
    assert_eq!(admit(&Objects::default(), cluster()), (cluster(), vec![]));
    assert_eq!(admit(&cluster(), Objects::default()), (Objects::default(), vec![]));
}

#[test]
fn every_fault_of_one_partition_names_file_object_field_and_the_way_out() {
    let rule = |side: &str, body: &str| format!("{side}: [{{}}, {{{body}}}]");
    for (fields, field, message) in [
        (
            rule("ingress", "ports: [{port: 1}, {port: 90, endPort: 80}]"),
            "spec.ingress[1].ports[1].endPort",
            "the range is upside down: endPort 80 is below port 90",
        ),
        (
            rule("egress", "ports: [{endPort: 80}]"),
            "spec.egress[1].ports[0].endPort",
            "endPort 80 has no port: write the range's first port in `port`",
        ),
        (
            rule("egress", "ports: [{protocol: ICMP, port: 256}]"),
            "spec.egress[1].ports[0].port",
            "256 is not an ICMP type: types go from 0 to 255",
        ),
        (
            rule("egress", "ports: [{protocol: ICMP, port: 8, endPort: 300}]"),
            "spec.egress[1].ports[0].endPort",
            "300 is not an ICMP type: types go from 0 to 255",
        ),
        (
            rule("ingress", "from: [{}]"),
            "spec.ingress[1].from[0]",
            "names no peer: set one of partition, allPartitions, networkGroup, ipBlock, nodes, controlPlane",
        ),
        (
            rule("ingress", "from: [{partition: pay, nodes: {}}]"),
            "spec.ingress[1].from[0]",
            "sets partition and nodes: a peer has one; write one peer for each",
        ),
        (
            rule("ingress", "from: [{nodes: {}}, {partition: payments}]"),
            "spec.ingress[1].from[1].partition",
            "there is no Partition `payments`: correct the name or make the object (there are default, pay, web)",
        ),
        (
            rule("egress", "to: [{networkGroup: machines}]"),
            "spec.egress[1].to[0].networkGroup",
            "there is no NetworkGroup `machines`: correct the name or make the object (there are db, vms)",
        ),
        (
            "bandwidth: {defaultClass: fast}".into(),
            "spec.bandwidth.defaultClass",
            "there is no BandwidthClass `fast`: correct the name or make the object (there are high, low, management, medium)",
        ),
        (
            "bandwidth: {allowedClasses: [low, fast]}".into(),
            "spec.bandwidth.allowedClasses[1]",
            "there is no BandwidthClass `fast`: correct the name or make the object (there are high, low, management, medium)",
        ),
        (
            "bandwidth: {maximum: 0}".into(),
            "spec.bandwidth.maximum",
            "0 lets nothing pass: write a rate, or leave it out for no limit",
        ),
        (
            rule("egress", "to: [{ipBlock: {cidr: 10.1.2.3/8}}]"),
            "spec.egress[1].to[0].ipBlock.cidr",
            "10.1.2.3/8 has bits set beyond its prefix: the network is 10.0.0.0/8",
        ),
        (
            rule("egress", "to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]"),
            "spec.egress[1].to[0].ipBlock.except[1]",
            "11.0.0.0/16 is not a part of 10.0.0.0/8: name a smaller range inside it",
        ),
        (
            rule("egress", "to: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]"),
            "spec.egress[1].to[0].ipBlock.cidr",
            "::ffff:10.0.0.0/104 is an IPv4 network in IPv6 clothes: write 10.0.0.0/8",
        ),
        (
            "serviceCIDRs: [10.96.0.1/16]".into(),
            "spec.serviceCIDRs[0]",
            "10.96.0.1/16 has bits set beyond its prefix: the network is 10.96.0.0/16",
        ),
        (
            "bgp: {communities: ['65000:1', '65000']}".into(),
            "spec.bgp.communities[1]",
            "`65000` is not a community: write 65000:100, or a large one as 65000:1:2",
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: team, operator: is}]}".into(),
            "spec.namespaceSelector.matchExpressions[0].operator",
            "`is` is no operator: use In, NotIn, Exists or DoesNotExist",
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: team, operator: In}]}".into(),
            "spec.namespaceSelector.matchExpressions[0].values",
            "In needs at least one value",
        ),
    ] {
        assert_eq!(error_of(&fields), format!("web.yaml: Partition/web: {field}: {message}"));
    }
}

#[test]
fn all_faults_of_an_object_are_told_at_once_and_the_others_go_on() {
    let candidate = web_with(
        "ingress: [{ports: [{port: 9, endPort: 8}]}]\negress: [{to: [{}]}]\nbgp: {communities: [x]}",
    );
    let (objects, errors) = admit(&Objects::default(), candidate);
    let fields: Vec<_> = errors.iter().map(|e| e.field.clone().unwrap()).collect();
    assert_eq!(
        fields,
        ["spec.bgp.communities[0]", "spec.egress[0].to[0]", "spec.ingress[0].ports[0].endPort"]
    );
    assert_eq!(objects.partitions.keys().collect::<Vec<_>>(), ["pay"]);
    assert_eq!(objects.network_groups, cluster().network_groups);
}

#[test]
fn a_refused_object_keeps_its_previous_version() {
    let in_force = web_with("egress: [{to: [{networkGroup: vms}]}]");
    let mut candidate = web_with("egress: [{to: [{networkGroup: nothing}]}]");
    add(&mut candidate, "pay", "{policyID: 2, podCIDRs: [10.66.0.0/16], isolation: Audit}");
    let (objects, errors) = admit(&in_force, candidate.clone());
    assert_eq!(errors.len(), 1);
    assert_eq!(objects.partitions["web"], in_force.partitions["web"]);
    assert_eq!(objects.partitions["pay"], candidate.partitions["pay"]);
    assert_eq!(admit(&objects, candidate).1, errors, "told for as long as it stands");
}

#[test]
fn the_name_default_and_names_that_kubernetes_refuses_are_refused() {
    let mut candidate = cluster();
    add(&mut candidate, "default", "{policyID: 9, namespaces: [x], podCIDRs: [10.70.0.0/16]}");
    add(&mut candidate, "Web_2", "{policyID: 10, podCIDRs: [10.71.0.0/16]}");
    let errors = errors(candidate);
    assert!(
        errors[0].starts_with("Web_2.yaml: Partition/Web_2: metadata.name: `Web_2` is not a name"),
        "{errors:?}"
    );
    assert!(
        errors[1]
            .starts_with("default.yaml: Partition/default: metadata.name: `default` is the partition of")
    );
    assert_eq!(errors.len(), 2);
}

#[test]
fn a_partition_needs_a_range_and_a_number_of_its_own_that_never_changes() {
    let mut candidate = cluster();
    add(&mut candidate, "a", "{policyID: 0, podCIDRs: []}");
    add(&mut candidate, "zoo", "{policyID: 2, podCIDRs: [10.70.0.0/16]}");
    assert_eq!(
        errors(candidate.clone()),
        [
            "a.yaml: Partition/a: spec.podCIDRs: is empty: a partition needs at least one range for its pods",
            "a.yaml: Partition/a: spec.policyID: 0 is not a policyID: choose a number from 1 to 65535 that is not taken",
            "zoo.yaml: Partition/zoo: spec.policyID: 2 is the policyID of Partition/pay (pay.yaml) already: choose a \
             number that is free",
        ]
    );
    let mut candidate = cluster();
    add(&mut candidate, "web", "{policyID: 7, podCIDRs: [10.65.0.0/16]}");
    let (objects, errors) = admit(&cluster(), candidate);
    assert_eq!(
        errors[0].to_string(),
        "web.yaml: Partition/web: spec.policyID: was 1 and never changes: write 1, or make a new Partition for 7"
    );
    assert_eq!(objects, cluster());
}

#[test]
fn overlapping_ranges_are_refused_naming_both() {
    let with = |name: &str, cidrs: &str| {
        let mut candidate = cluster();
        add(&mut candidate, name, &format!("{{policyID: 9, podCIDRs: [{cidrs}]}}"));
        errors(candidate)
    };
    assert_eq!(
        with("zoo", "10.70.0.0/16, 10.65.3.0/24"),
        [
            "zoo.yaml: Partition/zoo: spec.podCIDRs[1]: 10.65.3.0/24 overlaps 10.65.0.0/16 of Partition/web (web.yaml): a \
          range belongs to one partition"
        ]
    );
    assert_eq!(
        with("zoo", "10.0.0.0/10, 10.70.0.0/16, 10.70.1.0/24"),
        [
            "zoo.yaml: Partition/zoo: spec.podCIDRs[2]: 10.70.1.0/24 overlaps 10.70.0.0/16 (spec.podCIDRs[1]): write each \
          range once"
        ]
    );
    assert_eq!(
        with("zoo", "10.64.3.0/24"),
        [
            "zoo.yaml: Partition/zoo: spec.podCIDRs[0]: 10.64.3.0/24 overlaps 10.64.0.0/16 of the default partition \
          (`podCIDRs` in the node's configuration): take it out of one"
        ]
    );
    assert_eq!(with("zoo", "fd00:64::/48").len(), 1);
    assert_eq!(
        with("zoo", "10.70.1.0/16"),
        [
            "zoo.yaml: Partition/zoo: spec.podCIDRs[0]: 10.70.1.0/16 has bits set beyond its prefix: the network is \
          10.70.0.0/16"
        ]
    );
    assert_eq!(with("zoo", "'::/8'"), Vec::<String>::new(), "IPv4 is not inside IPv6");
}

#[test]
fn of_two_new_objects_the_later_by_name_gives_way() {
    let mut candidate = cluster();
    add(&mut candidate, "b", "{policyID: 8, podCIDRs: [10.70.0.0/16]}");
    add(&mut candidate, "c", "{policyID: 9, podCIDRs: [10.0.0.0/10, 10.70.0.0/16]}");
    add(&mut candidate, "d", "{policyID: 10, podCIDRs: [10.0.0.0/12]}");
    let (objects, errors) = admit(&Objects::default(), candidate);
    assert_eq!(errors.len(), 1, "d is free to go when c is not there: {errors:?}");
    assert!(errors[0].to_string().contains("Partition/c: spec.podCIDRs[1]"));
    assert_eq!(objects.partitions.keys().collect::<Vec<_>>(), ["b", "d", "pay", "web"]);
}

#[test]
fn a_changed_object_gives_way_to_one_that_did_not_change() {
    let mut candidate = cluster();
    add(&mut candidate, "pay", "{policyID: 2, namespaces: [pay], podCIDRs: [10.66.0.0/16, 10.65.9.0/24]}");
    let (objects, errors) = admit(&cluster(), candidate);
    assert_eq!(objects, cluster());
    assert!(
        errors[0].to_string().starts_with("pay.yaml: Partition/pay: spec.podCIDRs[1]: 10.65.9.0/24 overlaps")
    );
    assert_eq!(errors.len(), 1);
}

#[test]
fn an_object_that_comes_gives_way_to_one_that_is_there_and_changes() {
    let mut candidate = cluster();
    add(&mut candidate, "intruder", "{policyID: 7, podCIDRs: [10.65.128.0/17]}");
    let web =
        "{policyID: 1, namespaces: [web], podCIDRs: [10.65.0.0/16], egress: [{to: [{partition: pay}]}]}";
    add(&mut candidate, "web", web);
    let (objects, errors) = admit(&cluster(), candidate);
    assert_eq!(objects.partitions["web"].spec, partition(web));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().starts_with("intruder.yaml: Partition/intruder: spec.podCIDRs[0]"));
}

#[test]
fn a_range_may_move_from_one_partition_to_another_in_one_step_or_not_at_all() {
    let mut candidate = cluster();
    add(&mut candidate, "web", "{policyID: 1, namespaces: [web], podCIDRs: [10.66.0.0/16]}");
    add(&mut candidate, "pay", "{policyID: 2, namespaces: [pay], podCIDRs: [10.65.0.0/16]}");
    assert_eq!(admit(&cluster(), candidate.clone()), (candidate.clone(), vec![]));
    // One half is refused for another reason: the other half cannot go alone.
    add(&mut candidate, "pay", "{policyID: 2, podCIDRs: [10.65.0.0/16], egress: [{to: [{partition: x}]}]}");
    let (objects, errors) = admit(&cluster(), candidate);
    assert_eq!(objects, cluster());
    assert_eq!(errors.len(), 2, "{errors:?}");
}

#[test]
fn what_is_deleted_but_still_named_stays_and_the_one_that_names_it_hears_of_it() {
    let mut in_force = web_with(
        "egress: [{to: [{networkGroup: vms}, {partition: pay}]}]\nbandwidth: {defaultClass: gold, allowedClasses: [high]}",
    );
    add_class(&mut in_force, "gold", "{rate: 9G}");
    let mut candidate = in_force.clone();
    candidate.network_groups.clear();
    candidate.partitions.remove("pay");
    candidate.bandwidth_classes.clear();
    let (objects, errors) = admit(&in_force, candidate.clone());
    let mut expected = in_force.clone();
    expected.network_groups.remove("db");
    assert_eq!(objects, expected);
    let text = |field: &str, what: &str| {
        format!(
            "web.yaml: Partition/web: {field}: {what} was deleted and is named here: it stays in force until nothing in \
             force names it"
        )
    };
    let printed: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        printed,
        [
            text("spec.bandwidth.defaultClass", "BandwidthClass/gold"),
            text("spec.egress[0].to[0].networkGroup", "NetworkGroup/vms"),
            text("spec.egress[0].to[1].partition", "Partition/pay"),
        ]
    );
    assert_eq!(admit(&objects, candidate.clone()).0, objects, "and stays");
    add(&mut candidate, "web", "{policyID: 1, podCIDRs: [10.65.0.0/16]}");
    assert_eq!(admit(&objects, candidate.clone()), (candidate, vec![]));
}

#[test]
fn a_new_name_for_a_partition_that_is_still_named_waits() {
    let mut in_force = cluster();
    add(&mut in_force, "pay", "{policyID: 2, podCIDRs: [10.66.0.0/16], egress: [{to: [{partition: web}]}]}");
    let mut candidate = in_force.clone();
    let web = candidate.partitions.remove("web").unwrap();
    candidate.partitions.insert("shop".into(), web);
    let (objects, errors) = admit(&in_force, candidate);
    assert_eq!(objects, in_force);
    let objects: Vec<_> = errors.iter().map(|e| e.object.clone().unwrap()).collect();
    assert!(
        objects.contains(&"Partition/pay".to_string()) && objects.contains(&"Partition/shop".to_string())
    );
}

#[test]
fn what_names_a_refused_object_is_sent_to_that_objects_error() {
    let mut candidate = web_with("egress: [{to: [{partition: shop}]}]");
    add(&mut candidate, "shop", "{policyID: 0, podCIDRs: [10.70.0.0/16]}");
    let errors = errors(candidate);
    assert_eq!(
        errors[1],
        "web.yaml: Partition/web: spec.egress[0].to[0].partition: Partition/shop is refused itself, see its own error: \
         nothing can name it before it is in force"
    );
}

#[test]
fn a_namespace_is_in_one_partition_by_name_or_by_label() {
    let mut candidate = cluster();
    add(&mut candidate, "shop", "{policyID: 9, namespaces: [x, pay], podCIDRs: [10.70.0.0/16]}");
    let printed = errors(candidate);
    assert_eq!(
        printed,
        [
            "shop.yaml: Partition/shop: spec.namespaces[1]: namespace `pay` belongs to Partition/pay (pay.yaml) already: a \
          namespace is in one partition"
        ]
    );
    let mut candidate = cluster();
    let selector = "{matchLabels: {kubernetes.io/metadata.name: pay}}";
    add(
        &mut candidate,
        "shop",
        &format!("{{policyID: 9, namespaceSelector: {selector}, podCIDRs: [10.70.0.0/16]}}"),
    );
    let printed = errors(candidate);
    assert_eq!(printed.len(), 1);
    assert!(
        printed[0]
            .starts_with("shop.yaml: Partition/shop: spec.namespaceSelector: namespace `pay` belongs to")
    );
}

fn selecting() -> Objects {
    let mut objects = cluster();
    let by = |label: &str| format!("namespaceSelector: {{matchLabels: {{{label}}}}}");
    add(&mut objects, "a", &format!("{{policyID: 8, {}, podCIDRs: [10.70.0.0/16]}}", by("team: a")));
    add(&mut objects, "b", &format!("{{policyID: 9, {}, podCIDRs: [10.71.0.0/16]}}", by("tier: b")));
    objects.namespaces.insert("one".into(), Arc::new([("tier", "b")].into_iter().collect()));
    objects
}

#[test]
fn labels_that_put_a_namespace_into_two_partitions_are_not_taken_over() {
    let in_force = selecting();
    assert_eq!(admit(&Objects::default(), in_force.clone()).1, vec![]);
    let mut candidate = in_force.clone();
    let one = candidate.namespaces.get_mut("one").unwrap();
    *one = Arc::new(one.with("team", "a"));
    let (objects, errors) = admit(&in_force, candidate.clone());
    assert_eq!(objects, in_force);
    assert_eq!(objects.partition_of_namespace("one"), "b");
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("namespace `one` belongs to Partition/a"));
    assert_eq!(admit(&objects, candidate).0, objects);
}

#[test]
fn a_new_namespace_with_labels_of_two_partitions_takes_neither_down_and_lands_in_the_first() {
    let in_force = selecting();
    let mut candidate = in_force.clone();
    let labels = [("team", "a"), ("tier", "b")].into_iter().collect();
    candidate.namespaces.insert("two".into(), Arc::new(labels));
    let (objects, errors) = admit(&in_force, candidate.clone());
    assert_eq!((objects.partitions.len(), errors.len()), (4, 1));
    assert_eq!(objects.partition_of_namespace("two"), "a");
    // Nor does it hold up an edit of one of them.
    Arc::make_mut(candidate.partitions.get_mut("b").unwrap()).spec.allow_cluster_dns = false;
    assert_eq!(admit(&objects, candidate.clone()).0, candidate);
}

#[test]
fn default_ranges_that_grow_into_a_partition_are_not_taken_over() {
    let mut candidate = cluster();
    candidate.default_pod_cidrs.push("10.64.0.0/10".parse().unwrap());
    let (objects, errors) = admit(&cluster(), candidate);
    assert_eq!(objects, cluster());
    assert_eq!(errors.len(), 2, "one for each partition: {errors:?}");
}

#[test]
fn a_namespace_belongs_to_the_partition_that_names_it_then_to_one_that_selects_it() {
    let objects = selecting();
    for (namespace, partition) in [("web", "web"), ("one", "b"), ("unknown", "default")] {
        assert_eq!(objects.partition_of_namespace(namespace), partition);
    }
}

#[test]
fn an_address_belongs_to_the_partition_whose_range_holds_it() {
    let objects = cluster();
    for (address, partition) in [
        ("10.65.0.1", Some("web")),
        ("::ffff:10.65.0.1", Some("web")),
        ("fd00:66::1", Some("pay")),
        ("10.64.255.255", Some("default")),
        ("192.168.0.1", None),
        ("8.8.8.8", None),
    ] {
        assert_eq!(objects.partition_of_address(ip(address)), partition, "{address}");
    }
}

/// Few names, numbers and ranges, so that objects get into each other's way.
fn any_objects() -> impl Strategy<Value = Objects> {
    let reference = prop::option::of(0..5usize);
    let partition = (
        0..5usize,
        0..4u16,
        0..4u8,
        prop::bool::ANY,
        reference,
        prop::option::of(0..3usize),
        prop::bool::ANY,
    );
    (prop::collection::vec(partition, 0..5), prop::collection::btree_set(0..3usize, 0..3), prop::bool::ANY).prop_map(
        |(partitions, groups, wide)| {
            let mut objects = Objects::default();
            let range = if wide { "10.64.0.0/14" } else { "10.64.0.0/16" };
            objects.default_pod_cidrs.push(range.parse().unwrap());
            for (name, id, range, wide, reference, group, broken) in partitions {
                let prefix = if wide { "10.70.0.0/15".into() } else { format!("10.{}.0.0/16", 67 + range) };
                let mut peers: Vec<String> = reference.iter().map(|r| format!("{{partition: p{r}}}")).collect();
                peers.extend(group.map(|g| format!("{{networkGroup: g{g}}}")));
                let ports = if broken && id == 3 { "[{port: 2, endPort: 1}]" } else { "[]" };
                let yaml = format!(
                    "{{policyID: {}, namespaces: [n{range}], podCIDRs: [{prefix}], egress: [{{to: [{}], ports: {ports}}}]}}",
                    id + 1,
                    peers.join(", ")
                );
                add(&mut objects, &format!("p{name}"), &yaml);
            }
            for group in groups {
                let spec = NetworkGroupSpec::default();
                objects.network_groups.insert(format!("g{group}"), Arc::new(Sourced::new(spec, None)));
            }
            objects
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_what_is_in_force_stays_free_of_contradictions(
        history in prop::collection::vec(any_objects(), 1..5)
    ) {
        let (mut in_force, mut clean) = (Objects::default(), false);
        for candidate in history {
            let (objects, errors) = admit(&in_force, candidate.clone());
            // To look at what differs finds what a look at all finds.
            let change = admit_change(&in_force, clean, candidate.clone());
            prop_assert_eq!((&change.objects, &change.errors), (&objects, &errors));
            clean = change.clean;
            let (again, contradictions) = admit(&objects, objects.clone());
            prop_assert_eq!(&again, &objects);
            prop_assert_eq!(contradictions, vec![]);
            // From nothing, too: no fault hides behind "it was so before".
            prop_assert_eq!(admit(&Objects::default(), objects.clone()), (objects.clone(), vec![]));
            prop_assert_eq!(errors.is_empty(), objects == candidate);
            in_force = objects;
        }
    }
}
