//! Routes that routers announce, in the kernel of a node with a whole daemon: installed, followed, kept and swept.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpRoutes, Status};
use bulkhead_lab::bgp::{
    Kind, Setup, THEIRS, THEIRS6,
    rack::Rack,
    site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS, ROUTER6},
};
use bulkhead_lab::{
    Bird, Error, Netns, Result, enter,
    link::{ip_output, run},
    programs,
    routes::{RouteWatch, kernel_routes},
    until,
};
use libtest_mimic::{Arguments, Failed, Trial};
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
        trials.extend(Kind::ALL.map(|kind| trial(format!("{name} × {kind}"), move |rack| test(rack, kind))));
    }
    let others: [(&str, Test); 7] = [
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
    trials.extend(others.map(|(name, test)| trial(name.to_owned(), test)));
    libtest_mimic::run(&arguments, trials).exit()
}

fn trial(name: String, test: impl Fn(&mut Rack) -> Result<()> + Send + 'static) -> Trial {
    let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
    Trial::test(name, move || {
        let mut rack = Rack::create(&place, IMPORT)?;
        let held = test(&mut rack);
        if held.is_err() {
            eprintln!("{}", rack.node.log_tail(30));
        }
        held.map_err(Failed::from)
    })
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
    let router = bird(rack, ROUTER, THEIRS, ROUTER, Bird::start)?;
    wait_kernel(rack, &[&both()[0]])?;
    let watch = RouteWatch::start(&rack.node.netns)?;
    drop(router);
    rack.wait_leaf("we notice", |leaf| leaf.state != "Established")?;
    let told: BgpRoutes = rack.ask(&["bgp", "received"])?;
    assert!(told.routes.len() == 1 && told.routes.iter().all(|route| route.stale && route.learned));
    let router = bird(rack, ROUTER, THEIRS, ROUTER, Bird::recover)?;
    router.wait_established(&["node"], DEADLINE)?;
    until("what is held is fresh again", DEADLINE, || {
        let told: BgpRoutes = rack.ask(&["bgp", "received"])?;
        Ok((told.routes.len() == 1 && told.routes.iter().all(|route| !route.stale)).then_some(()))
    })?;
    assert_eq!(watch.stop()?, []);
    wait_kernel(rack, &[&both()[0]])
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

/// A second router at the same cable; each listens on its own address.
fn bird(rack: &Rack, address: &str, prefix: &str, next_hop: &str, start: Start) -> Result<Bird> {
    let configuration = format!(
        "log stderr all;\nrouter id {address};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n\
         protocol static {{ ipv4; route {prefix} blackhole; }}\n\
         protocol bgp node {{ local {address} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; strict bind on; graceful restart on;\n\
         connect delay time 1; connect retry time 2; error wait time 1, 2;\n\
         ipv4 {{ import none; export where source = RTS_STATIC; next hop address {next_hop}; }}; }}\n"
    );
    start(&rack.router, &rack.dir.join(address), &configuration)
}

const OTHER: &str = "172.31.9.3";

fn second_peer(rack: &Rack) -> Result<()> {
    rack.router.ip(&format!("address add {OTHER}/24 dev downlink"))?;
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: spine}}\n\
         spec: {{peerAddress: {OTHER}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2, session: {IMPORT}}}\n"
    );
    Ok(fs::write(rack.dir.join("objects").join("spine.yaml"), text)?)
}

fn two_routers(rack: &mut Rack) -> Result<()> {
    second_peer(rack)?;
    let _first = bird(rack, ROUTER, THEIRS, ROUTER, Bird::start)?;
    wait_kernel(rack, &[&both()[0]])?;
    let watch = RouteWatch::start(&rack.node.netns)?;
    let second = bird(rack, OTHER, THEIRS, OTHER, Bird::start)?;
    until("both are next hops", DEADLINE, || {
        let shown = ip_output(Some(&rack.node.netns), &format!("route show {THEIRS}"))?;
        let hops = [ROUTER, OTHER].iter().all(|hop| shown.contains(&format!("nexthop via {hop} ")));
        if hops { Ok(Some(())) } else { Err(Error::Unmet(shown)) }
    })?;
    // Its session ends with a word: nothing is to be kept.
    second.birdc("disable node")?;
    wait_kernel(rack, &[&both()[0]])?;
    assert_eq!(watch.stop()?, [], "there was a way all the time");
    Ok(())
}

fn of_a_range(rack: &mut Rack) -> Result<()> {
    rack.router.ip(&format!("address add {OTHER}/24 dev downlink"))?;
    rack.peer_with("peerRange: 172.31.9.0/28", IMPORT)?;
    let (theirs, former) = (format!("{THEIRS} via {ROUTER}"), format!("10.98.0.0/16 via {OTHER}"));
    let _first = bird(rack, ROUTER, THEIRS, ROUTER, Bird::start)?;
    let second = bird(rack, OTHER, "10.98.0.0/16", OTHER, Bird::start)?;
    wait_kernel(rack, &[&theirs, &former])?;
    rack.node.kill_daemon()?;
    drop(second);
    rack.node.start_daemon()?;
    // The kernel's routes are compared every half second.
    rack.wait_leaf("the first router has long said everything", |leaf| {
        leaf.state == "Established" && leaf.received == 1 && leaf.since_seconds >= 4
    })?;
    wait_kernel(rack, &[&theirs, &former])?;
    let _second = bird(rack, OTHER, "10.97.0.0/16", OTHER, Bird::recover)?;
    wait_kernel(rack, &[&theirs, &format!("10.97.0.0/16 via {OTHER}")])
}

fn off_link(rack: &mut Rack) -> Result<()> {
    second_peer(rack)?;
    let _lost = bird(rack, OTHER, "10.98.0.0/16", "192.0.2.77", Bird::start)?;
    until("the status says so", DEADLINE, || {
        let status: Status = rack.node.get("/v1/status")?;
        let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
        let named = said.iter().any(|error| {
            error.contains("1 learned routes cannot be installed, as 10.98.0.0/16 via 192.0.2.77")
        });
        if named { Ok(Some(())) } else { Err(Error::Unmet(format!("{said:?}"))) }
    })?;
    let _first = bird(rack, ROUTER, THEIRS, ROUTER, Bird::start)?;
    wait_kernel(rack, &[&both()[0]])
}
