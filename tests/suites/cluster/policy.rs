//! Partitions and network policies over real pods of both nodes.

use crate::{
    reach::{NODES, PODS},
    site::{Pod, Site},
};
use bulkhead_lab::Result;

const LEDGERS: [Pod; 2] = [
    Pod { namespace: "payments", name: "ledger1", node: "node1", host: false, role: "ledger" },
    Pod { namespace: "payments", name: "ledger2", node: "node2", host: false, role: "ledger" },
];

pub fn partition(site: &mut Site) -> Result<()> {
    let partition = |ingress: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: payments}}\n---\n\
             apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: payments}}\n\
             spec:\n  policyID: 10\n  namespaces: [payments]\n  podCIDRs: [10.65.0.0/20]\n  ingress: [{ingress}]\n"
        )
    };
    site.cluster.control.apply(&partition(""))?;
    // Ready by the kubelet's probes, which come from the node.
    site.create(&LEDGERS)?;
    let [ledger1, ledger2] = &LEDGERS;
    let [app1, ..] = &PODS;
    site.wait_reached(ledger1, ledger2, true)?;
    for stranger in [app1, &NODES[0]] {
        site.wait_reached(stranger, ledger2, false)?;
    }
    site.cluster.control.apply(&partition("{name: from-shop, from: [{partition: default}]}"))?;
    site.wait_reached(app1, ledger1, true)?;
    site.wait_reached(app1, ledger2, true)
}

pub fn labels(site: &mut Site) -> Result<()> {
    let [app1, app2, db1, db2] = &PODS;
    site.cluster.control.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: app}}}]}]}\n",
    )?;
    site.wait_reached(db1, db2, false)?;
    for (from, to) in [(app1, db1), (app1, db2), (app2, db1), (app2, db2)] {
        site.wait_reached(from, to, true)?;
    }
    let label = |pod: &Pod, role: &str| {
        let role = format!("role={role}");
        site.cluster.kubectl(&["label", "--overwrite", "-n", pod.namespace, "pod", pod.name, &role])
    };
    label(app1, "guest")?;
    for (to, reached) in [(db1, false), (db2, false), (app2, true)] {
        site.wait_reached(app1, to, reached)?;
    }
    label(app1, "app")?;
    label(db2, "open")?;
    site.wait_reached(app1, db1, true)?;
    site.wait_reached(db1, db2, true)?;
    site.cluster.kubectl(&["delete", "networkpolicy", "-n", "shop", "db"])?;
    site.wait_reached(db2, db1, true)
}
