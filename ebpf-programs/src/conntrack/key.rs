//! The normalised key of a flow, in words.

use crate::{address::Address, parse::Packet};
use bulkhead_ebpf_abi::FlowKey;
use core::mem::{offset_of, size_of};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Key {
    low: Address,
    high: Address,
    low_port: u16,
    high_port: u16,
    /// And what is reserved behind it: single bytes would be zeroed by a call.
    proto: u32,
}
const _: () = assert!(size_of::<Key>() == size_of::<FlowKey>());
const _: () = assert!(offset_of!(Key, proto) == offset_of!(FlowKey, proto));

impl Key {
    /// Also says whether the packet goes from low to high.
    #[inline(always)]
    pub fn of(packet: &Packet) -> (Self, bool) {
        let from_high = packet.src.is_above(&packet.dst)
            || (packet.src == packet.dst && packet.src_port > packet.dst_port);
        let (low, high, low_port, high_port) = if from_high {
            (packet.dst, packet.src, packet.dst_port, packet.src_port)
        } else {
            (packet.src, packet.dst, packet.src_port, packet.dst_port)
        };
        (Self { low, high, low_port, high_port, proto: u32::from(packet.proto) }, !from_high)
    }

    /// Of ends whose order is known.
    #[inline(always)]
    pub fn between(low: Address, high: Address, low_port: u16, high_port: u16, proto: u8) -> Self {
        Self { low, high, low_port, high_port, proto: u32::from(proto) }
    }

    #[inline(always)]
    pub fn as_abi(&self) -> &FlowKey {
        // SAFETY: the same fields at the same offsets, aligned more strictly.
        unsafe { &*(&raw const *self).cast::<FlowKey>() }
    }
}
