//! Claims that somebody takes away from a node with pods in them.

use crate::site::{Case, SOON, Site};
use bulkhead_api::messages::PartitionInfo;
use bulkhead_lab::{Pod, Result, unmet, until};

pub const CASES: &[(&str, Case)] = &[
    ("a claim that somebody deletes is made again, while a daemon runs and while none does", again),
    ("a block that another node has claimed since is announced no more, and its pods are told", lost),
    (
        "a node that is deleted announces nothing that it has no claim of, and claims again when it is back",
        back,
    ),
];

const BLOCK: &str = "10-68-0-0-26";

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shelf}}\n\
         spec: {{nodeName: node1, containers: [{{name: c, image: none}}]}}\n---\n"
    )
}

/// A wired pod of a partition with two blocks' room.
fn wired(site: &Site, index: usize, name: &str) -> Result<Pod> {
    site.control.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shelf}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: shelf}}\n\
         spec: {{policyID: 41, namespaces: [shelf], podCIDRs: [10.68.0.0/25]}}\n---\n{}",
        pod(name)
    ))?;
    let accepted = ["wait", "partition/shelf", "--for=condition=Accepted", "--timeout=60s"];
    site.control.kubectl(&accepted)?;
    let mut wired = Pod::create(index, "shelf", name)?;
    until("the pod is wired", SOON, || wired.add(&site.node).map(|_| Some(())))?;
    Ok(wired)
}

/// Whose claim stands under this name, and its uid.
fn claim(site: &Site) -> Result<String> {
    let path = "jsonpath={.spec.node} {.metadata.uid}";
    site.control.kubectl(&["get", "ipblock", BLOCK, "--ignore-not-found", "-o", path])
}

fn wait_claimed_again(site: &Site, before: &str) -> Result<()> {
    until("the block is claimed again", SOON, || {
        let now = claim(site)?;
        if now.starts_with("node1 ") && now != before { Ok(Some(())) } else { unmet(now) }
    })
}

/// The node announces the partition's block, or not.
fn wait_ours(site: &Site, ours: bool) -> Result<()> {
    until(&format!("the block is this node's: {ours}"), SOON, || {
        let partitions: Vec<PartitionInfo> = site.node.get("/v1/partitions")?;
        let shelf = partitions.into_iter().find(|p| p.name == "shelf");
        let blocks: Vec<_> = shelf.iter().flat_map(|p| &p.blocks).map(ToString::to_string).collect();
        if blocks.iter().any(|b| b == "10.68.0.0/26") == ours {
            return Ok(Some(()));
        }
        unmet(format!("{blocks:?}"))
    })
}

fn delete_claim(site: &Site) -> Result<()> {
    site.control.kubectl(&["delete", "ipblock", BLOCK, "--wait=false"]).map(drop)
}

fn again(site: &mut Site) -> Result<()> {
    let pod = wired(site, 0, "book")?;
    let first = claim(site)?;
    delete_claim(site)?;
    wait_claimed_again(site, &first)?;
    let second = claim(site)?;
    site.node.kill_daemon()?;
    delete_claim(site)?;
    site.node.start_daemon()?;
    wait_claimed_again(site, &second)?;
    site.wait_sound()?;
    pod.del(&site.node)
}

/// Part of the block was claimed before the node makes its own claim again.
fn lost(site: &mut Site) -> Result<()> {
    let held = wired(site, 0, "atlas")?;
    let part = site.control.write(
        "part.yaml",
        "apiVersion: bulkhead.dev/v1alpha1\nkind: IPBlock\nmetadata: {name: 10-68-0-0-27}\n\
         spec: {cidr: 10.68.0.0/27, partition: shelf, node: node2}\n",
    )?;
    site.control.kubectl(&["create", "-f", &part])?;
    delete_claim(site)?;
    let words = "this node's claim of 10.68.0.0/26 (partition shelf) was deleted, and node node2 holds 10.68.0.0/27 now";
    site.wait_told(words)?;
    wait_ours(site, false)?;
    until("the pod's events tell it", SOON, || {
        let path = "jsonpath={range .items[*]}{.regarding.name} {.reason}: {.note}{\"\\n\"}{end}";
        let events = site.control.kubectl(&["get", "events.events.k8s.io", "-n", "shelf", "-o", path])?;
        let told = events.lines().any(|l| l.starts_with("atlas AddressLost: ") && l.contains(words));
        if told { Ok(Some(())) } else { unmet(events) }
    })?;
    // Nor does a daemon that comes later take it for its own.
    site.node.kill_daemon()?;
    site.node.start_daemon()?;
    wait_ours(site, false)?;
    site.wait_told(words)?;
    let next = wired(site, 1, "globe")?;
    if next.v4.octets()[3] < 64 {
        return unmet(format!("{} is of a block that is lost", next.v4));
    }
    site.control.kubectl(&["delete", "-f", &part])?;
    wait_ours(site, true)?;
    site.wait_sound()?;
    held.del(&site.node)?;
    next.del(&site.node)
}

fn back(site: &mut Site) -> Result<()> {
    let pod = wired(site, 0, "map")?;
    let first = claim(site)?;
    let collector = site.control.start_controllers(&["garbage-collector-controller"])?;
    site.control.kubectl(&["delete", "node", "node1"])?;
    site.wait_told("and this node has been deleted from the cluster")?;
    wait_ours(site, false)?;
    drop(collector);
    site.control.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n")?;
    wait_claimed_again(site, &first)?;
    wait_ours(site, true)?;
    site.wait_sound()?;
    pod.del(&site.node)?;
    site.control.kubectl(&["delete", "partition", "shelf"])?;
    site.control.kubectl(&["delete", "namespace", "shelf", "--wait=false"]).map(drop)
}
