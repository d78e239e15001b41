//! How a packet ends, in a register.

use bulkhead_ebpf_abi::RULE_NONE;

/// The kernel goes on with the packet.
pub const NEXT: i32 = -1;
pub const DROP: i32 = 2;

/// Zero: passes. Else the reason in the low half and the rule in the high one.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Verdict(u64);

impl Verdict {
    pub const PASS: Self = Self(0);

    #[inline(always)]
    pub fn drop(reason: u8) -> Self {
        Self::drop_by(reason, RULE_NONE)
    }

    #[inline(always)]
    pub fn drop_by(reason: u8, rule: u32) -> Self {
        Self(u64::from(reason) | u64::from(rule) << 32)
    }

    #[inline(always)]
    pub fn of(raw: u64) -> Self {
        Self(raw)
    }

    #[inline(always)]
    pub fn raw(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub fn passes(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub fn reason(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    pub fn rule(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
