//! A packet of a connection that asks nothing new passes on one look-up, read straight from the frame;
//! straight into another pod of the node it takes a second one, for where that is.
//!
//! It is what most packets are: whole, TCP or UDP, without options or extension headers, its addresses and ports in the
//! linear part of the buffer; its connection alive and admitted by this end in the running generation; and nothing that
//! begins, resets or closes one ([`stage`]). Whatever is otherwise goes the long way, which says what it means: nothing here
//! refuses a packet or decides about one.

mod frame;
mod stage;

use crate::{
    conntrack::{self, Key},
    endpoint::{kept, source},
    forward::{self, Leg},
    maps::CONNTRACK,
    origin,
    parse::Packet,
    skb,
    verdict::NEXT,
};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{
    AgeKind, DIR_EGRESS, DIR_INGRESS, ENDPOINT_PACED, Endpoint, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_INITIATOR_LOW, Flow, PATH_STACK, PROTO_TCP,
};
use core::mem::MaybeUninit;
use frame::Frame;
use stage::Stage;

/// Go the long way, and read the packet first.
pub const UNREAD: i32 = -2;
/// Go the long way, with what was read.
pub const UNKNOWN: i32 = -3;

/// A packet that the pod sends: what becomes of it, its origin marked; or [`UNREAD`], or [`UNKNOWN`] and the packet in `room`.
#[inline(never)]
pub fn sent(
    ctx: &TcContext,
    pod: &Endpoint,
    ethertype: u16,
    generation: u32,
    room: &mut MaybeUninit<Packet>,
) -> i32 {
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    let Some(frame) = Frame::read(ctx, ethertype) else { return UNREAD };
    let said = pass(ctx, pod, &frame, ipv6, generation);
    if said == UNKNOWN {
        frame.to_packet(room, ipv6);
    }
    said
}

#[inline(always)]
fn pass(ctx: &TcContext, pod: &Endpoint, frame: &Frame, ipv6: bool, generation: u32) -> i32 {
    if frame.begins_or_breaks() {
        return UNKNOWN;
    }
    if !source::has_mac(pod, &frame.src_mac) || frame.src != source::address(pod, ipv6) {
        return UNKNOWN;
    }
    let Some((flow, forward)) = entry(frame) else { return UNKNOWN };
    let [egress, ingress] = flow.generations;
    let here = if forward { egress } else { ingress };
    if here != generation {
        return UNKNOWN;
    }
    let Some(stage) = Stage::after(flow, frame, forward) else { return UNKNOWN };
    if flow.path == PATH_STACK {
        if !conntrack::see(flow, kind_of(flow, frame.proto)) {
            return UNKNOWN;
        }
        stage.enter(flow, forward);
        conntrack::count(flow, true, skb::len(ctx));
        origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
        return NEXT;
    }
    // Straight into another pod of this node, which has nothing left to decide either. (No end elsewhere has ever decided.)
    let there = if forward { ingress } else { egress };
    if there != generation {
        return UNKNOWN;
    }
    let Some(to) = kept::delivery(&frame.dst) else { return UNKNOWN };
    if forward::is_paced(pod)
        || to.flags & ENDPOINT_PACED != 0
        || !skb::is_for_host(ctx)
        || !conntrack::see(flow, kind_of(flow, frame.proto))
    {
        return UNKNOWN;
    }
    stage.enter(flow, forward);
    conntrack::count(flow, true, skb::len(ctx));
    origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
    let leg = Leg { hop_limit: frame.hop_limit, proto: frame.proto, transport: frame.transport };
    forward::deliver(ctx, to, &leg, u32::from(ipv6))
}

/// A packet for the pod, from the stack: [`NEXT`], or as [`sent`].
#[inline(never)]
pub fn received(ctx: &TcContext, ethertype: u16, generation: u32, room: &mut MaybeUninit<Packet>) -> i32 {
    let Some(frame) = Frame::read(ctx, ethertype) else { return UNREAD };
    if passes(ctx, &frame, generation) {
        return NEXT;
    }
    frame.to_packet(room, ethertype == skb::ETHERTYPE_IPV6);
    UNKNOWN
}

#[inline(always)]
fn passes(ctx: &TcContext, frame: &Frame, generation: u32) -> bool {
    if frame.begins_or_breaks() {
        return false;
    }
    let Some((flow, forward)) = entry(frame) else { return false };
    let end = if forward { DIR_INGRESS } else { DIR_EGRESS };
    let Some(stage) = Stage::after(flow, frame, forward) else { return false };
    let passes = flow.generations[end as usize] == generation
        && flow.path == PATH_STACK
        && conntrack::see(flow, kind_of(flow, frame.proto));
    if passes {
        stage.enter(flow, forward);
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

#[inline(always)]
fn kind_of(flow: &Flow, proto: u8) -> AgeKind {
    if flow.flags & FLOW_ESTABLISHED == 0 {
        AgeKind::Unanswered
    } else if proto != PROTO_TCP {
        AgeKind::Udp
    } else if flow.flags & (FLOW_CLOSING | FLOW_CLOSED) == 0 {
        AgeKind::Tcp
    } else {
        AgeKind::of(proto, flow.flags, 0)
    }
}
