//! How a session comes up, stays up, and is refused.

use crate::{Row, all};
use bulkhead_bgp::{Password, PeerConfig, Remote, Ttl, fsm::StateName};
use bulkhead_lab::bgp::site::{
    DEADLINE, NODE, NODE6, ROUTER, ROUTER_AS, ROUTER6, Running, Site, router, routes, speaker_config,
};
use bulkhead_lab::bgp::{Kind, Router, Setup};
use bulkhead_lab::{Error, Result, link::run, until};
use std::time::Duration;

pub const ROWS: &[Row] = &[
    all("IPv4 and IPv6 over one IPv4 session", "4760", over_ipv4),
    all("IPv4 and IPv6 over one IPv6 session", "4760", over_ipv6),
    all("a session inside one AS", "4271", internal),
    all("AS numbers of four octets", "6793", long_as),
    all("only the router dials", "4271", router_dials),
    all("only we dial", "4271", we_dial),
    all("the router is one of our listening range, with and without TCP MD5", "2385", our_range),
    all("we are one of the router's listening range", "", their_range),
    all("TCP MD5, and none without the right password", "2385", password),
    all("GTSM, both ends, and nobody from farther away", "5082", security),
    all("a session with an address that is on no link", "", multihop),
    all("a hold time of 3 seconds", "4271", short_hold_time),
    all("a hold time of 0: no keepalives", "4271", no_hold_time)
        .without(Kind::Gobgp, "the router leaves its sessions when the hold time is 0"),
    all("a wrong AS number is told, whichever end has it wrong", "4271, 5492", wrong_as),
    all("a router id that both ends have in one AS is told", "6286", same_identifier),
    all("a connection that one end alone still holds is replaced", "4724", half_open),
    all("unnumbered: link-local addresses by router advertisements", "4861, 8950", unnumbered)
        .without(Kind::Bird, "the router has no unnumbered sessions")
        .without(Kind::Gobgp, "the router sends no router advertisements"),
    all("another local AS for one peer", "", local_as),
    all("a shutdown with a text for people", "9003", shutdown),
    all("too many prefixes", "4486", too_many),
    all("extended messages", "8654", extended_messages)
        .without(Kind::Gobgp, "the router lacks it; messages stay short"),
];

const BLOCK: &str = "10.64.0.0/26";
const BLOCK6: &str = "fd00:64::/122";

/// A router and a speaker that announces two blocks.
fn start(site: &Site, kind: Kind, setup: &Setup, peer: PeerConfig) -> Result<(Box<dyn Router>, Running)> {
    let there = kind.start(site, setup)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    node.speaker.set_peers(vec![peer]);
    Ok((there, node))
}

fn both_blocks(there: &dyn Router) -> Result<()> {
    there.wait_seen(BLOCK)?;
    there.wait_seen(BLOCK6).map(drop)
}

fn comes_up(site: &Site, kind: Kind, setup: &Setup, peer: PeerConfig) -> Result<(Box<dyn Router>, Running)> {
    let (there, node) = start(site, kind, setup, peer)?;
    there.wait_established()?;
    both_blocks(there.as_ref())?;
    Ok((there, node))
}

fn over_ipv4(site: &Site, kind: Kind) -> Result<()> {
    let (there, _node) = comes_up(site, kind, &Setup::default(), router())?;
    assert_eq!(there.wait_seen(BLOCK)?.next_hop, NODE);
    assert_eq!(there.wait_seen(BLOCK6)?.next_hop, NODE6);
    Ok(())
}

fn over_ipv6(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { router: ROUTER6, node: NODE6, ..Setup::default() };
    let peer = PeerConfig {
        remote: Remote::Address(ROUTER6.parse().unwrap()),
        local_address: Some(NODE6.parse().unwrap()),
        next_hop_ipv4: Some(NODE.parse().unwrap()),
        next_hop_ipv6: None,
        ..router()
    };
    let (there, _node) = comes_up(site, kind, &setup, peer)?;
    assert_eq!(there.wait_seen(BLOCK)?.next_hop, NODE);
    assert_eq!(there.wait_seen(BLOCK6)?.next_hop, NODE6);
    Ok(())
}

