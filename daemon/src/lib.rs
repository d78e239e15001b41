//! One process per node: sources → desired state → reconcile → kernel.

pub mod config;
pub mod datapath;
pub mod source;
