//! The other hook of an uplink: nobody leaves as this node for a pod that would not let him in.
//!
//! What kube-proxy, or somebody else in the host's stack, sends on to a pod of another node carries an address of this one, if it
//! masquerades it: there it is this node's, and nobody knows better. Here its mark says who sent it. So the receiver's partition
//! is asked here; whether it lets this node in is asked there.
//!
//! A reply is nobody's call. What begins a connection TCP's flags say, and those that were let go are noted (`BEGUN`) and asked
//! about again with each packet, so that they are cut. Anything else may as well answer a pod that has called this node (a host port):
//! what those have called is noted on its way in ([`remember`], `CALLED`), and all else is a call. Such a note says when, and counts as long as
//! a connection of its protocol lives: the pod's own packets renew it, and nobody else's.
//!
//! The notes of calls stand in rings, by the caller's address, and of one more the eldest of its ring is forgotten: a pod that calls from
//! ever other ports costs those that share its ring, and nobody else. (The map behind them evicts by itself what no ring names.)
//!
//! A note of a connection outlives its end, until others need its place. A reset is no end: one beyond the window ends nothing, and whoever
//! sends it would be asked no more; nor is a FIN alone, and the other end's is not looked at.

use crate::{
    address::Address,
    conntrack::{self, At, Key, table},
    counters, endpoint,
    identity::identity,
    maps::{BEGUN, CALLED, RANGE_POLICY},
    origin,
    parse::{self, Packet, Part},
    skb,
    verdict::{NEXT, Verdict},
};
use aya_ebpf::{
    macros::map,
    maps::{Array, lpm_trie::Key as Prefix},
    programs::TcContext,
};
use bulkhead_ebpf_abi::{
    AgeKind, BEGUN_BEFORE, BEGUN_HERE, DIR_INGRESS, DROP_RANGE_CLOSED, DROP_UNKNOWN_ORIGIN, DROP_UNNOTED,
    IDENTITY_LOCAL_NODE, ORIGIN_ITSELF, ORIGIN_NONE, ORIGIN_UNKNOWN, PROTO_SCTP, PROTO_TCP, PROTO_UDP,
    RANGE_CLOSED, RANGE_OPEN, called_at, called_since,
};
use core::mem::MaybeUninit;

/// The first interface of every network namespace, and none at all.
const OWN: u32 = 1;

/// So many rings for all callers, of so many calls each: half of what `CALLED` has room for, so that it evicts nothing by itself.
const RINGS: u32 = 1 << RING_BITS;
const RING_BITS: u32 = 4;
const CALLS_PER_RING: u32 = 512;

/// Not pinned: what a daemon before us has noted ages.
#[map]
static CALLED_RING: Array<Key> = Array::with_max_entries(RINGS * CALLS_PER_RING, 0);
/// Calls ever put into each ring.
#[map]
static CALLED_TURN: Array<u64> = Array::with_max_entries(RINGS, 0);

/// Of most packets the mark says enough, and of nearly all others the source: what is asked beyond that stands elsewhere.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext) -> i32 {
    let origin = origin::read(ctx);
    // What passes the stack by; and most of what this node says itself.
    if origin == ORIGIN_ITSELF
        || origin == ORIGIN_NONE && skb::ingress_ifindex(ctx) <= OWN && skb::has_socket(ctx)
    {
        return NEXT;
    }
    let protocol = skb::protocol(ctx);
    // What is no IP the stack has not translated.
    let Some(from) = parse::source(ctx, protocol) else { return NEXT };
    if !identity(&from).has(IDENTITY_LOCAL_NODE) {
        return NEXT;
    }
    let Some(to) = parse::destination(ctx, protocol) else { return NEXT };
    match policy_of(&to) {
        RANGE_OPEN => NEXT,
        policy => in_the_nodes_name(ctx, protocol, policy),
    }
}

#[inline(never)]
fn in_the_nodes_name(ctx: &TcContext, protocol: u16, policy: u32) -> i32 {
    let verdict = judge(ctx, protocol, policy);
    if verdict.passes() { NEXT } else { counters::drop(verdict, policy, DIR_INGRESS, skb::len(ctx)) }
}

