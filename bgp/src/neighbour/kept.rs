//! Whether the peer may keep what we announced to it in an earlier session (RFC 4724): nothing withdraws that but the End-of-RIB of a
//! new session, or the peer's own clocks. Pure.
//!
//! ```text
//!   No ◀──told, or it keeps nothing── session ──lost──▶ Until(it has noticed, and its restart time is over)
//!    ▲                                                                │
//!    └────── End-of-RIB ────── UntilEndOfRib ◀────── session ─────────┘
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
        *self = match (reason, negotiated.hold_time) {
            // Of these it was told, and has dropped everything.
            (PeerError::Shutdown(_) | PeerError::Deconfigured | PeerError::TooManyPrefixes { .. }, _) => {
                Kept::No
            }
            (reason, _) if was_its_end(reason) => Kept::Until(now + kept),
            (_, 0) => Kept::UntilEndOfRib,
            (_, hold) => Kept::Until(now + seconds(hold) + kept),
        };
    }

    /// End-of-RIB of every family went out.
    pub fn ended(&mut self) {
        *self = Kept::No;
    }

    /// Until when, should there be no session any more.
    pub fn until(&self, now: Duration, restart_time: u16) -> Option<Duration> {
        match self {
            Kept::No => None,
            Kept::Until(until) => Some(*until),
            // When it notices nobody knows.
            Kept::UntilEndOfRib => Some(now + seconds(restart_time)),
        }
    }

    pub fn is_possible(&self, now: Duration) -> bool {
        match self {
            Kept::No => false,
            Kept::Until(until) => now < *until,
            Kept::UntilEndOfRib => true,
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
