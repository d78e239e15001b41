//! Why packets were dropped and how often; what each rule decided on.

use crate::assert_size;

/// `DROPS` key (per-CPU hash).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct DropKey {
    /// The rule that decided, for `DROP_POLICY` and `AUDIT_POLICY`; else `RULE_NONE`.
    pub rule: u32,
    /// Policy of the end that dropped, or, where this node sends on, of the receiver; 0 where there is no such end.
    pub policy: u32,
    /// `DROP_*`.
    pub reason: u8,
    /// `DIR_EGRESS` or `DIR_INGRESS` of the hook.
    pub dir: u8,
    pub reserved: u16,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
    /// Nanoseconds of CLOCK_MONOTONIC (the coarse one), of the last one.
    pub last: u64,
}

/// `RULES` value (per-CPU hash by rule number): what an entry of `CONNTRACK` counts is moved here when the entry goes or
/// another rule takes it over. Refusals are in `DROPS` alone.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RuleCounter {
    pub packets: u64,
    pub bytes: u64,
    /// Connections that began under the rule.
    pub connections: u64,
    /// As [`Counter::last`].
    pub last: u64,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $n:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $name: u8 = $n;)*
        /// The reason in the words people read (status, metrics, explain).
        pub const fn drop_reason_text(reason: u8) -> &'static str {
            match reason { $($n => $text,)* _ => "unknown reason" }
        }
    };
}

drop_reasons! {
    /// A rule, or the absence of one.
    DROP_POLICY = 1, "policy";
    /// A live connection that is no longer allowed was cut.
    DROP_REVOKED = 2, "connection revoked";
    /// Source address or MAC is not the pod's.
    DROP_SPOOFED_POD = 3, "spoofed source from pod";
    /// A local pod's or this node's address came in from an uplink.
    DROP_SPOOFED_UPLINK = 4, "spoofed source from uplink";
    /// Ends before its headers do.
    DROP_TRUNCATED = 5, "truncated packet";
    /// A header that contradicts itself or the packet's length.
    DROP_MALFORMED = 6, "malformed packet";
    /// Neither IPv4, IPv6 nor ARP.
    DROP_NOT_IP = 7, "not IP";
    /// A later fragment whose first was not seen, or was refused.
    DROP_FRAGMENT = 8, "fragment without its first";
    /// A first fragment too short to hold its ports, or fragments that overlap.
    DROP_FRAGMENT_TINY = 9, "tiny or overlapping fragment";
    /// The mark cannot say who sent a masqueraded packet, and the partition is enforced.
    DROP_UNKNOWN_ORIGIN = 10, "unknown origin";
    /// Connection table full.
    DROP_CONNTRACK_FULL = 11, "connection table full";
    /// The interface has no endpoint entry: fail closed.
    DROP_NO_ENDPOINT = 12, "no endpoint";
    /// Multicast or broadcast beyond the link.
    DROP_MULTICAST = 13, "multicast";
    /// The pod has as many connections as it may.
    DROP_CONNTRACK_SHARE = 14, "pod's share of connections used up";
    /// Translation would give a new connection the addresses and ports of a live one that it knows nothing of.
    DROP_CLASH = 15, "clash with a direct connection";
    /// Sent on in this node's name to a range that it has no policy of, or not that of every pod in it (`RANGE_CLOSED`).
    DROP_RANGE_CLOSED = 16, "sent on to pods without a policy here";
    /// Sent on in this node's name, and there is no place to note that: it could not be cut.
    DROP_UNNOTED = 17, "no place to note whom this node sends on";
    /// Recorded, not dropped: `isolation: Audit`.
    AUDIT_POLICY = 128, "audit: policy would drop";
}

assert_size!(DropKey = 12, Counter = 24, RuleCounter = 32);
