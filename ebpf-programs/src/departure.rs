//! The other hook of an uplink: nobody leaves as this node for a pod that would not let him in.
//!
//! What kube-proxy, or somebody else in the host's stack, sends on to a pod of another node carries an address of this one, if it
//! masquerades it: there it is this node's, and nobody knows better. Here its mark says who sent it. So the receiver's partition
//! is asked here; whether it lets this node in is asked there.
//!
//! A reply is nobody's call. What begins a connection TCP's flags say, and those that were let go are asked about again with each
//! packet, so that they are cut. Anything else may as well answer a pod that has called this node (a host port): what those
//! have called is remembered on its way in ([`remember`]), and all else is a call.

use crate::{
    address::Address,
    conntrack::{self, At, Key},
    counters,
    identity::identity,
    maps::{BEGUN, RANGE_POLICY},
    origin,
    parse::{self, Packet, Part},
    skb,
    verdict::{NEXT, Verdict},
};
use aya_ebpf::{bindings::BPF_NOEXIST, maps::lpm_trie::Key as Prefix, programs::TcContext};
use bulkhead_ebpf_abi::{
    BEGUN_HERE, BEGUN_THERE, DIR_INGRESS, IDENTITY_LOCAL_NODE, ORIGIN_ITSELF, ORIGIN_NONE, PROTO_SCTP,
    PROTO_TCP, PROTO_UDP, RANGE_OPEN,
};
use core::mem::MaybeUninit;

/// The first interface of every network namespace, and none at all.
const OWN: u32 = 1;

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
    if protocol != skb::ETHERTYPE_IPV4 && protocol != skb::ETHERTYPE_IPV6 {
        return NEXT;
    }
    let mut room = MaybeUninit::uninit();
    let packet = Packet::empty(&mut room);
    // What the stack cannot read either it has not translated.
    if !parse::addresses(ctx, packet, protocol) || !identity(&packet.src).has(IDENTITY_LOCAL_NODE) {
        return NEXT;
    }
    let policy = policy_of(&packet.dst);
    if policy == RANGE_OPEN {
        return NEXT;
    }
    let packet = Packet::empty(&mut room);
    let reason = parse::parse(ctx, packet, protocol);
    if reason != 0 {
        return counters::drop(Verdict::drop(reason as u8), policy, DIR_INGRESS, skb::len(ctx));
    }
    if packet.part == Part::Later {
        // Worth nothing without its first.
        return NEXT;
    }
    let (key, _) = Key::of(packet);
    // SAFETY: a value that another processor writes is one of two numbers all the same.
    let begun = unsafe { BEGUN.get(key.as_abi()) }.copied();
    let begins = packet.is_syn();
    let is_call = match packet.proto {
        PROTO_TCP => begins || begun.is_some(),
        PROTO_UDP | PROTO_SCTP => begun != Some(BEGUN_THERE),
        _ => false,
    };
    if !is_call {
        return NEXT;
    }
    let mut at = At::new(ctx, conntrack::live_generation(), policy, DIR_INGRESS);
    at.origin = origin::at_uplink(ctx, packet.part);
    if at.origin == ORIGIN_NONE {
        return NEXT;
    }
    let goes_on = begun.is_some() && !begins;
    match conntrack::judge(&at, packet, goes_on) {
        Ok(answer) => {
            if begins && answer.keeps() {
                // What is shielded against changes is not asked about again.
                let _ = BEGUN.remove(key.as_abi());
            } else if begun.is_none() {
                let _ = BEGUN.insert(key.as_abi(), BEGUN_HERE, u64::from(BPF_NOEXIST));
            }
            NEXT
        }
        Err(verdict) => counters::drop(verdict, policy, DIR_INGRESS, at.bytes),
    }
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
    // another flow's, before it sees that it needs none.
    // SAFETY: nothing is read of the entry.
    if unsafe { BEGUN.get(key.as_abi()) }.is_none() {
        let _ = BEGUN.insert(key.as_abi(), BEGUN_THERE, u64::from(BPF_NOEXIST));
    }
    0
}
