//! Routes over the life of a session: withdrawn, asked for again, said twice.

use crate::{Row, all};
use bulkhead_bgp::filter::Filter;
use bulkhead_bgp::{PeerConfig, SpeakerConfig};
use bulkhead_lab::bgp::site::{DEADLINE, NODE, NODE6, ROUTER_AS, Site, router, routes, speaker_config};
use bulkhead_lab::bgp::{Kind, Setup, THEIRS, THEIRS6};
use bulkhead_lab::{Error, Result, until};

pub const ROWS: &[Row] = &[
    all("a withdrawal takes one route and no other", "4271", withdrawal),
    all("route refresh, asked by the router", "2918", refresh)
        .without(Kind::Gobgp, "the router never asks: it keeps what it was sent"),
    all("an enhanced refresh is marked", "7313", enhanced_refresh)
        .without(Kind::Gobgp, "the router lacks it; refreshes go unmarked"),
    all("several paths for a prefix, received", "7911", add_path),
    all("IPv4 routes with an IPv6 next hop", "8950", extended_next_hop),
    all("routes with our own AS in their path, where that is allowed", "", own_as)
        .without(Kind::Gobgp, "the router tells nobody what has the neighbour's AS in its path"),
    all("two clients of a reflector", "4456", reflected),
];

const BLOCK: &str = "10.64.0.0/26";
const BLOCK6: &str = "fd00:64::/122";
const OTHER: &str = "10.65.0.0/26";

fn withdrawal(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, OTHER, BLOCK6]));
    node.speaker.set_peers(vec![router()]);
    there.wait_seen(OTHER)?;
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    there.wait_gone(OTHER)?;
    there.wait_seen(BLOCK)?;
    there.wait_seen(BLOCK6)?;
    node.withdraw_all();
    there.wait_gone(BLOCK)?;
    there.wait_gone(BLOCK6)?;
    assert!(there.established()?, "withdrawal is not the end of the session");
    Ok(())
}

fn refresh(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    node.speaker.set_peers(vec![router()]);
    there.wait_seen(BLOCK6)?;
    there.wait_seen(BLOCK)?;
    let before = node.peer().refreshes;
    there.refresh()?;
    node.wait_peer("we were asked for everything again", |peer| peer.refreshes >= before + 2)?;
    there.wait_seen(BLOCK)?;
    there.wait_seen(BLOCK6)?;
    assert!(there.established()?);
    Ok(())
}

fn enhanced_refresh(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    node.speaker.set_peers(vec![router()]);
    there.wait_seen(BLOCK)?;
    there.wait_words(&[match kind {
        Kind::Bird => "Enhanced refresh",
        _ => "\"enhancedRouteRefresh\":\"advertisedAndReceived\"",
    }])?;
    there.refresh()?;
    there.wait_words(match kind {
        Kind::Bird => &["Got BEGIN-OF-RR", "Got END-OF-RR"],
        _ => &["(BoRR)", "(EoRR)"],
    })
}

fn own_as(site: &Site, kind: Kind) -> Result<()> {
    let _there = kind.start(site, &Setup { looped: true, ..Setup::default() })?;
    let node = site.speaker(speaker_config(false));
    let peer = PeerConfig { import: Filter::ACCEPT, ..router() };
    node.speaker.set_peers(vec![peer.clone()]);
    let has = |prefix: &str| node.speaker.learned().contains_key(&prefix.parse().unwrap());
    until("what did not pass here is learned", DEADLINE, || Ok(has(THEIRS6).then_some(())))?;
    node.wait_peer("all was said", |peer| !peer.learning)?;
    assert!(!has(THEIRS), "our own AS number is a loop");
    node.speaker.set_peers(vec![PeerConfig { allow_own_as: 1, ..peer }]);
    until("once is allowed", DEADLINE, || Ok(has(THEIRS).then_some(())))
}