#[inline(always)]
fn judge(ctx: &TcContext, protocol: u16, policy: u32) -> Verdict {
    let mut room = MaybeUninit::uninit();
    let packet = match endpoint::read(ctx, &mut room, protocol) {
        Ok(packet) => packet,
        Err(verdict) => return verdict,
    };
    if packet.part == Part::Later {
        // Worth nothing without its first.
        return Verdict::PASS;
    }
    let (key, _) = Key::of(packet);
    let (begins, by) = (packet.is_syn(), begun_by(&key));
    let begun = by == Some(BEGUN_HERE);
    let is_call = match packet.proto {
        PROTO_TCP => begins || begun,
        PROTO_UDP | PROTO_SCTP => by != Some(BEGUN_BEFORE) && (begun || !is_called(&key, packet.proto)),
        _ => false,
    };
    if !is_call {
        return Verdict::PASS;
    }
    let mut at = At::new(ctx, conntrack::live_generation(), policy, DIR_INGRESS);
    at.origin = origin::at_uplink(ctx, packet.part);
    if at.origin == ORIGIN_NONE {
        return Verdict::PASS;
    }
    if policy == RANGE_CLOSED {
        let is_known = at.origin != ORIGIN_UNKNOWN;
        return Verdict::drop(if is_known { DROP_RANGE_CLOSED } else { DROP_UNKNOWN_ORIGIN });
    }
    match conntrack::judge(&at, packet, begun && !begins) {
        Ok(answer) if begins && answer.keeps() => {
            // What is shielded against changes is not asked about again.
            let _ = BEGUN.remove(key.as_abi());
            Verdict::PASS
        }
        Ok(_) if begun || BEGUN.insert(key.as_abi(), BEGUN_HERE, 0).is_ok() => Verdict::PASS,
        // It would not be cut either.
        Ok(answer) if answer.audits() => Verdict::PASS,
        Ok(_) => Verdict::drop(DROP_UNNOTED),
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn begun_by(key: &Key) -> Option<u32> {
    // SAFETY: a word; another processor writes it whole.
    unsafe { BEGUN.get(key.as_abi()) }.copied()
}

/// Lately enough for an answer?
#[inline(always)]
fn is_called(key: &Key, proto: u8) -> bool {
    // SAFETY: as above.
    let Some(at) = (unsafe { CALLED.get(key.as_abi()) }) else { return false };
    let age = table::age(if proto == PROTO_UDP { AgeKind::Udp } else { AgeKind::Other });
    counters::now().saturating_sub(called_since(*at)) <= age
}

#[inline(never)]
fn policy_of(to: &Address) -> u32 {
    RANGE_POLICY.get(Prefix::new(128, *to)).copied().unwrap_or(RANGE_OPEN)
}

/// What an uplink brought, if it is a pod's that calls this node.
#[inline(never)]
pub fn remember(ctx: &TcContext, packet: &mut Packet, protocol: u16) -> u32 {
    if packet.proto == PROTO_TCP
        || packet.is_icmp()
        || policy_of(&packet.src) == RANGE_OPEN
        || !identity(&packet.dst).has(IDENTITY_LOCAL_NODE)
        || parse::parse(ctx, packet, protocol) != 0
        || packet.part == Part::Later
        || packet.proto != PROTO_UDP && packet.proto != PROTO_SCTP
    {
        return 0;
    }
    let (key, _) = Key::of(packet);
    // The answers of a pod that was called from here make nobody's call an answer.
    if begun_by(&key) != Some(BEGUN_HERE) {
        note(&key, &packet.src);
    }
    0
}

/// Of what is not noted the answers are refused.
#[inline(never)]
fn note(key: &Key, caller: &Address) -> u32 {
    let at = called_at(counters::now());
    // Looked for first: one that is there has its place.
    if let Some(noted) = CALLED.get_ptr_mut(key.as_abi()) {
        // SAFETY: a word of a live entry.
        let noted = unsafe { &mut *noted };
        if *noted != at {
            *noted = at;
        }
        return 0;
    }
    let ring = ring_of(caller);
    let Some(turn) = CALLED_TURN.get_ptr_mut(ring) else { return 0 };
    // SAFETY: a live entry; two processors that take the same turn leave one note that no ring names.
    let slot = unsafe { *turn } as u32 % CALLS_PER_RING;
    table::add(turn, 1);
    let Some(place) = CALLED_RING.get_ptr_mut(ring * CALLS_PER_RING + slot) else { return 0 };
    // SAFETY: a live entry; a key that another processor replaces meanwhile is nobody's.
    let place = unsafe { &mut *place };
    let _ = CALLED.remove(place.as_abi());
    *place = *key;
    let _ = CALLED.insert(key.as_abi(), at, 0);
    0
}

/// Addresses that follow one another are spread evenly.
#[inline(always)]
fn ring_of(caller: &Address) -> u32 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let [high, low] = caller.0;
    (u64::from_be(high ^ low).wrapping_mul(GOLDEN) >> (u64::BITS - RING_BITS)) as u32
}
