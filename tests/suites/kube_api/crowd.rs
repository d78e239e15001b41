//! A cluster of 30,000 pods, and an API server that goes away from it and has forgotten, when it is back, what happened.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Context, Result, unmet, until};
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[(&str, Case)] =
    &[("30,000 pods are listed, and listed anew, in bounded memory, and nothing is let in meanwhile", crowd)];

const PODS: u32 = 30_000;
/// Of the daemon, in MiB: measured are 79.
const KNOWN: u64 = 120;
/// While it lists all of them beside those that it knows, and until that is given back: measured are 104.
const LISTED: u64 = 160;

/// The first three are the database, who may call it, and who may not.
const DATABASE: &str = "10.64.16.0";
const FRONT: &str = "10.64.16.1";
const STRANGER: &str = "10.64.16.2";
/// One of all others.
const WORKER: &str = "10.64.16.3";
/// Who came last.
const LAST: &str = "10.64.133.47";

/// As a Deployment's pods are, with what nobody here asks for.
fn pod(number: u32) -> (String, Value) {
    let name = format!("worker-5d8f7c9b64-{number:05}");
    let role = match number {
        0 => "database",
        1 => "front",
        _ => "worker",
    };
    let [_, _, high, low] = (number + (16 << 8)).to_be_bytes();
    let address = format!("10.64.{high}.{low}");
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "crowd", "uid": format!("00000000-0000-0000-0000-{number:012}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"role": role, "pod-template-hash": "5d8f7c9b64", "app.kubernetes.io/part-of": "crowd"},
            "annotations": {"example.org/last-applied": "x".repeat(512)},
        },
        "spec": {
            "nodeName": "node2", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "registry.example/worker:1", "env": [{"name": "MODE", "value": "y".repeat(128)}]}],
        },
        "status": {"phase": "Running", "hostIP": "172.30.2.2", "podIP": address, "podIPs": [{"ip": address}]},
    });
    (format!("pods/crowd/{name}"), object)
}

/// Of the daemon's memory, in MiB: what it has now, and the most that it has had since it was asked for last.
fn memory(site: &Site) -> Result<(u64, u64)> {
    let pid = site.node.daemon_pid().unwrap();
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).during(|| path)?;
    let of = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let seen = (of("VmRSS:"), of("VmHWM:"));
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").during(|| path)?;
    Ok(seen)
}

fn admits(site: &Site, from: &str) -> Result<bool> {
    Ok(site.explain(from, DATABASE, 5432)?.allowed)
}

fn crowd(site: &mut Site) -> Result<()> {
    let before = memory(site)?;
    site.control.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: crowd}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: database, namespace: crowd}\n\
         spec:\n  podSelector: {matchLabels: {role: database}}\n  ingress: [{from: [{podSelector: {matchLabels: {role: front}}}]}]\n",
    )?;
    site.control.put((0..PODS).map(pod))?;
    // The database's policy holds once the database is known, and knows who comes last.
    site.wait_allowed(LAST, DATABASE, 5432, false)?;
    site.wait_allowed(FRONT, DATABASE, 5432, true)?;
    site.control.put([{
        let (key, mut last) = pod(PODS - 1);
        last["metadata"]["labels"]["role"] = "front".into();
        (key, last)
    }])?;
    site.wait_allowed(LAST, DATABASE, 5432, true)?;
    let (known, arriving) = memory(site)?;

    site.control.kill_apiserver()?;
    site.wait_told("cannot watch Pod objects")?;
    // Nobody tells of it: the database is open to a stranger now, and closed to who came last.
    let relabelled = [(2, "front"), (PODS - 1, "worker")].map(|(number, role)| {
        let (key, mut pod) = pod(number);
        pod["metadata"]["labels"]["role"] = role.into();
        (key, pod)
    });
    site.control.put(relabelled)?;
    site.control.compact()?;
    if admits(site, STRANGER)? || !admits(site, LAST)? || !admits(site, FRONT)? {
        return unmet("without the API server another policy holds");
    }
    site.control.start_apiserver()?;
    let mut asked = 0;
    let held = until("all pods are listed anew", SOON, || {
        asked += 1;
        if !admits(site, FRONT)? || admits(site, WORKER)? {
            return Ok(Some(false));
        }
        Ok((admits(site, STRANGER)? && !admits(site, LAST)?).then_some(true))
    })?;
    if !held {
        return unmet("while pods were listed anew another policy held");
    }
    site.wait_sound()?;
    let (again, listing) = memory(site)?;
    eprintln!(
        "{PODS} pods: {} MiB before, {arriving} MiB while they came, {known} MiB then; {listing} MiB while they were listed anew, \
         {again} MiB then; asked {asked} times meanwhile",
        before.0
    );
    if known > KNOWN || listing.max(again) > LISTED {
        return unmet("the daemon takes more memory than it may");
    }
    site.control.remove("pods/crowd/")?;
    site.control.kubectl(&["delete", "networkpolicy", "-n", "crowd", "database"])?;
    site.wait_allowed(STRANGER, DATABASE, 5432, true)?;
    site.wait_allowed(LAST, DATABASE, 5432, true)
}
