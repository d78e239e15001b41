//! The origin mark: where a packet entered this host. Written at every entry, whatever stood there.

use crate::skb;
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{ORIGIN_ITSELF, ORIGIN_MASK, ORIGIN_SHIFT, origin_of};

#[inline(always)]
pub fn read(ctx: &TcContext) -> u32 {
    skb::mark(ctx) >> ORIGIN_SHIFT
}

/// Of a packet for the pod that is `identity`, behind the stack. Pods share identities, so the mark alone does not say which
/// of them has sent it: where the packet came in does, and the stack keeps that whatever it makes of the addresses.
#[inline(always)]
pub fn at_pod(ctx: &TcContext, identity: u32) -> u32 {
    let origin = read(ctx);
    if skb::ingress_ifindex(ctx) == skb::ifindex(ctx) && origin == origin_of(identity) {
        ORIGIN_ITSELF
    } else {
        origin
    }
}

#[inline(always)]
pub fn write(ctx: &TcContext, identity: u32) {
    skb::set_mark(ctx, skb::mark(ctx) & !ORIGIN_MASK | origin_of(identity) << ORIGIN_SHIFT);
}
