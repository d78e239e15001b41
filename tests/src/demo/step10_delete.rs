//! All pods deleted: all addresses free, no interface, no map entry and no route left; prefixes withdrawn from the router.

use super::Held;
use crate::{
    Error, Lab, Node, Result,
    lab::{Baseline, SESSIONS},
    routes::kernel_routes,
    unmet, until,
};
use aya::maps::{HashMap, Map, MapData, MapError};
use bulkhead_api::messages::{EndpointInfo, PartitionInfo};
use bulkhead_ebpf_abi::{Addr, Endpoint, Flow, FlowKey, Identity};
use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

const WITHDRAWN: Duration = Duration::from_secs(5);

pub fn run(lab: &mut Lab) -> Result<Held> {
    let start = Instant::now();
    let mut entries = 0;
    for pod in &lab.pods {
        pod.del(&lab.nodes[pod.node])?;
        // Again: DEL of what is gone succeeds.
        pod.del(&lab.nodes[pod.node])?;
    }
    let deleted = start.elapsed();
    let addresses: HashSet<IpAddr> =
        lab.pods.iter().flat_map(|p| [IpAddr::V4(p.v4), IpAddr::V6(p.v6)]).collect();
    for (node, baseline) in lab.nodes.iter().zip(&lab.baselines) {
        addresses_free(node)?;
        until(&format!("{} is as it was before the pods", node.name), WITHDRAWN, || {
            baseline.compare(&Baseline::of(node)?).map(Some)
        })?;
        entries += maps_empty(node, &addresses)?;
    }
    until("every prefix is withdrawn from the router", WITHDRAWN, || withdrawn(lab).map(Some))?;
    let withdrawn = start.elapsed();
    for node in &mut lab.nodes {
        node.stop_daemon()?;
    }
    Ok(Held::new(format!(
        "{} DELs in {:.0} ms; {} addresses free, {entries} map entries, 0 routes; withdrawn after {:.0} ms",
        lab.pods.len(),
        deleted.as_secs_f64() * 1000.0,
        addresses.len(),
        withdrawn.as_secs_f64() * 1000.0,
    )))
}

fn addresses_free(node: &Node) -> Result<()> {
    let endpoints: Vec<EndpointInfo> = node.get("/v1/endpoints")?;
    if let Some(endpoint) = endpoints.first() {
        return unmet(format!("{} still holds {:?}", node.name, endpoint.addresses));
    }
    let partitions: Vec<PartitionInfo> = node.get("/v1/partitions")?;
    match partitions.iter().find(|p| p.endpoints > 0 || !p.blocks.is_empty()) {
        None => Ok(()),
        Some(p) => unmet(format!("{} still claims {:?} for {}", node.name, p.blocks, p.name)),
    }
}

/// Entries of pods in the maps that know pods; it must be none.
fn maps_empty(node: &Node, pods: &HashSet<IpAddr>) -> Result<usize> {
    let is_pod = |bytes: &[u8]| bytes.first_chunk::<16>().is_some_and(|a| pods.contains(&Addr(*a).to_ip()));
    let endpoints = keys::<4, { size_of::<Endpoint>() }>(node, "ENDPOINT", Map::HashMap)?.len();
    let identities = keys::<16, { size_of::<Identity>() }>(node, "IDENTITY_EXACT", Map::HashMap)?;
    let identities = identities.iter().filter(|k| is_pod(&k[..])).count();
    let flows = keys::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>(node, "CONNTRACK", Map::HashMap)?;
    let flows = flows.iter().filter(|k| is_pod(&k[..16]) || is_pod(&k[16..32])).count();
    match (endpoints, identities, flows) {
        (0, 0, 0) => Ok(0),
        _ => unmet(format!(
            "{}: left in the maps: {endpoints} endpoints, {identities} addresses, {flows} connections",
            node.name
        )),
    }
}

/// All keys of a pinned hash map whose values have this size.
fn keys<const KEY: usize, const VALUE: usize>(
    node: &Node,
    map: &str,
    open: fn(MapData) -> Map,
) -> Result<Vec<[u8; KEY]>> {
    let path = node.pins().join("maps").join(map);
    let error = |e: MapError| Error::Unmet(format!("{}: {e}", path.display()));
    let map: HashMap<_, [u8; KEY], [u8; VALUE]> =
        open(MapData::from_pin(&path).map_err(error)?).try_into().map_err(error)?;
    map.keys().collect::<std::result::Result<_, _>>().map_err(error)
}

fn withdrawn(lab: &Lab) -> Result<()> {
    for session in SESSIONS.as_flattened() {
        if let Some(route) = lab.bird.routes(session)?.first() {
            return unmet(format!("BIRD still has {} by {session}", route.prefix));
        }
    }
    match kernel_routes(&lab.router, "bird")?.first() {
        Some(route) => unmet(format!("the router's kernel still has {}", route.prefix)),
        None => Ok(()),
    }
}
