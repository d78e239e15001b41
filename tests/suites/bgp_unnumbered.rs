//! A whole daemon and a real FRR that know of each other only the interface: addresses come from router advertisements, next
//! hops are link-local. FRR is the one router here that speaks so.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpPeerInfo, Status};
use bulkhead_lab::bgp::{
    Kind, Router, Setup, THEIRS, THEIRS6,
    rack::{BLOCK, BLOCK6, Rack},
    site::DEADLINE,
};
use bulkhead_lab::{
    Error, Result, enter,
    link::{ip_output, run},
    node::UPLINK,
    until,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::net::IpAddr;

/// FRR's end.
const SETUP: Setup = Setup { unnumbered: Some("downlink"), ..Setup::DEFAULT };
const IMPORT: &str = "{import: [{action: Accept}]}";
/// Of what is learned.
const LEARNED: &str = "67";

type Test = fn(&mut Rack) -> Result<()>;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let all: [(&str, Test); 9] = [
        (
            "routes of both IP versions go both ways over link-local next hops, and packets with them",
            both_ways,
        ),
        ("the router's advertisements make it no default router of the node", no_default_route),
        ("a password holds whichever end dials, and none passes without the right one", password),
        ("a router that is not there is told in words, and taken when it comes", comes_late),
        ("a router that comes back with another address is found again", another_address),
        ("a killed daemon's routes stay in the router, and the router's in the node", killed),
        ("BFD watches the path between link-local addresses, over a restart of the daemon as well", watched),
        ("BFD follows a router that comes back with another address", watched_elsewhere),
        ("what an unnumbered session cannot have is refused by its field", refused),
    ];
    let trials = all.map(|(name, test)| {
        // A namespace is known by its name.
        let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
        Trial::test(name, move || {
            let mut rack = Rack::create_with(&place, &format!("interface: {UPLINK}"), IMPORT)?;
            let held = test(&mut rack);
            if held.is_err() {
                eprintln!("{}", rack.node.log_tail(30));
            }
            held.map_err(Failed::from)
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit()
}

/// The router has none but a link-local address there.
fn frr(rack: &Rack, setup: &Setup) -> Result<Box<dyn Router>> {
    for family in ["-4", "-6"] {
        let scope = if family == "-6" { "scope global" } else { "" };
        run(rack
            .router
            .command("ip")
            .args(format!("{family} address flush dev downlink {scope}").split_whitespace()))?;
    }
    Kind::Frr.start_in(&rack.router, &rack.dir, setup)
}

fn session(rack: &Rack, session: &str) -> Result<()> {
    rack.peer_with(&format!("interface: {UPLINK}"), session)
}

fn both_blocks(router: &dyn Router) -> Result<()> {
    for block in [BLOCK, BLOCK6] {
        let seen = router.wait_seen(block)?;
        let hop: IpAddr = seen.next_hop.parse().expect("an address");
        assert!(matches!(hop, IpAddr::V6(hop) if hop.is_unicast_link_local()), "{seen:?}");
    }
    Ok(())
}

fn learned(rack: &Rack, family: &str) -> Result<String> {
    ip_output(Some(&rack.node.netns), &format!("{family} route show proto {LEARNED}"))
}

fn wait_learned(rack: &Rack) -> Result<()> {
    let router = rack.leaf()?.address;
    for (family, prefix, via) in [("-4", THEIRS, "via inet6 "), ("-6", THEIRS6, "via ")] {
        let expected = format!("{prefix} {via}{router} dev {UPLINK} ");
        until(&format!("the node's kernel has {expected}"), DEADLINE, || {
            let there = learned(rack, family)?;
            if there.starts_with(&expected) { Ok(Some(())) } else { Err(Error::Unmet(there)) }
        })?;
    }
    Ok(())
}

/// The session is up, and everybody has everything.
fn all_there(rack: &Rack, router: &dyn Router) -> Result<()> {
    rack.wait_leaf("our session is up", |leaf| leaf.state == "Established")?;
    router.wait_established()?;
    both_blocks(router)?;
    wait_learned(rack)
}

fn both_ways(rack: &mut Rack) -> Result<()> {
    let router = frr(rack, &SETUP)?;
    all_there(rack, &*router)?;
    let leaf = rack.leaf()?;
    assert_eq!(leaf.interface.as_deref(), Some(UPLINK));
    let shown = rack.node.cli(&["bgp", "peers"])?;
    assert!(shown.contains(&format!("{}%{UPLINK}", leaf.address)), "{shown}");
    // Behind the router, in what it announces.
    for address in ["10.99.0.1/32", "fd00:99::1/128"] {
        rack.router.ip(&format!("address add {address} dev lo"))?;
    }
    for address in ["10.99.0.1", "fd00:99::1"] {
        until(&format!("the pod reaches {address}"), DEADLINE, || {
            let sent = run(rack.pod.netns.command("ping").args(["-c", "1", "-W", "1", address]));
            sent.map(Some)
        })?;
    }
    Ok(())
}

fn no_default_route(rack: &mut Rack) -> Result<()> {
    let setting = format!("net/ipv6/conf/{UPLINK}/accept_ra");
    let router = frr(rack, &SETUP)?;
    all_there(rack, &*router)?;
    let advertised = format!("/proc/sys/{setting}");
    assert_eq!(rack.node.netns.run(|| Ok(std::fs::read_to_string(&advertised)?))?.trim(), "0");
    // Asks for what makes a default router: when it is answered, the kernel has had it too.
    for _ in 0..2 {
        let before = advertisements(rack)?;
        until("the router advertises itself once more", DEADLINE, || {
            Ok((advertisements(rack)? > before).then_some(()))
        })?;
    }
    let default = ip_output(Some(&rack.node.netns), "-6 route show default")?;
    assert_eq!(default.trim(), "", "nobody is the default router");
    Ok(())
}

/// How many advertisements the node's kernel has taken from its links.
fn advertisements(rack: &Rack) -> Result<u64> {
    let counters = rack.node.netns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp6")?))?;
    let line = counters.lines().find(|line| line.starts_with("Icmp6InRouterAdvertisements"));
    Ok(line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).expect("a counter"))
}

fn password(rack: &mut Rack) -> Result<()> {
    let secret = rack.dir.join("secret");
    std::fs::write(&secret, "wrong-horse\n")?;
    let with = |passive: bool| {
        format!("{{passwordFile: {}, passive: {passive}, import: [{{action: Accept}}]}}", secret.display())
    };
    session(rack, &with(false))?;
    let router = frr(rack, &Setup { password: Some("correct-horse"), ..SETUP })?;
    rack.wait_leaf("the router is found, and our attempts fail", |leaf| {
        !leaf.address.is_unspecified()
            && leaf.last_error.as_deref().is_some_and(|error| error.contains("no answer to the attempt"))
    })?;
    assert!(!router.established()?, "with the wrong password");
    std::fs::write(&secret, "correct-horse\n")?;
    for passive in [true, false] {
        session(rack, &with(passive))?;
        all_there(rack, &*router)?;
    }
    Ok(())
}

fn comes_late(rack: &mut Rack) -> Result<()> {
    let missing = format!("no router has advertised itself on {UPLINK}");
    let says = |leaf: &BgpPeerInfo| leaf.last_error.as_deref().is_some_and(|e| e.starts_with(&missing));
    let leaf = rack.wait_leaf("nobody is there", says)?;
    assert!(leaf.address.is_unspecified() && leaf.state != "Established", "{leaf:?}");
    let router = frr(rack, &SETUP)?;
    all_there(rack, &*router)?;
    assert_eq!(rack.leaf()?.last_error, None);
    Ok(())
}

fn another_address(rack: &mut Rack) -> Result<()> {
    let router = frr(rack, &SETUP)?;
    all_there(rack, &*router)?;
    let before = rack.leaf()?.address;
    drop(router);
    rack.wait_leaf("we notice", |leaf| leaf.state != "Established")?;
    let link = format!("{before}/64 dev downlink");
    rack.router.ip(&format!("address del {link}"))?;
    rack.router.ip("address add fe80::99/64 dev downlink scope link")?;
    let router = frr(rack, &SETUP)?;
    rack.wait_leaf("the other address is found", |leaf| {
        leaf.address == "fe80::99".parse::<IpAddr>().unwrap()
    })?;
    all_there(rack, &*router)
}

fn killed(rack: &mut Rack) -> Result<()> {
    let router = frr(rack, &SETUP)?;
    all_there(rack, &*router)?;
    let before = [learned(rack, "-4")?, learned(rack, "-6")?];
    rack.node.kill_daemon()?;
    router.wait_lost()?;
    assert!(router.seen(BLOCK)?.is_some_and(|seen| seen.stale), "kept");
    assert_eq!([learned(rack, "-4")?, learned(rack, "-6")?], before);
    rack.node.start_daemon()?;
    all_there(rack, &*router)?;
    until("the routes are fresh again", DEADLINE, || {
        Ok(router.seen(BLOCK)?.filter(|seen| !seen.stale).map(drop))
    })
}

const WATCHED: &str = "{bfd: {}, import: [{action: Accept}]}";
const WATCHED_SETUP: Setup = Setup { hold_time: 90, bfd: Some(300), ..SETUP };

fn wait_watched(rack: &Rack, router: &dyn Router) -> Result<()> {
    all_there(rack, router)?;
    rack.wait_leaf("BFD is up", |leaf| leaf.bfd.as_ref().is_some_and(|bfd| bfd.state == "Up"))?;
    router.wait_watched("the router's BFD session is up", &|session| session.up).map(drop)
}

fn watched(rack: &mut Rack) -> Result<()> {
    let bfd = rack.bfd()?;
    session(rack, WATCHED)?;
    let router = frr(rack, &WATCHED_SETUP)?;
    wait_watched(rack, &*router)?;
    let before = router.watched()?;
    rack.node.kill_daemon()?;
    router.wait_lost()?;
    rack.node.start_daemon()?;
    wait_watched(rack, &*router)?;
    let log = std::fs::read_to_string(&bfd.log)?;
    assert_eq!(router.watched()?, before, "the router's BFD session has not changed its state: {log}");
    rack.cut()?;
    // The hold time is 90 s.
    let leaf = rack.wait_leaf("we have left the router", |leaf| leaf.state != "Established")?;
    assert_eq!(leaf.last_error.as_deref(), Some("BFD: the path to the peer is dead"));
    router.wait_lost()?;
    rack.mend()?;
    wait_watched(rack, &*router)
}

fn watched_elsewhere(rack: &mut Rack) -> Result<()> {
    let bfd = rack.bfd()?;
    session(rack, WATCHED)?;
    let router = frr(rack, &WATCHED_SETUP)?;
    wait_watched(rack, &*router)?;
    let before = rack.leaf()?.address;
    drop(router);
    rack.wait_leaf("we notice", |leaf| leaf.state != "Established")?;
    rack.router.ip(&format!("address del {before}/64 dev downlink"))?;
    rack.router.ip("address add fe80::99/64 dev downlink scope link")?;
    let router = frr(rack, &WATCHED_SETUP)?;
    wait_watched(rack, &*router)?;
    until("the session with the former address is over", DEADLINE, || {
        let peers: Vec<String> = bfd.client()?.list()?.iter().map(|s| s.key.peer.to_string()).collect();
        if peers == ["fe80::99"] { Ok(Some(())) } else { Err(Error::Unmet(format!("{peers:?}"))) }
    })
}

fn refused(rack: &mut Rack) -> Result<()> {
    for (spec, field) in [
        ("{sourceAddress: 172.31.9.2}", "spec.session.sourceAddress"),
        ("{multihopTTL: 9}", "spec.session.multihopTTL"),
    ] {
        session(rack, spec)?;
        until(&format!("the status names {field}"), DEADLINE, || {
            let status: Status = rack.node.get("/v1/status")?;
            let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
            let named = said.iter().any(|error| error.contains(field));
            if named { Ok(Some(())) } else { Err(Error::Unmet(format!("{said:?}"))) }
        })?;
    }
    Ok(())
}
