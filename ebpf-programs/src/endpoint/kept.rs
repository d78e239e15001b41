//! The pod behind an interface, without a look-up in a hash at every packet: each CPU keeps what it found.
//!
//! What is kept holds for one epoch. User space begins another behind every change of an endpoint; the epoch is read
//! before the endpoint, so what was read while it changed is read again.

use crate::maps::{ENDPOINT, ENDPOINT_EPOCH};
use aya_ebpf::{macros::map, maps::PerCpuArray};
use bulkhead_ebpf_abi::Endpoint;

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
    if kept.ifindex != ifindex || kept.epoch != epoch {
        // SAFETY: the daemon replaces entries, it never writes into them.
        kept.pod = *unsafe { ENDPOINT.get(ifindex) }?;
        (kept.ifindex, kept.epoch) = (ifindex, epoch);
    }
    Some(&kept.pod)
}
