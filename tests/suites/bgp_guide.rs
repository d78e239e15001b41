//! The configurations of the guide for router people, run as they stand in `docs/bgp`: a real leaf, a node with a whole
//! daemon, and a spine that sees what leaves the rack.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_lab::bgp::{
    Kind, Seen,
    guided::Guided,
    rack::{BLOCK, BLOCK6, Rack},
    site::{DEADLINE, ROUTER, ROUTER6},
};
use bulkhead_lab::{
    Bird, Error, Netns, Result, enter,
    link::End,
    routes::{RouteWatch, kernel_routes},
    unmet, until, veth,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{collections::BTreeSet, fs};

type Test = fn(&mut World) -> Result<()>;

const BIRD: &str = include_str!("../../docs/bgp/bird.conf");
const FRR: &str = include_str!("../../docs/bgp/frr.conf");
const GUIDE: &str = include_str!("../../docs/bgp-guide.md");
const CLUSTER: &str = include_str!("../../docs/bgp/cluster.yaml");
const SERVICES: &str = "10.96.0.0/16";
const AGGREGATE: &str = "10.64.0.0/16";
const AGGREGATE6: &str = "fd00:64::/48";

struct World {
    rack: Rack,
    leaf: Guided,
    kind: Kind,
    spine: Bird,
    _bfd: bulkhead_lab::Bfd,
    _spine: Netns,
}

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let tests: [(&str, Test); 3] = [
        (
            "the leaf has what the node announces, the node the default route, the spine the aggregates",
            prefixes,
        ),
        ("the router is restarted, and the node is", restarts),
        ("a node that is drained is the last choice", leaving),
    ];
    let mut trials = Vec::new();
    for (name, test) in tests {
        for kind in [Kind::Bird, Kind::Frr] {
            trials.push(trial(format!("{name} × {kind}"), kind, test));
        }
    }
    trials.push(Trial::test("there is a configuration for each maker's routers", || {
        every_maker().map_err(Failed::from)
    }));
    libtest_mimic::run(&arguments, trials).exit()
}

/// Those of BIRD and FRR are run here; of the others it is known that nothing of what a router must have is missing.
fn every_maker() -> Result<()> {
    const WANTED: [&str; 8] =
        ["65020", "65010", "172.31.9.2", "10.64.0.0", "10.65.15.0", "fd00:64:", "graceful", "bfd"];
    for maker in ["Cisco NX-OS", "Arista EOS", "Juniper Junos", "Huawei VRP", "H3C Comware"] {
        let section = GUIDE.split_once(&format!("\n### {maker}\n")).map(|(_, rest)| rest);
        let shown = section.and_then(|rest| rest.split("\n##").next()?.split("```").nth(1));
        let Some(shown) = shown.map(str::to_lowercase) else { return unmet(format!("nothing for {maker}")) };
        let missing: Vec<_> = WANTED.into_iter().filter(|word| !shown.contains(word)).collect();
        let limits = ["maximum-prefix", "maximum-routes", "prefix-limit", "route-limit"];
        if !missing.is_empty() || !limits.iter().any(|limit| shown.contains(limit)) {
            return unmet(format!("{maker}'s has no {missing:?}, or no limit of routes: {shown}"));
        }
    }
    Ok(())
}

fn trial(name: String, kind: Kind, test: Test) -> Trial {
    let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
    Trial::test(name, move || {
        let mut world = World::create(&place, kind)?;
        let held = test(&mut world);
        if held.is_err() {
            eprintln!("{}", world.rack.node.log_tail(30));
            eprintln!("{}", world.leaf.router().and_then(|router| router.session()).unwrap_or_default());
        }
        held.map_err(Failed::from)
    })
}

impl World {
    fn create(place: &str, kind: Kind) -> Result<Self> {
        let rack = Rack::create(place, "{}")?;
        let bfd = rack.bfd()?;
        let beyond = Netns::create(&format!("spine-{place}"))?;
        beyond.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        veth(
            End { netns: &rack.router, name: "tospine", addresses: &["172.31.8.1/31", "fd00:31:8::1/64"] },
            End { netns: &beyond, name: "toleaf", addresses: &["172.31.8.0/31", "fd00:31:8::/64"] },
        )?;
        let spine = Bird::start(&beyond, &rack.dir.join("spine"), SPINE)?;
        let [new, file] = [".bgp.yaml.new", "bgp.yaml"].map(|name| rack.dir.join("objects").join(name));
        fs::write(&new, CLUSTER)?;
        fs::rename(new, file)?;
        let text = if kind == Kind::Bird { BIRD } else { FRR };
        let leaf = Guided::start(kind, &rack.router, &rack.dir.join("leaf"), text)?;
        leaf.router()?.wait_established()?;
        Ok(Self { rack, leaf, kind, spine, _bfd: bfd, _spine: beyond })
    }

    /// What the leaf forwards by: its kernel's routes.
    fn forwarded(&self) -> Result<BTreeSet<String>> {
        let protocol = if self.kind == Kind::Bird { "bird" } else { "bgp" };
        let routes = kernel_routes(&self.rack.router, protocol)?;
        Ok(routes.iter().filter(|r| r.via.is_some()).map(|r| r.prefix.to_string()).collect())
    }

