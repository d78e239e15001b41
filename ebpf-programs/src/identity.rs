//! Who an address is: the exact entry first, the longest prefix on a miss.

use crate::{
    address::Address,
    maps::{IDENTITY_EXACT, IDENTITY_PREFIX},
};
use aya_ebpf::maps::lpm_trie::Key;
use bulkhead_ebpf_abi::{ID_WORLD, Identity};

/// [`Identity`] in a register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Who(u64);

impl Who {
    #[inline(always)]
    fn of(identity: &Identity) -> Self {
        Self(u64::from(identity.id) | u64::from(identity.flags) << 32)
    }

    #[inline(always)]
    pub fn id(self) -> u32 {
        self.0 as u32
    }

    /// Any of these `IDENTITY_*` bits.
    #[inline(always)]
    pub fn has(self, flags: u32) -> bool {
        (self.0 >> 32) as u32 & flags != 0
    }
}

#[inline(never)]
pub fn identity(address: &Address) -> Who {
    // SAFETY: read whole at once; the daemon replaces entries, it never writes into them.
    if let Some(found) = unsafe { IDENTITY_EXACT.get(address.as_addr()) } {
        return Who::of(found);
    }
    match IDENTITY_PREFIX.get(Key::new(128, *address)) {
        Some(found) => Who::of(found),
        None => Who(u64::from(ID_WORLD)),
    }
}
