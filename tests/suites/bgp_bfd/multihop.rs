//! A router that is not on the link: BGP and BFD (RFC 5883) go through one that speaks neither.
//!
//! ```text
//!   node 172.31.9.2 ──── 172.31.9.1 transit 172.31.10.254 ──── 172.31.10.1 BIRD or FRR
//! ```

use super::{all_up, bfd_state, falls};
use bulkhead_api::messages::BgpPeerInfo;
use bulkhead_lab::bgp::{
    Kind, Router, Setup,
    rack::{BLOCK, Rack},
    site::{NODE, ROUTER, ROUTER6},
};
use bulkhead_lab::{
    Netns, Result,
    link::{End, run},
    veth,
};
use std::sync::Arc;

const FAR: &str = "172.31.10.1";
const FAR6: &str = "fd00:31:10::1";
const TRANSIT: &str = "172.31.10.254";
const TRANSIT6: &str = "fd00:31:10::254";
/// What is on the link alone is not let through: a session that comes up is not one of RFC 5881.
const TRANSIT_RULES: &str =
    "table inet transit { chain forward { type filter hook forward priority 0; udp dport 3784 drop; }; }";
/// The hold time is 90 s: what ends a session here earlier is BFD.
const SETUP: Setup = Setup { router: FAR, multihop: true, ..super::SETUP };

/// The rack's router is the one between, and the node is to peer with the one behind it under `session`.
fn behind(rack: &Rack, session: &str) -> Result<Arc<Netns>> {
    let far = Netns::create(&format!("far-{}", rack.node.netns.name()))?;
    far.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    let [f4, f6, t4, t6] = [(FAR, 24), (FAR6, 64), (TRANSIT, 24), (TRANSIT6, 64)]
        .map(|(address, length)| format!("{address}/{length}"));
    veth(
        End { netns: &far, name: "uplink", addresses: &[&f4, &f6] },
        End { netns: &rack.router, name: "beyond", addresses: &[&t4, &t6] },
    )?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        rack.router.sysctl(key, "1")?;
    }
    run(rack.router.command("nft").arg(TRANSIT_RULES))?;
    far.ip(&format!("route add 172.31.9.0/24 via {TRANSIT}"))?;
    far.ip(&format!("route add fd00:31:9::/64 via {TRANSIT6}"))?;
    rack.node.netns.ip(&format!("route add 172.31.10.0/24 via {ROUTER}"))?;
    rack.node.netns.ip(&format!("route add fd00:31:10::/64 via {ROUTER6}"))?;
    rack.peer_with(&format!("peerAddress: {FAR}"), session)?;
    Ok(Arc::new(far))
}

fn session(ttl: &str) -> String {
    format!("{{{ttl}, sourceAddress: {NODE}, import: [{{action: Accept}}], bfd: {{}}}}")
}

pub fn silent_death(rack: &mut Rack, kind: Kind) -> Result<()> {
    let bfd = rack.bfd()?;
    let far = behind(rack, &session("multihopTTL: 2"))?;
    let router = kind.start_in(&far, &rack.dir, &SETUP)?;
    all_up(rack, &*router)?;
    rack.wait_leaf("the session has stood", |leaf| leaf.received == 2 && leaf.since_seconds >= 6)?;
    kept_through_a_kill(rack, &*router, || falls(&bfd))?;
    rack.wait_leaf("the session has stood", |leaf| leaf.received == 2 && leaf.since_seconds >= 6)?;
    rack.cut()?;
    let leaf = rack.wait_leaf("we have left the router", |leaf| leaf.state != "Established")?;
    assert_eq!(leaf.last_error.as_deref(), Some("BFD: the path to the peer is dead"));
    rack.wait_leaf("nothing leads there any more", |leaf| leaf.received == 0)?;
    router.wait_lost()?;
    rack.mend()?;
    all_up(rack, &*router)
}

fn kept_through_a_kill(
    rack: &mut Rack,
    router: &dyn Router,
    falls: impl Fn() -> Result<usize>,
) -> Result<()> {
    let (before, fallen) = (router.watched()?, falls()?);
    rack.node.kill_daemon()?;
    router.wait_lost()?;
    assert!(router.seen(BLOCK)?.is_some_and(|seen| seen.stale), "kept");
    rack.node.start_daemon()?;
    all_up(rack, router)?;
    assert_eq!((router.watched()?, falls()?), (before, fallen), "one BFD session all the time");
    Ok(())
}

/// BIRD 2.0.12 sends BFD over several hops with its system's TTL, which `ttlSecurityHops` refuses; what another router would send
/// is made of it on the way.
pub fn too_far(rack: &mut Rack) -> Result<()> {
    let _bfd = rack.bfd()?;
    let far = behind(rack, &session("ttlSecurityHops: 2"))?;
    let router = Kind::Bird.start_in(&far, &rack.dir, &Setup { security: true, ..SETUP })?;
    router.wait_established()?;
    let alone = |leaf: &BgpPeerInfo| leaf.state == "Established" && bfd_state(leaf) == "Down";
    rack.wait_leaf("BGP alone is up", alone)?;
    arrives_with(&rack.router, 254)?;
    rack.wait_leaf("one router between is as many as there may be", |leaf| bfd_state(leaf) == "Up")?;
    arrives_with(&rack.router, 253)?;
    // By whichever end is the first to say so.
    let left = |leaf: &BgpPeerInfo| leaf.state != "Established" && bfd_state(leaf) == "Down";
    rack.wait_leaf("two are too many", left).map(drop)
}

/// From now on, what the router sends of BFD.
fn arrives_with(transit: &Netns, ttl: u8) -> Result<()> {
    let rules = format!(
        "table ip far; flush table ip far; table ip far {{ chain forward {{ type filter hook forward priority mangle; \
         ip daddr {NODE} udp dport 4784 ip ttl set {ttl}; }}; }}"
    );
    run(transit.command("nft").arg(rules)).map(drop)
}
