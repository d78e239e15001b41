//! What the caller can ask: sessions and routes, as values for people and programs.

use super::config::PeerConfig;
use super::record::{Change, Messages};
use super::unnumbered::Located;
use crate::Family;
use crate::bfd;
use crate::fsm::{PeerError, StateName};
use crate::neighbour::{Fate, ManyPrefixes, Neighbour};
use crate::rib::Route;
use crate::wire::{Attributes, LargeCommunity};
use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    pub name: String,
    /// Unspecified while the router of an interface is not found.
    pub address: IpAddr,
    /// The peer is the router that advertises itself there.
    pub interface: Option<String>,
    pub asn: u32,
    pub state: StateName,
    /// Time in this state.
    pub since: Duration,
    /// Without a session for so long, since the last one ended or the peer was configured; absent while there is one.
    pub away: Option<Duration>,
    /// Negotiated; while there is no session, those configured.
    pub families: Vec<Family>,
    /// Those of which the peer holds a route of ours.
    pub carried: Vec<Family>,
    /// Routes that the peer was sent and holds.
    pub advertised: usize,
    pub received: usize,
    /// How many routes of each family it may announce; absent: any number.
    pub prefix_limit: Option<u32>,
    pub many_prefixes: Vec<ManyPrefixes>,
    /// How often the peer asked for a family again.
    pub refreshes: u64,
    /// The peer may keep routes of an earlier session of ours, which cannot be withdrawn now.
    pub may_be_kept: bool,
    /// The session is established and the peer keeps our routes while we restart.
    pub graceful_restart: bool,
    /// What `last_error` says, where it is why there is no session.
    pub error: Option<PeerError>,
    /// What it announces is learned, and it has not said everything yet.
    pub learning: bool,
    /// RFC 2385 is configured.
    pub password: bool,
    /// What was asked of BFD.
    pub bfd: Option<bfd::Key>,
    /// Why there is no session; or, when there is one, why routes are kept from it.
    pub last_error: Option<String>,
    pub messages_sent: Messages,
    pub messages_received: Messages,
    /// The last ups and downs, the newest first.
    pub history: Vec<Change>,
    /// How often a session came up.
    pub ups: u64,
}

impl PeerStatus {
    /// `located`: of the router of an interface.
    pub(super) fn of(
        config: &PeerConfig,
        neighbour: &Neighbour,
        located: Option<&Located>,
        now: Duration,
    ) -> PeerStatus {
        let peer = neighbour.peer();
        let negotiated = peer.negotiated();
        let withheld: Vec<String> = neighbour.withheld().map(|why| why.to_string()).collect();
        let withheld = Some(withheld.join("; ")).filter(|words| !words.is_empty());
        let (address, nowhere) = match located {
            Some(Located::At { address, .. }) => (IpAddr::V6(*address), None),
            Some(Located::Nowhere(why)) => (config.address(), Some(why.clone())),
            None => (config.address(), None),
        };
        let found = located.and_then(|located| located.socket_address(config.port));
        let no_session = nowhere.filter(|_| negotiated.is_none() && config.shutdown.is_none());
        PeerStatus {
            name: config.name.clone(),
            address,
            interface: config.interface().map(str::to_owned),
            asn: config.asn,
            state: peer.state(),
            since: now.saturating_sub(peer.since()),
            away: None,
            families: negotiated.map_or(&config.families, |negotiated| &negotiated.families).clone(),
            carried: Family::ALL.into_iter().filter(|family| carries(neighbour, *family)).collect(),
            advertised: neighbour.advertised().count(),
            received: neighbour.received().len(),
            prefix_limit: config.prefix_limit.map(|limit| limit.max),
            many_prefixes: neighbour.many_prefixes(),
            refreshes: neighbour.refreshes(),
            may_be_kept: neighbour.may_be_kept(now),
            graceful_restart: negotiated.is_some_and(|negotiated| negotiated.restart.is_some()),
            error: peer.last_error().filter(|_| no_session.is_none()).cloned(),
            learning: neighbour.is_learning(),
            password: config.password.is_some(),
            bfd: config.bfd_session_at(found).map(|(key, _)| key),
            last_error: no_session.or_else(|| peer.last_error().map(ToString::to_string)).or(withheld),
            messages_sent: Messages::default(),
            messages_received: Messages::default(),
            history: Vec::new(),
            ups: 0,
        }
    }
}

