//! `bgp peers`, `bgp history`, `bgp routes`, `bgp advertised`, `bgp received`, `bgp why`.

use super::{list, or_dash};
use crate::{
    paint::{Colour, Paint},
    table::{self, Cell, number, text},
    units,
};
use bulkhead_api::messages::{BgpDirection, BgpFate, BgpPeerInfo, BgpRouteInfo, BgpRoutes, BgpWhy};

pub fn bgp_peers(peers: &[BgpPeerInfo], paint: Paint) -> String {
    if peers.is_empty() {
        return "no BGP peers\n".to_string();
    }
    let row = |p: &BgpPeerInfo| {
        let colour = if p.state == "Established" { Colour::Good } else { Colour::Warning };
        vec![
            text(&p.name),
            text(address(p)),
            number(p.asn),
            text(&p.state).colour(colour),
            text(units::duration(p.since_seconds)),
            text(list(&p.families)),
            number(p.advertised),
            number(p.received),
            text(if p.graceful_restart { "yes" } else { "no" }),
            bfd(p),
            text(or_dash(trouble(p))),
        ]
    };
    let header = [
        "PEER",
        "ADDRESS",
        "ASN",
        "STATE",
        "FOR",
        "FAMILIES",
        "SENT",
        "RECEIVED",
        "GRACEFUL RESTART",
        "BFD",
        "LAST ERROR",
    ];
    let mut out = table::with_header(&header, peers.iter().map(row).collect(), paint);
    for peer in peers {
        let words = peer.meaning.iter().chain(&peer.warnings);
        out.extend(words.map(|words| format!("{}: {words}\n", peer.name)));
    }
    out
}

fn address(peer: &BgpPeerInfo) -> String {
    match &peer.interface {
        Some(interface) if peer.address.is_unspecified() => interface.clone(),
        Some(interface) => format!("{}%{interface}", peer.address),
        None => peer.address.to_string(),
    }
}

fn bfd(peer: &BgpPeerInfo) -> Cell {
    match &peer.bfd {
        None => text("-"),
        Some(bfd) if bfd.state == "Up" => text(&bfd.state).colour(Colour::Good),
        Some(bfd) => text(&bfd.state).colour(Colour::Warning),
    }
}

/// What BGP has to say comes first.
fn trouble(peer: &BgpPeerInfo) -> Option<&str> {
    let bfd = || peer.bfd.as_ref()?.reason.as_deref();
    peer.last_error.as_deref().or_else(bfd)
}

/// `direction`: what was asked for; absent: both.
pub fn bgp_routes(found: &BgpRoutes, direction: Option<BgpDirection>, paint: Paint) -> String {
    let (routes, total) = (&found.routes, found.total);
    if total == 0 {
        return "no BGP routes\n".to_string();
    }
    let table = match direction {
        None => {
            let row = |r: &BgpRouteInfo| {
                let [prefix, rest @ ..] = cells(r);
                [vec![prefix, text(&r.direction)], rest.to_vec()].concat()
            };
            let header = ["PREFIX", "DIRECTION", "PEER", "NEXT HOP", "AS PATH", "COMMUNITIES"];
            table::with_header(&header, routes.iter().map(row).collect(), paint)
        }
        Some(direction) => {
            let received = direction == BgpDirection::Received;
            let row = |r: &BgpRouteInfo| {
                let [prefix, peer, next_hop, path, communities] = cells(r);
                let mut row = vec![prefix, peer, next_hop, path, med(r), local_pref(r), communities];
                row.extend(received.then(|| text(state(r))));
                row
            };
            let mut header =
                vec!["PREFIX", "PEER", "NEXT HOP", "AS PATH", "MED", "LOCAL PREF", "COMMUNITIES"];
            header.extend(received.then_some("STATE"));
            table::with_header(&header, routes.iter().map(row).collect(), paint)
        }
    };
    match total - routes.len().min(total) {
        0 => table,
        more => format!("{table}… and {more} more: name a peer, or give --limit\n"),
    }
}

/// Prefix, peer, next hop, path, communities.
fn cells(route: &BgpRouteInfo) -> [Cell; 5] {
    let path = match route.as_path.as_slice() {
        [] => "-".to_string(),
        asns => asns.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    };
    [text(route.prefix), text(&route.peer), text(route.next_hop), text(path), text(list(&route.communities))]
}

fn med(route: &BgpRouteInfo) -> Cell {
    number(or_dash(route.med))
}

fn local_pref(route: &BgpRouteInfo) -> Cell {
    number(or_dash(route.local_pref))
}

fn state(route: &BgpRouteInfo) -> &'static str {
    match (route.learned, route.stale) {
        (true, true) => "learned, stale",
        (true, false) => "learned",
        (false, true) => "stale",
        (false, false) => "-",
    }
}

