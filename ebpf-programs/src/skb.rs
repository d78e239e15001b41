//! The few fields of a packet's context that the hooks read and write, and reading of its bytes.
//!
//! Whole fields, always: the verifier refuses the narrower accesses that a compiler would make of them.

use aya_ebpf::{helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use core::ptr::{read_volatile, write_volatile};

pub const ETHERNET: u32 = 14;
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

macro_rules! field {
    ($ctx:expr, $name:ident) => {
        // SAFETY: the kernel hands every program a valid context.
        unsafe { read_volatile(&raw const (*$ctx.skb.skb).$name) }
    };
}

/// The protocol behind the Ethernet header, and behind a VLAN tag that the kernel has taken off.
#[inline(always)]
pub fn protocol(ctx: &TcContext) -> u16 {
    u16::from_be(field!(ctx, protocol) as u16)
}

/// The same; zero where there was a tag: a pod's link carries none.
#[inline(always)]
pub fn ethertype(ctx: &TcContext) -> u16 {
    if field!(ctx, vlan_present) == 0 { protocol(ctx) } else { 0 }
}

/// With the Ethernet header.
#[inline(always)]
pub fn len(ctx: &TcContext) -> u32 {
    field!(ctx, len)
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    field!(ctx, ifindex)
}

#[inline(always)]
pub fn mark(ctx: &TcContext) -> u32 {
    field!(ctx, mark)
}

#[inline(always)]
pub fn set_mark(ctx: &TcContext, mark: u32) {
    // SAFETY: as above; programs of this type may write the mark.
    unsafe { write_volatile(&raw mut (*ctx.skb.skb).mark, mark) }
}

/// Is this one packet for the stack, and many on the wire? Then its length fields may be 0.
#[inline(always)]
pub fn is_gso(ctx: &TcContext) -> bool {
    field!(ctx, gso_size) != 0
}

/// Eight bytes at `offset`, the first highest; `None` if the packet ends before.
#[inline(always)]
pub fn word(ctx: &TcContext, offset: u32) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: eight bytes into eight.
    let loaded = unsafe { load::<8>(ctx, offset, (&raw mut word).cast()) };
    if loaded { Some(u64::from_be(word)) } else { None }
}

/// Copies `N` bytes at `offset` to `to`; linear or not. False if the packet ends before.
///
/// # Safety
/// `to` is valid for writes of `N` bytes.
#[inline(always)]
pub unsafe fn load<const N: u32>(ctx: &TcContext, offset: u32, to: *mut u8) -> bool {
    // SAFETY: by contract of this function.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to.cast(), N) == 0 }
}
