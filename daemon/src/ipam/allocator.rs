//! Which address a pod gets, as a function of values: blocks in order, in a block the lowest free one after the last given.
//!
//! The rotation keeps an address that was just freed out of use for as long as its block has others: caches, neighbours and
//! firewalls elsewhere may still take it for the old pod.

use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn holds(self, network: IpNetwork) -> bool {
        network.is_ipv4() == (self == Self::V4)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// Length of a block's prefix: 64 addresses.
fn block_length(range: IpNetwork) -> u8 {
    range.prefix().max(if range.is_ipv4() { 26 } else { 122 })
}

/// Whether the range is cut into this block among others.
pub fn is_block_of(range: IpNetwork, block: IpNetwork) -> bool {
    contains(range, block) && block.prefix() == block_length(range)
}

/// The blocks of a range that meet none of these, in order. A range smaller than a block is one block. What is taken is passed
/// in one step, however large it is: half of an IPv6 range has more blocks than can be counted.
pub fn free_blocks(range: IpNetwork, taken: &[IpNetwork]) -> impl Iterator<Item = IpNetwork> {
    let (length, v4) = (block_length(range), range.is_ipv4());
    let (first, last) = (number(range.network()), number(range.broadcast()));
    let size = number_of_addresses(range, length);
    let taken = taken.iter().filter(|t| t.is_ipv4() == v4);
    let mut taken: Vec<_> = taken.map(|t| (number(t.network()), number(t.broadcast()))).collect();
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    // The last address that is taken so far.
    let mut reached: Option<u128> = None;
    let mut next = Some(first);
    std::iter::from_fn(move || {
        loop {
            let block = next.filter(|block| *block <= last)?;
            while let Some((_, end)) = taken.next_if(|(begin, _)| *begin <= block | (size - 1)) {
                reached = reached.max(Some(end));
            }
            let obstacle = reached.filter(|end| *end >= block);
            let past = (obstacle.unwrap_or(block) - first) / size + 1;
            next = past.checked_mul(size).and_then(|offset| first.checked_add(offset));
            if obstacle.is_none() {
                return IpNetwork::new(address(block, v4), length).ok();
            }
        }
    })
}

fn number_of_addresses(range: IpNetwork, length: u8) -> u128 {
    let bits = if range.is_ipv4() { 32 } else { 128 };
    1u128.checked_shl(bits - u32::from(length)).unwrap_or(u128::MAX)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        // Numbers come from IPv4 addresses, so the upper bits are zero.
        Ipv4Addr::from_bits(number as u32).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

/// Blocks of one node and what is used of them.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    blocks: BTreeMap<IpNetwork, String>,
    /// Last address given, by block.
    last: BTreeMap<IpNetwork, IpAddr>,
    /// Also addresses outside the blocks (strays).
    used: BTreeSet<IpAddr>,
}

impl Allocator {
    pub fn add_block(&mut self, partition: &str, block: IpNetwork) {
        self.blocks.insert(block, partition.into());
    }

    pub fn remove_block(&mut self, block: IpNetwork) {
        self.blocks.remove(&block);
        self.last.remove(&block);
    }

    pub fn blocks(&self) -> &BTreeMap<IpNetwork, String> {
        &self.blocks
    }

    /// From the partition's blocks that lie in `ranges` (of one family) and outside `fixed`. `None`: another block is
    /// needed.
    pub fn allocate(&mut self, partition: &str, ranges: &[IpNetwork], fixed: &[IpNetwork]) -> Option<IpAddr> {
        let of_partition = self.blocks.iter().filter(|(_, p)| *p == partition).map(|(block, _)| *block);
        let of_partition = of_partition.filter(|block| !fixed.iter().any(|f| overlap(*f, *block)));
        let (block, address) = of_partition.into_iter().find_map(|block| {
            let range = ranges.iter().find(|r| contains(**r, block))?;
            Some((block, self.free_in(block, *range)?))
        })?;
        self.last.insert(block, address);
        self.used.insert(address);
        Some(address)
    }

    fn free_in(&self, block: IpNetwork, range: IpNetwork) -> Option<IpAddr> {
        let v4 = block.is_ipv4();
        let (first, last) = (number(block.network()), number(block.broadcast()));
        let start = self.last.get(&block).map_or(first, |a| number(*a) + 1);
        let candidates = (start..=last).chain(first..start.min(last + 1)).map(|n| address(n, v4));
        candidates.into_iter().find(|a| !self.used.contains(a) && !is_reserved(*a, range))
    }

    pub fn is_used(&self, address: IpAddr) -> bool {
        self.used.contains(&address)
    }

    pub fn free(&mut self, address: IpAddr) {
        self.used.remove(&address);
    }

    /// Rotation goes on after the highest address that is in use.
    pub fn restore(&mut self, address: IpAddr) {
        self.used.insert(address);
        if let Some(block) = self.blocks.keys().find(|b| b.contains(address)) {
            let last = self.last.entry(*block).or_insert(address);
            *last = (*last).max(address);
        }
    }

    pub fn is_any_used(&self, block: IpNetwork) -> bool {
        self.used.range(block.network()..=block.broadcast()).next().is_some()
    }

    /// Addresses of pods that lie in no block of ours.
    pub fn outside(&self) -> impl Iterator<Item = IpAddr> {
        let held = |address: &IpAddr| self.blocks.keys().any(|block| block.contains(*address));
        self.used.iter().filter(move |address| !held(address)).copied()
    }

    pub fn empty_blocks(&self) -> Vec<(IpNetwork, String)> {
        let empty = self.blocks.iter().filter(|(block, _)| !self.is_any_used(**block));
        empty.map(|(block, partition)| (*block, partition.clone())).collect()
    }
}

fn contains(range: IpNetwork, block: IpNetwork) -> bool {
    range.is_ipv4() == block.is_ipv4() && range.contains(block.network()) && range.contains(block.broadcast())
}

/// Of two networks one holds the other, or they have nothing in common.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    contains(a, b) || contains(b, a)
}

