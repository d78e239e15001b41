//! The room for connections: how many entries a pod may have, which may be evicted, when one is dead, who removes it.
//!
//! ```text
//! insert ──▶ sweep: two names from AGING, if due ── dead: removed ── alive: back to the end of the queue
//!        ──▶ RECENT: the ring's slot ────── its last holder, if still evictable, goes
//!        ──▶ SHARE: one more of this pod, or refused
//!        ──▶ CONNTRACK, and its name to the end of AGING; where that is full, in the place of one that is not
//!            established, or refused
//! ```
//! Nobody but the datapath reclaims: each new connection looks at two old ones, so a dead entry outlives at most half
//! as many insertions as there are entries, or the least of the ages: before that has passed since it was looked at, no entry
//! is looked at again but for want of room, or to find names of what was evicted. With no new connections nobody needs its
//! room. No timer, which would sweep in one go and need a lock on every entry. Each ring ([`super::rings`]) is one pod's, and
//! so is a share: a flood evicts and is refused at the cost of the pod that sends or receives it. A flood over so many pods
//! that their rings fill the table keeps nobody out either: then one of those makes way, and else the eldest that is not
//! established. Established connections are never evicted.

use super::{
    At,
    key::Key,
    rings::{bulkhead_enlist, bulkhead_evict_of_flood},
};
use crate::{
    counters,
    maps::{
        AGE_CLOSED, AGE_CLOSING, AGE_CUT, AGE_ECHO, AGE_LEAST, AGE_OTHER, AGE_TCP, AGE_UDP, AGE_UNANSWERED,
        AGING, CONNTRACK, FLOWS_PER_POD, SHARE,
    },
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{
        bpf_get_prandom_u32, bpf_jiffies64, bpf_map_peek_elem, bpf_map_pop_elem, bpf_map_push_elem,
    },
    macros::map,
    maps::{Array, PerCpuArray},
};
use bulkhead_ebpf_abi::{
    AgeKind, DROP_CONNTRACK_FULL, DROP_CONNTRACK_SHARE, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_UNASKED, Flow, FlowKey, FlowName, PATH_DIRECT, RECENT_CLOSED, RECENT_IN, RECENT_OUT, Share, due_at,
};
use core::{
    intrinsics::{AtomicOrdering, atomic_and, atomic_or, atomic_xadd},
    mem::{offset_of, size_of},
    ptr::read_volatile,
};

/// Old entries that a new one looks at; that a refusal of a pod looks at in the hope of room; and that one looks at for
/// which the table has none: those that are established lie in heaps.
const SWEEP: u32 = 2;
const SWEEP_FOR_SHARE: u32 = 8;
const SWEEP_FOR_ROOM: u32 = 32;
/// What a refusal looks for, and where it stops: at a name that leaves the queue, or at an entry that leaves the table, be it
/// of the living that prove nothing ([`is_evictable`]); or nowhere, at all that is dead.
const NAME: u32 = 1;
const ENTRY: u32 = 2;
const DEAD: u32 = 3;
const EEXIST: i32 = -17;
/// No reason of a drop: those have a byte.
pub const MADE_BY_ANOTHER: u32 = 256;

/// [`FlowName`] in words.
#[repr(C)]
pub struct Name {
    key: Key,
    pub serial: u32,
    due: u32,
}
const _: () = assert!(size_of::<Name>() == size_of::<FlowName>());

impl Name {
    #[inline(always)]
    fn as_abi(&self) -> &FlowName {
        // SAFETY: the same fields at the same offsets, aligned more strictly.
        unsafe { &*(&raw const *self).cast::<FlowName>() }
    }
}

/// The clock's own beat, without a call: [`counters::now`] moves only when this does.
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: takes nothing and returns a number.
    unsafe { bpf_jiffies64() as u32 }
}

#[inline(always)]
pub fn seen(flow: &mut Flow, now: u64) {
    (flow.last_seen, flow.tick) = (now, tick());
}

/// Stamps an entry of this kind, unless it is dead. Within one tick it cannot have died, and its stamp would be the same.
#[inline(always)]
pub fn see(flow: &mut Flow, kind: AgeKind) -> bool {
    let tick = tick();
    if flow.tick == tick {
        return true;
    }
    let now = counters::now();
    let alive = now.saturating_sub(flow.last_seen) <= age(kind);
    if alive {
        (flow.last_seen, flow.tick) = (now, tick);
    }
    alive
}

