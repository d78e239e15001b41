//! One process per node: sources → desired state → reconcile → kernel.

pub mod announce;
pub mod bandwidth;
pub mod bgp;
pub mod config;
pub mod datapath;
pub mod endpoint;
pub mod history;
pub mod install;
pub mod ipam;
pub mod net;
pub mod node;
pub mod server;
pub mod source;
pub mod store;
