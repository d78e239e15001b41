//! Fixed addresses: by reservation alone, never held twice, announced and given back with the pod.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Pod, Result, unmet, until};

pub const CASES: &[(&str, Case)] = &[
    ("a pod with a reservation gets its address, and nobody has it twice", given),
    ("a pod that is made again under its name is not taken for the one before it", made_again),
    ("nobody grants himself an address", refused),
    ("a reservation of both families gives an address of each, and claims both", of_both_families),
];

/// Of a partition with a part kept for reservations, and a pod of this node.
fn objects(pod: &str, annotation: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: vault}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: vault}}\n\
         spec: {{policyID: 31, namespaces: [vault], podCIDRs: [10.66.0.0/16], fixedCIDRs: [10.66.15.0/28]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: vault, annotations: {{{annotation}}}}}\n\
         spec: {{nodeName: node1, containers: [{{name: c, image: none}}]}}\n---\n"
    )
}

fn reservation(name: &str, pod: &str, address: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {{name: {name}, namespace: vault}}\n\
         spec: {{pod: {pod}, addresses: [{address}]}}\n---\n"
    )
}

/// What ADD says in the end.
fn wait_add(site: &Site, pod: &mut Pod, words: &str) -> Result<()> {
    until(&format!("ADD says {words}"), SOON, || match pod.add(&site.node) {
        Ok(_) if words.is_empty() => Ok(Some(())),
        Ok(_) => unmet(format!("connected as {}", pod.v4)),
        Err(e) if !words.is_empty() && e.to_string().contains(words) => Ok(Some(())),
        Err(e) => unmet(e.to_string()),
    })
}

fn block(node: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: IPBlock\nmetadata: {{name: 10-66-15-7-32}}\n\
         spec: {{cidr: 10.66.15.7/32, partition: vault, node: {node}}}\n"
    )
}

fn given(site: &mut Site) -> Result<()> {
    // The former owner's node is cut off: its claim stands.
    let held = site.control.write("held.yaml", &block("node2"))?;
    site.control.kubectl(&["create", "-f", &held])?;
    let wanted = objects("db-0", "bulkhead.dev/ip: 10.66.15.7");
    site.control.apply(&(wanted + &reservation("db", "db-0", "10.66.15.7")))?;
    let accepted = ["wait", "-n", "vault", "ipreservation/db", "--for=condition=Accepted", "--timeout=60s"];
    site.control.kubectl(&accepted)?;
    let mut pod = Pod::create(0, "vault", "db-0")?;
    wait_add(site, &mut pod, "10.66.15.7 is held by block 10.66.15.7/32 of node node2")?;
    site.control.kubectl(&["delete", "-f", &held])?;
    wait_add(site, &mut pod, "")?;
    let owner = ["get", "ipblock", "10-66-15-7-32", "-o", "jsonpath={.spec.node}"];
    let (address, owner) = (pod.v4.to_string(), site.control.kubectl(&owner)?);
    if (address.as_str(), owner.as_str()) != ("10.66.15.7", "node1") {
        return unmet(format!("{address}, claimed by {owner}"));
    }
    pod.del(&site.node)?;
    until("the address is given back", SOON, || {
        let left = site.control.kubectl(&["get", "ipblocks", "-o", "name"])?;
        if left.contains("10-66-15-7-32") { unmet(left) } else { Ok(Some(())) }
    })
}

/// Goes on from the case before: the reservation is there, and the pod asks for nothing else.
fn made_again(site: &mut Site) -> Result<()> {
    let uid =
        || site.control.kubectl(&["get", "-n", "vault", "pod", "db-0", "-o", "jsonpath={.metadata.uid}"]);
    let mut first = Pod::create(0, "vault", "db-0")?;
    first.uid = Some(uid()?);
    wait_add(site, &mut first, "")?;
    // As when its node does not answer; its container lives on.
    site.control.kubectl(&["-n", "vault", "delete", "pod", "db-0", "--force", "--grace-period=0"])?;
    site.control.apply(&objects("db-0", "bulkhead.dev/ip: 10.66.15.7"))?;
    let mut second = Pod::create(0, "vault", "db-0b")?;
    second.name = "db-0".into();
    // A third one, which the API server has not told of.
    second.uid = Some("11111111-2222-3333-4444-555555555555".into());
    wait_add(site, &mut second, "pod vault/db-0 is not known yet")?;
    second.uid = Some(uid()?);
    wait_add(site, &mut second, "10.66.15.7 is held by another pod of this node")?;
    first.del(&site.node)?;
    wait_add(site, &mut second, "")?;
    // The runtime comes late with what was the first one's.
    first.del(&site.node)?;
    second.check(&site.node)?;
    second.del(&site.node)
}

