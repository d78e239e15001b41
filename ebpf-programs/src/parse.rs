//! From bytes to a [`Packet`]: addresses, protocol, ports, flags, fragment.
//!
//! Never reads past the packet's end, and takes no length on trust. What it cannot read whole it refuses: a hook that
//! guessed would decide on something else than what the receiver sees.

mod frame;
mod quoted;
mod transport;

pub use quoted::quoted;

use crate::{address::Address, skb};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{DROP_FRAGMENT_TINY, DROP_MALFORMED, DROP_TRUNCATED, PROTO_ICMP, PROTO_ICMPV6};
use core::mem::{MaybeUninit, size_of};
use frame::{V4Frame, V6Frame};

pub use bulkhead_ebpf_abi::{TCP_FIN, TCP_RST};
pub const TCP_SYN: u8 = 2;
pub const TCP_ACK: u8 = 16;

const ICMP_ECHO: u8 = 8;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// Which part of a datagram this is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    Whole = 0,
    /// Carries the ports.
    First,
    Later,
}

/// What the hooks know of a packet. Ports are in host order; `proto` decides which fields mean something.
#[repr(C)]
pub struct Packet {
    pub src: Address,
    pub dst: Address,
    pub src_mac: [u16; 3],
    /// Of ICMP echo: the identifier, in both.
    pub src_port: u16,
    pub dst_port: u16,
    /// Of the fragment, in bytes of the datagram.
    pub fragment_start: u16,
    pub fragment_end: u16,
    pub proto: u8,
    pub icmp_type: u8,
    pub fragment_id: u32,
    /// Offset of the transport header.
    pub transport: u32,
    pub tcp_flags: u8,
    pub hop_limit: u8,
    pub part: Part,
    pub ipv6: bool,
}

const _: () = assert!(size_of::<Packet>().is_multiple_of(8));

impl Packet {
    /// All zero: `Part::Whole`, no ports. By words, because a byte-wise `memset` is what it would become.
    #[inline(always)]
    pub fn empty(room: &mut MaybeUninit<Self>) -> &mut Self {
        let words = room.as_mut_ptr().cast::<u64>();
        // SAFETY: the struct is whole words, and zero is a value of every field.
        unsafe {
            for i in 0..size_of::<Self>() / 8 {
                words.add(i).write_volatile(0);
            }
            room.assume_init_mut()
        }
    }

    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.proto == PROTO_ICMP || self.proto == PROTO_ICMPV6
    }

    /// What a rule's port is compared with.
    #[inline(always)]
    pub fn service_port(&self) -> u16 {
        if self.is_icmp() { u16::from(self.icmp_type) } else { self.dst_port }
    }

    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        (self.proto == PROTO_ICMP && self.icmp_type == ICMP_ECHO)
            || (self.proto == PROTO_ICMPV6 && self.icmp_type == ICMPV6_ECHO)
    }

    #[inline(always)]
    pub fn is_echo_reply(&self) -> bool {
        (self.proto == PROTO_ICMP && self.icmp_type == ICMP_ECHO_REPLY)
            || (self.proto == PROTO_ICMPV6 && self.icmp_type == ICMPV6_ECHO_REPLY)
    }

    /// An error that speaks of another packet (RFC 792, RFC 4443).
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        (self.proto == PROTO_ICMP && matches!(self.icmp_type, 3 | 11 | 12))
            || (self.proto == PROTO_ICMPV6 && matches!(self.icmp_type, 1..=4))
    }

    /// Asks for a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }
}

/// Fills `packet`; 0, or the reason to drop.
#[inline(never)]
pub fn parse(ctx: &TcContext, packet: &mut Packet, ethertype: u16) -> u32 {
    let end = if ethertype == skb::ETHERTYPE_IPV4 {
        ipv4(ctx, packet)
    } else {
        ipv6(ctx, packet).and_then(|end| match extensions(ctx, packet, end) {
            0 => Ok(end),
            reason => Err(reason),
        })
    };
    match end {
        Ok(end) => transport::transport(ctx, packet, end),
        Err(reason) => reason,
    }
}

/// Fills the addresses alone; false where the IP header cannot be believed.
#[inline(never)]
pub fn addresses(ctx: &TcContext, packet: &mut Packet, ethertype: u16) -> bool {
    let end = if ethertype == skb::ETHERTYPE_IPV4 { ipv4(ctx, packet) } else { ipv6(ctx, packet) };
    end.is_ok()
}

/// Where a packet comes from, read where its header has that and nothing else looked at: by far the most are asked no more at an
/// uplink that they leave by. `None`: no IP, or not even so long.
#[inline(always)]
pub fn source(ctx: &TcContext, ethertype: u16) -> Option<Address> {
    match ethertype {
        skb::ETHERTYPE_IPV4 => skb::word(ctx, V4_ENDS).map(|ends| Address::v4(((ends >> 32) as u32).to_be())),
        skb::ETHERTYPE_IPV6 => skb::words(ctx, V6_SOURCE).map(|words| Address(words.map(u64::to_be))),
        _ => None,
    }
}

/// And where it goes.
#[inline(always)]
pub fn destination(ctx: &TcContext, ethertype: u16) -> Option<Address> {
    match ethertype {
        skb::ETHERTYPE_IPV4 => skb::word(ctx, V4_ENDS).map(|ends| Address::v4((ends as u32).to_be())),
        skb::ETHERTYPE_IPV6 => skb::words(ctx, V6_SOURCE + 16).map(|words| Address(words.map(u64::to_be))),
        _ => None,
    }
}

