//! What this node announces: its own claimed blocks, and the service ranges that are asked for. Pure.

use crate::{
    ipam::is_fixed,
    net::Sources,
    peering::{self, Refusal},
};
use bulkhead_api::{
    messages::ObjectError,
    objects::{
        AddressFamily, BGPConfigurationSpec, BGPMonitoring, BGPPeerSpec, BGPSession, DEFAULT_PARTITION,
        PartitionBgp,
    },
};
use bulkhead_bgp::{Family, Password, PeerConfig, Remote, RouteAttributes, Station, filter::Community};
use bulkhead_policy::{NodeInfo, Objects, Sourced, selector};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

pub type Routes = BTreeMap<IpNetwork, RouteAttributes>;

/// Whether nodes announce what they have of this partition.
pub fn is_announced(objects: &Objects, partition: &str) -> bool {
    let bgp = objects.partitions.get(partition).and_then(|p| p.spec.bgp.as_ref());
    bgp.is_none_or(|bgp| bgp.advertise)
}

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
        if !is_announced(objects, partition) {
            continue;
        }
        // Of an address that moves, its former node may have a claim.
        let exclusive = is_fixed(block);
        routes.insert(*block, RouteAttributes { exclusive, ..attributes(&configuration.communities, bgp) });
    }
    routes
}

/// Service ranges, of the configuration and of partitions that want theirs announced. Every node announces them.
pub fn services(objects: &Objects, configuration: &BGPConfigurationSpec) -> Routes {
    let of_cluster = configuration.advertise_service_cidrs.iter().map(|range| (*range, None));
    let wanted = objects.partitions.values().filter_map(|p| {
        let bgp = p.spec.bgp.as_ref().filter(|bgp| bgp.advertise_services)?;
        Some(p.spec.service_cidrs.iter().map(move |range| (*range, Some(bgp))))
    });
    let all = of_cluster.chain(wanted.flatten());
    all.map(|(range, bgp)| (range, attributes(&configuration.service_communities, bgp))).collect()
}

/// Ranges of partitions that this node is named for to announce whole.
pub fn aggregates(node: &str, objects: &Objects, configuration: &BGPConfigurationSpec) -> Routes {
    let named = objects.partitions.values().filter_map(|p| {
        let named = |bgp: &&PartitionBgp| bgp.advertise && bgp.aggregate_from.iter().any(|name| name == node);
        let bgp = p.spec.bgp.as_ref().filter(named)?;
        Some(p.spec.pod_cidrs.iter().map(move |range| (*range, bgp)))
    });
    let route =
        |bgp| RouteAttributes { aggregate: true, ..attributes(&configuration.communities, Some(bgp)) };
    named.flatten().map(|(range, bgp)| (range, route(bgp))).collect()
}

/// What routes of services have whatever their service.
pub fn of_services(configuration: &BGPConfigurationSpec) -> RouteAttributes {
    attributes(&configuration.service_communities, None)
}

/// `everywhere`: what routes of this kind have whatever their partition.
pub(crate) fn attributes(everywhere: &[String], bgp: Option<&PartitionBgp>) -> RouteAttributes {
    let own = bgp.map(|b| b.communities.as_slice()).unwrap_or_default();
    let (mut communities, mut large_communities) = (Vec::new(), Vec::new());
    for community in everywhere.iter().chain(own).filter_map(|text| peering::community(text)) {
        match community {
            Community::Plain(value) => communities.push(value),
            Community::Large(value) => large_communities.push(value),
        }
    }
    RouteAttributes {
        communities,
        large_communities,
        med: bgp.and_then(|b| b.med),
        local_pref: bgp.and_then(|b| b.local_preference),
        prepend: bgp.map_or(0, |b| b.prepend),
        ..RouteAttributes::default()
    }
}

/// Collectors of BMP.
pub fn stations(node: &str, configuration: &BGPConfigurationSpec) -> Vec<Station> {
    let station = |monitoring: &BGPMonitoring| Station {
        address: (monitoring.address, monitoring.port).into(),
        statistics: Duration::from_secs(monitoring.statistics_seconds.into()),
        name: node.to_owned(),
        description: format!("bulkheadd {}", env!("CARGO_PKG_VERSION")),
    };
    configuration.monitoring.iter().map(station).collect()
}

