//! The state machine of one neighbour (RFC 4271 section 8): inputs and a time in, outputs out.
//!
//! ```text
//!             Start, wait over            Connected            OPEN             KEEPALIVE
//!    ┌──────┐ ───────────────▶ Connect ─────────────▶ OpenSent ────▶ OpenConfirm ────▶ Established
//!    │ Idle │   ConnectFailed │    ▲        ▲             │               │                │
//!    └──────┘                 ▼    │ wait   │ Incoming    │ lost          │ lost           │ lost
//!        ▲                   Active ────────┘             │               │                │
//!        │                     ▲──────────────────────────┴───────────────┴────────────────┤
//!        └─── an error that waiting may mend: NOTIFICATION sent or received ───────────────┘
//! ```
//!
//! Connect to OpenConfirm is one state here (`state::Opening`), because two connections may be on their
//! way at once, one dialled and one accepted; the name that is shown is that of the more advanced. Section
//! 6.8 decides which of them stays. What only an established session has lives in `state::Established`.
//!
//! No socket, clock or log in here, and no wish of its own about time: [`Peer::deadline`] says when
//! [`Input::TimerTick`] is due; a tick too many does nothing.

mod error;
mod established;
mod liveness;
mod negotiate;
mod opening;
mod peer;
mod state;

pub use error::{OpenFault, PeerError};
pub use negotiate::Negotiated;
pub use peer::Peer;
pub use state::StateName;

use crate::Family;
use crate::wire::{Refresh, Update};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Names one TCP connection; the caller never gives the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub id: ConnId,
    /// Our end: the next hop of what is announced over it, unless the configuration names one.
    pub local: IpAddr,
}

/// What is configured about one neighbour, and about ourselves towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub local_asn: u32,
    pub router_id: Ipv4Addr,
    pub peer_asn: u32,
    pub timers: Timers,
    pub families: Vec<Family>,
    pub restart: Restart,
    /// Never dial: the peer does.
    pub passive: bool,
    /// Offer to take several routes for a prefix (RFC 7911).
    pub add_path: bool,
    /// Offer IPv6 next hops for IPv4 routes (RFC 8950).
    pub extended_next_hop: bool,
    /// The session is over link-local addresses, and so are the next hops.
    pub link_local: bool,
    /// For the jitter of waits (RFC 4271 section 10). Different for each neighbour.
    pub seed: u64,
}

/// Seconds. They may change at any time; the hold time counts from the next session on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// 0 (no keepalives) or at least 3.
    pub hold: u16,
    /// The longest wait between two attempts, and the longest attempt.
    pub connect_retry: u16,
    /// For which the peer may read nothing of what waits for it (RFC 9687); 0: the greater of eight minutes
    /// and twice the hold time.
    pub send_hold: u16,
}

/// Our own restarts, as the graceful restart capability tells them (RFC 4724).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Seconds, at most 4095.
    pub time: u16,
    /// R bit, until the first session of this process is established; never afterwards.
    pub restarting: bool,
    /// F bit, until the first session of this process is established. Afterwards it is always set: what
    /// carried that session's routes is the kernel, which a lost session does not touch.
    pub forwarding_preserved: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Close without NOTIFICATION: the peer keeps our routes for the restart time.
    Restart,
    /// Cease, peer de-configured: the peer drops our routes.
    Deconfigured,
    /// Cease, administrative shutdown, with a text for the people at the other end (RFC 9003).
    Shutdown(String),
    /// Cease, maximum number of prefixes reached (RFC 4486); tried again after that time, or never.
    TooManyPrefixes { family: Family, limit: u32, retry: Option<Duration> },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    Start,
    Stop(Stop),
    /// The attempt that [`Output::Connect`] asked for.
    Connected(Connection),
    ConnectFailed(ErrorKind),
    /// The peer connected to us.
    Incoming(Connection),
    Received(ConnId, Vec<u8>),
    /// The other end closed, or an error did.
    Closed(ConnId, Option<ErrorKind>),
    /// To be sent if the session is established; else it is dropped.
    Advertise(Update),
    /// As [`Input::Advertise`]: marks what answers a refresh, or asks for one.
    Refresh(Family, Refresh),
    /// The peer's system took some of what was sent; `all`: nothing waits any more.
    Written {
        id: ConnId,
        all: bool,
    },
    /// BFD has found the path to the peer dead; `independent`: the peer's BFD does not end with its control plane
    /// (C bit), so that this is no sign of a restart (RFC 5882 section 4.3).
    PathDown {
        independent: bool,
    },
    TimerTick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Dial the peer; an attempt that is still under way is given up.
    Connect,
    Send(ConnId, Vec<u8>),
    /// Send what is left, then close. Nothing more is heard of this connection.
    Close(ConnId),
    Event(Event),
}

/// What the RIB must know. `Up` and `Down` alternate; the others come between them.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Up(Up),
    /// Routes of any family; those not negotiated are to be passed over.
    Update(Update),
    EndOfRib(Family),
    /// RFC 2918: everything is to be sent again.
    RefreshRequested(Family),
    /// RFC 7313: the peer says everything again from here.
    RefreshBegins(Family),
    /// What it did not say again is gone.
    RefreshEnds(Family),
    Down(Down),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Up {
    pub connection: Connection,
    pub negotiated: Negotiated,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Down {
    pub reason: PeerError,
    /// RFC 4724, RFC 8538: the peer is restarting, its routes are kept for a while.
    pub keep_stale: bool,
}

#[cfg(test)]
mod tests;
