//! Objects written short, for tests.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test file uses a part; a wrong text is a wrong test"
)]

use bulkhead_api::objects::{BandwidthClassSpec, NetworkGroupSpec, NetworkPolicySpec, PartitionSpec};
use bulkhead_policy::{
    Compiled, Decision, Interner, Local, LocalPod, NodeInfo, Objects, Pod, Sourced, compile,
};
use std::{net::IpAddr, sync::Arc};

pub const NODE: &str = "node-1";

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn sourced<T>(spec: T, name: &str) -> Arc<Sourced<T>> {
    Arc::new(Sourced::new(spec, Some(format!("{name}.yaml"))))
}

/// A partition from its spec in YAML.
pub fn partition(yaml: &str) -> PartitionSpec {
    serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"))
}

/// Three nodes (the first one local, the third of the control plane), default ranges, one DNS address in them, groups.
pub fn cluster() -> Objects {
    let node = |addresses: &[&str], control_plane| NodeInfo {
        drain_routes: None,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        control_plane,
        ..NodeInfo::default()
    };
    let mut objects = Objects {
        default_pod_cidrs: vec!["10.64.0.0/16".parse().unwrap(), "fd00:64::/64".parse().unwrap()],
        cluster_dns: vec![ip("10.64.0.10"), ip("fd00:64::10")],
        ..Objects::default()
    };
    objects.nodes.insert(NODE.into(), Arc::new(node(&["192.168.0.1", "fd00:1::1"], false)));
    objects.nodes.insert("node-2".into(), Arc::new(node(&["192.168.0.2", "fd00:1::2"], false)));
    objects.nodes.insert("node-3".into(), Arc::new(node(&["192.168.0.3", "fd00:1::3"], true)));
    for (name, cidrs) in [("vms", vec!["172.16.0.0/12", "2001:db8::/32"]), ("db", vec!["172.16.5.0/24"])] {
        let spec = NetworkGroupSpec { cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect() };
        objects.network_groups.insert(name.into(), sourced(spec, name));
    }
    let web = "{policyID: 1, namespaces: [web], podCIDRs: [10.65.0.0/16, fd00:65::/64]}";
    add(&mut objects, "web", web);
    add(&mut objects, "pay", "{policyID: 2, namespaces: [pay], podCIDRs: [10.66.0.0/16, fd00:66::/64]}");
    objects
}

pub fn add(objects: &mut Objects, name: &str, yaml: &str) {
    objects.partitions.insert(name.into(), sourced(partition(yaml), name));
}

pub fn add_class(objects: &mut Objects, name: &str, yaml: &str) {
    let spec: BandwidthClassSpec = serde_saphyr::from_str(yaml).unwrap();
    objects.bandwidth_classes.insert(name.into(), sourced(spec, name));
}

/// The cluster with rules in partition `web`, given as YAML fields of its spec.
pub fn web_with(fields: &str) -> Objects {
    let mut objects = cluster();
    let yaml = format!("policyID: 1\nnamespaces: [web]\npodCIDRs: [10.65.0.0/16, 'fd00:65::/64']\n{fields}");
    add(&mut objects, "web", &yaml);
    objects
}

pub fn compiled(objects: &Objects) -> Compiled {
    compiled_for(objects, &[])
}

/// With the policies of these pods besides those of all partitions.
pub fn compiled_for(objects: &Objects, pods: &[LocalPod]) -> Compiled {
    compile(objects, &mut Interner::default(), &Local { pods, ..HERE }).unwrap()
}

pub const HERE: Local<'static> = Local { node: NODE, pods: &[], partitions: None, former: None };

pub fn add_network_policy(objects: &mut Objects, key: &str, yaml: &str) {
    let spec: NetworkPolicySpec = serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    objects.network_policies.insert(key.into(), sourced(spec, key));
}

/// A pod object; `labels` and `ports` in YAML.
pub fn add_pod(objects: &mut Objects, key: &str, address: &str, yaml: &str) {
    let pod: Pod = serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    objects.pods.insert(key.into(), Arc::new(Pod { addresses: vec![ip(address)], ..pod }));
}

/// A pod of this node in the partition of its namespace.
pub fn local(objects: &Objects, key: &str) -> LocalPod {
    let (namespace, name) = key.split_once('/').unwrap();
    let partition = objects.partition_of_namespace(namespace).to_string();
    let addresses = objects.pods.get(key).map(|p| p.addresses.clone()).unwrap_or_default();
    LocalPod { namespace: namespace.into(), name: name.into(), partition, addresses }
}

/// What this partition decides about a peer.
pub fn decide(c: &Compiled, partition: &str, dir: u32, peer: &str, proto: u8, port: u16) -> Decision {
    c.evaluate(c.policies[partition], dir, c.identity(ip(peer)).id, proto, port)
}

pub fn rule_name(c: &Compiled, decision: Decision) -> &str {
    &c.rules.get(decision.rule).unwrap().name
}
