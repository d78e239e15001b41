//! Connections: one entry a flow and node, each end's decision in it.
//!
//! ```text
//!                no entry ──────────────────────────────▶ decide in the packet's direction, make the entry
//!                SYN or echo request against the entry ─▶ the same: a new flow
//! packet ──▶     this end admitted it in this generation ▶ pass
//!                ... in another one, Keep ──────────────▶ re-stamp unless another tier than the partition's says no
//!                ... in another one, or never ──────────▶ decide in the initiator's direction: re-stamp, or cut
//! ```
//! Each end asks its own policy only: at a hook of the initiator's pod its egress, at one of the responder's its ingress. Where
//! the first packet goes directly to another pod of the node, both are asked at the sender's, before there is an entry.

mod begin;
mod decide;
mod icmp;
mod key;
mod path;
mod rings;
pub mod table;

pub use path::Via;

use crate::{
    counters,
    maps::{CONNTRACK, GENERATION},
    origin,
    parse::{Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    policy::Answer,
    skb,
    verdict::Verdict,
};
use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use begin::begin;
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, DROP_CLASH, DROP_MALFORMED, DROP_REVOKED, FLOW_ANSWERED, FLOW_CLOSED,
    FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_INITIATOR_LOW, FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_UNASKED,
    Flow, ORIGIN_ITSELF, ORIGIN_NONE, PATH_DIRECT, PROTO_TCP, RULE_NONE,
};
use core::mem::MaybeUninit;
use decide::{ask, peer_of_flow};
use icmp::icmp;
pub use key::Key;
pub use table::{is_settled, see};

/// What is decided on besides the packet: whose policy, which generation, which side of the pod.
#[repr(C)]
pub struct At {
    pub policy: u32,
    pub generation: u32,
    /// `DIR_EGRESS`: the pod sends the packet; `DIR_INGRESS`: it is for the pod.
    pub dir: u32,
    /// The origin mark the packet came with; `ORIGIN_ITSELF` of a pod's packet for itself, `ORIGIN_UNKNOWN` of one that
    /// came in where nobody marks.
    pub origin: u32,
    /// By which interface it came into the host; 0: none.
    pub entered_by: u32,
    pub bytes: u32,
    /// The pod's interface: a new connection counts in its share.
    pub owner: u32,
    pub via: Via,
    /// The receiver's policy, where a packet goes from pod to pod (`Via::Local`): a new connection is asked about at both ends.
    pub there: u32,
}

/// To be read once for each packet, and before the pod that it is about: what a pod is in a generation is written before the
/// switch. Without it every decision is a no: generation 0 has no tables.
#[inline(always)]
pub fn live_generation() -> u32 {
    GENERATION.get(0).copied().unwrap_or(0)
}

impl At {
    /// A packet of the pod at this interface, by the stack.
    #[inline(always)]
    pub fn new(ctx: &TcContext, generation: u32, policy: u32, dir: u32) -> Self {
        Self {
            policy,
            generation,
            dir,
            origin: origin::read(ctx),
            entered_by: skb::ingress_ifindex(ctx),
            bytes: skb::len(ctx),
            owner: skb::ifindex(ctx),
            via: Via::Stack,
            there: 0,
        }
    }

    #[inline(always)]
    pub fn sends(&self) -> bool {
        self.dir == DIR_EGRESS
    }
}

#[inline(always)]
pub fn admit(ctx: &TcContext, at: &At, packet: &Packet) -> Verdict {
    if packet.is_icmp() && !packet.is_echo_request() && !packet.is_echo_reply() {
        return Verdict::of(bulkhead_icmp(ctx.skb.skb, at, packet));
    }
    Verdict::of(bulkhead_admit(at, packet))
}

/// What the receiver's policy says of who sent a packet that carries this node's address; it makes no connection.
/// `goes_on`: it was let go before.
#[inline(always)]
pub fn judge(at: &At, packet: &Packet, goes_on: bool) -> Result<Answer, Verdict> {
    let receiver = (at.policy, DIR_INGRESS);
    let reason = if goes_on { DROP_REVOKED } else { decide::FIRST };
    ask(at, receiver, decide::by_mark(at), packet.proto, packet.service_port(), reason, false)
}

/// A function of its own to the verifier ("global"): checked once, for any packet, and not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bulkhead_admit(at: *const At, packet: *const Packet) -> u64 {
    // SAFETY: the caller's; null is what the verifier must be told of.
    let (Some(at), Some(packet)) = (unsafe { (at.as_ref(), packet.as_ref()) }) else {
        return Verdict::drop(DROP_MALFORMED).raw();
    };
    decide_on(at, packet).raw()
}

/// Of its own for the stack's sake, too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bulkhead_icmp(skb: *mut __sk_buff, at: *const At, packet: *const Packet) -> u64 {
    // SAFETY: as above.
    let (Some(at), Some(packet)) = (unsafe { (at.as_ref(), packet.as_ref()) }) else {
        return Verdict::drop(DROP_MALFORMED).raw();
    };
    icmp(&TcContext::new(skb), at, packet).raw()
}

