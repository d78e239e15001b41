//! Host routes that came with our own AS number in their path, or ours as their originator.
//!
//! They are never used. But nodes that share an AS hear of each other's single addresses in no other way, and whoever is to
//! announce one must know whether somebody else does.

use super::adj_rib_in::{Path, Route};
use crate::Family;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Prefix and path identifier (RFC 7911).
type Key = (IpNetwork, u32);

#[derive(Debug, Default)]
pub(super) struct Looped {
    paths: BTreeMap<Key, Arc<Path>>,
    stale: BTreeSet<Key>,
}

impl Looped {
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// As far as it is a host route.
    pub fn insert(&mut self, prefix: &IpNetwork, path_id: u32, path: &Arc<Path>) {
        if prefix.prefix() == Family::of(prefix).longest() {
            self.stale.remove(&(*prefix, path_id));
            self.paths.insert((*prefix, path_id), path.clone());
        }
    }

    pub fn remove(&mut self, prefix: &IpNetwork, path_id: u32) {
        self.paths.remove(&(*prefix, path_id));
        self.stale.remove(&(*prefix, path_id));
    }

    pub fn mark_stale(&mut self, family: Family) {
        let of_family = |(prefix, _): &&Key| Family::of(prefix) == family;
        self.stale.extend(self.paths.keys().filter(of_family));
    }

    pub fn sweep(&mut self, family: Family) {
        let of_family = |(prefix, _): &Key| Family::of(prefix) == family;
        self.paths.retain(|key, _| !(of_family(key) && self.stale.contains(key)));
        self.stale.retain(|key| !of_family(key));
    }

    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    pub fn of_prefix(&self, prefix: &IpNetwork) -> Vec<Route> {
        let route = |(key, path): (&Key, &Arc<Path>)| Route {
            prefix: key.0,
            path_id: key.1,
            path: path.clone(),
            stale: self.stale.contains(key),
        };
        self.paths.range((*prefix, 0)..=(*prefix, u32::MAX)).map(route).collect()
    }
}
