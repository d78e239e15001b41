//! One process per node: sources → desired state → reconcile → kernel.

pub mod datapath;
pub mod endpoint;
pub mod ipam;
pub mod net;
pub mod store;
