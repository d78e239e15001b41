//! `bgp peers`, `bgp routes`, `bgp drain-routes`.

use super::{list, or_dash};
use crate::{
    paint::{Colour, Paint},
    table::{self, number, text},
    units,
};
use bulkhead_api::messages::{BgpPeerInfo, BgpRouteInfo};

pub fn bgp_peers(peers: &[BgpPeerInfo], paint: Paint) -> String {
    if peers.is_empty() {
        return "no BGP peers\n".to_string();
    }
    let row = |p: &BgpPeerInfo| {
        let colour = if p.state == "Established" { Colour::Good } else { Colour::Warning };
        vec![
            text(&p.name),
            text(p.address),
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
    table::with_header(&header, peers.iter().map(row).collect(), paint)
}

fn bfd(peer: &BgpPeerInfo) -> table::Cell {
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

pub fn bgp_routes(routes: &[BgpRouteInfo], paint: Paint) -> String {
    if routes.is_empty() {
        return "no BGP routes\n".to_string();
    }
    let path = |asns: &[u32]| match asns {
        [] => "-".to_string(),
        asns => asns.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    };
    let row = |r: &BgpRouteInfo| {
        vec![
            text(r.prefix),
            text(&r.direction),
            text(&r.peer),
            text(r.next_hop),
            text(path(&r.as_path)),
            text(list(&r.communities)),
        ]
    };
    let header = ["PREFIX", "DIRECTION", "PEER", "NEXT HOP", "AS PATH", "COMMUNITIES"];
    table::with_header(&header, routes.iter().map(row).collect(), paint)
}

pub fn drained() -> String {
    "this node's routes are withdrawn; bulkheadd announces them again when it starts\n".to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::{COLOURED, PLAIN};
    use bulkhead_api::messages::BgpBfdInfo;

    #[test]
    fn peers_show_their_state_and_their_last_error() {
        let up = BgpPeerInfo {
            name: "leaf-v4".into(),
            address: "192.0.2.1".parse().unwrap(),
            asn: 64512,
            state: "Established".into(),
            since_seconds: 200,
            families: vec!["ipv4".into(), "ipv6".into()],
            advertised: 3,
            received: 1,
            graceful_restart: true,
            bfd: None,
            last_error: None,
        };
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
        let up = BgpPeerInfo { bfd: Some(watched), ..up };
        let peers = [up, down, silent];
        assert_eq!(
            bgp_peers(&peers, PLAIN),
            "\
PEER     ADDRESS        ASN  STATE        FOR         FAMILIES    SENT  RECEIVED  GRACEFUL RESTART  BFD   LAST ERROR
leaf-v4  192.0.2.1    64512  Established  3 min 20 s  ipv4, ipv6     3         1  yes               Up    -
leaf-v6  2001:db8::1  64512  Active       5 s         -              0         0  no                -     connection refused
spine    192.0.2.1    64512  Established  3 min 20 s  ipv4, ipv6     3         1  yes               Down  the router has not answered yet
"
        );
        let coloured = bgp_peers(&peers, COLOURED);
        assert!(
            coloured.contains("\x1b[32mEstablished\x1b[0m  ")
                && coloured.contains("\x1b[33mActive\x1b[0m     ")
        );
        assert_eq!(bgp_peers(&[], PLAIN), "no BGP peers\n");
    }

    #[test]
    fn routes_show_which_way_they_went() {
        let out = BgpRouteInfo {
            prefix: "10.65.0.0/26".parse().unwrap(),
            direction: "advertised".into(),
            peer: "leaf-v4".into(),
            next_hop: "192.0.2.11".parse().unwrap(),
            as_path: vec![],
            communities: vec!["64512:65".into(), "64512:1".into()],
        };
        let into = BgpRouteInfo {
            prefix: "0.0.0.0/0".parse().unwrap(),
            direction: "received".into(),
            next_hop: "192.0.2.1".parse().unwrap(),
            as_path: vec![64512, 65000],
            communities: vec![],
            ..out.clone()
        };
        assert_eq!(
            bgp_routes(&[out, into], PLAIN),
            "\
PREFIX        DIRECTION   PEER     NEXT HOP    AS PATH      COMMUNITIES
10.65.0.0/26  advertised  leaf-v4  192.0.2.11  -            64512:65, 64512:1
0.0.0.0/0     received    leaf-v4  192.0.2.1   64512 65000  -
"
        );
        assert_eq!(bgp_routes(&[], PLAIN), "no BGP routes\n");
    }
}
