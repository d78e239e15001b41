//! Addresses that neither generation tells apart, with one of them to stand for all.

use super::Side;
use crate::prefix::Prefix;
use bulkhead_ebpf_abi::Addr;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

#[derive(Clone, Debug)]
pub struct Subject {
    /// `partition web`, `NetworkGroup/vms`, `10.0.0.0/8`, `world`.
    pub name: String,
    /// An address that stands for all of them.
    pub address: IpAddr,
    /// A pod in one generation or the other: its policy decides.
    pub decides: bool,
}

pub fn subjects(before: Side<'_>, after: Side<'_>) -> Vec<Subject> {
    let prefixes = prefixes(before, after);
    // (identity, partition) in both: what a decision can depend on.
    let mut found = BTreeMap::new();
    for (n, prefix) in prefixes.iter().enumerate() {
        let inner = prefixes[n + 1..].iter().take_while(|p| prefix.spans(**p));
        let Some(address) = free_address(*prefix, inner) else { continue };
        let [old, new] = [before, after].map(|side| {
            let partition = side.objects.partition_of_address(address);
            (side.compiled.identity(address).id, partition.map(str::to_string))
        });
        let decides = old.1.is_some() || new.1.is_some();
        let name = name_of(before, after, address);
        found.entry((address.is_ipv6(), old, new)).or_insert(Subject { name, address, decides });
    }
    found.into_values().collect()
}

/// All prefixes that a generation tells apart, both worlds among them; outer ones first.
fn prefixes(before: Side<'_>, after: Side<'_>) -> Vec<Prefix> {
    let mut all = BTreeSet::from([Prefix::V4, Prefix { address: Addr::default(), length: 0 }]);
    for side in [before, after] {
        all.extend(side.compiled.prefixes.keys().map(|&(address, length)| Prefix { address, length }));
        all.extend(side.compiled.exact.keys().map(|&address| Prefix { address, length: 128 }));
    }
    all.into_iter().collect()
}

/// The first address of a prefix that no inner one holds; `inner` in order.
fn free_address<'a>(prefix: Prefix, inner: impl Iterator<Item = &'a Prefix>) -> Option<IpAddr> {
    let last = |p: Prefix| {
        let host = u128::MAX.checked_shr(u32::from(p.length)).unwrap_or(0);
        u128::from_be_bytes(p.address.0) | host
    };
    let mut free = u128::from_be_bytes(prefix.address.0);
    for inner in inner {
        if u128::from_be_bytes(inner.address.0) > free {
            break;
        }
        free = free.max(last(*inner).checked_add(1)?);
    }
    (free <= last(prefix)).then(|| Addr(Ipv6Addr::from(free).octets()).to_ip())
}

/// As the generation after has it, but for a pod that is none there.
pub fn name_of(before: Side<'_>, after: Side<'_>, address: IpAddr) -> String {
    let is_pod = |side: Side<'_>| side.objects.partition_of_address(address).is_some();
    let side = if is_pod(after) || !is_pod(before) { after } else { before };
    name(side, address)
}

fn name(side: Side<'_>, address: IpAddr) -> String {
    let known = side.compiled.known_as(side.compiled.identity(address).id);
    match side.objects.partition_of_address(address) {
        Some(partition) if known.is_empty() => format!("partition {partition}"),
        Some(partition) => format!("partition {partition} ({})", known.join(", ")),
        None => known.join(", "),
    }
}
