//! What the caller can ask: sessions and routes, as values for people and programs.

use super::config::PeerConfig;
use crate::Family;
use crate::fsm::StateName;
use crate::neighbour::Neighbour;
use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    pub name: String,
    pub address: IpAddr,
    pub asn: u32,
    pub state: StateName,
    /// Time in this state.
    pub since: Duration,
    /// Negotiated; while there is no session, those configured.
    pub families: Vec<Family>,
    /// Routes that the peer was sent and holds.
    pub advertised: usize,
    pub received: usize,
    /// The session is established and the peer keeps our routes while we restart.
    pub graceful_restart: bool,
    /// Why there is no session; or, when there is one, why routes are kept from it.
    pub last_error: Option<String>,
}

impl PeerStatus {
    pub(super) fn of(config: &PeerConfig, neighbour: &Neighbour, now: Duration) -> PeerStatus {
        let peer = neighbour.peer();
        let negotiated = peer.negotiated();
        let withheld: Vec<String> = neighbour.withheld().map(|why| why.to_string()).collect();
        let withheld = Some(withheld.join("; ")).filter(|words| !words.is_empty());
        PeerStatus {
            name: config.name.clone(),
            address: config.address,
            asn: config.asn,
            state: peer.state(),
            since: now.saturating_sub(peer.since()),
            families: negotiated.map_or(&config.families, |negotiated| &negotiated.families).clone(),
            advertised: neighbour.advertised().count(),
            received: neighbour.received().len(),
            graceful_restart: negotiated.is_some_and(|negotiated| negotiated.restart.is_some()),
            last_error: peer.last_error().map(ToString::to_string).or(withheld),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Advertised,
    Received,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Advertised => "advertised",
            Direction::Received => "received",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteView {
    pub prefix: IpNetwork,
    pub direction: Direction,
    /// Name of the peer.
    pub peer: String,
    pub next_hop: IpAddr,
    /// Nearest first; members of sets are not told apart.
    pub as_path: Vec<u32>,
    /// RFC 1997: the AS number in the upper half.
    pub communities: Vec<u32>,
    /// Received, kept while the peer restarts.
    pub stale: bool,
}

pub(super) fn advertised(peer: &str, neighbour: &Neighbour) -> Vec<RouteView> {
    let view = |(prefix, export): (&IpNetwork, &crate::export::Export)| RouteView {
        prefix: *prefix,
        direction: Direction::Advertised,
        peer: peer.to_owned(),
        next_hop: export.next_hop,
        as_path: export.attributes.as_path.asns().collect(),
        communities: export.attributes.communities.clone(),
        stale: false,
    };
    neighbour.advertised().map(view).collect()
}

pub(super) fn received(peer: &str, neighbour: &Neighbour) -> Vec<RouteView> {
    let view = |(prefix, route): (&IpNetwork, &crate::rib::Route)| RouteView {
        prefix: *prefix,
        direction: Direction::Received,
        peer: peer.to_owned(),
        next_hop: route.next_hop,
        as_path: route.attributes.as_path.asns().collect(),
        communities: route.attributes.communities.clone(),
        stale: route.stale,
    };
    neighbour.received().iter().map(view).collect()
}
