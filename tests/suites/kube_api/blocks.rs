//! Blocks of addresses as `IPBlock` objects: creating one is the lock.

use crate::site::{Case, SOON, Site};
use bulkhead_api::objects::IPBlockSpec;
use bulkhead_daemon::{
    ipam::{BlockClaims, ClaimObjects, Ipam, IpamError, overlap},
    source::kubernetes::connect,
};
use bulkhead_lab::{Error, Pod, Result, enter::WORK, kubernetes::Identity, unmet, until};
use ipnetwork::IpNetwork;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt::Display,
    future::Future,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub const CASES: &[(&str, Case)] = &[
    ("a stray of another node is of its namespace's partition", stray),
    ("a pod's node claims a block as an object, and gives it back with its last pod", one_pod),
    ("fifty nodes that claim at once by their own tokens get fifty blocks, and none is lost", fifty),
    ("the blocks of a node that is gone go with it", gone),
    ("fifty nodes that differ on what is kept for reservations get nothing that overlaps", overlapping),
];

const CLAIMERS: usize = 50;

fn failed(error: impl Display) -> Error {
    Error::Unmet(error.to_string())
}

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n")
}

fn blocks(site: &Site) -> Result<Vec<Value>> {
    let text = site.control.kubectl(&["get", "ipblocks", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text).map_err(failed)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Calls the API server from where it is.
fn from_control<T: Send, F: Future<Output = Result<T>>>(
    site: &Site,
    work: impl FnOnce(PathBuf) -> F + Send,
) -> Result<T> {
    let kubeconfig = site.control.admin();
    site.control.netns.run(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(work(kubeconfig))
    })
}

async fn claims(kubeconfig: &Path, node: &str) -> Result<ClaimObjects> {
    let client = connect(Some(kubeconfig)).await.map_err(failed)?;
    Ok(ClaimObjects::new(client, Path::new(WORK).join(format!("{node}-blocks.json"))))
}

/// A kubeconfig of each of these nodes' daemons, as its own token has it.
fn daemons(site: &Site, nodes: &[String]) -> Result<Vec<PathBuf>> {
    let of = |node: &String| {
        let token = ["-n", "bulkhead", "create", "token", "bulkheadd", "--bound-object-kind=Node"];
        let name = format!("--bound-object-name={node}");
        let token = site.control.kubectl(&[&token[..], &[&name]].concat())?;
        site.control.write_kubeconfig(node, &Identity::Token(token.trim().into()))
    };
    nodes.iter().map(of).collect()
}

fn one_pod(site: &mut Site) -> Result<()> {
    site.control.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: till}\n")?;
    let mut pod = Pod::create(0, "till", "cash")?;
    match pod.add(&site.node) {
        Err(Error::Command { stderr, .. }) if stderr.contains("till/cash is not known yet") => {}
        other => return unmet(format!("a pod that the API server has not told of: {other:?}")),
    }
    site.control.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: cash, namespace: till}\n\
         spec: {nodeName: node1, containers: [{name: c, image: none}]}\n",
    )?;
    until("the pod is wired", SOON, || pod.add(&site.node).map(|_| Some(())))?;
    let claimed = blocks(site)?;
    let uid = site.control.kubectl(&["get", "node", "node1", "-o", "jsonpath={.metadata.uid}"])?;
    let owned =
        |b: &&Value| b["spec"]["node"] == "node1" && b["metadata"]["ownerReferences"][0]["uid"] == uid.trim();
    if claimed.len() != 2 || claimed.iter().filter(owned).count() != 2 {
        return unmet(format!("not one block of each family, owned by node1: {claimed:?}"));
    }
    pod.del(&site.node)?;
    let left = blocks(site)?;
    if !left.is_empty() {
        return unmet(format!("still claimed: {left:?}"));
    }
    site.control.kubectl(&["-n", "till", "delete", "pod", "cash", "--force", "--grace-period=0"]).map(drop)
}

