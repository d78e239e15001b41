//! Later fragments take their ports from their first.

use crate::{
    address::Address,
    maps::FRAGMENT,
    parse::{Packet, Part},
};
use bulkhead_ebpf_abi::{DROP_FRAGMENT, DROP_FRAGMENT_TINY, FragmentKey, FragmentPorts};
use core::mem::size_of;

/// [`FragmentKey`] in words.
#[repr(C)]
struct Key {
    src: Address,
    dst: Address,
    id: u32,
    proto: u8,
    dir: u8,
    reserved: u16,
}
const _: () = assert!(size_of::<Key>() == size_of::<FragmentKey>());

impl Key {
    #[inline(always)]
    fn of(packet: &Packet, dir: u32) -> Self {
        Self {
            src: packet.src,
            dst: packet.dst,
            id: packet.fragment_id,
            proto: if packet.ipv6 { 0 } else { packet.proto },
            dir: dir as u8,
            reserved: 0,
        }
    }

    #[inline(always)]
    fn as_abi(&self) -> &FragmentKey {
        // SAFETY: the same fields at the same offsets, aligned more strictly.
        unsafe { &*(&raw const *self).cast::<FragmentKey>() }
    }
}

/// Gives a later fragment its protocol and ports; 0, or the reason to drop.
#[inline(never)]
pub fn resolve(packet: &mut Packet, dir: u32) -> u32 {
    let key = Key::of(packet, dir);
    // SAFETY: written whole by `remember`; a replaced entry costs at most this datagram.
    let Some(first) = (unsafe { FRAGMENT.get(key.as_abi()) }) else {
        return u32::from(DROP_FRAGMENT);
    };
    if packet.fragment_start < first.end {
        return u32::from(DROP_FRAGMENT_TINY);
    }
    packet.src_port = first.src_port;
    packet.dst_port = first.dst_port;
    packet.icmp_type = first.icmp_type;
    packet.proto = first.proto;
    0
}

/// Of a first fragment that passed.
#[inline(never)]
pub fn remember(packet: &Packet, dir: u32) -> u32 {
    if packet.part != Part::First {
        return 0;
    }
    let ports = FragmentPorts {
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        end: packet.fragment_end,
        icmp_type: packet.icmp_type,
        proto: packet.proto,
    };
    match FRAGMENT.insert(Key::of(packet, dir).as_abi(), ports, 0) {
        Ok(()) => 0,
        Err(_) => u32::from(DROP_FRAGMENT),
    }
}