/// Established, direct and not closing, begun by whom its addresses say, stamped within this tick, and admitted by both ends in this
/// generation (so neither has cut it): a packet that closes nothing changes nothing of it. Two words are read.
#[inline(always)]
pub fn is_settled(flow: &Flow, generation: u32) -> bool {
    const STAGE: u8 = FLOW_ESTABLISHED | FLOW_CLOSING | FLOW_CLOSED | FLOW_UNASKED;
    const ASKED: u64 = stage_word(u32::MAX, STAGE, u8::MAX, u16::MAX);
    let flow = &raw const *flow;
    // SAFETY: aligned words of a live entry.
    let (stage, generations) = unsafe {
        let words = flow.cast::<u64>();
        (words.add(offset_of!(Flow, tick) / 8).read(), words.add(offset_of!(Flow, generations) / 8).read())
    };
    let both = u64::from(generation) | u64::from(generation) << 32;
    (stage ^ stage_word(tick(), FLOW_ESTABLISHED, PATH_DIRECT, 0)) & ASKED == 0 && generations == both
}

/// `tick` and the three fields behind it.
#[inline(always)]
const fn stage_word(tick: u32, flags: u8, path: u8, origin: u16) -> u64 {
    (tick as u64 | (flags as u64) << 32 | (path as u64) << 40 | (origin as u64) << 48).to_le()
}

#[inline(always)]
pub fn age(kind: AgeKind) -> u64 {
    match kind {
        AgeKind::Unanswered => AGE_UNANSWERED.load(),
        AgeKind::Tcp => AGE_TCP.load(),
        AgeKind::Closing => AGE_CLOSING.load(),
        AgeKind::Closed => AGE_CLOSED.load(),
        AgeKind::Cut => AGE_CUT.load(),
        AgeKind::Udp => AGE_UDP.load(),
        AgeKind::Echo => AGE_ECHO.load(),
        AgeKind::Other => AGE_OTHER.load(),
    }
}

/// As told by what both ends have sent, whatever flags another CPU has written meanwhile.
#[inline(always)]
pub fn closing(flow: &Flow) -> u8 {
    // SAFETY: bytes of a live entry; read anew, since another CPU may have written one.
    let (fin, fin_back) =
        unsafe { (read_volatile(&raw const flow.fin), read_volatile(&raw const flow.fin_back)) };
    Flow::closing(fin, fin_back)
}

/// A function of its own: the ages of all kinds would take the stack of whoever asks.
#[inline(never)]
pub fn is_dead(flow: &Flow, proto: u8, now: u64) -> bool {
    now.saturating_sub(flow.last_seen) > age(AgeKind::of(proto, flow.flags | closing(flow), flow.cut))
}

/// Removes an entry whose name is still in `AGING`.
#[inline(always)]
pub fn remove(key: &FlowKey, flow: &mut Flow) {
    if take_out(key, flow) {
        leave_names(1);
    }
}

/// Leaves what the entry counted to its rules. Its share is given back by the one whose removal succeeds, whoever else tries at
/// the same time.
#[inline(always)]
fn take_out(key: &FlowKey, flow: &mut Flow) -> bool {
    let owner = flow.owner;
    counters::fold(flow);
    if CONNTRACK.remove(key).is_err() {
        return false;
    }
    if let Some(share) = SHARE.get_ptr_mut(owner) {
        add(flows(share), -1);
    }
    true
}

/// How many names in `AGING` are of no entry any more. Two looks a newcomer keep them fewer than the entries that there may be,
/// and `AGING` has room for both; without, a flood of what is evicted would fill it with names.
#[map]
static LEFT: Array<u64> = Array::with_max_entries(1, 0);

#[inline(always)]
fn leave_names(n: i64) {
    if let Some(left) = LEFT.get_ptr_mut(0) {
        add(left, n);
    }
}

/// (One CPU may have found a name before another has said that it left it.)
#[inline(always)]
fn are_names_left() -> bool {
    // SAFETY: a live entry, written by whole words.
    LEFT.get_ptr(0).is_some_and(|left| unsafe { read_volatile(left) } as i64 > 0)
}

#[inline(always)]
fn flows(share: *mut Share) -> *mut u64 {
    // SAFETY: a live entry.
    unsafe { &raw mut (*share).flows }
}

/// Sets and clears bits of an entry's `flags`, and no others: two CPUs may do so at once.
#[inline(always)]
pub fn set_flags(flow: &mut Flow, bits: u8) {
    // SAFETY: the aligned word of a live entry that `flags` stands in.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(flags_word(flow), in_flags_word(bits)) };
}

#[inline(always)]
pub fn clear_flags(flow: &mut Flow, bits: u8) {
    // SAFETY: as above.
    unsafe { atomic_and::<u64, u64, { AtomicOrdering::Relaxed }>(flags_word(flow), !in_flags_word(bits)) };
}

