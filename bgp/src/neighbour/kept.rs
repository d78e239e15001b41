//! Whether the peer may keep what we announced to it in an earlier session (RFC 4724): nothing withdraws that but the End-of-RIB of a
//! new session, or the peer's own clocks. Pure.
//!
//! ```text
//!   No ◀──told── Telling ◀──our end── session ──lost──▶ Until(it has noticed, and its restart time is over)
//!    ▲ ▲            │                                      │       │
//!    │ └──── time ──┴──────────────────────────────────────┘       │ session
//!    └────── End-of-RIB ─────────────── UntilEndOfRib ◀────────────┘ (also out of Telling)
//! ```

use crate::fsm::{Negotiated, PeerError, Settings};
use std::io::ErrorKind;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    No,
    /// It drops what it keeps by itself, if no session begins before.
    Until(Duration),
    /// A session has begun, in which it keeps the rest until we have said everything. Or it has no clock: it was to hear nothing of us
    /// (hold time of 0), and so has not noticed.
    UntilEndOfRib,
    /// It is being told that its session ends, and then drops everything. Until it is known that it has heard so: as after a session
    /// that was lost; absent where it has no clock.
    Telling(Option<Duration>),
}

impl Kept {
    pub fn new(now: Duration, settings: &Settings) -> Kept {
        let restart = &settings.restart;
        // A process before this one may have had a session until now, or this one, before the peer's parameters changed.
        let possible = restart.restarting || restart.forwarding_preserved;
        let until = now + seconds(settings.timers.hold) + seconds(restart.time);
        if possible { Kept::Until(until) } else { Kept::No }
    }

    pub fn up(&mut self) {
        if *self != Kept::No {
            *self = Kept::UntilEndOfRib;
        }
    }

    /// `restart_time`: what we have asked for.
    pub fn down(&mut self, now: Duration, negotiated: &Negotiated, reason: &PeerError, restart_time: u16) {
        let kept = negotiated.restart.as_ref().map_or(Duration::ZERO, |_| seconds(restart_time));
        let hold = Some(negotiated.hold_time).filter(|hold| *hold > 0);
        let until = hold.map(|hold| now + seconds(hold) + kept);
        *self = match (reason, until) {
            (PeerError::Shutdown(_) | PeerError::Deconfigured | PeerError::TooManyPrefixes { .. }, until) => {
                Kept::Telling(until)
            }
            (reason, _) if was_its_end(reason) => Kept::Until(now + kept),
            (_, None) => Kept::UntilEndOfRib,
            (_, Some(until)) => Kept::Until(until),
        };
    }

    /// It has heard that its session is over.
    pub fn told(&mut self) {
        if matches!(self, Kept::Telling(_)) {
            *self = Kept::No;
        }
    }

    /// End-of-RIB of every family went out.
    pub fn ended(&mut self) {
        *self = Kept::No;
    }

    /// Until when, should there be no session any more.
    pub fn until(&self, now: Duration, restart_time: u16) -> Option<Duration> {
        match self {
            Kept::No => None,
            Kept::Until(until) | Kept::Telling(Some(until)) => Some(*until),
            // When it notices nobody knows.
            Kept::UntilEndOfRib | Kept::Telling(None) => Some(now + seconds(restart_time)),
        }
    }

    pub fn is_possible(&self, now: Duration) -> bool {
        match self {
            Kept::No => false,
            Kept::Until(until) | Kept::Telling(Some(until)) => now < *until,
            Kept::UntilEndOfRib | Kept::Telling(None) => true,
        }
    }
}

/// The session ended there first. Else the peer finds out when nothing has been heard of us for the hold time, at the latest.
fn was_its_end(reason: &PeerError) -> bool {
    matches!(
        reason,
        PeerError::Closed(None | Some(ErrorKind::ConnectionReset))
            | PeerError::Received { .. }
            | PeerError::PeerRestarted
    )
}

fn seconds(count: u16) -> Duration {
    Duration::from_secs(count.into())
}
