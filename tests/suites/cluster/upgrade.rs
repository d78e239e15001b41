//! From one build to the next under traffic: applied as a user does it, rolled out by the DaemonSet's controller.
//!
//! From an older build where `BULKHEAD_PREVIOUS` names a folder with its `bulkhead.tar` and `bulkhead.yaml`; else from this very build
//! under another name, which shows all but what differs between two builds.

use crate::{
    reach::PODS,
    site::{Pod, Site},
};
use aya::maps::{Array, Map, MapData};
use bulkhead_ebpf_abi::ABI_VERSION;
use bulkhead_lab::{
    Netns, Result,
    cluster::{Release, SOON},
    lab::SESSIONS,
    traffic::{Connection, Sequence},
    unmet, until,
};
use std::{net::SocketAddr, time::Duration};

const EVERY: Duration = Duration::from_millis(1);
const NEWCOMER: Pod = Pod { namespace: "shop", name: "new1", node: "node1", host: false, role: "new" };

/// One pair of pods and a family.
struct Flow {
    name: String,
    numbered: Sequence,
    connection: Connection,
}

impl Flow {
    fn finish(self) -> Result<()> {
        let (numbered, connection) = (self.numbered.finish()?, self.connection.finish()?);
        if numbered.lost == 0 && connection.received == connection.sent && connection.lost == 0 {
            return Ok(());
        }
        unmet(format!("{}: {numbered:?}, {connection:?}", self.name))
    }
}

/// 1,000 datagrams a second, and a connection, in each family: between nodes both ways, and on one node.
fn traffic(site: &Site) -> Result<Vec<Flow>> {
    let [app1, app2, db1, db2] = &PODS;
    let mut flows = Vec::new();
    for (from, to) in [(app1, db2), (db2, app1), (app1, db1), (app2, db2)] {
        let [from_netns, to_netns] = [netns(site, from)?, netns(site, to)?];
        for (family, address) in ["IPv4", "IPv6"].into_iter().zip(site.addresses(to)?) {
            let port = u16::try_from(7000 + flows.len()).unwrap();
            let at = SocketAddr::new(address.parse().unwrap(), port);
            flows.push(Flow {
                name: format!("{} to {}, {family}", from.name, to.name),
                numbered: Sequence::start(&from_netns, &to_netns, at, EVERY)?,
                connection: Connection::start(&from_netns, &to_netns, at, EVERY)?,
            });
        }
    }
    until("all flows flow", SOON, || {
        Ok(flows.iter().all(|f| f.numbered.heard() > 100 && f.connection.heard() > 100).then_some(()))
    })?;
    Ok(flows)
}

fn netns(site: &Site, pod: &Pod) -> Result<Netns> {
    let machine = site.cluster.machines.iter().find(|m| m.name == pod.node);
    machine.map_or_else(|| unmet(pod.node), |m| m.pod_netns(&site.address(pod)?))
}

/// Images that our pods run, each once.
fn images(site: &Site) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.spec.containers[0].image}{\"\\n\"}{end}";
    let select = ["-l", "app in (bulkheadd, bulkhead-controller)"];
    let told =
        site.cluster.kubectl(&[&["get", "pods", "-n", "bulkhead", "-o", path], &select[..]].concat())?;
    let mut images: Vec<_> = told.lines().collect();
    images.sort_unstable();
    images.dedup();
    Ok(images.join(" "))
}

/// Until all is as if it had never been otherwise.
fn roll_out(site: &Site) -> Result<()> {
    site.cluster.apply()?;
    site.create(&[NEWCOMER])?;
    for workload in ["daemonset/bulkheadd", "deployment/bulkhead-controller"] {
        site.cluster.kubectl(&["rollout", "status", "-n", "bulkhead", workload, "--timeout=300s"])?;
    }
    // What the router has kept of daemons that were away is renewed, or gone.
    let sessions = SESSIONS.concat();
    site.cluster.bird.wait_established(&sessions, SOON)?;
    until("no session is in a graceful restart", SOON, || {
        Ok(site.cluster.bird.restarts_over(&sessions)?.then_some(()))
    })
}

