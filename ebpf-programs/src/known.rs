//! A packet of a connection that asks nothing new passes on one look-up, read where it lies in the frame;
//! straight into another pod of the node it takes a second one, for where that is.
//!
//! It is what most packets are: whole, TCP or UDP, without options or extension headers, its addresses and ports in the
//! linear part of the buffer; its connection alive and admitted by this end in the running generation; and nothing that
//! begins or resets one ([`stage`]). Whatever is otherwise goes the long way, which says what it means: nothing here
//! refuses a packet or decides about one.
//!
//! Between two packets the kernel's own code has driven these programs out of the first-level caches: what a packet costs here
//! is the lines that it touches, of the code most of all. So the commonest packet ([`swift`]) goes straight through.

mod frame;
mod stage;

use crate::{
    conntrack::{self, Key},
    endpoint::{self, kept},
    forward::{self, Leg},
    maps::CONNTRACK,
    origin,
    parse::{Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    skb,
};
use aya_ebpf::{helpers::generated::bpf_redirect_peer, programs::TcContext};
use bulkhead_ebpf_abi::{
    AgeKind, DIR_EGRESS, DIR_INGRESS, ENDPOINT_PACED, Endpoint, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_INITIATOR_LOW, Flow, PATH_STACK, PROTO_TCP,
};
use core::mem::MaybeUninit;
use frame::{Plain, V4, V6};
use stage::Stage;

/// Go the long way.
pub const UNKNOWN: i32 = -2;

/// A packet that a pod sends: what becomes of it, its origin marked; or [`UNKNOWN`].
#[inline(never)]
pub fn sent(ctx: &TcContext) -> i32 {
    match skb::ethertype(ctx) {
        skb::ETHERTYPE_IPV4 => pass::<V4>(ctx),
        skb::ETHERTYPE_IPV6 => pass::<V6>(ctx),
        _ => UNKNOWN,
    }
}

#[inline(always)]
fn pass<F: Plain>(ctx: &TcContext) -> i32 {
    let Some(frame) = F::read(ctx) else { return UNKNOWN };
    let generation = conntrack::live_generation();
    let Some(pod) = kept::endpoint(skb::ifindex(ctx)) else { return UNKNOWN };
    let tcp_flags = frame::tcp_flags(frame);
    if begins_or_breaks(tcp_flags) || !frame.is_of(pod) {
        return UNKNOWN;
    }
    let (key, from_low) = key(frame);
    let Some(flow) = entry(&key) else { return UNKNOWN };
    if tcp_flags & (TCP_SYN | TCP_FIN) == 0 && conntrack::is_settled(flow, generation) {
        return swift(ctx, pod, frame, flow);
    }
    let forward = (flow.flags & FLOW_INITIATOR_LOW != 0) == from_low;
    let [egress, ingress] = flow.generations;
    let (here, there) = if forward { (egress, ingress) } else { (ingress, egress) };
    if here != generation {
        return UNKNOWN;
    }
    let proto = frame.proto();
    let Some(stage) = Stage::after(flow, proto, tcp_flags, forward) else { return UNKNOWN };
    if flow.path == PATH_STACK {
        if !conntrack::see(flow, kind_of(flow, proto)) {
            return UNKNOWN;
        }
        stage.enter(&key, flow, forward);
        conntrack::count(flow, true, skb::len(ctx));
        mark(ctx, pod, F::IPV6);
        return endpoint::by_stack(pod);
    }
    // Straight into another pod of this node, which has nothing left to decide either. (No end elsewhere has ever decided.)
    if there != generation {
        return UNKNOWN;
    }
    let Some(to) = kept::delivery(&frame.dst()) else { return UNKNOWN };
    if forward::is_paced(pod)
        || to.flags & ENDPOINT_PACED != 0
        || !skb::is_for_host(ctx)
        || !conntrack::see(flow, kind_of(flow, proto))
    {
        return UNKNOWN;
    }
    stage.enter(&key, flow, forward);
    conntrack::count(flow, true, skb::len(ctx));
    mark(ctx, pod, F::IPV6);
    let leg = Leg { hop_limit: frame.hop_limit(), proto, transport: F::TRANSPORT };
    forward::deliver(ctx, to, &leg, u32::from(F::IPV6))
}

/// Of a connection that is direct and settled at both ends, and to which the packet does nothing but count: into the other pod.
#[inline(always)]
fn swift<F: Plain>(ctx: &TcContext, pod: &Endpoint, frame: F, flow: &mut Flow) -> i32 {
    let Some(to) = kept::delivery(&frame.dst()) else { return UNKNOWN };
    if forward::is_paced(pod)
        || to.flags & ENDPOINT_PACED != 0
        || !skb::is_for_host(ctx)
        || frame.hop_limit() <= 1
        || frame::segment(ctx, frame) > u32::from(to.mtu)
        || !frame.forward(ctx, &to.macs)
    {
        return UNKNOWN;
    }
    flow.packets += 1;
    flow.bytes += u64::from(skb::len(ctx));
    skb::set_mark(ctx, 0);
    // SAFETY: a helper that takes two numbers.
    unsafe { bpf_redirect_peer(to.ifindex, 0) as i32 }
}

#[inline(always)]
fn mark(ctx: &TcContext, pod: &Endpoint, ipv6: bool) {
    origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
}

/// A packet for the pod, from the stack: does it pass? Else it is unknown.
#[inline(never)]
pub fn received(ctx: &TcContext) -> bool {
    match skb::ethertype(ctx) {
        skb::ETHERTYPE_IPV4 => passes::<V4>(ctx),
        skb::ETHERTYPE_IPV6 => passes::<V6>(ctx),
        _ => false,
    }
}

#[inline(always)]
fn passes<F: Plain>(ctx: &TcContext) -> bool {
    let Some(frame) = F::read(ctx) else { return false };
    let tcp_flags = frame::tcp_flags(frame);
    if begins_or_breaks(tcp_flags) {
        return false;
    }
    let generation = conntrack::live_generation();
    // Whom nobody has wired nothing reaches.
    if kept::endpoint(skb::ifindex(ctx)).is_none() {
        return false;
    }
    let (key, from_low) = key(frame);
    let Some(flow) = entry(&key) else { return false };
    let forward = (flow.flags & FLOW_INITIATOR_LOW != 0) == from_low;
    let end = if forward { DIR_INGRESS } else { DIR_EGRESS };
    let proto = frame.proto();
    let Some(stage) = Stage::after(flow, proto, tcp_flags, forward) else { return false };
    let passes = flow.generations[end as usize] == generation
        && flow.path == PATH_STACK
        && conntrack::see(flow, kind_of(flow, proto));
    if passes {
        stage.enter(&key, flow, forward);
        conntrack::count(flow, false, skb::len(ctx));
    }
    passes
}

/// A plain packet, as [`crate::parse::parse`] reads it; false: it is not plain, and nothing was read.
#[inline(never)]
pub fn read(ctx: &TcContext, ethertype: u16, room: &mut MaybeUninit<Packet>) -> bool {
    match ethertype {
        skb::ETHERTYPE_IPV4 => V4::read(ctx).map(|frame| frame::to_packet(frame, room)).is_some(),
        skb::ETHERTYPE_IPV6 => V6::read(ctx).map(|frame| frame::to_packet(frame, room)).is_some(),
        _ => false,
    }
}

/// A connection begins, or is reset.
#[inline(always)]
fn begins_or_breaks(tcp_flags: u8) -> bool {
    tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN || tcp_flags & TCP_RST != 0
}

/// And whether the packet goes from its lower end to the higher.
#[inline(always)]
fn key(frame: impl Plain) -> (Key, bool) {
    let (src, dst, proto) = (frame.src(), frame.dst(), frame.proto());
    let (src_port, dst_port) = frame::ports(frame);
    let from_low = !src.is_above(&dst);
    let key = if from_low {
        Key::between(src, dst, src_port, dst_port, proto)
    } else {
        Key::between(dst, src, dst_port, src_port, proto)
    };
    (key, from_low)
}

#[inline(always)]
fn entry<'a>(key: &Key) -> Option<&'a mut Flow> {
    // SAFETY: a live entry; see `conntrack`.
    CONNTRACK.get_ptr_mut(key.as_abi()).map(|flow| unsafe { &mut *flow })
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
