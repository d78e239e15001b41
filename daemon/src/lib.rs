//! One process per node: sources → desired state → reconcile → kernel.

pub mod datapath;
