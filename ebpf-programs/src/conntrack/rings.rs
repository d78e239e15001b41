//! Who may make way: small rings of a pod's connections that are not established, begun by it and begun by others, and of
//! those that are closed. Each newcomer to a ring evicts the eldest in it.

use super::table::{self, Name};
use crate::{
    maps::{CONNTRACK, FLOWS_CLOSED, FLOWS_UNANSWERED, RECENT},
    words,
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_prandom_u32, macros::map, maps::Array};
use bulkhead_ebpf_abi::{
    Addr, FLOW_CLOSED, FLOW_ESTABLISHED, Flow, FlowKey, FlowName, NAMES_PER_PAGE, RECENT_CLOSED, RECENT_IN,
    RECENT_OUT, RecentKey, RecentPage, Share,
};
use core::ptr::read_volatile;

/// Puts an entry into a ring of its pod, whose share is `share`, and evicts the one that stood there; what the entry has to
/// remember of it ([`Flow::ring`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_enlist(name: *const Name, share: *mut Share, owner: u32, kind: u32) -> u32 {
    // SAFETY: the caller's; null is what the verifier must be told of.
    let Some(name) = (unsafe { name.as_ref() }) else { return NO_RING };
    if share.is_null() {
        return NO_RING;
    }
    // SAFETY: a live entry.
    let next = unsafe { &raw mut (*share).next };
    let (next, room) = match kind {
        // SAFETY: three counters.
        RECENT_OUT => (unsafe { &raw mut (*next)[0] }, FLOWS_UNANSWERED.load()),
        // SAFETY: as above.
        RECENT_IN => (unsafe { &raw mut (*next)[1] }, FLOWS_UNANSWERED.load()),
        // SAFETY: as above.
        _ => (unsafe { &raw mut (*next)[2] }, FLOWS_CLOSED.load()),
    };
    // Two CPUs may get the same turn: then one entry stands in no ring, and ages.
    // SAFETY: a live entry.
    let turn = unsafe { *next };
    table::add(next, 1);
    let slot = if room == 0 { 0 } else { turn as u32 % room };
    // No room for rings: this one cannot be evicted; it has its age, and its pod a share.
    let Some(page) = page(RecentKey { owner, kind, slot: slot / NAMES_PER_PAGE }) else { return NO_RING };
    // SAFETY: a live entry, and a slot of it.
    let old = unsafe { &raw mut (*page)[(slot % NAMES_PER_PAGE) as usize] };
    // SAFETY: a live entry; should another CPU replace it meanwhile, the serial tells.
    unsafe {
        // A connection that is begun again and again comes round to itself.
        if (*old).serial != 0 && (*old).serial != name.serial {
            // (One whose names have aged is none.)
            if evict(&*old, kind) && kind != RECENT_CLOSED {
                note_flood(owner, kind);
            }
        }
        words::copy(&raw const *name, old.cast::<Name>());
    }
    slot.wrapping_add(1) << 1 | kind & 1
}

/// Of an entry that stands in no ring, as far as its own word goes.
const NO_RING: u32 = 0;

/// Takes an entry that has just been established out of its ring: nobody evicts it, and whose turn that place is next need
/// not ask.
#[inline(always)]
pub fn established(flow: &Flow) {
    if flow.ring != NO_RING {
        leave_ring(flow);
    }
}

#[inline(never)]
fn leave_ring(flow: &Flow) -> u32 {
    let slot = (flow.ring >> 1).wrapping_sub(1);
    let key = RecentKey { owner: flow.owner, kind: flow.ring & 1, slot: slot / NAMES_PER_PAGE };
    let Some(page) = RECENT.get_ptr_mut(key) else { return 0 };
    // SAFETY: a live entry, and a slot of it.
    let name = unsafe { &raw mut (*page)[(slot % NAMES_PER_PAGE) as usize] };
    // SAFETY: as above. Whoever has taken the place meanwhile has another serial, and of two that cross one stands in no ring.
    unsafe {
        if (*name).serial == flow.serial {
            (*name).serial = 0;
        }
    }
    0
}

#[inline(always)]
fn page(key: RecentKey) -> Option<*mut RecentPage> {
    RECENT.get_ptr_mut(key).or_else(|| {
        // A reference: a copy would take the stack.
        let empty: &RecentPage = &EMPTY_PAGE;
        let _ = RECENT.insert(key, empty, u64::from(BPF_NOEXIST));
        RECENT.get_ptr_mut(key)
    })
}

static EMPTY_PAGE: RecentPage = [NO_NAME; NAMES_PER_PAGE as usize];
const NO_NAME: FlowName = FlowName {
    key: FlowKey {
        low: Addr([0; 16]),
        high: Addr([0; 16]),
        low_port: 0,
        high_port: 0,
        proto: 0,
        reserved: [0; 3],
    },
    serial: 0,
    due: 0,
};

/// Whether it was there to be evicted.
#[inline(always)]
fn evict(name: &FlowName, kind: u32) -> bool {
    let key = &name.key;
    let Some(flow) = CONNTRACK.get_ptr_mut(key) else { return false };
    // SAFETY: a live entry; see `decide_on`.
    let flow = unsafe { &mut *flow };
    let evictable = match kind {
        RECENT_CLOSED => flow.flags & FLOW_CLOSED != 0,
        _ => flow.flags & FLOW_ESTABLISHED == 0,
    };
    let evicted = evictable && flow.serial == name.serial;
    if evicted {
        table::remove(key, flow);
    }
    evicted
}

/// The ring that was the last to go round, full of unanswered ones: its pod's interface, doubled, and the kind; 0: none yet.
#[map]
static FLOODED: Array<u64> = Array::with_max_entries(1, 0);
/// Places of it that are looked at where there is no room.
const TRIES: u32 = 4;

#[inline(always)]
fn note_flood(owner: u32, kind: u32) {
    let ring = u64::from(owner) << 1 | u64::from(kind & 1);
    if let Some(flooded) = FLOODED.get_ptr_mut(0) {
        // SAFETY: a live entry, written by whole words; by no CPU without need.
        unsafe {
            if *flooded != ring {
                *flooded = ring;
            }
        }
    }
}

/// Takes the place of one of a flood, by chance, for somebody else; 1: there is one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn bulkhead_evict_of_flood() -> u32 {
    let room = FLOWS_UNANSWERED.load();
    // SAFETY: as in `note_flood`.
    let flooded = FLOODED.get_ptr(0).map_or(0, |flooded| unsafe { read_volatile(flooded) });
    if flooded == 0 || room == 0 {
        return 0;
    }
    let (owner, kind) = ((flooded >> 1) as u32, flooded as u32 & 1);
    for _ in 0..TRIES {
        // SAFETY: takes nothing and returns a number.
        let slot = unsafe { bpf_get_prandom_u32() } % room;
        let Some(page) = RECENT.get_ptr_mut(RecentKey { owner, kind, slot: slot / NAMES_PER_PAGE }) else {
            continue;
        };
        // SAFETY: a live entry, and a slot of it; should another CPU replace it meanwhile, the serial tells.
        if evict(unsafe { &(*page)[(slot % NAMES_PER_PAGE) as usize] }, kind) {
            return 1;
        }
    }
    0
}
