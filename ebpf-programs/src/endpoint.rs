//! The two hooks of a pod's interface.

mod arp;
mod kept;
pub mod source;

use crate::{
    conntrack::{self, At},
    counters::{self, count},
    fragment, known,
    maps::GENERATION,
    origin,
    parse::{self, Packet, Part},
    skb,
    verdict::{DROP, NEXT, Verdict},
};
use aya_ebpf::{helpers::generated::bpf_redirect, programs::TcContext};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, DROP_MULTICAST, DROP_NO_ENDPOINT, DROP_NOT_IP, DROP_SPOOFED_POD, Endpoint,
    ORIGIN_NONE,
};
use core::mem::MaybeUninit;

#[inline(always)]
fn live_generation() -> u32 {
    // Without it every decision is a no: generation 0 has no tables.
    GENERATION.get(0).copied().unwrap_or(0)
}

#[inline(always)]
pub fn from_pod(ctx: &TcContext) -> i32 {
    let Some(pod) = kept::endpoint(skb::ifindex(ctx)) else {
        return unwired(ctx, DIR_EGRESS);
    };
    let verdict = outbound(ctx, pod);
    if !verdict.passes() {
        return counters::drop(verdict, pod.policy, DIR_EGRESS, skb::len(ctx));
    }
    // The ifb's queue paces; it hands the packet back to this interface, behind this hook, mark and all.
    match pod.ifb_ifindex {
        0 => forward(),
        // SAFETY: a helper that takes two numbers.
        ifb => unsafe { bpf_redirect(ifb, 0) as i32 },
    }
}

/// The stack routes. A packet that may take the direct path is redirected here.
#[inline(always)]
fn forward() -> i32 {
    NEXT
}

#[inline(always)]
fn outbound(ctx: &TcContext, pod: &Endpoint) -> Verdict {
    let ethertype = skb::ethertype(ctx);
    match ethertype {
        skb::ETHERTYPE_IPV4 | skb::ETHERTYPE_IPV6 => {}
        skb::ETHERTYPE_ARP => return arp::from_pod(ctx, pod),
        _ => return Verdict::drop(DROP_NOT_IP),
    }
    let generation = live_generation();
    if known::sent(ctx, pod, generation, ethertype) {
        return Verdict::PASS;
    }
    let mut room = MaybeUninit::uninit();
    let packet = Packet::empty(&mut room);
    let reason = parse::parse(ctx, packet, ethertype);
    if reason != 0 {
        return Verdict::drop(reason as u8);
    }
    let link_control = source::is_link_control(packet);
    // Of the ethertype, which the verifier follows: of `packet.ipv6` it knows only that it is some byte.
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    if !source::is_of(pod, packet, ipv6, link_control) {
        return Verdict::drop(DROP_SPOOFED_POD);
    }
    origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
    if link_control {
        return Verdict::PASS;
    }
    if packet.dst.is_multicast() {
        return Verdict::drop(DROP_MULTICAST);
    }
    decide(ctx, pod, packet, DIR_EGRESS, generation)
}

#[inline(always)]
pub fn to_pod(ctx: &TcContext) -> i32 {
    let Some(pod) = kept::endpoint(skb::ifindex(ctx)) else {
        return unwired(ctx, DIR_INGRESS);
    };
    let verdict = inbound(ctx, pod);
    if verdict.passes() { NEXT } else { counters::drop(verdict, pod.policy, DIR_INGRESS, skb::len(ctx)) }
}

#[inline(always)]
fn inbound(ctx: &TcContext, pod: &Endpoint) -> Verdict {
    let ethertype = skb::ethertype(ctx);
    match ethertype {
        skb::ETHERTYPE_IPV4 | skb::ETHERTYPE_IPV6 => {}
        // Only this host is on the link.
        skb::ETHERTYPE_ARP => return Verdict::PASS,
        _ => return Verdict::drop(DROP_NOT_IP),
    }
    let generation = live_generation();
    if known::received(ctx, generation, ethertype) {
        return Verdict::PASS;
    }
    let mut room = MaybeUninit::uninit();
    let packet = Packet::empty(&mut room);
    let reason = parse::parse(ctx, packet, ethertype);
    if reason != 0 {
        return Verdict::drop(reason as u8);
    }
    if origin::read(ctx) == ORIGIN_NONE && source::is_neighbour_discovery(packet) {
        return Verdict::PASS;
    }
    decide(ctx, pod, packet, DIR_INGRESS, generation)
}

#[inline(always)]
fn decide(ctx: &TcContext, pod: &Endpoint, packet: &mut Packet, dir: u32, generation: u32) -> Verdict {
    if packet.part == Part::Later {
        let reason = fragment::resolve(packet, dir);
        if reason != 0 {
            return Verdict::drop(reason as u8);
        }
    }
    let at = At {
        policy: pod.policy,
        generation,
        dir,
        origin: origin::read(ctx),
        bytes: skb::len(ctx),
        owner: skb::ifindex(ctx),
    };
    let verdict = conntrack::admit(ctx, &at, packet);
    if verdict.passes() && packet.part == Part::First {
        let reason = fragment::remember(packet, dir);
        if reason != 0 {
            return Verdict::drop(reason as u8);
        }
    }
    verdict
}

#[inline(always)]
fn unwired(ctx: &TcContext, dir: u32) -> i32 {
    count(u32::from(DROP_NO_ENDPOINT), 0, 0, dir, skb::len(ctx));
    DROP
}
