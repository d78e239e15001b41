//! What a route of ours looks like to a neighbour: its attributes and next hop (RFC 4271 section 5).

use crate::Family;
use crate::fsm::Up;
use crate::wire::{AsPath, Attributes, Origin};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// What the caller says about a route. Equal ones share UPDATEs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RouteAttributes {
    /// RFC 1997; order and repetition do not matter.
    pub communities: Vec<u32>,
}

/// LOCAL_PREF towards peers of our own AS.
const LOCAL_PREF: u32 = 100;

/// So many fit in a message beside everything else and a prefix.
const MAX_COMMUNITIES: usize = 900;

/// A route as one neighbour gets it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Export {
    pub attributes: Attributes,
    pub next_hop: IpAddr,
}

/// Why routes are kept from a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Withheld {
    #[error(
        "routes of {0} are not announced: the session runs over the other IP version, and no next hop is configured"
    )]
    NoNextHop(Family),
    #[error("routes with more than {MAX_COMMUNITIES} communities are not announced")]
    TooManyCommunities,
}

/// The next hops that are configured for a neighbour, whatever the session runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NextHops {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

/// The rules for one established session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPolicy {
    local_asn: u32,
    external: bool,
    next_hops: NextHops,
}

impl ExportPolicy {
    /// Where no next hop is configured, our end of the session is it, if it is a global address of the
    /// family.
    pub fn new(local_asn: u32, configured: NextHops, up: &Up) -> ExportPolicy {
        let (ipv4, ipv6) = match up.connection.local.to_canonical() {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (None, Some(address).filter(|address| !address.is_unicast_link_local())),
        };
        let next_hops = NextHops { ipv4: configured.ipv4.or(ipv4), ipv6: configured.ipv6.or(ipv6) };
        ExportPolicy { local_asn, external: up.negotiated.external, next_hops }
    }

    pub fn export(&self, family: Family, route: &RouteAttributes) -> Result<Export, Withheld> {
        let next_hop = match family {
            Family::Ipv4Unicast => self.next_hops.ipv4.map(IpAddr::V4),
            Family::Ipv6Unicast => self.next_hops.ipv6.map(IpAddr::V6),
        };
        let next_hop = next_hop.ok_or(Withheld::NoNextHop(family))?;
        let mut communities = route.communities.clone();
        communities.sort_unstable();
        communities.dedup();
        if communities.len() > MAX_COMMUNITIES {
            return Err(Withheld::TooManyCommunities);
        }
        let attributes = Attributes {
            origin: Origin::Igp,
            as_path: if self.external { AsPath::sequence([self.local_asn]) } else { AsPath::default() },
            med: None,
            local_pref: (!self.external).then_some(LOCAL_PREF),
            communities,
        };
        Ok(Export { attributes, next_hop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsm::{ConnId, Connection, Negotiated};

    fn up(local: &str, external: bool) -> Up {
        Up {
            connection: Connection { id: ConnId(1), local: local.parse().unwrap() },
            negotiated: Negotiated {
                peer_asn: 65020,
                peer_router_id: Ipv4Addr::new(10, 0, 0, 20),
                external,
                hold_time: 90,
                families: Family::ALL.to_vec(),
                four_octet_as: true,
                route_refresh: true,
                restart: None,
            },
        }
    }

    fn next_hop(local: &str, configured: NextHops, family: Family) -> Result<String, Withheld> {
        let policy = ExportPolicy::new(65010, configured, &up(local, true));
        policy.export(family, &RouteAttributes::default()).map(|export| export.next_hop.to_string())
    }

    #[test]
    fn an_external_peer_sees_our_as_and_no_local_pref() {
        let policy = ExportPolicy::new(65010, NextHops::default(), &up("10.0.0.1", true));
        let route = RouteAttributes { communities: vec![7, 3, 7] };
        let Attributes { origin, as_path, med, local_pref, communities } =
            policy.export(Family::Ipv4Unicast, &route).unwrap().attributes;
        assert_eq!((origin, med, local_pref), (Origin::Igp, None, None));
        assert_eq!(as_path, AsPath::sequence([65010]));
        assert_eq!(communities, [3, 7]);
    }

    #[test]
    fn an_internal_peer_sees_an_empty_path_and_local_pref() {
        let policy = ExportPolicy::new(65010, NextHops::default(), &up("10.0.0.1", false));
        let attributes = policy.export(Family::Ipv4Unicast, &RouteAttributes::default()).unwrap().attributes;
        assert_eq!(attributes.as_path, AsPath::default());
        assert_eq!(attributes.local_pref, Some(100));
    }

    #[test]
    fn our_end_of_the_session_is_the_next_hop_of_its_own_family_only() {
        let none = NextHops::default();
        let [ipv4, ipv6] = Family::ALL;
        assert_eq!(next_hop("10.0.0.1", none, ipv4), Ok("10.0.0.1".to_owned()));
        assert_eq!(next_hop("10.0.0.1", none, ipv6), Err(Withheld::NoNextHop(ipv6)));
        assert_eq!(next_hop("::ffff:10.0.0.1", none, ipv4), Ok("10.0.0.1".to_owned()));
        assert_eq!(next_hop("2001:db8::1", none, ipv6), Ok("2001:db8::1".to_owned()));
        assert_eq!(next_hop("2001:db8::1", none, ipv4), Err(Withheld::NoNextHop(ipv4)));
        assert_eq!(next_hop("fe80::1", none, ipv6), Err(Withheld::NoNextHop(ipv6)));
    }

    #[test]
    fn a_configured_next_hop_comes_first() {
        let configured =
            NextHops { ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)), ipv6: Some("2001:db8::9".parse().unwrap()) };
        let [ipv4, ipv6] = Family::ALL;
        assert_eq!(next_hop("10.0.0.1", configured, ipv4), Ok("192.0.2.1".to_owned()));
        assert_eq!(next_hop("10.0.0.1", configured, ipv6), Ok("2001:db8::9".to_owned()));
    }

    #[test]
    fn more_communities_than_a_message_holds_are_refused() {
        let policy = ExportPolicy::new(65010, NextHops::default(), &up("10.0.0.1", true));
        let route = RouteAttributes { communities: (0..=900).collect() };
        assert_eq!(policy.export(Family::Ipv4Unicast, &route), Err(Withheld::TooManyCommunities));
    }
}