fn carries(neighbour: &Neighbour, family: Family) -> bool {
    neighbour.advertised().any(|(prefix, _)| Family::of(prefix) == family)
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
    /// RFC 8092.
    pub large_communities: Vec<LargeCommunity>,
    /// RFC 4360, as they stand on the wire.
    pub extended_communities: Vec<u64>,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    /// Received, kept while the peer restarts.
    pub stale: bool,
    /// Received, and passed the import filter.
    pub accepted: bool,
}

fn view(
    direction: Direction,
    peer: &str,
    prefix: IpNetwork,
    attributes: &Attributes,
    next_hop: IpAddr,
) -> RouteView {
    RouteView {
        prefix,
        direction,
        peer: peer.to_owned(),
        next_hop,
        as_path: attributes.as_path.asns().collect(),
        communities: attributes.communities.clone(),
        large_communities: attributes.large_communities.clone(),
        extended_communities: attributes.extended_communities.clone(),
        med: attributes.med,
        local_pref: attributes.local_pref,
        stale: false,
        accepted: false,
    }
}

/// Some of a direction's routes, by prefix, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    pub total: usize,
    pub shown: Vec<RouteView>,
}

/// What becomes of a prefix at one peer, and what that peer has sent of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixAtPeer {
    pub peer: PeerStatus,
    pub fate: Fate,
    /// Where it is announced: as the peer gets it.
    pub announced: Option<RouteView>,
    pub received: Vec<RouteView>,
    /// Of a host route: received with our own AS number in the path, and never used.
    pub looped: Vec<RouteView>,
    /// It has said all that it has of that IP version in this session.
    pub heard: bool,
}

pub(super) fn routes(direction: Direction, peer: &str, neighbour: &Neighbour, limit: usize) -> Routes {
    match direction {
        Direction::Advertised => {
            Routes { total: neighbour.advertised().count(), shown: advertised(peer, neighbour, limit) }
        }
        Direction::Received => Routes {
            total: neighbour.received().len(),
            shown: received(peer, neighbour, neighbour.received().first(limit)),
        },
    }
}

pub(super) fn prefix_at(peer: PeerStatus, neighbour: &Neighbour, prefix: &IpNetwork) -> PrefixAtPeer {
    let received = received(&peer.name, neighbour, neighbour.received().paths(prefix));
    let fate = neighbour.fate(prefix);
    let announced = match &fate {
        Fate::Announced { export, .. } => {
            let (attributes, next_hop) = (&export.attributes, export.next_hop);
            Some(view(Direction::Advertised, &peer.name, *prefix, attributes, next_hop))
        }
        _ => None,
    };
    let looped = self::received(&peer.name, neighbour, neighbour.received().looped(prefix));
    let heard = neighbour.has_heard(Family::of(prefix));
    PrefixAtPeer { peer, fate, announced, received, looped, heard }
}

fn advertised(peer: &str, neighbour: &Neighbour, limit: usize) -> Vec<RouteView> {
    let one = |(prefix, export): (&IpNetwork, &crate::export::Export)| {
        view(Direction::Advertised, peer, *prefix, &export.attributes, export.next_hop)
    };
    neighbour.advertised().take(limit).map(one).collect()
}

fn received(peer: &str, neighbour: &Neighbour, routes: Vec<Route>) -> Vec<RouteView> {
    let one = |route: Route| RouteView {
        stale: route.stale,
        accepted: !neighbour.learned(&route.prefix).is_empty(),
        ..view(Direction::Received, peer, route.prefix, &route.path.attributes, route.path.next_hop)
    };
    routes.into_iter().map(one).collect()
}
