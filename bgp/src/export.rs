//! What a route of ours looks like to a neighbour: its attributes and next hop (RFC 4271 section 5).

use crate::Family;
use crate::fsm::Up;
use crate::wire::{AsPath, Attributes, LargeCommunity, Origin};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// What the caller says about a route. Equal ones share UPDATEs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RouteAttributes {
    /// RFC 1997; order and repetition do not matter, here and below.
    pub communities: Vec<u32>,
    /// RFC 4360, as they stand on the wire.
    pub extended_communities: Vec<u64>,
    /// RFC 8092.
    pub large_communities: Vec<LargeCommunity>,
    pub med: Option<u32>,
    /// Towards peers of our own AS; 100 where it is not said.
    pub local_pref: Option<u32>,
    /// How many times more our AS number stands in the path, towards peers of another AS.
    pub prepend: u8,
    /// Nobody else may announce it at the same time: kept back in a session that has just begun, until the caller has asked
    /// whether it is still ours ([`Intent::verified`](crate::neighbour::Intent::verified)).
    pub exclusive: bool,
    /// Parts of it are others', and learned from them.
    pub aggregate: bool,
}

/// RFC 8326: this way is about to go, take another.
pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;

const LOCAL_PREF: u32 = 100;

/// Octets of communities that fit in a message beside everything else and a prefix.
const COMMUNITIES_ROOM: usize = 3600;

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
    #[error("routes with more than {COMMUNITIES_ROOM} octets of communities are not announced")]
    TooManyCommunities,
}

/// The next hops that are configured for a neighbour, whatever the session runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NextHops {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

/// Who we are to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAs {
    /// The AS number of the session.
    pub session: u32,
    /// Where it is not the same, ours stands behind it in the path ...
    pub own: u32,
    /// ... unless it is a private one and those are to be removed.
    pub remove_private: bool,
}

impl LocalAs {
    fn path(&self, prepend: u8) -> AsPath {
        let behind = self.own != self.session && !(self.remove_private && is_private(self.own));
        let first = std::iter::repeat_n(self.session, 1 + usize::from(prepend));
        AsPath::sequence(first.chain(behind.then_some(self.own)).collect::<Vec<_>>())
    }
}

/// RFC 6996.
fn is_private(asn: u32) -> bool {
    (64_512..=65_534).contains(&asn) || (4_200_000_000..=4_294_967_294).contains(&asn)
}

/// The rules for one established session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPolicy {
    local: LocalAs,
    external: bool,
    ipv4: Option<IpAddr>,
    ipv6: Option<Ipv6Addr>,
    /// Every route goes out with [`GRACEFUL_SHUTDOWN`].
    leaving: bool,
}

impl ExportPolicy {
    /// Where no next hop is configured, our end of the session is it, if it is a global address of the
    /// family. Where RFC 8950 is agreed on, the IPv6 one serves IPv4 as well, and may be link-local: such a
    /// peer is on the same link.
    pub fn new(local: LocalAs, configured: NextHops, up: &Up) -> ExportPolicy {
        let over_ipv6 = up.negotiated.extended_next_hop;
        let (ipv4, ipv6) = match up.connection.local.to_canonical() {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => {
                (None, Some(address).filter(|address| over_ipv6 || !address.is_unicast_link_local()))
            }
        };
        let ipv6 = configured.ipv6.or(ipv6);
        let ipv4 = configured.ipv4.or(ipv4).map(IpAddr::V4);
        let ipv4 = ipv4.or(ipv6.filter(|_| over_ipv6).map(IpAddr::V6));
        ExportPolicy { local, external: up.negotiated.external, ipv4, ipv6, leaving: false }
    }

    /// The way by this neighbour is about to go (RFC 8326).
    pub fn leaving(self, leaving: bool) -> ExportPolicy {
        ExportPolicy { leaving, ..self }
    }

