//! Whose the addresses are by the ranges of partitions.

use crate::{Objects, prefix::Prefix};
use bulkhead_ebpf_abi::Addr;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub struct Ranges {
    partitions: BTreeMap<Prefix, String>,
    lengths: BTreeSet<u8>,
}

impl Ranges {
    pub fn of(objects: &Objects) -> Self {
        let mut partitions = BTreeMap::new();
        for (name, cidr) in objects.own_ranges() {
            partitions.entry(Prefix::of(*cidr)).or_insert_with(|| name.into());
        }
        let lengths = partitions.keys().map(|p: &Prefix| p.length).collect();
        Self { partitions, lengths }
    }

    pub fn of_address(&self, address: Addr) -> Option<&str> {
        self.around(Prefix { address, length: 128 })
    }

    /// The partition that has all of a block, by the longest range around it.
    pub fn around(&self, block: Prefix) -> Option<&str> {
        let lengths = self.lengths.range(..=block.length).rev();
        let mut ranges = lengths.map(|length| Prefix::of_address(block.address, *length));
        ranges.find_map(|r| self.partitions.get(&r).filter(|_| r.covers(block))).map(String::as_str)
    }

    /// Ranges inside a block that are another partition's.
    pub fn within(&self, block: Prefix, partition: &str) -> impl Iterator<Item = Prefix> {
        let inside = self.partitions.range(block..).take_while(move |(range, _)| block.spans(**range));
        inside.filter(move |(range, name)| **range != block && **name != partition).map(|(range, _)| *range)
    }
}
