//! The origin mark: where a packet entered this host. Written at every entry, whatever stood there.

use crate::skb;
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{ORIGIN_MASK, ORIGIN_SHIFT, origin_of};

#[inline(always)]
pub fn read(ctx: &TcContext) -> u32 {
    skb::mark(ctx) >> ORIGIN_SHIFT
}

#[inline(always)]
pub fn write(ctx: &TcContext, identity: u32) {
    skb::set_mark(ctx, skb::mark(ctx) & !ORIGIN_MASK | origin_of(identity) << ORIGIN_SHIFT);
}