type Peers = BTreeMap<String, Sourced<BGPPeerSpec>>;
type Configuration = Option<Sourced<BGPConfigurationSpec>>;

/// Lets through what a speaker can run with; of what it cannot, the version that was in force `before` stays. A group
/// that goes while peers are of it is the configuration's fault; a group that never was, the peer's.
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
            Err(refusal) => {
                refused.push(refused_peer(&name, object.file, refusal));
                before.0.get(&name).cloned()
            }
        };
        peers.extend(admitted.map(|object| (name, object)));
    }
    let lost = |(name, peer): (&String, &Sourced<BGPPeerSpec>)| {
        let stays = before.0.get(name).is_some_and(|known| known.spec == peer.spec);
        let known = before.1.as_ref().is_some_and(|c| has_group(c, &peer.spec));
        (stays && known).then(|| (name.clone(), peer.spec.group.clone().unwrap_or_default()))
    };
    if let Some(new) = &configuration
        && let Some((peer, group)) = peers.iter().filter(|(_, p)| !has_group(new, &p.spec)).find_map(lost)
    {
        refused.push(ObjectError {
            file: new.file.clone(),
            object: Some(format!("BGPConfiguration/{DEFAULT_PARTITION}")),
            field: Some("spec.peerGroups".into()),
            message: format!("BGPPeer/{peer} is still of the group `{group}`: change that object first"),
        });
        configuration.clone_from(before.1);
    }
    if let Some(configuration) = &configuration {
        for (name, object) in std::mem::take(&mut peers) {
            if has_group(configuration, &object.spec) {
                peers.insert(name, object);
                continue;
            }
            let message = format!(
                "there is no group `{}` in peerGroups of the BGPConfiguration",
                object.spec.group.as_deref().unwrap_or_default()
            );
            refused.push(refused_peer(&name, object.file, ("group".into(), message)));
            let known = before.0.get(&name).filter(|known| has_group(configuration, &known.spec));
            peers.extend(known.map(|known| (name, known.clone())));
        }
    }
    (peers, configuration, refused)
}

fn refused_peer(name: &str, file: Option<String>, (field, message): Refusal) -> ObjectError {
    ObjectError {
        file,
        object: Some(format!("BGPPeer/{name}")),
        field: Some(format!("spec.{field}")),
        message,
    }
}

fn has_group(configuration: &Sourced<BGPConfigurationSpec>, peer: &BGPPeerSpec) -> bool {
    peer.group.as_ref().is_none_or(|group| configuration.spec.peer_groups.contains_key(group))
}

/// The routers this node peers with, by name; `password` is what the session's file or Secret says. A peer whose password cannot be had is an
/// error: it must not be spoken to without it.
pub fn peers(
    node: &str,
    info: Option<&NodeInfo>,
    uplink: Sources,
    objects: &Peers,
    configuration: &BGPConfigurationSpec,
    password: impl Fn(&BGPSession) -> Result<Option<Password>, Refusal>,
) -> BTreeMap<String, Result<PeerConfig, ObjectError>> {
    let none = NodeInfo::default();
    let labels = &info.unwrap_or(&none).labels;
    let chosen = |spec: &BGPPeerSpec| {
        spec.node.as_deref().is_none_or(|n| n == node)
            && spec.node_selector.as_ref().is_none_or(|s| selector::matches(s, labels))
    };
    let one = |(name, object): (&String, &Sourced<BGPPeerSpec>)| {
        let group = object.spec.group.as_ref().and_then(|group| configuration.peer_groups.get(group));
        let session = object.spec.session.clone().or(group.unwrap_or(&BGPSession::default()));
        let made = password(&session)
            .and_then(|secret| peering::with_session(peer(name, &object.spec, uplink), &session, secret))
            .and_then(|made| peering::check_remote(&made).map(|()| made));
        let made = made.map_err(|(field, message)| {
            refused_peer(name, object.file.clone(), (format!("session.{field}"), message))
        });
        (name.clone(), made)
    };
    objects.iter().filter(|(_, object)| chosen(&object.spec)).map(one).collect()
}

