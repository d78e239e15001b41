//! The direct path: packets that pass the host's stack by, with what the stack would have done to them.
//!
//! ```text
//! pod ──from_pod───▶ LOCAL ──▶ sender's egress, receiver's ingress ──▶ peer redirect: straight into the other pod
//!                      └─────▶ sender's egress ──▶ route look-up ────▶ neighbour redirect: out of the uplink
//! wire ─from_uplink▶ LOCAL ──▶ receiver's ingress ───────────────────▶ peer redirect
//! ```
//! A redirected packet meets no further hook of a pod, so both ends decide here; the one of the uplink by which it leaves
//! (`departure`) lets it by, for its mark. Left to the stack is all that it must answer or forward its own way: a hop limit at
//! its end, a packet longer than its link or route allows, IP options and extension headers, fragments, what has no route;
//! and the pods whose bandwidth a queue holds.

pub mod frame;
mod remote;

use crate::{
    conntrack::{self, At, Via},
    counters,
    endpoint::kept,
    parse::{self, Packet, Part},
    skb,
    verdict::NEXT,
};
use aya_ebpf::{helpers::generated::bpf_redirect_peer, programs::TcContext};
use bulkhead_ebpf_abi::{DIR_EGRESS, DIR_INGRESS, Delivery, ENDPOINT_PACED, Endpoint};

/// What forwarding must know of a packet.
pub struct Leg {
    pub hop_limit: u8,
    pub proto: u8,
    /// Where the transport header begins.
    pub transport: u32,
}

impl Leg {
    #[inline(always)]
    fn of(packet: &Packet) -> Self {
        Self { hop_limit: packet.hop_limit, proto: packet.proto, transport: packet.transport }
    }
}

/// May the pod's packet pass the stack by, as far as packet and pod go?
#[inline(always)]
pub fn is_plain(ctx: &TcContext, packet: &Packet, ipv6: bool) -> bool {
    let header = if ipv6 { 40 } else { 20 };
    packet.part == Part::Whole && packet.transport == skb::ETHERNET + header && skb::is_for_host(ctx)
}

#[inline(always)]
pub fn is_paced(pod: &Endpoint) -> bool {
    pod.ifb_ifindex != 0 || pod.flags & ENDPOINT_PACED != 0
}

/// To another pod of this node, or elsewhere; the program's word. `at` is the sender's.
#[inline(always)]
pub fn from_pod(ctx: &TcContext, at: &mut At, packet: &Packet, ipv6: bool) -> i32 {
    match kept::delivery(&packet.dst) {
        Some(to) => to_local(ctx, at, to, packet, ipv6),
        None => to_remote(ctx, at, packet, ipv6),
    }
}

#[inline(always)]
fn to_local(ctx: &TcContext, at: &mut At, to: &Delivery, packet: &Packet, ipv6: bool) -> i32 {
    if to.flags & ENDPOINT_PACED == 0 && to.ifindex != at.owner {
        (at.via, at.there) = (Via::Local, to.policy(at.generation));
    }
    let verdict = conntrack::admit(ctx, at, packet);
    if !verdict.passes() {
        let (policy, dir) =
            if verdict.is_of_receiver() { (at.there, DIR_INGRESS) } else { (at.policy, DIR_EGRESS) };
        return counters::drop(verdict, policy, dir, at.bytes);
    }
    if !verdict.is_direct() {
        return NEXT;
    }
    if !verdict.is_settled() {
        (at.policy, at.dir, at.owner) = (at.there, DIR_INGRESS, to.ifindex);
        let verdict = conntrack::admit(ctx, at, packet);
        if !verdict.passes() {
            return counters::drop(verdict, at.policy, DIR_INGRESS, at.bytes);
        }
    }
    deliver(ctx, to, &Leg::of(packet), u32::from(ipv6))
}

#[inline(always)]
fn to_remote(ctx: &TcContext, at: &mut At, packet: &Packet, ipv6: bool) -> i32 {
    at.via = Via::Remote;
    let verdict = conntrack::admit(ctx, at, packet);
    if !verdict.passes() {
        return counters::drop(verdict, at.policy, DIR_EGRESS, at.bytes);
    }
    if verdict.is_direct() { remote::send(ctx, packet, u32::from(ipv6)) } else { NEXT }
}

/// What an uplink brought for a pod of this node, its origin marked. `packet` is read anew.
#[inline(always)]
pub fn from_uplink(
    ctx: &TcContext,
    generation: u32,
    to: &Delivery,
    packet: &mut Packet,
    ethertype: u16,
) -> i32 {
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    // What cannot be read is judged and counted behind the stack, like all that is not direct.
    if parse::parse(ctx, packet, ethertype) != 0 || !is_plain(ctx, packet, ipv6) {
        return NEXT;
    }
    let at = At::new(ctx, generation, to.policy(generation), DIR_INGRESS);
    let at = At { owner: to.ifindex, via: Via::Uplink, ..at };
    let verdict = conntrack::admit(ctx, &at, packet);
    if !verdict.passes() {
        return counters::drop(verdict, at.policy, DIR_INGRESS, at.bytes);
    }
    if verdict.is_direct() { deliver(ctx, to, &Leg::of(packet), u32::from(ipv6)) } else { NEXT }
}

/// Into the pod, behind the queue and the hook of its host side. A function of its own, for the stack's sake.
#[inline(never)]
pub fn deliver(ctx: &TcContext, to: &Delivery, leg: &Leg, ipv6: u32) -> i32 {
    if leg.hop_limit <= 1
        || frame::segment(ctx, leg) > u32::from(to.mtu)
        || !frame::forward(ctx, &to.macs, leg.hop_limit, ipv6 != 0)
    {
        return NEXT;
    }
    // As on a way out of the namespace: marks are the host's own.
    skb::set_mark(ctx, 0);
    // SAFETY: a helper that takes two numbers.
    unsafe { bpf_redirect_peer(to.ifindex, 0) as i32 }
}
