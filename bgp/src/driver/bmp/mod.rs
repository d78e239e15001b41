//! Collectors of BMP (RFC 7854): one task for each, which connects, writes what the peers' tasks hand it, and begins anew.
//!
//! ```text
//!   peers' tasks ──push──▶ Session: a queue ──▶ station task ──TCP──▶ collector
//!        ▲                                          │
//!        └──────── watch: sessions, statistics ◀────┘
//! ```
//! A collector gets everything a peer holds when it connects, then every UPDATE. One that does not read must not cost memory
//! or hold a peer up: when too much waits for it, its session is closed, and a new one begins with the whole state.

mod peer;
#[cfg(test)]
mod tests;

pub(super) use peer::Monitored;

use crate::bmp::Message;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at, sleep, timeout};

/// Octets of what happens that may wait for a collector; what a peer held when it connected comes on top.
const MOST_WAITING: usize = 16 << 20;
const CONNECT: Duration = Duration::from_secs(10);
/// Between attempts; it doubles up to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// For the last words.
const GOODBYE: Duration = Duration::from_secs(1);

/// A collector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    pub address: SocketAddr,
    /// Between two statistics reports; zero: none.
    pub statistics: Duration,
    /// Who we are: sysName and sysDescr.
    pub name: String,
    pub description: String,
}

/// How it goes with a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StationStatus {
    pub address: SocketAddr,
    pub connected: bool,
    /// Sessions that began.
    pub sessions: u64,
    /// Messages that were written.
    pub messages: u64,
    /// Why there is no session, or why the last one ended.
    pub error: Option<String>,
}

/// All collectors; clones are of the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Stations {
    tasks: Arc<Mutex<BTreeMap<Station, Running>>>,
    sessions: watch::Sender<Sessions>,
}

/// Those that are connected, with the number of statistics reports that were asked for.
type Sessions = Vec<(Arc<Session>, u64)>;

#[derive(Debug)]
struct Running {
    stop: Arc<Notify>,
    status: Arc<Mutex<StationStatus>>,
    task: JoinHandle<()>,
}

impl Stations {
    /// Those that stay keep their session; those that go are told. To be called inside a runtime.
    pub fn set(&self, wanted: Vec<Station>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|station, running| {
            let stays = wanted.contains(station);
            if !stays {
                running.stop.notify_one();
            }
            stays
        });
        for station in wanted {
            tasks.entry(station).or_insert_with_key(|station| self.start(station.clone()));
        }
    }

    fn start(&self, station: Station) -> Running {
        let stop = Arc::new(Notify::new());
        let status = StationStatus {
            address: station.address,
            connected: false,
            sessions: 0,
            messages: 0,
            error: None,
        };
        let status = Arc::new(Mutex::new(status));
        let task =
            Task { station, stop: stop.clone(), status: status.clone(), sessions: self.sessions.clone() };
        Running { stop, status, task: tokio::spawn(task.run()) }
    }

    pub fn status(&self) -> Vec<StationStatus> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.values().map(|running| told(&running.status).clone()).collect()
    }

    /// Takes leave of all.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for running in tasks.into_values() {
            running.stop.notify_one();
            let abort = running.task.abort_handle();
            if timeout(2 * GOODBYE, running.task).await.is_err() {
                abort.abort();
            }
        }
    }

    /// Nobody is told.
    pub fn abort(&self) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.values().for_each(|running| running.task.abort());
    }

    fn watch(&self) -> watch::Receiver<Sessions> {
        self.sessions.subscribe()
    }
}

fn told(status: &Mutex<StationStatus>) -> std::sync::MutexGuard<'_, StationStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection to a collector, as the peers' tasks see it.
#[derive(Debug)]
pub(super) struct Session {
    id: u64,
    /// Messages, and what they count for in `waiting`.
    queue: mpsc::UnboundedSender<(Vec<u8>, usize)>,
    /// Octets in the queue, without what is of a peer's state.
    waiting: AtomicUsize,
    /// Too much waited: it is over, and nothing is queued any more.
    over: AtomicBool,
    too_much: Notify,
}

impl Session {
    /// Something that has happened.
    fn push(&self, message: &Message) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let bytes = message.encode();
        let count = bytes.len();
        if self.waiting.fetch_add(count, Ordering::Relaxed) + count > MOST_WAITING {
            self.over.store(true, Ordering::Relaxed);
            self.too_much.notify_one();
            return;
        }
        // Nobody reads a session that has just ended.
        let _ = self.queue.send((bytes, count));
    }

    /// Of the state that a session begins with; no more than what the peers' tables hold.
    fn push_state(&self, message: &Message) {
        let _ = self.queue.send((message.encode(), 0));
    }
}