fn fifty(site: &mut Site) -> Result<()> {
    let names: Vec<_> = (0..CLAIMERS).map(|n| format!("claimer{n}")).collect();
    site.control.apply(&names.iter().map(|n| node(n)).collect::<String>())?;
    let kubeconfigs = daemons(site, &names)?;
    let (of_claimers, listed, as_neighbour) = from_control(site, |_| async move {
        let mut claimers = Vec::new();
        for (name, kubeconfig) in names.iter().zip(&kubeconfigs) {
            claimers.push(Ipam::load(claims(kubeconfig, name).await?, name).await.map_err(failed)?);
        }
        // 64 blocks: nearly all claimers meet another at every block.
        let ranges = ["10.80.0.0/20".parse().map_err(failed)?];
        let tasks: Vec<_> = claimers
            .into_iter()
            .map(move |mut ipam| {
                tokio::spawn(async move {
                    let address = ipam.allocate("till", &ranges, &[]).await.map_err(failed)?;
                    Ok::<_, Error>((address, ipam.blocks().keys().copied().collect::<Vec<_>>()))
                })
            })
            .collect();
        let mut of_claimers = Vec::new();
        for task in tasks {
            of_claimers.push(task.await.map_err(failed)??);
        }
        let first = claims(&kubeconfigs[0], "claimer0").await?;
        let all = first.list().await.map_err(failed)?;
        let theirs = IPBlockSpec {
            cidr: "10.81.0.0/26".parse().map_err(failed)?,
            partition: "till".into(),
            node: "claimer1".into(),
        };
        let as_neighbour = first.claim(&theirs).await.map(|_| ()).map_err(|e| e.to_string());
        Ok((of_claimers, all, as_neighbour))
    })?;
    let refusal = "the daemon of node `claimer0` may not claim or release blocks of node `claimer1`";
    if !as_neighbour.as_ref().is_err_and(|said| said.contains(refusal)) {
        return unmet(format!("a claim for a neighbour: {as_neighbour:?}"));
    }
    let one_each =
        of_claimers.iter().all(|(addresses, blocks)| blocks.len() == 1 && blocks[0].contains(addresses[0]));
    let different: BTreeSet<_> = of_claimers.iter().map(|(_, blocks)| blocks.clone()).collect();
    if !one_each || different.len() != CLAIMERS {
        return unmet(format!("{CLAIMERS} claimers have {different:?}"));
    }
    let nodes: BTreeSet<_> = listed.iter().map(|b: &IPBlockSpec| &b.node).collect();
    if listed.len() != CLAIMERS || nodes.len() != CLAIMERS {
        return unmet(format!("the API server has {listed:?}"));
    }
    Ok(())
}

/// The claimers of the case before.
fn gone(site: &mut Site) -> Result<()> {
    let _collector = site.control.start_controllers(&["garbage-collector-controller"])?;
    let names: Vec<_> = (1..CLAIMERS).map(|n| format!("claimer{n}")).collect();
    let mut delete = vec!["delete", "node"];
    delete.extend(names.iter().map(String::as_str));
    site.control.kubectl(&delete)?;
    until("only the block of the node that is left is claimed", SOON, || {
        let left = blocks(site)?;
        if left.len() == 1 && left[0]["spec"]["node"] == "claimer0" {
            return Ok(Some(()));
        }
        unmet(format!("{} blocks", left.len()))
    })
}

