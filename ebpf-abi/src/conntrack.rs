//! Connections: one entry a flow and node, both ends' decisions in it.

use crate::{Addr, assert_size};

/// A flow, normalised: the lower (address, port) first. ICMP echo has its identifier in both ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct FlowKey {
    pub low: Addr,
    pub high: Addr,
    pub low_port: u16,
    pub high_port: u16,
    pub proto: u8,
    pub reserved: [u8; 3],
}

impl FlowKey {
    /// Address and port of the initiator, then of the responder, by the `FLOW_*` bits of the entry.
    pub const fn ends(&self, flags: u8) -> [(Addr, u16); 2] {
        let (low, high) = ((self.low, self.low_port), (self.high, self.high_port));
        if flags & FLOW_INITIATOR_LOW != 0 { [low, high] } else { [high, low] }
    }
}

/// `CONNTRACK` value.
///
/// The kernel puts 48 bytes before the key and the value behind it: with the last field an entry is three cache lines, and
/// what a known packet reads and writes (the fields up to `origin`) lies in the two that finding the key has read.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Nanoseconds of CLOCK_MONOTONIC (the coarse one) when last seen.
    pub last_seen: u64,
    /// Not yet counted at `rules`; so are `bytes` and `begun`.
    pub packets: u64,
    pub bytes: u64,
    /// Those that admitted it, indexed by `DIR_EGRESS` (the initiator's pod) and `DIR_INGRESS` (the responder's); 0: this
    /// end has not decided yet. Compared with `!=`.
    pub generations: [u32; 2],
    /// The kernel's tick at `last_seen`, its lower half: while that lasts, there is nothing new to stamp.
    pub tick: u32,
    /// `FLOW_*` bits.
    pub flags: u8,
    /// `PATH_*`; binds both directions.
    pub path: u8,
    /// Where the initiator speaks from this node's own address: the origin mark it came with (it is masqueraded);
    /// `ORIGIN_ITSELF` where it is the responder, too. 0: its address says who it is, or it is the node itself
    /// (`FLOW_UNASKED`).
    pub origin: u16,
    /// By which rule each end admitted it, what counts at it; `RULE_NONE`: this end has no rule to count at.
    pub rules: [u32; 2],
    /// Destination port, ICMP type or 0, in the initiator's direction: what a renewed decision asks for.
    pub service_port: u16,
    pub version: u8,
    /// TCP: which of FIN and RST the initiator has sent, as in its header. See [`Flow::closing`].
    pub fin: u8,
    /// The pod in whose [`Share`] it counts, by the interface whose hook made the entry.
    pub owner: u32,
    /// Chance: tells this entry from one made later under the same key.
    pub serial: u32,
    /// Bit 0 for the initiator's end, bit 1 for the responder's: the connection began under the rule of that end.
    pub begun: u32,
    /// TCP, the same bits: this end has cut the connection. The entry stays to remember who began it.
    pub cut: u8,
    /// TCP: which of FIN and RST the responder has sent.
    pub fin_back: u8,
    pub padding: [u8; 2],
    /// The interface by which the packet that made the entry came into the host; 0: none.
    pub entered_by: u32,
    /// `ORIGIN_TURN` of `origin` when it was written: numbers of identities are given out again.
    pub origin_turn: u32,
    /// Where its name stands among those that may be evicted: the slot of the ring and 1, doubled, and the ring (`RECENT_OUT`,
    /// `RECENT_IN`); 0: in no ring that it knows of.
    pub ring: u32,
    pub reserved: [u32; 6],
}

impl Flow {
    /// Connections not yet counted at the rule of each end; under one rule at both ends it is one connection.
    #[inline(always)]
    pub const fn begun(&self) -> [u64; 2] {
        if self.rules[0] == self.rules[1] {
            return [(self.begun != 0) as u64, 0];
        }
        [(self.begun & 1) as u64, (self.begun >> 1 & 1) as u64]
    }

    /// How far what both have sent (`fin`, `fin_back`) closes a TCP connection: `FLOW_CLOSING` and `FLOW_CLOSED`, or 0. Each
    /// byte is written by packets of one direction, so of two that cross on two CPUs neither takes the other's away.
    #[inline(always)]
    pub const fn closing(fin: u8, fin_back: u8) -> u8 {
        if fin | fin_back == 0 {
            0
        } else if (fin | fin_back) & TCP_RST != 0 || fin & fin_back & TCP_FIN != 0 {
            FLOW_CLOSING | FLOW_CLOSED
        } else {
            FLOW_CLOSING
        }
    }
}

