//! The packet that an ICMP error speaks of.

use super::{Packet, Part};
use crate::{address::Address, skb};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use core::mem::MaybeUninit;

/// RFC 791 without options.
#[repr(C, align(8))]
struct V4Quote {
    version_ihl: u8,
    tos: u8,
    total: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}

#[repr(C, align(8))]
struct V6Quote {
    version: u32,
    payload: u16,
    next: u8,
    hops: u8,
    src: [u64; 2],
    dst: [u64; 2],
}

/// Bytes of the ICMP header before the quoted packet.
const ERROR: u32 = 8;

/// Fills addresses, protocol and ports of `inner` from what the error `packet` quotes. False where there is nothing
/// that a flow could be found by: cut short, a later fragment.
#[inline(never)]
pub fn quoted(ctx: &TcContext, packet: &Packet, inner: &mut Packet) -> bool {
    let at = packet.transport + ERROR;
    let found = if packet.ipv6 { v6(ctx, at, inner) } else { v4(ctx, at, inner) };
    // An error goes to the sender of what it quotes.
    found && inner.src == packet.dst && ports(ctx, inner)
}

#[inline(always)]
fn v4(ctx: &TcContext, at: u32, inner: &mut Packet) -> bool {
    let mut room = MaybeUninit::<V4Quote>::uninit();
    // SAFETY: 20 bytes into 24, the last four are padding; integers only.
    let Some(head) = (unsafe { skb::load::<_, 0, 20>(ctx, at, &mut room) }) else {
        return false;
    };
    inner.src = Address::v4(head.src);
    inner.dst = Address::v4(head.dst);
    inner.proto = head.proto;
    inner.transport = at + u32::from(head.version_ihl & 0xf) * 4;
    head.version_ihl >> 4 == 4 && head.version_ihl & 0xf >= 5 && u16::from_be(head.fragment) & 0x1fff == 0
}

#[inline(always)]
fn v6(ctx: &TcContext, at: u32, inner: &mut Packet) -> bool {
    let mut room = MaybeUninit::<V6Quote>::uninit();
    // SAFETY: 40 bytes into 40; integers only.
    let Some(head) = (unsafe { skb::load::<_, 0, 40>(ctx, at, &mut room) }) else {
        return false;
    };
    inner.src = Address(head.src);
    inner.dst = Address(head.dst);
    inner.proto = head.next;
    inner.transport = at + 40;
    // The quote may end before its packet did: beyond that nothing can be read.
    let end = inner.transport + u32::from(u16::from_be(head.payload));
    u32::from_be(head.version) >> 28 == 6
        && super::extensions(ctx, inner, end) == 0
        && inner.part != Part::Later
}

#[inline(always)]
fn ports(ctx: &TcContext, inner: &mut Packet) -> bool {
    let Some(words) = skb::word(ctx, inner.transport) else {
        return false;
    };
    match inner.proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            inner.src_port = (words >> 48) as u16;
            inner.dst_port = (words >> 32) as u16;
        }
        PROTO_ICMP | PROTO_ICMPV6 => {
            inner.icmp_type = (words >> 56) as u8;
            inner.src_port = (words >> 16) as u16;
            inner.dst_port = inner.src_port;
            return inner.is_echo_request() || inner.is_echo_reply();
        }
        _ => {}
    }
    true
}
