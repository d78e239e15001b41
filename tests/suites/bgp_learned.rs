//! Routes that routers announce, in the kernel of a node with a whole daemon: installed, followed, kept and swept.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpPeerInfo, BgpRoutes, PartitionInfo, Status};
use bulkhead_lab::bgp::{
    Kind, Setup, THEIRS, THEIRS6,
    rack::{Rack, trial},
    site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS, ROUTER6},
};
use bulkhead_lab::{
    Bird, Error, Netns, Pod, Result, enter,
    link::{ip_output, run},
    programs,
    routes::{RouteWatch, kernel_routes},
    until,
};
use libtest_mimic::Arguments;
use std::{collections::BTreeSet, fs, path::Path};

type Test = fn(&mut Rack) -> Result<()>;
type OfEach = fn(&mut Rack, Kind) -> Result<()>;

/// `rtm_protocol` of what is learned.
const LEARNED: &str = "67";
const IMPORT: &str = "{import: [{action: Accept}]}";

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let mut trials = Vec::new();
    let each: [(&str, OfEach); 2] = [
        ("what import rules accept is installed, and follows the rules", installed),
        ("a killed daemon's routes stay, and what the router no longer has is swept", killed),
    ];
    for (name, test) in each {
        trials.extend(
            Kind::ALL.map(|kind| trial(format!("{name} × {kind}"), IMPORT, move |rack| test(rack, kind))),
        );
    }
    let others: [(&str, Test); 10] = [
        ("a router that announced too much is tried again after the time that is set", too_much_for_a_while),
        ("of the pods' range others' blocks are learned, and never what is this node's own", pod_range),
        ("another next hop is followed, and there is a way all the time", other_next_hop),
        ("without an import rule nothing is installed", opted_out),
        ("routes stay through the router's restart", router_restarts),
        ("routes of a router that does not come back are swept after its restart time", router_gone),
        ("two routers that are as good are two next hops, and one when one is left", two_routers),
        (
            "of a range the routes of a router that is not back yet stay, and go when it no longer has them",
            of_a_range,
        ),
        ("what somebody else removes is put back, and an uninstallation leaves nothing", looked_after),
        ("a next hop that is on no link is told, and hinders no other route", off_link),
    ];
    trials.extend(others.map(|(name, test)| trial(name, IMPORT, test)));
    libtest_mimic::run(&arguments, trials).exit()
}

fn kernel(rack: &Rack) -> Result<BTreeSet<String>> {
    let routes = kernel_routes(&rack.node.netns, LEARNED)?;
    Ok(routes
        .iter()
        .map(|r| format!("{} via {}", r.prefix, r.via.map_or("several".into(), |v| v.to_string())))
        .collect())
}

fn wait_kernel(rack: &Rack, expected: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|route| route.to_string()).collect();
    until(&format!("the node's kernel has {expected:?}"), DEADLINE, || {
        let there = kernel(rack)?;
        if there == expected { Ok(Some(())) } else { Err(Error::Unmet(format!("{there:?}"))) }
    })
}

fn both() -> [String; 2] {
    [format!("{THEIRS} via {ROUTER}"), format!("{THEIRS6} via {ROUTER6}")]
}

fn wait_both(rack: &Rack) -> Result<()> {
    wait_kernel(rack, &both().each_ref().map(String::as_str))
}

fn installed(rack: &mut Rack, kind: Kind) -> Result<()> {
    let router = kind.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    wait_both(rack)?;
    // The kernel's own answer.
    let way = ip_output(Some(&rack.node.netns), "route get 10.99.7.7")?;
    assert!(way.contains(&format!("via {ROUTER}")), "{way}");
    let told: BgpRoutes = rack.ask(&["bgp", "received"])?;
    assert!(told.routes.iter().all(|route| route.learned), "{told:?}");
    rack.peer("{import: [{action: Reject, communities: ['65020:1:2'], prefixes: [{cidr: 10.0.0.0/8}]}, {action: Accept}]}")?;
    wait_kernel(rack, &[&both()[1]])?;
    rack.peer(&format!("{{import: [{{action: Accept, pathASNs: [65099, {ROUTER_AS}]}}]}}"))?;
    wait_both(rack)?;
    rack.peer(&format!("{{import: [{{action: Reject, pathASNs: [{ROUTER_AS}]}}, {{action: Accept}}]}}"))?;
    wait_kernel(rack, &[])?;
    rack.peer(IMPORT)?;
    wait_both(rack)?;
    rack.peer("{}")?;
    wait_kernel(rack, &[])?;
    assert!(router.established()? && !rack.node.log_tail(1000).contains("session down"));
    Ok(())
}

