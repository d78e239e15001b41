//! A network group as the tables tell its addresses apart: a question about the group is one about each part.

use crate::{Compiled, Objects, prefix::Prefix};
use bulkhead_ebpf_abi::Addr;
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, net::IpAddr};

/// More are not told apart.
const MOST: usize = 64;

/// Addresses that prefixes tell from those around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPart {
    /// Other parts may lie in it.
    pub network: IpNetwork,
    /// The first address that lies in no other part.
    pub address: IpAddr,
}

/// None: there is no such group.
pub fn group_parts(compiled: &Compiled, objects: &Objects, group: &str) -> Option<Vec<GroupPart>> {
    let written = objects.network_groups.get(group)?;
    let held: Vec<Prefix> = written.spec.cidrs.iter().map(|c| Prefix::of(*c)).collect();
    let known =
        compiled.prefixes.keys().map(|(address, length)| Prefix { address: *address, length: *length });
    let strays = compiled.strays().map(|address| Prefix { address, length: 128 });
    let known = known.chain(strays).filter(|p| held.iter().any(|h| h.covers(*p)));
    let all: BTreeSet<Prefix> = known.chain(held.iter().copied()).collect();
    let part = |p: &Prefix| Some(GroupPart { network: p.network(), address: own(*p, &all)?.to_ip() });
    Some(all.iter().filter_map(part).take(MOST).collect())
}

/// None: others hold all of it.
fn own(prefix: Prefix, all: &BTreeSet<Prefix>) -> Option<Addr> {
    let mut address = prefix.address;
    let inner = || all.range(prefix..).take_while(|p| prefix.spans(**p)).filter(|p| **p != prefix);
    while let Some(other) = inner().find(|p| p.contains(address)) {
        let size = 1u128.checked_shl(128 - u32::from(other.length))?;
        address = Addr(u128::from_be_bytes(other.address.0).checked_add(size)?.to_be_bytes());
        if !prefix.contains(address) {
            return None;
        }
    }
    Some(address)
}
