//! One long-lived TCP connection that carries a counter, so that a missing, doubled or foreign byte shows.

use super::{LastHeard, is_no_end, tcp_info};
use crate::{Context, Error, Netns, Result};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const CONNECT: Duration = Duration::from_secs(3);
const TURN: Duration = Duration::from_millis(50);
/// How long a healthy connection may take to deliver its rest.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs until [`Connection::finish`] or dropped.
pub struct Connection {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<Result<u64>>>,
    reader: Option<JoinHandle<Result<()>>>,
    client: TcpStream,
    server: TcpStream,
    peer: SocketAddr,
}

struct Shared {
    stop_writing: AtomicBool,
    stop_reading: AtomicBool,
    /// Bytes that arrived in order.
    heard: AtomicU64,
    last: LastHeard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    pub sent: u64,
    /// In order and unchanged.
    pub received: u64,
    /// TCP segments with data that left and never arrived. What is sent again without need, because a busy machine
    /// was late to acknowledge it, arrives twice and is none.
    pub lost: u32,
}

impl Connection {
    /// From `from` to a listener made at `address` in `to`; eight bytes `every` so often.
    pub fn start(from: &Netns, to: &Netns, address: SocketAddr, every: Duration) -> Result<Self> {
        let listener = to.run(|| TcpListener::bind(address).during(|| format!("binding {address}")))?;
        let client = from.run(|| {
            TcpStream::connect_timeout(&address, CONNECT).during(|| format!("connecting to {address}"))
        })?;
        let (server, peer) = listener.accept()?;
        client.set_nodelay(true)?;
        client.set_write_timeout(Some(TURN))?;
        server.set_read_timeout(Some(TURN))?;
        let shared = Arc::new(Shared {
            stop_writing: AtomicBool::new(false),
            stop_reading: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            last: LastHeard::new(),
        });
        let (w, r) = (shared.clone(), shared.clone());
        let (writing, reading) = (client.try_clone()?, server.try_clone()?);
        Ok(Self {
            shared,
            writer: Some(thread::spawn(move || write(writing, &w, every))),
            reader: Some(thread::spawn(move || read(reading, &r))),
            client,
            server,
            peer,
        })
    }

    /// The caller's address, as the listener sees it.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Bytes delivered so far.
    pub fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Acquire)
    }

    /// When the latest byte was delivered.
    pub fn last_heard(&self) -> Option<Instant> {
        self.shared.last.get()
    }

    /// Segments with data that have left and not arrived so far; those that are on their way count.
    pub fn missing(&self) -> Result<u32> {
        // What arrived first: what leaves between the two looks is missing and not negative.
        let arrived = tcp_info(&self.server)?.tcpi_data_segs_in;
        Ok(tcp_info(&self.client)?.tcpi_data_segs_out.saturating_sub(arrived))
    }

    /// Ends a healthy connection: every byte sent must have been delivered.
    pub fn finish(mut self) -> Result<ConnectionReport> {
        self.shared.stop_writing.store(true, Ordering::Release);
        let sent = join(self.writer.take())?.unwrap_or_default();
        let start = Instant::now();
        while self.heard() < sent && start.elapsed() < DRAIN {
            thread::sleep(Duration::from_millis(2));
        }
        let mut lost = self.missing()?;
        while lost > 0 && start.elapsed() < DRAIN {
            thread::sleep(Duration::from_millis(2));
            lost = self.missing()?;
        }
        self.client.shutdown(Shutdown::Write)?;
        self.shared.stop_reading.store(true, Ordering::Release);
        join(self.reader.take())?;
        Ok(ConnectionReport { sent, received: self.heard(), lost })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.stop_writing.store(true, Ordering::Release);
        self.shared.stop_reading.store(true, Ordering::Release);
        // The threads leave within a turn; what a cut connection says at its end is of no interest.
        let _ = join(self.writer.take());
        let _ = join(self.reader.take());
    }
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<Option<T>> {
    thread.map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).transpose()
}

/// Writes 0, 1, 2, ... as eight bytes each; the number of bytes the kernel took.
fn write(mut socket: TcpStream, shared: &Shared, every: Duration) -> Result<u64> {
    let mut sent: u64 = 0;
    while !shared.stop_writing.load(Ordering::Acquire) {
        let bytes = (sent / 8).to_be_bytes();
        match socket.write(&bytes[(sent % 8) as usize..]) {
            Ok(n) => sent += n as u64,
            Err(e) if is_no_end(&e) => {}
            Err(e) => return Err(e).during(|| "writing to a long-lived connection".into()),
        }
        if sent.is_multiple_of(8) {
            thread::sleep(every);
        }
    }
    // The rest of a number begun: what was said must be whole.
    while !sent.is_multiple_of(8) && !shared.stop_reading.load(Ordering::Acquire) {
        let bytes = (sent / 8).to_be_bytes();
        sent += socket.write(&bytes[(sent % 8) as usize..]).unwrap_or(0) as u64;
    }
    Ok(sent)
}

fn read(mut socket: TcpStream, shared: &Shared) -> Result<()> {
    let mut heard: u64 = 0;
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                for byte in &buffer[..n] {
                    if *byte != (heard / 8).to_be_bytes()[(heard % 8) as usize] {
                        return Err(Error::Unmet(format!("byte {heard} of a connection arrived changed")));
                    }
                    heard += 1;
                }
                shared.last.now();
                shared.heard.store(heard, Ordering::Release);
            }
            Err(e) if is_no_end(&e) => {
                if shared.stop_reading.load(Ordering::Acquire) {
                    return Ok(());
                }
            }
            Err(e) => return Err(e).during(|| "reading from a long-lived connection".into()),
        }
    }
}