    pub fn export(&self, family: Family, route: &RouteAttributes) -> Result<Export, Withheld> {
        let next_hop = match family {
            Family::Ipv4Unicast => self.ipv4,
            Family::Ipv6Unicast => self.ipv6.map(IpAddr::V6),
        };
        let next_hop = next_hop.ok_or(Withheld::NoNextHop(family))?;
        let mut communities = route.communities.clone();
        communities.extend(self.leaving.then_some(GRACEFUL_SHUTDOWN));
        let communities = distinct(&communities);
        let extended_communities = distinct(&route.extended_communities);
        let large_communities = distinct(&route.large_communities);
        let octets = 4 * communities.len() + 8 * extended_communities.len() + 12 * large_communities.len();
        if octets > COMMUNITIES_ROOM {
            return Err(Withheld::TooManyCommunities);
        }
        let leaving = communities.contains(&GRACEFUL_SHUTDOWN);
        let local_pref = if leaving { 0 } else { route.local_pref.unwrap_or(LOCAL_PREF) };
        let attributes = Attributes {
            origin: Origin::Igp,
            as_path: if self.external { self.local.path(route.prepend) } else { AsPath::default() },
            med: route.med,
            local_pref: (!self.external).then_some(local_pref),
            communities,
            extended_communities,
            large_communities,
            originator: None,
            cluster_list: Vec::new(),
        };
        Ok(Export { attributes, next_hop })
    }

    /// Whether LOCAL_PREF means nothing to this neighbour.
    pub fn is_external(&self) -> bool {
        self.external
    }
}

