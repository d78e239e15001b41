//! What people ask about BGP. The speaker answers; the node's lock is not held meanwhile.

use super::{
    meaning::{Md5, meaning},
    why::{self, Origin},
};
use crate::bfd::Sessions;
use bulkhead_api::messages::{
    BgpDirection, BgpFate, BgpMessageCounts, BgpPeerInfo, BgpRouteInfo, BgpRoutes, BgpRoutesRequest,
    BgpSessionChange, BgpWhy, ErrorReply, code,
};
use bulkhead_bgp::{
    Change, Direction, Family, Messages, PeerStatus, PrefixAtPeer, RouteView, Speaker, StationStatus,
    neighbour::ManyPrefixes,
};
use ipnetwork::IpNetwork;

/// More than that is no answer for people, and a burden for the daemon.
const MOST_ROUTES: usize = 100_000;

pub struct Reader {
    speaker: Option<Speaker>,
    bfd: Sessions,
    /// As they were when the daemon began.
    md5: Md5,
}

impl Reader {
    pub(super) fn new(speaker: Option<Speaker>, bfd: Sessions, md5: Md5) -> Self {
        Self { speaker, bfd, md5 }
    }

    pub async fn peers(&self) -> Vec<BgpPeerInfo> {
        let Some(speaker) = &self.speaker else { return Vec::new() };
        let md5 = Md5::read().since(self.md5);
        speaker.peers().await.into_iter().map(|peer| self.peer(peer, md5)).collect()
    }

    fn peer(&self, peer: PeerStatus, md5: Md5) -> BgpPeerInfo {
        BgpPeerInfo {
            meaning: meaning(&peer, md5),
            name: peer.name,
            address: peer.address,
            interface: peer.interface,
            asn: peer.asn,
            state: peer.state.to_string(),
            since_seconds: peer.since.as_secs(),
            families: peer.families.iter().map(family_name).collect(),
            advertised: peer.advertised,
            received: peer.received,
            graceful_restart: peer.graceful_restart,
            sent_messages: counts(peer.messages_sent),
            received_messages: counts(peer.messages_received),
            established_transitions: peer.ups,
            history: peer.history.into_iter().map(change).collect(),
            bfd: peer.bfd.map(|session| self.bfd.info(&session)),
            last_error: peer.last_error,
            max_prefixes: peer.prefix_limit,
            warnings: warnings(&peer.many_prefixes, peer.may_be_kept),
        }
    }

    /// Collectors of BMP.
    pub fn stations(&self) -> Vec<StationStatus> {
        self.speaker.as_ref().map(Speaker::stations).unwrap_or_default()
    }

    pub async fn routes(&self, request: &BgpRoutesRequest) -> Result<BgpRoutes, ErrorReply> {
        let mut told = BgpRoutes { total: 0, routes: Vec::new() };
        let peer = request.peer.as_deref();
        let names: Vec<String> = match &self.speaker {
            Some(speaker) => speaker.peers().await.into_iter().map(|peer| peer.name).collect(),
            None => Vec::new(),
        };
        if let Some(peer) = peer.filter(|peer| !names.iter().any(|name| name == peer)) {
            return Err(unknown(peer, &names));
        }
        let Some(speaker) = &self.speaker else { return Ok(told) };
        let directions = match request.direction {
            Some(BgpDirection::Advertised) => &[Direction::Advertised][..],
            Some(BgpDirection::Received) => &[Direction::Received],
            None => &[Direction::Advertised, Direction::Received],
        };
        for direction in directions {
            let found = speaker.routes(*direction, peer, request.limit.min(MOST_ROUTES)).await;
            told.total += found.total;
            told.routes.extend(found.shown.into_iter().map(route));
        }
        Ok(told)
    }

    /// `origin`: what the node knows of it.
    pub async fn why(&self, prefix: &IpNetwork, origin: Origin) -> BgpWhy {
        let asked = origin.route.unwrap_or(*prefix);
        let at_peers = match &self.speaker {
            Some(speaker) => speaker.prefix(asked).await,
            None => Vec::new(),
        };
        // Of what is only a part of our route, the peers are asked for just that.
        let held = match &self.speaker {
            Some(speaker) if asked != *prefix => speaker.prefix(*prefix).await,
            _ => at_peers.clone(),
        };
        let received = held.into_iter().flat_map(|at| at.received).map(route).collect();
        let fate = |at: PrefixAtPeer| BgpFate {
            reason: why::reason(&at, &origin),
            peer: at.peer.name,
            announced: at.announced.map(route),
        };
        let peers = at_peers.into_iter().filter(|_| origin.announced).map(fate).collect();
        BgpWhy { prefix: *prefix, route: origin.route, peers, received, origin: origin.words }
    }
}

fn warnings(many_prefixes: &[ManyPrefixes], may_be_kept: bool) -> Vec<String> {
    let kept = "the peer may keep what was announced to it before: blocks without pods are held until it has heard anew what there is, \
                or has dropped it";
    many_prefixes.iter().map(ToString::to_string).chain(may_be_kept.then(|| kept.to_owned())).collect()
}

fn counts(messages: Messages) -> BgpMessageCounts {
    let Messages { open, update, notification, keepalive, route_refresh } = messages;
    BgpMessageCounts { open, update, notification, keepalive, route_refresh }
}

fn change(change: Change) -> BgpSessionChange {
    BgpSessionChange {
        ago_seconds: change.ago.as_secs(),
        up: change.down.is_none(),
        reason: change.down.map(|reason| reason.to_string()),
    }
}

fn unknown(peer: &str, names: &[String]) -> ErrorReply {
    let details = match names {
        [] => "this node has none".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    };
    ErrorReply { code: code::INVALID_CONFIG, msg: format!("no BGP peer `{peer}` on this node"), details }
}

fn route(view: RouteView) -> BgpRouteInfo {
    let plain = view.communities.iter().map(|c| format!("{}:{}", c >> 16, c & 0xffff));
    let large = view.large_communities.iter().map(|[a, b, c]| format!("{a}:{b}:{c}"));
    let extended = view.extended_communities.iter().map(|c| extended(*c));
    BgpRouteInfo {
        prefix: view.prefix,
        direction: view.direction.to_string(),
        peer: view.peer,
        next_hop: view.next_hop,
        as_path: view.as_path,
        communities: plain.chain(large).chain(extended).collect(),
        med: view.med,
        local_pref: view.local_pref,
        stale: view.stale,
        learned: view.accepted,
    }
}

/// RFC 4360 and RFC 5668, as far as they have a usual notation.
fn extended(value: u64) -> String {
    let (kind, subtype) = (value >> 56, value >> 48 & 0xff);
    let name = match subtype {
        2 => "rt",
        3 => "soo",
        _ => return format!("{value:#018x}"),
    };
    match kind {
        0 => format!("{name}:{}:{}", value >> 32 & 0xffff, value & 0xffff_ffff),
        2 => format!("{name}:{}:{}", value >> 16 & 0xffff_ffff, value & 0xffff),
        _ => format!("{value:#018x}"),
    }
}

pub(super) fn family_name(family: &Family) -> String {
    match family {
        Family::Ipv4Unicast => "IPv4".into(),
        Family::Ipv6Unicast => "IPv6".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_communities_read_as_routers_write_them() {
        assert_eq!(extended(0x0002_fdf2_0000_0009), "rt:65010:9");
        assert_eq!(extended(0x0203_0001_0000_0007), "soo:65536:7");
        assert_eq!(extended(0x0102_c000_0201_0007), "0x0102c00002010007");
        assert_eq!(extended(0x4300_0000_0000_0001), "0x4300000000000001");
    }
}