pub fn bgp_why(why: &BgpWhy, paint: Paint) -> String {
    let mut out = format!("{}: {}\n", why.prefix, why.origin);
    if !why.peers.is_empty() {
        let row = |fate: &BgpFate| {
            let dash = || text("-");
            let (said, mut row) = match &fate.announced {
                Some(route) => {
                    let [_, _, next_hop, path, communities] = cells(route);
                    let row = vec![next_hop, path, med(route), local_pref(route), communities];
                    (text("yes").colour(Colour::Good), row)
                }
                None => {
                    let row = vec![dash(), dash(), number("-"), number("-"), dash()];
                    (text("no").colour(Colour::Warning), row)
                }
            };
            row.splice(0..0, [text(&fate.peer), said]);
            row.push(text(&fate.reason));
            row
        };
        let header = ["PEER", "ANNOUNCED", "NEXT HOP", "AS PATH", "MED", "LOCAL PREF", "COMMUNITIES", "WHY"];
        out += "\n";
        out += &table::with_header(&header, why.peers.iter().map(row).collect(), paint);
    }
    if why.received.is_empty() {
        return out + "\nno router announces it to this node\n";
    }
    let found = BgpRoutes { total: why.received.len(), routes: why.received.clone() };
    out + "\n" + &bgp_routes(&found, Some(BgpDirection::Received), paint)
}