fn internal(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { node_as: ROUTER_AS, ..Setup::default() };
    let peer = PeerConfig { local_asn: Some(ROUTER_AS), ..router() };
    let (there, _node) = comes_up(site, kind, &setup, peer)?;
    let seen = there.wait_seen(BLOCK)?;
    assert_eq!((seen.as_path, seen.local_pref), (Vec::new(), Some(100)));
    Ok(())
}

fn long_as(site: &Site, kind: Kind) -> Result<()> {
    let asn = 4_200_000_001;
    let setup = Setup { node_as: asn, ..Setup::default() };
    let there = kind.start(site, &setup)?;
    let node = site.speaker(bulkhead_bgp::SpeakerConfig { asn, ..speaker_config(false) });
    node.speaker.announce(routes(&[BLOCK]));
    node.speaker.set_peers(vec![router()]);
    assert_eq!(there.wait_seen(BLOCK)?.as_path, [asn]);
    Ok(())
}

fn router_dials(site: &Site, kind: Kind) -> Result<()> {
    comes_up(site, kind, &Setup::default(), PeerConfig { passive: true, ..router() }).map(drop)
}

fn we_dial(site: &Site, kind: Kind) -> Result<()> {
    comes_up(site, kind, &Setup { passive: true, ..Setup::default() }, router()).map(drop)
}

fn our_range(site: &Site, kind: Kind) -> Result<()> {
    let peer = PeerConfig { remote: Remote::Range("172.31.9.0/29".parse().unwrap()), ..router() };
    for password in [None, Some("correct-horse")] {
        let setup = Setup { password, ..Setup::default() };
        let peer = PeerConfig { password: password.and_then(Password::new), ..peer.clone() };
        let (_there, node) = comes_up(site, kind, &setup, peer)?;
        assert_eq!(node.peer().name, format!("leaf[{ROUTER}]"));
    }
    // The password is the whole range's: without it nobody is heard.
    let before = counter(site, "netstat", "TcpExt:", "TCPMD5NotFound")?;
    let password = Password::new("correct-horse");
    let (there, _node) = start(site, kind, &Setup::default(), PeerConfig { password, ..peer })?;
    until("what has no password is dropped", DEADLINE, || {
        Ok((counter(site, "netstat", "TcpExt:", "TCPMD5NotFound")? > before).then_some(()))
    })?;
    assert!(!there.established()?);
    Ok(())
}

fn their_range(site: &Site, kind: Kind) -> Result<()> {
    comes_up(site, kind, &Setup { range: Some("172.31.9.0/29"), ..Setup::default() }, router()).map(drop)
}

fn password(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { password: Some("correct-horse"), ..Setup::default() };
    let with = |password| PeerConfig { password: Password::new(password), ..router() };
    let (there, node) = start(site, kind, &setup, with("wrong-horse"))?;
    node.wait_peer("our attempts to connect fail", |peer| peer.last_error.is_some())?;
    assert!(!there.established()?, "with the wrong password");
    // Now it is right, whoever dials.
    for passive in [false, true] {
        node.speaker.set_peers(vec![PeerConfig { passive, ..with("correct-horse") }]);
        node.wait_established()?;
        both_blocks(there.as_ref())?;
    }
    Ok(())
}

