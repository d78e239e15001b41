//! Addresses that neither side tells apart, as groups: one address stands for all of a group.

use super::side::{Side, View};
use crate::prefix::Prefix;
use bulkhead_ebpf_abi::Addr;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

pub(super) struct Group {
    pub views: [View; 2],
    /// One that stands for all, and where there is one, another; of two nodes, if the group is not [`Self::alone_on`] one.
    pub addresses: Vec<IpAddr>,
    /// The nodes that its addresses are of, or are on; None: nobody says which.
    nodes: BTreeSet<Option<String>>,
    /// `namespace/name` of those of its pods that are told of, in order.
    pub pods: BTreeSet<String>,
    /// It holds addresses that nobody tells of.
    pub rest: bool,
}

impl Group {
    /// The one node that all of it is of, or is on.
    pub fn alone_on(&self) -> Option<&str> {
        let only = self.nodes.first().filter(|_| self.nodes.len() == 1);
        only.and_then(|node| node.as_deref())
    }

    /// Whether it may hold a node's own pods; else it may hold nodes.
    pub fn is_pods(&self) -> bool {
        self.views.iter().any(|view| view.policy.is_some())
    }

    fn enter(&mut self, address: IpAddr, nodes: [Option<&str>; 2]) {
        let mut new = false;
        for node in nodes {
            let node = node.map(str::to_string);
            new |= self.nodes.insert(node);
        }
        if self.addresses.len() < 2 || (new && self.addresses.len() < 3) {
            self.addresses.push(address);
        }
    }
}

pub(super) struct Groups {
    pub all: Vec<Group>,
    numbers: BTreeMap<(bool, [View; 2]), usize>,
}

/// Names of documentation networks, for the world: what people take for somebody out there.
const EXAMPLES: [&str; 4] = ["192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8::2"];

impl Groups {
    pub fn of(sides: [&Side; 2]) -> Self {
        let mut found: BTreeMap<(bool, [View; 2]), Group> = BTreeMap::new();
        let mut enter = |address: Addr, pods: BTreeSet<String>, rest: bool| {
            let views = sides.map(|side| side.view(address));
            let group = found.entry((address.to_ip().is_ipv6(), views));
            let (addresses, nodes, none) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            let group = group.or_insert(Group { views, addresses, nodes, pods: none, rest });
            group.enter(address.to_ip(), sides.map(|side| side.node(address)));
            group.pods.extend(pods);
            group.rest |= rest;
        };
        let told: BTreeSet<Addr> = sides.iter().flat_map(|s| s.pods.keys()).copied().collect();
        for address in &told {
            let keys = sides.iter().filter_map(|s| s.pods.get(address)).map(|pod| pod.key.clone());
            enter(*address, keys.collect(), false);
        }
        let prefixes = prefixes(sides, &told);
        let examples = EXAMPLES.map(|text| text.parse().map(Addr::from_ip));
        for example in examples.into_iter().flatten() {
            let holding = prefixes.iter().filter(|p| p.spans(Prefix::of_address(example, 128)));
            if holding.max_by_key(|p| p.length).is_some_and(|p| *p == Prefix::V4 || p.length == 0) {
                enter(example, BTreeSet::new(), true);
            }
        }
        for (n, prefix) in prefixes.iter().enumerate().filter(|(_, p)| !is_told(p, &told)) {
            let inner = prefixes[n + 1..].iter().take_while(|p| prefix.spans(**p));
            for address in free_addresses(*prefix, inner) {
                enter(address, BTreeSet::new(), true);
            }
        }
        let numbers = found.keys().zip(0..).map(|(key, n)| (*key, n)).collect();
        Self { all: found.into_values().collect(), numbers }
    }

    /// The group of an address, whichever it is.
    pub fn number(&self, sides: [&Side; 2], address: IpAddr) -> Option<usize> {
        let views = sides.map(|side| side.view(Addr::from_ip(address)));
        self.numbers.get(&(address.is_ipv6(), views)).copied()
    }
}

fn is_told(prefix: &Prefix, told: &BTreeSet<Addr>) -> bool {
    prefix.length == 128 && told.contains(&prefix.address)
}

/// All prefixes that a side tells apart and all pods, both worlds among them; outer ones first.
fn prefixes(sides: [&Side; 2], told: &BTreeSet<Addr>) -> Vec<Prefix> {
    let mut all = BTreeSet::from([Prefix::V4, Prefix { address: Addr::default(), length: 0 }]);
    all.extend(told.iter().map(|&address| Prefix { address, length: 128 }));
    for side in sides {
        all.extend(side.compiled.prefixes.keys().map(|&(address, length)| Prefix { address, length }));
        all.extend(side.compiled.exact.keys().map(|&address| Prefix { address, length: 128 }));
    }
    all.into_iter().collect()
}

/// Up to two addresses of a prefix that no inner one holds, its very first only if need be; `inner` in order.
fn free_addresses<'a>(prefix: Prefix, inner: impl Iterator<Item = &'a Prefix>) -> Vec<Addr> {
    let number = |a: Addr| u128::from_be_bytes(a.0);
    let last = |p: Prefix| number(p.address) | u128::MAX.checked_shr(u32::from(p.length)).unwrap_or(0);
    let mut inner = inner.peekable();
    let mut found = Vec::new();
    let mut next = Some(number(prefix.address));
    while let Some(address) = next.filter(|a| *a <= last(prefix) && found.len() < 3) {
        match inner.peek() {
            Some(passed) if last(**passed) < address => drop(inner.next()),
            Some(holding) if number(holding.address) <= address => next = last(**holding).checked_add(1),
            _ => {
                found.push(Addr(Ipv6Addr::from(address).octets()));
                next = address.checked_add(1);
            }
        }
    }
    if found.len() > 1 && found.first() == Some(&prefix.address) {
        found.remove(0);
    }
    found.truncate(2);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(prefix: &str, inner: &[&str]) -> Vec<String> {
        let of = |text: &str| Prefix::of(text.parse().unwrap());
        let inner: Vec<Prefix> = inner.iter().map(|t| of(t)).collect();
        free_addresses(of(prefix), inner.iter()).iter().map(|a| a.to_ip().to_string()).collect()
    }

    #[test]
    fn a_prefix_is_stood_for_by_addresses_that_no_inner_one_holds() {
        assert_eq!(free("10.0.0.0/8", &[]), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(free("10.0.0.0/8", &["10.0.0.0/9"]), ["10.128.0.0", "10.128.0.1"]);
        assert_eq!(free("10.0.0.0/30", &["10.0.0.1/32", "10.0.0.2/32"]), ["10.0.0.3"]);
        assert_eq!(free("10.0.0.0/31", &["10.0.0.0/32", "10.0.0.1/32"]), [""; 0]);
        assert_eq!(free("10.0.0.7/32", &[]), ["10.0.0.7"]);
        assert_eq!(free("ffff::/16", &["ffff::/17"]), ["ffff:8000::", "ffff:8000::1"]);
        assert_eq!(free("::/0", &["::/1", "8000::/1"]), [""; 0]);
    }
}
