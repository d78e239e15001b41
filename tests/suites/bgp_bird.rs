//! The speaker against a real BIRD 2, each in a namespace of its own. What counts is the router's view: its table and its
//! kernel's routes.
//!
//! ```text
//!   node 172.31.9.2, fd00:31:9::2 ──────── 172.31.9.1, fd00:31:9::1 router
//!   speaker, AS 65010                                  BIRD, AS 65020
//! ```
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

#[path = "bgp_bird/configuration.rs"]
mod configuration;

use bulkhead_bgp::fsm::StateName;
use bulkhead_bgp::{Family, PeerConfig, Remote, RouteView, SpeakerConfig, Ttl};
use bulkhead_lab::bgp::site::{
    DEADLINE, Monitor, NODE, NODE_AS, NODE6, ROUTER, ROUTER_AS, ROUTER6, Role, Site, router, routes,
    speaker_config, speaker_process,
};
use bulkhead_lab::{Bird, Error, Netns, Result, enter, link::End, until, veth};
use configuration::{BGP, Bgp};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    collections::BTreeMap,
    env, fs,
    net::IpAddr,
    time::{Duration, Instant},
};

fn main() -> Result<()> {
    if let Some(role) = env::args().nth(1).and_then(|role| role.strip_prefix("speaker:").map(str::to_owned)) {
        return speaker_process(&role);
    }
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let trial = |name: &str, f: fn(&Site) -> Result<()>| {
        let title = name.to_owned();
        Trial::test(name, move || Site::create(&title).and_then(|site| f(&site)).map_err(Failed::from))
    };
    let trials = vec![
        trial("routes of both IP versions stand in the router over one IPv4 session", both_families),
        trial("an IPv6 session carries both IP versions", over_ipv6),
        trial("a session that only the router can open comes up", router_dials),
        trial("a session inside one AS carries the routes", internal),
        trial("what is withdrawn leaves the router, and nothing else does", withdrawal),
        trial("a route refresh is answered", refresh),
        trial("a killed speaker's routes stay, also through its return", killed_and_back),
        trial("a speaker that returns with less loses just that", back_with_less),
        trial("a stopped speaker's routes stay until the restart time is over", stopped),
        trial("a wrong AS is told in words, whichever side has it wrong", wrong_as),
        trial("a session comes back by itself when the router restarts", router_restarts),
        trial("a hold time of three seconds does not flap", short_hold_time),
        trial("a router two hops away is spoken with as far as the TTL reaches", multihop),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

const BLOCK: &str = "10.64.0.0/26 via 172.31.9.2";
const BLOCK6: &str = "fd00:64::/122 via fd00:31:9::2";
const OTHER: &str = "10.65.0.0/26 via 172.31.9.2";

fn both_families(site: &Site) -> Result<()> {
    let bird = BGP.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    bird.wait_established(&["node"], DEADLINE)?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    for table in ["master4", "master6"] {
        let routes = bird.birdc(&format!("show route all protocol node table {table}"))?;
        for line in ["BGP.community: (65010,100)", "BGP.as_path: 65010", "BGP.origin: IGP"] {
            assert!(routes.contains(line), "{line} in {routes}");
        }
    }
    let received: BTreeMap<String, RouteView> = until("both routes came", DEADLINE, || {
        let received = node.received();
        Ok((received.len() == 2).then(|| received.into_iter().map(|r| (r.prefix.to_string(), r)).collect()))
    })?;
    let ipv4 = &received["10.99.0.0/16"];
    assert_eq!((ipv4.next_hop, &ipv4.as_path), (ROUTER.parse::<IpAddr>().unwrap(), &vec![ROUTER_AS]));
    assert_eq!(ipv4.communities, [(ROUTER_AS << 16) | 7]);
    assert_eq!(received["fd00:99::/32"].next_hop, ROUTER6.parse::<IpAddr>().unwrap());
    let status = node.peer();
    assert_eq!((status.advertised, status.received, status.graceful_restart), (2, 2, true), "{status:?}");
    assert_eq!((status.families, status.last_error), (Family::ALL.to_vec(), None));
    Ok(())
}

fn over_ipv6(site: &Site) -> Result<()> {
    let bird = Bgp { transport: [ROUTER6, NODE6], ..BGP }.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    let remote = Remote::Address(ROUTER6.parse().unwrap());
    let local_address = Some(NODE6.parse().unwrap());
    let no_hops = PeerConfig { remote, local_address, next_hop_ipv6: None, ..router() };
    node.speaker.set_peers(vec![no_hops.clone()]);
    bird.wait_established(&["node"], DEADLINE)?;
    site.wait_kernel(&[BLOCK6])?;
    let told = node.peer().last_error.unwrap_or_default();
    assert!(told.starts_with("routes of ipv4-unicast are not announced"), "{told}");
    node.speaker.set_peers(vec![PeerConfig { next_hop_ipv4: Some(NODE.parse().unwrap()), ..no_hops }]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    assert_eq!(node.peer().last_error, None);
    Ok(())
}

fn router_dials(site: &Site) -> Result<()> {
    let _bird = BGP.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    // Nobody listens there.
    node.speaker.set_peers(vec![PeerConfig { port: 7, ..router() }]);
    site.wait_kernel(&[BLOCK, BLOCK6])
}

fn internal(site: &Site) -> Result<()> {
    let bird = Bgp { router_as: NODE_AS, ..BGP }.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![PeerConfig { asn: NODE_AS, ..router() }]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let routes = bird.birdc("show route all protocol node table master4")?;
    assert!(routes.contains("BGP.local_pref: 100"), "{routes}");
    Ok(())
}

fn withdrawal(site: &Site) -> Result<()> {
    let bird = BGP.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "10.65.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    site.wait_kernel(&[BLOCK, OTHER, BLOCK6])?;
    let mut monitor = Monitor::start(site)?;
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let deleted = monitor.deleted()?;
    assert!(deleted.iter().all(|line| line.contains("10.65.0.0/26")), "{deleted:?}");
    node.withdraw_all();
    site.wait_kernel(&[])?;
    assert!(bird.established("node")?, "withdrawal is not the end of the session");
    Ok(())
}

fn refresh(site: &Site) -> Result<()> {
    let bird = Bgp { import: "where net.len < 26", ..BGP }.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    bird.wait_established(&["node"], DEADLINE)?;
    until("both were sent", DEADLINE, || Ok((node.peer().advertised == 2).then_some(())))?;
    site.wait_kernel(&[])?;
    let since = node.peer().since;
    // BIRD did not keep what its filter refused: it asks for it again.
    fs::write(site.dir.join("bird.conf"), BGP.configuration())?;
    bird.birdc("configure")?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    assert!(node.peer().since >= since, "the session went on");
    Ok(())
}

fn killed_and_back(site: &Site) -> Result<()> {
    let bird = BGP.start(site)?;
    let complete = site.dir.join("complete");
    let role = |restarting| Role {
        restarting,
        prefixes: &["10.64.0.0/26", "fd00:64::/122"],
        complete_when: complete.clone(),
    };
    let mut speaker = site.speaker_process(&role(false))?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let mut monitor = Monitor::start(site)?;
    for _ in 0..3 {
        speaker.kill()?;
        speaker.wait()?;
        until("BIRD lost the session", DEADLINE, || Ok((!bird.established("node")?).then_some(())))?;
        site.wait_kernel(&[BLOCK, BLOCK6])?;
        speaker = site.speaker_process(&role(true))?;
        bird.wait_established(&["node"], DEADLINE)?;
        assert!(!restart_is_over(&bird)?, "End-of-RIB waits for the set to be complete");
        fs::write(&complete, "")?;
        until("BIRD's restart is over", DEADLINE, || Ok(restart_is_over(&bird)?.then_some(())))?;
        site.wait_kernel(&[BLOCK, BLOCK6])?;
        fs::remove_file(&complete)?;
    }
    speaker.kill()?;
    speaker.wait()?;
    assert_eq!(monitor.deleted()?, [""; 0], "the routes never left");
    Ok(())
}

/// BIRD holds no stale routes of ours any more.
fn restart_is_over(bird: &Bird) -> Result<bool> {
    Ok(!bird.birdc("show protocols all node")?.contains("Neighbor graceful restart active"))
}

fn back_with_less(site: &Site) -> Result<()> {
    let bird = BGP.start(site)?;
    let complete = site.dir.join("complete");
    let complete_when = complete.clone();
    let role = Role {
        restarting: false,
        prefixes: &["10.64.0.0/26", "10.65.0.0/26", "fd00:64::/122"],
        complete_when,
    };
    let mut speaker = site.speaker_process(&role)?;
    site.wait_kernel(&[BLOCK, OTHER, BLOCK6])?;
    let mut monitor = Monitor::start(site)?;
    speaker.kill()?;
    speaker.wait()?;
    let role = Role {
        restarting: true,
        prefixes: &["10.64.0.0/26", "fd00:64::/122"],
        complete_when: complete.clone(),
    };
    let mut speaker = site.speaker_process(&role)?;
    bird.wait_established(&["node"], DEADLINE)?;
    until("the kept routes came again", DEADLINE, || {
        let protocol = bird.birdc("show protocols all node")?;
        Ok((imported(&protocol) >= 5).then_some(()))
    })?;
    assert!(!restart_is_over(&bird)?, "End-of-RIB waits for the set to be complete");
    site.wait_kernel(&[BLOCK, OTHER, BLOCK6])?;
    fs::write(&complete, "")?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let deleted = monitor.deleted()?;
    assert!(deleted.len() == 1 && deleted[0].contains("10.65.0.0/26"), "{deleted:?}");
    speaker.kill()?;
    speaker.wait()?;
    Ok(())
}

/// Updates that BIRD received on all channels of the session.
fn imported(protocol: &str) -> u32 {
    let counters = protocol.lines().filter_map(|line| line.trim().strip_prefix("Import updates:"));
    counters.filter_map(|counters| counters.split_whitespace().next()?.parse::<u32>().ok()).sum()
}

fn stopped(site: &Site) -> Result<()> {
    let bird = BGP.start(site)?;
    let node = site.speaker(SpeakerConfig { restart_time: 4, ..speaker_config(false) });
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    node.stop();
    until("BIRD lost the session", DEADLINE, || Ok((!bird.established("node")?).then_some(())))?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    assert!(!restart_is_over(&bird)?, "BIRD waits for us");
    site.wait_kernel(&[])
}

fn wrong_as(site: &Site) -> Result<()> {
    let _bird = BGP.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![PeerConfig { asn: 65099, ..router() }]);
    let told = |start: &str| {
        until(&format!("the error begins with {start:?}"), DEADLINE, || {
            let error = node.peer().last_error.unwrap_or_default();
            if error.starts_with(start) { Ok(Some(())) } else { Err(Error::Unmet(error)) }
        })
    };
    told("the peer is AS 65020, but AS 65099 is configured")?;
    node.speaker.set_peers(Vec::new());
    drop(_bird);
    let _bird = Bgp { node_as: 65088, ..BGP }.start(site)?;
    node.speaker.set_peers(vec![router()]);
    told(
        "the peer sent NOTIFICATION 2/2: OPEN message error, bad peer AS: it expects another AS number of us",
    )
}

fn router_restarts(site: &Site) -> Result<()> {
    let bird = BGP.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    drop(bird);
    until("we notice", DEADLINE, || Ok((node.peer().state != StateName::Established).then_some(())))?;
    for route in ["10.64.0.0/26", "fd00:64::/122"] {
        site.router.ip(&format!("route del {route}"))?;
    }
    let _bird = BGP.start(site)?;
    node.wait_established()?;
    site.wait_kernel(&[BLOCK, BLOCK6])
}

fn short_hold_time(site: &Site) -> Result<()> {
    let bird = Bgp { hold_time: 3, ..BGP }.start(site)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![PeerConfig { hold_time: 3, ..router() }]);
    bird.wait_established(&["node"], DEADLINE)?;
    node.wait_established()?;
    let start = Instant::now();
    // More than two hold times.
    until("seven seconds have passed", DEADLINE, || {
        let status = node.peer();
        assert_eq!(status.state, StateName::Established, "{status:?}");
        Ok((status.since >= Duration::from_secs(7)).then_some(()))
    })?;
    assert!(start.elapsed() >= Duration::from_secs(6), "one session all the time");
    assert!(bird.established("node")?);
    Ok(())
}

/// Behind the router, which only hands on.
fn multihop(site: &Site) -> Result<()> {
    const FAR: &str = "172.31.10.1";
    let far = Netns::create("far-multihop")?;
    veth(
        End { netns: &site.router, name: "far", addresses: &["172.31.10.2/24"] },
        End { netns: &far, name: "near", addresses: &["172.31.10.1/24"] },
    )?;
    site.router.sysctl("net/ipv4/ip_forward", "1")?;
    site.node.ip(&format!("route add 172.31.10.0/24 via {ROUTER}"))?;
    far.ip("route add 172.31.9.0/24 via 172.31.10.2")?;
    let start = |security: &str| {
        let configuration = format!(
            "log stderr all;\nrouter id {FAR};\nprotocol device {{}}\n\
             protocol bgp node {{ local {FAR} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; multihop 2; {security}\n\
             connect delay time 1; connect retry time 1; error wait time 1, 1; passive on;\n\
             ipv4 {{ import all; export none; }}; }}\n"
        );
        Bird::start(&far, &site.dir.join("far"), &configuration)
    };
    let peer = |ttl: Ttl| PeerConfig { remote: Remote::Address(FAR.parse().unwrap()), ttl, ..router() };
    for (security, ttl) in [("", Ttl::Fixed(2)), ("ttl security on;", Ttl::Security(2))] {
        let bird = start(security)?;
        let node = site.speaker(speaker_config(false));
        node.speaker.announce(routes(&["10.64.0.0/26"]));
        node.speaker.set_peers(vec![peer(ttl)]);
        bird.wait_established(&["node"], DEADLINE)?;
        until("the router has the block", DEADLINE, || {
            let table = bird.birdc("show route 10.64.0.0/26 all").unwrap_or_default();
            Ok(table.contains(&format!("BGP.next_hop: {NODE}")).then_some(()))
        })?;
        // Its packets end half way.
        node.speaker.set_peers(vec![peer(Ttl::Fixed(1))]);
        node.wait_peer("an attempt has failed", |peer| {
            peer.state != StateName::Established && peer.last_error.is_some()
        })?;
        until("the router's session is over", DEADLINE, || Ok((!bird.established("node")?).then_some(())))?;
        node.stop();
    }
    Ok(())
}
