//! BGP objects that change while pods run, and what stays in the router.

use crate::support::*;
use bulkhead_api::messages::PartitionInfo;
use bulkhead_lab::{Lab, Result, routes::RouteWatch, unmet, until};
use std::net::IpAddr;

pub const CASES: &[Case] = &[
    ("what says whom to peer with is removed and put back: nothing leaves the router", put_back),
    (
        "a block whose last pod goes while nothing can be withdrawn stays this node's until it can be",
        last_pod,
    ),
    ("peers that cannot be made after a restart are announced to as ever once they can", none_can_be_made),
    ("a BGPConfiguration that is not put back is told until the routers have dropped the routes", left_out),
    ("forwarding is said to have gone on where the pins stayed, and there alone", pins_lost),
    ("a changed ASN is what the routers hear; changed back, the routes are back", asn),
    ("a peer that is edited to nonsense keeps its session as it was", peer_refused),
    ("an export rule keeps the blocks from its router alone, and the session goes on", export_rule),
    ("a partition that is not to be advertised is withdrawn, and comes back", not_advertised),
    (
        "a daemon that cannot compile or write after a restart still keeps its routes in the router",
        restart_in_trouble,
    ),
];

fn start(lab: &mut Lab) -> Result<[IpAddr; 2]> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let addresses = [lab.pods[pod].v4.into(), lab.pods[pod].v6.into()];
    until_routed(lab, addresses, true)?;
    Ok(addresses)
}

fn until_routed(lab: &Lab, addresses: [IpAddr; 2], there: bool) -> Result<()> {
    let what =
        if there { "the router knows the pod's blocks" } else { "the router has forgotten the pod's blocks" };
    until(what, LATER, || {
        for (session, address) in ["n1v4", "n1v6"].into_iter().zip(addresses) {
            if lab.bird.routes(session)?.iter().any(|r| r.prefix.contains(address)) != there {
                return unmet(lab.bird.birdc(&format!("show protocols all {session}"))?);
            }
        }
        Ok(Some(()))
    })
}

fn put_back(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let watch = RouteWatch::start(&lab.router)?;
    let text = lab.objects.read("bgp.yaml")?;
    let (configuration, peers) = text.split_once("---").expect("two documents");
    for (left, told) in [
        (peers, "BGPConfiguration/default is gone: the sessions are closed as for a restart"),
        (configuration, "no BGPPeer names this node any more: the sessions are closed as for a restart"),
    ] {
        lab.objects.write("bgp.yaml", left)?;
        until_refused(&lab.nodes[0], told)?;
        until_left(lab)?;
        lab.objects.write("bgp.yaml", &text)?;
        until_back(lab)?;
        // A daemon that comes meanwhile is one that restarts, too.
        lab.objects.write("bgp.yaml", left)?;
        until_left(lab)?;
        lab.nodes[0].kill_daemon()?;
        lab.nodes[0].start_daemon()?;
        until_refused(&lab.nodes[0], told)?;
        lab.objects.write("bgp.yaml", &text)?;
        until_back(lab)?;
    }
    until_routed(lab, addresses, true)?;
    stayed(watch, addresses)
}

/// The sessions are over, and the router keeps what it heard in them.
fn until_left(lab: &Lab) -> Result<()> {
    until("the router keeps what it heard", LATER, || {
        let said = lab.bird.birdc("show protocols all n1v4")? + &lab.bird.birdc("show protocols all n1v6")?;
        match said.matches("Neighbor graceful restart active").count() {
            2 => Ok(Some(())),
            _ => unmet(said),
        }
    })
}

fn until_back(lab: &Lab) -> Result<()> {
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)?;
    until("the restart is over", LATER, || Ok(lab.bird.restarts_over(&["n1v4", "n1v6"])?.then_some(())))?;
    until_content(&lab.nodes[0])
}

fn last_pod(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let holds_blocks = |lab: &Lab| {
        let partitions: Vec<PartitionInfo> = lab.nodes[0].get("/v1/partitions")?;
        let blocks: Vec<_> = partitions.into_iter().flat_map(|partition| partition.blocks).collect();
        Ok::<_, bulkhead_lab::Error>(addresses.map(|address| blocks.iter().any(|b| b.contains(address))))
    };
    let text = lab.objects.read("bgp.yaml")?;
    let (_, peers) = text.split_once("---").expect("two documents");
    lab.objects.write("bgp.yaml", peers)?;
    until_left(lab)?;
    del(lab, index(lab, "payments/db-0"))?;
    require(holds_blocks(lab)? == [true; 2], "routers lead here still")?;
    let why = lab.nodes[0].cli(&["bgp", "why", &addresses[0].to_string()])?;
    contains(&why, &["BGPConfiguration/default is gone", "Routers keep what this node announced until"])?;
    // Nor does a daemon that comes meanwhile give them back.
    lab.nodes[0].kill_daemon()?;
    lab.nodes[0].start_daemon()?;
    until_refused(&lab.nodes[0], "for the restart time that the daemon before this one told them")?;
    require(holds_blocks(lab)? == [true; 2], "routers lead here still")?;
    lab.objects.write("bgp.yaml", &text)?;
    until_back(lab)?;
    until("the blocks are given back", LATER, || Ok((holds_blocks(lab)? == [false; 2]).then_some(())))?;
    until_routed(lab, addresses, false)
}

