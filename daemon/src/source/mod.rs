//! Where objects come from. A source sends whole snapshots; what follows cannot tell one source from another.
//!
//! ```text
//! directory ──scan──▶ files ──document──▶ objects ──┬─▶ Observed ──watch channel──▶ node
//! API server ──watch──▶ events ──document──▶ objects ┘
//! ```

mod directory;
pub mod kubernetes;

pub use bulkhead_policy::files::{Kind, Object, PodInfo, Snapshot, parse};
pub use directory::{Directory, watch};

use bulkhead_api::messages::ObjectError;
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// `Partition/web` and its `metadata.generation`, of the kinds that are told on status; files have none.
pub type Versions = BTreeMap<String, i64>;

/// A snapshot, what could not be read into it, and when the change was noticed.
#[derive(Clone, Debug)]
pub struct Observed {
    /// None: the source has not told everything yet, and nothing may follow from what it has.
    pub snapshot: Option<Snapshot>,
    pub errors: Vec<ObjectError>,
    pub versions: Arc<Versions>,
    pub noticed: Instant,
}

impl Observed {
    /// A source that has nothing.
    pub fn nothing() -> Self {
        Self {
            snapshot: Some(Snapshot::default()),
            errors: Vec::new(),
            versions: Arc::default(),
            noticed: Instant::now(),
        }
    }
}
