//! Zeroing and copying by whole words. What the compiler makes of it is a call that goes byte by byte.

use core::mem::size_of;

/// # Safety
/// `to` is a `T`, aligned to 8 bytes.
#[inline(always)]
pub unsafe fn zero<T>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for n in 0..size_of::<T>() / 8 {
        // SAFETY: by contract of this function.
        unsafe { to.cast::<u64>().add(n).write_volatile(0) };
    }
}

/// # Safety
/// Both are a `T`, aligned to 8 bytes, and not the same.
#[inline(always)]
pub unsafe fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for n in 0..size_of::<T>() / 8 {
        // SAFETY: by contract of this function.
        unsafe { to.cast::<u64>().add(n).write_volatile(from.cast::<u64>().add(n).read_volatile()) };
    }
}

/// The same by half words.
///
/// # Safety
/// Both are a `T`, aligned to 4 bytes, and not the same.
#[inline(always)]
pub unsafe fn copy_halves<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    for n in 0..size_of::<T>() / 4 {
        // SAFETY: by contract of this function.
        unsafe { to.cast::<u32>().add(n).write_volatile(from.cast::<u32>().add(n).read_volatile()) };
    }
}
