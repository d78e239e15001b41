//! Is the packet's source the pod's own?

use crate::{address::Address, parse::Packet};
use bulkhead_ebpf_abi::{Endpoint, PROTO_ICMPV6};

/// Neighbour discovery (RFC 4861) and multicast listener reports (RFC 2710, RFC 3810) that stay on the link.
#[inline(always)]
pub fn is_link_control(packet: &Packet) -> bool {
    packet.proto == PROTO_ICMPV6
        && matches!(packet.icmp_type, 133..=137 | 131 | 132 | 143)
        && (packet.dst.is_link_local() || packet.dst.is_link_local_multicast())
}

/// Sent by this very host: a router would have lowered the hop limit (RFC 4861 section 7.1), or by its listener query.
#[inline(always)]
pub fn is_neighbour_discovery(packet: &Packet) -> bool {
    packet.proto == PROTO_ICMPV6
        && match packet.icmp_type {
            133..=137 => packet.hop_limit == 255,
            130..=132 | 143 => packet.dst.is_link_local_multicast(),
            _ => false,
        }
}

/// `link_control`: what an interface sends before it has an address, or from its link-local one.
#[inline(always)]
pub fn is_of(pod: &Endpoint, packet: &Packet, ipv6: bool, link_control: bool) -> bool {
    if !has_mac(pod, &packet.src_mac) {
        return false;
    }
    let own = address(pod, ipv6);
    // A family the pod has no address of stands as zero: that is "unspecified", not the pod's.
    if packet.src == own && own != Address::ZERO {
        return true;
    }
    link_control && (packet.src.is_link_local() || packet.src == Address::ZERO)
}

#[inline(always)]
pub fn address(pod: &Endpoint, ipv6: bool) -> Address {
    Address::of_value(if ipv6 { &pod.ipv6 } else { &pod.ipv4 })
}

#[inline(always)]
pub fn has_mac(pod: &Endpoint, mac: &[u16; 3]) -> bool {
    let own = &pod.mac;
    u16::from_ne_bytes([own[0], own[1]]) == mac[0]
        && u16::from_ne_bytes([own[2], own[3]]) == mac[1]
        && u16::from_ne_bytes([own[4], own[5]]) == mac[2]
}
