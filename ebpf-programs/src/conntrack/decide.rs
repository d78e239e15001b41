//! Who the other end is to a pod's policy, and what that policy says.

use super::At;
use crate::{
    address::Address,
    counters,
    identity::identity,
    origin,
    parse::Packet,
    policy::{self, Answer},
    verdict::Verdict,
};
use bulkhead_ebpf_abi::{
    AUDIT_POLICY, DIR_EGRESS, DROP_POLICY, DROP_UNKNOWN_ORIGIN, Flow, ID_WORLD, IDENTITY_LOCAL_NODE,
    IDENTITY_LOCAL_POD, ORIGIN_ITSELF, ORIGIN_NONE, ORIGIN_UNKNOWN, RULE_LOOPBACK, RULE_NONE, RULE_OWN_NODE,
    origin_of,
};

/// The reason of a refusal that cuts nothing.
pub const FIRST: u8 = DROP_POLICY;

/// The other end: an identity, by its address or, behind this node's own address, by the mark.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Peer(u64);

impl Peer {
    /// This node itself; no identity is 0.
    pub const OWN_NODE: Self = Self(0);
    const BY_MARK: u64 = 1 << 32;
    const UNKNOWN: Self = Self(Self::BY_MARK | ORIGIN_UNKNOWN as u64);
    /// The pod whose policy it is.
    const ITSELF: Self = Self(Self::BY_MARK | ORIGIN_ITSELF as u64);

    #[inline(always)]
    fn by_address(identity: u32) -> Self {
        Self(u64::from(identity))
    }

    #[inline(always)]
    fn by_mark(origin: u32) -> Self {
        if origin == ORIGIN_NONE { Self::OWN_NODE } else { Self(Self::BY_MARK | u64::from(origin)) }
    }

    /// Is whatever comes from there let in, without asking a policy?
    #[inline(always)]
    pub fn is_unasked(self) -> bool {
        self == Self::OWN_NODE || self == Self::ITSELF
    }

    /// By which rule.
    #[inline(always)]
    pub fn unasked_rule(self) -> u32 {
        if self == Self::OWN_NODE { RULE_OWN_NODE } else { RULE_LOOPBACK }
    }

    /// For the flow's entry; 0 where the address says it.
    #[inline(always)]
    pub fn origin(self) -> u16 {
        if self.0 & Self::BY_MARK != 0 { self.0 as u16 } else { 0 }
    }

    #[inline(always)]
    fn identity(self) -> u32 {
        if self == Self::UNKNOWN { ID_WORLD } else { self.0 as u32 }
    }
}

/// Whoever sent it, whatever its address says.
#[inline(always)]
pub fn by_mark(at: &At) -> Peer {
    Peer::by_mark(at.origin)
}

/// Of a packet without a flow.
#[inline(always)]
pub fn peer_of_packet(at: &At, packet: &Packet) -> Peer {
    if at.origin == ORIGIN_ITSELF {
        return Peer::ITSELF;
    }
    if at.sends() {
        return Peer::by_address(identity(&packet.dst).id());
    }
    let who = identity(&packet.src);
    if who.has(IDENTITY_LOCAL_NODE) {
        return Peer::by_mark(at.origin);
    }
    // A pod of this node, and its hook has not marked it: it came in where nobody looks at sources.
    if who.has(IDENTITY_LOCAL_POD) && at.origin == ORIGIN_UNKNOWN && origin_of(who.id()) != ORIGIN_UNKNOWN {
        return Peer::UNKNOWN;
    }
    Peer::by_address(who.id())
}

/// The other end of a flow: of the initiator's end (`DIR_EGRESS`) the responder, and the other way round.
#[inline(always)]
pub fn peer_of_flow(at: &At, packet: &Packet, flow: &Flow, end: u32) -> Peer {
    if end != DIR_EGRESS && flow.origin != 0 {
        let origin = u32::from(flow.origin);
        // It began as somebody whose number another has got since.
        return if origin::turn(origin) == flow.origin_turn { Peer::by_mark(origin) } else { Peer::UNKNOWN };
    }
    peer_at(if at.sends() { &packet.dst } else { &packet.src })
}

#[inline(always)]
pub fn peer_at(address: &Address) -> Peer {
    Peer::by_address(identity(address).id())
}

/// What `policy`, a pod's, says of `peer` in direction `dir`. An audited refusal is counted and turned into a yes; of a
/// connection that is `kept` the partition tier refuses nothing.
#[inline(always)]
pub fn ask(
    at: &At,
    (policy, dir): (u32, u32),
    peer: Peer,
    proto: u8,
    port: u16,
    refusal: u8,
    kept: bool,
) -> Result<Answer, Verdict> {
    let service = u32::from(proto) << 16 | u32::from(port);
    let answer = policy::decide(at.generation, policy.wrapping_mul(2) | dir, peer.identity(), service);
    let known = peer != Peer::UNKNOWN || answer.is_open();
    if known && answer.allows() || kept && answer.is_partitions() {
        return Ok(answer);
    }
    let rule = if known { answer.rule() } else { RULE_NONE };
    if answer.audits() {
        counters::count(u32::from(AUDIT_POLICY), rule, policy, dir, at.bytes);
        return Ok(answer);
    }
    Err(Verdict::drop_by(if known { refusal } else { DROP_UNKNOWN_ORIGIN }, rule))
}
