//! How a packet ends, in a register.

use bulkhead_ebpf_abi::RULE_NONE;

/// The kernel goes on with the packet.
pub const NEXT: i32 = -1;
pub const DROP: i32 = 2;

/// The reason of a drop in the lowest byte and the rule in the high half. The second byte says of what
/// passes (no reason) on which path it does, and of a drop whose it is.
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
    const IS_OF_RECEIVER: u64 = 1 << 10;

    #[inline(always)]
    pub fn drop(reason: u8) -> Self {
        Self::drop_by(reason, RULE_NONE)
    }

    #[inline(always)]
    pub fn drop_by(reason: u8, rule: u32) -> Self {
        Self(u64::from(reason) | u64::from(rule) << 32)
    }

    /// Where both ends were asked at once, and it is the receiver's that refuses.
    #[inline(always)]
    pub fn of_receiver(self) -> Self {
        Self(self.0 | Self::IS_OF_RECEIVER)
    }

    #[inline(always)]
    pub fn is_of_receiver(self) -> bool {
        self.0 & Self::IS_OF_RECEIVER != 0
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
