//! The decision tables of one generation (DESIGN: "One packet"), two halves each.

use crate::assert_size;

/// Which end of a flow decides. The egress of the initiator, then the ingress of the responder.
pub const DIR_EGRESS: u32 = 0;
pub const DIR_INGRESS: u32 = 1;

/// Port table slots: one per protocol that has ports or types, the last for all others (by protocol number).
pub const SLOT_TCP: u32 = 0;
pub const SLOT_UDP: u32 = 1;
pub const SLOT_SCTP: u32 = 2;
/// The ICMP type takes the port's place.
pub const SLOT_ICMP: u32 = 3;
pub const SLOT_ICMPV6: u32 = 4;
/// The protocol number takes the port's place.
pub const SLOT_OTHER: u32 = 5;
pub const PORT_SLOTS: u32 = 6;

pub const PROTO_ICMP: u8 = 1;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;
pub const PROTO_ICMPV6: u8 = 58;
pub const PROTO_SCTP: u8 = 132;

/// Slot and index of a (protocol, port). `port` is the ICMP type for ICMP; ignored for protocols without ports.
pub const fn port_slot(proto: u8, port: u16) -> (u32, u16) {
    match proto {
        PROTO_TCP => (SLOT_TCP, port),
        PROTO_UDP => (SLOT_UDP, port),
        PROTO_SCTP => (SLOT_SCTP, port),
        PROTO_ICMP => (SLOT_ICMP, port),
        PROTO_ICMPV6 => (SLOT_ICMPV6, port),
        other => (SLOT_OTHER, other as u16),
    }
}

/// `POLICY[half * policies * 2 + policy * 2 + dir]`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicyDir {
    /// Index of the port table: `PORT_DIR[.. + port_table * PORT_SLOTS + slot]`.
    pub port_table: u32,
    /// `ROW[.. + row_base + class]`.
    pub row_base: u32,
    /// Address classes of this generation: a class at or above it reads row 0 of this policy.
    pub row_count: u32,
    /// `POLICY_*` bits.
    pub flags: u32,
}

/// Decides and records, drops nothing (`isolation: Audit`).
pub const POLICY_AUDIT: u32 = 1;
/// Admits packets whose origin is unknown (`isolation: Open`).
pub const POLICY_OPEN: u32 = 2;

/// `PORT_DIR` value: page number by the high byte of the port.
pub type PortDirectory = [u32; 256];
/// `PORT_PAGE` value: port class by the low byte of the port.
pub type PortPage = [u16; 256];

/// `CELL` value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cell {
    /// The rule that decided; `RULE_NONE` never stands in a written cell.
    pub rule: u32,
    /// `VERDICT_*`.
    pub verdict: u8,
    /// `CELL_*` bits.
    pub flags: u8,
    pub reserved: u16,
}

pub const VERDICT_DENY: u8 = 0;
pub const VERDICT_ALLOW: u8 = 1;
/// `established: Keep`: a connection this cell admitted survives changes of the partition tier.
pub const CELL_KEEP: u8 = 1;
/// Another tier than the partition's denies: neither `isolation: Audit` nor `established: Keep` softens it.
pub const CELL_FINAL: u8 = 2;

/// Rule numbers below [`RULE_FIRST_DYNAMIC`] are built in.
pub const RULE_NONE: u32 = 0;
/// The partition's rules name no match: nothing passes across partitions unless a rule allows it.
pub const RULE_DEFAULT_DENY: u32 = 1;
/// Pods of one partition talk freely.
pub const RULE_SAME_PARTITION: u32 = 2;
/// The default partition (or `isolation: Open`) is open.
pub const RULE_OPEN: u32 = 3;
/// A node reaches its own pods.
pub const RULE_OWN_NODE: u32 = 4;
/// Cluster DNS is admitted unless the partition opts out.
pub const RULE_CLUSTER_DNS: u32 = 5;
/// The control plane is admitted unless the partition opts out.
pub const RULE_CONTROL_PLANE: u32 = 6;
/// A pod reaches itself.
pub const RULE_LOOPBACK: u32 = 7;
pub const RULE_FIRST_DYNAMIC: u32 = 64;

/// Entries of *one half* of each table. Set when the programs are loaded. Each of the two identity maps, which are shared,
/// has room for twice `identities`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    pub identities: u32,
    pub policies: u32,
    pub port_tables: u32,
    pub port_pages: u32,
    pub rows: u32,
    pub cells: u32,
}

impl Sizes {
    pub const DEFAULT: Self = Self {
        identities: 16_384,
        policies: 1_024,
        port_tables: 512,
        port_pages: 4_096,
        rows: 1_048_576,
        cells: 262_144,
    };
}

assert_size!(PolicyDir = 16, Cell = 8, Sizes = 24, PortDirectory = 1024, PortPage = 512);
