//! What a daemon's token is good for. Every other case has the daemon run with it, so that it is enough is shown there.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Error, Result, kubernetes::Identity, unmet, until};
use std::path::Path;

pub const CASES: &[(&str, Case)] = &[
    ("a daemon's token is good for the blocks of its own node alone", own_blocks),
    ("neither a daemon's token nor a kubelet's word alone makes anybody a member of a partition", outsiders),
    ("daemon and controller may do what is listed here, and nothing else", listed),
    ("a token that is bound to no node claims nothing", unbound),
];

fn block(name: &str, cidr: &str, node: &str) -> String {
    block_for("default", name, cidr, node)
}

fn block_for(partition: &str, name: &str, cidr: &str, node: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: IPBlock\nmetadata: {{name: {name}}}\n\
         spec: {{cidr: {cidr}, partition: {partition}, node: {node}}}\n---\n"
    )
}

/// What kubectl says when it is refused.
pub fn refusal(site: &Site, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
    match site.control.kubectl_as(kubeconfig, arguments) {
        Err(Error::Command { stderr, .. }) => Ok(stderr),
        Err(other) => Err(other),
        Ok(said) => unmet(format!("{arguments:?} was allowed: {said}")),
    }
}

fn own_blocks(site: &mut Site) -> Result<()> {
    let token = site.daemon_kubeconfig();
    let file = site.control.write("foreign.yaml", &block("10-90-0-0-26", "10.90.0.0/26", "node2"))?;
    let expected = "the daemon of node `node1` may not claim or release blocks of node `node2`";
    // The API server notices a policy after a while.
    until("a claim for another node is refused", SOON, || {
        let said = refusal(site, &token, &["create", "--dry-run=server", "-f", &file])?;
        if said.contains(expected) { Ok(Some(())) } else { unmet(said) }
    })?;
    site.control.kubectl(&["create", "-f", &file])?;
    let said = refusal(site, &token, &["delete", "--wait=false", "-f", &file])?;
    site.control.kubectl(&["delete", "-f", &file])?;
    if !said.contains(expected) {
        return unmet(said);
    }
    let file = site.control.write("own.yaml", &block("10-90-0-64-26", "10.90.0.64/26", "node1"))?;
    site.control.kubectl_as(&token, &["create", "-f", &file])?;
    site.control.kubectl_as(&token, &["delete", "--wait=false", "-f", &file]).map(drop)
}

/// Claims of addresses that are nobody's in the cluster, for a partition that is isolated: a token may make them, for a range may have
/// been another when its pods were wired. They say something of those pods' addresses, which only kubelets tell.
fn outsiders(site: &mut Site) -> Result<()> {
    const MEMBER: &str = "10.78.0.9";
    let token = site.daemon_kubeconfig();
    site.control.apply(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: bank}\n\
         spec: {policyID: 34, namespaces: [bank], podCIDRs: [10.78.0.0/16]}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {name: bank}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: bank}\n\
         spec: {nodeName: node1, containers: [{name: c, image: none}]}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: near, namespace: bank}\n\
         spec: {nodeName: node1, containers: [{name: c, image: none}]}\n",
    )?;
    // One after the other: who has heard of the last has heard of all.
    site.has_address("bank", "old", "203.0.113.70")?;
    site.has_address("bank", "near", "10.78.0.8")?;
    until("the daemon knows the pods", SOON, || {
        let from = site.explain("10.78.0.8", MEMBER, 80)?.from;
        Ok((from.pod.as_deref() == Some("bank/near")).then_some(()))
    })?;
    let is_outside = |outsider: &str| {
        let explanation = site.explain(outsider, MEMBER, 80)?;
        let is_world = explanation.from.known_as == ["world"] && explanation.from.pod.is_none();
        if explanation.allowed || !is_world {
            return unmet(format!("{outsider} is a member: {explanation:?}"));
        }
        Ok(())
    };
    is_outside("203.0.113.70")?;
    let claims = ["203.0.113.0", "198.51.100.0", "203.0.113.64"].map(|network| {
        let name = format!("{}-26", network.replace('.', "-"));
        block_for("bank", &name, &format!("{network}/26"), "node1")
    });
    let mut files = Vec::new();
    for (n, claim) in claims.iter().enumerate() {
        let file = site.control.write(&format!("claim{n}.yaml"), claim)?;
        site.control.kubectl_as(&token, &["create", "-f", &file])?;
        files.push(file);
    }
    site.wait_allowed("203.0.113.70", MEMBER, 80, true)?;
    for outsider in ["203.0.113.5", "203.0.113.71", "198.51.100.9"] {
        is_outside(outsider)?;
    }
    // The pod goes, and with it whose its address was.
    site.control.kubectl(&["-n", "bank", "delete", "pod", "old", "--force", "--grace-period=0"])?;
    site.wait_allowed("203.0.113.70", MEMBER, 80, false)?;
    for file in files {
        site.control.kubectl_as(&token, &["delete", "--wait=false", "-f", &file])?;
    }
    site.control.kubectl(&["delete", "namespace", "bank", "--wait=false"])?;
    site.control.kubectl(&["delete", "partition", "bank"]).map(drop)
}

