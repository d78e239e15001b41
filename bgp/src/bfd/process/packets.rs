//! The packet thread: waits for packets, timers and commands, and does what the sessions say.

use super::hub::Event;
use super::sockets::{self, Listening};
use super::{ProcessError, sockets::Outgoing};
use crate::bfd::Key;
use crate::bfd::control::SessionInfo;
use crate::bfd::session::Settings;
use crate::bfd::sessions::{Arrival, Effect, Sessions};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Above every ordinary process; below what the kernel itself runs at this policy (50).
const PRIORITY: libc::c_int = 30;
/// Who wakes so much later than due was held up: a virtual machine that its host paused, a processor that the kernel kept.
const LATE: Duration = Duration::from_millis(20);

/// Packets of a socket in one turn: a flood of them must not keep timers from their time.
const MOST: usize = 1000;

pub enum Command {
    Configure(BTreeMap<Key, Settings>),
    List(u64),
    Stop,
}

/// A handle to the thread.
pub struct Packets {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Packets {
    pub fn tell(&self, command: Command) {
        // A thread that has ended says so to the hub by itself.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

pub fn start(hub: Sender<Event>) -> Result<Packets, ProcessError> {
    let listening = sockets::listen_all()?;
    let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|e| ProcessError::System { what: "make an eventfd", source: e.into() })?;
    let wake = Arc::new(wake);
    let (commands, queue) = mpsc::channel();
    let thread = Thread {
        epoch: Instant::now(),
        sessions: Sessions::default(),
        listening,
        outgoing: BTreeMap::new(),
        queue,
        wake: wake.clone(),
        hub,
        discarded: 0,
        stopping: false,
    };
    thread::Builder::new()
        .name("packets".into())
        .spawn(move || thread.run())
        .map_err(|source| ProcessError::System { what: "start a thread", source })?;
    Ok(Packets { commands, wake })
}

struct Thread {
    epoch: Instant,
    sessions: Sessions,
    listening: Vec<Listening>,
    outgoing: BTreeMap<Key, Outgoing>,
    queue: Receiver<Command>,
    wake: Arc<EventFd>,
    hub: Sender<Event>,
    /// Packets that no session could believe.
    discarded: u64,
    stopping: bool,
}

impl Thread {
    fn run(mut self) {
        become_real_time();
        while !(self.stopping && self.sessions.is_empty()) {
            let due = self.sessions.deadline();
            self.wait(due);
            // A process that was held up must not take that for silence. What was sent meanwhile is received before timers are
            // looked at; but the neighbour may have been held up by the same, and it has to be given the time to say so.
            let now = self.now();
            let late = due.map_or(Duration::ZERO, |due| now.saturating_sub(due));
            if late > LATE {
                self.sessions.held_up(now, late);
                let _ = self.hub.send(Event::HeldUp(late));
            }
            self.receive(now);
            self.obey();
            // By the time of before: who is held up from here on has not looked at what arrives meanwhile, and is late at the next turn.
            let effects = self.sessions.tick(now);
            self.perform(effects);
        }
        // The hub ends the process.
        let _ = self.hub.send(Event::Ended);
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn wait(&self, due: Option<Duration>) {
        let left = due.map(|at| at.saturating_sub(self.now()));
        let timeout = left.map(TimeSpec::from_duration);
        let mut fds: Vec<_> =
            self.listening.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing that waiting mends; without a pause it would be a busy loop.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }

    fn receive(&mut self, now: Duration) {
        let mut effects = Vec::new();
        for socket in &self.listening {
            let mut buffer = [0; sockets::BUFFER];
            for _ in 0..MOST {
                let Some(received) = socket.receive(&mut buffer) else { break };
                let arrival = Arrival {
                    bytes: &buffer[..received.length],
                    from: received.from,
                    to: received.to,
                    ifindex: received.ifindex,
                    ttl: received.ttl,
                    multihop: socket.multihop(),
                };
                match self.sessions.received(now, &arrival) {
                    Ok(of_packet) => effects.extend(of_packet),
                    Err(_) => self.discarded += 1,
                }
            }
        }
        self.perform(effects);
    }

    fn obey(&mut self) {
        // Level-triggered: reset before the queue is emptied.
        let _ = self.wake.read();
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Configure(_) if self.stopping => {}
                Command::Configure(wanted) => {
                    self.configure(&wanted);
                    self.report(None);
                }
                Command::List(client) => self.report(Some(client)),
                Command::Stop => {
                    self.stopping = true;
                    self.configure(&BTreeMap::new());
                }
            }
        }
    }

    fn configure(&mut self, wanted: &BTreeMap<Key, Settings>) {
        // Seeded by the kernel, for each anew.
        let chance = || RandomState::new().build_hasher().finish();
        let effects = self.sessions.configure(self.now(), wanted, chance);
        self.perform(effects);
    }

    fn report(&self, to: Option<u64>) {
        let sessions = self.sessions.iter().map(|(key, session)| SessionInfo::of(key, session)).collect();
        let _ = self.hub.send(Event::Listed(to, sessions, self.discarded));
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(key, packet) => {
                    if let Err(error) = self.outgoing.entry(key).or_default().send(&key, &packet.encode()) {
                        let _ = self.hub.send(Event::CannotSend(key, error));
                    }
                }
                Effect::Changed(key, change) => {
                    let _ = self.hub.send(Event::Changed(key, change));
                }
                Effect::Ended(key) => {
                    self.outgoing.remove(&key);
                }
            }
        }
    }
}

/// Without the right to it, detection works, and a busy node may look dead: said, and gone on.
fn become_real_time() {
    // What the kernel takes; musl's structure has more, and its sched_setscheduler does nothing but fail.
    let parameters: libc::c_int = PRIORITY;
    // SAFETY: `parameters` is the kernel's `struct sched_param` and lives through the call; 0 is this thread.
    let set =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const parameters) };
    if set != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "no real-time thread: give CAP_SYS_NICE, or a busy node may look dead to its neighbours");
    }
    let all = nix::sys::mman::MlockAllFlags::MCL_CURRENT | nix::sys::mman::MlockAllFlags::MCL_FUTURE;
    if let Err(error) = nix::sys::mman::mlockall(all) {
        tracing::warn!(%error, "memory is not locked: give CAP_IPC_LOCK, or a node that swaps may look dead");
    }
}
