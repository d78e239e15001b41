//! Objects in, decision tables out. Pure: no Kubernetes client, runtime, kernel or clock.
//!
//! ```text
//! Objects ──admit──▶ Objects in force ──compile──▶ Compiled ──▶ evaluate, explain, diff
//!                                        ▲    │
//!                                    Interner  └─▶ tables, identities (written to the kernel as they are)
//! ```

mod admit;
mod atom;
mod changes;
mod chunked;
mod compile;
pub mod diff;
mod evaluate;
mod explain;
#[cfg(feature = "files")]
pub mod files;
mod homes;
mod interner;
mod objects;
mod parts;
mod prefix;
mod room;
mod rulebook;
pub mod selector;
pub mod service;
mod strays;
mod tables;

pub use admit::{Admitted, admit, admit_change};
pub use bulkhead_api::objects::Labels;
pub use changes::{changes, names};
pub use chunked::Chunked;
pub use compile::{CompileError, Compiled, EAGER_PARTITIONS, Local, Placement, compile, compile_at_once};
pub use evaluate::Decision;
pub use explain::{Flow, explain, judged};
pub use homes::Homes;
pub use interner::{Interner, KEPT_GENERATIONS};
pub use objects::{ContainerPort, LocalPod, Named, NodeInfo, Objects, Pod, PodUid, RuleLines, Sourced};
pub use parts::{GroupPart, group_parts};
pub use room::NoRoom;
pub use rulebook::{RuleBook, RuleEntry};
pub use strays::{Grounds, Stray, Strays, Witness, strays};
pub use tables::Tables;
