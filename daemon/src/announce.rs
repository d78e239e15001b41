//! What this node announces: its own claimed blocks, no more. Pure, but for the file that remembers it.

use crate::net::Sources;
use bulkhead_api::{
    messages::ObjectError,
    objects::{AddressFamily, BGPConfigurationSpec, BGPPeerSpec, DEFAULT_PARTITION},
};
use bulkhead_bgp::{Family, PeerConfig, Remote, RouteAttributes};
use bulkhead_policy::{NodeInfo, Objects, Sourced, selector};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr};

pub type Routes = BTreeMap<IpNetwork, RouteAttributes>;

/// The routes for this node's blocks (block → partition), with the communities of cluster and partition.
pub fn routes(
    blocks: &BTreeMap<IpNetwork, String>,
    objects: &Objects,
    configuration: &BGPConfigurationSpec,
) -> Routes {
    let mut routes = Routes::new();
    for (block, partition) in blocks {
        let bgp = match objects.partitions.get(partition) {
            Some(p) => p.spec.bgp.as_ref(),
            // A block outlives its partition while pods hold its addresses.
            None => None,
        };
        if bgp.is_some_and(|b| !b.advertise) {
            continue;
        }
        let own = bgp.map(|b| b.communities.as_slice()).unwrap_or_default();
        let communities = configuration.communities.iter().chain(own).filter_map(|c| community(c)).collect();
        routes.insert(*block, RouteAttributes { communities, ..RouteAttributes::default() });
    }
    routes
}

/// RFC 1997: `65000:100` is two 16-bit halves.
fn community(text: &str) -> Option<u32> {
    let (high, low) = text.split_once(':')?;
    Some(u32::from(high.parse::<u16>().ok()?) << 16 | u32::from(low.parse::<u16>().ok()?))
}

type Peers = BTreeMap<String, Sourced<BGPPeerSpec>>;
type Configuration = Option<Sourced<BGPConfigurationSpec>>;

/// Lets through what a speaker can run with; of what it cannot, the version that was in force `before` stays.
pub fn admit(
    before: (&Peers, &Configuration),
    mut peers: Peers,
    mut configuration: Configuration,
) -> (Peers, Configuration, Vec<ObjectError>) {
    let mut refused = Vec::new();
    if let Some(error) = configuration.as_ref().and_then(check_configuration) {
        refused.push(error);
        configuration.clone_from(before.1);
    }
    for (name, object) in std::mem::take(&mut peers) {
        let admitted = match check(&object.spec) {
            Ok(()) => Some(object),
            Err((field, message)) => {
                refused.push(ObjectError {
                    file: object.file,
                    object: Some(format!("BGPPeer/{name}")),
                    field: Some(format!("spec.{field}")),
                    message,
                });
                before.0.get(&name).cloned()
            }
        };
        peers.extend(admitted.map(|object| (name, object)));
    }
    (peers, configuration, refused)
}

/// The routers this node peers with.
pub fn peers(
    node: &str,
    info: Option<&NodeInfo>,
    uplink: Sources,
    objects: &BTreeMap<String, Sourced<BGPPeerSpec>>,
) -> Vec<PeerConfig> {
    let none = NodeInfo::default();
    let labels = &info.unwrap_or(&none).labels;
    let chosen = |spec: &BGPPeerSpec| {
        spec.node.as_deref().is_none_or(|n| n == node)
            && spec.node_selector.as_ref().is_none_or(|s| selector::matches(s, labels))
    };
    let objects = objects.iter().filter(|(_, object)| chosen(&object.spec));
    objects.map(|(name, object)| peer(name, &object.spec, uplink)).collect()
}

fn check(spec: &BGPPeerSpec) -> Result<(), (&'static str, String)> {
    if spec.peer_asn == 0 {
        return Err(("peerASN", "0 is reserved (RFC 7607): give the router's AS number".into()));
    }
    if matches!(spec.hold_time_seconds, 1 | 2) {
        let message =
            format!("{} s is not allowed (RFC 4271 section 4.2): 0, or at least 3", spec.hold_time_seconds);
        return Err(("holdTimeSeconds", message));
    }
    if spec.families.is_empty() {
        return Err(("families", "name IPv4, IPv6 or both".into()));
    }
    Ok(())
}

fn peer(name: &str, spec: &BGPPeerSpec, uplink: Sources) -> PeerConfig {
    let local_address = match spec.peer_address {
        IpAddr::V4(_) => uplink.v4.map(IpAddr::V4),
        IpAddr::V6(a) if a.is_unicast_link_local() => None,
        IpAddr::V6(_) => uplink.v6.map(IpAddr::V6),
    };
    let family = |f: &AddressFamily| match f {
        AddressFamily::IPv4 => Family::Ipv4Unicast,
        AddressFamily::IPv6 => Family::Ipv6Unicast,
    };
    PeerConfig {
        port: spec.port,
        hold_time: spec.hold_time_seconds,
        connect_retry: spec.connect_retry_seconds,
        families: spec.families.iter().map(family).collect(),
        local_address,
        next_hop_ipv4: uplink.v4,
        next_hop_ipv6: uplink.v6,
        ..PeerConfig::new(name, Remote::Address(spec.peer_address), spec.peer_asn)
    }
}

/// A configuration that no speaker could run with.
fn check_configuration(object: &Sourced<BGPConfigurationSpec>) -> Option<ObjectError> {
    let error = |field: &str, message: &str| ObjectError {
        file: object.file.clone(),
        object: Some(format!("BGPConfiguration/{DEFAULT_PARTITION}")),
        field: Some(format!("spec.{field}")),
        message: message.to_string(),
    };
    if object.spec.asn == 0 {
        return Some(error("asn", "0 is reserved (RFC 7607): give the cluster's AS number"));
    }
    if !(1..=4095).contains(&object.spec.restart_time_seconds) {
        return Some(error("restartTimeSeconds", "must be 1 to 4095 (RFC 4724 section 3)"));
    }
    let bad = object.spec.communities.iter().position(|c| community(c).is_none())?;
    let message = format!(
        "`{}` is not a community: write two numbers up to 65535, as 65000:100",
        object.spec.communities[bad]
    );
    Some(error(&format!("communities[{bad}]"), &message))
}