fn none_can_be_made(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let watch = RouteWatch::start(&lab.router)?;
    let text = lab.objects.read("bgp.yaml")?;
    let secret = "peerASN: 65000\n  session: {passwordFile: /run/nothing}";
    lab.objects.write("bgp.yaml", &text.replace("peerASN: 65000", secret))?;
    until_refused(&lab.nodes[0], "BGPPeer/router-node1-v4: spec.session.passwordFile")?;
    // The second knows what the first has left.
    for _ in 0..2 {
        lab.nodes[0].kill_daemon()?;
        lab.nodes[0].start_daemon()?;
        until_refused(&lab.nodes[0], "BGPPeer/router-node1-v6: spec.session.passwordFile")?;
        let announced = std::fs::read_to_string(lab.nodes[0].state_dir().join("announced.json"))?;
        require(announced.trim() != "[]", "what routers keep is remembered")?;
    }
    lab.objects.write("bgp.yaml", &text)?;
    until_back(lab)?;
    until_routed(lab, addresses, true)?;
    stayed(watch, addresses)
}

fn left_out(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let text = lab.objects.read("bgp.yaml")?.replace("asn: 65010", "asn: 65010\n  restartTimeSeconds: 4");
    lab.objects.write("bgp.yaml", &text)?;
    until("the router knows the restart time", LATER, || {
        let told = lab.bird.birdc("show protocols all n1v4")?;
        Ok((told.contains("Restart time: 4") && lab.bird.established("n1v6")?).then_some(()))
    })?;
    until_back(lab)?;
    let (_, peers) = text.split_once("---").expect("two documents");
    lab.objects.write("bgp.yaml", peers)?;
    until_refused(&lab.nodes[0], "Routers keep what this node announced until 20")?;
    until_routed(lab, addresses, false)?;
    until_content(&lab.nodes[0])?;
    // Nothing is announced, so the next daemon is none that restarts.
    let announced = std::fs::read_to_string(lab.nodes[0].state_dir().join("announced.json"))?;
    require(announced.trim() == "[]", &format!("remembered as announced: {announced}"))?;
    lab.objects.write("bgp.yaml", &text)?;
    until_routed(lab, addresses, true)?;
    until_content(&lab.nodes[0])
}

/// RFC 4724, F bit: a router that is told so goes on sending packets to a node that forwards none.
fn pins_lost(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    for lost in [false, true] {
        lab.nodes[0].kill_daemon()?;
        let watch = RouteWatch::start(&lab.router)?;
        if lost {
            remove_pins(&lab.nodes[0].pins())?;
        }
        lab.nodes[0].start_daemon()?;
        until_back(lab)?;
        until_routed(lab, addresses, true)?;
        let gone = watch.stop()?;
        let left = addresses.iter().any(|address| gone.iter().any(|prefix| prefix.contains(*address)));
        // Without the F bit what is stale goes when our OPEN comes, unless it is announced again in that very moment.
        require(lost || !left, &format!("left the router: {gone:?}"))?;
        for (session, family) in [("n1v4", "ipv4"), ("n1v6", "ipv6")] {
            let told = lab.bird.birdc(&format!("show protocols all {session}"))?;
            let theirs = told.split("Neighbor capabilities").nth(1).unwrap_or_default();
            let preserved = theirs.contains(&format!("AF preserved: {family}"));
            require(theirs.contains("Restart recovery") && preserved != lost, &told)?;
        }
    }
    Ok(())
}

fn asn(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let text = lab.objects.read("bgp.yaml")?;
    lab.objects.write("bgp.yaml", &text.replace("asn: 65010", "asn: 65011"))?;
    until("the router refuses the other ASN", LATER, || {
        Ok(lab.bird.birdc("show protocols all n1v4")?.contains("Bad peer AS").then_some(()))
    })?;
    lab.objects.write("bgp.yaml", &text)?;
    lab.bird.birdc("restart n1v4")?;
    lab.bird.birdc("restart n1v6")?;
    until_routed(lab, addresses, true)
}