struct Task {
    station: Station,
    stop: Arc<Notify>,
    status: Arc<Mutex<StationStatus>>,
    sessions: watch::Sender<Sessions>,
}

/// Why a session with a collector ended.
enum End {
    Stopped,
    Lost(String),
}

impl Task {
    async fn run(self) {
        let mut wait = FIRST_WAIT;
        loop {
            let began = Instant::now();
            let end = tokio::select! {
                () = self.stop.notified() => return,
                connected = connect(self.station.address) => connected,
            };
            let error = match end {
                Ok(stream) => match self.serve(stream).await {
                    End::Stopped => return,
                    End::Lost(why) => why,
                },
                Err(error) => error.to_string(),
            };
            if began.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            self.tell(&error);
            tokio::select! {
                () = self.stop.notified() => return,
                () = sleep(wait) => {}
            }
            wait = (2 * wait).min(LONGEST_WAIT);
        }
    }

    fn tell(&self, error: &str) {
        let mut status = told(&self.status);
        if status.error.as_deref() != Some(error) {
            tracing::warn!(collector = %self.station.address, "BMP: {error}; tried again");
        }
        (status.connected, status.error) = (false, Some(error.to_owned()));
    }

    async fn serve(&self, stream: TcpStream) -> End {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let (queue, messages) = mpsc::unbounded_channel();
        let session = Arc::new(Session {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            queue,
            waiting: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            too_much: Notify::new(),
        });
        {
            let mut status = told(&self.status);
            (status.connected, status.error) = (true, None);
            status.sessions += 1;
        }
        tracing::info!(collector = %self.station.address, "BMP session up");
        let initiation = Message::Initiation {
            name: self.station.name.clone(),
            description: self.station.description.clone(),
        };
        session.push_state(&initiation);
        self.sessions.send_modify(|sessions| sessions.push((session.clone(), 0)));
        let end = self.write(stream, &session, messages).await;
        session.over.store(true, Ordering::Relaxed);
        self.sessions.send_modify(|sessions| sessions.retain(|(other, _)| other.id != session.id));
        end
    }

    async fn write(
        &self,
        stream: TcpStream,
        session: &Session,
        mut messages: mpsc::UnboundedReceiver<(Vec<u8>, usize)>,
    ) -> End {
        let (mut reader, mut writer) = stream.into_split();
        let mut nothing = [0; 64];
        let period = self.station.statistics;
        let mut reports = interval_at(Instant::now() + period, period.max(Duration::from_secs(1)));
        loop {
            tokio::select! {
                biased;
                () = self.stop.notified() => {
                    let last = Message::Termination { why: "stopped, or taken out of the configuration".into() };
                    // Who does not read now will see the connection end.
                    let _ = timeout(GOODBYE, writer.write_all(&last.encode())).await;
                    return End::Stopped;
                }
                () = session.too_much.notified() => return End::Lost(TOO_SLOW.into()),
                read = reader.read(&mut nothing) => match read {
                    // Section 3.2: a collector says nothing; what it says is passed over.
                    Ok(1..) => {}
                    Ok(0) => return End::Lost("the collector closed the connection".into()),
                    Err(error) => return End::Lost(error.to_string()),
                },
                _ = reports.tick(), if !period.is_zero() => self.ask_for_statistics(session.id),
                Some((message, count)) = messages.recv() => {
                    let written = tokio::select! {
                        () = session.too_much.notified() => return End::Lost(TOO_SLOW.into()),
                        () = self.stop.notified() => return End::Stopped,
                        written = writer.write_all(&message) => written,
                    };
                    if let Err(error) = written {
                        return End::Lost(error.to_string());
                    }
                    session.waiting.fetch_sub(count, Ordering::Relaxed);
                    told(&self.status).messages += 1;
                }
            }
        }
    }

    fn ask_for_statistics(&self, id: u64) {
        self.sessions.send_modify(|sessions| {
            sessions.iter_mut().filter(|(session, _)| session.id == id).for_each(|(_, asked)| *asked += 1);
        });
    }
}

const TOO_SLOW: &str = "the collector does not read what it is sent: the session begins anew";

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
    let stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(timed_out)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
