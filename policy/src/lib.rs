//! Objects in, decision tables out. Pure: no Kubernetes client, runtime, kernel or clock.
//!
//! ```text
//! Objects ──admit──▶ Objects in force ──compile──▶ Compiled ──▶ evaluate, explain
//!                                        ▲    │
//!                                    Interner  └─▶ tables, identities (written to the kernel as they are)
//! ```

mod objects;
mod tables;

pub use objects::{NodeInfo, Objects, Sourced};
pub use tables::Tables;
