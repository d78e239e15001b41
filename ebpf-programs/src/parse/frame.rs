//! Ethernet and IP headers as they lie in a packet, loaded in one go. Two bytes of padding in front align the addresses.

use crate::skb;
use aya_ebpf::programs::TcContext;
use core::mem::{MaybeUninit, size_of};

#[repr(C)]
pub struct Ethernet {
    padding: MaybeUninit<u16>,
    pub dst: [u16; 3],
    pub src: [u16; 3],
    pub kind: u16,
}

/// RFC 791 without options.
#[repr(C, align(8))]
pub struct V4Frame {
    pub ethernet: Ethernet,
    pub version_ihl: u8,
    pub tos: u8,
    pub total: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub checksum: u16,
    pub src: u32,
    pub dst: u32,
}

/// RFC 8200.
#[repr(C, align(8))]
pub struct V6Frame {
    pub ethernet: Ethernet,
    pub version: u32,
    pub payload: u16,
    pub next: u8,
    pub hops: u8,
    pub src: [u64; 2],
    pub dst: [u64; 2],
}

/// Bytes of both headers.
const V4: u32 = skb::ETHERNET + 20;
const V6: u32 = skb::ETHERNET + 40;
const _: () = assert!(size_of::<V4Frame>() >= V4 as usize + 2);
const _: () = assert!(size_of::<V6Frame>() == V6 as usize + 2);

impl V4Frame {
    #[inline(always)]
    pub fn load<'a>(ctx: &TcContext, room: &'a mut MaybeUninit<Self>) -> Option<&'a Self> {
        // SAFETY: behind the padding there is room for both headers, asserted above; integers only.
        unsafe { skb::load::<Self, 2, V4>(ctx, 0, room) }
    }
}

impl V6Frame {
    #[inline(always)]
    pub fn load<'a>(ctx: &TcContext, room: &'a mut MaybeUninit<Self>) -> Option<&'a Self> {
        // SAFETY: as above.
        unsafe { skb::load::<Self, 2, V6>(ctx, 0, room) }
    }
}