/// Of the flags in a TCP header.
pub const TCP_FIN: u8 = 0x01;
pub const TCP_RST: u8 = 0x04;

pub const FLOW_VERSION: u8 = 6;
/// The initiator is `FlowKey::low`.
pub const FLOW_INITIATOR_LOW: u8 = 1;
/// A packet of the responder was seen.
pub const FLOW_ANSWERED: u8 = 2;
/// TCP: FIN of one side seen, or RST.
pub const FLOW_CLOSING: u8 = 4;
/// The egress (initiator's) admission is kept over changes (`established: Keep`).
pub const FLOW_KEEP_EGRESS: u8 = 8;
pub const FLOW_KEEP_INGRESS: u8 = 16;
/// Begun by this node itself, or by the pod itself: no end's policy is asked (`RULE_OWN_NODE`, `RULE_LOOPBACK`).
pub const FLOW_UNASKED: u8 = 32;

/// Both sides have spoken, and of TCP the initiator again: never evicted.
pub const FLOW_ESTABLISHED: u8 = 64;
/// TCP: FIN of both sides seen, or RST.
pub const FLOW_CLOSED: u8 = 128;

/// Through the host's stack, which may have translated its addresses.
pub const PATH_STACK: u8 = 0;
/// From hook to interface; the stack has seen none of it, and may see none.
pub const PATH_DIRECT: u8 = 1;

/// An entry by key and serial: `AGING` value, and what rings are made of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowName {
    pub key: FlowKey,
    pub serial: u32,
    /// In `AGING`: before this moment ([`due_at`]) the entry cannot be dead, or does not matter.
    pub due: u32,
}

/// A moment in 2^20 nanoseconds, which go round in 52 days.
#[inline(always)]
pub const fn due_at(nanoseconds: u64) -> u32 {
    (nanoseconds >> 20) as u32
}

/// `RECENT` value: so many slots of a ring that follow one another, so that most newcomers find theirs in the cache. A slot with
/// serial 0 is empty.
pub type RecentPage = [FlowName; NAMES_PER_PAGE as usize];
pub const NAMES_PER_PAGE: u32 = 16;

/// `RECENT` key: rings, for each pod and kind, of the entries that may be evicted by the next of their kind.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RecentKey {
    pub owner: u32,
    /// `RECENT_*`.
    pub kind: u32,
    /// Of connections the page ([`RecentPage`]).
    pub slot: u32,
}

/// Not established, begun by the pod.
pub const RECENT_OUT: u32 = 0;
/// Not established, begun by somebody else.
pub const RECENT_IN: u32 = 1;
/// Closed by both sides.
pub const RECENT_CLOSED: u32 = 2;
/// `FRAGMENT_RING` key: of datagrams in pieces, those that the pod sends, at its own hook.
pub const RECENT_FRAGMENTS_SENT: u32 = 3;
/// Those that the pod sends, at the hooks of others.
pub const RECENT_FRAGMENTS_PASSED: u32 = 4;
/// Those for the pod that no pod of this node sends.
pub const RECENT_FRAGMENTS_RECEIVED: u32 = 5;

/// `SHARE` value; the key is the pod's interface.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Connections refused because the share was used up.
    pub refused: u64,
    /// Entries that count.
    pub flows: u64,
    /// Entries ever put into each ring (`RECENT_*`).
    pub next: [u64; 6],
}

/// Room for connections. Set when the programs are loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connections {
    pub entries: u32,
    /// At most, of one pod.
    pub per_pod: u32,
    /// Of one pod and direction, not established.
    pub unanswered: u32,
    /// Of one pod, closed by both sides.
    pub closed: u32,
    pub ages: Ages,
}

impl Connections {
    /// A pod may have a quarter of the table: as many pods must conspire to fill it, and a gateway still has room.
    pub const fn of(entries: u32) -> Self {
        Self {
            entries,
            per_pod: at_least_one(entries / 4),
            unanswered: at_least_one(entries / 256),
            closed: at_least_one(entries / 128),
            ages: Ages::DEFAULT,
        }
    }

    /// What all rings of a pod take of `RECENT`.
    pub const fn pages_per_pod(&self) -> u32 {
        2 * self.unanswered.div_ceil(NAMES_PER_PAGE) + self.closed.div_ceil(NAMES_PER_PAGE)
    }
}

