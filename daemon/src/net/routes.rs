//! Routes and neighbour entries of the host side, and the discard routes of own blocks.

use super::{
    HostSide, HostState, Kernel, Mac, NetError, OwnRoute, RTPROT_BULKHEAD, Routes, host_network, inspect,
    links, netlink::Request,
};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Of discard routes: a live pod's route, even of the same length, is preferred.
const DISCARD_PRIORITY: u32 = 65_535;

impl Routes for Kernel {
    async fn open(&self, ifindex: u32, host: &HostSide) -> Result<(), NetError> {
        let mut requests = vec![links::set_up("bring the host side up", ifindex)];
        for &address in &host.addresses {
            requests.push(neighbour("set the pod's neighbour entry", ifindex, address, host.pod_mac));
            let mut to_pod = route(host_network(address), RouteScope::Link).device(ifindex).ours();
            if let Some(source) = host.sources.towards(address) {
                to_pod = to_pod.source(source);
            }
            requests.push(to_pod.add("set the route to the pod"));
        }
        requests.push(links::get_link_by_index("find the pod's side", ifindex));
        let objects = self.batch(requests).await?;
        // Who is asked for has its carrier's change carried out first (Linux 6.8). Otherwise a work item does that, and what the pod
        // sends before is lost.
        match objects.iter().find_map(links::peer_of) {
            Some((peer, netns)) => self.batch(vec![links::get_link_in(netns, peer)]).await.map(|_| ()),
            None => Ok(()),
        }
    }

    async fn inspect_host(&self, ifindex: u32) -> Result<HostState, NetError> {
        let routes = self.list_routes().await?;
        let routes = routes.into_iter().filter(|r| r.ifindex == Some(ifindex)).map(|r| r.dst).collect();
        Ok(HostState { routes, neighbours: inspect::neighbours(self, ifindex).await? })
    }

    async fn list_routes(&self) -> Result<BTreeSet<OwnRoute>, NetError> {
        let mut own = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::Other(RTPROT_BULKHEAD);
            let objects = self.dump("list our routes", Message::GetRoute(filter)).await?;
            own.extend(
                objects.iter().filter_map(inspect::route_of).filter(|r| r.protocol == RTPROT_BULKHEAD).map(
                    |r| OwnRoute {
                        dst: r.dst,
                        ifindex: if r.discard { None } else { r.interfaces.first().copied() },
                    },
                ),
            );
        }
        Ok(own)
    }

    async fn remove_routes(&self, routes: &[OwnRoute]) -> Result<(), NetError> {
        let request = |own: &OwnRoute| {
            let builder = match own.ifindex {
                Some(ifindex) => route(own.dst, RouteScope::Link).device(ifindex).ours(),
                None => discard(own.dst),
            };
            builder.remove("remove the route")
        };
        self.batch(routes.iter().map(request).collect()).await.map(|_| ())
    }

    async fn set_blocks(&self, blocks: &BTreeSet<IpNetwork>) -> Result<(), NetError> {
        let own = self.list_routes().await?;
        let there: BTreeSet<_> = own.into_iter().filter(|r| r.ifindex.is_none()).map(|r| r.dst).collect();
        let removed: Vec<_> = there.difference(blocks).map(|&dst| OwnRoute { dst, ifindex: None }).collect();
        let added = blocks.difference(&there).map(|&b| discard(b).add("set the discard route of a block"));
        self.batch(added.collect()).await?;
        self.remove_routes(&removed).await
    }
}

/// A route message under construction; main table.
pub(super) struct RouteBuilder(pub(super) RouteMessage);

pub(super) fn route(dst: IpNetwork, scope: RouteScope) -> RouteBuilder {
    let mut message = RouteMessage::default();
    message.header.address_family = links::family_of(dst.ip());
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    // IPv6 has no scopes.
    message.header.scope = if dst.is_ipv4() { scope } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = dst.prefix();
    if dst.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(dst.network().into()));
    }
    RouteBuilder(message)
}

fn discard(block: IpNetwork) -> RouteBuilder {
    let mut builder = route(block, RouteScope::Universe).ours();
    builder.0.header.kind = RouteType::BlackHole;
    builder.0.attributes.push(RouteAttribute::Priority(DISCARD_PRIORITY));
    builder
}

impl RouteBuilder {
    pub(super) fn with(mut self, attribute: RouteAttribute) -> Self {
        self.0.attributes.push(attribute);
        self
    }

    pub fn device(self, ifindex: u32) -> Self {
        self.with(RouteAttribute::Oif(ifindex))
    }

    pub fn gateway(self, gateway: IpAddr) -> Self {
        self.with(RouteAttribute::Gateway(RouteAddress::from(gateway)))
    }

    fn source(self, source: IpAddr) -> Self {
        self.with(RouteAttribute::PrefSource(source.into()))
    }

    fn ours(mut self) -> Self {
        self.0.header.protocol = RouteProtocol::Other(RTPROT_BULKHEAD);
        self
    }

    pub fn add(self, what: &'static str) -> Request {
        Request::new(what, Message::NewRoute(self.0), NLM_F_CREATE | NLM_F_REPLACE)
    }

    pub(super) fn remove(self, what: &'static str) -> Request {
        Request::new(what, Message::DelRoute(self.0), 0).fine_if(&[libc::ESRCH, libc::ENODEV])
    }
}

/// A permanent entry: nobody is asked, nobody can answer falsely.
pub(super) fn neighbour(what: &'static str, ifindex: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = links::family_of(address);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::new(what, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}
