//! Addresses and ports where they lie in most frames; `None` where they lie elsewhere, or where there is more to look at.

use crate::{
    address::Address,
    parse::{Packet, TCP_ACK, TCP_RST, TCP_SYN},
    skb::{self, Linear},
};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{PROTO_TCP, PROTO_UDP};
use core::mem::MaybeUninit;

/// An IPv4 header without options, an IPv6 header.
const V4: usize = 20;
const V6: usize = 40;
const TCP: usize = 20;
const UDP: u32 = 8;
const ETHERNET: usize = skb::ETHERNET as usize;

pub struct Frame {
    pub src_mac: [u16; 3],
    pub src: Address,
    pub dst: Address,
    pub src_port: u16,
    pub dst_port: u16,
    pub proto: u8,
    pub hop_limit: u8,
    /// Of UDP 0.
    pub tcp_flags: u8,
    /// Where the transport header begins.
    pub transport: u32,
}

impl Frame {
    #[inline(always)]
    pub fn read(ctx: &TcContext, ethertype: u16) -> Option<Self> {
        match ethertype {
            skb::ETHERTYPE_IPV4 => Self::v4(ctx),
            skb::ETHERTYPE_IPV6 => Self::v6(ctx),
            _ => None,
        }
    }

    #[inline(always)]
    fn v4(ctx: &TcContext) -> Option<Self> {
        let bytes = skb::linear::<{ ETHERNET + V4 + TCP }>(ctx)?;
        // Version and header length; neither an offset nor more fragments.
        if bytes.byte::<14>() != 0x45 || bytes.half::<20>() & u16::to_be(0x3fff) != 0 {
            return None;
        }
        let proto = bytes.byte::<23>();
        let payload = u32::from(u16::from_be(bytes.half::<16>())).wrapping_sub(V4 as u32);
        if payload > skb::len(ctx).wrapping_sub((ETHERNET + V4) as u32) || !is_whole(proto, payload) {
            return None;
        }
        let tcp_flags = if proto == PROTO_TCP { bytes.byte::<47>() } else { 0 };
        let (src, dst) = (Address::v4(bytes.word32::<26>()), Address::v4(bytes.word32::<30>()));
        let hop = (bytes.byte::<22>(), tcp_flags, (ETHERNET + V4) as u32);
        Some(Self::new(&bytes, (src, dst), bytes.word32::<34>(), proto, hop))
    }

    #[inline(always)]
    fn v6(ctx: &TcContext) -> Option<Self> {
        let bytes = skb::linear::<{ ETHERNET + V6 + TCP }>(ctx)?;
        let proto = bytes.byte::<20>();
        let payload = u32::from(u16::from_be(bytes.half::<18>()));
        if bytes.byte::<14>() >> 4 != 6
            || payload > skb::len(ctx).wrapping_sub((ETHERNET + V6) as u32)
            || !is_whole(proto, payload)
        {
            return None;
        }
        let tcp_flags = if proto == PROTO_TCP { bytes.byte::<67>() } else { 0 };
        let src = Address([bytes.double::<22>(), bytes.double::<30>()]);
        let dst = Address([bytes.double::<38>(), bytes.double::<46>()]);
        // What could be a mapped IPv4 address is looked at more closely.
        if src.0[0] == 0 || dst.0[0] == 0 {
            return None;
        }
        let hop = (bytes.byte::<21>(), tcp_flags, (ETHERNET + V6) as u32);
        Some(Self::new(&bytes, (src, dst), bytes.word32::<54>(), proto, hop))
    }

    /// A connection begins, or is reset.
    #[inline(always)]
    pub fn begins_or_breaks(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN || self.tcp_flags & TCP_RST != 0
    }

    /// What [`crate::parse::parse`] makes of the packet.
    #[inline(always)]
    pub fn to_packet(&self, room: &mut MaybeUninit<Packet>, ipv6: bool) {
        let packet = Packet::empty(room);
        (packet.src, packet.dst, packet.src_mac) = (self.src, self.dst, self.src_mac);
        (packet.src_port, packet.dst_port, packet.proto) = (self.src_port, self.dst_port, self.proto);
        (packet.tcp_flags, packet.hop_limit) = (self.tcp_flags, self.hop_limit);
        (packet.transport, packet.ipv6) = (self.transport, ipv6);
    }

    #[inline(always)]
    fn new<const N: usize>(
        bytes: &Linear<N>,
        (src, dst): (Address, Address),
        ports: u32,
        proto: u8,
        (hop_limit, tcp_flags, transport): (u8, u8, u32),
    ) -> Self {
        Self {
            src_mac: [bytes.half::<6>(), bytes.half::<8>(), bytes.half::<10>()],
            src,
            dst,
            src_port: u16::from_be(ports as u16),
            dst_port: u16::from_be((ports >> 16) as u16),
            proto,
            hop_limit,
            tcp_flags,
            transport,
        }
    }
}

/// `payload` holds the transport header.
#[inline(always)]
fn is_whole(proto: u8, payload: u32) -> bool {
    match proto {
        PROTO_TCP => payload >= TCP as u32,
        PROTO_UDP => payload >= UDP,
        _ => false,
    }
}
