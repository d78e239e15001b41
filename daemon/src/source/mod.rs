//! Where objects come from. A source sends whole snapshots; what follows cannot tell one source from another.
//!
//! ```text
//! directory ──scan──▶ files ──document──▶ objects ──┬─▶ Observed ──watch channel──▶ node
//! API server ──watch──▶ events ──document──▶ objects ┘
//! ```

mod blocks;
mod directory;
pub mod kubernetes;
mod versions;

pub use blocks::with_blocks;
pub use bulkhead_policy::files::{Kind, Object, PodInfo, Snapshot, parse};
pub use directory::{Directory, watch};
#[cfg(test)]
pub(crate) use versions::tests::versions;
pub use versions::{SetDigest, Version, Versions};

use bulkhead_api::messages::ObjectError;
use std::{sync::Arc, time::Instant};

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