fn killed(rack: &mut Rack, kind: Kind) -> Result<()> {
    let _router = kind.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    wait_both(rack)?;
    let watch = RouteWatch::start(&rack.node.netns)?;
    rack.node.kill_daemon()?;
    // What the router has taken back while nobody listened.
    rack.node.netns.ip(&format!("route add 10.98.0.0/16 via {ROUTER} proto {LEARNED} metric 4096"))?;
    rack.node.start_daemon()?;
    wait_both(rack)?;
    rack.node.stop_daemon()?;
    rack.node.start_daemon()?;
    rack.wait_leaf("the session is back", |leaf| leaf.state == "Established" && leaf.received == 2)?;
    let gone: Vec<String> = watch.stop()?.iter().map(ToString::to_string).collect();
    assert_eq!(gone, ["10.98.0.0/16"], "nothing else ever left");
    wait_both(rack)
}

fn opted_out(rack: &mut Rack) -> Result<()> {
    rack.peer("{}")?;
    let _router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    rack.wait_leaf("both routes came", |leaf| leaf.received == 2)?;
    assert_eq!(kernel(rack)?, BTreeSet::new());
    rack.peer(IMPORT)?;
    wait_both(rack)
}

fn router_restarts(rack: &mut Rack) -> Result<()> {
    let former = format!("10.98.0.0/16 via {ROUTER}");
    let router = bird(rack, ROUTER, &[THEIRS, "10.98.0.0/16"], ROUTER, Bird::start)?;
    wait_kernel(rack, &[&both()[0], &former])?;
    let watch = RouteWatch::start(&rack.node.netns)?;
    drop(router);
    rack.wait_leaf("we notice", |leaf| leaf.state != "Established")?;
    let told: BgpRoutes = rack.ask(&["bgp", "received"])?;
    assert!(told.routes.len() == 2 && told.routes.iter().all(|route| route.stale && route.learned));
    wait_kernel(rack, &[&both()[0], &former])?;
    let router = bird(rack, ROUTER, &[THEIRS], ROUTER, Bird::recover)?;
    router.wait_established(&["node"], DEADLINE)?;
    until("what is held is fresh again", DEADLINE, || {
        let told: BgpRoutes = rack.ask(&["bgp", "received"])?;
        Ok((told.routes.len() == 1 && told.routes.iter().all(|route| !route.stale)).then_some(()))
    })?;
    // It says no more of the other, and has said all: its restart time is two minutes.
    wait_kernel(rack, &[&both()[0]])?;
    let gone: Vec<String> = watch.stop()?.iter().map(ToString::to_string).collect();
    assert_eq!(gone, ["10.98.0.0/16"]);
    Ok(())
}

fn router_gone(rack: &mut Rack) -> Result<()> {
    let router =
        Kind::Bird.start_in(&rack.router, &rack.dir, &Setup { restart_time: 4, ..Setup::DEFAULT })?;
    wait_both(rack)?;
    drop(router);
    rack.wait_leaf("we notice", |leaf| leaf.state != "Established")?;
    wait_both(rack)?;
    wait_kernel(rack, &[])
}

fn looked_after(rack: &mut Rack) -> Result<()> {
    let _router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    wait_both(rack)?;
    rack.node.netns.ip(&format!("route del {THEIRS} proto {LEARNED}"))?;
    wait_both(rack)?;
    rack.node.stop_daemon()?;
    wait_both(rack)?;
    let configuration = rack.node.dir().join("bulkheadd.yaml");
    let program = programs::find("bulkheadd")?;
    run(rack.node.netns.command(program).arg("--config").arg(configuration).arg("--uninstall"))?;
    assert_eq!(kernel(rack)?, BTreeSet::new());
    Ok(())
}

type Start = fn(&Netns, &Path, &str) -> Result<Bird>;

/// A second router at the same cable; each listens on its own address. [`MARKER`] is announced when it is enabled.
fn bird(rack: &Rack, address: &str, prefixes: &[&str], next_hop: &str, start: Start) -> Result<Bird> {
    let (v6, v4): (Vec<&str>, Vec<&str>) = prefixes.iter().partition(|prefix| prefix.contains(':'));
    let routes =
        |of: &[&str]| -> String { of.iter().map(|prefix| format!("route {prefix} blackhole; ")).collect() };
    let next_hop6 = if next_hop == OTHER { OTHER6 } else { ROUTER6 };
    let configuration = format!(
        "log stderr all;\nrouter id {address};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n\
         protocol static {{ ipv4; {} }}\nprotocol static {{ ipv6; {} }}\n\
         protocol static marker {{ disabled; ipv4; route {MARKER} blackhole; }}\n\
         protocol bgp node {{ local {address} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; strict bind on; graceful restart on;\n\
         connect delay time 1; connect retry time 2; error wait time 1, 2;\n\
         ipv4 {{ import none; export where source = RTS_STATIC; next hop address {next_hop}; }};\n\
         ipv6 {{ import none; export where source = RTS_STATIC; next hop address {next_hop6}; }}; }}\n",
        routes(&v4),
        routes(&v6),
    );
    start(&rack.router, &rack.dir.join(address), &configuration)
}

