//! Why a session ended or did not come up, in words for people.

use crate::Family;
use crate::wire::notification::{Notification, code, open};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;
use thiserror::Error;

/// An OPEN of good form that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenFault {
    #[error("the peer is AS {got}, but AS {expected} is configured")]
    PeerAs { expected: u32, got: u32 },
    #[error("the peer's router id {0} is not usable: it is zero, or ours in our own AS")]
    Identifier(Ipv4Addr),
    #[error("the peer's hold time of {0} s is not allowed: it must be 0 or at least 3")]
    HoldTime(u16),
    #[error("the peer speaks none of the address families configured for it")]
    NoCommonFamily,
}

impl OpenFault {
    /// The subcode of the NOTIFICATION; data is added where the RFC wants some.
    pub(super) fn subcode(self) -> u8 {
        match self {
            OpenFault::PeerAs { .. } => open::BAD_PEER_AS,
            OpenFault::Identifier(_) => open::BAD_IDENTIFIER,
            OpenFault::HoldTime(_) => open::UNACCEPTABLE_HOLD_TIME,
            OpenFault::NoCommonFamily => open::UNSUPPORTED_CAPABILITY,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    #[error("cannot connect: {0}")]
    ConnectFailed(ErrorKind),
    #[error("no answer to the attempt to connect")]
    ConnectTimeout,
    #[error("the connection was lost{}", .0.map(|kind| format!(": {kind}")).unwrap_or_default())]
    Closed(Option<ErrorKind>),
    #[error("{0}")]
    OpenRefused(OpenFault),
    #[error("nothing was heard from the peer for the hold time")]
    HoldTimerExpired,
    #[error("the peer read nothing of what was sent to it for {0} s")]
    SendHoldTimerExpired(u64),
    #[error("the peer announced more than the {limit} routes of {family} that are allowed it{}", waits(.retry))]
    TooManyPrefixes { family: Family, limit: u32, retry: Option<Duration> },
    #[error("BFD: the path to the peer is dead")]
    PathDown,
    #[error("shut down here{}", if .0.is_empty() { String::new() } else { format!(": {}", .0) })]
    Shutdown(String),
    #[error("the peer broke the protocol, NOTIFICATION {0} sent")]
    Sent(Notification),
    #[error("the peer sent NOTIFICATION {notification}{}", advice(.notification))]
    Received { notification: Notification },
    #[error("the peer restarted and connected anew")]
    PeerRestarted,
    #[error("stopped here")]
    Stopped,
    #[error("taken out of the configuration")]
    Deconfigured,
}

impl PeerError {
    /// Says something about the peer's or our configuration. Later trouble of the connection, which may well
    /// be its consequence, does not hide it.
    pub(super) fn tells_more_than(&self, other: &PeerError) -> bool {
        self.is_protocol() && !other.is_protocol()
    }

    fn is_protocol(&self) -> bool {
        match self {
            PeerError::Received { notification } => !notification.is_collision(),
            PeerError::OpenRefused(_)
            | PeerError::Sent(_)
            | PeerError::HoldTimerExpired
            | PeerError::SendHoldTimerExpired(_)
            | PeerError::PathDown
            | PeerError::TooManyPrefixes { .. } => true,
            _ => false,
        }
    }

    /// Trying again at once would only repeat it.
    pub(super) fn wants_idle(&self) -> bool {
        self.is_protocol()
    }
}

fn waits(retry: &Option<Duration>) -> String {
    match retry {
        Some(after) => format!(": tried again after {} s", after.as_secs()),
        None => ": stopped until its configuration changes".to_owned(),
    }
}

fn advice(notification: &Notification) -> &'static str {
    match (notification.code, notification.subcode) {
        (code::OPEN, open::BAD_PEER_AS) => ": it expects another AS number of us",
        (code::OPEN, open::BAD_IDENTIFIER) => ": our router id is not unique",
        (code::OPEN, open::UNACCEPTABLE_HOLD_TIME) => ": it wants a longer hold time",
        (code::CEASE, 1) => ": it allows us fewer routes than we announce",
        (code::CEASE, 5) => ": it does not know us as a neighbour, or is still waiting after an error",
        _ => "",
    }
}
