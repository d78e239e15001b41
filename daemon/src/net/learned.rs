//! Routes that were learned by BGP: next hops of both IP versions, one or several.
//!
//! Their priority is beyond what hosts usually have: a route that somebody else has made to the same prefix comes first.

use super::{
    Kernel, NetError, RTPROT_LEARNED, inspect,
    netlink::Request,
    routes::{RouteBuilder, route},
};
use bulkhead_bgp::NextHop;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteProtocol, RouteScope, RouteVia},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Several are of equal cost. Shared by the many routes that lead the same way.
pub type Hops = Arc<BTreeSet<NextHop>>;

/// Next hops by prefix.
pub type Learned = BTreeMap<IpNetwork, Hops>;

const PRIORITY: u32 = 4096;
/// Messages of one batch.
const BATCH: usize = 512;

impl Kernel {
    pub async fn learned(&self) -> Result<Learned, NetError> {
        let mut learned = Learned::new();
        let mut shared: BTreeSet<Hops> = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::Other(RTPROT_LEARNED);
            let objects = self.dump("list learned routes", Message::GetRoute(filter)).await?;
            let mut of_ours = |object: &Message| {
                let seen = inspect::route_of(object).filter(|seen| seen.protocol == RTPROT_LEARNED)?;
                let hops = shared.get(&seen.next_hops).cloned().unwrap_or_else(|| Arc::new(seen.next_hops));
                shared.insert(hops.clone());
                Some((seen.dst, hops))
            };
            learned.extend(objects.iter().filter_map(&mut of_ours));
        }
        Ok(learned)
    }

    /// Takes the place of what was learned of these prefixes before. One that is refused does not stop the others.
    pub async fn set_learned(&self, routes: &Learned) -> Result<(), NetError> {
        let set = |(prefix, hops): (&IpNetwork, &Hops)| {
            learned(*prefix).next_hops(prefix, hops).add("set a learned route")
        };
        self.batches(routes.iter().map(set).collect()).await
    }

    pub async fn remove_learned(&self, prefixes: &[IpNetwork]) -> Result<(), NetError> {
        let remove = |prefix: &IpNetwork| learned(*prefix).remove("remove a learned route");
        self.batches(prefixes.iter().map(remove).collect()).await
    }

    async fn batches(&self, mut requests: Vec<Request>) -> Result<(), NetError> {
        let mut outcome = Ok(());
        while !requests.is_empty() {
            let rest = requests.split_off(requests.len().min(BATCH));
            let done = self.batch(std::mem::replace(&mut requests, rest)).await;
            outcome = outcome.and(done.map(drop));
        }
        outcome
    }
}

fn learned(prefix: IpNetwork) -> RouteBuilder {
    let mut builder = route(prefix, RouteScope::Universe).with(RouteAttribute::Priority(PRIORITY));
    builder.0.header.protocol = RouteProtocol::Other(RTPROT_LEARNED);
    builder
}

impl RouteBuilder {
    fn next_hops(self, prefix: &IpNetwork, hops: &BTreeSet<NextHop>) -> Self {
        let gateway = |hop: &NextHop| match hop.address {
            // RFC 8950.
            IpAddr::V6(hop) if prefix.is_ipv4() => RouteAttribute::Via(RouteVia::Inet6(hop)),
            hop => RouteAttribute::Gateway(RouteAddress::from(hop)),
        };
        if let (1, Some(hop)) = (hops.len(), hops.first()) {
            let single = self.with(gateway(hop));
            return match hop.interface {
                Some(interface) => single.with(RouteAttribute::Oif(interface)),
                None => single,
            };
        }
        let next_hop = |hop: &NextHop| {
            let mut next_hop = RouteNextHop::default();
            next_hop.interface_index = hop.interface.unwrap_or_default();
            next_hop.attributes.push(gateway(hop));
            next_hop
        };
        self.with(RouteAttribute::MultiPath(hops.iter().map(next_hop).collect()))
    }
}