/// `peer`: of this one only.
pub fn bgp_history(peers: &[BgpPeerInfo], peer: Option<&str>, paint: Paint) -> String {
    let of = |p: &&BgpPeerInfo| peer.is_none_or(|peer| p.name == peer);
    let rows: Vec<_> = peers
        .iter()
        .filter(of)
        .flat_map(|peer| {
            peer.history.iter().map(|change| {
                let (word, colour) = if change.up { ("up", Colour::Good) } else { ("down", Colour::Warning) };
                vec![
                    text(&peer.name),
                    text(format!("{} ago", units::duration(change.ago_seconds))),
                    text(word).colour(colour),
                    text(or_dash(change.reason.as_deref())),
                ]
            })
        })
        .collect();
    match rows.as_slice() {
        [] => "no session came up or went down since the daemon began\n".to_string(),
        _ => table::with_header(&["PEER", "WHEN", "SESSION", "WHY"], rows, paint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::{COLOURED, PLAIN};
    use bulkhead_api::messages::{BgpBfdInfo, BgpMessageCounts, BgpSessionChange};

    fn leaf() -> BgpPeerInfo {
        BgpPeerInfo {
            name: "leaf-v4".into(),
            address: "192.0.2.1".parse().unwrap(),
            interface: None,
            asn: 64512,
            state: "Established".into(),
            since_seconds: 200,
            families: vec!["ipv4".into(), "ipv6".into()],
            advertised: 3,
            received: 1,
            graceful_restart: true,
            sent_messages: BgpMessageCounts::default(),
            received_messages: BgpMessageCounts::default(),
            established_transitions: 1,
            history: vec![],
            bfd: None,
            last_error: None,
            meaning: None,
            max_prefixes: None,
            warnings: vec![],
        }
    }

    #[test]
    fn the_history_tells_when_and_why() {
        let change = |ago_seconds, reason: Option<&str>| BgpSessionChange {
            ago_seconds,
            up: reason.is_none(),
            reason: reason.map(str::to_owned),
        };
        let history = vec![change(5, None), change(65, Some("the connection was lost"))];
        let peers = [BgpPeerInfo { history, ..leaf() }, BgpPeerInfo { name: "spine".into(), ..leaf() }];
        assert_eq!(
            bgp_history(&peers, None, PLAIN),
            "\
PEER     WHEN           SESSION  WHY
leaf-v4  5 s ago        up       -
leaf-v4  1 min 5 s ago  down     the connection was lost
"
        );
        assert_eq!(
            bgp_history(&peers, Some("spine"), PLAIN),
            "no session came up or went down since the daemon began\n"
        );
    }

    #[test]
    fn peers_show_their_state_and_their_last_error() {
        let up = leaf();
        let down = BgpPeerInfo {
            name: "leaf-v6".into(),
            address: "2001:db8::1".parse().unwrap(),
            state: "Active".into(),
            since_seconds: 5,
            families: vec![],
            advertised: 0,
            received: 0,
            graceful_restart: false,
            last_error: Some("connection refused".into()),
            meaning: Some("does BGP run there?".into()),
            ..up.clone()
        };
        let silent = BgpPeerInfo {
            name: "spine".into(),
            bfd: Some(BgpBfdInfo {
                state: "Down".into(),
                detection_time_millis: Some(900),
                transmit_interval_millis: Some(1000),
                reason: Some("the router has not answered yet".into()),
            }),
            ..up.clone()
        };
        let watched = BgpBfdInfo { state: "Up".into(), reason: None, ..silent.bfd.clone().unwrap() };
        let warnings = vec!["the peer announces 8 of 9 routes".into()];
        let up = BgpPeerInfo { bfd: Some(watched), warnings, ..up };
        let peers = [up, down, silent];
        assert_eq!(
            bgp_peers(&peers, PLAIN),
            "\
PEER     ADDRESS        ASN  STATE        FOR         FAMILIES    SENT  RECEIVED  GRACEFUL RESTART  BFD   LAST ERROR
leaf-v4  192.0.2.1    64512  Established  3 min 20 s  ipv4, ipv6     3         1  yes               Up    -
leaf-v6  2001:db8::1  64512  Active       5 s         -              0         0  no                -     connection refused
spine    192.0.2.1    64512  Established  3 min 20 s  ipv4, ipv6     3         1  yes               Down  the router has not answered yet
leaf-v4: the peer announces 8 of 9 routes
leaf-v6: does BGP run there?
"
        );
        let coloured = bgp_peers(&peers, COLOURED);
        assert!(
            coloured.contains("\x1b[32mEstablished\x1b[0m  ")
                && coloured.contains("\x1b[33mActive\x1b[0m     ")
        );
        assert_eq!(bgp_peers(&[], PLAIN), "no BGP peers\n");
    }

    fn routes() -> [BgpRouteInfo; 2] {
        let out = BgpRouteInfo {
            prefix: "10.65.0.0/26".parse().unwrap(),
            direction: "advertised".into(),
            peer: "leaf-v4".into(),
            next_hop: "192.0.2.11".parse().unwrap(),
            as_path: vec![],
            communities: vec!["64512:65".into(), "64512:1".into()],
            med: None,
            local_pref: Some(100),
            stale: false,
            learned: false,
        };
        let into = BgpRouteInfo {
            prefix: "0.0.0.0/0".parse().unwrap(),
            direction: "received".into(),
            next_hop: "192.0.2.1".parse().unwrap(),
            as_path: vec![64512, 65000],
            communities: vec![],
            med: Some(30),
            local_pref: None,
            stale: true,
            learned: true,
            ..out.clone()
        };
        [out, into]
    }

    fn found(routes: &[BgpRouteInfo], total: usize) -> BgpRoutes {
        BgpRoutes { total, routes: routes.to_vec() }
    }

    #[test]
    fn routes_show_which_way_they_went() {
        assert_eq!(
            bgp_routes(&found(&routes(), 2), None, PLAIN),
            "\
PREFIX        DIRECTION   PEER     NEXT HOP    AS PATH      COMMUNITIES
10.65.0.0/26  advertised  leaf-v4  192.0.2.11  -            64512:65, 64512:1
0.0.0.0/0     received    leaf-v4  192.0.2.1   64512 65000  -
"
        );
        assert_eq!(bgp_routes(&found(&[], 0), None, PLAIN), "no BGP routes\n");
    }

    #[test]
    fn of_one_direction_all_attributes_are_shown_and_what_was_left_out_is_told() {
        let [out, into] = routes();
        assert_eq!(
            bgp_routes(&found(&[out], 3), Some(BgpDirection::Advertised), PLAIN),
            "\
PREFIX        PEER     NEXT HOP    AS PATH  MED  LOCAL PREF  COMMUNITIES
10.65.0.0/26  leaf-v4  192.0.2.11  -          -         100  64512:65, 64512:1
… and 2 more: name a peer, or give --limit
"
        );
        assert_eq!(
            bgp_routes(&found(&[into], 1), Some(BgpDirection::Received), PLAIN),
            "\
PREFIX     PEER     NEXT HOP   AS PATH      MED  LOCAL PREF  COMMUNITIES  STATE
0.0.0.0/0  leaf-v4  192.0.2.1  64512 65000   30           -  -            learned, stale
"
        );
    }

    #[test]
    fn why_names_each_peer_with_what_it_gets_and_the_reason() {
        let [out, into] = routes();
        let fate = |peer: &str, reason: &str, announced| BgpFate {
            peer: peer.into(),
            reason: reason.into(),
            announced,
        };
        let why = BgpWhy {
            prefix: "10.65.0.0/26".parse().unwrap(),
            route: Some("10.65.0.0/26".parse().unwrap()),
            origin: "this node's own block, of partition web".into(),
            peers: vec![
                fate("leaf-v4", "no export rule matches it: announced", Some(out)),
                fate("spine", "no session (Active): stopped here", None),
            ],
            received: vec![],
        };
        assert_eq!(
            bgp_why(&why, PLAIN),
            "\
10.65.0.0/26: this node's own block, of partition web

PEER     ANNOUNCED  NEXT HOP    AS PATH  MED  LOCAL PREF  COMMUNITIES        WHY
leaf-v4  yes        192.0.2.11  -          -         100  64512:65, 64512:1  no export rule matches it: announced
spine    no         -           -          -           -  -                  no session (Active): stopped here

no router announces it to this node
"
        );
        let foreign = BgpWhy {
            route: None,
            origin: "not announced".into(),
            peers: vec![],
            received: vec![into],
            ..why
        };
        assert_eq!(
            bgp_why(&foreign, PLAIN),
            "\
10.65.0.0/26: not announced

PREFIX     PEER     NEXT HOP   AS PATH      MED  LOCAL PREF  COMMUNITIES  STATE
0.0.0.0/0  leaf-v4  192.0.2.1  64512 65000   30           -  -            learned, stale
"
        );
    }
}
