use super::*;
use crate::{Interner, Local, Sourced, compile, judged};
use bulkhead_api::objects::NetworkGroupSpec;
use std::{net::IpAddr, sync::Arc};

fn objects(ranges: &[(&str, &str)]) -> Objects {
    let mut objects =
        Objects { default_pod_cidrs: vec!["10.64.0.0/16".parse().unwrap()], ..Objects::default() };
    for (n, (name, cidr)) in ranges.iter().enumerate() {
        let spec = serde_json::json!({"policyID": n + 1, "podCIDRs": [cidr], "namespaces": [name]});
        let partition = Sourced::new(serde_json::from_value(spec).unwrap(), None);
        objects.partitions.insert((*name).into(), Arc::new(partition));
    }
    objects
}

/// With blocks as `10.1.0.0/26 web n1`.
fn found(objects: &Objects, blocks: &[&str]) -> Vec<String> {
    found_by(Witness::None, objects, blocks)
}

fn blocks_of(blocks: &[&str]) -> Named<IPBlockSpec> {
    let block = |text: &&str| {
        let [cidr, partition, node] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let cidr = cidr.parse().unwrap();
        ((*text).to_string(), Arc::new(IPBlockSpec { cidr, partition: partition.into(), node: node.into() }))
    };
    blocks.iter().map(block).collect()
}

fn found_by(witness: Witness, objects: &Objects, blocks: &[&str]) -> Vec<String> {
    strays(objects, &blocks_of(blocks), witness)
        .0
        .iter()
        .map(|(cidr, stray)| format!("{cidr} {}", stray.partition))
        .collect()
}

#[test]
fn a_block_outside_its_partitions_ranges_stays_its_partitions() {
    let objects = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    let blocks =
        ["10.65.0.0/26 web n1", "10.66.0.0/26 web n1", "10.99.0.0/26 web n2", "10.64.0.0/26 default n1"];
    assert_eq!(found(&objects, &blocks), ["10.66.0.0/26 web", "10.99.0.0/26 web"]);
    // Of a partition that is gone pods are the default partition's.
    assert_eq!(found(&objects, &["10.65.0.64/26 gone n1"]), ["10.65.0.64/26 default"]);
}

#[test]
fn a_range_inside_a_block_takes_no_pod_of_it_over() {
    let objects = objects(&[("pay", "10.65.0.32/27"), ("web", "10.65.0.0/16")]);
    assert_eq!(found(&objects, &["10.65.0.0/26 web n1"]), ["10.65.0.32/27 web"]);
    // Nor one that is the block, or that holds it more closely than the partition's own.
    assert_eq!(found(&objects, &["10.65.0.32/27 web n1"]), ["10.65.0.32/27 web"]);
    assert_eq!(found(&objects, &["10.65.0.32/28 web n1"]), ["10.65.0.32/28 web"]);
}

#[test]
fn a_node_cannot_say_whose_the_pods_of_others_are() {
    let objects = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    for claimed in ["10.65.0.0/16 pay bad", "10.65.0.5/32 pay bad", "0.0.0.0/0 pay bad"] {
        assert_eq!(found(&objects, &["10.65.0.0/26 web n1", claimed]), [""; 0], "{claimed}");
    }
    assert_eq!(found(&objects, &["10.65.0.0/26 web n1", "10.65.0.64/26 pay bad"]), ["10.65.0.64/26 pay"]);
}

/// Pods as `n1 web 10.1.0.5`: node and namespace.
fn with_pods(mut objects: Objects, pods: &[&str]) -> Objects {
    for (n, pod) in pods.iter().enumerate() {
        let [node, namespace, address] = pod.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let pod =
            Pod { node: Some(node.into()), addresses: vec![address.parse().unwrap()], ..Pod::default() };
        objects.pods.insert(format!("{namespace}/{n}"), Arc::new(pod));
        objects.namespaces.insert(namespace.into(), Arc::default());
    }
    objects
}

