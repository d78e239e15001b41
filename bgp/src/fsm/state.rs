//! The states, each with what only it can have.

use super::liveness::Liveness;
use super::{ConnId, Connection, Negotiated};
use crate::wire::{Context, Framer, Message, Notification};
use std::fmt;
use std::time::Duration;

/// RFC 4271 section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateName {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Debug)]
pub(super) enum State {
    Idle(Idle),
    Opening(Opening),
    Established(Box<Established>),
}

/// Refuses connections.
#[derive(Debug)]
pub(super) struct Idle {
    /// `None`: stopped until told to start.
    pub restart_at: Option<Duration>,
}

/// Connect, Active, OpenSent and OpenConfirm.
#[derive(Debug)]
pub(super) struct Opening {
    pub dial: Dial,
    /// At most one of each direction.
    pub handshakes: Vec<Handshake>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    Waiting {
        until: Duration,
    },
    Calling {
        until: Duration,
    },
    /// There is an outgoing connection.
    Connected,
    /// The peer dials, we do not.
    Passive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Outgoing,
    Incoming,
}

/// A connection on which the session is not established.
#[derive(Debug)]
pub(super) struct Handshake {
    pub connection: Connection,
    pub direction: Direction,
    pub framer: Framer,
    /// Whatever comes: a session, or the end.
    pub expires: Duration,
    pub phase: Phase,
}

#[derive(Debug)]
pub(super) enum Phase {
    OpenSent,
    OpenConfirm { negotiated: Negotiated, liveness: Liveness },
}

#[derive(Debug)]
pub(super) struct Established {
    pub session: Session,
    /// A later connection of a peer that restarts gracefully: if an OPEN comes on it, the peer has lost the
    /// session (RFC 4724 section 5).
    pub challenger: Option<Handshake>,
}

#[derive(Debug)]
pub(super) struct Session {
    pub connection: Connection,
    pub framer: Framer,
    pub negotiated: Negotiated,
    pub liveness: Liveness,
    /// Something waits to be sent: when the peer must have taken some of it (RFC 9687).
    pub send_expires: Option<Duration>,
}

impl State {
    pub fn name(&self) -> StateName {
        match self {
            State::Idle(_) => StateName::Idle,
            State::Opening(opening) => opening.name(),
            State::Established(_) => StateName::Established,
        }
    }

    pub fn deadline(&self) -> Option<Duration> {
        match self {
            State::Idle(idle) => idle.restart_at,
            State::Opening(opening) => {
                let dial = opening.dial.deadline().filter(|_| !opening.is_confirming());
                opening.handshakes.iter().map(Handshake::deadline).chain(dial).min()
            }
            State::Established(established) => {
                let Established { session, challenger } = established.as_ref();
                let challenger = challenger.as_ref().map(Handshake::deadline);
                session.liveness.deadline().into_iter().chain(session.send_expires).chain(challenger).min()
            }
        }
    }

    pub fn push(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some((framer, _)) = self.stream(id) {
            framer.push(bytes);
        }
    }

    /// The next whole message of a connection; `None` also once the connection is given up.
    pub fn next_message(&mut self, id: ConnId) -> Option<Result<Message, Notification>> {
        let (framer, context) = self.stream(id)?;
        framer.next(context)
    }

    fn stream(&mut self, id: ConnId) -> Option<(&mut Framer, Context)> {
        let of = |handshake: &Handshake| handshake.connection.id == id;
        match self {
            State::Idle(_) => None,
            State::Opening(opening) => opening.handshakes.iter_mut().find(|h| of(h)).map(Handshake::stream),
            State::Established(established) => {
                let Established { session, challenger } = established.as_mut();
                if session.connection.id == id {
                    return Some((&mut session.framer, session.negotiated.context()));
                }
                challenger.as_mut().filter(|h| of(h)).map(Handshake::stream)
            }
        }
    }
}

impl Opening {
    /// A session is about to come: no reason to dial.
    pub fn is_confirming(&self) -> bool {
        self.handshakes.iter().any(Handshake::is_confirming)
    }

    fn name(&self) -> StateName {
        let dialling = match self.dial {
            Dial::Calling { .. } => StateName::Connect,
            Dial::Waiting { .. } | Dial::Connected | Dial::Passive => StateName::Active,
        };
        self.handshakes.iter().map(Handshake::name).max().unwrap_or(dialling)
    }
}

impl Dial {
    fn deadline(self) -> Option<Duration> {
        match self {
            Dial::Waiting { until } | Dial::Calling { until } => Some(until),
            Dial::Connected | Dial::Passive => None,
        }
    }
}

impl Handshake {
    fn name(&self) -> StateName {
        match self.phase {
            Phase::OpenSent => StateName::OpenSent,
            Phase::OpenConfirm { .. } => StateName::OpenConfirm,
        }
    }

    fn stream(&mut self) -> (&mut Framer, Context) {
        let context = match &self.phase {
            Phase::OpenSent => Context::default(),
            Phase::OpenConfirm { negotiated, .. } => negotiated.context(),
        };
        (&mut self.framer, context)
    }

    pub fn is_confirming(&self) -> bool {
        matches!(self.phase, Phase::OpenConfirm { .. })
    }

    pub fn deadline(&self) -> Duration {
        match &self.phase {
            Phase::OpenConfirm { liveness, .. } => {
                liveness.deadline().unwrap_or(self.expires).min(self.expires)
            }
            Phase::OpenSent => self.expires,
        }
    }

    pub fn expired(&self, now: Duration) -> bool {
        let silent = match &self.phase {
            Phase::OpenConfirm { liveness, .. } => liveness.expired(now),
            Phase::OpenSent => false,
        };
        silent || self.expires <= now
    }
}
