//! Whole daemons and `bulkhead-bfd` against routers that watch the path too: who leaves whom, and who does not.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

#[path = "bgp_bfd/multihop.rs"]
mod multihop;

use bulkhead_api::messages::{BgpPeerInfo, Status};
use bulkhead_bgp::bfd::{Key, Settings, control::Wanted};
use bulkhead_lab::bgp::{
    Kind, Router, Setup,
    rack::{BLOCK, BLOCK6, Rack, trial},
    site::{DEADLINE, NODE},
};
use bulkhead_lab::{Bfd, Error, Result, enter, unmet, until};
use libtest_mimic::Arguments;
use std::{fs, time::Duration};

/// The hold time is 90 s: what ends a session here earlier is BFD.
const SESSION: &str = "{bfd: {}}";
const SETUP: Setup = Setup { hold_time: 90, bfd: Some(300), ..Setup::DEFAULT };
/// A router's BFD is an ordinary process: on a busy machine it may miss three of these, which is no matter where all is left anyway.
const FAST: &str = "{bfd: {minTransmitMilliseconds: 50, minReceiveMilliseconds: 50}}";
const FAST_SETUP: Setup = Setup { bfd: Some(50), ..SETUP };

type Test = fn(&mut Rack) -> Result<()>;
type OfEach = fn(&mut Rack, Kind) -> Result<()>;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let mut trials = Vec::new();
    let each: [(&str, OfEach); 6] = [
        ("a link that dies in silence is left by both ends, and taken again", silent_death),
        (
            "several hops away, a killed daemon is waited for, and a path that dies in silence is left by both ends",
            multihop::silent_death,
        ),
        ("a killed daemon's sessions stay up, and the router keeps the routes", killed),
        (
            "what says whom to peer with is gone for a while, and neither BFD nor the routes end",
            nobody_for_a_while,
        ),
        ("other intervals change nothing for either session", changed_live),
        ("a router without BFD is spoken with, and its state is told", not_answering),
    ];
    for (name, test) in each {
        for kind in [Kind::Bird, Kind::Frr] {
            trials.push(trial(format!("{name} × {kind}"), SESSION, move |rack| test(rack, kind)));
        }
    }
    let others: [(&str, Test); 6] = [
        (
            "a router out of a range is watched once it has connected, and while the daemon restarts",
            of_a_range,
        ),
        ("several hops away, BFD is believed from no farther than the router may be", multihop::too_far),
        ("a router that stops BFD on purpose is not left", stopped_on_purpose),
        ("BFD that is asked for no more is no end of BGP", switched_off),
        ("BGP goes on without bulkhead-bfd, which is told, and is asked again when it is back", process_gone),
        ("what cannot be watched is refused by its field", refused),
    ];
    trials.extend(others.map(|(name, test)| trial(name, SESSION, test)));
    libtest_mimic::run(&arguments, trials).exit()
}

fn bfd_state(leaf: &BgpPeerInfo) -> &str {
    leaf.bfd.as_ref().map_or("not asked for", |bfd| bfd.state.as_str())
}

fn is_up(leaf: &BgpPeerInfo) -> bool {
    leaf.state == "Established" && bfd_state(leaf) == "Up"
}

/// Both ends' sessions of both kinds are up, and the router has our routes.
fn all_up(rack: &Rack, router: &dyn Router) -> Result<()> {
    rack.wait_leaf("both sessions are up", is_up)?;
    router.wait_watched("the router's BFD session is up", &|session| session.up)?;
    router.wait_established()?;
    for block in [BLOCK, BLOCK6] {
        router.wait_seen(block)?;
    }
    Ok(())
}

fn silent_death(rack: &mut Rack, kind: Kind) -> Result<()> {
    let _bfd = rack.bfd()?;
    rack.peer(&FAST.replace("{bfd", "{import: [{action: Accept}], bfd"))?;
    let router = kind.start_in(&rack.router, &rack.dir, &FAST_SETUP)?;
    all_up(rack, &*router)?;
    rack.wait_leaf("the session has stood", |leaf| leaf.received == 2 && leaf.since_seconds >= 6)?;
    rack.cut()?;
    let leaf = rack.wait_leaf("we have left the router", |leaf| leaf.state != "Established")?;
    assert_eq!(leaf.last_error.as_deref(), Some("BFD: the path to the peer is dead"));
    let bfd = rack.wait_leaf("BFD is down", |leaf| bfd_state(leaf) == "Down")?.bfd;
    assert_eq!(bfd.and_then(|bfd| bfd.reason).as_deref(), Some("control detection time expired"));
    // Neither router says that its BFD is a process of its own, and both restart gracefully: it is no restart all the same.
    rack.wait_leaf("nothing leads there any more", |leaf| leaf.received == 0)?;
    router.wait_lost()?;
    rack.mend()?;
    all_up(rack, &*router)
}

