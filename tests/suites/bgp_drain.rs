//! What a node announces is taken off it: seen by a real router, first as the last choice, then not at all.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpPeerInfo, BgpWhy, DrainInfo, Status};
use bulkhead_lab::bgp::{
    Kind, Router, Seen, Setup,
    rack::{BLOCK, BLOCK6, Rack, trial},
    site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS},
};
use bulkhead_lab::{Bird, Error, Result, enter, until};
use libtest_mimic::Arguments;
use std::fs;

type Test = fn(&mut Rack) -> Result<()>;

const SERVICES: &str = "10.96.0.0/16";
const IPV6: &str = "ipv6 { import all; export none; };";
const OTHER: &str = "172.31.9.3";
/// RFC 8326, as routers write it.
const LEAVING: &str = "65535:0";

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let tests: [(&str, Test); 8] = [
        ("services are marked, then withdrawn, over a restart too, and come back; blocks stay", services),
        ("one of two uplinks is marked, then left, and taken again when it is the last", one_uplink),
        ("a router of one family is no other way for the other", half_a_way),
        ("a router that is told no route of a family is no other way for that family", told_half),
        ("the node's annotation drains, and its end brings everything back", annotation),
        ("everything goes at once where that is asked for", everything),
        ("a block goes with its last pod, also during a drain", last_pod),
        ("what would take the last way is refused", refused),
    ];
    let trials = tests.map(|(name, test)| {
        trial(name, "{}", move |rack| {
            configure(rack, "{}")?;
            test(rack)
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit()
}

/// Two routers, and a service range.
fn configure(rack: &Rack, spine: &str) -> Result<()> {
    let peer = |name: &str, address: &str, session: &str| {
        format!(
            "---\napiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
             spec: {{peerAddress: {address}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2, session: {session}}}\n"
        )
    };
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {NODE_AS}, advertiseServiceCIDRs: [{SERVICES}], serviceCommunities: ['65010:200']}}\n{}{}",
        peer("leaf", ROUTER, "{}"),
        peer("spine", OTHER, spine)
    );
    Ok(fs::write(rack.dir.join("objects/bgp.yaml"), text)?)
}

fn leaf(rack: &Rack) -> Result<Box<dyn Router>> {
    Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)
}

fn drain(rack: &Rack, more: &[&str]) -> Result<Vec<DrainInfo>> {
    rack.ask(&[&["node", "drain-routes"], more].concat())
}

fn is_leaving(seen: &Seen) -> bool {
    seen.communities.contains(LEAVING)
}

fn wait_marked(router: &dyn Router, prefix: &str, wanted: bool) -> Result<()> {
    until(&format!("{prefix} is marked: {wanted}"), DEADLINE, || match router.seen(prefix)? {
        Some(seen) if is_leaving(&seen) == wanted => Ok(Some(())),
        other => Err(Error::Unmet(format!("{other:?}"))),
    })
}

fn stays(router: &dyn Router, prefix: &str) -> Result<()> {
    let seen = router.seen(prefix)?.expect("the block stays");
    assert!(!is_leaving(&seen), "{seen:?}");
    Ok(())
}

fn services(rack: &mut Rack) -> Result<()> {
    let router = leaf(rack)?;
    router.wait_seen(BLOCK)?;
    let seen = router.wait_seen(SERVICES)?;
    assert!(!is_leaving(&seen) && seen.communities.contains("65010:200"), "{seen:?}");
    let told = drain(rack, &["--withdraw-after", "8"])?;
    assert!(!told[0].withdrawn && told[0].withdraw_in <= 8, "{told:?}");
    // Marked when the command returns, and withdrawn only afterwards.
    wait_marked(router.as_ref(), SERVICES, true)?;
    let why: BgpWhy = rack.ask(&["bgp", "why", "10.96.0.1"])?;
    assert!(why.origin.contains("announced as the last choice"), "{why:?}");
    router.wait_gone(SERVICES)?;
    [BLOCK, BLOCK6].iter().try_for_each(|block| stays(router.as_ref(), block))?;
    let shown = rack.node.cli(&["status"])?;
    assert!(shown.contains("draining     services: withdrawn\n"), "{shown}");
    rack.node.stop_daemon()?;
    rack.node.start_daemon()?;
    rack.wait_leaf("the session is back", |leaf| leaf.state == "Established" && leaf.advertised == 2)?;
    assert_eq!(router.seen(SERVICES)?, None, "a drain outlives its daemon");
    let why: BgpWhy = rack.ask(&["bgp", "why", SERVICES])?;
    assert!(why.origin.contains("drain-routes --undo"), "{why:?}");
    assert_eq!(drain(rack, &["--undo"])?, []);
    wait_marked(router.as_ref(), SERVICES, false)
}

fn one_uplink(rack: &mut Rack) -> Result<()> {
    let router = leaf(rack)?;
    let spine = spine(rack, IPV6)?;
    router.wait_seen(BLOCK)?;
    spine.wait_established(&["node"], DEADLINE)?;
    drain(rack, &["--peer", "leaf", "--withdraw-after", "8"])?;
    let all = [BLOCK, BLOCK6, SERVICES];
    all.iter().try_for_each(|prefix| wait_marked(router.as_ref(), prefix, true))?;
    all.iter().try_for_each(|prefix| router.wait_gone(prefix))?;
    let there = spine.birdc("show route all protocol node")?;
    assert!(there.contains(BLOCK) && there.contains(SERVICES) && !there.contains("(65535,0)"), "{there}");
    let why: BgpWhy = rack.ask(&["bgp", "why", BLOCK])?;
    assert!(why.peers[0].reason.contains("leaf is being left"), "{why:?}");
    assert!(router.established()?, "routes go, the session stays");
    // The other way out is gone: the one that was left is better than none.
    drop(spine);
    wait_marked(router.as_ref(), BLOCK, true)?;
    drain(rack, &["--undo"])?;
    wait_marked(router.as_ref(), BLOCK, false)
}

