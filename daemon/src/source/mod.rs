//! Where objects come from. A source sends whole snapshots; what follows cannot tell one source from another.
//!
//! ```text
//! directory ──scan──▶ files ──document──▶ objects ──▶ Observed ──watch channel──▶ node
//! ```

mod directory;
mod document;
mod pod;

pub use directory::{Directory, watch};
pub use document::{Object, parse};

use bulkhead_api::{
    messages::ObjectError,
    objects::{BGPConfigurationSpec, BGPPeerSpec},
};
use bulkhead_policy::{Objects, Pod, Sourced};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Instant};

/// Everything a source knows, readable objects only.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Snapshot {
    pub policy: Objects,
    /// By (namespace, name).
    pub pods: BTreeMap<(String, String), PodInfo>,
    pub bgp_peers: BTreeMap<String, Sourced<BGPPeerSpec>>,
    pub bgp: Option<Sourced<BGPConfigurationSpec>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodInfo {
    pub annotations: BTreeMap<String, String>,
    /// What rules can see of it.
    #[serde(flatten)]
    pub policy: Pod,
}

/// A snapshot, what could not be read into it, and when the change was noticed.
#[derive(Clone, Debug)]
pub struct Observed {
    pub snapshot: Snapshot,
    pub errors: Vec<ObjectError>,
    pub noticed: Instant,
}
