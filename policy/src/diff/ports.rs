//! Protocols and ports: how a range is written, and where a packet stands.

use bulkhead_ebpf_abi::{
    PORT_SLOTS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, SLOT_ICMP, SLOT_ICMPV6,
    SLOT_OTHER, SLOT_SCTP, SLOT_TCP, SLOT_UDP,
};

/// First and last.
pub(super) type Range = (u16, u16);

/// Types and protocol numbers have eight bits.
pub(super) fn last(slot: u32) -> u16 {
    if matches!(slot, SLOT_TCP | SLOT_UDP | SLOT_SCTP) { u16::MAX } else { 255 }
}

/// ICMP is of IPv4, ICMPv6 of IPv6.
pub(super) fn slots(v6: bool) -> impl Iterator<Item = u32> {
    (0..PORT_SLOTS).filter(move |slot| *slot != if v6 { SLOT_ICMP } else { SLOT_ICMPV6 })
}

/// Protocol number and port (or type) of a place in a slot.
pub(super) fn example(slot: u32, index: u16) -> (u8, u16) {
    match slot {
        SLOT_TCP => (PROTO_TCP, index),
        SLOT_UDP => (PROTO_UDP, index),
        SLOT_SCTP => (PROTO_SCTP, index),
        SLOT_ICMP => (PROTO_ICMP, index),
        SLOT_ICMPV6 => (PROTO_ICMPV6, index),
        _ => (index as u8, 0),
    }
}

/// A place in a range that people know; protocols of slots of their own are not meant by `other`.
pub(super) fn known(slot: u32, ranges: &[Range]) -> u16 {
    let usual: &[u16] = match slot {
        SLOT_TCP => &[80, 443, 8080, 22],
        SLOT_UDP => &[53],
        SLOT_ICMP => &[8],
        SLOT_ICMPV6 => &[128],
        SLOT_OTHER => &[47, 50],
        _ => &[],
    };
    let holds = |port: &&u16| ranges.iter().any(|(first, last)| (first..=last).contains(port));
    let any = ranges.iter().flat_map(|(first, last)| [*first, *last]).find(|port| *port != 0);
    usual.iter().find(holds).copied().or(any).unwrap_or_default()
}

pub(super) fn is_all(slot: u32, ranges: &[Range]) -> bool {
    ranges == [(0, last(slot))]
}

pub(super) fn protocol(slot: u32, ranges: &[Range]) -> String {
    match slot {
        SLOT_TCP => "tcp".into(),
        SLOT_UDP => "udp".into(),
        SLOT_SCTP => "sctp".into(),
        SLOT_ICMP => "icmp".into(),
        SLOT_ICMPV6 => "icmpv6".into(),
        _ if is_all(slot, ranges) => "other protocols".into(),
        _ => format!("protocols {}", list(ranges)),
    }
}

/// `8080`, `80, 8000-8090`, `all`.
pub(super) fn text(slot: u32, ranges: &[Range]) -> String {
    if slot == SLOT_OTHER || is_all(slot, ranges) { "all".into() } else { list(ranges) }
}

fn list(ranges: &[Range]) -> String {
    let text = |(first, last): &Range| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}