const fn at_least_one(n: u32) -> u32 {
    if n == 0 { 1 } else { n }
}

/// After how many nanoseconds without a packet an entry is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ages {
    /// Not established, of any protocol.
    pub unanswered: u64,
    pub tcp: u64,
    /// Half closed.
    pub closing: u64,
    pub closed: u64,
    /// Cut: longer than an end that is still there waits before it sends again (RFC 9293: TCP backs off to 60 s, Linux to
    /// 120 s).
    pub cut: u64,
    pub udp: u64,
    /// ICMP echo.
    pub echo: u64,
    /// SCTP and all else.
    pub other: u64,
}

impl Ages {
    /// nf_conntrack's, in brackets where ours differ: unanswered 30 s (SYN_SENT 120, UDP 30), established TCP 5 days,
    /// half closed 120 s (FIN_WAIT), closed 30 s (TIME_WAIT 120, after RST 10), UDP 60 s (30, as a stream 120), echo
    /// 30 s, all else 600 s; and ours alone: cut 300 s.
    pub const DEFAULT: Self = Self {
        unanswered: seconds(30),
        tcp: seconds(432_000),
        closing: seconds(120),
        closed: seconds(30),
        cut: seconds(300),
        udp: seconds(60),
        echo: seconds(30),
        other: seconds(600),
    };

    /// After so long any entry may be dead.
    pub fn least(&self) -> u64 {
        let Self { unanswered, tcp, closing, closed, cut, udp, echo, other } = *self;
        [tcp, closing, closed, cut, udp, echo, other].into_iter().fold(unanswered, u64::min)
    }

    /// Of an entry of this protocol.
    pub const fn of(&self, proto: u8, flow: &Flow) -> u64 {
        match AgeKind::of(proto, flow.flags | Flow::closing(flow.fin, flow.fin_back), flow.cut) {
            AgeKind::Unanswered => self.unanswered,
            AgeKind::Tcp => self.tcp,
            AgeKind::Closing => self.closing,
            AgeKind::Closed => self.closed,
            AgeKind::Cut => self.cut,
            AgeKind::Udp => self.udp,
            AgeKind::Echo => self.echo,
            AgeKind::Other => self.other,
        }
    }
}

/// Which of the [`Ages`] an entry has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AgeKind {
    Unanswered,
    Tcp,
    Closing,
    Closed,
    Cut,
    Udp,
    Echo,
    Other,
}

impl AgeKind {
    #[inline(always)]
    pub const fn of(proto: u8, flags: u8, cut: u8) -> Self {
        if flags & FLOW_ESTABLISHED == 0 {
            return Self::Unanswered;
        }
        match proto {
            crate::PROTO_TCP if cut != 0 => Self::Cut,
            crate::PROTO_TCP if flags & FLOW_CLOSED != 0 => Self::Closed,
            crate::PROTO_TCP if flags & FLOW_CLOSING != 0 => Self::Closing,
            crate::PROTO_TCP => Self::Tcp,
            crate::PROTO_UDP => Self::Udp,
            crate::PROTO_ICMP | crate::PROTO_ICMPV6 => Self::Echo,
            _ => Self::Other,
        }
    }
}

const fn seconds(n: u64) -> u64 {
    n * 1_000_000_000
}

/// Datagrams in pieces of one ring: what is sent at once and may arrive out of order is less.
pub const FRAGMENTS_PER_RING: u32 = 128;

/// `FRAGMENT` key: later fragments take ports from their first. `FRAGMENT_RING` value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey {
    pub src: Addr,
    pub dst: Addr,
    pub id: u32,
    /// IPv4 only: of an IPv6 datagram only the first fragment knows it (RFC 8200 section 4.5).
    pub proto: u8,
    /// Direction of the hook: both ends of a same-node flow see the same fragments.
    pub dir: u8,
    pub reserved: u16,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FragmentPorts {
    pub src_port: u16,
    pub dst_port: u16,
    /// First byte of the datagram behind the first fragment: what begins before it overlaps.
    pub end: u16,
    /// ICMP type of the first fragment.
    pub icmp_type: u8,
    /// Of the transport header, behind all headers of the chain.
    pub proto: u8,
}

assert_size!(FlowKey = 40, Flow = 104, FlowName = 48, RecentPage = 768, RecentKey = 12, Share = 64);
assert_size!(FragmentKey = 40, FragmentPorts = 8);
