//! What a router does to a packet: one hop less, and the next link's addresses.

use super::Leg;
use crate::skb;
use aya_ebpf::{bindings::BPF_F_RECOMPUTE_CSUM, programs::TcContext};
use bulkhead_ebpf_abi::{PROTO_TCP, PROTO_UDP};
use core::mem::MaybeUninit;

const TTL: u32 = skb::ETHERNET + 8;
const HOP_LIMIT: u32 = skb::ETHERNET + 7;

/// Length of the longest packet that this one is on the wire, from the IP header on.
#[inline(always)]
pub fn segment(ctx: &TcContext, leg: &Leg) -> u32 {
    let size = skb::gso_size(ctx);
    if size == 0 {
        return skb::len(ctx).wrapping_sub(skb::ETHERNET);
    }
    let header = match leg.proto {
        PROTO_TCP => tcp_header(ctx, leg.transport),
        PROTO_UDP => 8,
        _ => 0,
    };
    (leg.transport - skb::ETHERNET) + header + size
}

#[inline(never)]
fn tcp_header(ctx: &TcContext, transport: u32) -> u32 {
    // Data offset and flags are in the second half of the header's second word.
    skb::word(ctx, transport + 8).map_or(15, |word| (word >> 28) as u32 & 0xf) * 4
}

/// Addresses the frame and takes a hop off; false: it cannot be written.
#[inline(always)]
pub fn forward(ctx: &TcContext, macs: &[[u8; 6]; 2], hop_limit: u8, ipv6: bool) -> bool {
    lower_hop_limit(ctx, hop_limit, ipv6) && skb::put::<3, 12>(ctx, 0, &words(macs))
}

#[inline(always)]
pub fn lower_hop_limit(ctx: &TcContext, hop_limit: u8, ipv6: bool) -> bool {
    if ipv6 {
        return skb::store::<_, 1>(
            ctx,
            HOP_LIMIT,
            &hop_limit.wrapping_sub(1),
            u64::from(BPF_F_RECOMPUTE_CSUM),
        );
    }
    let mut room = MaybeUninit::<u32>::uninit();
    // SAFETY: four bytes into four: time to live, protocol, checksum.
    let Some(raw) = (unsafe { skb::load::<u32, 0, 4>(ctx, TTL, &mut room) }) else { return false };
    skb::put::<1, 4>(ctx, TTL, &[one_less(*raw)])
}

/// Time to live, protocol and checksum of an IPv4 header, as they lie there, with a hop less.
#[inline(always)]
pub fn one_less(raw: u32) -> u32 {
    let hop = u32::from_be(raw);
    // RFC 1141: what the header loses the checksum gains; a sum over both is the same as before.
    let sum = (hop & 0xffff) + 0x100;
    let checksum = (sum + (sum >> 16)) & 0xffff;
    ((hop & 0xffff_0000).wrapping_sub(1 << 24) | checksum).to_be()
}

/// Both addresses, as they lie in the frame.
#[inline(always)]
pub fn words(macs: &[[u8; 6]; 2]) -> [u32; 3] {
    // SAFETY: twelve bytes of a map's value, whose fields before them are words.
    unsafe { (&raw const *macs).cast::<[u32; 3]>().read() }
}
