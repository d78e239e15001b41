//! Routes of one IP version, hashed by prefix and path identifier.

use super::adj_rib_in::{Path, Route};
use super::paths::{Number, Paths};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub(super) trait Key: Copy + Eq + Hash {
    fn prefix(&self) -> IpNetwork;
    fn path_id(&self) -> u32;
    /// The same prefix with another path identifier.
    fn with_id(&self, path_id: u32) -> Self;
}

/// So much room of a table that is empty stays its own.
const KEPT: usize = 1024;

/// Twelve octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyV4 {
    address: u32,
    path_id: u32,
    length: u8,
}

impl KeyV4 {
    pub fn new(net: Ipv4Network, path_id: u32) -> KeyV4 {
        KeyV4 { address: net.ip().to_bits(), path_id, length: net.prefix() }
    }
}

impl Key for KeyV4 {
    fn prefix(&self) -> IpNetwork {
        network(Ipv4Addr::from_bits(self.address).into(), self.length)
    }

    fn path_id(&self) -> u32 {
        self.path_id
    }

    fn with_id(&self, path_id: u32) -> Self {
        Self { path_id, ..*self }
    }
}

/// Twenty-four octets: in halves it is not aligned to sixteen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyV6 {
    high: u64,
    low: u64,
    path_id: u32,
    length: u8,
}

impl KeyV6 {
    pub fn new(net: Ipv6Network, path_id: u32) -> KeyV6 {
        let bits = net.ip().to_bits();
        KeyV6 { high: (bits >> 64) as u64, low: bits as u64, path_id, length: net.prefix() }
    }
}

impl Key for KeyV6 {
    fn prefix(&self) -> IpNetwork {
        let address = Ipv6Addr::from_bits(u128::from(self.high) << 64 | u128::from(self.low));
        network(address.into(), self.length)
    }

    fn path_id(&self) -> u32 {
        self.path_id
    }

    fn with_id(&self, path_id: u32) -> Self {
        Self { path_id, ..*self }
    }
}

/// The length came from a network of the same kind.
fn network(address: IpAddr, length: u8) -> IpNetwork {
    IpNetwork::new(address, length).unwrap_or_else(|_| IpNetwork::from(address))
}

/// Short keys, hashed in a few cycles; the seed is not known to the peer that sends them.
#[derive(Clone, Debug)]
pub(super) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Seeded(RandomState::new().build_hasher().finish())
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Folded multiplication: both halves of the product count.
pub(super) struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        self.0 = (product >> 64) as u64 ^ product as u64 ^ 0x2545_f491_4f6c_dd1d;
    }
}

#[derive(Debug)]
pub(super) struct Table<K> {
    routes: HashMap<K, Number, Seeded>,
    paths: Paths,
    stale: HashSet<K, Seeded>,
    /// Of prefixes that have paths with an identifier other than 0: all their identifiers but 0.
    ids: HashMap<K, Vec<u32>, Seeded>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Table {
            routes: HashMap::default(),
            paths: Paths::default(),
            stale: HashSet::default(),
            ids: HashMap::default(),
        }
    }
}

impl<K: Key> Table<K> {
    pub fn insert(&mut self, key: K, path: &Arc<Path>) {
        let number = self.paths.take(path);
        match self.routes.insert(key, number) {
            Some(former) => self.paths.release(former),
            None if key.path_id() != 0 => {
                self.ids.entry(key.with_id(0)).or_default().push(key.path_id());
            }
            None => {}
        }
        if !self.stale.is_empty() {
            self.stale.remove(&key);
        }
    }

    pub fn remove(&mut self, key: &K) {
        self.forget(key);
        if !self.stale.is_empty() {
            self.stale.remove(key);
        }
    }

    fn forget(&mut self, key: &K) {
        let Some(number) = self.routes.remove(key) else { return };
        self.paths.release(number);
        // What a full table has taken is not kept for the next one.
        if self.routes.is_empty() && self.routes.capacity() > KEPT {
            (self.routes, self.paths) = (HashMap::default(), Paths::default());
        }
        if key.path_id() != 0 {
            let base = key.with_id(0);
            let Some(ids) = self.ids.get_mut(&base) else { return };
            ids.retain(|id| *id != key.path_id());
            if ids.is_empty() {
                self.ids.remove(&base);
            }
        }
    }

    pub fn mark_stale(&mut self) {
        self.stale = self.routes.keys().copied().collect();
    }

    /// The prefixes that lost a route.
    pub fn sweep(&mut self) -> Vec<IpNetwork> {
        let stale = std::mem::take(&mut self.stale);
        stale.iter().for_each(|key| self.forget(key));
        stale.iter().map(Key::prefix).collect()
    }

    /// Replaces the path of each stale route, or removes it. Their prefixes.
    pub fn change_stale(&mut self, change: impl Fn(&Path) -> Option<Path>) -> Vec<IpNetwork> {
        let stale = std::mem::take(&mut self.stale);
        let mut changed: HashMap<Number, Option<Number>> = HashMap::new();
        for key in &stale {
            let Some(number) = self.routes.get(key).copied() else { continue };
            let next = changed.get(&number).copied().unwrap_or_else(|| {
                let path = self.paths.get(number).and_then(|path| change(path));
                path.map(|path| self.paths.add(Arc::new(path)))
            });
            changed.insert(number, next);
            match next {
                Some(next) => {
                    self.paths.hold(next);
                    self.routes.insert(*key, next);
                    self.paths.release(number);
                }
                None => self.forget(key),
            }
        }
        let prefixes = stale.iter().map(Key::prefix).collect();
        self.stale = stale.into_iter().filter(|key| self.routes.contains_key(key)).collect();
        prefixes
    }

    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// All paths of the prefix that `key` has.
    pub fn of_prefix(&self, key: K) -> Vec<Route> {
        let base = key.with_id(0);
        let others = self.ids.get(&base).into_iter().flatten().map(|id| base.with_id(*id));
        let keys = std::iter::once(base).chain(others);
        keys.filter_map(|key| self.route(&key, *self.routes.get(&key)?)).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = Route> + '_ {
        self.routes.iter().filter_map(|(key, number)| self.route(key, *number))
    }

    fn route(&self, key: &K, number: Number) -> Option<Route> {
        let path = self.paths.get(number)?.clone();
        Some(Route { prefix: key.prefix(), path_id: key.path_id(), path, stale: self.stale.contains(key) })
    }
}
