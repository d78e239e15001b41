//! What a user does to have Bulkhead, and to be rid of it.

use crate::{
    calls::Party,
    reach::PODS,
    site::{PORT, Site},
};
use bulkhead_lab::{
    Result,
    cluster::{SOON, deploy},
    lab::Baseline,
    leftovers::{is_loaded, pinned},
    unmet, until,
};
use std::net::SocketAddr;

/// What Bulkhead has on a node besides interfaces and routes.
const FILES: [&str; 4] =
    ["/etc/cni/net.d", "/opt/cni/bin/bulkhead-cni", "/sys/fs/bpf/bulkhead", "/var/lib/bulkhead"];

pub fn installed(site: &mut Site) -> Result<()> {
    let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    let ready = site.cluster.kubectl(&["get", "nodes", "-o", path])?;
    if ready != "False False" {
        return unmet(format!("without a network plugin the nodes are ready: {ready}"));
    }
    site.cluster.install_previous()?;
    let ready = ["wait", "--for=condition=Ready", "-n", "bulkhead", "pod", "--all", "--timeout=60s"];
    let pods = site.cluster.kubectl(&ready)?;
    if pods.lines().count() != 5 {
        return unmet(format!("two daemons, two of BFD and a controller are ready: {pods}"));
    }
    for machine in &site.cluster.machines {
        machine.run("ls", &FILES[1..])?;
    }
    Ok(())
}

/// With pods that go on running: they lose their network, and nothing of it stays on the node.
pub fn uninstalled(site: &mut Site) -> Result<()> {
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let (bulkhead, uninstall) = (deploy().join("bulkhead.yaml"), deploy().join("uninstall.yaml"));
    let [bulkhead, uninstall] = [&bulkhead, &uninstall].map(|p| p.display().to_string());
    let [app, _, db, _] = &PODS;
    site.wait_reached(app, db, true)?;
    let (app, db) = (Party::of_pod(site, app)?, Party::of_pod(site, db)?);
    let mut loaded = Vec::new();
    for machine in &site.cluster.machines {
        loaded.extend(pinned(&machine.file("/sys/fs/bpf/bulkhead")?));
    }
    if loaded.len() < 20 {
        return unmet(format!("maps are pinned while Bulkhead is there: {loaded:?}"));
    }
    let sets = ["ds/bulkheadd", "ds/bulkhead-bfd"];
    kubectl(&[&["delete", "-n", "bulkhead", "--cascade=foreground", "--timeout=60s"][..], &sets].concat())?;
    kubectl(&["apply", "-f", &uninstall])?;
    kubectl(&["rollout", "status", "-n", "bulkhead", "ds/bulkhead-uninstall", "--timeout=90s"])?;
    kubectl(&["delete", "-f", &uninstall, "-f", &bulkhead, "--ignore-not-found", "--timeout=90s"])?;
    let kinds = kubectl(&["api-resources", "--api-group=bulkhead.dev", "-o", "name", "--cached=false"])?;
    if !kinds.is_empty() {
        return unmet(format!("still defined: {kinds}"));
    }
    for (machine, before) in site.cluster.machines.iter().zip(&site.before) {
        until(&format!("{} is what it was", machine.name), SOON, || {
            before.compare(&Baseline::of_machine(&machine.netns)?).map(Some)
        })?;
        // It fails where one of them is gone, as all but the folders should be.
        let find = format!("find {} 2>/dev/null || true", FILES.join(" "));
        let left = machine.run("sh", &["-c", &find])?;
        // The state's folder is a mount point to whoever empties it.
        let left: Vec<_> = left.lines().filter(|p| ![FILES[0], FILES[3]].contains(p)).collect();
        if !left.is_empty() {
            return unmet(format!("left on {}: {left:?}", machine.name));
        }
        let tables = machine.run("nft", &["list", "tables"])?;
        if tables.contains("bulkhead") {
            return unmet(format!("tables of {}: {tables}", machine.name));
        }
    }
    // Whatever is attached anywhere holds its maps.
    until("no map of Bulkhead's is loaded any more", SOON, || {
        let left: Vec<_> = loaded.iter().filter(|object| is_loaded(object)).collect();
        if left.is_empty() { Ok(Some(())) } else { unmet(format!("{left:?}")) }
    })?;
    if app.reaches(SocketAddr::new(db.addresses[0], PORT))? {
        return unmet("pods have a network without a network plugin");
    }
    Ok(())
}
