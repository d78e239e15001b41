//! A fixed address that follows a StatefulSet's pod, also from a node that is cut off while its container lives on there.

use crate::{
    reach::PODS,
    site::{PORT, Site, specification},
};
use bulkhead_lab::{Result, cluster::SOON, unmet, until};

const ADDRESS: &str = "10.66.15.7";

fn objects() -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: vault}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: vault}}\n\
         spec: {{policyID: 31, namespaces: [vault], podCIDRs: [10.66.0.0/20], fixedCIDRs: [10.66.15.0/28], isolation: Open}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {{name: ledger, namespace: vault}}\n\
         spec: {{pod: ledger-0, addresses: [{ADDRESS}]}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: ledger, namespace: vault}}\n\
         spec:\n  serviceName: ledger\n  selector: {{matchLabels: {{app: ledger}}}}\n  template:\n    \
         metadata: {{labels: {{app: ledger}}, annotations: {{bulkhead.dev/ip: {ADDRESS}}}}}\n    spec:\n{}",
        specification("ledger.$NODE", "      ")
    )
}

/// Whom the router sends packets to the address to, and who answers a pod there.
fn wait_owner(site: &Site, node: usize) -> Result<()> {
    let expected = format!("ledger.node{}", node + 1);
    until(&format!("{expected} has {ADDRESS}, and nobody else"), SOON, || {
        let announced = |n: usize| -> Result<bool> {
            let routes = site.cluster.bird.routes(&format!("n{}v4", n + 1))?;
            Ok(routes.iter().any(|r| r.prefix.ip().to_string() == ADDRESS))
        };
        let both = [announced(0)?, announced(1)?];
        let answers = site.ask(&PODS[0], &[(ADDRESS, PORT)])?;
        if both == [node == 0, node == 1] && answers[0].name == expected {
            return Ok(Some(()));
        }
        unmet(format!("announced {both:?}, answered {answers:?}"))
    })
}

fn claimed_by(site: &Site) -> Result<String> {
    let claim = ["get", "ipblock", "10-66-15-7-32", "--ignore-not-found", "-o", "jsonpath={.spec.node}"];
    site.cluster.kubectl(&claim)
}

pub fn follows(site: &mut Site) -> Result<()> {
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let exists = ["wait", "--for=create", "-n", "vault", "pod/ledger-0", "--timeout=60s"];
    let ready = ["wait", "--for=condition=Ready", "-n", "vault", "pod/ledger-0", "--timeout=90s"];
    kubectl(&["cordon", "node1"])?;
    site.cluster.control.apply(&objects())?;
    kubectl(&exists)?;
    kubectl(&ready)?;
    wait_owner(site, 1)?;
    // The node is cut off. Whoever knows that it is dead deletes the pod by force, and another is made.
    kubectl(&["uncordon", "node1"])?;
    kubectl(&["cordon", "node2"])?;
    site.cluster.router.ip("link set n2 down")?;
    kubectl(&["delete", "pod", "-n", "vault", "ledger-0", "--force", "--grace-period=0"])?;
    until("the new pod waits for the address", SOON, || {
        let path = "jsonpath={range .items[*]}{.note}{.message}{\"\\n\"}{end}";
        let events = kubectl(&["get", "events", "-n", "vault", "-o", path])?;
        let held = format!("{ADDRESS} is held by block {ADDRESS}/32 of node node2");
        if events.contains(&held) { Ok(Some(())) } else { unmet(events) }
    })?;
    let holder = claimed_by(site)?;
    if holder != "node2" {
        return unmet(format!("held by {holder} while the node may be alive"));
    }
    // Whoever deletes the node says that it is.
    kubectl(&["delete", "node", "node2"])?;
    kubectl(&ready)?;
    wait_owner(site, 0)
}

/// Goes on from the case before: the node was not dead at all.
pub fn returned(site: &mut Site) -> Result<()> {
    let cluster = &mut site.cluster;
    cluster.router.ip("link set n2 up")?;
    cluster.router.ip("address add fd00:30:2::1/64 dev n2")?;
    cluster.machines[1].restart_kubelet(&cluster.control)?;
    let node2 = ["wait", "--for=create", "node/node2", "--timeout=60s"];
    site.cluster.kubectl(&node2)?;
    site.cluster.kubectl(&["wait", "--for=condition=Ready", "node/node2", "--timeout=90s"])?;
    site.cluster.kubectl(&["rollout", "status", "-n", "bulkhead", "ds/bulkheadd", "--timeout=300s"])?;
    site.cluster.bird.wait_established(&["n2v4"], SOON)?;
    // Before it has said all that it has, nothing is told by what it has not said.
    until("the router has heard all of node2", SOON, || {
        Ok(site.cluster.bird.restarts_over(&["n2v4"])?.then_some(()))
    })?;
    wait_owner(site, 0)?;
    let holder = claimed_by(site)?;
    if holder != "node1" {
        return unmet(format!("claimed by {holder}"));
    }
    site.cluster.kubectl(&["delete", "namespace", "vault", "--timeout=60s"])?;
    site.cluster.kubectl(&["delete", "partition", "vault"]).map(drop)
}
