//! A wired pod, as the hooks of its interface see it.

use crate::{Addr, assert_size};

/// `ENDPOINT` value; the key is the index of the host-side interface (`u32`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// All zero where the pod has no address of the family.
    pub ipv4: Addr,
    pub ipv6: Addr,
    /// Row of `POLICY` in each half: a pod gets another policy with the generation that says so.
    pub policies: [u32; 2],
    /// Of its addresses: a rule may tell the two apart. What it sends is marked with them.
    pub identity_v4: u32,
    pub identity_v6: u32,
    /// The `ifb` that paces what leaves the pod; 0: none.
    pub ifb_ifindex: u32,
    pub mac: [u8; 6],
    /// Of the interface's host side: what the pod takes its gateway's to be.
    pub host_mac: [u8; 6],
    pub mtu: u16,
    /// `ENDPOINT_*` bits.
    pub flags: u16,
}

/// A queue of the interface paces what enters or leaves the pod: nothing may pass it by.
pub const ENDPOINT_PACED: u16 = 1;

/// `LOCAL` value, by address: how a packet gets to the pod of this node that has it, and whose policy is asked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delivery {
    /// Host side of its interface.
    pub ifindex: u32,
    /// As in [`Endpoint`].
    pub policies: [u32; 2],
    /// Destination and source of the frame, as the host's stack would write them.
    pub macs: [[u8; 6]; 2],
    pub mtu: u16,
    /// `ENDPOINT_*` bits.
    pub flags: u16,
}

impl Endpoint {
    /// By which it is judged in this generation.
    #[inline(always)]
    pub const fn policy(&self, generation: u32) -> u32 {
        of_half(&self.policies, generation)
    }
}

#[inline(always)]
const fn of_half(policies: &[u32; 2], generation: u32) -> u32 {
    if generation & 1 == 0 { policies[0] } else { policies[1] }
}

impl Delivery {
    /// As of [`Endpoint`].
    #[inline(always)]
    pub const fn policy(&self, generation: u32) -> u32 {
        of_half(&self.policies, generation)
    }

    pub const fn to(ifindex: u32, pod: &Endpoint) -> Self {
        Self {
            ifindex,
            policies: pod.policies,
            macs: [pod.mac, pod.host_mac],
            mtu: pod.mtu,
            flags: pod.flags,
        }
    }
}

/// `DIRECT` values, by prefix: may connections with these addresses pass the host's stack by?
pub const DIRECT_NO: u32 = 0;
pub const DIRECT_YES: u32 = 1;

/// `RANGE_POLICY` values, by prefix: the policy that is asked about what this node sends on to there in its own name. Nobody's:
pub const RANGE_OPEN: u32 = u32::MAX;
/// A policy that no generation has: everybody is refused, because that of some pod in the range is not known here.
pub const RANGE_CLOSED: u32 = u32::MAX - 1;

/// `BEGUN` value, by flow: somebody whom this node sent on in its own name began it.
pub const BEGUN_HERE: u32 = 1;
/// Of the programs before there was `CALLED`: the pod began it. Moved there by whoever replaces them.
pub const BEGUN_BEFORE: u32 = 0;
/// `CALLED` value, by flow: when the pod elsewhere last sent a packet of its call of this node, in 2^30 nanoseconds of
/// CLOCK_MONOTONIC (the coarse one), which do not go round.
#[inline(always)]
pub const fn called_at(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// In nanoseconds.
#[inline(always)]
pub const fn called_since(at: u32) -> u64 {
    (at as u64) << 30
}

assert_size!(Endpoint = 68, Delivery = 28);