#[test]
fn a_told_pod_is_of_its_namespaces_partition_wherever_its_own_node_has_claimed_its_address() {
    let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    // What a block was claimed for says nothing.
    let claims = [
        "10.66.0.0/26 pay n1",
        "10.99.0.0/26 web n1",
        "10.65.0.0/26 web n1",
        "10.64.0.0/26 default n1",
        "203.0.113.0/26 pay bad",
    ];
    let found =
        |pods: &[&str], claims: &[&str]| found_by(Witness::Pod, &with_pods(ranges.clone(), pods), claims);
    assert_eq!(found(&[], &claims), [""; 0]);
    let pods = [
        "n1 web 10.66.0.5",  // The namespace was moved,
        "n1 web 10.64.0.5",  // a partition laid over running pods,
        "n1 web 10.99.0.5",  // a range shrunk,
        "n1 shop 10.66.0.6", // or a namespace taken out.
        "n1 web 10.65.0.5",  // In range.
        "n2 web 10.99.0.6",  // Claimed by another,
        "n2 web 203.0.113.5",
        "n1 web 10.64.0.70", // or by nobody.
    ];
    let strays = ["10.64.0.5/32 web", "10.66.0.5/32 web", "10.66.0.6/32 default", "10.99.0.5/32 web"];
    assert_eq!(found(&pods, &claims), strays);
    // Whatever another node claims around it, across it, or in it.
    for claimed in ["10.0.0.0/8 pay bad", "10.99.0.0/26 pay bad", "10.99.0.5/32 pay bad", "0.0.0.0/0 pay bad"]
    {
        let claims = [&claims[..], &[claimed]].concat();
        assert_eq!(found(&pods, &claims), strays, "{claimed}");
    }
    // Of an address that pods of two nodes have that both have claimed, no namespace says anything, whichever of them is told
    // of first. A pod whose node has not claimed it does not count.
    let both = [&claims[..], &["10.66.0.5/32 pay n2"]].concat();
    for order in [["n1 web 10.66.0.5", "n2 web 10.66.0.5"], ["n2 pay 10.66.0.5", "n1 web 10.66.0.5"]] {
        assert_eq!(found(&order, &both), [""; 0], "{order:?}");
        assert_eq!(found(&order, &claims), ["10.66.0.5/32 web"], "{order:?}");
    }
    // Of a pod whose namespace is not known, ranges say whose it is.
    let mut unknown = with_pods(ranges.clone(), &pods);
    unknown.namespaces = Named::new();
    assert_eq!(found_by(Witness::Pod, &unknown, &claims), [""; 0]);
    // Of two pods of one node the first by name has it.
    assert_eq!(found(&["n1 web 10.66.0.5", "n1 web 10.66.0.5"], &claims), ["10.66.0.5/32 web"]);
    assert_eq!(found(&["n1 web 10.66.0.5", "n1 pay 10.66.0.5"], &claims), [""; 0]);
    assert_eq!(found(&["n1 web 10.66.0.5", "n1 zoo 10.66.0.5"], &claims), ["10.66.0.5/32 web"]);
}

