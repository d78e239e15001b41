//! What a neighbour sent us, and what is left of it while it restarts (RFC 4724 section 4.2, RFC 9494).
//!
//! A full table is a million routes: the tables are hashed, each IP version has keys of its own size, and what
//! is rare (staleness) is kept beside them.

use super::looped::Looped;
use super::table::{KeyV4, KeyV6, Table};
use crate::Family;
use crate::wire::{Announced, Attributes, Update};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// RFC 9494: kept beyond the restart time.
pub const LLGR_STALE: u32 = 0xffff_0006;
/// RFC 9494: not to be kept beyond the restart time.
const NO_LLGR: u32 = 0xffff_0007;

/// What one UPDATE said about its prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub attributes: Attributes,
    pub next_hop: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub prefix: IpNetwork,
    /// RFC 7911; 0 where the peer does not add paths.
    pub path_id: u32,
    pub path: Arc<Path>,
    /// From before the peer's restart or its answer to a refresh, and not heard of since.
    pub stale: bool,
}

/// How one's own routes are known when they come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loops {
    /// The AS numbers that are ours.
    pub asns: Vec<u32>,
    /// How often they may stand in a path.
    pub allowed: u8,
    /// As originator or in the cluster list (RFC 4456 section 8).
    pub router_id: Ipv4Addr,
}

impl Loops {
    fn is_loop(&self, attributes: &Attributes) -> bool {
        let ours = attributes.as_path.asns().filter(|asn| self.asns.contains(asn)).count();
        ours > usize::from(self.allowed)
            || attributes.originator == Some(self.router_id)
            || attributes.cluster_list.contains(&self.router_id.to_bits())
    }
}

/// The prefixes of which something else is held now, where somebody wants to know; may name one twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed(Option<Vec<IpNetwork>>);

impl Changed {
    pub fn watched() -> Changed {
        Changed(Some(Vec::new()))
    }

    fn note(&mut self, prefix: &IpNetwork) {
        if let Some(prefixes) = &mut self.0 {
            prefixes.push(*prefix);
        }
    }

    fn note_all(&mut self, prefixes: &[IpNetwork]) {
        prefixes.iter().for_each(|prefix| self.note(prefix));
    }

    pub fn into_prefixes(self) -> Vec<IpNetwork> {
        self.0.unwrap_or_default()
    }
}

#[derive(Debug)]
pub struct AdjRibIn {
    loops: Loops,
    ipv4: Table<KeyV4>,
    ipv6: Table<KeyV6>,
    looped: Looped,
}

impl AdjRibIn {
    /// Routes that went through us before are never used (RFC 4271 section 9.1.2).
    pub fn new(loops: Loops) -> AdjRibIn {
        AdjRibIn { loops, ipv4: Table::default(), ipv6: Table::default(), looped: Looped::default() }
    }

    /// Counts for what comes from now on.
    pub fn allow_own_as(&mut self, times: u8) {
        self.loops.allowed = times;
    }

    /// Takes an UPDATE in, as far as it is about `families`.
    pub fn apply(&mut self, update: Update, families: &[Family], changed: &mut Changed) {
        for unreach in update.unreach {
            self.remove(&unreach.prefixes, &unreach.path_ids, changed);
        }
        let Some(Announced { attributes, reach }) = update.announced else {
            return;
        };
        let loops = self.loops.is_loop(&attributes);
        let last = reach.len().saturating_sub(1);
        let mut attributes = Some(attributes);
        for (index, reach) in reach.into_iter().enumerate() {
            if !families.contains(&reach.family) {
                continue;
            }
            if loops {
                self.remove(&reach.prefixes, &reach.path_ids, changed);
            }
            let own = if index == last { attributes.take() } else { attributes.clone() };
            let Some(attributes) = own else { continue };
            let path = Arc::new(Path { attributes, next_hop: reach.next_hop });
            for (prefix, path_id) in with_ids(&reach.prefixes, &reach.path_ids) {
                if loops {
                    self.looped.insert(prefix, path_id, &path);
                    continue;
                }
                if !self.looped.is_empty() {
                    self.looped.remove(prefix, path_id);
                }
                match prefix {
                    IpNetwork::V4(net) => self.ipv4.insert(KeyV4::new(*net, path_id), &path),
                    IpNetwork::V6(net) => self.ipv6.insert(KeyV6::new(*net, path_id), &path),
                }
                changed.note(prefix);
            }
        }
    }

