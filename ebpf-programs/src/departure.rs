//! The other hook of an uplink: nobody leaves as this node for a pod that would not let him in.
//!
//! What kube-proxy, or somebody else in the host's stack, sends on to a pod of another node carries an address of this one, if it
//! masquerades it: there it is this node's, and nobody knows better. Here its mark says who sent it. So the receiver's partition
//! is asked here; whether it lets this node in is asked there.
//!
//! A reply is nobody's call. What begins a connection TCP's flags say, and those that were let go are noted (`BEGUN`) and asked
//! about again with each packet, so that they are cut. Anything else may as well answer a pod that has called this node (a host port):
//! what those have called is noted on its way in ([`remember`], `CALLED`), and all else is a call.
//!
//! A note of a connection outlives its end, until others need its place. A reset is no end: one beyond the window ends nothing, and whoever
//! sends it would be asked no more; nor is a FIN alone, and the other end's is not looked at.

use crate::{
    address::Address,
    conntrack::{self, At, Key},
    counters, endpoint,
    identity::identity,
    maps::{BEGUN, CALLED, RANGE_POLICY},
    origin,
    parse::{self, Packet, Part},
    skb,
    verdict::{NEXT, Verdict},
};
use aya_ebpf::{maps::lpm_trie::Key as Prefix, programs::TcContext};
use bulkhead_ebpf_abi::{
    BEGUN_HERE, BEGUN_THERE, DIR_INGRESS, DROP_RANGE_CLOSED, DROP_UNNOTED, IDENTITY_LOCAL_NODE,
    ORIGIN_ITSELF, ORIGIN_NONE, PROTO_SCTP, PROTO_TCP, PROTO_UDP, RANGE_CLOSED, RANGE_OPEN,
};
use core::mem::MaybeUninit;

/// The first interface of every network namespace, and none at all.
const OWN: u32 = 1;

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
    let (begins, begun) = (packet.is_syn(), is_begun(&key));
    let is_call = match packet.proto {
        PROTO_TCP => begins || begun,
        PROTO_UDP | PROTO_SCTP => begun || !is_called(&key),
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
        return Verdict::drop(DROP_RANGE_CLOSED);
    }
    match conntrack::judge(&at, packet, begun && !begins) {
        Ok(answer) if begins && answer.keeps() => {
            // What is shielded against changes is not asked about again.
            let _ = BEGUN.remove(key.as_abi());
            Verdict::PASS
        }
        Ok(_) if begun || BEGUN.insert(key.as_abi(), BEGUN_HERE, 0).is_ok() => Verdict::PASS,
        Ok(_) => Verdict::drop(DROP_UNNOTED),
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn is_begun(key: &Key) -> bool {
    // SAFETY: a value that another processor writes is one of two numbers all the same.
    unsafe { BEGUN.get(key.as_abi()) }.is_some_and(|by| *by == BEGUN_HERE)
}

#[inline(always)]
fn is_called(key: &Key) -> bool {
    // SAFETY: nothing is read of the entry.
    unsafe { CALLED.get(key.as_abi()) }.is_some()
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
    // The answers of a pod that was called from here make nobody's call an answer. Looked for first: an LRU map takes a place, perhaps
    // another flow's, before it sees that it needs none. Of what is not noted the answers are refused.
    if !is_begun(&key) && !is_called(&key) {
        let _ = CALLED.insert(key.as_abi(), BEGUN_THERE, 0);
    }
    0
}
