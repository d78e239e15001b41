//! What the process is told, and tells: lines of JSON on its unix socket.
//!
//! A client says the whole set of sessions that it wants, and hears of all of them, and then of each change. It may go at
//! any time: what it said last goes on. Any other client may listen.

use super::packet::{Diagnostic, State};
use super::session::{Change, Session, Settings};
use super::sessions::Key;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// The sessions that there shall be; all others end as AdminDown.
    Configure(Vec<Wanted>),
    /// Tell me of all of them.
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    #[serde(flatten)]
    pub key: Key,
    pub min_tx_micros: u32,
    pub min_rx_micros: u32,
    pub detect_mult: u8,
}

/// A wish that no session can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    #[error("a detection multiplier of 0: give at least 1")]
    Multiplier,
    #[error("an interval of 0: give microseconds")]
    Interval,
    #[error("a multihop session without a local address: name the address that the neighbour knows us by")]
    Local,
}

impl Wanted {
    pub fn new(key: Key, settings: Settings) -> Self {
        let micros = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
        Self {
            key,
            min_tx_micros: micros(settings.desired_min_tx),
            min_rx_micros: micros(settings.required_min_rx),
            detect_mult: settings.detect_mult,
        }
    }

    /// # Errors
    /// What is wrong with it.
    pub fn settings(&self) -> Result<Settings, Impossible> {
        if self.detect_mult == 0 {
            return Err(Impossible::Multiplier);
        }
        if self.min_tx_micros == 0 || self.min_rx_micros == 0 {
            return Err(Impossible::Interval);
        }
        if self.key.multihop.is_some() && self.key.local.is_none() {
            return Err(Impossible::Local);
        }
        Ok(Settings {
            desired_min_tx: Duration::from_micros(self.min_tx_micros.into()),
            required_min_rx: Duration::from_micros(self.min_rx_micros.into()),
            detect_mult: self.detect_mult,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    Sessions {
        sessions: Vec<SessionInfo>,
        /// Packets that no session could believe, ever.
        discarded: u64,
    },
    Changed {
        session: Key,
        change: Change,
    },
    /// Nothing was changed.
    Refused {
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    #[serde(flatten)]
    pub key: Key,
    pub state: State,
    pub diagnostic: Diagnostic,
    /// After so long a silence of the neighbour the path counts as dead.
    pub detection_time_micros: u64,
    /// What we send at; absent: the neighbour wants nothing.
    pub transmit_interval_micros: Option<u64>,
    /// How it last left the state Up; absent: it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fell: Option<Change>,
}

impl SessionInfo {
    pub fn of(key: &Key, session: &Session) -> Self {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Self {
            key: *key,
            state: session.state(),
            diagnostic: session.diagnostic(),
            detection_time_micros: micros(session.detection_time()),
            transmit_interval_micros: session.transmit_interval().map(micros),
            fell: session.fell(),
        }
    }
}