#[inline(always)]
fn decide_on(at: &At, packet: &Packet) -> Verdict {
    let (key, from_low) = Key::of(packet);
    let Some(flow) = CONNTRACK.get_ptr_mut(key.as_abi()) else {
        return begin(at, packet, &key, from_low, false);
    };
    // SAFETY: a live entry; two CPUs may write it at once, which costs a count and nothing else: bits of `flags` are set and
    // cleared one by one, and how far the connection is closed stands in a byte for each direction.
    let flow = unsafe { &mut *flow };
    let forward = (flow.flags & FLOW_INITIATOR_LOW != 0) == from_low;
    let now = counters::now();
    // Dead already, only not yet looked at.
    if table::is_dead(flow, packet.proto, now) || starts_another(at, packet, flow, forward) {
        return begin(at, packet, &key, from_low, true);
    }
    if at.via == Via::Uplink && flow.path != PATH_DIRECT {
        return Verdict::PASS;
    }
    known(at, packet, &key, flow, forward, now)
}

/// Is this packet the beginning of a flow that only shares its key with the entry?
#[inline(always)]
fn starts_another(at: &At, packet: &Packet, flow: &Flow, forward: bool) -> bool {
    if !forward {
        return packet.is_syn() || packet.is_echo_request();
    }
    // Behind this node's own address somebody else may speak now.
    speaks_by_mark(flow) && !at.sends() && !is_of_origin(at, flow) && !is_renamed(at, packet, flow)
}

/// Does the packet's mark say the same as the entry's? The number may be another's by now.
#[inline(always)]
fn is_of_origin(at: &At, flow: &Flow) -> bool {
    at.origin == u32::from(flow.origin) && origin::turn(at.origin) == flow.origin_turn
}

#[inline(always)]
fn speaks_by_mark(flow: &Flow) -> bool {
    flow.flags & FLOW_UNASKED != 0 || flow.origin != 0
}

/// Of a packet whose mark is not the entry's: the client that began the connection, which has got another identity since?
/// It comes in by the same interface and begins nothing; whom else the stack gives the same port must begin.
#[inline(always)]
fn is_renamed(at: &At, packet: &Packet, flow: &Flow) -> bool {
    let is_identity = |origin: u32| origin != ORIGIN_NONE && origin < ORIGIN_ITSELF;
    packet.proto == PROTO_TCP
        && !packet.is_syn()
        && flow.flags & (FLOW_ESTABLISHED | FLOW_CLOSED) == FLOW_ESTABLISHED
        && is_identity(u32::from(flow.origin))
        && is_identity(at.origin)
        && at.entered_by != 0
        && at.entered_by == flow.entered_by
}

#[inline(always)]
fn known(at: &At, packet: &Packet, key: &Key, flow: &mut Flow, forward: bool, now: u64) -> Verdict {
    let end = if forward == at.sends() { DIR_EGRESS } else { DIR_INGRESS };
    let keep = if end == DIR_EGRESS { FLOW_KEEP_EGRESS } else { FLOW_KEEP_INGRESS };
    // A connection begun again is asked about again, by each end for itself.
    let again = forward && packet.is_syn();
    if again && path::clashes(at, flow) {
        return Verdict::drop(DROP_CLASH);
    }
    // The other end has seen this very packet where this one has not yet been asked.
    let asked = flow.flags & FLOW_UNASKED != 0 || flow.generations[end as usize] != 0;
    if again && asked && flow.flags & (FLOW_ESTABLISHED | FLOW_CLOSING) != 0 {
        begin_again(flow);
    }
    if flow.flags & FLOW_UNASKED == 0 {
        let renamed = take_name(at, flow, forward);
        let admitted = flow.generations[end as usize];
        if admitted != at.generation || again || renamed {
            let renewed = admitted != 0 && !again;
            let verdict = renew(at, packet, flow, end, keep, renewed);
            if !verdict.passes() {
                forget(packet, key, flow, admitted == 0 || again, end, now);
                return verdict;
            }
        }
    }
    let direct = path::follow(at, packet, flow, forward, again);
    touch(at, packet, key, flow, forward, again, now);
    let [egress, ingress] = flow.generations;
    let settled = egress == at.generation && ingress == at.generation && !again;
    match (direct, settled) {
        (false, _) => Verdict::PASS,
        (true, false) => Verdict::DIRECT,
        (true, true) => Verdict::SETTLED,
    }
}

/// The initiator's new name, where it has one; see `is_renamed`.
#[inline(always)]
fn take_name(at: &At, flow: &mut Flow, forward: bool) -> bool {
    let renamed = forward && !at.sends() && flow.origin != 0 && !is_of_origin(at, flow);
    if renamed {
        (flow.origin, flow.origin_turn) = (at.origin as u16, origin::turn(at.origin));
    }
    renamed
}

/// What the connection before counted is its rules'; each end counts the new one when it has been asked.
#[inline(always)]
fn begin_again(flow: &mut Flow) {
    counters::fold(flow);
    flow.cut = 0;
    if flow.flags & FLOW_UNASKED != 0 {
        flow.begun = 1 << DIR_INGRESS;
    } else {
        (flow.generations, flow.rules) = ([0; 2], [RULE_NONE; 2]);
    }
}