fn distinct<T: Copy + Ord>(values: &[T]) -> Vec<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.dedup();
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsm::{ConnId, Connection, Negotiated};

    const LOCAL: LocalAs = LocalAs { session: 65010, own: 65010, remove_private: false };

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
                enhanced_refresh: true,
                extended_messages: true,
                add_path: Vec::new(),
                extended_next_hop: false,
                link_local: false,
                restart: None,
                long_lived: Vec::new(),
            },
        }
    }

    fn next_hop(local: &str, configured: NextHops, family: Family) -> Result<String, Withheld> {
        let policy = ExportPolicy::new(LOCAL, configured, &up(local, true));
        policy.export(family, &RouteAttributes::default()).map(|export| export.next_hop.to_string())
    }

    #[test]
    fn an_external_peer_sees_our_as_and_no_local_pref() {
        let policy = ExportPolicy::new(LOCAL, NextHops::default(), &up("10.0.0.1", true));
        let route = RouteAttributes { communities: vec![7, 3, 7], ..RouteAttributes::default() };
        let Attributes { origin, as_path, med, local_pref, communities, .. } =
            policy.export(Family::Ipv4Unicast, &route).unwrap().attributes;
        assert_eq!((origin, med, local_pref), (Origin::Igp, None, None));
        assert_eq!(as_path, AsPath::sequence([65010]));
        assert_eq!(communities, [3, 7]);
    }

    #[test]
    fn an_internal_peer_sees_an_empty_path_and_local_pref() {
        let policy = ExportPolicy::new(LOCAL, NextHops::default(), &up("10.0.0.1", false));
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
        let policy = ExportPolicy::new(LOCAL, NextHops::default(), &up("10.0.0.1", true));
        let route = RouteAttributes { communities: (0..=900).collect(), ..RouteAttributes::default() };
        assert_eq!(policy.export(Family::Ipv4Unicast, &route), Err(Withheld::TooManyCommunities));
    }

    #[test]
    fn all_kinds_of_communities_count_for_the_room_and_go_out_sorted() {
        let policy = ExportPolicy::new(LOCAL, NextHops::default(), &up("10.0.0.1", true));
        let route = |large: u32| RouteAttributes {
            communities: vec![1],
            extended_communities: vec![9, 2, 9],
            large_communities: (0..large).rev().map(|n| [1, 2, n]).collect(),
            med: Some(30),
            local_pref: None,
            prepend: 0,
            exclusive: false,
            aggregate: false,
        };
        let sent = policy.export(Family::Ipv4Unicast, &route(2)).unwrap().attributes;
        assert_eq!((sent.extended_communities, sent.med), (vec![2, 9], Some(30)));
        assert_eq!(sent.large_communities, [[1, 2, 0], [1, 2, 1]]);
        assert!(policy.export(Family::Ipv4Unicast, &route(298)).is_ok());
        assert_eq!(policy.export(Family::Ipv4Unicast, &route(299)), Err(Withheld::TooManyCommunities));
    }

    #[test]
    fn an_as_number_of_the_session_stands_before_ours_and_hides_it_if_it_is_private_and_that_is_asked() {
        let path = |own, remove_private| {
            let local = LocalAs { session: 64_496, own, remove_private };
            let policy = ExportPolicy::new(local, NextHops::default(), &up("10.0.0.1", true));
            policy.export(Family::Ipv4Unicast, &RouteAttributes::default()).unwrap().attributes.as_path
        };
        assert_eq!(path(65_010, false), AsPath::sequence([64_496, 65_010]));
        assert_eq!(path(65_010, true), AsPath::sequence([64_496]));
        assert_eq!(path(4_200_000_000, true), AsPath::sequence([64_496]));
        assert_eq!(path(64_511, true), AsPath::sequence([64_496, 64_511]));
        assert_eq!(path(64_496, false), AsPath::sequence([64_496]));
    }

    #[test]
    fn a_route_that_is_about_to_go_is_the_last_choice_inside_our_as() {
        let policy = ExportPolicy::new(LOCAL, NextHops::default(), &up("10.0.0.1", false));
        let local_pref = |communities, local_pref| {
            let route = RouteAttributes { communities, local_pref, ..RouteAttributes::default() };
            policy.export(Family::Ipv4Unicast, &route).unwrap().attributes.local_pref
        };
        assert_eq!(local_pref(vec![GRACEFUL_SHUTDOWN], Some(200)), Some(0));
        assert_eq!(local_pref(Vec::new(), Some(200)), Some(200));
    }

    #[test]
    fn a_neighbour_that_is_being_left_gets_every_route_as_the_last_choice() {
        let inside = ExportPolicy::new(LOCAL, NextHops::default(), &up("10.0.0.1", false)).leaving(true);
        let route =
            RouteAttributes { communities: vec![7], local_pref: Some(200), ..RouteAttributes::default() };
        let sent = inside.export(Family::Ipv4Unicast, &route).unwrap().attributes;
        assert_eq!((sent.communities, sent.local_pref), (vec![7, GRACEFUL_SHUTDOWN], Some(0)));
    }

    #[test]
    fn a_route_is_prepended_with_the_as_number_of_the_session() {
        let local = LocalAs { session: 64_496, own: 65_010, remove_private: false };
        let route = RouteAttributes { prepend: 2, ..RouteAttributes::default() };
        let path = |external| {
            let policy = ExportPolicy::new(local, NextHops::default(), &up("10.0.0.1", external));
            policy.export(Family::Ipv4Unicast, &route).unwrap().attributes.as_path
        };
        assert_eq!(path(true), AsPath::sequence([64_496, 64_496, 64_496, 65_010]));
        assert_eq!(path(false), AsPath::default());
    }

    #[test]
    fn where_rfc_8950_is_agreed_on_an_ipv6_address_serves_both_families() {
        let [ipv4, ipv6] = Family::ALL;
        let hop = |local: &str, configured, family| {
            let mut up = up(local, true);
            up.negotiated.extended_next_hop = true;
            let policy = ExportPolicy::new(LOCAL, configured, &up);
            policy.export(family, &RouteAttributes::default()).map(|export| export.next_hop.to_string())
        };
        let none = NextHops::default();
        for family in [ipv4, ipv6] {
            assert_eq!(hop("2001:db8::1", none, family), Ok("2001:db8::1".to_owned()));
            assert_eq!(hop("fe80::1", none, family), Ok("fe80::1".to_owned()));
        }
        let configured = NextHops { ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)), ipv6: None };
        assert_eq!(hop("fe80::1", configured, ipv4), Ok("192.0.2.1".to_owned()));
    }
}
