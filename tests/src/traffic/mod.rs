//! Traffic with a memory: what was sent, what arrived, when.
//!
//! - [`Sequence`]: numbered datagrams; counts losses.
//! - [`Connection`]: a long-lived TCP connection; knows when it was cut and that no byte was lost.
//! - [`rate`]: bytes a second as they stand on the wire.

mod connection;
pub mod rate;
mod sequence;

pub use connection::{Connection, ConnectionReport};
pub use sequence::{Sequence, SequenceReport};

use crate::{Context, Result};
use std::{
    io,
    net::TcpStream,
    os::fd::AsRawFd,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A moment that one thread writes and others read.
#[derive(Debug)]
struct LastHeard {
    origin: Instant,
    /// Nanoseconds after `origin`; 0: never.
    at: AtomicU64,
}

impl LastHeard {
    fn new() -> Self {
        Self { origin: Instant::now(), at: AtomicU64::new(0) }
    }

    fn now(&self) {
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.at.store(nanos.max(1), Ordering::Release);
    }

    fn get(&self) -> Option<Instant> {
        match self.at.load(Ordering::Acquire) {
            0 => None,
            nanos => Some(self.origin + Duration::from_nanos(nanos)),
        }
    }
}

/// Nothing came for as long as a read waits, or a machine that was halted for a moment has interrupted it.
fn is_no_end(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// The kernel's word on a connection, as one end sees it.
fn tcp_info(socket: &TcpStream) -> Result<libc::tcp_info> {
    // SAFETY: all-zero is a valid `tcp_info` (integers only).
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that large.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).during(|| "reading TCP_INFO".into());
    }
    Ok(info)
}

/// Puts the calling thread before others that want the processor: what is measured is the network.
fn first_in_line() {
    // SAFETY: takes numbers only; 0 is the calling thread. Without the right to it, the thread stays as it is.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -19) };
}
