//! Reads back what wiring made: addresses, routes and neighbours of one interface. Changes nothing.

use super::{
    Kernel, Link, Mac, NetError,
    links::{get_link, link_of},
};
use bulkhead_bgp::{NextHop, rib::is_link_local};
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The pod's side as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    pub link: Link,
    pub addresses: BTreeSet<IpNetwork>,
    /// Destination and gateway, of the main table, over this interface.
    pub routes: BTreeSet<(IpNetwork, Option<IpAddr>)>,
    /// Permanent entries.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

pub(super) async fn pod(inside: &Kernel, ifname: &str) -> Result<Option<PodState>, NetError> {
    let request = get_link("find the pod's interface", ifname).fine_if(&[libc::ENODEV]);
    let Some(link) = inside.batch(vec![request]).await?.iter().find_map(link_of) else { return Ok(None) };
    let addresses = addresses(inside, link.index).await?.into_iter().map(|a| a.network).collect();
    let mut routes = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        filter.attributes.push(RouteAttribute::Oif(link.index));
        let objects = inside.dump("list the pod's routes", Message::GetRoute(filter)).await?;
        routes.extend(objects.iter().filter_map(route_of).map(|r| (r.dst, r.gateway)));
    }
    let neighbours = neighbours(inside, link.index).await?;
    Ok(Some(PodState { link, addresses, routes, neighbours }))
}

/// An address of an interface.
pub(super) struct Address {
    pub network: IpNetwork,
    pub message: AddressMessage,
}

pub(super) async fn addresses(kernel: &Kernel, ifindex: u32) -> Result<Vec<Address>, NetError> {
    let mut filter = AddressMessage::default();
    filter.header.index = ifindex;
    let objects = kernel.dump("list addresses", Message::GetAddress(filter)).await?;
    let parse = |object| {
        let Message::NewAddress(message) = object else { return None };
        let find =
            |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
        // IFA_LOCAL is the address itself where the two differ (point to point).
        let local = find(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
        let address = find(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None });
        let network = IpNetwork::new(local.or(address)?, message.header.prefix_len).ok()?;
        Some(Address { network, message })
    };
    Ok(objects.into_iter().filter_map(parse).collect())
}

pub(super) async fn neighbours(kernel: &Kernel, ifindex: u32) -> Result<BTreeMap<IpAddr, Mac>, NetError> {
    let mut filter = NeighbourMessage::default();
    filter.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    let objects = kernel.dump("list neighbours", Message::GetNeighbour(filter)).await?;
    let parse = |object: &Message| {
        let Message::NewNeighbour(message) = object else { return None };
        if message.header.state != NeighbourState::Permanent || message.header.ifindex != ifindex {
            return None;
        }
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
                NeighbourAttribute::LinkLayerAddress(b) => mac = b.as_slice().try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some((address?, mac?))
    };
    Ok(objects.iter().filter_map(parse).collect())
}

pub(super) struct RouteSeen {
    pub dst: IpNetwork,
    pub gateway: Option<IpAddr>,
    /// All its gateways, of either IP version; those of link-local addresses with their interface.
    pub next_hops: BTreeSet<NextHop>,
    /// One, or as many as it has next hops.
    pub interfaces: Vec<u32>,
    pub protocol: u8,
    pub discard: bool,
}

/// A route of the main table.
pub(super) fn route_of(object: &Message) -> Option<RouteSeen> {
    let Message::NewRoute(message) = object else { return None };
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let v4 = message.header.address_family == AddressFamily::Inet;
    let mut dst: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut gateway, mut interfaces) = (None, Vec::new());
    let mut next_hops = BTreeSet::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => dst = ip_of(a)?,
            RouteAttribute::Gateway(a) => gateway = ip_of(a),
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => {
                interfaces.extend(hops.iter().map(|h| h.interface_index));
                let of_hop = |h: &RouteNextHop| next_hop_of(&h.attributes, Some(h.interface_index));
                next_hops.extend(hops.iter().filter_map(of_hop));
            }
            _ => {}
        }
    }
    next_hops.extend(next_hop_of(&message.attributes, interfaces.first().copied()));
    Some(RouteSeen {
        dst: IpNetwork::new(dst, message.header.destination_prefix_length).ok()?,
        gateway,
        next_hops,
        interfaces,
        protocol: message.header.protocol.into(),
        discard: message.header.kind == RouteType::BlackHole,
    })
}

/// Where an IPv4 route of any table leads to.
pub(super) fn ipv4_route(message: &RouteMessage) -> Option<IpNetwork> {
    let dst = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(ip_of(address)),
        _ => None,
    });
    let dst = dst.unwrap_or(Some(Ipv4Addr::UNSPECIFIED.into()))?;
    IpNetwork::new(dst, message.header.destination_prefix_length).ok()
}

fn next_hop_of(attributes: &[RouteAttribute], interface: Option<u32>) -> Option<NextHop> {
    let address = attributes.iter().find_map(gateway_of)?;
    Some(NextHop { address, interface: interface.filter(|_| is_link_local(address)) })
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        RouteAttribute::Via(RouteVia::Inet(a)) => Some(IpAddr::V4(*a)),
        RouteAttribute::Via(RouteVia::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}
