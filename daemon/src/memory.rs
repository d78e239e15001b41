//! What the allocator keeps though nobody uses it. With another C library than glibc's: nothing to do.

/// To be called before there are threads: what one frees, another is to have.
pub fn share_between_threads() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers, and no thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns to the system what reading objects and compiling them left behind. It looks at the whole heap: not for each change.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number.
    unsafe {
        libc::malloc_trim(0);
    }
}
