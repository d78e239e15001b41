//! Ethernet and IP headers as they lie in a packet, loaded in one go. Two bytes of padding in front align the addresses.

use crate::skb;
use aya_ebpf::programs::TcContext;

#[repr(C)]
pub struct Ethernet {
    padding: u16,
    pub dst: [u16; 3],
    pub src: [u16; 3],
    pub kind: u16,
}

impl Ethernet {
    const EMPTY: Self = Self { padding: 0, dst: [0; 3], src: [0; 3], kind: 0 };
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
const _: () = assert!(core::mem::size_of::<V4Frame>() >= V4 as usize + 2);
const _: () = assert!(core::mem::size_of::<V6Frame>() == V6 as usize + 2);

impl V4Frame {
    pub const EMPTY: Self = Self {
        ethernet: Ethernet::EMPTY,
        version_ihl: 0,
        tos: 0,
        total: 0,
        id: 0,
        fragment: 0,
        ttl: 0,
        proto: 0,
        checksum: 0,
        src: 0,
        dst: 0,
    };

    #[inline(always)]
    pub fn load(&mut self, ctx: &TcContext) -> bool {
        // SAFETY: behind the padding there is room for both headers, asserted above.
        unsafe { skb::load::<V4>(ctx, 0, (&raw mut *self).cast::<u8>().add(2)) }
    }
}

impl V6Frame {
    pub const EMPTY: Self = Self {
        ethernet: Ethernet::EMPTY,
        version: 0,
        payload: 0,
        next: 0,
        hops: 0,
        src: [0; 2],
        dst: [0; 2],
    };

    #[inline(always)]
    pub fn load(&mut self, ctx: &TcContext) -> bool {
        // SAFETY: as above.
        unsafe { skb::load::<V6>(ctx, 0, (&raw mut *self).cast::<u8>().add(2)) }
    }
}
