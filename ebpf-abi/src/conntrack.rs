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

/// What one end's policy said when it admitted the flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Admission {
    /// The generation that admitted it; 0: this end has not decided yet. Compared with `!=`.
    pub generation: u32,
    pub rule: u32,
}

/// `CONNTRACK` value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// `bpf_jiffies64` when last seen.
    pub last_seen: u64,
    /// Indexed by `DIR_EGRESS` (the initiator's pod) and `DIR_INGRESS` (the responder's).
    pub admitted: [Admission; 2],
    pub packets: u64,
    pub bytes: u64,
    /// Destination port, ICMP type or 0, in the initiator's direction: what a renewed decision asks for.
    pub service_port: u16,
    /// `FLOW_*` bits.
    pub flags: u8,
    /// `PATH_*`; binds both directions.
    pub path: u8,
    pub version: u8,
    pub reserved: u8,
    /// Where the initiator speaks from this node's own address: the origin mark it came with (it is masqueraded).
    /// 0: its address says who it is, or it is the node itself (`FLOW_OWN_NODE`).
    pub origin: u16,
}

pub const FLOW_VERSION: u8 = 1;
/// The initiator is `FlowKey::low`.
pub const FLOW_INITIATOR_LOW: u8 = 1;
/// A packet of the responder was seen.
pub const FLOW_ANSWERED: u8 = 2;
/// TCP: FIN or RST seen.
pub const FLOW_CLOSING: u8 = 4;
/// The egress (initiator's) admission is kept over changes (`established: Keep`).
pub const FLOW_KEEP_EGRESS: u8 = 8;
pub const FLOW_KEEP_INGRESS: u8 = 16;
/// Begun by this node itself: no end's policy is asked (a node reaches its own pods).
pub const FLOW_OWN_NODE: u8 = 32;

pub const PATH_STACK: u8 = 0;
pub const PATH_DIRECT: u8 = 1;

/// `FRAGMENT` key: later fragments take ports from their first.
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

assert_size!(FlowKey = 40, Admission = 8, Flow = 48, FragmentKey = 40, FragmentPorts = 8);
