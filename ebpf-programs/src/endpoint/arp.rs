//! ARP from a pod: it may speak for itself alone (RFC 826).

use super::source;
use crate::{address::Address, skb, verdict::Verdict};
use aya_ebpf::programs::TcContext;
use bulkhead_ebpf_abi::{DROP_MALFORMED, DROP_SPOOFED_POD, DROP_TRUNCATED, Endpoint};
use core::mem::{MaybeUninit, offset_of};

/// Ethernet and ARP for IPv4, behind two bytes of padding.
#[repr(C, align(8))]
struct Frame {
    padding: MaybeUninit<u16>,
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
const _: () = assert!(offset_of!(Frame, sender) + 4 == READ as usize + 2);

#[inline(never)]
pub fn from_pod(ctx: &TcContext, pod: &Endpoint) -> Verdict {
    let mut room = MaybeUninit::<Frame>::uninit();
    // SAFETY: behind the padding there is room for what is read, asserted above; integers only.
    let frame = unsafe { skb::load::<_, 2, READ>(ctx, 0, &mut room) };
    let Some(frame) = frame.filter(|_| skb::len(ctx) >= SHORTEST) else {
        return Verdict::drop(DROP_TRUNCATED);
    };
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
