//! The path of a connection: through the host's stack, or past it from hook to interface.
//!
//! It is fixed when the connection begins, and binds both directions: the stack must see all of a connection or nothing,
//! because a reply that it must translate back is lost to the client if it passes the stack by.
//!
//! ```text
//! begins at a pod's hook, towards a pod of this node ─────────────────────▶ direct
//!                         towards an address that nothing translates ─────▶ direct
//! begins at an uplink, from such an address to a pod of this node ────────▶ direct
//! any other first packet; any later one that comes to a pod by the stack ─▶ the stack, for good
//! ```
//! So whatever was translated or masqueraded stays with the stack: its first packet reaches the pod's hook from there.
//! Where nobody can say whether a packet begins or answers, it is the stack's.

use super::At;
use crate::{address::Address, maps::DIRECT, parse::Packet};
use aya_ebpf::maps::lpm_trie::Key;
use bulkhead_ebpf_abi::{
    DIRECT_YES, FLOW_CLOSING, FLOW_ESTABLISHED, Flow, PATH_DIRECT, PATH_STACK, PROTO_TCP, PROTO_UDP,
};

/// How the packet came to the hook, or would leave it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Via {
    /// To a pod from the host's stack, or from a pod to it.
    Stack = 0,
    /// From a pod to another one of this node.
    Local = 1,
    /// From a pod to an address elsewhere.
    Remote = 2,
    /// From outside to a pod of this node. What is not direct is left to the hook behind the stack, undecided.
    Uplink = 3,
}

/// Of a packet that has no connection yet, or begins it again.
#[inline(always)]
pub fn begins_direct(at: &At, packet: &Packet) -> bool {
    match at.via {
        Via::Local => begins(packet),
        Via::Remote => begins(packet) && is_untranslated(&packet.dst),
        // A datagram may answer one that the stack has translated on its way out.
        Via::Uplink => packet.proto != PROTO_UDP && begins(packet) && is_untranslated(&packet.src),
        Via::Stack => false,
    }
}

/// Does the packet begin a connection, for sure? Of datagrams the client's is sent from the higher port.
#[inline(always)]
fn begins(packet: &Packet) -> bool {
    match packet.proto {
        PROTO_TCP => packet.is_syn(),
        PROTO_UDP => packet.src_port > packet.dst_port,
        _ => packet.is_echo_request(),
    }
}

#[inline(never)]
fn is_untranslated(address: &Address) -> bool {
    DIRECT.get(Key::new(128, *address)).is_some_and(|value| *value == DIRECT_YES)
}

/// Keeps the entry's path up to date; whether it is direct.
#[inline(always)]
pub fn follow(at: &At, packet: &Packet, flow: &mut Flow, forward: bool, again: bool) -> bool {
    let direct = if again {
        begins_direct(at, packet)
    } else {
        // A reply from the stack proves nothing: it may be an exception that the stack alone can forward.
        flow.path == PATH_DIRECT && (at.via != Via::Stack || !forward && !at.sends())
    };
    let path = if direct { PATH_DIRECT } else { PATH_STACK };
    if flow.path != path {
        flow.path = path;
    }
    direct
}

/// Would translation put a new connection into the place of a live one? The stack, which gives each of its own another
/// port, has not seen that one.
#[inline(always)]
pub fn clashes(at: &At, flow: &Flow) -> bool {
    at.via == Via::Stack
        && !at.sends()
        && flow.path == PATH_DIRECT
        && flow.flags & (FLOW_ESTABLISHED | FLOW_CLOSING) == FLOW_ESTABLISHED
}
