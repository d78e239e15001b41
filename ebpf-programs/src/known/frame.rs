//! Addresses and ports where they lie in most frames: nothing is copied, and what nobody asks for is not read.

use crate::{
    address::Address,
    forward::frame as hop,
    parse::Packet,
    skb::{self, Linear},
};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{Endpoint, PROTO_TCP, PROTO_UDP};
use core::mem::MaybeUninit;

/// An IPv4 header without options, an IPv6 header.
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// The shortest; of a datagram as much must be there.
const TCP: usize = 20;
const ETHERNET: usize = skb::ETHERNET as usize;

/// A whole packet of TCP or UDP, without options or extension headers, that says nothing against itself.
pub trait Plain: Copy {
    const IPV6: bool;
    /// Where the transport header begins.
    const TRANSPORT: u32;

    /// `None` where headers lie elsewhere, or where there is more to look at.
    fn read(ctx: &TcContext) -> Option<Self>;
    fn src_mac(self) -> [u16; 3];
    fn src(self) -> Address;
    fn dst(self) -> Address;
    /// The source's first, as they lie in the packet.
    fn ports(self) -> u32;
    fn proto(self) -> u8;
    fn hop_limit(self) -> u8;
    fn tcp_flags(self) -> u8;
    fn tcp_header(self) -> u32;
    /// Is it the pod's own, by address and MAC?
    fn is_of(self, pod: &Endpoint) -> bool;
    /// Takes a hop off and addresses the frame; false: it cannot be written. Nothing of the frame can be read afterwards.
    fn forward(self, ctx: &TcContext, macs: &[[u8; 6]; 2]) -> bool;
}

/// In host order, the source's first.
#[inline(always)]
pub fn ports(frame: impl Plain) -> (u16, u16) {
    let raw = frame.ports();
    (u16::from_be(raw as u16), u16::from_be((raw >> 16) as u16))
}

/// Those of the TCP header; of UDP 0.
#[inline(always)]
pub fn tcp_flags(frame: impl Plain) -> u8 {
    if frame.proto() == PROTO_TCP { frame.tcp_flags() } else { 0 }
}

/// Length of the longest packet that this one is on the wire, from the IP header on.
#[inline(always)]
pub fn segment<F: Plain>(ctx: &TcContext, frame: F) -> u32 {
    let size = skb::gso_size(ctx);
    if size == 0 {
        return skb::len(ctx).wrapping_sub(skb::ETHERNET);
    }
    let header = if frame.proto() == PROTO_TCP { frame.tcp_header() } else { 8 };
    F::TRANSPORT - skb::ETHERNET + header + size
}

/// What [`crate::parse::parse`] makes of the packet.
#[inline(always)]
pub fn to_packet<F: Plain>(frame: F, room: &mut MaybeUninit<Packet>) {
    let packet = Packet::empty(room);
    (packet.src, packet.dst, packet.src_mac) = (frame.src(), frame.dst(), frame.src_mac());
    (packet.src_port, packet.dst_port) = ports(frame);
    (packet.proto, packet.tcp_flags, packet.hop_limit) = (frame.proto(), tcp_flags(frame), frame.hop_limit());
    (packet.transport, packet.ipv6) = (F::TRANSPORT, F::IPV6);
}

/// Is there a transport header, and does the packet end where its IP header says? Both count from there on.
#[inline(always)]
fn is_whole(proto: u8, length: u32, available: u32) -> bool {
    (proto == PROTO_TCP || proto == PROTO_UDP) && length >= TCP as u32 && length <= available
}

#[derive(Clone, Copy)]
pub struct V4(Linear<{ ETHERNET + V4_HEADER + TCP }>);

impl Plain for V4 {
    const IPV6: bool = false;
    const TRANSPORT: u32 = (ETHERNET + V4_HEADER) as u32;

    #[inline(always)]
    fn read(ctx: &TcContext) -> Option<Self> {
        let bytes = skb::linear(ctx)?;
        let frame = Self(bytes);
        // Version and header length; neither an offset nor more fragments.
        if bytes.byte::<14>() != 0x45 || bytes.half::<20>() & u16::to_be(0x3fff) != 0 {
            return None;
        }
        let length = u32::from(u16::from_be(bytes.half::<16>())).wrapping_sub(V4_HEADER as u32);
        is_whole(frame.proto(), length, skb::len(ctx).wrapping_sub(Self::TRANSPORT)).then_some(frame)
    }

