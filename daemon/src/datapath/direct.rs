//! Whom connections reach past the host's stack, and how long a packet may be there: prefixes, of which the longest decides.

use super::{Datapath, DatapathError, Prefix, generation::absent_is_fine, values::Raw};
use aya::maps::{Array, MapData, MapError, lpm_trie::Key};
use bulkhead_ebpf_abi::{Addr, DIRECT_NO, DIRECT_YES, V4_PREFIX_OFFSET};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr};

type LpmTrie = aya::maps::lpm_trie::LpmTrie<MapData, Raw<Addr>, u32>;

/// The map, and what it holds as far as that is known.
pub(super) struct Ranges {
    map: LpmTrie,
    there: Option<BTreeMap<Prefix, u32>>,
}

impl Ranges {
    pub fn new(map: LpmTrie) -> Self {
        Self { map, there: None }
    }

    fn read(&self) -> Result<BTreeMap<Prefix, u32>, MapError> {
        let length = |key: &Key<Raw<Addr>>| u8::try_from(key.prefix_len()).unwrap_or(128);
        self.map.iter().map(|e| e.map(|(key, value)| ((key.data().0, length(&key)), value))).collect()
    }

    fn write(&mut self, wanted: &BTreeMap<Prefix, u32>) -> Result<(), MapError> {
        // Unknown until the write has succeeded.
        let there = match self.there.take() {
            Some(there) => there,
            None => self.read()?,
        };
        let key = |(address, length): &Prefix| Key::new(u32::from(*length), Raw(*address));
        let mut changes: Vec<_> = wanted.iter().filter(|(p, v)| there.get(p) != Some(v)).collect();
        // What is translated first (`DIRECT_NO`): nothing begins direct because of the order.
        changes.sort_by_key(|(_, value)| **value != 0);
        for (prefix, value) in changes {
            self.map.insert(&key(prefix), *value, 0)?;
        }
        for prefix in there.keys().filter(|p| !wanted.contains_key(p)) {
            absent_is_fine(self.map.remove(&key(prefix)))?;
        }
        self.there = Some(wanted.clone());
        Ok(())
    }
}

impl Datapath {
    /// Exactly these afterwards; only differences are written. Of a range that stands in both, `translated` holds.
    /// Connections that live keep their path.
    pub fn set_direct<'a>(
        &mut self,
        direct: impl Iterator<Item = &'a IpNetwork>,
        translated: impl Iterator<Item = &'a IpNetwork>,
    ) -> Result<(), DatapathError> {
        self.direct.write(&prefixes(direct, translated)).map_err(|source| DatapathError::Map {
            what: "setting the ranges of the direct path".into(),
            source,
        })
    }
}

impl Datapath {
    /// Exactly these afterwards: the policy that is asked about what the node sends on to these ranges in its own name, or one of
    /// `RANGE_*`.
    pub fn set_range_policies(&mut self, policies: &BTreeMap<IpNetwork, u32>) -> Result<(), DatapathError> {
        let wanted = policies.iter().map(|(range, policy)| (prefix(range), *policy)).collect();
        self.range_policies.write(&wanted).map_err(|source| DatapathError::Map {
            what: "setting the policies of other nodes' pods".into(),
            source,
        })
    }
}

/// The map of [`NarrowRoutes`], and the least of them: what is shorter than all of them asks no further.
pub(super) struct Narrow {
    pub routes: Ranges,
    pub narrowest: Array<MapData, u32>,
}

impl Narrow {
    fn write(&mut self, wanted: &BTreeMap<IpNetwork, u32>) -> Result<(), MapError> {
        let narrowest = wanted.values().copied().filter(|mtu| *mtu != 0).min().unwrap_or(0);
        let before = self.narrowest.get(&0, 0)?;
        // While both hold, the less.
        if narrowest != 0 && (before == 0 || narrowest < before) {
            self.narrowest.set(0, narrowest, 0)?;
        }
        self.routes.write(&wanted.iter().map(|(range, mtu)| (prefix(range), *mtu)).collect())?;
        self.narrowest.set(0, narrowest, 0)
    }
}

impl Datapath {
    /// Exactly these afterwards, for the packets of live connections, too. MTUs of IPv4 routes that the programs' look-up
    /// does not tell, in bytes; 0: it does.
    pub fn set_narrow_routes(&mut self, routes: &BTreeMap<IpNetwork, u32>) -> Result<(), DatapathError> {
        self.narrow
            .write(routes)
            .map_err(|source| DatapathError::Map { what: "setting the MTUs of routes".into(), source })
    }
}

fn prefixes<'a>(
    direct: impl Iterator<Item = &'a IpNetwork>,
    translated: impl Iterator<Item = &'a IpNetwork>,
) -> BTreeMap<Prefix, u32> {
    let direct = direct.map(|range| (prefix(range), DIRECT_YES));
    direct.chain(translated.map(|range| (prefix(range), DIRECT_NO))).collect()
}

fn prefix(range: &IpNetwork) -> Prefix {
    let offset = if matches!(range.ip(), IpAddr::V4(_)) { V4_PREFIX_OFFSET as u8 } else { 0 };
    (Addr::from_ip(range.network()), range.prefix() + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_translated_is_never_direct() {
        let range = |text: &str| text.parse::<IpNetwork>().unwrap();
        let (all, services) = (range("10.0.0.0/8"), range("10.96.0.0/12"));
        let both = prefixes([all, services].iter(), [services].iter());
        let v4 = |a, length: u8| (Addr::v4(a), length + 96);
        assert_eq!(both, [(v4([10, 0, 0, 0], 8), DIRECT_YES), (v4([10, 96, 0, 0], 12), DIRECT_NO)].into());
    }
}
