//! A packet of a connection that asks nothing new passes on one look-up, read straight from the frame;
//! straight into another pod of the node it takes a second one, for where that is.
//!
//! It is what most packets are: whole, TCP or UDP, without options or extension headers, its addresses and ports in the
//! linear part of the buffer; its connection established, alive, and admitted by this end in the running generation.
//! Whatever is otherwise, or would change more of the entry than its counters and its age, goes the long way, which says
//! what it means: nothing here refuses a packet or decides about one.

mod frame;

use crate::{
    conntrack::{self, Key},
    endpoint::source,
    forward::{self, Leg},
    maps::{CONNTRACK, LOCAL},
    origin, skb,
    verdict::NEXT,
};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{
    AgeKind, DIR_EGRESS, DIR_INGRESS, ENDPOINT_PACED, Endpoint, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_INITIATOR_LOW, FLOW_UNASKED, Flow, PATH_STACK, PROTO_TCP,
};
use frame::Frame;

/// Go the long way.
pub const UNKNOWN: i32 = -2;

/// A packet that the pod sends: what becomes of it, its origin marked; or [`UNKNOWN`].
#[inline(never)]
pub fn sent(ctx: &TcContext, pod: &Endpoint, ethertype: u16, generation: u32) -> i32 {
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    let Some(frame) = Frame::read(ctx, ethertype) else { return UNKNOWN };
    if !source::has_mac(pod, &frame.src_mac) || frame.src != source::address(pod, ipv6) {
        return UNKNOWN;
    }
    let Some((flow, forward)) = entry(&frame) else { return UNKNOWN };
    let [egress, ingress] = flow.generations;
    let here = if forward { egress } else { ingress };
    if here != generation || !is_settled(flow, frame.proto, forward) {
        return UNKNOWN;
    }
    if flow.path == PATH_STACK {
        if !conntrack::see(flow, kind_of(flow, frame.proto)) {
            return UNKNOWN;
        }
        conntrack::count(flow, true, skb::len(ctx));
        origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
        return NEXT;
    }
    // Straight into another pod of this node, which has nothing left to decide either. (No end elsewhere has ever decided.)
    let there = if forward { ingress } else { egress };
    if there != generation {
        return UNKNOWN;
    }
    // SAFETY: read field by field; the daemon replaces entries, it never writes into them.
    let Some(to) = (unsafe { LOCAL.get(frame.dst.as_addr()) }) else { return UNKNOWN };
    if forward::is_paced(pod)
        || to.flags & ENDPOINT_PACED != 0
        || !skb::is_for_host(ctx)
        || !conntrack::see(flow, kind_of(flow, frame.proto))
    {
        return UNKNOWN;
    }
    conntrack::count(flow, true, skb::len(ctx));
    origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
    let leg = Leg { hop_limit: frame.hop_limit, proto: frame.proto, transport: frame.transport };
    forward::deliver(ctx, to, &leg, u32::from(ipv6))
}

/// A packet for the pod, from the stack.
#[inline(never)]
pub fn received(ctx: &TcContext, ethertype: u16, generation: u32) -> bool {
    let Some(frame) = Frame::read(ctx, ethertype) else { return false };
    let Some((flow, forward)) = entry(&frame) else { return false };
    let end = if forward { DIR_INGRESS } else { DIR_EGRESS };
    let passes = flow.generations[end as usize] == generation
        && flow.path == PATH_STACK
        && is_settled(flow, frame.proto, forward)
        && conntrack::see(flow, kind_of(flow, frame.proto));
    if passes {
        conntrack::count(flow, false, skb::len(ctx));
    }
    passes
}

/// And whether the initiator sends it.
#[inline(always)]
fn entry<'a>(frame: &Frame) -> Option<(&'a mut Flow, bool)> {
    let from_low = !frame.src.is_above(&frame.dst);
    let key = if from_low {
        Key::between(frame.src, frame.dst, frame.src_port, frame.dst_port, frame.proto)
    } else {
        Key::between(frame.dst, frame.src, frame.dst_port, frame.src_port, frame.proto)
    };
    let flow = CONNTRACK.get_ptr_mut(key.as_abi())?;
    // SAFETY: a live entry; see `conntrack`.
    let flow = unsafe { &mut *flow };
    let forward = (flow.flags & FLOW_INITIATOR_LOW != 0) == from_low;
    Some((flow, forward))
}

/// Nothing of the entry but counters and age may change, and who speaks is what the addresses say.
#[inline(always)]
fn is_settled(flow: &Flow, proto: u8, forward: bool) -> bool {
    let stages = FLOW_ESTABLISHED | FLOW_CLOSING | FLOW_CLOSED | FLOW_UNASKED;
    let stage = flow.flags & stages;
    // Datagrams that nobody answers.
    let one_way = proto != PROTO_TCP && forward && stage == 0;
    flow.origin == 0 && (stage == FLOW_ESTABLISHED || one_way)
}

#[inline(always)]
fn kind_of(flow: &Flow, proto: u8) -> AgeKind {
    if flow.flags & FLOW_ESTABLISHED == 0 {
        AgeKind::Unanswered
    } else if proto == PROTO_TCP {
        AgeKind::Tcp
    } else {
        AgeKind::Udp
    }
}