    #[inline(always)]
    fn src_mac(self) -> [u16; 3] {
        [self.0.half::<6>(), self.0.half::<8>(), self.0.half::<10>()]
    }

    #[inline(always)]
    fn src(self) -> Address {
        Address::v4(self.0.word32::<26>())
    }

    #[inline(always)]
    fn dst(self) -> Address {
        Address::v4(self.0.word32::<30>())
    }

    #[inline(always)]
    fn ports(self) -> u32 {
        self.0.word32::<34>()
    }

    #[inline(always)]
    fn proto(self) -> u8 {
        self.0.byte::<23>()
    }

    #[inline(always)]
    fn hop_limit(self) -> u8 {
        self.0.byte::<22>()
    }

    #[inline(always)]
    fn tcp_flags(self) -> u8 {
        self.0.byte::<47>()
    }

    #[inline(always)]
    fn tcp_header(self) -> u32 {
        u32::from(self.0.byte::<46>() >> 4) * 4
    }

    #[inline(always)]
    fn is_of(self, pod: &Endpoint) -> bool {
        // A pod without an address of this family has zeros there, and no prefix of mapped ones.
        self.src().0[1] == Address::of_value(&pod.ipv4).0[1]
            && has_mac(pod, self.0.word32::<6>(), self.0.half::<10>())
    }

    #[inline(always)]
    fn forward(self, _: &TcContext, macs: &[[u8; 6]; 2]) -> bool {
        self.0.put::<22>(hop::one_less(self.0.word32::<22>()));
        let [a, b, c] = hop::words(macs);
        self.0.put::<0>(a);
        self.0.put::<4>(b);
        self.0.put::<8>(c);
        true
    }
}

#[derive(Clone, Copy)]
pub struct V6(Linear<{ ETHERNET + V6_HEADER + TCP }>);

impl Plain for V6 {
    const IPV6: bool = true;
    const TRANSPORT: u32 = (ETHERNET + V6_HEADER) as u32;

    #[inline(always)]
    fn read(ctx: &TcContext) -> Option<Self> {
        let bytes = skb::linear(ctx)?;
        let frame = Self(bytes);
        let length = u32::from(u16::from_be(bytes.half::<18>()));
        // What could be a mapped IPv4 address is looked at more closely.
        if bytes.byte::<14>() >> 4 != 6 || bytes.double::<22>() == 0 || bytes.double::<38>() == 0 {
            return None;
        }
        is_whole(frame.proto(), length, skb::len(ctx).wrapping_sub(Self::TRANSPORT)).then_some(frame)
    }

    #[inline(always)]
    fn src_mac(self) -> [u16; 3] {
        [self.0.half::<6>(), self.0.half::<8>(), self.0.half::<10>()]
    }

    #[inline(always)]
    fn src(self) -> Address {
        Address([self.0.double::<22>(), self.0.double::<30>()])
    }

    #[inline(always)]
    fn dst(self) -> Address {
        Address([self.0.double::<38>(), self.0.double::<46>()])
    }

    #[inline(always)]
    fn ports(self) -> u32 {
        self.0.word32::<54>()
    }

    #[inline(always)]
    fn proto(self) -> u8 {
        self.0.byte::<20>()
    }

    #[inline(always)]
    fn hop_limit(self) -> u8 {
        self.0.byte::<21>()
    }

    #[inline(always)]
    fn tcp_flags(self) -> u8 {
        self.0.byte::<67>()
    }

    #[inline(always)]
    fn tcp_header(self) -> u32 {
        u32::from(self.0.byte::<66>() >> 4) * 4
    }

    #[inline(always)]
    fn is_of(self, pod: &Endpoint) -> bool {
        self.src() == Address::of_value(&pod.ipv6) && has_mac(pod, self.0.word32::<6>(), self.0.half::<10>())
    }

    #[inline(always)]
    fn forward(self, ctx: &TcContext, macs: &[[u8; 6]; 2]) -> bool {
        hop::forward(ctx, macs, self.hop_limit(), true)
    }
}

/// `first` and `last` of the MAC, as they lie in the frame.
#[inline(always)]
fn has_mac(pod: &Endpoint, first: u32, last: u16) -> bool {
    let [a, b, c, d, e, f] = pod.mac;
    u32::from_ne_bytes([a, b, c, d]) == first && u16::from_ne_bytes([e, f]) == last
}
