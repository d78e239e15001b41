//! The lab: a small data centre made of network namespaces on one kernel, and what measures it.
//!
//! ```text
//!  outer process ──enter──▶ init of fresh namespaces (pid 1, no link to the machine)
//!                             ├─ router (BIRD 2) ── vm
//!                             ├─ node1 (bulkheadd) ── pods
//!                             └─ node2 (bulkheadd) ── pods
//! ```
//! Everything lives in namespaces that vanish with their init process, so nothing can be left behind, whatever fails.
//! This crate must never touch an interface, a route, a mount or a pin of the machine itself.

pub mod bench;
pub mod bfd;
pub mod bgp;
pub mod bird;
pub mod bpf;
pub mod capture;
pub mod cluster;
pub mod demo;
pub mod enter;
pub mod error;
pub mod figure;
pub mod guest;
pub mod kubernetes;
pub mod lab;
pub mod leftovers;
pub mod link;
pub mod netns;
pub mod node;
pub mod objects;
pub mod packet;
pub mod pod;
pub mod probe;
pub mod programs;
pub mod routes;
pub mod sctp;
pub mod single;
pub mod traffic;
pub mod wait;

pub use bfd::Bfd;
pub use bird::Bird;
pub use capture::Capture;
pub use enter::{Inside, enter};
pub use error::{Context, Error, Result, unmet};
pub use lab::Lab;
pub use link::veth;
pub use netns::Netns;
pub use node::Node;
pub use objects::Objects;
pub use pod::Pod;
pub use single::Single;
pub use wait::until;
