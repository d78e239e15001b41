//! How a packet ends, in a register.

use bulkhead_ebpf_abi::RULE_NONE;

/// The kernel goes on with the packet.
pub const NEXT: i32 = -1;
pub const DROP: i32 = 2;

/// The reason of a drop in the lowest byte and the rule in the high half. No reason: it passes, and the second byte says
/// on which path.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Verdict(u64);

impl Verdict {
    /// By the host's stack.
    pub const PASS: Self = Self(0);
    /// Past it.
    pub const DIRECT: Self = Self(Self::IS_DIRECT);
    /// The same, and the other end, also of this node, has nothing left to decide.
    pub const SETTLED: Self = Self(Self::IS_DIRECT | Self::IS_SETTLED);
    const IS_DIRECT: u64 = 1 << 8;
    const IS_SETTLED: u64 = 1 << 9;

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
        self.reason() == 0
    }

    #[inline(always)]
    pub fn is_direct(self) -> bool {
        self.0 & Self::IS_DIRECT != 0
    }

    #[inline(always)]
    pub fn is_settled(self) -> bool {
        self.0 & Self::IS_SETTLED != 0
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
