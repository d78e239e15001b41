//! Routes of one neighbour: what it is to hold against what it was sent, and what it sent.
//!
//! Pure trackers. They know neither session nor time, and their answer depends on what they hold, never on
//! the way they came to it.

mod adj_rib_in;
mod adj_rib_out;
mod best;
mod looped;
mod paths;
mod table;

pub use adj_rib_in::{AdjRibIn, Changed, LLGR_STALE, Loops, Path, Route};
pub use adj_rib_out::{AdjRibOut, Batch};
pub use best::{Candidate, NextHop, Source, best, is_link_local};