const OTHER: &str = "172.31.9.3";
const OTHER6: &str = "fd00:31:9::3";
const MARKER: &str = "10.97.0.0/16";

/// What a router says of the pods' range: all of it, this node's block, an address in that, and another node's block.
fn pod_range(rack: &mut Rack) -> Result<()> {
    let partition = |bgp: &str| {
        let text = format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: bank}}\n\
             spec: {{policyID: 20, namespaces: [bank], podCIDRs: [10.65.0.0/16], isolation: Open, bgp: {bgp}}}\n"
        );
        let [new, file] = [".bank.yaml.new", "bank.yaml"].map(|name| rack.dir.join("objects").join(name));
        fs::write(&new, text)?;
        Ok::<_, Error>(fs::rename(new, file)?)
    };
    partition("{}")?;
    until("the partition is in force", DEADLINE, || {
        let there: Vec<PartitionInfo> = rack.node.get("/v1/partitions")?;
        Ok(there.iter().any(|partition| partition.name == "bank").then_some(()))
    })?;
    let mut teller = Pod::create(0, "bank", "teller")?;
    teller.add(&rack.node)?;
    let said = ["10.65.0.0/16", "10.65.0.0/26", "10.65.0.9/32", "10.65.0.64/26"];
    let router = bird(rack, ROUTER, &said, ROUTER, Bird::start)?;
    rack.router.ip(&format!("route add 10.65.0.0/26 via {NODE}"))?;
    let learned = ["10.65.0.0/16", "10.65.0.64/26"].map(|prefix| format!("{prefix} via {ROUTER}"));
    let marker = format!("{MARKER} via {ROUTER}");
    let holds = |announced: usize| {
        rack.wait_leaf("so many are announced", |leaf| leaf.advertised == announced && leaf.received >= 4)?;
        // Once this is there, what was said and changed before has been looked at.
        router.birdc("enable marker")?;
        wait_kernel(rack, &[&learned[0], &learned[1], &marker])?;
        let way = |address: &str| ip_output(Some(&rack.node.netns), &format!("route get {address}"));
        let to_pod = way(&teller.v4.to_string())?;
        assert!(!to_pod.contains("via"), "{to_pod}");
        let refused = way("10.65.0.9").unwrap_err().to_string();
        assert!(
            refused.contains("Invalid argument"),
            "what is in the block and no pod is discarded: {refused}"
        );
        assert!(way("10.65.0.70")?.contains(&format!("via {ROUTER}")), "another node's block");
        run(rack.router.command("ping").args(["-n", "-c", "1", "-W", "2", &teller.v4.to_string()]))?;
        router.birdc("disable marker")?;
        wait_kernel(rack, &[&learned[0], &learned[1]])
    };
    holds(3)?;
    // A block is this node's own whether it is announced or not.
    partition("{advertise: false}")?;
    holds(2)?;
    rack.node.cli(&["node", "drain-routes", "--all", "--withdraw-after", "0"])?;
    holds(0)
}

fn too_much_for_a_while(rack: &mut Rack) -> Result<()> {
    rack.peer("{import: [{action: Accept}], maxPrefixes: {limit: 1, restartSeconds: 2}}")?;
    let router = bird(rack, ROUTER, &[THEIRS], ROUTER, Bird::start)?;
    wait_kernel(rack, &[&both()[0]])?;
    let many = "the peer announces 1 of the 1 routes of ipv4-unicast that are allowed it: beyond them the session ends";
    let leaf = rack.wait_leaf("it is warned of", |leaf| leaf.warnings == [many])?;
    assert_eq!((leaf.state.as_str(), leaf.max_prefixes, leaf.last_error), ("Established", Some(1), None));
    let shown = rack.node.cli(&["bgp", "peers"])?;
    assert!(shown.ends_with(&format!("leaf: {many}\n")), "{shown}");
    assert_eq!(rack.node.log_tail(1000).matches(many).count(), 1);
    router.birdc("enable marker")?;
    let leaf = rack.wait_leaf("we have left it", |leaf| {
        leaf.last_error.as_deref().is_some_and(|error| error.contains("more than the 1 routes of ipv4"))
    })?;
    assert!(leaf.last_error.is_some_and(|error| error.ends_with(": tried again after 2 s")));
    assert!(leaf.warnings.iter().all(|warning| warning != many), "{:?}", leaf.warnings);
    wait_kernel(rack, &[])?;
    router.birdc("disable marker")?;
    rack.wait_leaf("we are back", |leaf| leaf.state == "Established" && leaf.received == 1)?;
    wait_kernel(rack, &[&both()[0]])
}

