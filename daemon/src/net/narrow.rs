//! IPv4 routes with an MTU of their own. The stack honours it when it forwards, locked or not; the route look-up of the
//! programs tells a locked one only. (Of IPv6 routes it tells all.)

use super::{Kernel, NetError, inspect::ipv4_route};
use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType},
};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

/// By prefix, in bytes; 0: a route without one, within one that has.
pub type NarrowRoutes = BTreeMap<IpNetwork, u32>;

/// Changes that come in such a time are one: a dump of all routes may be long.
const GATHER: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(5);
/// Prefixes that are told of at most. (A route without an MTU that is not told of only takes long packets to the stack.)
const MOST: usize = 8192;
/// RTAX_LOCK's bit for RTAX_MTU.
const LOCKED_MTU: u32 = 1 << 2;

/// What the kernel says of a unicast route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    dst: IpNetwork,
    is_main: bool,
    /// Not locked; 0: none.
    mtu: u32,
}

impl Seen {
    fn of(object: &Message) -> Option<Self> {
        let (Message::NewRoute(message) | Message::DelRoute(message)) = object else { return None };
        if message.header.address_family != AddressFamily::Inet || message.header.kind != RouteType::Unicast {
            return None;
        }
        let metrics = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Metrics(metrics) => Some(&metrics[..]),
            _ => None,
        });
        let is_main = message.header.table == RouteHeader::RT_TABLE_MAIN;
        Some(Self { dst: ipv4_route(message)?, is_main, mtu: unlocked_mtu(metrics.unwrap_or_default()) })
    }
}

fn unlocked_mtu(metrics: &[RouteMetric]) -> u32 {
    let find = |wanted: fn(&RouteMetric) -> Option<u32>| metrics.iter().find_map(wanted).unwrap_or(0);
    let locks = find(|m| if let RouteMetric::Lock(bits) = m { Some(*bits) } else { None });
    let mtu = find(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
    if locks & LOCKED_MTU == 0 { mtu } else { 0 }
}

/// Of several routes to one prefix the least MTU counts: which of them is taken is not known here. Nor is which table: within
/// a route of another table than the main one, no route of the main table counts.
#[derive(Default)]
struct Limits {
    with: NarrowRoutes,
    elsewhere: BTreeSet<IpNetwork>,
}

impl Limits {
    fn add(&mut self, route: Seen) {
        if route.mtu == 0 {
            return;
        }
        let least = self.with.entry(route.dst).or_insert(route.mtu);
        *least = route.mtu.min(*least);
        if !route.is_main {
            self.elsewhere.insert(route.dst);
        }
    }

    /// A route without an MTU that must be told of.
    fn is_exception(&self, route: &Seen) -> bool {
        let covers = |range: &&IpNetwork| covers(range, &route.dst);
        route.mtu == 0
            && route.is_main
            && self.with.keys().any(|range| covers(&range))
            && !self.with.contains_key(&route.dst)
            && !self.elsewhere.iter().any(|range| covers(&range))
    }

    fn with_exceptions(self, exceptions: BTreeSet<IpNetwork>) -> NarrowRoutes {
        let mut all = self.with;
        if all.len() + exceptions.len() <= MOST {
            all.extend(exceptions.into_iter().map(|dst| (dst, 0)));
        }
        all
    }
}

fn covers(range: &IpNetwork, of: &IpNetwork) -> bool {
    range.prefix() <= of.prefix() && range.contains(of.network())
}

impl Kernel {
    pub async fn narrow_routes(&self) -> Result<NarrowRoutes, NetError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = AddressFamily::Inet;
        let all = || Message::GetRoute(filter.clone());
        let mut limits = Limits::default();
        self.each("list IPv4 routes", all(), |object| {
            if let Some(route) = Seen::of(&object) {
                limits.add(route);
            }
        })
        .await?;
        let mut exceptions = BTreeSet::new();
        if !limits.with.is_empty() {
            self.each("list IPv4 routes", all(), |object| {
                if let Some(route) = Seen::of(&object)
                    && exceptions.len() <= MOST
                    && limits.is_exception(&route)
                {
                    exceptions.insert(route.dst);
                }
            })
            .await?;
        }
        Ok(limits.with_exceptions(exceptions))
    }
}

