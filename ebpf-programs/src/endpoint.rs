//! The two hooks of a pod's interface.

mod arp;
pub mod kept;
pub mod source;

use crate::{
    conntrack::{self, At},
    counters::{self, count},
    forward, fragment, known, origin,
    parse::{self, Packet, Part},
    skb,
    verdict::{DROP, NEXT, Verdict},
};
use aya_ebpf::{helpers::generated::bpf_redirect, macros::map, maps::PerCpuArray, programs::TcContext};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, DROP_MULTICAST, DROP_NO_ENDPOINT, DROP_NOT_IP, DROP_SPOOFED_POD, Endpoint,
    ORIGIN_ITSELF, ORIGIN_NONE,
};
use core::mem::MaybeUninit;

#[inline(always)]
pub fn from_pod(ctx: &TcContext) -> i32 {
    match known::sent(ctx) {
        known::UNKNOWN => send(ctx),
        said => said,
    }
}

/// What is known of a packet on the long way: off the stack, which has no room for it beside all that is called from there.
#[repr(C)]
struct Room {
    packet: MaybeUninit<Packet>,
    at: MaybeUninit<At>,
}

#[map]
static ROOM: PerCpuArray<Room> = PerCpuArray::with_max_entries(1, 0);

/// The long way.
#[inline(always)]
fn send(ctx: &TcContext) -> i32 {
    let generation = conntrack::live_generation();
    let Some(pod) = kept::endpoint(skb::ifindex(ctx)) else {
        return unwired(ctx, DIR_EGRESS);
    };
    let ethertype = skb::ethertype(ctx);
    if ethertype == skb::ETHERTYPE_ARP {
        return to_stack(ctx, pod, generation, arp::from_pod(ctx, pod));
    }
    let Some(room) = ROOM.get_ptr_mut(0) else { return DROP };
    // SAFETY: this CPU's own; see `kept`.
    let Room { packet: room, at } = unsafe { &mut *room };
    let packet = match read(ctx, room, ethertype) {
        Ok(packet) => packet,
        Err(verdict) => return to_stack(ctx, pod, generation, verdict),
    };
    let checked = check(ctx, pod, packet, ethertype);
    // Of the ethertype, which the verifier follows: of `packet.ipv6` it knows only that it is some byte.
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    if !checked.passes() || checked.is_settled() {
        return to_stack(ctx, pod, generation, checked);
    }
    let at = at.write(At::new(ctx, generation, pod.policy(generation), DIR_EGRESS));
    if packet.dst == packet.src {
        at.origin = ORIGIN_ITSELF;
    }
    if forward::is_plain(ctx, packet, ipv6) && !forward::is_paced(pod) {
        return forward::from_pod(ctx, at, packet, ipv6);
    }
    to_stack(ctx, pod, generation, decide(ctx, at, packet))
}

#[inline(always)]
fn to_stack(ctx: &TcContext, pod: &Endpoint, generation: u32, verdict: Verdict) -> i32 {
    if !verdict.passes() {
        return counters::drop(verdict, pod.policy(generation), DIR_EGRESS, skb::len(ctx));
    }
    by_stack(pod)
}

/// The ifb's queue paces; it hands the packet back to this interface, behind this hook, mark and all.
#[inline(always)]
pub fn by_stack(pod: &Endpoint) -> i32 {
    match pod.ifb_ifindex {
        0 => NEXT,
        // SAFETY: a helper that takes two numbers.
        ifb => unsafe { bpf_redirect(ifb, 0) as i32 },
    }
}

/// All that a hook must know of a packet, or why it cannot be known.
#[inline(always)]
pub fn read<'a>(
    ctx: &TcContext,
    room: &'a mut MaybeUninit<Packet>,
    ethertype: u16,
) -> Result<&'a mut Packet, Verdict> {
    if ethertype != skb::ETHERTYPE_IPV4 && ethertype != skb::ETHERTYPE_IPV6 {
        return Err(Verdict::drop(DROP_NOT_IP));
    }
    if known::read(ctx, ethertype, room) {
        // SAFETY: that is what it says.
        return Ok(unsafe { room.assume_init_mut() });
    }
    let packet = Packet::empty(room);
    match parse::parse(ctx, packet, ethertype) {
        0 => Ok(packet),
        reason => Err(Verdict::drop(reason as u8)),
    }
}

/// Marks the packet's origin, and lets nobody speak for others. `SETTLED`: no policy is asked about it.
#[inline(always)]
fn check(ctx: &TcContext, pod: &Endpoint, packet: &Packet, ethertype: u16) -> Verdict {
    let link_control = source::is_link_control(packet);
    let ipv6 = ethertype == skb::ETHERTYPE_IPV6;
    if !source::is_of(pod, packet, ipv6, link_control) {
        return Verdict::drop(DROP_SPOOFED_POD);
    }
    origin::write(ctx, if ipv6 { pod.identity_v6 } else { pod.identity_v4 });
    if link_control {
        return Verdict::SETTLED;
    }
    if packet.dst.is_multicast() {
        return Verdict::drop(DROP_MULTICAST);
    }
    Verdict::PASS
}

#[inline(always)]
pub fn to_pod(ctx: &TcContext) -> i32 {
    if known::received(ctx) {
        return NEXT;
    }
    let generation = conntrack::live_generation();
    let Some(pod) = kept::endpoint(skb::ifindex(ctx)) else {
        return unwired(ctx, DIR_INGRESS);
    };
    let verdict = inbound(ctx, pod, generation);
    if verdict.passes() {
        return NEXT;
    }
    counters::drop(verdict, pod.policy(generation), DIR_INGRESS, skb::len(ctx))
}

#[inline(always)]
fn inbound(ctx: &TcContext, pod: &Endpoint, generation: u32) -> Verdict {
    let ethertype = skb::ethertype(ctx);
    // Only this host is on the link.
    if ethertype == skb::ETHERTYPE_ARP {
        return Verdict::PASS;
    }
    let Some(room) = ROOM.get_ptr_mut(0) else { return Verdict::drop(DROP_NO_ENDPOINT) };
    // SAFETY: as in `send`.
    let Room { packet: room, at } = unsafe { &mut *room };
    let packet = match read(ctx, room, ethertype) {
        Ok(packet) => packet,
        Err(verdict) => return verdict,
    };
    if origin::read(ctx) == ORIGIN_NONE && source::is_neighbour_discovery(packet) {
        return Verdict::PASS;
    }
    let at = at.write(At::new(ctx, generation, pod.policy(generation), DIR_INGRESS));
    at.origin = origin::at_pod(ctx, packet.part);
    decide(ctx, at, packet)
}

#[inline(always)]
fn decide(ctx: &TcContext, at: &At, packet: &mut Packet) -> Verdict {
    if packet.part == Part::Later {
        let reason = fragment::resolve(packet, at.dir);
        if reason != 0 {
            return Verdict::drop(reason as u8);
        }
    }
    let verdict = conntrack::admit(ctx, at, packet);
    if verdict.passes() && packet.part == Part::First {
        let reason = fragment::remember(packet, at);
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
