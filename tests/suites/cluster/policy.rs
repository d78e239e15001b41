//! Partitions and network policies over real pods of both nodes.

use crate::{
    reach::{NODES, PODS},
    site::{Pod, Site},
};
use bulkhead_lab::{Result, cluster::SOON, unmet, until};

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
    site.wait_reached(db2, db1, true)?;
    // Those who come after it select by role.
    label(db2, "db").map(drop)
}

/// The bandwidth of a pod follows its annotation while it runs, as far as its partition allows.
pub fn bandwidth(site: &mut Site) -> Result<()> {
    let [ledger1, _] = &LEDGERS;
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let bandwidth = r#"{"spec": {"bandwidth": {"allowedClasses": ["low", "management"]}}}"#;
    kubectl(&["patch", "partition", "payments", "--type=merge", "-p", bandwidth])?;
    let class = |class: &str| {
        let class = format!("bulkhead.dev/bandwidth-class{class}");
        kubectl(&["annotate", "--overwrite", "pod", "-n", ledger1.namespace, ledger1.name, &class])
    };
    let paced = |words: &str| {
        until(&format!("the pod is paced: {words}"), SOON, || {
            let queues = site.cluster.machines[0].run("tc", &["qdisc", "show"])?;
            let tbf = queues.lines().filter(|l| l.contains("tbf")).collect::<Vec<_>>().join("\n");
            let holds = if words.is_empty() { tbf.is_empty() } else { tbf.contains(words) };
            if holds { Ok(Some(())) } else { unmet(tbf) }
        })
    };
    paced("")?;
    class("=management")?;
    paced("rate 500Mbit")?;
    class("=low")?;
    paced("rate 1Gbit")?;
    class("=high")?;
    until("the class that is not allowed is refused", SOON, || {
        let status = site.on_node(ledger1.node, &["status"])?;
        let told = status.contains("payments/ledger1") && status.contains("high");
        if told { Ok(Some(())) } else { unmet(status) }
    })?;
    paced("rate 1Gbit")?;
    class("-")?;
    paced("")
}
