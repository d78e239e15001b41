//! The hook of an uplink: marks where packets come from, and lets nobody outside speak as this node or its pods.
//!
//! Policy is asked here only about what is delivered from here: all else that is for a pod is decided at the pod, and what is
//! for the node (BGP, BFD, SSH) is the node's.

use crate::{
    conntrack, counters, departure,
    endpoint::kept,
    forward,
    identity::identity,
    origin,
    parse::{self, Packet},
    skb,
    verdict::{NEXT, Verdict},
};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{
    DIR_INGRESS, DROP_SPOOFED_UPLINK, ENDPOINT_PACED, IDENTITY_LOCAL_NODE, IDENTITY_LOCAL_POD, ORIGIN_UNKNOWN,
};
use core::mem::MaybeUninit;

#[inline(always)]
pub fn from_uplink(ctx: &TcContext) -> i32 {
    // A tag is no matter here: the kernel has taken it off, and a VLAN on the uplink gets the packet with its mark.
    let protocol = skb::protocol(ctx);
    let is_ip = protocol == skb::ETHERTYPE_IPV4 || protocol == skb::ETHERTYPE_IPV6;
    let mut room = MaybeUninit::uninit();
    let packet = Packet::empty(&mut room);
    if !is_ip || !parse::addresses(ctx, packet, protocol) {
        // The stack judges it; whatever comes of it has no known origin.
        origin::write(ctx, ORIGIN_UNKNOWN);
        return NEXT;
    }
    let who = identity(&packet.src);
    if who.has(IDENTITY_LOCAL_NODE | IDENTITY_LOCAL_POD) {
        return counters::drop(Verdict::drop(DROP_SPOOFED_UPLINK), 0, DIR_INGRESS, skb::len(ctx));
    }
    origin::write(ctx, who.id());
    let generation = conntrack::live_generation();
    let is_tagged = skb::ethertype(ctx) != protocol;
    match kept::delivery(&packet.dst).filter(|_| !is_tagged) {
        Some(to) if to.flags & ENDPOINT_PACED == 0 => {
            forward::from_uplink(ctx, generation, to, packet, protocol)
        }
        Some(_) => NEXT,
        None => {
            departure::remember(ctx, packet, protocol);
            NEXT
        }
    }
}