fn security(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { security: true, ..Setup::default() };
    let peer = |passive| PeerConfig { ttl: Ttl::Security(1), passive, ..router() };
    for passive in [false, true] {
        comes_up(site, kind, &setup, peer(passive))?;
    }
    // What a router next door sends with a TTL of 1, as it does by itself, may come from anywhere.
    for passive in [false, true] {
        let passive_router = Setup { passive: !passive, ..Setup::default() };
        let (there, node) = start(site, kind, &passive_router, peer(passive))?;
        // Answers to us are dropped; who dials us is heard so far that the connection is there.
        let tried = || if passive { refused(site) } else { too_far(site) };
        let before = tried()?;
        until("it has been tried in vain, and again", 2 * DEADLINE, || {
            let tries = tried()? - before;
            if tries >= 2 { Ok(Some(())) } else { Err(Error::Unmet(format!("{tries} times"))) }
        })?;
        assert!(!there.established()? && node.peer().state != StateName::Established, "passive: {passive}");
        // Nor was it for a moment.
        assert_eq!(node.peer().ups, 0, "passive: {passive}");
    }
    Ok(())
}

/// Packets that the node's kernel has dropped since they came from farther away than a socket allows.
fn too_far(site: &Site) -> Result<u64> {
    counter(site, "netstat", "TcpExt:", "TCPMinTTLDrop")
}

fn multihop(site: &Site, kind: Kind) -> Result<()> {
    const FAR: &str = "192.0.2.1";
    site.router.ip(&format!("address add {FAR}/32 dev lo"))?;
    site.node.ip(&format!("route add {FAR}/32 via {ROUTER}"))?;
    let setup = Setup { router: FAR, multihop: true, ..Setup::default() };
    let remote = Remote::Address(FAR.parse().unwrap());
    let (there, _node) = comes_up(site, kind, &setup, PeerConfig { remote, ttl: Ttl::Fixed(2), ..router() })?;
    assert_eq!(there.wait_seen(BLOCK)?.next_hop, NODE);
    Ok(())
}

fn short_hold_time(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { hold_time: 3, ..Setup::default() };
    let (there, node) = comes_up(site, kind, &setup, PeerConfig { hold_time: 3, ..router() })?;
    // More than two hold times.
    until("seven seconds have passed", Duration::from_secs(20), || {
        let peer = node.peer();
        if peer.state != StateName::Established {
            return Err(Error::Unmet(format!("{peer:?}")));
        }
        Ok((peer.since >= Duration::from_secs(7)).then_some(()))
    })?;
    assert!(there.established()?);
    Ok(())
}

fn no_hold_time(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { hold_time: 0, ..Setup::default() };
    let (there, node) = comes_up(site, kind, &setup, PeerConfig { hold_time: 0, ..router() })?;
    // Beyond any keepalive of a default hold time that starts the clock: nothing is said, and nobody minds.
    until("four seconds have passed", Duration::from_secs(20), || {
        let peer = node.peer();
        if peer.state != StateName::Established {
            return Err(Error::Unmet(format!("{peer:?}")));
        }
        Ok((peer.since >= Duration::from_secs(4)).then_some(()))
    })?;
    assert!(there.established()?);
    Ok(())
}

fn told(node: &Running, start: &str) -> Result<()> {
    let what = format!("our error begins with {start:?}");
    node.wait_peer(&what, |peer| peer.last_error.as_deref().is_some_and(|e| e.starts_with(start))).map(drop)
}

fn wrong_as(site: &Site, kind: Kind) -> Result<()> {
    let (there, node) = start(site, kind, &Setup::default(), PeerConfig { asn: 65_099, ..router() })?;
    told(&node, "the peer is AS 65020, but AS 65099 is configured")?;
    match kind {
        Kind::Bird => there.wait_words(&["Received: Bad peer AS"])?,
        Kind::Frr => {
            there.wait_words(&["received from neighbor 172.31.9.2 2/2 (OPEN Message Error/Bad Peer AS)"])?;
        }
        // It counts what it is told, and says no more of it.
        Kind::Gobgp => until("the router has been told", DEADLINE, || {
            let said = there.session()?;
            let counts = said.lines().find_map(|line| line.trim().strip_prefix("Notifications:"));
            let received = counts.and_then(|counts| counts.split_whitespace().nth(1)?.parse().ok());
            Ok(received.filter(|count: &u32| *count > 0).map(drop))
        })?,
    }
    drop((there, node));
    let (there, node) = start(site, kind, &Setup { node_as: 65_088, ..Setup::default() }, router())?;
    told(&node, "the peer sent NOTIFICATION 2/2")?;
    there.wait_words(match kind {
        Kind::Bird => &["Error: Bad peer AS"],
        Kind::Frr => &["sent to neighbor 172.31.9.2 2/2 (OPEN Message Error/Bad Peer AS)"],
        Kind::Gobgp => &["\"ErrorCode\":2,\"ErrorSubcode\":2"],
    })?;
    assert!(!there.established()?);
    Ok(())
}