/// There are such instructions for words of 8 bytes.
const _: () = assert!(
    offset_of!(Flow, flags) == offset_of!(Flow, tick) + 4
        && offset_of!(Flow, tick).is_multiple_of(8)
        && offset_of!(Flow, path) == offset_of!(Flow, flags) + 1
        && offset_of!(Flow, origin) == offset_of!(Flow, flags) + 2
        && offset_of!(Flow, generations).is_multiple_of(8)
);

#[inline(always)]
fn flags_word(flow: &mut Flow) -> *mut u64 {
    (&raw mut *flow).cast::<u64>().wrapping_add(offset_of!(Flow, tick) / 8)
}

#[inline(always)]
const fn in_flags_word(bits: u8) -> u64 {
    u64::from_le_bytes([0, 0, 0, 0, bits, 0, 0, 0]).to_le()
}

/// Adds to an aligned word of a live entry. (The target has the instruction, but no method for it; without the value
/// before it is one of every kernel.)
#[inline(always)]
pub fn add(word: *mut u64, n: i64) {
    // SAFETY: by what is said above.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, n as u64) };
}

#[inline(always)]
fn share_is_used_up(share: *mut Share) -> bool {
    // SAFETY: a live entry.
    let flows = unsafe { (*share).flows };
    flows >= u64::from(FLOWS_PER_POD.load())
}

/// Looks at the next entries whose time has come, and removes what is dead: all behind the first that is not due are not due
/// either. Where names are left that are of no entry, at the next ones, due or not.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bulkhead_sweep(now: u64) -> u32 {
    let Some(swept) = SWEPT.get_ptr_mut(0) else { return 0 };
    for _ in 0..SWEEP {
        if !are_names_left() && !is_due(swept, now) || !eldest(swept) {
            break;
        }
        look_at(swept, now, DEAD);
    }
    0
}

/// The same, due or not: there is no room. `what` to look for; 1: it was found.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bulkhead_sweep_in_need(now: u64, what: u32) -> u32 {
    let Some(swept) = SWEPT.get_ptr_mut(0) else { return 0 };
    for n in 0..SWEEP_FOR_ROOM {
        if n == SWEEP_FOR_SHARE && what == DEAD || !eldest(swept) {
            break;
        }
        if look_at(swept, now, what) >= what {
            return 1;
        }
    }
    0
}

/// Removes an entry (`ENTRY`) or finds that there is none (`NAME`), or puts its name back to the end of the queue (0).
#[inline(always)]
fn look_at(swept: *mut FlowName, now: u64, what: u32) -> u32 {
    // SAFETY: this CPU's own; see `Draft`.
    let name = unsafe { &mut *swept };
    let key = &name.key;
    let Some(flow) = CONNTRACK.get_ptr_mut(key) else {
        leave_names(-1);
        return NAME;
    };
    // SAFETY: a live entry; see `decide_on`.
    let flow = unsafe { &mut *flow };
    // Another entry under the same key has its own name in the queue.
    if flow.serial != name.serial {
        leave_names(-1);
        return NAME;
    }
    if what != DEAD && is_evictable(flow) || is_dead(flow, key.proto, now) {
        if take_out(key, flow) {
            return ENTRY;
        }
        // Another CPU was first, and has left a name that has just been taken out.
        leave_names(-1);
        return NAME;
    }
    name.due = next_due(now);
    let _ = push(name);
    0
}

/// Not established, or closed by both sides.
#[inline(always)]
fn is_evictable(flow: &Flow) -> bool {
    flow.flags & (FLOW_ESTABLISHED | FLOW_CLOSED) != FLOW_ESTABLISHED
}

/// Of a name that goes to the end of the queue.
#[inline(always)]
fn next_due(now: u64) -> u32 {
    due_at(now + AGE_LEAST.load())
}

/// The head of the queue, which stays there.
#[inline(always)]
fn is_due(room: *mut FlowName, now: u64) -> bool {
    // SAFETY: as in `eldest`; and this CPU's own.
    unsafe {
        bpf_map_peek_elem((&raw const AGING).cast_mut().cast(), room.cast()) == 0
            && due_at(now).wrapping_sub((*room).due) as i32 >= 0
    }
}

/// To the end of the queue.
#[inline(always)]
fn push(name: &FlowName) -> bool {
    // SAFETY: takes the map, and as many bytes as its values have.
    unsafe { bpf_map_push_elem((&raw const AGING).cast_mut().cast(), (&raw const *name).cast(), 0) == 0 }
}

/// Takes the head of the queue; false: there is none.
#[inline(always)]
fn eldest(name: *mut FlowName) -> bool {
    // SAFETY: the map's own pointer, and room for one of its values. (`Queue::pop` would return it on the stack.)
    unsafe { bpf_map_pop_elem((&raw const AGING).cast_mut().cast(), name.cast()) == 0 }
}

