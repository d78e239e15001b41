//! Bidirectional Forwarding Detection (RFC 5880): whether a neighbour's forwarding path is alive, in milliseconds.
//!
//! ```text
//!   packet     24 octets ⇄ a packet                               (no state)
//!   session    one neighbour: packets and a time → packets, state (no socket, no clock)
//!   sessions   many of them: who is meant by a packet, and whether it may be believed (RFC 5881, 5883)
//!   control    what a client says to the process, and hears       (behind the feature `bfd`)
//!   process    sockets, the clock, a real-time thread             (behind the feature `bfd`)
//! ```
//!
//! BFD runs in a process of its own, `bulkhead-bfd`, whose sessions go on when its client, the daemon, stops or restarts:
//! inside the daemon its end would look like a dead link, and routers would drop the routes at once. That is also
//! what the C bit says, which every packet carries. Asynchronous mode only, without authentication, echo or
//! demand mode.

pub mod packet;
pub mod session;
pub mod sessions;

#[cfg(feature = "bfd")]
pub mod control;
#[cfg(feature = "bfd")]
pub mod process;

pub use packet::{Diagnostic, Packet, State};
pub use session::{Session, Settings};
pub use sessions::{Arrival, Key, Sessions};
