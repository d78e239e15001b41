//! The kernel side as the daemon sees it: programs, maps, pins, generations.

/// The eBPF object that build.rs made.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BULKHEAD_EBPF_OBJECT"));
