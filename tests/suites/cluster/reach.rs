//! Who reaches whom where no policy says anything, and what is told of a pod that cannot be connected.

use crate::site::{Pod, Site};
use bulkhead_lab::{
    Result,
    cluster::{BUSYBOX, SOON},
    unmet, until,
};

pub const PODS: [Pod; 4] = [
    Pod { namespace: "shop", name: "app1", node: "node1", host: false, role: "app" },
    Pod { namespace: "shop", name: "app2", node: "node2", host: false, role: "app" },
    Pod { namespace: "shop", name: "db1", node: "node1", host: false, role: "db" },
    Pod { namespace: "shop", name: "db2", node: "node2", host: false, role: "db" },
];
pub const NODES: [Pod; 2] = [
    Pod { namespace: "shop", name: "host1", node: "node1", host: true, role: "host" },
    Pod { namespace: "shop", name: "host2", node: "node2", host: true, role: "host" },
];

pub fn everybody(site: &mut Site) -> Result<()> {
    site.cluster.kubectl(&["create", "namespace", "shop"])?;
    let all = [&PODS[..], &NODES].concat();
    site.create(&all)?;
    let both = all.iter().map(|pod| site.addresses(pod)).collect::<Result<Vec<_>>>()?;
    for (family, range) in ["10.64.", "fd00:64:"].into_iter().enumerate() {
        let addresses: Vec<String> = both.iter().map(|addresses| addresses[family].clone()).collect();
        if addresses.iter().filter(|a| a.starts_with(range)).count() != PODS.len() {
            return unmet(format!("addresses outside podCIDRs: {addresses:?}"));
        }
        for (from, own) in all.iter().zip(&addresses) {
            // A neighbour's way to a new pod may come a moment after the pod.
            until(&format!("{} is seen as {own} everywhere", from.name), SOON, || {
                let seen = site.call(from, &addresses)?;
                // A node has another address towards its own pods, and towards itself.
                let expected = |to: &Pod, seen: &String| {
                    seen == own || (from.host && to.node == from.node && seen != "-")
                };
                let held =
                    seen.len() == all.len() && all.iter().zip(&seen).all(|(to, seen)| expected(to, seen));
                if held { Ok(Some(())) } else { unmet(format!("{addresses:?} see {seen:?}")) }
            })?;
        }
    }
    Ok(())
}

/// A pod asks for a bandwidth class that there is none of.
pub fn events(site: &mut Site) -> Result<()> {
    site.cluster.control.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: tiny}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: tiny}}\n\
         spec: {{policyID: 77, namespaces: [tiny], podCIDRs: [\"fd00:77::/64\"]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: stuck, namespace: tiny, annotations: {{bulkhead.dev/bandwidth-class: huge}}}}\n\
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: {BUSYBOX}, imagePullPolicy: Never}}]}}\n"
    ))?;
    until("the pod's events say why it has no network", SOON, || {
        let events = site.cluster.kubectl(&["get", "events", "-n", "tiny", "-o", "jsonpath={range .items[*]}{.source.component}{.reportingComponent} {.reason}: {.message}{\"\\n\"}{end}"])?;
        let told = events.lines().any(|line| line.contains("bulkhead") && line.contains("huge"));
        if told { Ok(Some(())) } else { unmet(events) }
    })?;
    site.cluster.kubectl(&["delete", "namespace", "tiny", "--timeout=60s"])?;
    site.cluster.kubectl(&["delete", "partition", "tiny"]).map(drop)
}