fn check(spec: &BGPPeerSpec) -> Result<(), Refusal> {
    let ways = [spec.peer_address.is_some(), spec.peer_range.is_some(), spec.interface.is_some()];
    if ways.iter().filter(|there| **there).count() != 1 {
        let message = "set one of peerAddress (a router), peerRange (all that connect from there) and interface (the router \
                       that advertises itself there)";
        return Err(("peerAddress".into(), message.into()));
    }
    // As Linux has it.
    let is_name = |name: &str| {
        let fits = (1..16).contains(&name.len()) && name != "." && name != "..";
        fits && !name.contains(|c: char| c == '/' || c.is_whitespace())
    };
    if spec.interface.as_deref().is_some_and(|name| !is_name(name)) {
        return Err(("interface".into(), "is no name of an interface: 1 to 15 characters".into()));
    }
    let remote = Remote::Address(Ipv4Addr::UNSPECIFIED.into());
    peering::with_session(PeerConfig::new("", remote, spec.peer_asn), &spec.session, None)
        .map_err(|(field, message)| (format!("session.{field}"), message))?;
    if spec.peer_asn == 0 {
        return Err(("peerASN".into(), "0 is reserved (RFC 7607): give the router's AS number".into()));
    }
    if matches!(spec.hold_time_seconds, 1 | 2) {
        let message =
            format!("{} s is not allowed (RFC 4271 section 4.2): 0, or at least 3", spec.hold_time_seconds);
        return Err(("holdTimeSeconds".into(), message));
    }
    if spec.families.is_empty() {
        return Err(("families".into(), "name IPv4, IPv6 or both".into()));
    }
    Ok(())
}

fn peer(name: &str, spec: &BGPPeerSpec, uplink: Sources) -> PeerConfig {
    let local_address = match spec.peer_address {
        Some(IpAddr::V4(_)) => uplink.v4.map(IpAddr::V4),
        Some(IpAddr::V6(a)) if a.is_unicast_link_local() => None,
        Some(IpAddr::V6(_)) => uplink.v6.map(IpAddr::V6),
        None => None,
    };
    let remote = match (spec.peer_address, spec.peer_range, &spec.interface) {
        (Some(address), ..) => Remote::Address(address),
        (None, Some(range), _) => Remote::Range(range),
        (None, None, Some(interface)) => Remote::Interface(interface.clone()),
        // Not admitted.
        (None, None, None) => Remote::Address(Ipv4Addr::UNSPECIFIED.into()),
    };
    // Over an unnumbered session the next hop is the link-local address of that interface.
    let next_hops = if spec.interface.is_some() { Sources::default() } else { uplink };
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
        next_hop_ipv4: next_hops.v4,
        next_hop_ipv6: next_hops.v6,
        ..PeerConfig::new(name, remote, spec.peer_asn)
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
    let spec = &object.spec;
    let ranges = [
        ("advertiseServiceCIDRs", &spec.advertise_service_cidrs),
        ("advertiseExternalIPs", &spec.advertise_external_ips),
        ("advertiseLoadBalancerIPs", &spec.advertise_load_balancer_ips),
    ];
    let ranges = ranges.into_iter().flat_map(|(field, ranges)| {
        ranges.iter().enumerate().map(move |(i, range)| (format!("{field}[{i}]"), range))
    });
    for (field, range) in ranges {
        if range.prefix() == 0 {
            return Some(error(&field, "is a default route: name the services' own ranges"));
        }
        if range.ip() != range.network() {
            let message = format!("{range} has bits set beyond its prefix: write the network's own address");
            return Some(error(&field, &message));
        }
    }
    if let Some(i) = object.spec.monitoring.iter().position(|station| station.port == 0) {
        return Some(error(&format!("monitoring[{i}].port"), "must be 1 to 65535"));
    }
    for (name, session) in &object.spec.peer_groups {
        let remote = Remote::Address(Ipv4Addr::UNSPECIFIED.into());
        if let Err((field, message)) =
            peering::with_session(PeerConfig::new(name, remote, object.spec.asn), session, None)
        {
            return Some(error(&format!("peerGroups[{name}].{field}"), &message));
        }
    }
    let lists =
        [("communities", &object.spec.communities), ("serviceCommunities", &object.spec.service_communities)];
    lists.into_iter().find_map(|(field, list)| {
        let bad = list.iter().position(|text| peering::community(text).is_none())?;
        Some(error(&format!("{field}[{bad}]"), &peering::no_community(&list[bad])))
    })
}

#[cfg(test)]
mod tests;