#[test]
fn a_stray_is_the_pod_whose_node_has_claimed_its_address_whoever_is_told_of_before_it() {
    let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    let mut objects = with_pods(ranges, &["n2 any 10.99.0.5", "n1 web 10.99.0.5"]);
    objects.strays = strays(&objects, &blocks_of(&["10.99.0.0/26 web n1"]), Witness::Pod).0;
    let at = "10.99.0.5".parse().unwrap();
    assert_eq!(judged(&objects, &[], &[at])[0].key(), "web/1");
    let written = serde_json::to_string(&objects.strays).unwrap();
    assert_eq!(written, r#"{"10.99.0.5/32":"web web/1"}"#);
    assert_eq!(serde_json::from_str::<Strays>(&written).unwrap(), objects.strays);
}

/// What is in force: objects with their strays, on which grounds, and compiled.
struct InForce {
    objects: Objects,
    grounds: Grounds,
    compiled: Compiled,
    interner: Interner,
}

fn in_force(objects: Objects, claims: &Named<IPBlockSpec>) -> InForce {
    in_force_by(Witness::Pod, objects, claims)
}

fn in_force_by(witness: Witness, objects: Objects, claims: &Named<IPBlockSpec>) -> InForce {
    let found = strays(&objects, claims, witness);
    InForce::of(objects, found, None)
}

impl InForce {
    fn of(objects: Objects, (strays, grounds): (Strays, Grounds), before: Option<&Self>) -> Self {
        let objects = Objects { strays, ..objects };
        let former = before.map(|b| &b.compiled);
        let local = Local { node: "n1", pods: &[], partitions: None, former };
        let mut interner = before.map(|b| b.interner.clone()).unwrap_or_default();
        let compiled = compile(&objects, &mut interner, &local).unwrap();
        interner.switched();
        Self { objects, grounds, compiled, interner }
    }

    fn follow(&self, objects: Objects, claims: &Named<IPBlockSpec>) -> Self {
        let followed = self.grounds.follow(&self.compiled, &objects, claims);
        Self::of(objects, followed, Some(self))
    }
}

#[test]
fn strays_that_follow_are_those_that_are_found_anew() {
    let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    let other_ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.66.0.0/24")]);
    let pods: [&[&str]; 7] = [
        &[],
        &["n1 web 10.65.0.5"],
        &["n1 web 10.66.0.5"],
        &["n1 web 10.66.0.5", "n2 pay 10.66.0.5"],
        &["n2 pay 10.66.0.5", "n1 web 10.66.0.5", "n1 web 10.99.0.5"],
        &["n1 pay 10.66.0.5", "n1 web 10.66.0.5", "n2 web 10.99.0.5"],
        &["n1 shop 10.66.0.5", "n2 shop 10.64.0.5", "n1 web 10.66.0.7"],
    ];
    let claims: [&[&str]; 4] = [
        &[],
        &["10.66.0.0/26 pay n1", "10.65.0.0/26 web n1"],
        &["10.66.0.0/26 pay n1", "10.66.0.0/29 pay n2", "10.64.0.0/16 default n2"],
        &["10.0.0.0/8 pay n2", "10.99.0.0/26 web n1"],
    ];
    // What is the same is shared, as of a source.
    let claims = claims.map(blocks_of);
    let mut states = Vec::new();
    for pods in pods {
        let told = with_pods(ranges.clone(), pods);
        let mut moved = told.clone();
        let spec = serde_json::json!({"policyID": 2, "podCIDRs": ["10.65.0.0/16"], "namespaces": ["shop"]});
        let web = Sourced::new(serde_json::from_value(spec).unwrap(), None);
        moved.partitions.insert("web".into(), Arc::new(web));
        let unknown = Objects { namespaces: Named::new(), ..told.clone() };
        let other = with_pods(other_ranges.clone(), pods);
        let all = [told, moved, unknown, other];
        states.extend(all.into_iter().flat_map(|o| claims.clone().map(|claims| (o.clone(), claims))));
    }
    for witness in [Witness::Pod, Witness::None] {
        let mut strayed = 0;
        // From one to the next and on from there, in walks that come to all of them.
        for stride in (1..states.len()).step_by(9) {
            let start = stride / 4;
            let (objects, claims) = states[start].clone();
            let mut now = in_force_by(witness, objects, &claims);
            for at in 1..=states.len() {
                let (objects, claims) = &states[(start + at * stride) % states.len()];
                now = now.follow(objects.clone(), claims);
                let anew = strays(objects, claims, witness).0;
                assert_eq!(now.objects.strays, anew, "{witness:?} {:?}", objects.pods);
                strayed += anew.len();
            }
        }
        assert!(strayed > 50, "{witness:?}: {strayed}");
    }
}

#[test]
fn only_addresses_are_looked_at_of_which_somebody_says_something_else() {
    let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    let claims = ["10.66.0.0/26 pay n1", "10.65.0.0/26 web n1", "10.65.1.0/26 web n2"];
    let pods = ["n1 web 10.66.0.5", "n1 web 10.65.0.5", "n1 pay 10.66.0.6", "n2 web 10.65.1.5"];
    let before = in_force(with_pods(ranges.clone(), &pods), &blocks_of(&claims));
    assert_eq!(before.objects.strays.len(), 1);
    let looked_at = |pods: &[&str], claims: &[&str]| -> Vec<String> {
        // What is the same is shared, as of a source.
        let (mut objects, mut blocks) = (before.objects.clone(), before.grounds.blocks.clone());
        let told = with_pods(ranges.clone(), pods).pods;
        let gone: Vec<String> = objects.pods.keys().filter(|key| !told.contains_key(*key)).cloned().collect();
        gone.iter().for_each(|key| drop(objects.pods.remove(key)));
        told.into_iter().for_each(|(key, pod)| drop(objects.pods.insert(key, pod)));
        blocks_of(claims).into_iter().for_each(|(name, block)| drop(blocks.insert(name, block)));
        let (_, now) = before.grounds.follow(&before.compiled, &objects, &blocks);
        let concerned = before.grounds.concerned(&now, &before.compiled, &objects);
        concerned.keys().map(|address| address.to_ip().to_string()).collect()
    };
    assert_eq!(looked_at(&pods, &[]), [""; 0]);
    let come = [&pods[..], &["n1 web 10.66.0.9"]].concat();
    assert_eq!(looked_at(&come, &[]), ["10.66.0.9"]);
    assert_eq!(looked_at(&pods[..3], &[]), ["10.65.1.5"]);
    // One goes from one address to another.
    let gone = ["n1 web 10.66.0.7", pods[1], pods[2], pods[3]];
    assert_eq!(looked_at(&gone, &[]), ["10.66.0.5", "10.66.0.7"]);
    assert_eq!(looked_at(&pods, &["10.66.0.0/29 pay n3"]), ["10.66.0.5", "10.66.0.6"]);
}

#[test]
fn where_nothing_is_said_otherwise_strays_stay_the_very_same() {
    let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    let claims = blocks_of(&["10.66.0.0/26 pay n1", "10.65.0.0/26 web n1"]);
    let before = in_force(with_pods(ranges, &["n1 web 10.66.0.5"]), &claims);
    let mut objects = before.objects.clone();
    let pod =
        Pod { node: Some("n1".into()), addresses: vec!["10.65.0.5".parse().unwrap()], ..Pod::default() };
    objects.pods.insert("web/new".into(), Arc::new(pod));
    let (followed, _) = before.grounds.follow(&before.compiled, &objects, &claims);
    assert!(!followed.is_empty() && followed.ptr_eq(&before.objects.strays));
}

/// As many as a cluster is promised to have, and each is one.
#[test]
fn strays_of_all_pods_of_a_cluster_have_room() {
    let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
    let number = |n: u32| std::net::Ipv4Addr::from(u32::from_be_bytes([10, 66, 0, 0]) + n);
    let pods: Vec<String> = (0..30_000).map(|n| format!("n1 web {}", number(n))).collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    let mut objects = with_pods(ranges, &pods);
    let (found, _) = strays(&objects, &blocks_of(&["10.66.0.0/16 web n1"]), Witness::Pod);
    objects.strays = found;
    // And as many single addresses in a group: these are prefixes.
    let cidrs = (0..4_000).map(|n| IpNetwork::from(IpAddr::from(std::net::Ipv4Addr::from(n))));
    let group = Sourced::new(NetworkGroupSpec { cidrs: cidrs.collect() }, None);
    objects.network_groups.insert("many".into(), Arc::new(group));
    let local = Local { node: "n1", pods: &[], partitions: None, former: None };
    let compiled = compile(&objects, &mut Interner::default(), &local).unwrap();
    assert_eq!((objects.strays.len(), compiled.exact.len()), (30_000, 30_000));
    compiled.check_room().unwrap();
}

#[test]
fn a_host_network_pod_is_no_stray_of_its_nodes_claim() {
    let mut objects = with_pods(objects(&[("web", "10.65.0.0/16")]), &["n1 web 192.0.2.1"]);
    let pod = Pod { host_network: true, ..Pod::clone(&objects.pods["web/0"]) };
    objects.pods.insert("web/0".into(), Arc::new(pod));
    assert_eq!(found_by(Witness::Pod, &objects, &["192.0.2.0/26 web n1"]), [""; 0]);
}