/// An entry on its way into the table, off the stack, which has no room for it. Nobody else uses it: a program runs
/// without being preempted by another of its kind.
#[repr(C)]
pub struct Draft {
    name: Name,
    pub flow: Flow,
}

#[map]
static DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);
/// The same for a name on its way out of the queue.
#[map]
static SWEPT: PerCpuArray<FlowName> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
pub fn draft<'a>(key: &Key) -> Option<&'a mut Draft> {
    // SAFETY: this CPU's own; zero is a value of every field.
    let draft = unsafe { &mut *DRAFT.get_ptr_mut(0)? };
    draft.name.key = *key;
    draft.name.due = 0;
    Some(draft)
}

/// Of an entry whose connection has just been closed by both sides.
#[inline(always)]
pub fn closed(key: &Key, flow: &Flow) {
    if let (Some(draft), Some(share)) = (draft(key), SHARE.get_ptr_mut(flow.owner)) {
        draft.name.serial = flow.serial;
        let _ = bulkhead_enlist(&raw const draft.name, share, flow.owner, RECENT_CLOSED);
    }
}

/// Makes an entry; 0, [`MADE_BY_ANOTHER`], or the reason to refuse it. `flow` is filled but for what belongs to the room.
#[inline(always)]
pub fn insert(at: &At, draft: &mut Draft) -> u32 {
    let Draft { name, flow } = draft;
    let now = flow.last_seen;
    bulkhead_sweep(now);
    let share = SHARE.get_ptr_mut(at.owner).or_else(|| {
        make_share(at.owner);
        SHARE.get_ptr_mut(at.owner)
    });
    let Some(share) = share else { return u32::from(DROP_CONNTRACK_FULL) };
    // SAFETY: takes nothing and returns a number.
    name.serial = unsafe { bpf_get_prandom_u32() };
    name.due = next_due(now);
    (flow.owner, flow.serial, flow.entered_by) = (at.owner, name.serial, at.entered_by);
    let kind = if at.sends() { RECENT_OUT } else { RECENT_IN };
    flow.ring = bulkhead_enlist(&raw const *name, share, at.owner, kind);
    // Whoever was evicted was of this pod, and has made the room: who is refused here has evicted nobody.
    if share_is_used_up(share) {
        bulkhead_sweep_in_need(now, DEAD);
        if share_is_used_up(share) {
            // SAFETY: a live entry; a count lost between two CPUs is no harm.
            unsafe { (*share).refused += 1 };
            return u32::from(DROP_CONNTRACK_SHARE);
        }
    }
    add(flows(share), 1);
    // A reference, here and below: a copy would not fit the stack.
    let value: &Flow = flow;
    let mut made = CONNTRACK.insert(name.key.as_abi(), value, u64::from(BPF_NOEXIST));
    // Full: of the living those make way that prove nothing, of a flood first.
    if matches!(made, Err(error) if error != EEXIST)
        && (bulkhead_evict_of_flood() != 0 || bulkhead_sweep_in_need(now, ENTRY) != 0)
    {
        made = CONNTRACK.insert(name.key.as_abi(), value, u64::from(BPF_NOEXIST));
    }
    match made {
        Ok(()) => queue(now, name),
        Err(error) => {
            add(flows(share), -1);
            // Another CPU was first with another packet of the flow.
            if error == EEXIST { MADE_BY_ANOTHER } else { u32::from(DROP_CONNTRACK_FULL) }
        }
    }
}

#[inline(always)]
fn take_out_own(name: &Name) -> bool {
    let Some(flow) = CONNTRACK.get_ptr_mut(name.key.as_abi()) else { return false };
    // SAFETY: a live entry; see `decide_on`.
    let flow = unsafe { &mut *flow };
    flow.serial == name.serial && take_out(name.key.as_abi(), flow)
}

/// An entry whose age nobody would look at must not be.
#[inline(always)]
fn queue(now: u64, name: &Name) -> u32 {
    if push(name.as_abi()) {
        return 0;
    }
    bulkhead_sweep_in_need(now, NAME);
    if push(name.as_abi()) {
        return 0;
    }
    if !take_out_own(name) {
        // Another CPU has removed it, and left a name that there is not.
        leave_names(-1);
    }
    u32::from(DROP_CONNTRACK_FULL)
}

#[inline(never)]
pub fn make_share(owner: u32) -> u64 {
    // A reference: a copy would take the stack.
    let none: &Share = &NO_SHARE;
    u64::from(SHARE.insert(owner, none, u64::from(BPF_NOEXIST)).is_ok())
}

static NO_SHARE: Share = Share { refused: 0, flows: 0, next: [0; 6] };
