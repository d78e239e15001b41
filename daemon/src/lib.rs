//! One process per node: sources → desired state → reconcile → kernel.

pub mod announce;
pub mod bandwidth;
mod bfd;
pub mod bgp;
mod causes;
pub mod config;
pub mod controller;
pub mod datapath;
pub mod drain;
pub mod endpoint;
pub mod history;
pub mod install;
pub mod ipam;
mod learning;
mod masquerade;
pub mod metrics;
pub mod net;
pub mod node;
pub mod peering;
pub mod pod_events;
pub mod report;
mod reservation;
pub mod resident;
pub mod server;
pub mod source;
pub mod store;
