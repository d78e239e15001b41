//! `kill -9` of a daemon under traffic: nothing lost, policy still enforced, the route never leaves the router; a new daemon
//! takes over pods, maps and BGP sessions.

use super::{
    Held,
    expected::SERVICES,
    flows::{Flows, netns},
    matrix::{self, grouped},
    step2_bgp::{blocks, has_all},
};
use crate::{Lab, Result, lab::SESSIONS, probe::Service, routes::RouteWatch, unmet, until};
use aya::maps::MapInfo;
use bulkhead_api::messages::EndpointInfo;
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

const VICTIM: usize = 0;
const NOTICE: Duration = Duration::from_secs(5);
const SESSION: Duration = Duration::from_secs(30);

pub fn run(lab: &mut Lab) -> Result<Held> {
    let before = state(lab)?;
    let flows = traffic(lab)?;
    flows.all_move()?;
    let watch = RouteWatch::start(&lab.router)?;

    let killed = Instant::now();
    lab.nodes[VICTIM].kill_daemon()?;
    until("the router notices that the session is gone", NOTICE, || {
        Ok((!lab.bird.established(SESSIONS[VICTIM][0])? && !lab.bird.established(SESSIONS[VICTIM][1])?)
            .then_some(()))
    })?;
    has_all(lab, VICTIM, &before.blocks)?;
    let cells = matrix::holds(lab, &free_services())?.cells();
    flows.all_move()?;

    let down = killed.elapsed();
    let start = Instant::now();
    lab.nodes[VICTIM].start_daemon()?;
    let ready = start.elapsed();
    lab.bird.wait_established(&SESSIONS[VICTIM], SESSION)?;
    let session = start.elapsed();
    until("the restart is over", SESSION, || Ok(lab.bird.restarts_over(&SESSIONS[VICTIM])?.then_some(())))?;
    has_all(lab, VICTIM, &before.blocks)?;
    taken_over(lab, &before)?;
    flows.all_move()?;

    let lost = watch.stop()?;
    if let Some(gone) = lost.iter().find(|prefix| before.blocks.iter().any(|b| b == *prefix)) {
        return unmet(format!("{gone} left the router"));
    }
    let delivered = flows.finish()?;
    Ok(Held::new(format!(
        "down {:.1} s, {} cells hold; back in {:.1} s, sessions {:.1} s; 0 of {} packets, 0 of {} bytes lost",
        down.as_secs_f64(),
        grouped(cells as u64),
        ready.as_secs_f64(),
        session.as_secs_f64(),
        grouped(delivered.packets),
        grouped(delivered.bytes),
    )))
}

/// From the vm and between pods, on the node and across; all by rules that must go on to be enforced.
fn traffic(lab: &Lab) -> Result<Flows> {
    let (db, front, far) = (lab.pod("payments/db-0")?, lab.pod("web/front-0")?, lab.pod("web/front-1")?);
    let cart = lab.pod("shop/cart-0")?;
    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    let mut flows = Flows::default();
    let vm = netns(lab, "vm")?;
    flows.tcp("vm → db-0 TCP", vm, &db.netns, at(db.v4.into(), 20880))?;
    flows.udp("vm → cart-0 UDP", vm, &cart.netns, at(cart.v4.into(), 7001))?;
    flows.udp("front-0 → db-0 UDP", &front.netns, &db.netns, at(db.v4.into(), 9125))?;
    flows.udp("front-1 → db-0 UDP over IPv6", &far.netns, &db.netns, at(db.v6.into(), 9125))?;
    Ok(flows)
}

/// What the live flows do not occupy.
fn free_services() -> Vec<Service> {
    SERVICES.into_iter().filter(|s| !matches!(s, Service::Tcp(20880) | Service::Udp(9125))).collect()
}

struct State {
    endpoints: Vec<EndpointInfo>,
    blocks: Vec<ipnetwork::IpNetwork>,
    /// Kernel's numbers of the pinned maps, by name.
    maps: BTreeMap<String, u32>,
}

fn state(lab: &Lab) -> Result<State> {
    let node = &lab.nodes[VICTIM];
    let mut endpoints: Vec<EndpointInfo> = node.get("/v1/endpoints")?;
    endpoints.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(State { endpoints, blocks: blocks(node)?, maps: pinned_maps(&node.pins().join("maps"))? })
}

fn pinned_maps(dir: &Path) -> Result<BTreeMap<String, u32>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let info = MapInfo::from_pin(entry.path())
            .map_err(|e| crate::Error::Unmet(format!("{}: {e}", entry.path().display())))?;
        maps.insert(entry.file_name().to_string_lossy().into_owned(), info.id());
    }
    Ok(maps)
}

fn taken_over(lab: &Lab, before: &State) -> Result<()> {
    let now = state(lab)?;
    if now.endpoints != before.endpoints {
        return unmet("the new daemon lists other endpoints than the old one");
    }
    if now.maps != before.maps || now.maps.is_empty() {
        return unmet(format!("the maps were {:?} and are {:?}", before.maps, now.maps));
    }
    for pod in lab.pods.iter().filter(|p| p.node == VICTIM) {
        pod.check(&lab.nodes[VICTIM])?;
    }
    Ok(())
}