/// Asks this end's policy in the initiator's direction, and stamps. Keep shields against changes of the partition tier.
#[inline(always)]
fn renew(at: &At, packet: &Packet, flow: &mut Flow, end: u32, keep: u8, renewed: bool) -> Verdict {
    let reason = if renewed { DROP_REVOKED } else { decide::FIRST };
    let kept = renewed && flow.flags & keep != 0;
    let peer = peer_of_flow(at, packet, flow, end);
    match ask(at, (at.policy, end), peer, packet.proto, flow.service_port, reason, kept) {
        // It stays the connection of the rule that admitted it.
        Ok(_) if kept => {
            flow.generations[end as usize] = at.generation;
            flow.cut &= !(1 << end);
            Verdict::PASS
        }
        Ok(answer) => {
            flow.cut &= !(1 << end);
            match (answer.keeps(), flow.flags & keep != 0) {
                (true, false) => table::set_flags(flow, keep),
                (false, true) => table::clear_flags(flow, keep),
                _ => {}
            }
            let before = flow.rules[end as usize];
            if before == RULE_NONE {
                flow.begun |= 1 << end;
            } else if before != answer.rule() {
                counters::fold(flow);
            }
            flow.generations[end as usize] = at.generation;
            flow.rules[end as usize] = answer.rule();
            Verdict::PASS
        }
        Err(verdict) => verdict,
    }
}

/// What becomes of the entry when its flow is refused.
///
/// A TCP connection that was cut keeps its entry: it remembers who began it, so that the other direction cannot carry
/// the connection on under a rule of its own. It is asked about with every packet, and lives again if a later
/// generation allows it. It has an age of its own, which counts from the last attempt to go on. A datagram against the
/// direction is a flow of its own, so its entry goes.
#[inline(always)]
fn forget(packet: &Packet, key: &Key, flow: &mut Flow, was_new: bool, end: u32, now: u64) {
    if was_new || packet.proto != PROTO_TCP {
        table::remove(key.as_abi(), flow);
    } else {
        flow.cut |= 1 << end;
        table::seen(flow, now);
    }
}

/// Sets bits of how far the connection is that were not set before, and changes its ring where that says so.
#[inline(never)]
pub fn advance(key: &Key, flow: &mut Flow, bits: u8) {
    table::set_flags(flow, bits);
    if bits & FLOW_ESTABLISHED != 0 {
        rings::established(flow);
    }
    if bits & FLOW_CLOSED != 0 {
        table::closed(key, flow);
    }
}

#[inline(always)]
fn touch(at: &At, packet: &Packet, key: &Key, flow: &mut Flow, forward: bool, again: bool, now: u64) {
    let mut flags = flow.flags;
    if again {
        const STAGE: u8 = FLOW_ANSWERED | FLOW_ESTABLISHED | FLOW_CLOSING | FLOW_CLOSED;
        (flow.fin, flow.fin_back) = (0, 0);
        if flags & STAGE != 0 {
            table::clear_flags(flow, STAGE);
            flags &= !STAGE;
        }
    }
    let had = flags;
    if !forward {
        // Of TCP an answer proves nothing yet: a flood of requests under false names is answered, too.
        flags |= if packet.proto == PROTO_TCP { FLOW_ANSWERED } else { FLOW_ANSWERED | FLOW_ESTABLISHED };
    } else if flags & FLOW_ANSWERED != 0 && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_ACK {
        flags |= FLOW_ESTABLISHED;
    }
    let ends = packet.tcp_flags & (TCP_FIN | TCP_RST);
    if ends != 0 {
        if forward {
            flow.fin |= ends;
        } else {
            flow.fin_back |= ends;
        }
    }
    flags |= table::closing(flow);
    if flags != had {
        advance(key, flow, flags & !had);
    }
    table::seen(flow, now);
    count(flow, at.sends(), at.bytes);
}

#[inline(always)]
pub fn count(flow: &mut Flow, sends: bool, bytes: u32) {
    // Of a flow between two pods of this node both hooks see each packet: the sender's counts.
    let both_ends_here = flow.generations[0] != 0 && flow.generations[1] != 0;
    if sends || !both_ends_here {
        flow.packets += 1;
        flow.bytes += u64::from(bytes);
    }
}

/// Forgets the connection whose key lies behind the Ethernet header: how user space removes an entry, so that its share
/// is given back in one place.
#[inline(always)]
pub fn forget_named(ctx: &TcContext) -> i32 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: 40 bytes into 40; integers only.
    let Some(key) = (unsafe { skb::load::<Key, 0, 40>(ctx, skb::ETHERNET, &mut room) }) else {
        return -1;
    };
    let Some(flow) = CONNTRACK.get_ptr_mut(key.as_abi()) else {
        return 0;
    };
    // SAFETY: a live entry.
    table::remove(key.as_abi(), unsafe { &mut *flow });
    1
}
