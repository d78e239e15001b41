//! What a neighbour sent us, and what is left of it while it restarts (RFC 4724 section 4.2).

use crate::Family;
use crate::wire::{Announced, Attributes, Update};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub attributes: Arc<Attributes>,
    pub next_hop: IpAddr,
    /// From before the peer's restart, and not heard of since.
    pub stale: bool,
}

#[derive(Debug)]
pub struct AdjRibIn {
    local_asn: u32,
    routes: BTreeMap<IpNetwork, Route>,
}

impl AdjRibIn {
    /// Routes that came through `local_asn` are never kept: they are loops (RFC 4271 section 9.1.2).
    pub fn new(local_asn: u32) -> AdjRibIn {
        AdjRibIn { local_asn, routes: BTreeMap::new() }
    }

    /// Takes an UPDATE in, as far as it is about `families`.
    pub fn apply(&mut self, update: Update, families: &[Family]) {
        for unreach in update.unreach {
            self.remove(&unreach.prefixes);
        }
        let Some(Announced { attributes, reach }) = update.announced else {
            return;
        };
        let loops = attributes.as_path.asns().any(|asn| asn == self.local_asn);
        let attributes = Arc::new(attributes);
        for reach in reach.into_iter().filter(|reach| families.contains(&reach.family)) {
            if loops {
                self.remove(&reach.prefixes);
                continue;
            }
            for prefix in reach.prefixes {
                let route = Route { attributes: attributes.clone(), next_hop: reach.next_hop, stale: false };
                self.routes.insert(prefix, route);
            }
        }
    }

    fn remove(&mut self, prefixes: &[IpNetwork]) {
        prefixes.iter().for_each(|prefix| drop(self.routes.remove(prefix)));
    }

    /// The peer is gone and may come back: routes of `families` become stale, all others go, and so do
    /// those that were stale already.
    pub fn mark_stale(&mut self, families: &[Family]) {
        self.routes.retain(|prefix, route| {
            let keep = !route.stale && families.contains(&Family::of(prefix));
            route.stale = true;
            keep
        });
    }

    /// What is still stale in `family` goes.
    pub fn sweep(&mut self, family: Family) {
        self.routes.retain(|prefix, route| !route.stale || Family::of(prefix) != family);
    }

    pub fn clear(&mut self) {
        self.routes.clear();
    }

    pub fn has_stale(&self) -> bool {
        self.routes.values().any(|route| route.stale)
    }

    pub fn len(&self) -> usize {
        self.routes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&IpNetwork, &Route)> {
        self.routes.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{AsPath, Origin, Reach};

    fn announce(prefix: &str, path: &[u32]) -> Update {
        let attributes = Attributes {
            origin: Origin::Igp,
            as_path: AsPath::sequence(path),
            med: None,
            local_pref: None,
            communities: Vec::new(),
        };
        let prefix: IpNetwork = prefix.parse().unwrap();
        let next_hop = IpAddr::from([192, 0, 2, 1]);
        Update::announce(attributes, Reach { family: Family::of(&prefix), next_hop, prefixes: vec![prefix] })
    }

    fn rib(prefixes: &[&str]) -> AdjRibIn {
        let mut rib = AdjRibIn::new(65010);
        prefixes.iter().for_each(|prefix| rib.apply(announce(prefix, &[65020]), &Family::ALL));
        rib
    }

    fn held(rib: &AdjRibIn) -> Vec<(String, bool)> {
        rib.iter().map(|(prefix, route)| (prefix.to_string(), route.stale)).collect()
    }

    fn fresh(prefix: &str) -> (String, bool) {
        (prefix.to_owned(), false)
    }

    fn stale(prefix: &str) -> (String, bool) {
        (prefix.to_owned(), true)
    }

    #[test]
    fn a_route_through_our_own_as_is_a_loop_and_replaces_what_was_there() {
        let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24"]);
        rib.apply(announce("10.0.0.0/24", &[65020, 65010, 65030]), &Family::ALL);
        assert_eq!(held(&rib), [fresh("10.0.1.0/24")]);
    }

    #[test]
    fn a_family_that_was_not_negotiated_is_passed_over() {
        let mut rib = rib(&[]);
        rib.apply(announce("2001:db8::/64", &[65020]), &[Family::Ipv4Unicast]);
        assert!(rib.is_empty());
    }

    #[test]
    fn a_withdrawal_removes() {
        let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24"]);
        rib.apply(Update::withdraw(Family::Ipv4Unicast, vec!["10.0.0.0/24".parse().unwrap()]), &Family::ALL);
        assert_eq!(held(&rib), [fresh("10.0.1.0/24")]);
    }

    #[test]
    fn what_is_not_announced_again_until_end_of_rib_goes() {
        let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24", "2001:db8::/64"]);
        rib.mark_stale(&Family::ALL);
        assert!(rib.has_stale());
        rib.apply(announce("10.0.0.0/24", &[65020]), &Family::ALL);
        rib.sweep(Family::Ipv4Unicast);
        assert_eq!(held(&rib), [fresh("10.0.0.0/24"), stale("2001:db8::/64")]);
    }

    #[test]
    fn a_second_restart_takes_what_the_first_left_stale() {
        let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24"]);
        rib.mark_stale(&[Family::Ipv4Unicast]);
        rib.apply(announce("10.0.1.0/24", &[65020]), &Family::ALL);
        rib.mark_stale(&[Family::Ipv4Unicast]);
        assert_eq!(held(&rib), [stale("10.0.1.0/24")]);
        rib.mark_stale(&[Family::Ipv6Unicast]);
        assert!(rib.is_empty());
    }
}
