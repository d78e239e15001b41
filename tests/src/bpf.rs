//! The calls of bpf(2) that aya does not offer, for programs that a test or a figure writes itself: a few instructions, a
//! table of programs to jump through, and test-runs that repeat.

use crate::{Context, Result};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const MAP_FREEZE: libc::c_long = 22;
const LINK_CREATE: libc::c_long = 28;
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
/// Of `struct __sk_buff`, up to its last field.
const CONTEXT: usize = 184;

/// # Safety
/// `attr` is laid out as the command wants it, and its pointers are valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: by contract of this function.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

/// One instruction (`struct bpf_insn`).
pub fn instruction(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(dst | src << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(value as u32) << 32
}

/// A program that classifies packets, of these instructions.
pub fn load(what: &str, instructions: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        rest: [u64; 10],
    }
    let mut log = vec![0u8; 1 << 16];
    let mut attr = Load {
        kind: PROG_TYPE_SCHED_CLS,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        rest: [0; 10],
    };
    // SAFETY: all pointers are of what lives until the call returns, and of the lengths told.
    let mut loaded = unsafe { bpf(PROG_LOAD, &mut attr) };
    if loaded.is_err() {
        // Once more, to hear why: of a program with loops the reasons alone would fill any log.
        (attr.log_level, attr.log_size, attr.log) = (1, log.len() as u32, log.as_mut_ptr() as u64);
        // SAFETY: as above.
        loaded = unsafe { bpf(PROG_LOAD, &mut attr) };
    }
    let said = || {
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        format!("loading {what}: {}", String::from_utf8_lossy(&log[..end]))
    };
    let fd = loaded.during(said)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A hash of so many entries, all of them allocated.
pub fn hash(key: u32, value: u32, entries: u32) -> Result<OwnedFd> {
    create_map(MAP_TYPE_HASH, key, value, entries, "making a hash")
}

/// A table with room for one program.
pub fn jump_table() -> Result<OwnedFd> {
    create_map(MAP_TYPE_PROG_ARRAY, 4, 4, 1, "making a table of programs")
}

fn create_map(kind: u32, key: u32, value: u32, entries: u32, what: &str) -> Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
    }
    let mut attr = Create { kind, key, value, entries };
    // SAFETY: four numbers.
    let fd = unsafe { bpf(MAP_CREATE, &mut attr) }.during(|| what.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes the table's only entry this program.
pub fn point(table: &OwnedFd, program: BorrowedFd<'_>) -> Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        hole: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let (key, value) = (0u32, number(program));
    let mut attr = Update {
        map: number(table.as_fd()),
        hole: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: both pointers are of what lives until the call returns.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.during(|| "pointing to a program".into())?;
    Ok(())
}

/// From now on the kernel refuses every write to this map by a process.
pub fn freeze(map: BorrowedFd<'_>) -> Result<()> {
    let mut attr = number(map);
    // SAFETY: the map's number.
    unsafe { bpf(MAP_FREEZE, &mut attr) }.during(|| "freezing a map".into())?;
    Ok(())
}

/// Runs the program on whatever comes in by this interface (of the calling thread's namespace), while the link is held.
pub fn attach(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        program: u32,
        ifindex: u32,
        kind: u32,
        flags: u32,
        before: u32,
        reserved: u32,
        revision: u64,
    }
    let mut attr = Create {
        program: number(program),
        ifindex,
        kind: TCX_INGRESS,
        flags: 0,
        before: 0,
        reserved: 0,
        revision: 0,
    };
    // SAFETY: numbers alone.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }.during(|| format!("attaching to interface {ifindex}"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A packet on an interface.
pub struct Input<'a> {
    pub frame: &'a [u8],
    pub mark: u32,
    pub ifindex: u32,
}

/// What the program said last, and how many nanoseconds a run took.
pub fn run(program: BorrowedFd<'_>, input: &Input<'_>, repeat: u32) -> Result<(i32, f64)> {
    #[repr(C)]
    #[derive(Default)]
    struct TestRun {
        program: u32,
        said: u32,
        data_in_size: u32,
        data_out_size: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_in_size: u32,
        context_out_size: u32,
        context_in: u64,
        context_out: u64,
    }
    let mut context = [0u8; CONTEXT];
    context[8..12].copy_from_slice(&input.mark.to_ne_bytes());
    context[40..44].copy_from_slice(&input.ifindex.to_ne_bytes());
    let mut attr = TestRun {
        program: number(program),
        data_in_size: input.frame.len() as u32,
        data_in: input.frame.as_ptr() as u64,
        repeat,
        context_in_size: CONTEXT as u32,
        context_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: all pointers are of what lives until the call returns, and of the lengths told.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }.during(|| "a test-run".into())?;
    Ok((attr.said as i32, f64::from(attr.duration)))
}