/// Tells what [`Kernel::narrow_routes`] are, now and after each change, as long as somebody listens.
pub fn watch_narrow_routes(kernel: Kernel) -> Result<watch::Receiver<NarrowRoutes>, NetError> {
    let (connection, _, mut changes) =
        new_multicast_connection(&[MulticastGroup::Ipv4Route]).map_err(NetError::Socket)?;
    tokio::spawn(connection);
    let (tell, told) = watch::channel(NarrowRoutes::new());
    tokio::spawn(async move {
        // Behind the subscription: a change in between is seen as one. The first is told in any case: of what a daemon before
        // this one has written nothing may be true any more.
        let mut first = true;
        while !tell.is_closed() {
            match kernel.narrow_routes().await {
                Ok(now) => {
                    tell.send_if_modified(|before| {
                        let differs = std::mem::take(&mut first) || *before != now;
                        *before = now;
                        differs
                    });
                }
                Err(e) => {
                    warn!(error = %e, "cannot read the MTUs of routes; tried again");
                    sleep(RETRY).await;
                    continue;
                }
            }
            loop {
                let Some((message, _)) = changes.next().await else { return };
                if matters(&message, !tell.borrow().is_empty()) {
                    break;
                }
            }
            sleep(GATHER).await;
            while changes.try_recv().is_ok() {}
        }
    });
    Ok(told)
}

/// While no route has an MTU, one that has none changes nothing: a router's full table may come and go.
fn matters(message: &NetlinkMessage<Message>, any: bool) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(object) => Seen::of(object).is_some_and(|route| any || route.mtu != 0),
        // The kernel had more to say than there was room for.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(dst: &str, mtu: u32) -> Seen {
        Seen { dst: dst.parse().unwrap(), is_main: true, mtu }
    }

    fn narrow(routes: &[Seen]) -> NarrowRoutes {
        let mut limits = Limits::default();
        routes.iter().for_each(|route| limits.add(*route));
        let exceptions = routes.iter().filter(|r| limits.is_exception(r)).map(|r| r.dst).collect();
        limits.with_exceptions(exceptions)
    }

    fn expect(routes: &[(&str, u32)]) -> NarrowRoutes {
        routes.iter().map(|(dst, mtu)| (dst.parse().unwrap(), *mtu)).collect()
    }

    #[test]
    fn a_locked_mtu_is_the_look_ups_own() {
        let metrics = |lock| [RouteMetric::Lock(lock), RouteMetric::Mtu(1400)];
        assert_eq!([0, 4, 6, 2].map(|lock| unlocked_mtu(&metrics(lock))), [1400, 0, 0, 1400]);
        assert_eq!(unlocked_mtu(&[RouteMetric::Advmss(1000)]), 0);
    }

    #[test]
    fn routes_without_an_mtu_are_told_of_within_those_that_have_one() {
        let routes = [
            seen("0.0.0.0/0", 0),
            seen("10.0.0.0/8", 1400),
            seen("10.1.0.0/16", 0),
            seen("10.1.1.0/24", 1300),
        ];
        assert_eq!(
            narrow(&routes),
            expect(&[("10.0.0.0/8", 1400), ("10.1.0.0/16", 0), ("10.1.1.0/24", 1300)])
        );
        assert_eq!(narrow(&routes[..1]), NarrowRoutes::new());
    }

    #[test]
    fn where_it_is_not_known_which_route_is_taken_the_least_mtu_counts() {
        let twice = [seen("10.0.0.0/8", 1400), seen("10.0.0.0/8", 0), seen("10.0.0.0/8", 1300)];
        assert_eq!(narrow(&twice), expect(&[("10.0.0.0/8", 1300)]));
        let other_table = Seen { is_main: false, ..seen("10.0.0.0/8", 1400) };
        assert_eq!(narrow(&[other_table, seen("10.1.0.0/16", 0)]), expect(&[("10.0.0.0/8", 1400)]));
    }

    #[test]
    fn too_many_routes_within_one_with_an_mtu_are_left_out() {
        let within = (0..=MOST as u32).map(|n| seen(&format!("10.{}.{}.0/24", n >> 8, n & 255), 0));
        let routes: Vec<_> = within.chain([seen("0.0.0.0/0", 1400)]).collect();
        assert_eq!(narrow(&routes), expect(&[("0.0.0.0/0", 1400)]));
    }
}