fn same_identifier(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup { node_as: ROUTER_AS, ..Setup::default() })?;
    let config = bulkhead_bgp::SpeakerConfig { router_id: ROUTER.parse().unwrap(), ..speaker_config(false) };
    let node = site.speaker(config);
    node.speaker.set_peers(vec![PeerConfig { local_asn: Some(ROUTER_AS), ..router() }]);
    // Whoever reads the other's OPEN first says so.
    node.wait_peer("one of us has refused the other's router id", |peer| {
        let error = peer.last_error.as_deref().unwrap_or_default();
        error.starts_with("the peer's router id 172.31.9.1 is not usable")
            || error.starts_with("the peer sent NOTIFICATION 2/3")
    })?;
    there.wait_words(match kind {
        Kind::Bird => &["Bad BGP identifier"],
        Kind::Frr => &["2/3 (OPEN Message Error/Bad BGP Identifier)"],
        Kind::Gobgp => &["\"ErrorCode\":2,\"ErrorSubcode\":3"],
    })?;
    assert!(!there.established()?);
    Ok(())
}

/// The router's end is gone without a word, and it begins anew before we could notice.
fn half_open(site: &Site, kind: Kind) -> Result<()> {
    let (there, node) = comes_up(site, kind, &Setup::default(), router())?;
    let since = node.peer().since;
    site.cut()?;
    drop(there);
    // Else its kernel goes on to say that it has ended.
    run(site.router.command("ss").args(["-K", "-t", "dst", NODE]))?;
    assert_eq!(node.peer().state, StateName::Established, "we hold a connection that has no other end");
    site.mend()?;
    // It dials, and we would wait for the hold time.
    let there = kind.start(site, &Setup::default())?;
    there.wait_established()?;
    both_blocks(there.as_ref())?;
    node.wait_peer("ours is another session", |peer| {
        peer.state == StateName::Established && peer.since != since
    })
    .map(drop)
}

fn unnumbered(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { unnumbered: Some("downlink"), ..Setup::default() };
    let peer = PeerConfig {
        remote: Remote::Interface("uplink".into()),
        local_address: None,
        next_hop_ipv6: None,
        ..router()
    };
    let (there, _node) = comes_up(site, kind, &setup, peer)?;
    for block in [BLOCK, BLOCK6] {
        let seen = there.wait_seen(block)?;
        assert!(seen.next_hop.starts_with("fe80::"), "{seen:?}");
    }
    Ok(())
}

fn local_as(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { node_as: 64_496, ..Setup::default() };
    let peer = PeerConfig { local_asn: Some(64_496), ..router() };
    let (there, node) = comes_up(site, kind, &setup, peer.clone())?;
    assert_eq!(there.wait_seen(BLOCK)?.as_path, [64_496, 65_010]);
    node.speaker.set_peers(vec![PeerConfig { remove_private_as: true, ..peer }]);
    until("the private number has left the path", Duration::from_secs(20), || {
        let path = there.wait_seen(BLOCK)?.as_path;
        if path == [64_496] { Ok(Some(())) } else { Err(Error::Unmet(format!("{path:?}"))) }
    })
}

