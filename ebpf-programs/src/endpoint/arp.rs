//! ARP from a pod: it may speak for itself alone (RFC 826).

use super::source;
use crate::{address::Address, skb, verdict::Verdict};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{DROP_MALFORMED, DROP_SPOOFED_POD, DROP_TRUNCATED, Endpoint};

/// Ethernet and ARP for IPv4, behind two bytes of padding.
#[repr(C, align(8))]
struct Frame {
    padding: u16,
    dst: [u16; 3],
    src: [u16; 3],
    kind: u16,
    hardware: u16,
    protocol: u16,
    lengths: u16,
    operation: u16,
    sender_mac: [u16; 3],
    sender: [u16; 2],
}

const SHORTEST: u32 = skb::ETHERNET + 28;
const READ: u32 = skb::ETHERNET + 18;
const _: () = assert!(core::mem::offset_of!(Frame, sender) + 4 == READ as usize + 2);

#[inline(never)]
pub fn from_pod(ctx: &TcContext, pod: &Endpoint) -> Verdict {
    let mut frame = Frame {
        padding: 0,
        dst: [0; 3],
        src: [0; 3],
        kind: 0,
        hardware: 0,
        protocol: 0,
        lengths: 0,
        operation: 0,
        sender_mac: [0; 3],
        sender: [0; 2],
    };
    // SAFETY: behind the padding there is room for what is read, asserted above.
    if skb::len(ctx) < SHORTEST || !unsafe { skb::load::<READ>(ctx, 0, (&raw mut frame).cast::<u8>().add(2)) }
    {
        return Verdict::drop(DROP_TRUNCATED);
    }
    if u16::from_be(frame.hardware) != 1
        || u16::from_be(frame.protocol) != skb::ETHERTYPE_IPV4
        || u16::from_be(frame.lengths) != 0x0604
    {
        return Verdict::drop(DROP_MALFORMED);
    }
    let sender = Address::v4(u32::from(frame.sender[0]) | u32::from(frame.sender[1]) << 16);
    if source::has_mac(pod, &frame.src)
        && source::has_mac(pod, &frame.sender_mac)
        && sender == Address::of_value(&pod.ipv4)
    {
        Verdict::PASS
    } else {
        Verdict::drop(DROP_SPOOFED_POD)
    }
}
