//! [`Peer`]: the state machine's surface, the Idle state, and what all states share.

use super::negotiate::our_open;
use super::state::{Dial, Direction, Handshake, Idle, Opening, Phase, State, StateName};
use super::{ConnId, Connection, Input, Negotiated, Output, PeerError, Settings, Stop, Timers};
use crate::Family;
use crate::wire::notification::{Notification, cease, code};
use crate::wire::{Context, Framer, Message, Refresh, Update};
use std::io::ErrorKind;
use std::time::Duration;

/// RFC 4271 section 8.2.2: how long an OPEN is waited for, and here the session as well.
const OPEN_WAIT: Duration = Duration::from_secs(240);
/// The wait after the first failure; it doubles up to the connect-retry time.
const FIRST_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Peer {
    pub(super) settings: Settings,
    state: State,
    since: Duration,
    pub(super) last_error: Option<PeerError>,
    pub(super) established_before: bool,
    /// In a row, without a session between them.
    pub(super) failures: u32,
    random: u64,
}

/// [`Input`] with bytes cut into messages.
pub(super) enum Step {
    Start,
    Stop(Stop),
    Connected(Connection),
    ConnectFailed(ErrorKind),
    Incoming(Connection),
    Message(ConnId, Result<Message, Notification>),
    Closed(ConnId, Option<ErrorKind>),
    Advertise(Update),
    Refresh(Family, Refresh),
    Written { id: ConnId, all: bool },
    PathDown { independent: bool },
    Tick,
}

impl Peer {
    /// A stopped neighbour. `now`, here and everywhere: since an epoch of the caller's, never going back.
    pub fn new(settings: Settings, now: Duration) -> Peer {
        let random = settings.seed;
        let state = State::Idle(Idle { restart_at: None });
        Peer { settings, state, since: now, last_error: None, established_before: false, failures: 0, random }
    }

    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let step = match input {
            Input::Received(id, bytes) => {
                self.state.push(id, &bytes);
                while let Some(message) = self.state.next_message(id) {
                    self.step(now, Step::Message(id, message), &mut out);
                }
                return out;
            }
            Input::Start => Step::Start,
            Input::Stop(stop) => Step::Stop(stop),
            Input::Connected(connection) => Step::Connected(connection),
            Input::ConnectFailed(kind) => Step::ConnectFailed(kind),
            Input::Incoming(connection) => Step::Incoming(connection),
            Input::Closed(id, kind) => Step::Closed(id, kind),
            Input::Advertise(update) => Step::Advertise(update),
            Input::Refresh(family, meaning) => Step::Refresh(family, meaning),
            Input::Written { id, all } => Step::Written { id, all },
            Input::PathDown { independent } => Step::PathDown { independent },
            Input::TimerTick => Step::Tick,
        };
        self.step(now, step, &mut out);
        out
    }

    pub fn set_timers(&mut self, timers: Timers) {
        self.settings.timers = timers;
    }

    /// When [`Input::TimerTick`] is due next.
    pub fn deadline(&self) -> Option<Duration> {
        self.state.deadline()
    }

    pub fn state(&self) -> StateName {
        self.state.name()
    }

    /// When the present state was entered.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Why there is no session; `None` once there is one.
    pub fn last_error(&self) -> Option<&PeerError> {
        self.last_error.as_ref()
    }

    /// Of the established session.
    /// The connection of the session.
    pub fn session(&self) -> Option<ConnId> {
        match &self.state {
            State::Established(established) => Some(established.session.connection.id),
            _ => None,
        }
    }

    pub fn negotiated(&self) -> Option<&Negotiated> {
        match &self.state {
            State::Established(established) => Some(&established.session.negotiated),
            _ => None,
        }
    }

    fn step(&mut self, now: Duration, step: Step, out: &mut Vec<Output>) {
        let before = self.state.name();
        let state = std::mem::replace(&mut self.state, State::Idle(Idle { restart_at: None }));
        self.state = match state {
            State::Idle(idle) => self.in_idle(idle, now, step, out),
            State::Opening(opening) => self.in_opening(opening, now, step, out),
            State::Established(established) => self.in_established(established, now, step, out),
        };
        if self.state.name() != before {
            self.since = now;
        }
    }

    fn in_idle(&mut self, idle: Idle, now: Duration, step: Step, out: &mut Vec<Output>) -> State {
        match step {
            Step::Start => self.dial(now, out),
            Step::Tick if idle.restart_at.is_some_and(|at| at <= now) => self.dial(now, out),
            Step::Stop(stop) => {
                self.last_error = Some(stop.reason());
                State::Idle(Idle { restart_at: None })
            }
            Step::Connected(connection) | Step::Incoming(connection) => {
                out.push(Output::Close(connection.id));
                State::Idle(idle)
            }
            Step::Tick
            | Step::ConnectFailed(_)
            | Step::Message(..)
            | Step::Closed(..)
            | Step::Advertise(_)
            | Step::Refresh(..)
            | Step::Written { .. }
            | Step::PathDown { .. } => State::Idle(idle),
        }
    }

    fn dial(&mut self, now: Duration, out: &mut Vec<Output>) -> State {
        State::Opening(Opening { dial: self.call(now, out), handshakes: Vec::new() })
    }

    pub(super) fn call(&mut self, now: Duration, out: &mut Vec<Output>) -> Dial {
        if self.settings.passive {
            return Dial::Passive;
        }
        out.push(Output::Connect);
        Dial::Calling { until: now + self.longest_wait() }
    }

    fn longest_wait(&self) -> Duration {
        Duration::from_secs(self.settings.timers.connect_retry.into()).max(FIRST_WAIT)
    }

    /// RFC 9687 section 3.
    pub(super) fn send_hold(&self) -> Duration {
        let seconds = match self.settings.timers.send_hold {
            0 => (2 * u64::from(self.settings.timers.hold)).max(480),
            seconds => seconds.into(),
        };
        Duration::from_secs(seconds)
    }

    /// Counts a failure and says until when to wait before the next attempt: longer each time, and a
    /// little different each time (RFC 4271 section 10: 75 to 100 %), so that two ends do not stay in step.
    pub(super) fn wait_after_failure(&mut self, now: Duration) -> Duration {
        let doubled = FIRST_WAIT * 2u32.saturating_pow(self.failures.min(12));
        self.failures = self.failures.saturating_add(1);
        let percent = 75 + (self.next_random() % 26) as u32;
        now + doubled.min(self.longest_wait()) * percent / 100
    }

    /// splitmix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn note_error(&mut self, error: PeerError) {
        if !self.last_error.as_ref().is_some_and(|known| known.tells_more_than(&error)) {
            self.last_error = Some(error);
        }
    }

    /// Sends our OPEN on a new connection.
    pub(super) fn open(
        &self,
        connection: Connection,
        direction: Direction,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Handshake {
        let open = Message::Open(our_open(&self.settings, self.established_before));
        out.push(Output::Send(connection.id, open.encode(Context::default())));
        let expires = now + OPEN_WAIT;
        Handshake { connection, direction, framer: Framer::default(), expires, phase: Phase::OpenSent }
    }
}