fn killed(rack: &mut Rack, kind: Kind) -> Result<()> {
    let bfd = rack.bfd()?;
    let router = kind.start_in(&rack.router, &rack.dir, &SETUP)?;
    all_up(rack, &*router)?;
    let before = router.watched()?;
    // FRR's BFD may be up, down and up again at its start.
    let fallen = falls(&bfd)?;
    for _ in 0..3 {
        rack.node.kill_daemon()?;
        router.wait_lost()?;
        assert!(router.seen(BLOCK)?.is_some_and(|seen| seen.stale), "kept");
        rack.node.start_daemon()?;
        all_up(rack, &*router)?;
        until("the routes are fresh again", DEADLINE, || {
            Ok(router.seen(BLOCK)?.filter(|seen| !seen.stale).map(drop))
        })?;
    }
    let log = fs::read_to_string(&bfd.log)?;
    assert_eq!(router.watched()?, before, "the router's BFD session has not changed its state: {log}");
    assert_eq!(falls(&bfd)?, fallen, "{log}");
    Ok(())
}

/// An end of BFD is a dead path to these routers: they would drop what they keep.
fn nobody_for_a_while(rack: &mut Rack, kind: Kind) -> Result<()> {
    let bfd = rack.bfd()?;
    let router = kind.start_in(&rack.router, &rack.dir, &SETUP)?;
    all_up(rack, &*router)?;
    let (before, fallen) = (router.watched()?, falls(&bfd)?);
    fs::remove_file(rack.dir.join("objects/bgp.yaml"))?;
    router.wait_lost()?;
    // Whoever looks after peers now and then has looked.
    std::thread::sleep(Duration::from_secs(20));
    assert!(router.seen(BLOCK)?.is_some_and(|seen| seen.stale), "kept");
    rack.peer(SESSION)?;
    all_up(rack, &*router)?;
    let log = fs::read_to_string(&bfd.log)?;
    assert_eq!((router.watched()?, falls(&bfd)?), (before, fallen), "{log}");
    Ok(())
}

/// How often a session of BFD has left Up.
fn falls(bfd: &Bfd) -> Result<usize> {
    Ok(fs::read_to_string(&bfd.log)?.matches("from=Up").count())
}

fn changed_live(rack: &mut Rack, kind: Kind) -> Result<()> {
    let _bfd = rack.bfd()?;
    let router = kind.start_in(&rack.router, &rack.dir, &SETUP)?;
    all_up(rack, &*router)?;
    let before = router.wait_watched("the router waits for three of ours", &|s| s.detection == 900)?;
    let ended = sessions_ended(rack);
    rack.peer("{bfd: {minTransmitMilliseconds: 400, minReceiveMilliseconds: 400, multiplier: 5}}")?;
    let after = router.wait_watched("the router waits for five of ours", &|s| s.detection == 2000)?;
    assert_eq!((after.up, after.history), (true, before.history), "one BFD session all the time");
    rack.wait_leaf("ours are up", is_up)?;
    assert_eq!(sessions_ended(rack), ended, "{}", rack.node.log_tail(1000));
    Ok(())
}

fn not_answering(rack: &mut Rack, kind: Kind) -> Result<()> {
    let _bfd = rack.bfd()?;
    let router = kind.start_in(&rack.router, &rack.dir, &Setup { bfd: None, ..SETUP })?;
    router.wait_established()?;
    let leaf = rack.wait_leaf("BFD is asked for", |leaf| bfd_state(leaf) == "Down")?;
    assert_eq!(leaf.bfd.and_then(|bfd| bfd.reason).as_deref(), Some("the router has not answered yet"));
    let shown = rack.node.cli(&["bgp", "peers"])?;
    assert!(shown.contains("Established") && shown.contains("the router has not answered yet"), "{shown}");
    Ok(())
}

/// Of a range the router alone dials. FRR takes up to a minute for its next attempt after a few in vain.
fn of_a_range(rack: &mut Rack) -> Result<()> {
    let bfd = rack.bfd()?;
    rack.peer_with("peerRange: 172.31.9.0/28", SESSION)?;
    until("the former peer is gone", DEADLINE, || Ok(rack.leaf().is_err().then_some(())))?;
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &SETUP)?;
    all_up(rack, &*router)?;
    // A session that BIRD has just taken up falls by its own word when BGP's is lost within a third of a second. Where BFD falls, BGP's
    // begins anew.
    let young = rack.leaf()?.since_seconds;
    rack.wait_leaf("both have stood", |leaf| is_up(leaf) && leaf.since_seconds >= young + 2)?;
    let (before, fallen) = (router.watched()?, falls(&bfd)?);
    rack.node.kill_daemon()?;
    router.wait_lost()?;
    rack.node.start_daemon()?;
    all_up(rack, &*router)?;
    let log = fs::read_to_string(&bfd.log)?;
    assert_eq!((router.watched()?, falls(&bfd)?), (before, fallen), "{log}");
    Ok(())
}

