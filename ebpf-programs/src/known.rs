//! A packet of a connection that asks nothing new passes on one look-up: read straight from the frame, no call but that one.
//!
//! It is what most packets are: whole, TCP or UDP, without options or extension headers, its addresses and ports in the
//! linear part of the buffer; its connection established, alive, and admitted by this end in the running generation.
//! Whatever is otherwise, or would change more of the entry than its counters and its age, goes the long way, which says
//! what it means: nothing here refuses a packet or decides about one.

mod frame;

use crate::{
    conntrack::{self, Key},
    endpoint::source,
    maps::CONNTRACK,
    origin, skb,
};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{
    AgeKind, DIR_EGRESS, DIR_INGRESS, Endpoint, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_INITIATOR_LOW, FLOW_OWN_NODE, Flow, PATH_STACK, PROTO_TCP,
};
use frame::Frame;

/// A packet that the pod sends: marked with its origin if it passes.
#[inline(never)]
pub fn sent(ctx: &TcContext, pod: &Endpoint, ethertype: u16) -> bool {
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    let Some(frame) = Frame::read(ctx, ethertype) else { return false };
    let passes = source::has_mac(pod, &frame.src_mac)
        && frame.src == source::address(pod, ipv6)
        && passes(ctx, &frame, DIR_EGRESS);
    if passes {
        origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
    }
    passes
}

/// A packet for the pod.
#[inline(never)]
pub fn received(ctx: &TcContext, ethertype: u16) -> bool {
    match Frame::read(ctx, ethertype) {
        Some(frame) => passes(ctx, &frame, DIR_INGRESS),
        None => false,
    }
}

#[inline(always)]
fn passes(ctx: &TcContext, frame: &Frame, dir: u32) -> bool {
    let from_low = !frame.src.is_above(&frame.dst);
    let key = if from_low {
        Key::between(frame.src, frame.dst, frame.src_port, frame.dst_port, frame.proto)
    } else {
        Key::between(frame.dst, frame.src, frame.dst_port, frame.src_port, frame.proto)
    };
    let Some(flow) = CONNTRACK.get_ptr_mut(key.as_abi()) else { return false };
    // SAFETY: a live entry; see `conntrack`.
    let flow = unsafe { &mut *flow };
    let forward = (flow.flags & FLOW_INITIATOR_LOW != 0) == from_low;
    let sends = dir == DIR_EGRESS;
    let end = if forward == sends { DIR_EGRESS } else { DIR_INGRESS };
    flow.admitted[end as usize].generation == conntrack::live_generation()
        && is_settled(flow, frame.proto, forward)
        && conntrack::see(flow, kind_of(flow, frame.proto))
        && {
            conntrack::count(flow, sends, skb::len(ctx));
            true
        }
}

/// Nothing of the entry but counters and age may change, and who speaks is what the addresses say.
#[inline(always)]
fn is_settled(flow: &Flow, proto: u8, forward: bool) -> bool {
    let stages = FLOW_ESTABLISHED | FLOW_CLOSING | FLOW_CLOSED | FLOW_OWN_NODE;
    let stage = flow.flags & stages;
    // Datagrams that nobody answers.
    let one_way = proto != PROTO_TCP && forward && stage == 0;
    flow.path == PATH_STACK && flow.origin == 0 && (stage == FLOW_ESTABLISHED || one_way)
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