/// A second router at the same cable; the first has its port, so that it alone dials.
fn spine(rack: &Rack, ipv6: &str) -> Result<Bird> {
    rack.router.ip(&format!("address replace {OTHER}/24 dev downlink"))?;
    let configuration = format!(
        "log stderr all;\nrouter id {OTHER};\nprotocol device {{}}\n\
         protocol bgp node {{ local {OTHER} port 1179 as {ROUTER_AS}; neighbor {NODE} as {NODE_AS};\n\
         connect delay time 1; connect retry time 2; error wait time 1, 2; graceful restart off;\n\
         ipv4 {{ import all; export none; }}; {ipv6} }}\n"
    );
    Bird::start(&rack.router, &rack.dir.join("spine"), &configuration)
}

/// The other router has no IPv6: it is no other way for that.
fn half_a_way(rack: &mut Rack) -> Result<()> {
    let router = leaf(rack)?;
    let spine = spine(rack, "")?;
    router.wait_seen(BLOCK6)?;
    spine.wait_established(&["node"], DEADLINE)?;
    drain(rack, &["--peer", "leaf", "--withdraw-after", "0"])?;
    [BLOCK, BLOCK6].iter().try_for_each(|prefix| wait_marked(router.as_ref(), prefix, true))?;
    let told: Vec<BgpPeerInfo> = rack.node.get("/v1/bgp/peers")?;
    assert!(
        told.iter().any(|peer| peer.name == "leaf" && peer.advertised == 3),
        "nothing is withdrawn: {told:?}"
    );
    drop(spine);
    let spine = self::spine(rack, IPV6)?;
    spine.wait_established(&["node"], DEADLINE)?;
    [BLOCK, BLOCK6, SERVICES].iter().try_for_each(|prefix| router.wait_gone(prefix))
}

/// Both families are agreed on, and what is announced of one is kept from it.
fn told_half(rack: &mut Rack) -> Result<()> {
    configure(rack, "{export: [{action: Reject, prefixes: [{cidr: 'fd00::/8'}]}]}")?;
    let router = leaf(rack)?;
    let spine = spine(rack, IPV6)?;
    router.wait_seen(BLOCK6)?;
    spine.wait_established(&["node"], DEADLINE)?;
    drain(rack, &["--peer", "leaf", "--withdraw-after", "0"])?;
    [BLOCK, BLOCK6].iter().try_for_each(|prefix| wait_marked(router.as_ref(), prefix, true))?;
    configure(rack, "{}")?;
    [BLOCK, BLOCK6, SERVICES].iter().try_for_each(|prefix| router.wait_gone(prefix))
}

fn annotation(rack: &mut Rack) -> Result<()> {
    let router = leaf(rack)?;
    router.wait_seen(SERVICES)?;
    let annotate = |value: &str| {
        let name = &rack.node.name;
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{bulkhead.dev/drain-routes: {value}}}}}\n"
        );
        fs::write(rack.dir.join("objects/node.yaml"), text)
    };
    annotate("'true'")?;
    wait_marked(router.as_ref(), SERVICES, true)?;
    stays(router.as_ref(), BLOCK)?;
    let status: Status = rack.node.get("/v1/status")?;
    assert_eq!(status.draining[0].by, "annotation");
    annotate("leaf")?;
    wait_marked(router.as_ref(), BLOCK, true)?;
    annotate("'false'")?;
    wait_marked(router.as_ref(), BLOCK, false)?;
    wait_marked(router.as_ref(), SERVICES, false)
}

fn last_pod(rack: &mut Rack) -> Result<()> {
    let router = leaf(rack)?;
    router.wait_seen(BLOCK6)?;
    drain(rack, &["--withdraw-after", "0"])?;
    router.wait_gone(SERVICES)?;
    [BLOCK, BLOCK6].iter().try_for_each(|block| stays(router.as_ref(), block))?;
    rack.pod.del(&rack.node)?;
    [BLOCK, BLOCK6].iter().try_for_each(|block| router.wait_gone(block))?;
    assert!(router.established()?);
    drain(rack, &["--undo"])?;
    wait_marked(router.as_ref(), SERVICES, false)?;
    assert_eq!(router.seen(BLOCK)?, None);
    Ok(())
}

fn everything(rack: &mut Rack) -> Result<()> {
    let router = leaf(rack)?;
    router.wait_seen(BLOCK6)?;
    drain(rack, &["--all", "--withdraw-after", "0"])?;
    [BLOCK, BLOCK6, SERVICES].iter().try_for_each(|prefix| router.wait_gone(prefix))?;
    assert!(router.established()?);
    drain(rack, &["--undo"])?;
    [BLOCK, BLOCK6, SERVICES].iter().try_for_each(|prefix| router.wait_seen(prefix).map(drop))
}

fn refused(rack: &mut Rack) -> Result<()> {
    until("both peers are configured", DEADLINE, || {
        let peers: Vec<BgpPeerInfo> = rack.node.get("/v1/bgp/peers")?;
        Ok((peers.len() == 2).then_some(()))
    })?;
    for (arguments, words) in [
        (vec!["--peer", "nobody"], "no BGP peer `nobody` on this node: there are: leaf, spine"),
        (vec!["--peer", "leaf", "--peer", "spine"], "a node keeps one way out"),
    ] {
        let said = drain(rack, &arguments).unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    }
    let status: Status = rack.node.get("/v1/status")?;
    assert_eq!(status.draining, []);
    Ok(())
}
