//! A BGP speaker, as a library.
//!
//! ```text
//!   wire      bytes ⇄ messages                        (no state)
//!   fsm       one neighbour: inputs, time → outputs   (no socket, no clock)
//!   rib       what is to be sent against what was; what was received
//!   filter    which routes pass, in and out, and what they are given
//!   discovery a link's router, found by its advertisements
//!   export    which attributes a route gets towards a neighbour
//!   bmp       what a monitoring station is told
//!   neighbour fsm + rib + export of one neighbour     (still no socket, no clock)
//!   driver    sockets and clocks, behind the feature `tokio`
//! ```
//!
//! Everything above `driver` is a function of values: time is a [`Duration`](std::time::Duration) since an
//! epoch of the caller's choice, input arrives as a value, and every effect is returned as one.
//!
//! **Stopping is restarting**: only a NOTIFICATION or an explicit withdrawal takes routes back; a process
//! that ends does neither, and its neighbours keep the routes as RFC 4724 says.

pub mod bfd;
pub mod bmp;
pub mod discovery;
#[cfg(feature = "tokio")]
pub mod driver;
pub mod export;
mod family;
pub mod filter;
pub mod fsm;
pub mod neighbour;
pub mod rib;
pub mod wire;

#[cfg(feature = "tokio")]
pub use driver::{
    Absent, Awaited, Change, Direction, Former, LearnedFeed, LearnedRoutes, MEMBERS_HOLD, Messages, Password,
    Paths, PeerConfig, PeerStatus, PrefixAtPeer, Remote, RouteView, Routes, Speaker, SpeakerConfig,
    SpeakerError, Station, StationStatus, Ttl,
};
pub use export::RouteAttributes;
pub use family::Family;
pub use rib::NextHop;