    fn remove(&mut self, prefixes: &[IpNetwork], path_ids: &[u32], changed: &mut Changed) {
        for (prefix, path_id) in with_ids(prefixes, path_ids) {
            match prefix {
                IpNetwork::V4(net) => self.ipv4.remove(&KeyV4::new(*net, path_id)),
                IpNetwork::V6(net) => self.ipv6.remove(&KeyV6::new(*net, path_id)),
            }
            if !self.looped.is_empty() {
                self.looped.remove(prefix, path_id);
            }
            changed.note(prefix);
        }
    }

    /// The peer is gone and may come back: routes of `families` become stale, all others go, and so do
    /// those that were stale already.
    pub fn mark_stale(&mut self, families: &[Family], changed: &mut Changed) {
        for family in Family::ALL {
            self.sweep(family, changed);
            self.begin_refresh(family);
            if !families.contains(&family) {
                self.sweep(family, changed);
            }
        }
    }

    /// Everything of `family` is to be said again (RFC 7313): what is not goes with the next sweep.
    pub fn begin_refresh(&mut self, family: Family) {
        self.looped.mark_stale(family);
        match family {
            Family::Ipv4Unicast => self.ipv4.mark_stale(),
            Family::Ipv6Unicast => self.ipv6.mark_stale(),
        }
    }

    /// What is still stale in `family` goes.
    pub fn sweep(&mut self, family: Family, changed: &mut Changed) {
        self.looped.sweep(family);
        let gone = match family {
            Family::Ipv4Unicast => self.ipv4.sweep(),
            Family::Ipv6Unicast => self.ipv6.sweep(),
        };
        changed.note_all(&gone);
    }

    /// The restart time is over, and the peer wanted its routes of `family` kept for longer: they are marked
    /// by a community, and those that must not be kept so go.
    pub fn make_long_lived(&mut self, family: Family, changed: &mut Changed) {
        let mark = |path: &Path| {
            let mut path = path.clone();
            let communities = &mut path.attributes.communities;
            if communities.contains(&NO_LLGR) {
                return None;
            }
            if !communities.contains(&LLGR_STALE) {
                communities.push(LLGR_STALE);
            }
            Some(path)
        };
        let touched = match family {
            Family::Ipv4Unicast => self.ipv4.change_stale(mark),
            Family::Ipv6Unicast => self.ipv6.change_stale(mark),
        };
        changed.note_all(&touched);
    }

    pub fn clear(&mut self, changed: &mut Changed) {
        self.mark_stale(&[], changed);
    }

    pub fn has_stale(&self) -> bool {
        self.ipv4.has_stale() || self.ipv6.has_stale() || self.looped.has_stale()
    }

    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    pub fn len_of(&self, family: Family) -> usize {
        match family {
            Family::Ipv4Unicast => self.ipv4.len(),
            Family::Ipv6Unicast => self.ipv6.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is held of a prefix: one path, or several where the peer adds them, by identifier.
    pub fn paths(&self, prefix: &IpNetwork) -> Vec<Route> {
        let mut paths = match prefix {
            IpNetwork::V4(net) => self.ipv4.of_prefix(KeyV4::new(*net, 0)),
            IpNetwork::V6(net) => self.ipv6.of_prefix(KeyV6::new(*net, 0)),
        };
        paths.sort_by_key(|route| route.path_id);
        paths
    }

    /// Of a host route: the paths that are loops to us, and somebody's all the same.
    pub fn looped(&self, prefix: &IpNetwork) -> Vec<Route> {
        self.looped.of_prefix(prefix)
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = Route> + '_ {
        self.ipv4.iter().chain(self.ipv6.iter())
    }

    /// By prefix and path identifier; at most `limit`, and no room for more.
    pub fn first(&self, limit: usize) -> Vec<Route> {
        let mut first: BTreeMap<(IpNetwork, u32), Route> = BTreeMap::new();
        for route in self.iter() {
            let key = (route.prefix, route.path_id);
            if first.len() < limit || first.last_key_value().is_some_and(|(last, _)| key < *last) {
                first.insert(key, route);
            }
            if first.len() > limit {
                first.pop_last();
            }
        }
        first.into_values().collect()
    }
}

/// Each prefix with its path identifier, which is 0 where the peer adds none.
fn with_ids<'a>(
    prefixes: &'a [IpNetwork],
    path_ids: &'a [u32],
) -> impl Iterator<Item = (&'a IpNetwork, u32)> {
    let ids = path_ids.iter().copied().chain(std::iter::repeat(0));
    prefixes.iter().zip(ids)
}

#[cfg(test)]
mod tests;