/// The routers here take BFD that is stopped on purpose for a dead path, and their own stop says so neither: the router's BFD
/// is one of ours, and its BGP does not know of it.
fn watched_by_one_of_ours(rack: &Rack) -> Result<(Bfd, Box<dyn Router>)> {
    let theirs = Bfd::start(&rack.router, &rack.dir.join("theirs"))?;
    theirs.client()?.configure(&[their_wish()])?;
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup { bfd: None, ..SETUP })?;
    router.wait_established()?;
    Ok((theirs, router))
}

fn their_wish() -> Wanted {
    let key = Key { peer: NODE.parse().unwrap(), local: None, ifindex: None, multihop: None };
    Wanted::new(key, Settings::DEFAULT)
}

fn stopped_on_purpose(rack: &mut Rack) -> Result<()> {
    let _bfd = rack.bfd()?;
    let (theirs, router) = watched_by_one_of_ours(rack)?;
    rack.wait_leaf("both sessions are up", is_up)?;
    theirs.client()?.configure(&[])?;
    let leaf = rack.wait_leaf("BFD is down", |leaf| bfd_state(leaf) == "Down")?;
    let reason = leaf.bfd.and_then(|bfd| bfd.reason);
    assert_eq!(reason.as_deref(), Some("the router has stopped BFD on purpose"));
    theirs.client()?.configure(&[their_wish()])?;
    // By then all that BGP would have had to say to the end of its session has been said.
    rack.wait_leaf("BFD is up again", is_up)?;
    assert!(router.established()?);
    one_session(rack)
}

fn switched_off(rack: &mut Rack) -> Result<()> {
    let bfd = rack.bfd()?;
    let (_theirs, router) = watched_by_one_of_ours(rack)?;
    rack.wait_leaf("both sessions are up", is_up)?;
    rack.peer("{}")?;
    rack.wait_leaf("nobody is asked", |leaf| leaf.bfd.is_none())?;
    until("it is over", DEADLINE, || Ok(bfd.client()?.list()?.is_empty().then_some(())))?;
    rack.peer(SESSION)?;
    rack.wait_leaf("BFD is up again", is_up)?;
    assert!(router.established()?);
    one_session(rack)
}

fn process_gone(rack: &mut Rack) -> Result<()> {
    let (_theirs, router) = watched_by_one_of_ours(rack)?;
    told_missing(rack)?;
    let mut bfd = rack.bfd()?;
    rack.wait_leaf("both sessions are up", is_up)?;
    bfd.stop()?;
    told_missing(rack)?;
    drop(rack.bfd()?);
    told_missing(rack)?;
    let _bfd = rack.bfd()?;
    rack.wait_leaf("both sessions are up", is_up)?;
    let status: Status = rack.node.get("/v1/status")?;
    assert!(status.errors.is_empty(), "{:?}", status.errors);
    assert!(router.established()?);
    one_session(rack)
}

fn told_missing(rack: &Rack) -> Result<()> {
    rack.wait_leaf("BFD is not known", |leaf| bfd_state(leaf) == "Unknown")?;
    until_refused(rack, "bulkhead-bfd")
}

fn until_refused(rack: &Rack, words: &str) -> Result<()> {
    until(&format!("the status names {words}"), DEADLINE, || {
        let status: Status = rack.node.get("/v1/status")?;
        let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
        let named = said.iter().any(|error| error.contains(words));
        if named { Ok(Some(())) } else { Err(Error::Unmet(format!("{said:?}"))) }
    })
}

fn sessions_ended(rack: &Rack) -> usize {
    rack.node.log_tail(1000).matches("session down").count()
}

fn one_session(rack: &Rack) -> Result<()> {
    let log = rack.node.log_tail(1000);
    if sessions_ended(rack) > 0 { unmet(format!("a BGP session ended: {log}")) } else { Ok(()) }
}

fn refused(rack: &mut Rack) -> Result<()> {
    for (session, words) in [
        ("{bfd: {multiplier: 0}}", "spec.session.bfd.multiplier"),
        ("{bfd: {minTransmitMilliseconds: 9}}", "spec.session.bfd.minTransmitMilliseconds"),
    ] {
        rack.peer(session)?;
        until_refused(rack, words)?;
        assert_ne!(bfd_state(&rack.leaf()?), "not asked for", "what was in force stays");
    }
    Ok(())
}
