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

use std::{
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