/// The first address of a range: people and tools take IPv4's for a network address, and IPv6's is the subnet-router
/// anycast address (RFC 4291 section 2.6.1). A range of one address is that address.
fn is_reserved(address: IpAddr, range: IpNetwork) -> bool {
    address == range.network() && range.network() != range.broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn with_block(block: &str) -> Allocator {
        let mut allocator = Allocator::default();
        allocator.add_block("web", net(block));
        allocator
    }

    #[test]
    fn blocks_have_64_addresses_or_the_whole_of_a_smaller_range() {
        let blocks = |r: &str| free_blocks(net(r), &[]).map(|b| b.to_string()).collect::<Vec<_>>();
        assert_eq!(blocks("10.0.0.0/25"), ["10.0.0.0/26", "10.0.0.64/26"]);
        assert_eq!(blocks("10.0.0.0/28"), ["10.0.0.0/28"]);
        assert_eq!(blocks("fd00::/121"), ["fd00::/122", "fd00::40/122"]);
        assert_eq!(blocks("fd00::7/128"), ["fd00::7/128"]);
        assert_eq!(blocks("255.255.255.192/26"), ["255.255.255.192/26"]);
        assert_eq!(free_blocks(net("fd00::/16"), &[]).take(3).last(), Some(net("fd00::80/122")));
        assert_eq!(free_blocks(net("::/0"), &[]).next(), Some(net("::/122")));
    }

    #[test]
    fn what_is_taken_is_passed_in_one_step() {
        let first = |range: &str, taken: &[&str]| {
            let taken: Vec<_> = taken.iter().map(|t| net(t)).collect();
            free_blocks(net(range), &taken).next().map(|b| b.to_string())
        };
        let found = |text: &str| Some(text.to_string());
        assert_eq!(first("fd00::/48", &["fd00::/64"]), found("fd00:0:0:1::/122"));
        assert_eq!(first("fd00::/48", &["fd00::/64", "fd00:0:0:1::7/128"]), found("fd00:0:0:1::40/122"));
        assert_eq!(first("fd00::/48", &["fd00::/49", "fd00:0:0:8000::/49"]), None);
        assert_eq!((first("::/0", &["::/1"]), first("::/0", &["::/0"])), (found("8000::/122"), None));
        // Around the range, in the other family, and one in another, as they should not be.
        assert_eq!(first("fd00::/48", &["fd00::/16"]), None);
        assert_eq!(first("10.0.0.0/24", &["::/0"]), found("10.0.0.0/26"));
        assert_eq!(first("10.0.0.0/24", &["10.0.0.0/25", "10.0.0.3/32"]), found("10.0.0.128/26"));
        assert_eq!(
            first("255.255.255.0/24", &["255.255.255.192/26", "255.255.255.0/25"]),
            found("255.255.255.128/26")
        );
    }

    #[test]
    fn only_the_first_address_of_a_range_is_left_out() {
        let mut first = with_block("10.0.0.0/26");
        assert_eq!(first.allocate("web", &[net("10.0.0.0/24")], &[]), Some(ip("10.0.0.1")));
        let mut second = with_block("10.0.0.64/26");
        assert_eq!(second.allocate("web", &[net("10.0.0.0/24")], &[]), Some(ip("10.0.0.64")));
        let mut single = with_block("10.0.0.9/32");
        assert_eq!(single.allocate("web", &[net("10.0.0.9/32")], &[]), Some(ip("10.0.0.9")));
        let all: Vec<_> = std::iter::from_fn(|| first.allocate("web", &[net("10.0.0.0/24")], &[])).collect();
        assert_eq!((all.len(), all.last()), (62, Some(&ip("10.0.0.63"))));
    }

    #[test]
    fn a_freed_address_is_given_again_only_after_all_others() {
        let range = [net("10.0.0.0/29")];
        let mut allocator = with_block("10.0.0.0/29");
        let first = allocator.allocate("web", &range, &[]).unwrap();
        allocator.free(first);
        let rest: Vec<_> = (0..6).map(|_| allocator.allocate("web", &range, &[]).unwrap()).collect();
        assert!(!rest.contains(&first));
        assert_eq!(allocator.allocate("web", &range, &[]), Some(first));
        assert_eq!(allocator.allocate("web", &range, &[]), None);
    }

    #[test]
    fn a_block_outside_the_ranges_or_of_another_partition_gives_nothing() {
        let mut allocator = with_block("10.0.0.0/26");
        assert_eq!(allocator.allocate("web", &[net("10.9.0.0/16")], &[]), None);
        assert_eq!(allocator.allocate("pay", &[net("10.0.0.0/24")], &[]), None);
    }

    #[test]
    fn a_restored_address_is_not_given_even_if_its_block_comes_later() {
        let mut allocator = Allocator::default();
        allocator.restore(ip("10.0.0.1"));
        allocator.add_block("web", net("10.0.0.0/26"));
        assert_eq!(allocator.allocate("web", &[net("10.0.0.0/24")], &[]), Some(ip("10.0.0.2")));
        assert!(allocator.empty_blocks().is_empty());
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_all_are_given(steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 1..400)) {
            let range = [net("fd00::/122")];
            let mut allocator = with_block("fd00::/122");
            let mut given = Vec::new();
            for step in steps {
                match step {
                    Some(index) if !given.is_empty() => {
                        let address = given.swap_remove(index.index(given.len()));
                        allocator.free(address);
                    }
                    _ => match allocator.allocate("web", &range, &[]) {
                        Some(address) => {
                            prop_assert!(range[0].contains(address) && address != ip("fd00::"));
                            prop_assert!(!given.contains(&address));
                            given.push(address);
                        }
                        None => prop_assert_eq!(given.len(), 63),
                    },
                }
            }
        }

        #[test]
        fn blocks_that_are_free_are_those_that_meet_nothing(base in any::<u32>(), taken in prop::collection::vec((0u32..2048, 22u8..=32), 0..9)) {
            let range = IpNetwork::new(Ipv4Addr::from_bits(base).into(), 21).unwrap();
            let at = |offset| address(number(range.network()) + u128::from(offset), true);
            let taken: Vec<_> = taken.into_iter().map(|(offset, length)| IpNetwork::new(at(offset), length).unwrap()).collect();
            let meets_nothing = |block: &IpNetwork| !taken.iter().any(|t| overlap(*t, *block));
            let expected: Vec<_> = free_blocks(range, &[]).filter(meets_nothing).collect();
            prop_assert_eq!(free_blocks(range, &taken).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn blocks_cover_their_range_without_gap_or_overlap(base in any::<u32>(), length in 20u8..=32) {
            let range = IpNetwork::new(Ipv4Addr::from_bits(base).into(), length).unwrap();
            let mut next = number(range.network());
            for block in free_blocks(range, &[]) {
                prop_assert_eq!(number(block.network()), next);
                next = number(block.broadcast()) + 1;
            }
            prop_assert_eq!(next, number(range.broadcast()) + 1);
        }
    }
}
