//! The few fields of a packet's context that the hooks read and write, and reading of its bytes.
//!
//! Whole fields, always: the verifier refuses the narrower accesses that a compiler would make of them.

use aya_ebpf::{
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use core::{
    arch::asm,
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

/// Where the packet was received last, and with it all the way through the stack; 0: it was made here.
#[inline(always)]
pub fn ingress_ifindex(ctx: &TcContext) -> u32 {
    field!(ctx, ingress_ifindex)
}

/// Does it belong to a socket of this host?
#[inline(always)]
pub fn has_socket(ctx: &TcContext) -> bool {
    // SAFETY: as above; the pointer is compared with null, never followed.
    let socket = unsafe { read_volatile(&raw const (*ctx.skb.skb).__bindgen_anon_2.sk) };
    !socket.is_null()
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

/// The same of words, without a call where they lie in the linear part of the buffer. (A program that writes so gets its
/// packets with a linear part of their own.) No checksum sees the change.
#[inline(always)]
pub fn put<const WORDS: usize, const N: u32>(ctx: &TcContext, offset: u32, words: &[u32; WORDS]) -> bool {
    const { assert!(WORDS * 4 == N as usize) };
    let to = ctx.data() + offset as usize;
    if to + N as usize > ctx.data_end() {
        return store::<_, N>(ctx, offset, words, 0);
    }
    for (n, word) in words.iter().enumerate() {
        put_word(to + 4 * n, *word);
    }
    true
}

/// To the packet, at an address that is known to lie within it: the verifier refuses any other.
#[inline(always)]
fn put_word(to: usize, word: u32) {
    // SAFETY: as said.
    unsafe { asm!("*(u32 *)({0} + 0) = {1}", in(reg) to, in(reg) u64::from(word), options(nostack)) };
}

/// Eight bytes at `offset`, the first highest; `None` if the packet ends before.
#[inline(always)]
pub fn word(ctx: &TcContext, offset: u32) -> Option<u64> {
    let from = ctx.data() + offset as usize;
    if offset <= NEAR && from + 8 <= ctx.data_end() {
        // SAFETY: there are eight.
        return Some(u64::from_be(unsafe { double(from) }));
    }
    let mut room = MaybeUninit::<u64>::uninit();
    // SAFETY: eight bytes into eight, which are read where all were written.
    unsafe {
        let failed = bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, room.as_mut_ptr().cast(), 8) != 0;
        if failed { None } else { Some(u64::from_be(room.assume_init())) }
    }
}

/// The same, sixteen.
#[inline(always)]
pub fn words(ctx: &TcContext, offset: u32) -> Option<[u64; 2]> {
    Some([word(ctx, offset)?, word(ctx, offset + 8)?])
}

/// Copies `N` bytes at `offset` to `AT` bytes behind the beginning of `room`; linear or not. `None` if the packet ends
/// before. Nothing is zeroed first: that would cost more than all else.
///
/// # Safety
/// `AT + N` is within `T`, which is aligned to 8 bytes; all of `T` that lies outside of it is padding or `MaybeUninit`; any
/// bytes are a `T`.
#[inline(always)]
pub unsafe fn load<'a, T, const AT: usize, const N: u32>(
    ctx: &TcContext,
    offset: u32,
    room: &'a mut MaybeUninit<T>,
) -> Option<&'a T> {
    // SAFETY: by contract of this function; both ways write all `N` bytes or fail.
    unsafe {
        let to = room.as_mut_ptr().cast::<u8>().add(AT);
        if copy_linear::<AT, N>(ctx, offset, to)
            || bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to.cast(), N) == 0
        {
            Some(room.assume_init_ref())
        } else {
            None
        }
    }
}

/// Beyond this no headers are looked for without a call; it is a bound for the verifier.
const NEAR: u32 = 1 << 10;

/// The same from the linear part of the buffer, without a call; false where that ends before.
///
/// # Safety
/// `to` has room for `N` bytes, and lies `AT` bytes behind a multiple of 8.
#[inline(always)]
unsafe fn copy_linear<const AT: usize, const N: u32>(ctx: &TcContext, offset: u32, to: *mut u8) -> bool {
    if offset > NEAR {
        return false;
    }
    let from = ctx.data() + offset as usize;
    if from + N as usize > ctx.data_end() {
        return false;
    }
    // Piece by piece, each known when this is compiled: one loop over pieces of all sizes would be left a loop. No piece is all of
    // its eight bytes that is written: the verifier would follow what it holds, and find it where the call has written, too, of which
    // it knows nothing (6.18 takes that for a fault of its own).
    let n = N as usize;
    let begins_eight = |at: usize| (AT + at).is_multiple_of(8);
    let bytes = AT % 2;
    let halves = bytes + (AT + bytes) % 4;
    let mut words = n - (n - halves) % 4;
    if words == n && begins_eight(words - 4) {
        words -= 4;
    }
    let mut pairs = n - (n - words) % 2;
    if pairs == n && pairs - words == 2 && begins_eight(words) {
        pairs -= 2;
    }
    // SAFETY: both sides have `n` bytes, and what is written is aligned to its size.
    unsafe {
        if bytes > 0 {
            to.write(byte(from));
        }
        if halves > bytes {
            to.add(bytes).cast::<u16>().write(half(from + bytes));
        }
        for at in (halves..words).step_by(4) {
            to.add(at).cast::<u32>().write(word32(from + at));
        }
        for at in (words..pairs).step_by(2) {
            to.add(at).cast::<u16>().write(half(from + at));
        }
        for at in pairs..n {
            to.add(at).write(byte(from + at));
        }
    }
    true
}

macro_rules! read {
    ($name:ident: $type:ty, $size:literal) => {
        /// As it lies in the packet. An instruction, because the compiler would read what is not aligned byte by byte.
        ///
        /// # Safety
        /// There are as many bytes at this address, in the packet.
        #[inline(always)]
        unsafe fn $name(at: usize) -> $type {
            let value: u64;
            // SAFETY: by contract of this function.
            unsafe {
                asm!(concat!("{0} = *(", $size, " *)({1} + 0)"), out(reg) value, in(reg) at,
                    options(pure, readonly, nostack));
            }
            value as $type
        }
    };
}
read!(byte: u8, "u8");
read!(half: u16, "u16");
read!(word32: u32, "u32");
read!(double: u64, "u64");

/// The first `N` bytes of a packet, where they lie.
#[derive(Clone, Copy)]
pub struct Linear<const N: usize>(usize);

/// `None` where they do not lie in the linear part of the buffer, or are not there at all.
#[inline(always)]
pub fn linear<const N: usize>(ctx: &TcContext) -> Option<Linear<N>> {
    let data = ctx.data();
    if data + N > ctx.data_end() { None } else { Some(Linear(data)) }
}

macro_rules! read_at {
    ($name:ident: $type:ty) => {
        /// As it lies in the packet.
        #[inline(always)]
        pub fn $name<const AT: usize>(self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            // SAFETY: within the `N` bytes.
            unsafe { $name(self.0 + AT) }
        }
    };
}

impl<const N: usize> Linear<N> {
    /// Writes a word there. No checksum sees the change.
    #[inline(always)]
    pub fn put<const AT: usize>(self, word: u32) {
        const { assert!(AT + 4 <= N) };
        put_word(self.0 + AT, word);
    }

    read_at!(byte: u8);
    read_at!(half: u16);
    read_at!(word32: u32);
    read_at!(double: u64);
}
