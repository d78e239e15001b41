//! The calls of bpf(2) that aya does not offer: batches (Linux 5.6), what a pinned link is attached to (6.6); and the wait
//! for packets in flight. Nothing here knows what the bytes mean.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// Plain bytes to the kernel: any bit pattern is a value, no padding, no pointer.
///
/// # Safety
/// The implementor promises just that.
pub unsafe trait Plain: Copy + 'static {}

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// # Safety
/// `attr` is laid out as the command wants it, and its pointers are valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: by contract of this function.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn fd_number(map: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    map.as_raw_fd().unsigned_abs()
}

/// Writes `values` to consecutive entries of an array from `first` on.
pub fn write_array<V: Plain>(map: BorrowedFd<'_>, first: u32, values: &[V]) -> io::Result<()> {
    let Ok(count) = u32::try_from(values.len()) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let keys: Vec<u32> = (first..).take(values.len()).collect();
    let mut attr = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: fd_number(map),
        ..Batch::default()
    };
    if count == 0 {
        return Ok(());
    }
    // SAFETY: both slices hold `count` entries of the map's key and value sizes, and outlive the call.
    unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }?;
    if attr.count == count { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads `count` consecutive entries of an array from `first` on.
pub fn read_array<V: Plain>(map: BorrowedFd<'_>, first: u32, count: u32) -> io::Result<Vec<V>> {
    // The kernel goes on behind the key it is given.
    let mut cursor = first.checked_sub(1).map(u64::from);
    let (values, _) = read_batch::<u32, V>(map, &mut cursor, count)?;
    if values.len() == count as usize {
        Ok(values.into_iter().map(|(_, value)| value).collect())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// The next entries behind `cursor` (`None`: from the beginning), at most `room`; and whether there may be more.
///
/// # Errors
/// `ENOSPC`: a hash bucket holds more than `room`; nothing was read.
pub fn read_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    cursor: &mut Option<u64>,
    room: u32,
) -> io::Result<(Vec<(K, V)>, bool)> {
    let mut keys = vec![MaybeUninit::<K>::zeroed(); room as usize];
    let mut values = vec![MaybeUninit::<V>::zeroed(); room as usize];
    let from = cursor.unwrap_or_default();
    let mut to = 0u64;
    let mut attr = Batch {
        in_batch: if cursor.is_some() { &raw const from as u64 } else { 0 },
        out_batch: &raw mut to as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: fd_number(map),
        ..Batch::default()
    };
    // SAFETY: both vectors have room for `room` entries of the map's key and value sizes; a cursor is at most 8 bytes.
    let more = match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => true,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => false,
        Err(e) => return Err(e),
    };
    *cursor = Some(to);
    let read = keys.iter().zip(&values).take(attr.count as usize);
    // SAFETY: plain bytes, zeroed at first: every pattern is a value.
    let entries = read.map(|(k, v)| unsafe { (k.assume_init(), v.assume_init()) }).collect();
    Ok((entries, more))
}

/// A pinned object; `None`: nothing is pinned there.
fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Get {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a string that outlives the call.
    match unsafe { bpf(OBJ_GET, &mut Get { path: name.as_ptr() as u64, fd: 0, flags: 0 }) } {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The interface that a pinned tcx link is attached to; 0 if it is gone. `None`: nothing is pinned there.
pub fn pinned_link_interface(path: &Path) -> io::Result<Option<u32>> {
    // `tcx`: the interface's index comes first.
    Ok(link_target(path)?.map(|target| target as u32))
}

/// The id (inode) of the cgroup that a pinned link is attached to; 0 if it is gone. `None`: nothing is pinned there.
pub fn pinned_link_cgroup(path: &Path) -> io::Result<Option<u64>> {
    link_target(path)
}

/// The first eight bytes of the union in `struct bpf_link_info`, the lowest first.
fn link_target(path: &Path) -> io::Result<Option<u64>> {
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        program: u32,
        hole: u32,
        target: [u8; 8],
    }
    #[repr(C)]
    struct Info {
        fd: u32,
        len: u32,
        info: u64,
    }
    let Some(fd) = pinned(path)? else { return Ok(None) };
    let mut info = LinkInfo::default();
    let mut attr =
        Info { fd: fd_number(fd.as_fd()), len: size_of::<LinkInfo>() as u32, info: &raw mut info as u64 };
    // SAFETY: the kernel writes at most `len` bytes to `info`.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(Some(u64::from_ne_bytes(info.target)))
}

/// Puts another program in the place of a pinned link's, in one step.
pub fn update_pinned_link(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let Some(link) = pinned(path)? else { return Err(io::ErrorKind::NotFound.into()) };
    let (link, program) = (fd_number(link.as_fd()), fd_number(program));
    // SAFETY: descriptors that outlive the call.
    unsafe { bpf(LINK_UPDATE, &mut Update { link, program, flags: 0, old_program: 0 }) }.map(drop)
}

/// Detaches a pinned link; on return no packet meets its program any more. Removing the pin would do it some time later.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    match pinned(path)? {
        // SAFETY: a descriptor.
        Some(fd) => unsafe { bpf(LINK_DETACH, &mut fd_number(fd.as_fd())) }.map(drop),
        None => Ok(()),
    }
}

/// A map of maps that no program has, for what the kernel promises of a change of one: when the call returns, no program
/// that was running before it still is (`maybe_wait_bpf_programs`, Linux 5.0 and later).
///
/// `membarrier` would wait for the same, but the kernel refuses it on nodes with `nohz_full` processors.
pub struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Barrier {
    pub fn new() -> io::Result<Self> {
        const ARRAY: u32 = 2;
        const ARRAY_OF_MAPS: u32 = 12;
        let word = size_of::<u32>() as u32;
        let attr = Create { key_size: word, value_size: word, max_entries: 1, ..Create::default() };
        let inner = make(Create { map_type: ARRAY, ..attr })?;
        let inner_map_fd = fd_number(inner.as_fd());
        let outer = make(Create { map_type: ARRAY_OF_MAPS, inner_map_fd, ..attr })?;
        Ok(Self { outer, inner })
    }

    /// Returns when every packet that was in a program before the call has left it (an RCU grace period).
    pub fn wait(&self) -> io::Result<()> {
        #[repr(C)]
        struct Update {
            map_fd: u32,
            reserved: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (key, value) = (0u32, fd_number(self.inner.as_fd()));
        let mut attr = Update {
            map_fd: fd_number(self.outer.as_fd()),
            reserved: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: key and value are four bytes, as the map was made, and outlive the call.
        unsafe { bpf(MAP_UPDATE, &mut attr) }.map(drop)
    }
}

/// The head of `union bpf_attr` for a new map.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
}

fn make(mut attr: Create) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { bpf(MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
