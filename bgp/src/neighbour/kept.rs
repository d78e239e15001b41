//! Whether the peer may keep what we announced to it in an earlier session (RFC 4724): nothing withdraws that but the End-of-RIB of a
//! new session, or the peer's own clock. Pure.

use crate::fsm::{Negotiated, PeerError, Restart};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Kept {
    restart_time: Duration,
    until: Option<Duration>,
}

impl Kept {
    pub fn new(now: Duration, restart: &Restart) -> Kept {
        let restart_time = Duration::from_secs(restart.time.into());
        // A process before this one may have had a session until now, or this one, before the peer's parameters changed.
        let possible = restart.restarting || restart.forwarding_preserved;
        Kept { restart_time, until: possible.then_some(now + restart_time) }
    }

    pub fn down(&mut self, now: Duration, negotiated: &Negotiated, reason: &PeerError) {
        // Of these the peer was told, and has dropped everything.
        let told = matches!(reason, PeerError::Shutdown(_) | PeerError::Deconfigured);
        let keeps = negotiated.restart.is_some() && !told;
        self.until = keeps.then_some(now + self.restart_time);
    }

    /// End-of-RIB of every family went out.
    pub fn ended(&mut self) {
        self.until = None;
    }

    pub fn is_possible(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