/// Half of them claim addresses where the others, who have not heard of it yet, cut blocks.
fn overlapping(site: &mut Site) -> Result<()> {
    let names: Vec<_> = (0..CLAIMERS).map(|n| format!("sizer{n}")).collect();
    site.control.apply(&names.iter().map(|n| node(n)).collect::<String>())?;
    let (given, listed) = from_control(site, |kubeconfig| async move {
        let mut claimers = Vec::new();
        for (n, name) in names.iter().enumerate() {
            claimers.push((n, Ipam::load(claims(&kubeconfig, name).await?, name).await.map_err(failed)?));
        }
        let range: IpNetwork = "10.82.0.0/21".parse().map_err(failed)?;
        let addresses: Vec<IpAddr> = range.iter().collect();
        let tasks: Vec<_> = claimers
            .into_iter()
            .map(|(n, mut ipam)| {
                // One of each block's.
                let fixed = addresses[(n * 64 + 7) % addresses.len()];
                tokio::spawn(async move {
                    if n % 2 == 0 {
                        // Held: another was faster.
                        return match ipam.take("till", &[fixed]).await {
                            Ok(()) => Ok(Some(fixed)),
                            Err(IpamError::Held { .. }) => Ok(None),
                            Err(e) => Err(failed(e)),
                        };
                    }
                    match ipam.allocate("till", &[range], &[]).await {
                        Ok(address) => Ok(Some(address[0])),
                        Err(IpamError::Exhausted { .. }) => Ok(None),
                        Err(e) => Err(failed(e)),
                    }
                })
            })
            .collect();
        let mut given = Vec::new();
        for task in tasks {
            given.extend(task.await.map_err(failed)??);
        }
        let mut listed = claims(&kubeconfig, "sizer0").await?.list().await.map_err(failed)?;
        listed.retain(|block| overlap(block.cidr, range));
        Ok((given, listed))
    })?;
    let overlaps = |a: &IPBlockSpec| listed.iter().filter(|b| overlap(a.cidr, b.cidr)).count() > 1;
    if listed.iter().any(overlaps) {
        return unmet(format!("{listed:?}"));
    }
    // What somebody has an address in is claimed, by whoever that is; a claim that gave way left nothing.
    let mut blocks: BTreeSet<_> = listed.iter().map(|b| b.cidr).collect();
    for address in &given {
        let Some(block) = blocks.iter().find(|b| b.contains(*address)).copied() else {
            return unmet(format!("{address} is in no block, or in one of two: {given:?} of {listed:?}"));
        };
        blocks.remove(&block);
    }
    if given.len() < CLAIMERS / 4 || !blocks.is_empty() {
        return unmet(format!("{} have an address, and nobody {blocks:?}", given.len()));
    }
    site.control.kubectl(&["delete", "ipblocks", "--all"]).map(drop)
}

/// A pod of node2 has an address of pay's range when its namespace is web's. A claim says nothing of addresses that no pod has.
fn stray(site: &mut Site) -> Result<()> {
    let [web, pay] = [("web", 21, "10.74.0.0/16", "[former]"), ("pay", 22, "10.75.0.0/16", "[]")].map(
        |(name, id, cidr, namespaces)| {
            format!(
                "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: {name}}}\n\
             spec: {{policyID: {id}, podCIDRs: [{cidr}], namespaces: {namespaces}}}\n---\n"
            )
        },
    );
    let block = "apiVersion: bulkhead.dev/v1alpha1\nkind: IPBlock\nmetadata: {name: 10-75-3-0-26}\n\
         spec: {cidr: 10.75.3.0/26, partition: pay, node: node2}\n";
    site.control.apply(&format!("{web}{pay}"))?;
    site.wait_allowed("10.75.0.9", "10.75.3.5", 80, true)?;
    site.wait_allowed("10.74.0.9", "10.75.3.5", 80, false)?;
    site.control.apply(block)?;
    let pod = "apiVersion: v1\nkind: Namespace\nmetadata: {name: former}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: former}\n\
        spec: {nodeName: node2, containers: [{name: c, image: none}]}\n";
    site.control.apply(pod)?;
    site.has_address("former", "old", "10.75.3.5")?;
    site.wait_allowed("10.74.0.9", "10.75.3.5", 80, true)?;
    site.wait_allowed("10.75.0.9", "10.75.3.5", 80, false)?;
    // Beside it all is as ranges say; and without the claim so is this.
    for beside in ["10.75.3.6", "10.75.4.5"] {
        site.wait_allowed("10.75.0.9", beside, 80, true)?;
    }
    site.control.kubectl(&["delete", "ipblock", "10-75-3-0-26"])?;
    site.wait_allowed("10.75.0.9", "10.75.3.5", 80, true)?;
    site.control.kubectl(&["delete", "namespace", "former", "--wait=false"])?;
    site.control.kubectl(&["delete", "partition", "web", "pay"]).map(drop)
}