/// Resources of the group, names if not all, verbs; sorted as texts are.
const DAEMON: &[&str] = &[
    "bandwidthclasses.bulkhead.dev [] list watch",
    "bgpconfigurations.bulkhead.dev [] list watch",
    "bgppeers.bulkhead.dev [] list watch",
    "clusternetworkpolicies.policy.networking.k8s.io [] list watch",
    "endpointslices.discovery.k8s.io [] list watch",
    "events.events.k8s.io [] create patch",
    "ipblocks.bulkhead.dev [] create delete get list watch",
    "ipreservations.bulkhead.dev [] list watch",
    "namespaces [] list watch",
    "networkgroups.bulkhead.dev [] list watch",
    "networkpolicies.networking.k8s.io [] list watch",
    "nodereports.bulkhead.dev [] create patch",
    "nodes [] get list watch",
    "partitions.bulkhead.dev [] list watch",
    "pods [] list watch",
    "secrets [bulkhead-bgp] list watch",
    "services [] list watch",
];
const CONTROLLER: &[&str] = &[
    "bandwidthclasses.bulkhead.dev [] list watch",
    "bandwidthclasses.bulkhead.dev/status [] patch",
    "bgpconfigurations.bulkhead.dev [] list watch",
    "bgpconfigurations.bulkhead.dev/status [] patch",
    "bgppeers.bulkhead.dev [] list watch",
    "bgppeers.bulkhead.dev/status [] patch",
    "clusternetworkpolicies.policy.networking.k8s.io [] list watch",
    "clusternetworkpolicies.policy.networking.k8s.io/status [] patch",
    "events.events.k8s.io [] create patch",
    "ipreservations.bulkhead.dev [] list watch",
    "ipreservations.bulkhead.dev/status [] patch",
    "networkgroups.bulkhead.dev [] list watch",
    "networkgroups.bulkhead.dev/status [] patch",
    "networkpolicies.networking.k8s.io [] get",
    "nodereports.bulkhead.dev [] list watch",
    "partitions.bulkhead.dev [] list watch",
    "partitions.bulkhead.dev/status [] patch",
];

/// In Bulkhead's own namespace, where the daemon's rights are widest. What everybody may who is somebody (ask about himself, read
/// what the API offers) is left out.
fn listed(site: &mut Site) -> Result<()> {
    for (name, kubeconfig, expected) in [
        ("daemon", site.daemon_kubeconfig(), DAEMON),
        ("controller", site.control.kubeconfig("bulkhead-controller"), CONTROLLER),
    ] {
        let list = ["auth", "can-i", "--list", "--no-headers", "-n", "bulkhead"];
        let said = site.control.kubectl_as(&kubeconfig, &list)?;
        let mut rights: Vec<_> = said.lines().filter_map(right).collect();
        rights.sort_unstable();
        if rights != expected {
            return unmet(format!("the {name} may\n{}", rights.join("\n")));
        }
    }
    Ok(())
}

/// Of a line of kubectl's: resource, paths, names, verbs.
fn right(line: &str) -> Option<String> {
    let (resource, rest) = line.split_once(char::is_whitespace)?;
    if resource.is_empty() || resource.starts_with("self") {
        return None;
    }
    let lists: Vec<_> = rest.split(']').map(|list| list.trim().trim_start_matches('[')).collect();
    let [_paths, names, verbs, ..] = lists.as_slice() else { return Some(line.into()) };
    let mut verbs: Vec<_> = verbs.split_whitespace().collect();
    verbs.sort_unstable();
    Some(format!("{resource} [{names}] {}", verbs.join(" ")))
}

fn unbound(site: &mut Site) -> Result<()> {
    let token = site.control.kubectl(&["-n", "bulkhead", "create", "token", "bulkheadd"])?;
    let unbound = site.control.write_kubeconfig("unbound", &Identity::Token(token.trim().into()))?;
    let file = site.control.write("unbound.yaml", &block("10-90-0-128-26", "10.90.0.128/26", "node1"))?;
    let expected = "the daemon of node `` may not claim or release blocks of node `node1`";
    until("a claim by nobody's daemon is refused", SOON, || {
        let said = refusal(site, &unbound, &["create", "--dry-run=server", "-f", &file])?;
        if said.contains(expected) { Ok(Some(())) } else { unmet(said) }
    })
}
