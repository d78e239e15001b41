//! Every drop has a number.

use crate::{
    maps::DROPS,
    verdict::{DROP, Verdict},
};
use bulkhead_ebpf_abi::{Counter, DropKey};

/// Counts one packet; nothing else. `DROPS` full: the drop stands uncounted.
#[inline(never)]
pub fn count(reason: u32, rule: u32, policy: u32, dir: u32, bytes: u32) {
    let key = DropKey { rule, policy, reason: reason as u8, dir: dir as u8, reserved: 0 };
    match DROPS.get_ptr_mut(key) {
        // SAFETY: this CPU's value of a live entry; a program runs without being preempted by another of its kind.
        Some(counter) => unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        },
        None => {
            let _ = DROPS.insert(key, Counter { packets: 1, bytes: u64::from(bytes) }, 0);
        }
    }
}

/// Counts and drops.
#[inline(always)]
pub fn drop(verdict: Verdict, policy: u32, dir: u32, bytes: u32) -> i32 {
    count(u32::from(verdict.reason()), verdict.rule(), policy, dir, bytes);
    DROP
}
