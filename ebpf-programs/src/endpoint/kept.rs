//! The pod behind an interface, and the one at an address, without a look-up in a hash at every packet: each CPU keeps what
//! it found.
//!
//! What is kept holds for one epoch. User space begins another behind every change of an endpoint; the epoch is read
//! before the endpoint, so what was read while it changed is read again.
//!
//! Not every processor (arm64) keeps that order by itself: one that saw the new epoch could see the endpoint of before, and
//! keep it for good. So there is a [`barrier`] between the two reads, and a fence between the two writes in user space. Other
//! packets read what this processor has written itself, and need neither.

use crate::{
    address::Address,
    maps::{ENDPOINT, ENDPOINT_EPOCH, LOCAL},
    words,
};
use aya_ebpf::{macros::map, maps::PerCpuArray};
use bulkhead_ebpf_abi::{Delivery, Endpoint};
use core::intrinsics::{AtomicOrdering, atomic_or};

/// Interfaces that share a place take turns in it; they are numbered in the order in which they are made.
const PLACES: u32 = 512;

#[repr(C)]
struct Kept {
    ifindex: u32,
    epoch: u32,
    pod: Endpoint,
}

/// This CPU's own: a program runs without being preempted by another of its kind.
#[map]
static KEPT: PerCpuArray<Kept> = PerCpuArray::with_max_entries(PLACES, 0);

#[inline(always)]
pub fn endpoint<'a>(ifindex: u32) -> Option<&'a Endpoint> {
    let epoch = *ENDPOINT_EPOCH.get(0)?;
    let kept = KEPT.get_ptr_mut(ifindex % PLACES)?;
    // SAFETY: as said at `KEPT`; zero is a value of every field, and no interface has the index 0.
    let kept = unsafe { &mut *kept };
    if (kept.ifindex != ifindex || kept.epoch != epoch) && !keep(kept, ifindex, epoch) {
        return None;
    }
    Some(&kept.pod)
}

/// Once an epoch: out of the way of all other packets.
#[inline(never)]
fn keep(kept: &mut Kept, ifindex: u32, epoch: u32) -> bool {
    barrier((&raw mut *kept).cast());
    // SAFETY: the daemon replaces entries, it never writes into them.
    let Some(pod) = (unsafe { ENDPOINT.get(ifindex) }) else { return false };
    // SAFETY: both are an endpoint, and not the same.
    unsafe { words::copy_halves(pod, &raw mut kept.pod) };
    (kept.ifindex, kept.epoch) = (ifindex, epoch);
    true
}

/// What is read behind it is no older than what was read before it: an instruction that gives back what it changes is a full
/// barrier to the kernel. This one changes nothing, in a word of this CPU's own.
#[inline(always)]
fn barrier(kept: *mut u64) {
    // SAFETY: the head of an entry of a map of arrays, whose entries are aligned to 8 bytes.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(kept, 0) };
}

#[repr(C)]
struct KeptDelivery {
    to: Address,
    epoch: u32,
    delivery: Delivery,
    reserved: u32,
}

/// As `KEPT`, by [`place`].
#[map]
static KEPT_LOCAL: PerCpuArray<KeptDelivery> = PerCpuArray::with_max_entries(PLACES, 0);

/// The pod of this node that has the address.
#[inline(always)]
pub fn delivery<'a>(to: &Address) -> Option<&'a Delivery> {
    let epoch = *ENDPOINT_EPOCH.get(0)?;
    let kept = KEPT_LOCAL.get_ptr_mut(place(to))?;
    // SAFETY: as in `endpoint`; nobody has the address of all zeros.
    let kept = unsafe { &mut *kept };
    if (kept.to != *to || kept.epoch != epoch) && !keep_delivery(kept, to, epoch) {
        return None;
    }
    Some(&kept.delivery)
}

#[inline(never)]
fn keep_delivery(kept: &mut KeptDelivery, to: &Address, epoch: u32) -> bool {
    barrier((&raw mut *kept).cast());
    // SAFETY: as in `keep`.
    let Some(delivery) = (unsafe { LOCAL.get(to.as_addr()) }) else { return false };
    // SAFETY: as in `keep`.
    unsafe { words::copy_halves(delivery, &raw mut kept.delivery) };
    (kept.to, kept.epoch) = (*to, epoch);
    true
}

/// Multiplied (Knuth's number), because the first pods of many blocks end in the same bits.
#[inline(always)]
fn place(to: &Address) -> u32 {
    let [_, b, c, d] = to.words();
    (b ^ c ^ d.swap_bytes()).wrapping_mul(0x9e37_79b1) >> (32 - PLACES.trailing_zeros())
}