fn add_path(site: &Site, kind: Kind) -> Result<()> {
    let _there = kind.start(site, &Setup { add_path: true, ..Setup::default() })?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![PeerConfig { add_path: true, ..router() }]);
    // FRR has two origins for the link's own network, the others for what they announce.
    let prefix = if kind == Kind::Frr { "172.31.9.0/24" } else { THEIRS };
    until("we have two paths", DEADLINE, || {
        let received = node.received();
        let paths = received.iter().filter(|route| route.prefix.to_string() == prefix).count();
        if paths == 2 { Ok(Some(())) } else { Err(Error::Unmet(format!("{received:?}"))) }
    })?;
    node.speaker.set_peers(vec![router()]);
    until("without it we have one", DEADLINE, || {
        let received = node.received();
        let paths = received.iter().filter(|route| route.prefix.to_string() == prefix).count();
        if paths == 1 { Ok(Some(())) } else { Err(Error::Unmet(format!("{received:?}"))) }
    })
}

fn extended_next_hop(site: &Site, kind: Kind) -> Result<()> {
    use bulkhead_bgp::Remote;
    use bulkhead_lab::bgp::site::ROUTER6;
    let setup = Setup { router: ROUTER6, node: NODE6, extended_next_hop: true, ..Setup::default() };
    let there = kind.start(site, &setup)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    let peer = PeerConfig {
        remote: Remote::Address(ROUTER6.parse().unwrap()),
        local_address: Some(NODE6.parse().unwrap()),
        next_hop_ipv6: None,
        extended_next_hop: true,
        ..router()
    };
    node.speaker.set_peers(vec![peer.clone()]);
    let seen = there.wait_seen(BLOCK)?;
    assert_eq!(seen.next_hop, NODE6, "{seen:?}");
    node.speaker.set_peers(vec![PeerConfig {
        extended_next_hop: false,
        next_hop_ipv4: Some(NODE.parse().unwrap()),
        ..peer
    }]);
    until("without it the next hop is IPv4", DEADLINE, || {
        let seen = there.seen(BLOCK)?;
        let hop = seen.map(|seen| seen.next_hop).unwrap_or_default();
        if hop == NODE { Ok(Some(())) } else { Err(Error::Unmet(hop)) }
    })
}

/// Two of us are clients: what one announces comes to the other, and what is ours does not come back to be learned.
fn reflected(site: &Site, kind: Kind) -> Result<()> {
    const SECOND: &str = "172.31.9.3";
    site.node.ip(&format!("address add {SECOND}/24 dev uplink"))?;
    let range = Some("172.31.9.0/29");
    let there =
        kind.start(site, &Setup { node_as: ROUTER_AS, reflector: true, range, ..Setup::default() })?;
    let node = site.speaker(speaker_config(false));
    let peer = PeerConfig { local_asn: Some(ROUTER_AS), import: Filter::ACCEPT, ..router() };
    node.speaker.announce(routes(&[BLOCK]));
    node.speaker.set_peers(vec![peer.clone()]);
    there.wait_seen(BLOCK)?;
    // It dials alone: the port is the first one's.
    let router_id = SECOND.parse().unwrap();
    let second = site.speaker(SpeakerConfig { router_id, listen: Vec::new(), ..speaker_config(false) });
    second.speaker.announce(routes(&[OTHER]));
    second.speaker.set_peers(vec![PeerConfig { local_address: Some(router_id.into()), ..peer }]);
    for (client, theirs, hop, own) in [(&node, OTHER, SECOND, BLOCK), (&second, BLOCK, NODE, OTHER)] {
        let reflected = until("what the other client announces is learned", DEADLINE, || {
            Ok(client.speaker.learned().remove(&theirs.parse().unwrap()))
        })?;
        assert_eq!(reflected.iter().map(|hop| hop.to_string()).collect::<Vec<_>>(), [hop]);
        until("the reflector's own route is learned", DEADLINE, || {
            Ok(client.speaker.learned().contains_key(&THEIRS.parse().unwrap()).then_some(()))
        })?;
        assert!(!client.speaker.learned().contains_key(&own.parse().unwrap()));
    }
    Ok(())
}
