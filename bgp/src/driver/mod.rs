//! Sockets and clocks around [`Neighbour`](crate::neighbour::Neighbour), on tokio.
//!
//! ```text
//!   Speaker ──watch: what to announce──▶ one task per neighbour ──▶ Neighbour (pure)
//!      │  └────commands, one queue─────▶   │        ▲
//!      └─ listeners ──accepted streams─────┘        └─ Links: sockets with bounded output
//!                                          └────▶ Stations: collectors of BMP
//! ```
//!
//! A peer that is the router of an interface has, beside its task, one that finds that router's address ([`unnumbered`]).
//!
//! Decides nothing about the protocol. A stop, a panic or a kill closes connections without NOTIFICATION,
//! so that neighbours keep the routes (RFC 4724); routes are taken back only by a smaller set, and from a
//! neighbour that is taken out of the configuration.

mod bmp;
mod config;
mod learned;
mod links;
mod listener;
mod mailbox;
mod members;
mod paths;
mod record;
mod socket;
mod speaker;
mod status;
mod table;
mod task;
mod unnumbered;

pub use bmp::{Station, StationStatus};
pub use config::{Password, PeerConfig, Remote, SpeakerConfig, Ttl};
pub use learned::{LearnedFeed, LearnedRoutes};
pub use members::{Absent, HOLD as MEMBERS_HOLD};
pub use paths::{Awaited, Paths, Somebody};
pub use record::{Change, Messages};
pub use speaker::{Speaker, SpeakerError};
pub use status::{Direction, PeerStatus, PrefixAtPeer, RouteView, Routes};
pub use table::Former;

#[cfg(test)]
mod tests;
