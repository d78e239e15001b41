//! A partition without room, and nodes that give back what they do not need.

use crate::{
    reach::{NODES, PODS},
    site::{Pod, Site},
};
use bulkhead_lab::{Result, cluster::SOON, unmet, until};

const fn pod(name: &'static str) -> Pod {
    Pod { namespace: "narrow", name, node: "node1", host: false, role: "narrow" }
}

/// There is an address for one.
pub fn exhausted(site: &mut Site) -> Result<()> {
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    site.cluster.control.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: narrow}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: narrow}\n\
         spec: {policyID: 44, namespaces: [narrow], podCIDRs: [10.67.96.0/31]}\n",
    )?;
    let (first, second) = (pod("first"), pod("second"));
    site.create(&[first])?;
    site.cluster.control.apply(&second.manifest())?;
    let words = "partition narrow has no free IPv4 address";
    let path = "jsonpath={.status.conditions[?(@.type=='AddressesAvailable')]}";
    let wait_told = |words: &[&str]| {
        until(&format!("the partition says {words:?}"), SOON, || {
            let told = kubectl(&["get", "partition", "narrow", "-o", path])?;
            if words.iter().all(|w| told.contains(w)) { Ok(Some(())) } else { unmet(told) }
        })
    };
    wait_told(&["\"status\":\"False\"", "1 pod on 1 node (node1) without an address", words])?;
    until("the pod's events say it", SOON, || {
        let path = "jsonpath={range .items[*]}{.regarding.name} {.reason}: {.note}{\"\\n\"}{end}";
        let events = kubectl(&["get", "events.events.k8s.io", "-n", "narrow", "-o", path])?;
        let told = events.lines().any(|line| line.starts_with("second NoAddress: ") && line.contains(words));
        if told { Ok(Some(())) } else { unmet(events) }
    })?;
    // Whoever goes makes room, and the runtime asks again.
    kubectl(&["delete", "pod", "-n", "narrow", first.name, "--timeout=60s"])?;
    site.create(&[second])?;
    wait_told(&["\"status\":\"True\""])?;
    kubectl(&["delete", "namespace", "narrow", "--timeout=60s"])?;
    kubectl(&["delete", "partition", "narrow"]).map(drop)
}

/// `kubectl drain` leaves a node without pods of its own addresses: it gives its blocks back, and routers hear of none.
pub fn drained(site: &mut Site) -> Result<()> {
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let announced = || -> Result<Vec<String>> {
        let mut all = site.cluster.bird.routes("n2v4")?;
        all.extend(site.cluster.bird.routes("n2v6")?);
        Ok(all.iter().map(|r| r.prefix.to_string()).collect())
    };
    let claimed = || {
        let path = "jsonpath={range .items[?(@.spec.node=='node2')]}{.metadata.name} {end}";
        kubectl(&["get", "ipblocks", "-o", path])
    };
    let (blocks, routes) = (claimed()?, announced()?);
    if blocks.is_empty() || routes.is_empty() {
        return unmet(format!("node2 has pods, and claims {blocks:?} and announces {routes:?}"));
    }
    let drain =
        ["drain", "node2", "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=90s"];
    kubectl(&drain)?;
    until("node2 has no block any more, and announces none", SOON, || {
        let (blocks, routes) = (claimed()?, announced()?);
        if blocks.is_empty() && routes.is_empty() {
            Ok(Some(()))
        } else {
            unmet(format!("{blocks} {routes:?}"))
        }
    })?;
    kubectl(&["uncordon", "node2"])?;
    site.create(&[PODS[1], PODS[3], NODES[1]])?;
    for (from, to) in [(&PODS[0], &PODS[1]), (&PODS[1], &PODS[2])] {
        site.wait_reached(from, to, true)?;
    }
    Ok(())
}