fn shutdown(site: &Site, kind: Kind) -> Result<()> {
    let (there, node) = comes_up(site, kind, &Setup::default(), router())?;
    let notifications = || Ok::<_, Error>(there.log()?.lines().filter(|line| is_notification(line)).count());
    // Connections may have collided.
    let told_before = notifications()?;
    node.speaker.set_peers(vec![PeerConfig { shutdown: Some("moving to rack 7".into()), ..router() }]);
    there.wait_gone(BLOCK)?;
    // GoBGP does not show the text of what it takes for a hard reset.
    let words: &[&str] = match kind {
        Kind::Bird => &["moving to rack 7"],
        // In its log: as the reason of the last reset it stands until the next attempt at the most.
        Kind::Frr => &["NOTIFICATION(Hard Reset)", "moving to rack 7"],
        Kind::Gobgp => &["hard-reset"],
    };
    there.wait_words(words)?;
    // GoBGP takes its time.
    if kind != Kind::Gobgp {
        let before = refused(site)?;
        until("the router has tried again", DEADLINE, || Ok((refused(site)? >= before + 3).then_some(())))?;
        there.wait_words(words)?;
        // FRR's own counter counts each of them twice.
        assert_eq!(notifications()?, told_before + 1, "no other takes its place: {}", there.log()?);
    }
    node.speaker.set_peers(vec![router()]);
    both_blocks(there.as_ref())
}

/// A line of BIRD's or FRR's log that tells of one of ours.
fn is_notification(line: &str) -> bool {
    line.contains("node: Received: ")
        || (line.contains("NOTIFICATION") && line.contains("received from neighbor"))
}

/// Connections that others have begun to the node.
fn refused(site: &Site) -> Result<u64> {
    counter(site, "snmp", "Tcp:", "PassiveOpens")
}

/// Of the node's kernel.
fn counter(site: &Site, file: &str, group: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/thread-self/net/{file}");
    let counters = site.node.run(|| Ok(std::fs::read_to_string(&path)?))?;
    let mut lines = counters.lines().filter(|line| line.starts_with(group)).map(str::split_whitespace);
    let (names, values) = (lines.next().into_iter().flatten(), lines.next().into_iter().flatten());
    let value = names.zip(values).find(|(of, _)| *of == name).map(|(_, value)| value);
    value.and_then(|value| value.parse().ok()).ok_or(Error::Unmet(counters))
}

fn too_many(site: &Site, kind: Kind) -> Result<()> {
    let limit = |max| {
        let prefix_limit = Some(bulkhead_bgp::neighbour::PrefixLimit { max, warn_at: 75, retry: None });
        PeerConfig { prefix_limit, ..router() }
    };
    let (there, node) = start(site, kind, &Setup::default(), limit(0))?;
    let told = node.wait_peer("we left", |peer| {
        peer.last_error.as_ref().is_some_and(|error| error.contains("more than the 0 routes of ipv"))
    })?;
    assert_eq!(told.state, StateName::Idle);
    until(
        "the router has no session",
        Duration::from_secs(20),
        || Ok((!there.established()?).then_some(())),
    )?;
    node.speaker.set_peers(vec![limit(1)]);
    there.wait_established()?;
    both_blocks(there.as_ref())
}

fn extended_messages(site: &Site, kind: Kind) -> Result<()> {
    let (there, node) = start(site, kind, &Setup::default(), router())?;
    let words = match kind {
        Kind::Bird => "Extended message",
        _ => "\"extendedMessage\":\"advertisedAndReceived\"",
    };
    there.wait_words(&[words])?;
    // Some 12,000 octets of prefixes: they come in one message, or the router would have ended the session.
    let many: Vec<String> = (0..3000u32).map(|n| format!("10.{}.{}.0/24", 128 + n / 256, n % 256)).collect();
    node.speaker.announce(routes(&many.iter().map(String::as_str).collect::<Vec<_>>()));
    there.wait_seen(&many[2999])?;
    assert!(there.established()?);
    Ok(())
}
