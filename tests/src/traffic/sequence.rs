//! Numbered datagrams at an even pace, and the count of those that did not arrive.

use super::{LastHeard, is_no_end};
use crate::{Context, Netns, Result};
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long after the last datagram one may still arrive.
const GRACE: Duration = Duration::from_millis(500);
const TURN: Duration = Duration::from_millis(20);

/// Runs until [`Sequence::finish`].
pub struct Sequence {
    shared: Arc<Shared>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Received>>,
}

struct Shared {
    stop_sending: AtomicBool,
    stop_hearing: AtomicBool,
    sent: AtomicU64,
    heard: AtomicU64,
    last: LastHeard,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Received {
    distinct: u64,
    out_of_order: u64,
    longest_gap: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceReport {
    pub sent: u64,
    pub lost: u64,
    pub out_of_order: u64,
    /// Longest time without a datagram.
    pub longest_gap: Duration,
}

impl Sequence {
    /// From a socket in `from` to one bound to `address` in `to`, one datagram `every` so often.
    pub fn start(from: &Netns, to: &Netns, address: SocketAddr, every: Duration) -> Result<Self> {
        let inbox = to.run(|| UdpSocket::bind(address).during(|| format!("binding {address}")))?;
        setsockopt(&inbox, sockopt::RcvBufForce, &(8 << 20))?;
        inbox.set_read_timeout(Some(TURN))?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let outbox = from.run(|| Ok(UdpSocket::bind(any)?))?;
        outbox.connect(address).during(|| format!("a way to {address}"))?;
        let shared = Arc::new(Shared {
            stop_sending: AtomicBool::new(false),
            stop_hearing: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            last: LastHeard::new(),
        });
        let (s, r) = (shared.clone(), shared.clone());
        Ok(Self {
            shared,
            receiver: thread::spawn(move || receive(&inbox, &r)),
            sender: thread::spawn(move || send(&outbox, &s, every)),
        })
    }

    pub fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Acquire)
    }

    /// When the latest datagram arrived.
    pub fn last_heard(&self) -> Option<Instant> {
        self.shared.last.get()
    }

    pub fn finish(self) -> Result<SequenceReport> {
        self.shared.stop_sending.store(true, Ordering::Release);
        self.sender.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        let sent = self.shared.sent.load(Ordering::Acquire);
        let start = Instant::now();
        while self.shared.heard.load(Ordering::Acquire) < sent && start.elapsed() < GRACE {
            thread::sleep(Duration::from_millis(5));
        }
        self.shared.stop_hearing.store(true, Ordering::Release);
        let received = self.receiver.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        Ok(SequenceReport {
            sent,
            lost: sent.saturating_sub(received.distinct),
            out_of_order: received.out_of_order,
            longest_gap: received.longest_gap,
        })
    }
}

fn send(socket: &UdpSocket, shared: &Shared, every: Duration) -> Result<()> {
    let start = Instant::now();
    let mut number: u64 = 0;
    while !shared.stop_sending.load(Ordering::Acquire) {
        match socket.send(&number.to_be_bytes()) {
            Ok(_) => {}
            // An answer to an earlier datagram (port unreachable); this one was not sent: once more.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(e) => return Err(e).during(|| "sending a numbered datagram".into()),
        }
        number += 1;
        shared.sent.store(number, Ordering::Release);
        let due = start + every.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn receive(socket: &UdpSocket, shared: &Shared) -> Result<Received> {
    let mut tally = Tally::default();
    let mut buffer = [0; 64];
    let mut last: Option<Instant> = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                let now = Instant::now();
                let gap = last.map_or(Duration::ZERO, |l| now - l);
                last = Some(now);
                if let Some(number) = buffer.first_chunk() {
                    tally.arrived(u64::from_be_bytes(*number), gap);
                }
                shared.last.now();
                shared.heard.store(tally.received.distinct, Ordering::Release);
            }
            Err(e) if is_no_end(&e) => {
                if shared.stop_hearing.load(Ordering::Acquire) {
                    return Ok(tally.received);
                }
            }
            Err(e) => return Err(e).during(|| "receiving a numbered datagram".into()),
        }
    }
}

/// Which numbers came, each counted once.
#[derive(Default)]
struct Tally {
    seen: Vec<u64>,
    highest: Option<u64>,
    received: Received,
}

impl Tally {
    fn arrived(&mut self, number: u64, gap: Duration) {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit == 0 {
            self.seen[word] |= bit;
            self.received.distinct += 1;
        }
        self.received.out_of_order += u64::from(self.highest.is_some_and(|h| number < h));
        self.highest = self.highest.max(Some(number));
        self.received.longest_gap = self.received.longest_gap.max(gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_comes_twice_counts_once() {
        let mut tally = Tally::default();
        for number in [0, 1, 1, 200, 3] {
            tally.arrived(number, Duration::ZERO);
        }
        assert_eq!((tally.received.distinct, tally.received.out_of_order), (4, 1));
    }
}
