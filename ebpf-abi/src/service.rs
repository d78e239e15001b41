//! Services at the socket: what a pod of this node connects to, and what it gets instead.
//!
//! ```text
//! (address, protocol, port) ──FRONTEND──▶ set, count ──(set, n)──BACKEND──▶ address, port
//!      └ none, but a node's address ──▶ FRONTEND_ANY_NODE_*
//! ```
//! A set of backends is written whole before a frontend names it, never changed, and removed when no frontend names it any
//! more and every socket call that may have read its number has ended. So one store changes a service.

use crate::{Addr, assert_size};

/// `FRONTEND` key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct FrontendKey {
    pub address: Addr,
    /// Host byte order, as all ports here.
    pub port: u16,
    pub proto: u8,
    pub reserved: u8,
}

/// Stands for every address in `NODE_ADDRESS` that has no frontend of its own.
pub const FRONTEND_ANY_NODE_V4: Addr = Addr::v4([0; 4]);
pub const FRONTEND_ANY_NODE_V6: Addr = Addr([0; 16]);

/// `FRONTEND` value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FrontendValue {
    pub set: u32,
    /// Backends in the set; 0: refused at once.
    pub count: u32,
    /// A client keeps its backend that long; 0: it does not.
    pub affinity_seconds: u32,
    /// The same for all frontends of one service port: they share the affinity. 0: there is none.
    pub service: u32,
}

/// `BACKEND` key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct BackendKey {
    pub set: u32,
    pub index: u32,
}

/// `BACKEND` value; with `set`, also the key of `MEMBER`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct BackendAddr {
    pub address: Addr,
    pub port: u16,
    pub reserved: u16,
}

/// `MEMBER` key: is this backend one of that set? For sets of UDP, and of services with affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct MemberKey {
    pub backend: BackendAddr,
    pub set: u32,
}

/// `AFFINITY` key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace, or of the socket.
    pub of: u64,
    pub service: u32,
    /// `AFFINITY_*`
    pub kind: u32,
}

/// `sessionAffinity: ClientIP`
pub const AFFINITY_OF_CLIENT: u32 = 0;
/// Datagrams of one socket.
pub const AFFINITY_OF_SOCKET: u32 = 1;

/// `AFFINITY` value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Affinity {
    pub backend: BackendAddr,
    pub reserved: u32,
    /// Nanoseconds of CLOCK_MONOTONIC, of a client's last connection.
    pub last: u64,
}

/// `TRANSLATED` key: what this socket calls or called.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TranslatedKey {
    /// Of the socket.
    pub cookie: u64,
    pub backend: BackendAddr,
    pub proto: u32,
}

/// `TRANSLATED` value: what the application called.
pub type TranslatedValue = BackendAddr;

assert_size!(
    FrontendKey = 20,
    FrontendValue = 16,
    BackendKey = 8,
    BackendAddr = 20,
    MemberKey = 24,
    AffinityKey = 16,
    Affinity = 32,
    TranslatedKey = 32
);