pub fn upgraded(site: &mut Site) -> Result<()> {
    let before = images(site)?;
    let flows = traffic(site)?;
    let rolled_out = roll_out(site);
    // Traffic goes on also where the new daemons cannot take over what is there.
    for flow in flows {
        flow.finish()?;
    }
    rolled_out?;
    let after = until("nobody runs what was there before", SOON, || {
        let now = images(site)?;
        Ok((now.split(' ').count() == 1 && now != before).then_some(now))
    })?;
    eprintln!("upgraded from {before} ({}) to {after}", Release::previous());
    let delete = ["delete", "pod", "-n", NEWCOMER.namespace, NEWCOMER.name, "--timeout=60s"];
    site.cluster.kubectl(&delete).map(drop)
}

/// The maps say that they are of another layout than this build's, as those of an older build would.
pub fn refused(site: &mut Site) -> Result<()> {
    let maps = site.cluster.machines[0].file("/sys/fs/bpf/bulkhead/maps")?;
    let say = |version: u32| -> std::result::Result<(), Box<dyn std::error::Error>> {
        let map = Map::from_map_data(MapData::from_pin(maps.join("ABI"))?)?;
        Ok(Array::<_, u32>::try_from(map)?.set(0, version, 0)?)
    };
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let pods = |columns: &str| {
        let of_node1 = ["-l", "app=bulkheadd", "--field-selector=spec.nodeName=node1", "-o", columns];
        kubectl(&[&["get", "pods", "-n", "bulkhead", "--no-headers"][..], &of_node1].concat())
    };
    // With the time since when it stands as it does.
    let sessions = || {
        let show = |name: &&str| site.cluster.bird.birdc(&format!("show protocols {name}"));
        SESSIONS[0].iter().map(show).collect::<Result<Vec<_>>>()
    };
    let (before, established) = (pods("name")?, sessions()?);
    say(ABI_VERSION + 1).unwrap();
    let stands = || stands(site, &pods, before.trim(), || Ok(sessions()? == established));
    let stood =
        kubectl(&["rollout", "restart", "-n", "bulkhead", "daemonset/bulkheadd"]).and_then(|_| stands());
    // Also where it did not: what comes next finds the cluster as it was.
    say(ABI_VERSION).unwrap();
    let finished = ["rollout", "status", "-n", "bulkhead", "daemonset/bulkheadd", "--timeout=300s"];
    let finished = kubectl(&finished);
    stood?;
    finished?;
    let after = pods("name")?;
    if after.lines().count() == 1 && after != before { Ok(()) } else { unmet(after) }
}

/// A rollout, as if nothing had been asked for. `pods`: those of a node, in these columns.
fn stands(
    site: &Site,
    pods: &dyn Fn(&str) -> Result<String>,
    before: &str,
    sessions_stay: impl Fn() -> Result<bool>,
) -> Result<()> {
    let told = until("the new pod says why it does not begin", SOON, || {
        let told = site.cluster.kubectl(&[
            "logs",
            "-n",
            "bulkhead",
            "-l",
            "app=bulkheadd",
            "-c",
            "preflight",
            "--prefix",
        ])?;
        let line = told.lines().find(|line| line.contains("cannot take over the pins")).map(str::to_owned);
        line.map_or_else(|| unmet(told), |line| Ok(Some(line)))
    })?;
    eprintln!("{told}");
    until("the new pod has failed twice", SOON, || {
        let columns = "custom-columns=:metadata.name,:status.initContainerStatuses[0].restartCount";
        let all = pods(columns)?;
        let failed = all.lines().any(|line| line.split_whitespace().nth(1).is_some_and(|n| n != "0"));
        if failed { Ok(Some(())) } else { unmet(all) }
    })?;
    if !pods("name")?.contains(before) {
        return unmet("the daemon that ran was ended");
    }
    if sessions_stay()? { Ok(()) } else { unmet("sessions have changed") }
}