/// Both addresses; the source's, behind which the other's lies.
const V4_ENDS: u32 = skb::ETHERNET + 12;
const V6_SOURCE: u32 = skb::ETHERNET + 8;

/// Fills all up to the transport header; the offset of the packet's end.
#[inline(always)]
fn ipv4(ctx: &TcContext, packet: &mut Packet) -> Result<u32, u32> {
    let mut room = MaybeUninit::uninit();
    let Some(head) = V4Frame::load(ctx, &mut room) else {
        return Err(u32::from(DROP_TRUNCATED));
    };
    let header = u32::from(head.version_ihl & 0xf) * 4;
    let mut total = u32::from(u16::from_be(head.total));
    let available = skb::len(ctx).wrapping_sub(skb::ETHERNET);
    if total == 0 && skb::is_gso(ctx) {
        total = available;
    }
    if head.version_ihl >> 4 != 4 || header < 20 || total < header || total > available {
        return Err(u32::from(DROP_MALFORMED));
    }
    packet.src = Address::v4(head.src);
    packet.dst = Address::v4(head.dst);
    packet.src_mac = head.ethernet.src;
    packet.proto = head.proto;
    packet.hop_limit = head.ttl;
    packet.transport = skb::ETHERNET + header;
    let fragment = u16::from_be(head.fragment);
    let (start, more) = ((fragment & 0x1fff) << 3, fragment & 0x2000 != 0);
    if start != 0 || more {
        packet.fragment_id = u32::from(u16::from_be(head.id));
        set_part(packet, start, more, total - header)?;
    }
    Ok(skb::ETHERNET + total)
}

#[inline(always)]
fn set_part(packet: &mut Packet, start: u16, more: bool, payload: u32) -> Result<(), u32> {
    let end = u32::from(start) + payload;
    // A datagram ends at 65,535; all fragments but the last hold multiples of 8 (RFC 791, RFC 8200 section 4.5).
    if end > 0xffff || payload == 0 || (more && payload & 7 != 0) {
        return Err(u32::from(DROP_MALFORMED));
    }
    packet.part = if start == 0 { Part::First } else { Part::Later };
    packet.fragment_start = start;
    packet.fragment_end = end as u16;
    Ok(())
}

/// Extension headers that may precede the transport header.
const EXTENSIONS: u32 = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[inline(always)]
fn ipv6(ctx: &TcContext, packet: &mut Packet) -> Result<u32, u32> {
    let mut room = MaybeUninit::uninit();
    let Some(head) = V6Frame::load(ctx, &mut room) else {
        return Err(u32::from(DROP_TRUNCATED));
    };
    let mut total = 40 + u32::from(u16::from_be(head.payload));
    let available = skb::len(ctx).wrapping_sub(skb::ETHERNET);
    if total == 40 && skb::is_gso(ctx) {
        total = available;
    }
    packet.src = Address(head.src);
    packet.dst = Address(head.dst);
    if u32::from_be(head.version) >> 28 != 6
        || total > available
        || packet.src.is_mapped()
        || packet.dst.is_mapped()
    {
        return Err(u32::from(DROP_MALFORMED));
    }
    packet.src_mac = head.ethernet.src;
    packet.hop_limit = head.hops;
    packet.ipv6 = true;
    packet.transport = skb::ETHERNET + 40;
    packet.proto = head.next;
    Ok(skb::ETHERNET + total)
}

/// Walks to the transport header, or to the end of a later fragment's headers; 0, or the reason to drop.
#[inline(never)]
fn extensions(ctx: &TcContext, packet: &mut Packet, end: u32) -> u32 {
    match walk(ctx, packet, end) {
        Ok(()) => 0,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn walk(ctx: &TcContext, packet: &mut Packet, end: u32) -> Result<(), u32> {
    for _ in 0..EXTENSIONS {
        let kind = packet.proto;
        if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return Ok(());
        }
        if packet.transport + 8 > end {
            return Err(u32::from(cut_short(packet)));
        }
        let Some(raw) = skb::word(ctx, packet.transport) else {
            return Err(u32::from(cut_short(packet)));
        };
        packet.proto = (raw >> 56) as u8;
        let length = u32::from((raw >> 48) as u8);
        match kind {
            FRAGMENT => {
                packet.transport += 8;
                fragment_header(packet, raw, end)?;
                if packet.part == Part::Later {
                    return Ok(());
                }
            }
            AUTHENTICATION => packet.transport += (length + 2) * 4,
            _ => packet.transport += (length + 1) * 8,
        }
    }
    Err(u32::from(DROP_MALFORMED))
}

#[inline(always)]
fn fragment_header(packet: &mut Packet, raw: u64, end: u32) -> Result<(), u32> {
    let (start, more) = ((raw >> 32) as u16 & 0xfff8, raw & (1 << 32) != 0);
    // Offset 0 and the last: a whole datagram (RFC 6946).
    if start == 0 && !more {
        return Ok(());
    }
    if packet.part != Part::Whole {
        return Err(u32::from(DROP_MALFORMED));
    }
    packet.fragment_id = raw as u32;
    set_part(packet, start, more, end.wrapping_sub(packet.transport))
}

/// Of a packet that ends before its headers do.
#[inline(always)]
fn cut_short(packet: &Packet) -> u8 {
    if packet.part == Part::First { DROP_FRAGMENT_TINY } else { DROP_TRUNCATED }
}