    fn wait_forwarded(&self) -> Result<()> {
        let expected: BTreeSet<String> = [BLOCK, BLOCK6, SERVICES].map(str::to_owned).into();
        until("the leaf's kernel has the node's routes", DEADLINE, || {
            let there = self.forwarded()?;
            if expected.is_subset(&there) { Ok(Some(())) } else { Err(Error::Unmet(format!("{there:?}"))) }
        })
    }

    /// The node's own way out.
    fn wait_default(&self) -> Result<()> {
        until("the node has learned both default routes", DEADLINE, || {
            let ways = ["-4", "-6"].map(|family| {
                bulkhead_lab::link::ip_output(
                    Some(&self.rack.node.netns),
                    &format!("{family} route show default proto 67"),
                )
            });
            let [v4, v6] = ways;
            let (v4, v6) = (v4?, v6?);
            let both = v4.contains(&format!("via {ROUTER} ")) && v6.contains(&format!("via {ROUTER6} "));
            if both { Ok(Some(())) } else { Err(Error::Unmet(format!("{v4}{v6}"))) }
        })
    }

    fn wait_spine(&self) -> Result<()> {
        let expected: BTreeSet<&str> = [AGGREGATE, AGGREGATE6, SERVICES].into();
        until("the spine has the aggregates and no block", DEADLINE, || {
            let routes = self.spine.routes("leaf")?;
            let there: BTreeSet<String> = routes.iter().map(|r| r.prefix.to_string()).collect();
            let same = there.iter().map(String::as_str).eq(expected.iter().copied());
            if same { Ok(Some(())) } else { Err(Error::Unmet(format!("{there:?}"))) }
        })
    }
}

/// Not of the guide: it is somebody else's.
const SPINE: &str = "log stderr all;\nrouter id 172.31.8.0;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n\
    protocol bgp leaf { local 172.31.8.0 as 65000; neighbor 172.31.8.1 as 65020; connect delay time 1; connect retry time 2;\n\
    error wait time 1, 2; ipv4 { import all; export none; }; ipv6 { import all; export none; }; }\n";

fn prefixes(world: &mut World) -> Result<()> {
    let leaf = world.leaf.router()?;
    let seen = leaf.wait_seen(BLOCK)?;
    assert!(seen.communities.contains("65010:100"), "{seen:?}");
    assert!(leaf.wait_seen(SERVICES)?.communities.contains("65010:200"));
    world.wait_forwarded()?;
    world.wait_default()?;
    world.wait_spine()?;
    let watched = leaf.wait_watched("BFD is up", &|session| session.up)?;
    assert_eq!(watched.detection, 900);
    Ok(())
}

fn restarts(world: &mut World) -> Result<()> {
    world.wait_forwarded()?;
    world.wait_default()?;
    let fresh = |what: &str, rack: &Rack| {
        rack.wait_leaf(what, |leaf| leaf.state == "Established" && leaf.received == 2 && leaf.advertised == 3)
    };
    // The node first: a bgpd that has just come back sometimes takes routes out of zebra for a moment.
    let watch = RouteWatch::start(&world.rack.router)?;
    world.rack.node.stop_daemon()?;
    world.rack.node.start_daemon()?;
    fresh("the node is back", &world.rack)?;
    world.leaf.router()?.wait_established()?;
    world.rack.node.kill_daemon()?;
    world.rack.node.start_daemon()?;
    fresh("the node is back after a kill", &world.rack)?;
    world.wait_forwarded()?;
    let gone: Vec<String> = watch.stop()?.iter().map(ToString::to_string).collect();
    let lost: Vec<&String> =
        gone.iter().filter(|p| [BLOCK, BLOCK6, SERVICES].contains(&p.as_str())).collect();
    assert_eq!(lost, [""; 0], "the leaf forwarded to the node all the time");
    let watch = RouteWatch::start(&world.rack.node.netns)?;
    world.leaf.restart()?;
    world.leaf.router()?.wait_established()?;
    world.wait_forwarded()?;
    fresh("the router is back", &world.rack)?;
    world.wait_default()?;
    assert_eq!(watch.stop()?, [], "the node never lost its way out");
    Ok(())
}

fn leaving(world: &mut World) -> Result<()> {
    world.leaf.router()?.wait_seen(SERVICES)?;
    world.rack.node.cli(&["node", "drain-routes", "--withdraw-after", "600"])?;
    until("the leaf makes it the last choice", DEADLINE, || {
        let seen = world.leaf.router()?.seen(SERVICES)?;
        // FRR knows it by name.
        let marked =
            |seen: &Seen| ["65535:0", "graceful-shutdown"].iter().any(|c| seen.communities.contains(*c));
        let last = seen.as_ref().is_some_and(|seen| seen.local_pref == Some(0) && marked(seen));
        if last { Ok(Some(())) } else { Err(Error::Unmet(format!("{seen:?}"))) }
    })?;
    assert_ne!(world.leaf.router()?.wait_seen(BLOCK)?.local_pref, Some(0));
    Ok(())
}
