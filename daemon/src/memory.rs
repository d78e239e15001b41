//! The daemon's allocator, with every C library the same. Not `bulkhead-bfd`'s: what that locks in memory must not be given back.
//!
//! A compile takes and frees tens of megabytes in small pieces. glibc keeps them in the process, so does musl, and what a piece
//! takes beside its contents is a fifth of all that the daemon holds. Here a small piece takes its size and no head, and pages
//! that are free go back to the system soon: a daemon that has nothing to do takes no part in what the node lacks.
//!
//! Pages are those of the machine that builds. For arm64, whose kernels may have larger ones: `JEMALLOC_SYS_WITH_LG_PAGE=16`.

#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One arena: what one thread frees, another is to have. Free pages stay for a tenth of a second, in which the same compile wants
/// them again; a thread keeps nothing back but small pieces.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"narenas:1,dirty_decay_ms:100,muzzy_decay_ms:0,tcache_max:1024\0";
