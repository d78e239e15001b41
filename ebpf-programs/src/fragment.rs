//! Later fragments take their ports from their first.
//!
//! What is remembered of first fragments stands in rings, one for each pod and kind: so many datagrams in pieces may be under
//! way, and of one more the eldest is forgotten. So a flood of first fragments costs the pod that sends it, and a flood
//! from elsewhere what elsewhere sends to the same pod. (The map behind them evicts by itself: where two CPUs have taken the
//! same turn of a ring, or there is no room for more rings, the entry that no ring names goes when nobody has asked for it
//! for long.)

use crate::{
    address::Address,
    conntrack::{At, table},
    maps::{ENDPOINT, FRAGMENT, FRAGMENT_RING, SHARE},
    parse::{Packet, Part},
};
use bulkhead_ebpf_abi::{
    DROP_FRAGMENT, DROP_FRAGMENT_TINY, FRAGMENTS_PER_RING, FragmentKey, FragmentPorts,
    RECENT_FRAGMENTS_PASSED, RECENT_FRAGMENTS_RECEIVED, RECENT_FRAGMENTS_SENT, RecentKey,
};
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
pub fn remember(packet: &Packet, at: &At) -> u32 {
    if packet.part != Part::First {
        return 0;
    }
    let key = Key::of(packet, at.dir);
    // Seen before: it has its place.
    if FRAGMENT.get_ptr(key.as_abi()).is_none() && !enlist(&key, at) {
        return u32::from(DROP_FRAGMENT);
    }
    let ports = FragmentPorts {
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        end: packet.fragment_end,
        icmp_type: packet.icmp_type,
        proto: packet.proto,
    };
    match FRAGMENT.insert(key.as_abi(), ports, 0) {
        Ok(()) => 0,
        Err(_) => u32::from(DROP_FRAGMENT),
    }
}

/// Puts a datagram into its ring, and forgets the one that stood there; false: there is no room for one more pod.
#[inline(always)]
fn enlist(key: &Key, at: &At) -> bool {
    let (owner, kind) = ring(at);
    let share = match SHARE.get_ptr_mut(owner) {
        Some(share) => share,
        // Of a pod that has no connections, but to whom nobody's policy is asked.
        None => {
            table::make_share(owner);
            let Some(share) = SHARE.get_ptr_mut(owner) else { return false };
            share
        }
    };
    // SAFETY: a live entry.
    let next = unsafe { &raw mut (*share).next };
    let next = match kind {
        // SAFETY: six counters.
        RECENT_FRAGMENTS_SENT => unsafe { &raw mut (*next)[3] },
        // SAFETY: as above.
        RECENT_FRAGMENTS_PASSED => unsafe { &raw mut (*next)[4] },
        // SAFETY: as above.
        _ => unsafe { &raw mut (*next)[5] },
    };
    // SAFETY: a live entry.
    let turn = unsafe { *next };
    table::add(next, 1);
    let slot = RecentKey { owner, kind, slot: turn as u32 % FRAGMENTS_PER_RING };
    if let Some(old) = FRAGMENT_RING.get_ptr(slot) {
        // SAFETY: a live entry; a key that another CPU replaces meanwhile is nobody's.
        let old: &FragmentKey = unsafe { &*old };
        let _ = FRAGMENT.remove(old);
    }
    // No room for rings: the map behind them bounds this one alone.
    let _ = FRAGMENT_RING.insert(slot, key.as_abi(), 0);
    true
}

/// Whose it is, and which.
#[inline(always)]
fn ring(at: &At) -> (u32, u32) {
    if at.sends() {
        return (at.owner, RECENT_FRAGMENTS_SENT);
    }
    // SAFETY: only whether it is there.
    match unsafe { ENDPOINT.get(at.entered_by) } {
        Some(_) => (at.entered_by, RECENT_FRAGMENTS_PASSED),
        None => (at.owner, RECENT_FRAGMENTS_RECEIVED),
    }
}
