//! Numbered packets, 1,000 a second each way, between a pod and a host behind the router, over routes that BGP alone has made
//! at both ends, with BFD on: none is lost while the daemon is killed and comes back, is stopped and another build of it is
//! started, or the router's own BGP is killed (with the settings that this takes).
//!
//! `BULKHEAD_KILLS=27` makes it as many rounds for each router (a few otherwise): every fourth is an upgrade, the others are kills.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpPeerInfo, BgpRoutes};
use bulkhead_lab::bgp::{
    Kind, Setup, THEIRS, THEIRS6,
    rack::{BLOCK, BLOCK6, Rack},
    site::{DEADLINE, NODE, NODE_AS, NODE6, ROUTER, ROUTER_AS, ROUTER6},
};
use bulkhead_lab::{
    Bfd, Bird, Error, Netns, Result, enter,
    routes::{Route, RouteWatch, kernel_routes},
    traffic::{Sequence, SequenceReport},
    unmet, until,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    env,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

const SESSION: &str = "{bfd: {}, import: [{action: Accept}]}";
const EVERY: Duration = Duration::from_millis(1);
/// Hosts behind the router.
const HOST: &str = "10.99.0.1";
const HOST6: &str = "fd00:99::1";

type Test = fn(&mut Rack) -> Result<()>;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    // What is counted is packets, and the machine has few processors.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    let _inside = enter()?;
    let all: [(&str, Test); 4] = [
        ("no packet is lost through kills and upgrades of the daemon × BIRD 2", beside_bird),
        ("no packet is lost through kills and upgrades of the daemon × FRR", beside_frr),
        ("no packet is lost through kills of the router's BIRD, which returns with -R", bird_restarts),
        (
            "no packet is lost through kills of the router's bgpd of FRR, while zebra stays and gathers",
            frr_restarts,
        ),
    ];
    let trials = all.map(|(name, test)| {
        let place: String = name.chars().filter(char::is_ascii_uppercase).collect();
        Trial::test(name, move || {
            let mut rack = Rack::create(&format!("lossless{place}"), SESSION)?;
            let held = test(&mut rack);
            if held.is_err() {
                eprintln!("{}", rack.node.log_tail(40));
            }
            held.map_err(Failed::from)
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit()
}

fn rounds() -> usize {
    env::var("BULKHEAD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

/// Its restart needs `graceful restart` in the kernel protocols too, and routes that stay there; BFD's end with the process is
/// no loss of the path, for BIRD does not set the C bit.
fn bird(rack: &Rack, start: fn(&Netns, &Path, &str) -> Result<Bird>) -> Result<Bird> {
    let family = |family: &str, prefix: &str| {
        format!(
            "protocol kernel {{ {family} {{ export where source = RTS_BGP; }}; persist; graceful restart; }}\n\
             protocol static {{ {family}; route {prefix} unreachable; }}\n"
        )
    };
    let channel = |family: &str, hop: &str| {
        format!("{family} {{ import all; export where source = RTS_STATIC; next hop address {hop}; }};")
    };
    let configuration = format!(
        "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n\
         protocol bfd {{ interface \"*\" {{ interval 300 ms; multiplier 3; }}; }}\n{}{}\
         protocol bgp node {{ local {ROUTER} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; bfd on;\n\
         graceful restart on; connect delay time 1; connect retry time 2; error wait time 1, 2;\n{} {} }}\n",
        family("ipv4", THEIRS),
        family("ipv6", THEIRS6),
        channel("ipv4", ROUTER),
        channel("ipv6", ROUTER6),
    );
    start(&rack.router, &rack.dir, &configuration)
}

/// Both ends' kernels have what the other has announced.
fn both_have_routes(rack: &Rack) -> Result<()> {
    let has = |netns, wanted: [(&str, &str); 2]| {
        let wanted: Vec<String> = wanted.iter().map(|(prefix, via)| format!("{prefix} via {via}")).collect();
        until(&format!("a kernel has {wanted:?}"), DEADLINE, || {
            let shown = |r: Route| Some(format!("{} via {}", r.prefix, r.via?));
            let there: Vec<String> = kernel_routes(netns, "all")?.into_iter().filter_map(shown).collect();
            let all = wanted.iter().all(|route| there.contains(route));
            if all { Ok(Some(())) } else { Err(Error::Unmet(format!("{there:?}"))) }
        })
    };
    has(&rack.node.netns, [(THEIRS, ROUTER), (THEIRS6, ROUTER6)])?;
    has(&rack.router, [(BLOCK, NODE), (BLOCK6, NODE6)])
}

/// Between pod and host both ways, in both IP versions.
fn traffic(rack: &Rack) -> Result<Vec<Sequence>> {
    for address in [format!("{HOST}/32"), format!("{HOST6}/128")] {
        rack.router.ip(&format!("address add {address} dev lo"))?;
    }
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    let (pod, router) = (&rack.pod, &*rack.router);
    let out = [HOST, HOST6].map(|host| (&pod.netns, router, at(host.parse().unwrap(), 7000)));
    let back = [pod.v4.into(), pod.v6.into()].map(|address| (router, &pod.netns, at(address, 7000)));
    let ends: Vec<_> = out.into_iter().chain(back).collect();
    // The first packet of each would wait for a neighbour's address, and few may wait for one.
    for &(from, to, address) in &ends {
        let first = Sequence::start(from, to, address, Duration::from_millis(50))?;
        until(&format!("{address} is reached"), DEADLINE, || Ok((first.heard() > 2).then_some(())))?;
        first.finish()?;
    }
    ends.into_iter().map(|(from, to, address)| Sequence::start(from, to, address, EVERY)).collect()
}

fn all_arrived(traffic: Vec<Sequence>) -> Result<()> {
    let reports: Vec<SequenceReport> = traffic.into_iter().map(Sequence::finish).collect::<Result<_>>()?;
    println!("{reports:?}");
    let all = reports.iter().all(|report| report.sent > 0 && report.lost == 0);
    if all { Ok(()) } else { unmet(format!("packets were lost: {reports:?}")) }
}

/// Of what the watches have heard since they began.
fn nothing_left(watches: [RouteWatch; 2]) -> Result<()> {
    let [node, router] = watches.map(RouteWatch::stop);
    let (node, router) = (node?, router?);
    if node.is_empty() && router.is_empty() {
        return Ok(());
    }
    unmet(format!("routes left a kernel, of the node {node:?}, of the router {router:?}"))
}

fn is_up(leaf: &BgpPeerInfo) -> bool {
    let watched = leaf.bfd.as_ref().is_some_and(|bfd| bfd.state == "Up");
    leaf.state == "Established" && leaf.received == 2 && watched
}

/// How often a session of BFD has left Up.
fn falls(bfd: &Bfd) -> Result<usize> {
    Ok(std::fs::read_to_string(&bfd.log)?.matches("from=Up").count())
}

/// Kills and stops of the daemon; `fresh`: the router's restart with us is over.
fn rounds_of_the_daemon(rack: &mut Rack, bfd: &Bfd, fresh: &dyn Fn() -> Result<bool>) -> Result<()> {
    both_have_routes(rack)?;
    // FRR's BFD comes up twice at its start.
    rack.wait_leaf("BFD is up", is_up)?;
    let fallen = falls(bfd)?;
    let traffic = traffic(rack)?;
    let watches = [RouteWatch::start(&rack.node.netns)?, RouteWatch::start(&rack.router)?];
    for round in 1..=rounds() {
        if round % 4 == 0 {
            rack.node.stop_daemon()?;
            rack.node.upgrade()?;
        } else {
            rack.node.kill_daemon()?;
        }
        rack.node.start_daemon()?;
        rack.wait_leaf("the session is back", is_up)?;
        until("the router holds nothing stale", DEADLINE, || Ok(fresh()?.then_some(())))?;
    }
    nothing_left(watches).and(all_arrived(traffic))?;
    assert_eq!(falls(bfd)?, fallen, "BFD was up all the time: {}", std::fs::read_to_string(&bfd.log)?);
    Ok(())
}

fn beside_bird(rack: &mut Rack) -> Result<()> {
    let bfd = rack.bfd()?;
    let router = bird(rack, Bird::start)?;
    rounds_of_the_daemon(rack, &bfd, &|| router.restarts_over(&["node"]))
}

fn beside_frr(rack: &mut Rack) -> Result<()> {
    let bfd = rack.bfd()?;
    let router = Kind::Frr.start_in(
        &rack.router,
        &rack.dir,
        &Setup { bfd: Some(300), hold_time: 90, ..Setup::DEFAULT },
    )?;
    let fresh = || {
        let is = |prefix: &str| Ok::<_, Error>(router.seen(prefix)?.is_some_and(|seen| !seen.stale));
        Ok(is(BLOCK)? && is(BLOCK6)?)
    };
    rounds_of_the_daemon(rack, &bfd, &fresh)
}

fn bird_restarts(rack: &mut Rack) -> Result<()> {
    let _bfd = rack.bfd()?;
    let mut router = Some(bird(rack, Bird::start)?);
    rack.wait_leaf("BFD is up", is_up)?;
    rounds_of_the_router(rack, || {
        // Not before the former process is gone.
        drop(router.take());
        router = Some(bird(rack, Bird::recover)?);
        Ok(())
    })
}

/// Without BFD: FRR 8.4's bfdd tells us down when bgpd goes, and that it does not share its fate. And with time for zebra to gather: else
/// it takes the old IPv6 routes away some 100 ms before it has the new ones.
fn frr_restarts(rack: &mut Rack) -> Result<()> {
    rack.peer("{import: [{action: Accept}]}")?;
    let setup = Setup { gathering: Some(200), ..Setup::DEFAULT };
    let mut router = Kind::Frr.start_in(&rack.router, &rack.dir, &setup)?;
    rounds_of_the_router(rack, || router.restart())
}

fn rounds_of_the_router(rack: &Rack, mut restart: impl FnMut() -> Result<()>) -> Result<()> {
    both_have_routes(rack)?;
    let traffic = traffic(rack)?;
    let watches = [RouteWatch::start(&rack.node.netns)?, RouteWatch::start(&rack.router)?];
    for _ in 0..rounds().div_ceil(2) {
        // So that the next one is known by its age.
        rack.wait_leaf("the session is old", |leaf| leaf.since_seconds >= 2)?;
        let begin = Instant::now();
        restart()?;
        until("the router's routes are kept, and then fresh again", DEADLINE, || {
            let told: BgpRoutes = rack.ask(&["bgp", "received"])?;
            let fresh = told.routes.len() == 2 && told.routes.iter().all(|route| !route.stale);
            let leaf = rack.leaf()?;
            let watched = leaf.bfd.as_ref().is_none_or(|bfd| bfd.state == "Up");
            let new = leaf.state == "Established" && leaf.since_seconds <= begin.elapsed().as_secs();
            if fresh && watched && new {
                Ok(Some(()))
            } else {
                Err(Error::Unmet(format!("{told:?}, {leaf:?}")))
            }
        })?;
        both_have_routes(rack)?;
    }
    let left = nothing_left(watches);
    all_arrived(traffic).map_err(|error| Error::Unmet(format!("{error}; {left:?}"))).and(left)
}