/// Goes on from the cases before.
fn refused(site: &mut Site) -> Result<()> {
    site.control.apply(
        &(objects("thief", "bulkhead.dev/ip: 10.66.15.7")
            + &reservation("outside", "other", "10.66.3.3")
            + &reservation("twice", "other2", "10.66.15.7")),
    )?;
    let mut pod = Pod::create(0, "vault", "thief")?;
    wait_add(site, &mut pod, "no IPReservation of the namespace is for pod thief")?;
    for (name, words) in [
        ("outside", "10.66.3.3 lies outside spec.fixedCIDRs of partition vault, which are 10.66.15.0/28"),
        ("twice", "10.66.15.7 is given by IPReservation/vault/db already"),
    ] {
        let path = "jsonpath={.status.conditions[0].message}";
        until(&format!("the status of {name}"), SOON, || {
            let said = site.control.kubectl(&["get", "-n", "vault", "ipreservation", name, "-o", path])?;
            if said.contains(words) { Ok(Some(())) } else { unmet(said) }
        })?;
    }
    site.control.kubectl(&["delete", "-n", "vault", "ipreservations", "--all"])?;
    site.control.kubectl(&["delete", "-n", "vault", "pods", "--all", "--force", "--grace-period=0"])?;
    site.control.kubectl(&["delete", "partition", "vault"])?;
    site.wait_sound()
}

fn of_both_families(site: &mut Site) -> Result<()> {
    const ADDRESSES: [&str; 2] = ["10.67.15.7", "fd00:67::f7"];
    const CLAIMS: [&str; 2] = ["10-67-15-7-32", "fd00-67--f7-128"];
    let [v4, v6] = ADDRESSES;
    site.control.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: safe}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: safe}}\n\
         spec: {{policyID: 32, namespaces: [safe], podCIDRs: [10.67.0.0/16, \"fd00:67::/64\"], \
         fixedCIDRs: [10.67.15.0/28, \"fd00:67::f0/124\"]}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {{name: key, namespace: safe}}\n\
         spec: {{pod: key-0, addresses: [\"{v6}\", {v4}]}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: key-0, namespace: safe, annotations: {{bulkhead.dev/ip: \"{v4},{v6}\"}}}}\n\
         spec: {{nodeName: node1, containers: [{{name: c, image: none}}]}}\n"
    ))?;
    let accepted = ["wait", "-n", "safe", "ipreservation/key", "--for=condition=Accepted", "--timeout=60s"];
    site.control.kubectl(&accepted)?;
    let mut pod = Pod::create(0, "safe", "key-0")?;
    wait_add(site, &mut pod, "")?;
    let has = [pod.v4.to_string(), pod.v6.to_string()];
    if has != ADDRESSES {
        return unmet(format!("the pod has {has:?}"));
    }
    for claim in CLAIMS {
        let owner = site.control.kubectl(&["get", "ipblock", claim, "-o", "jsonpath={.spec.node}"])?;
        if owner != "node1" {
            return unmet(format!("{claim} is claimed by {owner}"));
        }
    }
    pod.del(&site.node)?;
    until("both addresses are given back", SOON, || {
        let left = site.control.kubectl(&["get", "ipblocks", "-o", "name"])?;
        if CLAIMS.iter().any(|claim| left.contains(claim)) { unmet(left) } else { Ok(Some(())) }
    })?;
    site.control.kubectl(&["delete", "-n", "safe", "ipreservation", "key"])?;
    site.control.kubectl(&["delete", "-n", "safe", "pod", "key-0", "--force", "--grace-period=0"])?;
    site.control.kubectl(&["delete", "namespace", "safe", "--wait=false"])?;
    site.control.kubectl(&["delete", "partition", "safe"])?;
    site.wait_sound()
}
