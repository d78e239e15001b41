//! The few fields of a packet's context that the hooks read and write, and reading of its bytes.
//!
//! Whole fields, always: the verifier refuses the narrower accesses that a compiler would make of them.

use aya_ebpf::{
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use core::{
    mem::{MaybeUninit, size_of},
    ptr::{read_volatile, write_volatile},
};

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

/// Is the frame for this interface? (`PACKET_HOST`; another in promiscuous mode.)
#[inline(always)]
pub fn is_for_host(ctx: &TcContext) -> bool {
    field!(ctx, pkt_type) == 0
}

/// Payload of each packet on the wire where this is many of them; else 0.
#[inline(always)]
pub fn gso_size(ctx: &TcContext) -> u32 {
    field!(ctx, gso_size)
}

/// Is this one packet for the stack, and many on the wire? Then its length fields may be 0.
#[inline(always)]
pub fn is_gso(ctx: &TcContext) -> bool {
    gso_size(ctx) != 0
}

/// Writes the `N` bytes of `value` at `offset`. `flags`: `BPF_F_RECOMPUTE_CSUM`, or 0 where no checksum sees the change.
#[inline(always)]
pub fn store<T: Copy, const N: u32>(ctx: &TcContext, offset: u32, value: &T, flags: u64) -> bool {
    const { assert!(size_of::<T>() >= N as usize) };
    // SAFETY: as many bytes as there are.
    unsafe { bpf_skb_store_bytes(ctx.skb.skb.cast(), offset, (&raw const *value).cast(), N, flags) == 0 }
}

/// Eight bytes at `offset`, the first highest; `None` if the packet ends before.
#[inline(always)]
pub fn word(ctx: &TcContext, offset: u32) -> Option<u64> {
    let mut room = MaybeUninit::<u64>::uninit();
    // SAFETY: eight bytes into eight.
    unsafe { load::<u64, 0, 8>(ctx, offset, &mut room) }.map(|raw| u64::from_be(*raw))
}

/// The same, sixteen.
#[inline(always)]
pub fn words(ctx: &TcContext, offset: u32) -> Option<[u64; 2]> {
    let mut room = MaybeUninit::<[u64; 2]>::uninit();
    // SAFETY: sixteen bytes into sixteen.
    unsafe { load::<[u64; 2], 0, 16>(ctx, offset, &mut room) }.map(|raw| raw.map(u64::from_be))
}

/// Copies `N` bytes at `offset` to `AT` bytes behind the beginning of `room`; linear or not. `None` if the packet ends
/// before. Nothing is zeroed first: that would cost more than all else.
///
/// # Safety
/// `AT + N` is within `T`; all of `T` that lies outside of it is padding or `MaybeUninit`; any bytes are a `T`.
#[inline(always)]
pub unsafe fn load<'a, T, const AT: usize, const N: u32>(
    ctx: &TcContext,
    offset: u32,
    room: &'a mut MaybeUninit<T>,
) -> Option<&'a T> {
    // SAFETY: by contract of this function; the helper writes all `N` bytes or fails.
    unsafe {
        let to = room.as_mut_ptr().cast::<u8>().add(AT);
        if bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to.cast(), N) == 0 {
            Some(room.assume_init_ref())
        } else {
            None
        }
    }
}
