//! The origin mark: where a packet entered this host. Written at every entry, whatever stood there.

use crate::{maps::ORIGIN_TURN, parse::Part, skb};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{ORIGIN_ITSELF, ORIGIN_MASK, ORIGIN_NONE, ORIGIN_SHIFT, ORIGIN_UNKNOWN, origin_of};

#[inline(always)]
pub fn read(ctx: &TcContext) -> u32 {
    skb::mark(ctx) >> ORIGIN_SHIFT
}

/// Of a packet for a pod, behind the stack. Pods share identities, and a pod's may have changed since it sent the packet, so the
/// mark does not say whether it is the pod's own: where the packet came in does, for nobody else is on that link, and the
/// stack keeps that whatever it makes of the addresses.
#[inline(always)]
pub fn at_pod(ctx: &TcContext, part: Part) -> u32 {
    let origin = read(ctx);
    if origin == ORIGIN_NONE {
        return if is_made_here(ctx, part) { ORIGIN_NONE } else { ORIGIN_UNKNOWN };
    }
    if skb::ingress_ifindex(ctx) == skb::ifindex(ctx) { ORIGIN_ITSELF } else { origin }
}

/// Of a packet that leaves by an uplink.
#[inline(always)]
pub fn at_uplink(ctx: &TcContext, part: Part) -> u32 {
    let origin = read(ctx);
    if origin == ORIGIN_NONE && !is_made_here(ctx, part) { ORIGIN_UNKNOWN } else { origin }
}

/// Of a packet that passes the stack by, out of the host: its sender speaks as itself.
#[inline(always)]
pub fn untranslated(ctx: &TcContext) {
    write_raw(ctx, ORIGIN_ITSELF);
}

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Of an unmarked packet: has this host sent it, and not only forwarded what came in where nobody marks? A piece that the
/// stack has cut does not say where it was received (IPv6), but is its sender's: a socket's, if it was made here.
#[inline(always)]
fn is_made_here(ctx: &TcContext, part: Part) -> bool {
    skb::ingress_ifindex(ctx) <= LOOPBACK && (part == Part::Whole || skb::has_socket(ctx))
}

/// How often the number of a mark has been given out; of what is no identity it is 0. A function of its own: its key would take
/// the stack of whoever asks.
#[inline(never)]
pub fn turn(origin: u32) -> u32 {
    ORIGIN_TURN.get(origin).copied().unwrap_or(0)
}

#[inline(always)]
pub fn write(ctx: &TcContext, identity: u32) {
    write_raw(ctx, origin_of(identity));
}

#[inline(always)]
fn write_raw(ctx: &TcContext, origin: u32) {
    skb::set_mark(ctx, skb::mark(ctx) & !ORIGIN_MASK | origin << ORIGIN_SHIFT);
}
