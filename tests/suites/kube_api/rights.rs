//! What a daemon's token is good for. Every other case has the daemon run with it, so that it is enough is shown there.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Error, Result, unmet, until};
use std::path::Path;

pub const CASES: &[(&str, Case)] = &[
    ("a daemon's token is good for the blocks of its own node alone", own_blocks),
    ("a daemon's token reads what is enforced, and neither secrets nor may it write policy", little_else),
];

fn block(name: &str, cidr: &str, node: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: IPBlock\nmetadata: {{name: {name}}}\n\
         spec: {{cidr: {cidr}, partition: default, node: {node}}}\n"
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

fn little_else(site: &mut Site) -> Result<()> {
    let token = site.daemon_kubeconfig();
    for (verb, what, expected) in [
        ("watch", "partitions.bulkhead.dev", true),
        ("watch", "endpointslices.discovery.k8s.io", true),
        ("update", "services", false),
        ("create", "ipblocks.bulkhead.dev", true),
        ("update", "ipblocks.bulkhead.dev", false),
        ("update", "partitions.bulkhead.dev", false),
        ("delete", "nodes", false),
        ("get", "secrets", false),
        ("create", "pods", false),
    ] {
        let allowed =
            site.control.kubectl_as(&token, &["auth", "can-i", verb, what, "--all-namespaces"]).is_ok();
        if allowed != expected {
            return unmet(format!("{verb} {what}: {allowed}"));
        }
    }
    Ok(())
}
