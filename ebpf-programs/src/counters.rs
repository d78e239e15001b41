//! Every drop has a number, and so has what each rule decided on.
//!
//! A packet of a known connection counts in its entry alone, which it writes anyway. What has gathered there is moved to
//! the rules of both ends ([`fold`]) when the entry goes or an end changes its rule: the look-up by rule is paid for once
//! a connection. Moved, that is zeroed: whoever folds next finds what came after.

use crate::{
    maps::{DROPS, RULES},
    verdict::{DROP, Verdict},
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_coarse_ns};
use bulkhead_ebpf_abi::{Counter, DropKey, Flow, RULE_NONE, RuleCounter};

/// Counts one packet; nothing else. `DROPS` full: the drop stands uncounted.
#[inline(never)]
pub fn count(reason: u32, rule: u32, policy: u32, dir: u32, bytes: u32) {
    let key = DropKey { rule, policy, reason: reason as u8, dir: dir as u8, reserved: 0 };
    let last = now();
    match DROPS.get_ptr_mut(key) {
        // SAFETY: this CPU's value of a live entry; a program runs without being preempted by another of its kind.
        Some(counter) => unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
            (*counter).last = last;
        },
        None => {
            let _ = DROPS.insert(key, Counter { packets: 1, bytes: u64::from(bytes), last }, 0);
        }
    }
}

/// Counts and drops.
#[inline(always)]
pub fn drop(verdict: Verdict, policy: u32, dir: u32, bytes: u32) -> i32 {
    count(u32::from(verdict.reason()), verdict.rule(), policy, dir, bytes);
    DROP
}

/// The coarse clock: a few nanoseconds a call, right to a few milliseconds, and readable by user space.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes nothing and returns a number.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Moves what the entry has counted to the rules of its ends; to one that decided at both, once.
#[inline(always)]
pub fn fold(flow: &mut Flow) {
    let _ = bulkhead_fold(flow);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bulkhead_fold(flow: *mut Flow) -> u32 {
    // SAFETY: the caller's; null is what the verifier must be told of.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    // Each field is read behind the look-up: before, it would stand on the stack meanwhile.
    if let Some(counter) = of_rule(&flow.rules[0]) {
        take(counter, flow.packets, flow.bytes, flow.begun()[0], flow.last_seen);
    }
    if flow.rules[0] != flow.rules[1]
        && let Some(counter) = of_rule(&flow.rules[1])
    {
        take(counter, flow.packets, flow.bytes, flow.begun()[1], flow.last_seen);
    }
    // SAFETY: fields of a live entry, one by one: two side by side would be zeroed by a call.
    unsafe {
        (&raw mut flow.packets).write_volatile(0);
        (&raw mut flow.bytes).write_volatile(0);
    }
    flow.begun = 0;
    0
}

/// A packet that a rule let pass, and no entry counts.
#[inline(never)]
pub fn hit(rule: u32, bytes: u32) {
    if let Some(counter) = of_rule(&rule) {
        take(counter, 1, u64::from(bytes), 0, now());
    }
}

/// `RULES` full: what it has no room for goes uncounted.
#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value it stands on the stack, which has no room for it"
)]
fn of_rule(rule: &u32) -> Option<&'static mut RuleCounter> {
    if *rule == RULE_NONE {
        return None;
    }
    let found = RULES.get_ptr_mut(rule).or_else(|| {
        let _ = RULES.insert(rule, &NOTHING, u64::from(BPF_NOEXIST));
        RULES.get_ptr_mut(rule)
    });
    // SAFETY: this CPU's value of a live entry; see `count`.
    found.map(|counter| unsafe { &mut *counter })
}

#[inline(always)]
fn take(counter: &mut RuleCounter, packets: u64, bytes: u64, connections: u64, last: u64) {
    counter.packets += packets;
    counter.bytes += bytes;
    counter.connections += connections;
    counter.last = counter.last.max(last);
}

static NOTHING: RuleCounter = RuleCounter { packets: 0, bytes: 0, connections: 0, last: 0 };
