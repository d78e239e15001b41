//! Which of several routes to one prefix is the best (RFC 4271 section 9.1.2.2), and which are as good.

use super::adj_rib_in::{LLGR_STALE, Path};
use crate::wire::{Attributes, Origin};
use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Whom routes are from; one for all of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub peer: String,
    /// The peer is in another AS.
    pub external: bool,
    pub router_id: Ipv4Addr,
    pub address: IpAddr,
    /// Of the session, where it is over link-local addresses.
    pub interface: Option<u32>,
}

/// A route, and whom it is from. A full table has a million: two words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub path: Arc<Path>,
    pub source: Arc<Source>,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    pub address: IpAddr,
    /// Of a link-local address, which means nothing without.
    pub interface: Option<u32>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> NextHop {
        NextHop { address, interface: None }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interface {
            Some(interface) => write!(f, "{}%{interface}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// fe80::/10.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// LOCAL_PREF where the peer says none.
const LOCAL_PREF: u32 = 100;

impl Candidate {
    fn attributes(&self) -> &Attributes {
        &self.path.attributes
    }

    /// Less is better: what comes before MED.
    fn before_med(&self) -> (bool, Reverse<u32>, usize, Origin) {
        let attributes = self.attributes();
        let long_lived = attributes.communities.contains(&LLGR_STALE);
        let local_pref = Reverse(attributes.local_pref.unwrap_or(LOCAL_PREF));
        (long_lived, local_pref, attributes.as_path.hops(), attributes.origin)
    }

    /// RFC 4271 section 9.1.2.2 c: compared only between routes of one neighbouring AS.
    fn med(&self) -> u32 {
        self.attributes().med.unwrap_or(0)
    }

    fn neighbour_as(&self) -> Option<u32> {
        self.attributes().as_path.asns().next()
    }

    /// Only to have an order among those that are as good; RFC 4456 section 9 for what reflectors hand on.
    fn tie(&self) -> impl Ord {
        let originator = self.attributes().originator.unwrap_or(self.source.router_id);
        (originator, self.attributes().cluster_list.len(), self.source.address, self.path.next_hop)
    }

    fn next_hop(&self) -> NextHop {
        let address = self.path.next_hop;
        NextHop { address, interface: self.source.interface.filter(|_| is_link_local(address)) }
    }

    fn is_worse_by_med(&self, others: &[&Candidate]) -> bool {
        let beats =
            |other: &&Candidate| other.neighbour_as() == self.neighbour_as() && other.med() < self.med();
        others.iter().any(beats)
    }
}

/// The next hops of the best route and of all that are as good, the best one first. The order of `candidates`
/// does not matter.
pub fn best(candidates: &[&Candidate]) -> Vec<NextHop> {
    let Some(first) = candidates.iter().map(|c| c.before_med()).min() else { return Vec::new() };
    let equal = |c: &&&Candidate| c.before_med() == first;
    let left: Vec<&Candidate> = candidates.iter().filter(equal).copied().collect();
    let mut left: Vec<&Candidate> = left.iter().filter(|c| !c.is_worse_by_med(&left)).copied().collect();
    if left.iter().any(|c| c.source.external) {
        left.retain(|c| c.source.external);
    }
    left.sort_by(|a, b| a.tie().cmp(&b.tie()));
    let mut next_hops: Vec<NextHop> = Vec::new();
    for next_hop in left.into_iter().map(Candidate::next_hop) {
        if !next_hops.contains(&next_hop) {
            next_hops.push(next_hop);
        }
    }
    next_hops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::AsPath;
    use std::collections::BTreeSet;

    fn candidate(next_hop: u8, change: impl FnOnce(&mut Attributes)) -> Candidate {
        let mut attributes =
            Attributes { as_path: AsPath::sequence([65020, 65030]), ..Attributes::default() };
        change(&mut attributes);
        let next_hop = IpAddr::from([192, 0, 2, next_hop]);
        let path = Arc::new(Path { attributes, next_hop });
        Candidate { path, source: source(next_hop, true) }
    }

    fn source(address: IpAddr, external: bool) -> Arc<Source> {
        let (peer, router_id) = ("leaf".to_owned(), Ipv4Addr::new(9, 9, 9, 9));
        Arc::new(Source { peer, external, router_id, address, interface: None })
    }

    /// The last octets of the next hops that are chosen, from every order of the candidates.
    fn chosen(candidates: &[Candidate]) -> Vec<u8> {
        let mut references: Vec<&Candidate> = candidates.iter().collect();
        let next_hops = best(&references);
        for _ in 0..candidates.len() {
            references.rotate_left(1);
            assert_eq!(best(&references), next_hops);
        }
        let last = |hop: &NextHop| match hop.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        next_hops.iter().map(last).collect()
    }

    #[test]
    fn each_step_of_the_decision_comes_before_the_next() {
        let plain = |next_hop| candidate(next_hop, |_| {});
        let longer = candidate(1, |a| a.as_path = AsPath::sequence([65020, 1, 2]));
        let preferred = candidate(2, |a| {
            a.local_pref = Some(101);
            a.as_path = AsPath::sequence([1, 2, 3, 4]);
        });
        let incomplete = candidate(3, |a| a.origin = Origin::Incomplete);
        let costly = candidate(4, |a| a.med = Some(1));
        let internal = Candidate { source: source([192, 0, 2, 5].into(), false), ..candidate(5, |_| {}) };
        let old = candidate(6, |a| {
            a.communities = vec![LLGR_STALE];
            a.local_pref = Some(1000);
        });
        assert_eq!(chosen(&[plain(9), longer.clone()]), [9]);
        assert_eq!(chosen(&[plain(9), preferred, longer]), [2]);
        assert_eq!(chosen(&[plain(9), incomplete]), [9]);
        assert_eq!(chosen(&[plain(9), costly]), [9]);
        assert_eq!(chosen(&[plain(9), internal.clone()]), [9]);
        assert_eq!(chosen(&[internal, old.clone()]), [5]);
        assert_eq!(chosen(std::slice::from_ref(&old)), [6], "better than nothing");
        assert_eq!(chosen(&[]), [0; 0]);
    }

    #[test]
    fn routes_as_good_as_the_best_share_the_load_and_equal_next_hops_are_one() {
        let plain = |next_hop| candidate(next_hop, |_| {});
        assert_eq!(chosen(&[plain(3), plain(1), plain(2), plain(1)]), [1, 2, 3]);
    }

    #[test]
    fn a_link_local_next_hop_is_one_of_its_sessions_interface() {
        let on = |interface, next_hop: &str| {
            let source = Source { interface: Some(interface), ..(*source([0; 16].into(), true)).clone() };
            let next_hop = next_hop.parse().unwrap();
            Candidate {
                path: Arc::new(Path { attributes: Attributes::default(), next_hop }),
                source: source.into(),
            }
        };
        let all = [on(3, "fe80::1"), on(4, "fe80::1"), on(4, "2001:db8::1")];
        let shown: Vec<String> =
            best(&all.iter().collect::<Vec<_>>()).iter().map(ToString::to_string).collect();
        assert_eq!(shown.iter().map(String::as_str).collect::<BTreeSet<_>>(), {
            BTreeSet::from(["fe80::1%3", "fe80::1%4", "2001:db8::1"])
        });
    }

    #[test]
    fn med_is_compared_within_one_neighbouring_as_only() {
        let of = |next_hop, asn, med| {
            candidate(next_hop, |a| {
                a.as_path = AsPath::sequence([asn, 65030]);
                a.med = Some(med);
            })
        };
        assert_eq!(chosen(&[of(1, 65020, 10), of(2, 65020, 20), of(3, 65021, 30)]), [1, 3]);
    }
}
