//! One session (RFC 5880 section 6): packets and a time in, packets and states out.
//!
//! ```text
//!               Down received                       Init or Up received
//!    ┌──────┐ ───────────────▶ ┌──────┐ ──────────────────────────────▶ ┌────┐
//!    │ Down │                  │ Init │                                 │ Up │
//!    └──────┘ ◀─────────────── └──────┘                                 └────┘
//!        ▲  │   time expired, AdminDown received                          ▲ │
//!        │  └──────────────────── Init received ──────────────────────────┘ │
//!        └───────── time expired, Down or AdminDown received ───────────────┘
//!    AdminDown: by our own will, from any state; ends the session.
//! ```
//!
//! No socket, clock or log in here: [`Session::deadline`] says when [`Session::tick`] is due; a tick too many does
//! nothing. Time is since an epoch of the caller's choice.

use super::packet::{Diagnostic, Packet, State};
use std::num::NonZeroU32;
use std::time::Duration;

/// Sent at most so often while the session is not up (RFC 5880 section 6.8.3).
const SLOW: Duration = Duration::from_secs(1);

/// So often in a row is a hold-up taken into account without a packet between: a path that is dead is found dead on whatever machine.
const MOST_HOLD_UPS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// We would like to send no oftener.
    pub desired_min_tx: Duration,
    /// We can take packets no oftener.
    pub required_min_rx: Duration,
    /// So many packets missing, and the path is dead. At least 1.
    pub detect_mult: u8,
}

impl Settings {
    /// 3 x 300 ms.
    pub const DEFAULT: Self = Self {
        desired_min_tx: Duration::from_millis(300),
        required_min_rx: Duration::from_millis(300),
        detect_mult: 3,
    };
}

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Send(Packet),
    /// The state has changed.
    Changed(Change),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "bfd", derive(serde::Serialize, serde::Deserialize))]
pub struct Change {
    pub from: State,
    pub to: State,
    /// Why, as we see it.
    pub diagnostic: Diagnostic,
    /// The neighbour stopped BFD on purpose: that says nothing of the path (RFC 5882 section 4.2).
    pub neighbor_admin_down: bool,
    /// The neighbour's BFD does not share the fate of its control plane, so its silence is the path's (RFC 5882 section 4.3).
    pub neighbor_control_plane_independent: bool,
    /// The neighbour's BFD has forgotten the session and begins another: its process is a new one.
    #[cfg_attr(feature = "bfd", serde(default))]
    pub neighbor_began_anew: bool,
}

impl Change {
    /// The path was alive and is dead. A neighbour whose BFD shares the fate of its control plane and begins anew has
    /// restarted (RFC 5882 section 4.3): it is heard, so that the path is not what has failed.
    pub fn is_path_down(&self) -> bool {
        let restarted = self.neighbor_began_anew && !self.neighbor_control_plane_independent;
        self.from == State::Up && self.to == State::Down && !self.neighbor_admin_down && !restarted
    }
}

