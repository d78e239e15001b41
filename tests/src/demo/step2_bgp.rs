//! The BGP sessions are established, v4 and v6; each node's blocks stand in BIRD's table and in the router's kernel.

use super::Held;
use crate::{
    Error, Lab, Node, Result,
    lab::SESSIONS,
    routes::{Route, kernel_routes},
    unmet, until,
};
use bulkhead_api::messages::{BgpPeerInfo, PartitionInfo};
use ipnetwork::IpNetwork;
use std::{net::IpAddr, time::Duration};

const SESSION: Duration = Duration::from_secs(20);
const ROUTE: Duration = Duration::from_secs(10);

pub fn run(lab: &mut Lab) -> Result<Held> {
    for (node, sessions) in lab.nodes.iter().zip(SESSIONS) {
        lab.bird.wait_established(&sessions, SESSION)?;
        peers_established(node)?;
    }
    let mut count = 0;
    for (n, node) in lab.nodes.iter().enumerate() {
        let blocks = blocks(node)?;
        for pod in lab.pods.iter().filter(|p| p.node == n) {
            for address in [IpAddr::V4(pod.v4), IpAddr::V6(pod.v6)] {
                if !blocks.iter().any(|b| b.contains(address)) {
                    return unmet(format!("{address} lies in no block of {}", node.name));
                }
            }
        }
        until("the router has every block", ROUTE, || has_all(lab, n, &blocks).map(Some))?;
        count += blocks.len();
    }
    Ok(Held::new(format!(
        "{} sessions, half of them v6; {count} blocks in BIRD and in the kernel",
        SESSIONS.len() * 2
    )))
}

fn peers_established(node: &Node) -> Result<()> {
    let what = format!("{} says its sessions are established", node.name);
    until(&what, SESSION, || {
        let peers: Vec<BgpPeerInfo> = node.get("/v1/bgp/peers")?;
        match peers.iter().find(|p| p.state != "Established") {
            None if peers.len() == 2 => Ok(Some(())),
            None => Err(Error::Unmet(format!("{} peers", peers.len()))),
            Some(peer) => Err(Error::Unmet(format!("{} is {} {:?}", peer.name, peer.state, peer.last_error))),
        }
    })
}

/// What a node has claimed.
pub(super) fn blocks(node: &Node) -> Result<Vec<IpNetwork>> {
    let partitions: Vec<PartitionInfo> = node.get("/v1/partitions")?;
    Ok(partitions.into_iter().flat_map(|p| p.blocks).collect())
}

/// Fails by naming the first block that the router does not have by this node's address.
pub(super) fn has_all(lab: &Lab, node: usize, blocks: &[IpNetwork]) -> Result<()> {
    let mut bird = Vec::new();
    for session in SESSIONS[node] {
        bird.extend(lab.bird.routes(session)?);
    }
    let kernel = kernel_routes(&lab.router, "bird")?;
    for block in blocks {
        for (table, routes) in [("BIRD's table", &bird), ("the router's kernel", &kernel)] {
            if !routes.iter().any(|r| r.prefix == *block && leads_to(r, lab, node)) {
                return unmet(format!("{block} of {} is not in {table}", lab.nodes[node].name));
            }
        }
    }
    Ok(())
}

fn leads_to(route: &Route, lab: &Lab, node: usize) -> bool {
    match route.via {
        Some(IpAddr::V4(via)) => via == lab.nodes[node].v4,
        Some(IpAddr::V6(via)) => via == lab.nodes[node].v6 || via.is_unicast_link_local(),
        None => false,
    }
}
