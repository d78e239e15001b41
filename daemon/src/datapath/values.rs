//! The types of `ebpf-abi` as aya and batches take them.

use super::sys::Plain;
use bulkhead_ebpf_abi::{
    Addr, BackendAddr, BackendKey, Cell, Counter, Delivery, DropKey, Endpoint, Flow, FlowKey, FlowName,
    FragmentKey, FrontendKey, FrontendValue, Identity, MemberKey, PolicyDir, PortDirectory, PortPage,
    RecentKey, RecentPage, RuleCounter, Share, TranslatedKey,
};

/// A key or value handed to aya, whose trait cannot be implemented for another crate's types.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: transparent around plain bytes.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: repr(C), integers only, without padding: ebpf-abi asserts the sizes.
        unsafe impl Plain for $t {}
    )* };
}
plain!(
    u32,
    u64,
    Addr,
    BackendAddr,
    BackendKey,
    FrontendKey,
    FrontendValue,
    MemberKey,
    Cell,
    Counter,
    Delivery,
    DropKey,
    Endpoint,
    Flow,
    FlowKey,
    FlowName,
    RecentPage,
    FragmentKey,
    RecentKey,
    RuleCounter,
    Share,
    Identity,
    PolicyDir,
    PortDirectory,
    PortPage,
    TranslatedKey
);

/// An entry of a table: what was never written is zero.
pub trait Entry: Plain + PartialEq {
    const ZERO: Self;
}

impl Entry for u32 {
    const ZERO: Self = 0;
}
impl Entry for PolicyDir {
    const ZERO: Self = Self { port_table: 0, row_base: 0, row_count: 0, flags: 0 };
}
impl Entry for PortDirectory {
    const ZERO: Self = [0; 256];
}
impl Entry for PortPage {
    const ZERO: Self = [0; 256];
}
impl Entry for Cell {
    const ZERO: Self = Self { rule: 0, verdict: 0, flags: 0, reserved: 0 };
}