/// What the last packet said.
#[derive(Clone, Copy, Debug)]
struct Remote {
    /// With the last packet.
    began_anew: bool,
    discriminator: u32,
    state: State,
    control_plane_independent: bool,
    demand: bool,
    detect_mult: u8,
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

impl Remote {
    /// RFC 5880 section 6.8.1: before the first packet. Its interval is 1 microsecond, which is no limit.
    const UNKNOWN: Self = Self {
        began_anew: false,
        discriminator: 0,
        state: State::Down,
        control_plane_independent: false,
        demand: false,
        detect_mult: 1,
        desired_min_tx: Duration::ZERO,
        required_min_rx: Duration::from_micros(1),
    };
}

#[derive(Debug)]
pub struct Session {
    settings: Settings,
    discriminator: NonZeroU32,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    /// The intervals that hold until a poll sequence is answered (RFC 5880 section 6.8.3).
    tx_in_use: Duration,
    rx_in_use: Duration,
    polling: bool,
    sent: Option<Duration>,
    /// The share of the interval to wait before the next packet, in percent.
    jitter: u32,
    detect_at: Option<Duration>,
    /// Since the last packet.
    hold_ups: u8,
    /// AdminDown is told until then.
    ends_at: Option<Duration>,
    fell: Option<Change>,
    chance: u64,
}

impl Session {
    /// The first packet is due at once. `seed` should differ between sessions.
    pub fn new(settings: Settings, discriminator: NonZeroU32, seed: u64) -> Self {
        let mut session = Self {
            settings,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: Remote::UNKNOWN,
            tx_in_use: settings.desired_min_tx.max(SLOW),
            rx_in_use: settings.required_min_rx,
            polling: false,
            sent: None,
            jitter: 100,
            detect_at: None,
            hold_ups: 0,
            ends_at: None,
            fell: None,
            chance: seed | 1,
        };
        session.draw_jitter();
        session
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// How it last left the state Up.
    pub fn fell(&self) -> Option<Change> {
        self.fell
    }

    pub fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// After so long a silence the path is dead.
    pub fn detection_time(&self) -> Duration {
        self.rx_in_use.max(self.remote.desired_min_tx) * u32::from(self.remote.detect_mult)
    }

    /// What we send at, before jitter; None: the neighbour wants nothing.
    pub fn transmit_interval(&self) -> Option<Duration> {
        let wanted = !self.remote.required_min_rx.is_zero();
        // RFC 5880 section 6.6: in demand mode nothing is sent but polls.
        let silent = self.remote.demand && self.state == State::Up && self.remote.state == State::Up;
        (wanted && (!silent || self.polling)).then(|| self.tx_in_use.max(self.remote.required_min_rx))
    }

    /// When [`Self::tick`] is due next.
    pub fn deadline(&self) -> Option<Duration> {
        [self.transmit_at(), self.detect_at, self.ends_at].into_iter().flatten().min()
    }

    /// AdminDown has been told for long enough: to be forgotten.
    pub fn is_over(&self, now: Duration) -> bool {
        self.ends_at.is_some_and(|at| at <= now)
    }

    fn transmit_at(&self) -> Option<Duration> {
        let interval = self.transmit_interval()?;
        Some(self.sent.map_or(Duration::ZERO, |sent| sent + interval * self.jitter / 100))
    }

    pub fn received(&mut self, now: Duration, packet: &Packet) -> Vec<Output> {
        let mut outputs = Vec::new();
        let discriminator = packet.my_discriminator.get();
        self.remote = Remote {
            began_anew: ![0, discriminator].contains(&self.remote.discriminator),
            discriminator,
            state: packet.state,
            control_plane_independent: packet.control_plane_independent,
            demand: packet.demand,
            detect_mult: packet.detect_mult,
            desired_min_tx: Duration::from_micros(packet.desired_min_tx.into()),
            required_min_rx: Duration::from_micros(packet.required_min_rx.into()),
        };
        if packet.is_final && self.polling {
            self.polling = false;
            self.settle_intervals();
        }
        if self.state == State::AdminDown {
            return outputs;
        }
        let before = self.state;
        match (packet.state, self.state) {
            (State::AdminDown, State::Init | State::Up) | (State::Down, State::Up) => {
                self.enter(State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN, &mut outputs);
            }
            (State::Down, State::Down) => self.enter(State::Init, self.diagnostic, &mut outputs),
            (State::Init, State::Down) | (State::Init | State::Up, State::Init) => {
                self.enter(State::Up, Diagnostic::NONE, &mut outputs);
            }
            _ => {}
        }
        self.detect_at = Some(now + self.detection_time());
        self.hold_ups = 0;
        if packet.poll {
            outputs.push(Output::Send(self.packet(true)));
        }
        if self.state != before {
            // What the neighbour does not know yet is told at once (section 6.8.7).
            self.send(now, &mut outputs);
        }
        outputs
    }

    /// Nobody could hear or say anything here for so long, so that the neighbour's silence says nothing of the path. It is given
    /// as long, and at most what it is given after a packet.
    pub fn held_up(&mut self, now: Duration, by: Duration) {
        let latest = now + self.detection_time();
        if let Some(at) = self.detect_at.as_mut().filter(|_| self.hold_ups < MOST_HOLD_UPS) {
            *at = (*at + by).min(latest).max(*at);
            self.hold_ups += 1;
        }
    }

    pub fn tick(&mut self, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.detect_at.is_some_and(|at| at <= now) {
            self.detect_at = None;
            let falls = matches!(self.state, State::Init | State::Up);
            if falls {
                self.enter(State::Down, Diagnostic::DETECTION_TIME_EXPIRED, &mut outputs);
            }
            // It must introduce itself anew (section 6.8.1).
            self.remote = Remote::UNKNOWN;
            if falls {
                self.send(now, &mut outputs);
            }
        }
        if self.transmit_at().is_some_and(|at| at <= now) {
            self.send(now, &mut outputs);
        }
        outputs
    }

    /// New intervals without a new session. What makes the neighbour wait longer holds once it has agreed.
    pub fn configure(&mut self, now: Duration, settings: Settings) -> Vec<Output> {
        let mut outputs = Vec::new();
        if settings == self.settings || self.state == State::AdminDown {
            return outputs;
        }
        self.settings = settings;
        if self.state == State::Up {
            self.polling = true;
            self.tx_in_use = self.tx_in_use.min(settings.desired_min_tx);
            self.rx_in_use = self.rx_in_use.max(settings.required_min_rx);
            self.send(now, &mut outputs);
        } else {
            self.settle_intervals();
        }
        outputs
    }

    /// Ends the session on purpose: the neighbour is told, and takes the path for alive.
    pub fn admin_down(&mut self, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.state != State::AdminDown {
            self.enter(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN, &mut outputs);
            self.detect_at = None;
            self.ends_at = Some(now + self.neighbors_detection_time());
            self.send(now, &mut outputs);
        }
        outputs
    }

    /// How long the neighbour waits for us (section 6.8.16: AdminDown is told for so long).
    fn neighbors_detection_time(&self) -> Duration {
        self.tx_in_use.max(self.remote.required_min_rx) * u32::from(self.settings.detect_mult)
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic, outputs: &mut Vec<Output>) {
        let from = std::mem::replace(&mut self.state, state);
        self.diagnostic = diagnostic;
        self.settle_intervals();
        // Up is from slow to the configured interval, which the neighbour must know.
        self.polling = state == State::Up;
        let change = Change {
            from,
            to: state,
            diagnostic,
            neighbor_admin_down: self.remote.state == State::AdminDown,
            neighbor_control_plane_independent: self.remote.control_plane_independent,
            neighbor_began_anew: self.remote.began_anew && self.remote.state == State::Down,
        };
        if from == State::Up {
            self.fell = Some(change);
        }
        outputs.push(Output::Changed(change));
    }

    fn settle_intervals(&mut self) {
        self.tx_in_use = self.desired_min_tx();
        self.rx_in_use = self.settings.required_min_rx;
    }

    fn desired_min_tx(&self) -> Duration {
        let slowest = if self.state == State::Up { Duration::ZERO } else { SLOW };
        self.settings.desired_min_tx.max(slowest)
    }

    fn send(&mut self, now: Duration, outputs: &mut Vec<Output>) {
        outputs.push(Output::Send(self.packet(false)));
        self.sent = Some(now);
        self.draw_jitter();
    }

    fn packet(&self, is_final: bool) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            // Never both (section 6.5).
            poll: self.polling && !is_final,
            is_final,
            control_plane_independent: true,
            demand: false,
            detect_mult: self.settings.detect_mult,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: micros(self.desired_min_tx()),
            required_min_rx: micros(self.settings.required_min_rx),
            required_min_echo_rx: 0,
        }
    }

    /// Section 6.8.7: 75 to 100 percent of the interval, and at most 90 where one lost packet is enough.
    fn draw_jitter(&mut self) {
        // xorshift: sessions must not fall into step; nothing hangs on how random it is.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let span = if self.settings.detect_mult == 1 { 16 } else { 26 };
        self.jitter = 75 + (self.chance % span) as u32;
    }
}

fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
