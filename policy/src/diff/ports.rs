//! Protocols and ports: where decisions may turn, and how a range is written.

use super::{FlowVerdict, Side};
use crate::Compiled;
use bulkhead_api::messages::PolicyChange;
use bulkhead_ebpf_abi::{
    PORT_SLOTS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, SLOT_ICMP, SLOT_ICMPV6,
    SLOT_OTHER, SLOT_SCTP, SLOT_TCP, SLOT_UDP, port_slot,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub type Range = (u16, u16);

/// First ports of the ranges that a policy tells apart, by (generation, port table, slot); each is scanned once.
#[derive(Default)]
pub struct Boundaries(BTreeMap<(usize, u32, u32), Vec<u16>>);

impl Boundaries {
    /// Ranges within which no end's decision turns, in either generation.
    pub fn of(&mut self, sides: &[Side<'_>; 2], from: IpAddr, to: IpAddr, slot: u32) -> Vec<Range> {
        let mut starts = BTreeSet::from([0]);
        for (n, side) in sides.iter().enumerate() {
            for (address, dir) in [(from, 0), (to, 1)] {
                let Some(policy) = side.policy(address) else { continue };
                let Some(dirs) = side.compiled.tables.policies.get(policy as usize) else { continue };
                let table = dirs[dir].port_table;
                let scanned = self.0.entry((n, table, slot));
                starts.extend(scanned.or_insert_with(|| scan(side.compiled, table, slot)).iter());
            }
        }
        let ends = starts.iter().skip(1).map(|s| s - 1).chain([last(slot)]);
        starts.iter().copied().zip(ends).collect()
    }
}

fn scan(compiled: &Compiled, table: u32, slot: u32) -> Vec<u16> {
    let tables = &compiled.tables;
    let Some(directory) = tables.port_directories.get((table * PORT_SLOTS + slot) as usize) else {
        return Vec::new();
    };
    let class = |port: u16| {
        let page = tables.port_pages.get(directory[usize::from(port >> 8)] as usize)?;
        Some(page[usize::from(port & 0xff)])
    };
    (1..=last(slot)).filter(|port| class(*port) != class(port - 1)).collect()
}

/// Types and protocol numbers have eight bits.
fn last(slot: u32) -> u16 {
    if matches!(slot, SLOT_TCP | SLOT_UDP | SLOT_SCTP) { u16::MAX } else { 255 }
}

/// ICMP is of IPv4, ICMPv6 of IPv6.
pub fn speaks(slot: u32, address: IpAddr) -> bool {
    match slot {
        SLOT_ICMP => address.is_ipv4(),
        SLOT_ICMPV6 => address.is_ipv6(),
        _ => true,
    }
}

/// Protocol number and port (or type) of a place in a slot.
pub fn example(slot: u32, index: u16) -> (u8, u16) {
    match slot {
        SLOT_TCP => (PROTO_TCP, index),
        SLOT_UDP => (PROTO_UDP, index),
        SLOT_SCTP => (PROTO_SCTP, index),
        SLOT_ICMP => (PROTO_ICMP, index),
        SLOT_ICMPV6 => (PROTO_ICMPV6, index),
        _ => (index as u8, 0),
    }
}

pub fn protocol(slot: u32, (first, last): Range) -> String {
    match slot {
        SLOT_TCP => "tcp".into(),
        SLOT_UDP => "udp".into(),
        SLOT_SCTP => "sctp".into(),
        SLOT_ICMP => "icmp".into(),
        SLOT_ICMPV6 => "icmpv6".into(),
        _ if (first, last) == (0, 255) => "other protocols".into(),
        _ if first == last => format!("protocol {first}"),
        _ => format!("protocols {first}-{last}"),
    }
}

/// `8080`, `8000-8090`, `all`.
pub fn text(slot: u32, (first, last_port): Range) -> String {
    if slot == SLOT_OTHER || (first, last_port) == (0, last(slot)) {
        "all".into()
    } else if first == last_port {
        first.to_string()
    } else {
        format!("{first}-{last_port}")
    }
}

/// Whether a protocol and port are among those of a change.
pub fn holds(change: &PolicyChange, proto: u8, port: u16) -> bool {
    let (slot, index) = port_slot(proto, port);
    let (of_change, _) = port_slot(change.example.protocol, change.example.port);
    if slot != of_change {
        // Types of ICMP and ICMPv6 stand in one line where they are the same.
        return matches!((slot, of_change), (SLOT_ICMP, SLOT_ICMPV6) | (SLOT_ICMPV6, SLOT_ICMP))
            && change.ports == "all";
    }
    if slot == SLOT_OTHER {
        return protocol(slot, (index, index)) == change.protocol || change.protocol == "other protocols";
    }
    match change.ports.split_once('-') {
        _ if change.ports == "all" => true,
        Some((first, last)) => {
            let bound = |text: &str| text.parse::<u16>().ok();
            bound(first).is_some_and(|f| f <= index) && bound(last).is_some_and(|l| index <= l)
        }
        None => change.ports == index.to_string(),
    }
}

type Turned = (u32, Range, FlowVerdict, FlowVerdict);

/// Neighbouring ranges that turn the same way by the same rules are one.
pub fn join(turned: Vec<Turned>) -> Vec<Turned> {
    let mut joined: Vec<Turned> = Vec::new();
    for (slot, range, old, new) in turned {
        match joined.last_mut() {
            Some((s, r, o, n)) if (*s, *o, *n) == (slot, old, new) && r.1.checked_add(1) == Some(range.0) => {
                r.1 = range.1;
            }
            _ => joined.push((slot, range, old, new)),
        }
    }
    joined
}
