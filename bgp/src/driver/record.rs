//! What a neighbour's task remembers for people: messages by kind, and the last ups and downs with their reasons.

use crate::fsm::PeerError;
use crate::wire::HEADER_LEN;
use std::collections::VecDeque;
use std::time::Duration;

/// Ups and downs that are remembered.
const MOST_CHANGES: usize = 20;

/// Messages of one direction since the peer was configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Messages {
    pub open: u64,
    pub update: u64,
    pub notification: u64,
    pub keepalive: u64,
    pub route_refresh: u64,
}

impl Messages {
    /// One whole message.
    pub(super) fn count(&mut self, message: &[u8]) {
        let of_kind = match message.get(HEADER_LEN - 1) {
            Some(1) => &mut self.open,
            Some(2) => &mut self.update,
            Some(3) => &mut self.notification,
            Some(4) => &mut self.keepalive,
            Some(5) => &mut self.route_refresh,
            _ => return,
        };
        *of_kind += 1;
    }
}

/// A session that came up, or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How long ago.
    pub ago: Duration,
    /// Why it ended; `None`: it came up.
    pub down: Option<PeerError>,
}

/// The newest last. Times are since the task's epoch.
#[derive(Debug, Default)]
pub(super) struct History {
    changes: VecDeque<(Duration, Option<PeerError>)>,
    ups: u64,
}

impl History {
    pub fn note(&mut self, now: Duration, down: Option<PeerError>) {
        self.ups += u64::from(down.is_none());
        if self.changes.len() == MOST_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((now, down));
    }

    /// The newest first.
    pub fn changes(&self, now: Duration) -> Vec<Change> {
        let change = |(at, down): &(Duration, Option<PeerError>)| Change {
            ago: now.saturating_sub(*at),
            down: down.clone(),
        };
        self.changes.iter().rev().map(change).collect()
    }

    /// For how long no session has come up or ended.
    pub fn unchanged(&self, now: Duration) -> Duration {
        now.saturating_sub(self.changes.back().map_or(Duration::ZERO, |(at, _)| *at))
    }

    /// How often a session came up.
    pub fn ups(&self) -> u64 {
        self.ups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_first_and_the_oldest_is_forgotten() {
        let mut history = History::default();
        for second in 0..30 {
            history.note(Duration::from_secs(second), (second % 2 == 1).then_some(PeerError::Stopped));
        }
        let told = history.changes(Duration::from_secs(31));
        assert_eq!((told.len(), history.ups()), (MOST_CHANGES, 15));
        assert_eq!(told[0], Change { ago: Duration::from_secs(2), down: Some(PeerError::Stopped) });
        assert_eq!(told[19], Change { ago: Duration::from_secs(21), down: None });
    }
}
