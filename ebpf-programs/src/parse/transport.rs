//! Ports, flags, ICMP type and identifier.

use super::{Packet, Part, cut_short};
use crate::skb;
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};

/// 0, or the reason to drop. A later fragment has no transport header; its ports come from its first.
#[inline(always)]
pub fn transport(ctx: &TcContext, packet: &mut Packet, end: u32) -> u32 {
    if packet.part == Part::Later {
        return 0;
    }
    let shortest = match packet.proto {
        PROTO_TCP => 20,
        PROTO_SCTP => 12,
        PROTO_UDP | PROTO_ICMP | PROTO_ICMPV6 => 8,
        _ => 0,
    };
    if packet.transport + shortest > end {
        return u32::from(cut_short(packet));
    }
    if shortest == 0 {
        return 0;
    }
    if packet.proto == PROTO_TCP {
        let Some([ports, rest]) = skb::words(ctx, packet.transport) else {
            return u32::from(cut_short(packet));
        };
        set_ports(packet, ports);
        packet.tcp_flags = (rest >> 16) as u8;
        return 0;
    }
    let Some(first) = skb::word(ctx, packet.transport) else {
        return u32::from(cut_short(packet));
    };
    if !packet.is_icmp() {
        set_ports(packet, first);
        return 0;
    }
    packet.icmp_type = (first >> 56) as u8;
    if packet.is_echo_request() || packet.is_echo_reply() {
        packet.src_port = (first >> 16) as u16;
        packet.dst_port = packet.src_port;
    }
    0
}

#[inline(always)]
fn set_ports(packet: &mut Packet, first: u64) {
    packet.src_port = (first >> 48) as u16;
    packet.dst_port = (first >> 32) as u16;
}