/// Closes a connection, telling why if there is something to tell.
pub(super) fn close(id: ConnId, why: Option<Notification>, out: &mut Vec<Output>) {
    if let Some(notification) = why {
        out.push(Output::Send(id, Message::Notification(notification).encode(Context::default())));
    }
    out.push(Output::Close(id));
}

pub(super) fn collision() -> Notification {
    Notification::new(code::CEASE, cease::COLLISION)
}

impl Stop {
    pub(super) fn notification(&self) -> Option<Notification> {
        match self {
            Stop::Restart => None,
            Stop::Deconfigured => Some(Notification::new(code::CEASE, cease::DECONFIGURED)),
            Stop::Shutdown(text) => Some(Notification::shutdown(text)),
            Stop::TooManyPrefixes { family, limit, .. } => {
                let [high, low] = family.afi().to_be_bytes();
                let data = [&[high, low, family.safi()][..], &limit.to_be_bytes()].concat();
                Some(Notification::with_data(code::CEASE, cease::MAX_PREFIXES, data))
            }
        }
    }

    /// When to begin anew by oneself.
    pub(super) fn retry(&self) -> Option<Duration> {
        match self {
            Stop::TooManyPrefixes { retry, .. } => *retry,
            Stop::Restart | Stop::Deconfigured | Stop::Shutdown(_) => None,
        }
    }

    pub(super) fn reason(self) -> PeerError {
        match self {
            Stop::Restart => PeerError::Stopped,
            Stop::Deconfigured => PeerError::Deconfigured,
            Stop::Shutdown(text) => PeerError::Shutdown(text),
            Stop::TooManyPrefixes { family, limit, retry } => {
                PeerError::TooManyPrefixes { family, limit, retry }
            }
        }
    }
}
