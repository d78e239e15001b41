//! Pages of the program's files that only the start has needed: they leave the process when the start is over.
//!
//! A start runs once through most of the program, and the kernel maps sixteen pages around each that is touched: two thirds of
//! the files are resident then, and an idle daemon touches few of them again. The page cache has them in any case. Given back, they are
//! the first that a node short of memory takes, and do not count as what the daemon's cgroup works with; what is wanted again
//! is mapped again, sixteen pages at a time, by a fault that reads no disk.

use nix::sys::mman::{MmapAdvise, madvise};
use std::{fs, io, ops::Range, ptr::NonNull};

/// Returns how many kB were mapped of what is given back.
///
/// # Errors
/// Only where /proc cannot be read. A mapping that the kernel does not let go (it is locked) stays.
pub fn give_back() -> io::Result<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    Ok(mappings(&smaps).iter().filter(|m| m.is_as_its_file()).filter_map(unmap).sum())
}

fn unmap(mapping: &Mapping) -> Option<u64> {
    let start = NonNull::new(mapping.range.start as *mut _)?;
    // Cold first: the page cache takes for used once more what is unmapped while it counts as used.
    for advice in [MmapAdvise::MADV_COLD, MmapAdvise::MADV_DONTNEED] {
        // SAFETY: nobody can write there and nobody has, so what is touched again is what the file has, as it was.
        unsafe { madvise(start, mapping.range.len(), advice) }.ok()?;
    }
    Some(mapping.resident)
}

/// What `/proc/PID/smaps` tells of one. Sizes are in kB.
#[derive(Debug, Default)]
struct Mapping {
    range: Range<usize>,
    private: bool,
    writable: bool,
    of_file: bool,
    resident: u64,
    /// Pages that are no longer the file's, relocated or with a debugger's breakpoint in them: in memory, and swapped out.
    anonymous: Option<u64>,
    swapped: Option<u64>,
}

impl Mapping {
    fn is_as_its_file(&self) -> bool {
        let of_its_own = [self.anonymous, self.swapped];
        // What cannot be read may be anything.
        self.of_file && self.private && !self.writable && of_its_own == [Some(0); 2]
    }

    /// Of `55d0c0a00000-55d0c1100000 r-xp 0071a000 fe:00 1234 /usr/bin/program`.
    fn of_head(range: &str, rest: &str) -> Option<Self> {
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let mut rest = rest.split_ascii_whitespace();
        let mode = rest.next()?;
        let of_file = rest.nth(3).is_some_and(|path| path.starts_with('/'));
        Some(Self {
            range,
            private: mode.ends_with('p'),
            writable: mode.contains('w'),
            of_file,
            ..Self::default()
        })
    }
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let Some((first, rest)) = line.split_once(' ') else { continue };
        let kb = || rest.trim().trim_end_matches(" kB").parse().ok();
        match (first, found.last_mut()) {
            ("Rss:", Some(mapping)) => mapping.resident = kb().unwrap_or(0),
            ("Anonymous:", Some(mapping)) => mapping.anonymous = kb(),
            ("Swap:", Some(mapping)) => mapping.swapped = kb(),
            _ if !first.ends_with(':') => found.extend(Mapping::of_head(first, rest)),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    use std::{fs::File, io::Write, num::NonZeroUsize, slice};

    const PAGE: usize = 4096;

    #[test]
    fn only_mappings_that_are_as_their_file_are_given_back() {
        let smaps = "\
55d0c0000000-55d0c0100000 r--p 00000000 fe:00 1234 /usr/bin/bulkheadd
Size:               1024 kB
Rss:                 700 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me sd
55d0c0100000-55d0c0300000 r-xp 00100000 fe:00 1234                       /usr/bin/bulkheadd (deleted)
Rss:                2000 kB
Anonymous:             0 kB
Swap:                  0 kB
55d0c0300000-55d0c0380000 r--p 00300000 fe:00 1234 /usr/bin/relocated
Rss:                 512 kB
Anonymous:           512 kB
Swap:                  0 kB
55d0c0380000-55d0c0384000 r--p 00380000 fe:00 1234 /usr/bin/relocated-and-swapped-out
Rss:                   0 kB
Anonymous:             0 kB
Swap:                 16 kB
55d0c0384000-55d0c0388000 r--p 00380000 fe:00 1234 /usr/bin/untold
Rss:                  16 kB
Anonymous:             0 kB
55d0c0388000-55d0c0390000 rw-p 00380000 fe:00 1234 /usr/bin/data
Rss:                  64 kB
Anonymous:             0 kB
Swap:                  0 kB
7f0000000000-7f0000010000 r--s 00000000 fe:00 99 /usr/lib/shared
Rss:                  64 kB
Anonymous:             0 kB
Swap:                  0 kB
7f0000010000-7f0000020000 r--p 00000000 00:00 0
Rss:                  64 kB
Anonymous:             0 kB
Swap:                  0 kB
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
";
        let given: Vec<_> = mappings(smaps)
            .into_iter()
            .filter(Mapping::is_as_its_file)
            .map(|m| (m.range, m.resident))
            .collect();
        let expected =
            [(0x55d0_c000_0000..0x55d0_c010_0000, 700), (0x55d0_c010_0000..0x55d0_c030_0000, 2000)];
        assert_eq!(given, expected);
    }

    /// A file of some pages, mapped and read.
    fn mapped(file: &File, pages: usize) -> &'static [u8] {
        let length = NonZeroUsize::new(pages * PAGE).unwrap();
        let (read, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping of a file that nobody shortens.
        let start = unsafe { mmap(None, length, read, private, file, 0) }.unwrap();
        // SAFETY: it has this length, and stays until the test's end.
        unsafe { slice::from_raw_parts(start.cast().as_ptr(), length.get()) }
    }

    fn resident(of: &[u8]) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = of.as_ptr() as usize;
        mappings(&smaps).iter().find(|m| m.range.start == start).unwrap().resident
    }

    #[test]
    fn what_is_given_back_is_not_resident_and_reads_as_before() {
        let pages = 64;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..pages * PAGE).map(|n| (n / PAGE) as u8 + 1).collect();
        file.write_all(&content).unwrap();
        let text = mapped(&file, pages);
        assert!(text == content);
        assert_eq!(resident(text), (pages * PAGE / 1024) as u64);
        // Itself, it runs on meanwhile.
        assert!(give_back().unwrap() >= (pages * PAGE / 1024) as u64);
        assert_eq!(resident(text), 0);
        assert!(text == content);
        // SAFETY: nobody reads it any more.
        unsafe { munmap(NonNull::new(text.as_ptr() as *mut _).unwrap(), text.len()) }.unwrap();
    }
}