fn peer_refused(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let watch = RouteWatch::start(&lab.router)?;
    let text = lab.objects.read("bgp.yaml")?;
    for (wrong, told) in [
        (text.replacen("peerASN: 65000", "peerASN: 0", 1), "BGPPeer/router-node1-v4: spec.peerASN"),
        (text.replacen("asn: 65010", "asn: 0", 1), "BGPConfiguration/default: spec.asn"),
    ] {
        lab.objects.write("bgp.yaml", &wrong)?;
        until_refused(&lab.nodes[0], told)?;
        require(lab.bird.established("n1v4")?, "the session stands")?;
        lab.nodes[0].kill_daemon()?;
        lab.nodes[0].start_daemon()?;
        lab.bird.wait_established(&["n1v4", "n1v6"], LATER)?;
        until_refused(&lab.nodes[0], told)?;
    }
    lab.objects.write("bgp.yaml", &text)?;
    until_content(&lab.nodes[0])?;
    until_routed(lab, addresses, true)?;
    require(lab.bird.established("n1v4")?, "the session stands")?;
    stayed(watch, addresses)
}

fn export_rule(lab: &mut Lab) -> Result<()> {
    let [v4, v6] = start(lab)?;
    let text = lab.objects.read("bgp.yaml")?;
    let session = "peerASN: 65000\n  session: {export: [{action: Reject, prefixes: [{cidr: 0.0.0.0/0}]}]}";
    lab.objects.write("bgp.yaml", &text.replacen("peerASN: 65000", session, 1))?;
    until("only the other session has the pod's block", LATER, || {
        let has = |session: &str, address: IpAddr| {
            Ok::<_, bulkhead_lab::Error>(lab.bird.routes(session)?.iter().any(|r| r.prefix.contains(address)))
        };
        Ok((!has("n1v4", v4)? && has("n1v6", v6)?).then_some(()))
    })?;
    require(lab.bird.established("n1v4")?, "the session goes on")?;
    let secret = "peerASN: 65000\n  session: {passwordFile: /run/nothing}";
    lab.objects.write("bgp.yaml", &text.replacen("peerASN: 65000", secret, 1))?;
    until_refused(&lab.nodes[0], "BGPPeer/router-node1-v4: spec.session.passwordFile")?;
    require(lab.bird.established("n1v4")?, "without its password file the session stays as it was")?;
    lab.objects.write("bgp.yaml", &text)?;
    until_routed(lab, [v4, v6], true)?;
    until_content(&lab.nodes[0])
}

/// No route to these addresses left the router's kernel.
fn stayed(watch: RouteWatch, addresses: [IpAddr; 2]) -> Result<()> {
    let gone = watch.stop()?;
    let ours = gone.iter().find(|p| addresses.iter().any(|a| p.contains(*a)));
    require(ours.is_none(), &format!("{ours:?} left the router"))
}

fn not_advertised(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let text = lab.objects.read("payments.yaml")?;
    lab.objects.write(
        "payments.yaml",
        &text.replace("  policyID: 100\n", "  policyID: 100\n  bgp: {advertise: false}\n"),
    )?;
    until_routed(lab, addresses, false)?;
    lab.nodes[0].kill_daemon()?;
    lab.nodes[0].start_daemon()?;
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)?;
    until_routed(lab, addresses, false)?;
    lab.objects.write("payments.yaml", &text)?;
    until_routed(lab, addresses, true)
}

fn restart_in_trouble(lab: &mut Lab) -> Result<()> {
    let addresses = start(lab)?;
    let watch = RouteWatch::start(&lab.router)?;
    lab.nodes[0].kill_daemon()?;
    // The numbers of the next generation cannot be written down.
    let state = lab.nodes[0].state_dir();
    let blocked = state.join("interner.json.tmp");
    std::fs::create_dir(&blocked)?;
    lab.objects.write("web.yaml", &lab.objects.read("web.yaml")?.replace("name: pages", "name: seiten"))?;
    lab.nodes[0].start_daemon_unready()?;
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)?;
    until("the restart is over", LATER, || Ok(lab.bird.restarts_over(&["n1v4", "n1v6"])?.then_some(())))?;
    until_routed(lab, addresses, true)?;
    contains(&refusals(&lab.nodes[0])?, &["interner.json"])?;
    std::fs::remove_dir(&blocked)?;
    until_content(&lab.nodes[0])?;
    stayed(watch, addresses)
}
