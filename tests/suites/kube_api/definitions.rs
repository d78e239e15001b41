//! The definitions of our kinds in a real API server: what it accepts, what it refuses and how it says so, what it shows.

use crate::site::{Case, Site};
use bulkhead_lab::{Result, unmet};

pub const CASES: &[(&str, Case)] = &[
    ("what the user guide shows is accepted by the API server", user_guide),
    ("the API server refuses what one object has wrong, and names it", refused),
    ("a policyID is never changed, nor is a claim", unchangeable),
    ("kubectl shows what people look for, by short names", shown),
];

/// Kind, name, spec, and what the API server must say: field and words, `|` between.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    ("Partition", "bad", "{policyID: 0, podCIDRs: [10.1.0.0/16]}", "spec.policyID"),
    ("Partition", "bad", "{policyID: 1}", "spec.podCIDRs|is empty"),
    ("Partition", "bad", "{policyID: 1, podCIDRs: [10.1.0.0/33]}", "spec.podCIDRs[0]|is not a CIDR"),
    ("Partition", "bad", "{policyID: 1, podCIDRs: [10.1.2.0/16]}", "has bits set beyond its prefix"),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.96.0.0/16, \"::/0\"]}",
        "spec.serviceCIDRs|holds a default route",
    ),
    ("Partition", "default", "{policyID: 1, podCIDRs: [10.1.0.0/16]}", "`default` is the partition of all"),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingress: [{ports: [{port: 8090, endPort: 8000}]}]}",
        "spec.ingress[0].ports[0].endPort|the range is upside down",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingress: [{ports: [{endPort: 8000}]}]}",
        "endPort has no port",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], egress: [{to: [{nodes: {}, partition: web}]}]}",
        "spec.egress[0].to[0]|a peer is exactly one of partition",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], egress: [{ports: [{protocol: ICMP, port: 256}]}]}",
        "ICMP types go from 0 to 255",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}]}",
        "except[0]",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], bgp: {communities: [\"65536:1\"]}}",
        "is not a community",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], bgp: {communities: [\"65010:1:2\", \"4294967296:1:2\"]}}",
        "communities[1]",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingres: []}",
        "unknown field \"spec.ingres\"",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], bandwidth: {maximum: 0}}",
        "0 lets nothing pass",
    ),
    ("NetworkGroup", "bad", "{cidrs: [10.0.0.1/8]}", "has bits set beyond its prefix"),
    ("BandwidthClass", "bad", "{rate: 0G}", "0 lets nothing pass"),
    ("BandwidthClass", "bad", "{rate: 1.5G}", "spec.rate"),
    ("BGPPeer", "bad", "{peerAddress: router, peerASN: 65000}", "is not an IP address"),
    (
        "BGPPeer",
        "bad",
        "{peerAddress: 10.0.0.1, peerASN: 65000, holdTimeSeconds: 2}",
        "must be 0, or at least 3",
    ),
    ("BGPPeer", "bad", "{peerAddress: 10.0.0.1, peerASN: 0}", "spec.peerASN"),
    ("BGPPeer", "bad", "{peerASN: 65000}", "set one of peerAddress, peerRange and interface"),
    (
        "BGPPeer",
        "bad",
        "{peerAddress: 10.0.0.1, interface: eth0, peerASN: 65000}",
        "set one of peerAddress, peerRange and interface",
    ),
    ("BGPPeer", "bad", "{interface: a/b, peerASN: 65000}", "spec.interface"),
    ("BGPConfiguration", "other", "{asn: 65010}", "there is one BGPConfiguration, and its name is `default`"),
    ("BGPConfiguration", "default", "{asn: 65010, restartTimeSeconds: 5000}", "spec.restartTimeSeconds"),
    (
        "IPBlock",
        "mine",
        "{cidr: 10.1.0.0/26, partition: web, node: node1}",
        "the name of an IPBlock is its CIDR",
    ),
    (
        "IPBlock",
        "fd00-0---122",
        "{cidr: \"fd00:0::/122\", partition: web, node: node1}",
        "is not written in the shortest form",
    ),
    (
        "IPReservation",
        "both",
        "{pod: db-0, addresses: [10.1.0.1, 10.1.0.2]}",
        "both addresses are of one family",
    ),
];

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: bulkhead.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn refused(site: &mut Site) -> Result<()> {
    for (kind, name, spec, expected) in REFUSED {
        let said = site.refusal(&document(kind, name, spec))?;
        if !expected.split('|').all(|words| said.contains(words)) {
            return unmet(format!("{kind} {spec}\nexpected: {expected}\nsaid:     {said}"));
        }
    }
    Ok(())
}

fn unchangeable(site: &mut Site) -> Result<()> {
    for (kind, name, first, second, expected) in [
        (
            "Partition",
            "fixed",
            "{policyID: 7, podCIDRs: [10.7.0.0/16]}",
            "{policyID: 8, podCIDRs: [10.7.0.0/16]}",
            "policyID is never changed",
        ),
        (
            "IPBlock",
            "10-7-0-0-26",
            "{cidr: 10.7.0.0/26, partition: web, node: node1}",
            "{cidr: 10.7.0.0/26, partition: web, node: node2}",
            "is never changed",
        ),
    ] {
        site.control.apply(&document(kind, name, first))?;
        let said = site.refusal(&document(kind, name, second))?;
        site.control.kubectl(&["delete", kind, name])?;
        if !said.contains(expected) {
            return unmet(format!("{kind}: {said}"));
        }
    }
    Ok(())
}

fn shown(site: &mut Site) -> Result<()> {
    let spec = "{policyID: 9, podCIDRs: [10.9.0.0/16, \"fd00:9::/48\"]}";
    site.control.apply(&document("Partition", "shown", spec))?;
    let table = site.control.kubectl(&["get", "part", "shown"])?;
    let all = site.control.kubectl(&["get", "bulkhead"])?;
    site.control.kubectl(&["delete", "partition", "shown"])?;
    for word in ["ID", "ISOLATION", "RANGES", "IN FORCE", "NODES", "ACCEPTED", "Enforced", "10.9.0.0/16"] {
        if !table.contains(word) {
            return unmet(format!("no {word} in:\n{table}"));
        }
    }
    if !all.contains("partition.bulkhead.dev/shown") {
        return unmet(format!("`kubectl get bulkhead` says:\n{all}"));
    }
    Ok(())
}

/// Every object of our group in the guide.
fn user_guide(site: &mut Site) -> Result<()> {
    let guide = include_str!("../../../docs/user-guide.md");
    let blocks = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let objects: Vec<_> = blocks.filter(|b| b.contains("apiVersion: bulkhead.dev/v1alpha1")).collect();
    if objects.len() < 3 {
        return unmet(format!("only {} blocks of objects in the guide", objects.len()));
    }
    for object in objects {
        site.control.apply(object)?;
        site.control.kubectl(&["delete", "-f", &site.control.applied()])?;
    }
    Ok(())
}