fn other_next_hop(rack: &mut Rack) -> Result<()> {
    rack.router.ip(&format!("address add {OTHER}/24 dev downlink"))?;
    let _router = Kind::Gobgp.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    wait_both(rack)?;
    let watch = RouteWatch::start(&rack.node.netns)?;
    let route = ["global", "rib", "add", "-a", "ipv4", THEIRS, "nexthop", OTHER];
    run(rack.router.command("/usr/bin/gobgp").args(route))?;
    wait_kernel(rack, &[&format!("{THEIRS} via {OTHER}"), &both()[1]])?;
    assert_eq!(watch.stop()?, []);
    Ok(())
}

fn second_peer(rack: &Rack) -> Result<()> {
    rack.router.ip(&format!("address add {OTHER}/24 dev downlink"))?;
    rack.router.ip(&format!("address add {OTHER6}/64 dev downlink"))?;
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: spine}}\n\
         spec: {{peerAddress: {OTHER}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2, session: {IMPORT}}}\n"
    );
    Ok(fs::write(rack.dir.join("objects").join("spine.yaml"), text)?)
}

fn two_routers(rack: &mut Rack) -> Result<()> {
    second_peer(rack)?;
    let _first = bird(rack, ROUTER, &[THEIRS, THEIRS6], ROUTER, Bird::start)?;
    wait_both(rack)?;
    let watch = RouteWatch::start(&rack.node.netns)?;
    let second = bird(rack, OTHER, &[THEIRS, THEIRS6], OTHER, Bird::start)?;
    for (version, prefix, hops) in [("-4", THEIRS, [ROUTER, OTHER]), ("-6", THEIRS6, [ROUTER6, OTHER6])] {
        until("both are next hops", DEADLINE, || {
            let shown = ip_output(Some(&rack.node.netns), &format!("{version} route show {prefix}"))?;
            let all = hops.iter().all(|hop| shown.contains(&format!("nexthop via {hop} ")));
            if all { Ok(Some(())) } else { Err(Error::Unmet(shown)) }
        })?;
    }
    // Its session ends with a word: nothing is to be kept.
    second.birdc("disable node \"maintenance\"")?;
    wait_both(rack)?;
    assert_eq!(watch.stop()?, [], "there was a way all the time");
    // RFC 9003: why it ended is told in their people's words.
    let peers: Vec<BgpPeerInfo> = rack.node.get("/v1/bgp/peers")?;
    let errors: Vec<String> = peers.into_iter().filter_map(|peer| peer.last_error).collect();
    assert!(errors.len() == 1 && errors[0].contains("maintenance"), "{errors:?}");
    Ok(())
}

fn of_a_range(rack: &mut Rack) -> Result<()> {
    rack.router.ip(&format!("address add {OTHER}/24 dev downlink"))?;
    rack.peer_with("peerRange: 172.31.9.0/28", IMPORT)?;
    let (theirs, former) = (format!("{THEIRS} via {ROUTER}"), format!("10.98.0.0/16 via {OTHER}"));
    let _first = bird(rack, ROUTER, &[THEIRS], ROUTER, Bird::start)?;
    let second = bird(rack, OTHER, &["10.98.0.0/16"], OTHER, Bird::start)?;
    wait_kernel(rack, &[&theirs, &former])?;
    rack.node.kill_daemon()?;
    drop(second);
    rack.node.start_daemon()?;
    // The kernel's routes are compared every half second.
    rack.wait_leaf("the first router has long said everything", |leaf| {
        leaf.state == "Established" && leaf.received == 1 && leaf.since_seconds >= 4
    })?;
    wait_kernel(rack, &[&theirs, &former])?;
    let _second = bird(rack, OTHER, &["10.96.0.0/16"], OTHER, Bird::recover)?;
    wait_kernel(rack, &[&theirs, &format!("10.96.0.0/16 via {OTHER}")])
}

fn off_link(rack: &mut Rack) -> Result<()> {
    second_peer(rack)?;
    let _lost = bird(rack, OTHER, &["10.98.0.0/16"], "192.0.2.77", Bird::start)?;
    until("the status says so", DEADLINE, || {
        let status: Status = rack.node.get("/v1/status")?;
        let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
        let named = said.iter().any(|error| {
            error.contains("1 learned routes cannot be installed, as 10.98.0.0/16 via 192.0.2.77")
        });
        if named { Ok(Some(())) } else { Err(Error::Unmet(format!("{said:?}"))) }
    })?;
    let _first = bird(rack, ROUTER, &[THEIRS], ROUTER, Bird::start)?;
    wait_kernel(rack, &[&both()[0]])
}
