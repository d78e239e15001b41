//! A wired pod, as the hooks of its interface see it.

use crate::{Addr, assert_size};

/// `ENDPOINT` value; the key is the index of the host-side interface (`u32`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// All zero where the pod has no address of the family.
    pub ipv4: Addr,
    pub ipv6: Addr,
    /// Row of `POLICY`; stable over generations.
    pub policy: u32,
    /// Of its addresses: a rule may tell the two apart.
    pub identity_v4: u32,
    pub identity_v6: u32,
    /// The `ifb` that paces what leaves the pod; 0: none.
    pub ifb_ifindex: u32,
    pub mac: [u8; 6],
    pub reserved: u16,
}

assert_size!(Endpoint = 56);
