//! Who an address is, and the mark that says where a packet came into the host.

use crate::assert_size;

/// Value of `IDENTITY_EXACT` and `IDENTITY_PREFIX`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// Index into `CLASS`; never 0.
    pub id: u32,
    /// `IDENTITY_*` bits.
    pub flags: u32,
}

/// Matches no prefix that any rule can see.
pub const ID_WORLD: u32 = 1;
/// First identity that the compiler may intern.
pub const ID_FIRST_DYNAMIC: u32 = 16;

/// An address of this node (the link-local gateway included).
pub const IDENTITY_LOCAL_NODE: u32 = 1;
/// A pod wired on this node: a packet from an uplink with this source is spoofed.
pub const IDENTITY_LOCAL_POD: u32 = 2;

/// The origin mark: where a packet entered the host, in the upper half of `skb->mark`, clear of Kubernetes'
/// 0x4000 and 0x8000. Overwritten at every entry; survives translation and masquerade.
pub const ORIGIN_MASK: u32 = 0xffff_0000;
pub const ORIGIN_SHIFT: u32 = 16;
/// Made by this host itself.
pub const ORIGIN_NONE: u32 = 0;
/// Entered from outside, but the identity does not fit the mark. Never enters an enforced partition.
pub const ORIGIN_UNKNOWN: u32 = 0xffff;
/// No mark: what comes back to the very pod that has sent it, at that pod's hook and in its connections.
pub const ORIGIN_ITSELF: u32 = 0xfffe;

/// The origin (upper half of the mark, shifted down) of a packet that entered with this source identity.
pub const fn origin_of(identity: u32) -> u32 {
    if identity == 0 || identity >= ORIGIN_ITSELF { ORIGIN_UNKNOWN } else { identity }
}

assert_size!(Identity = 8);
