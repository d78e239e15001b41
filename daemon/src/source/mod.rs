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

impl Snapshot {
    /// In place of an object of the same kind and name.
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Partition(name, o) => drop(self.policy.partitions.insert(name, o)),
            Object::NetworkGroup(name, o) => drop(self.policy.network_groups.insert(name, o)),
            Object::BandwidthClass(name, o) => drop(self.policy.bandwidth_classes.insert(name, o)),
            Object::BgpPeer(name, o) => drop(self.bgp_peers.insert(name, o)),
            Object::BgpConfiguration(_, o) => self.bgp = Some(o),
            Object::Namespace(name, labels) => drop(self.policy.namespaces.insert(name, labels)),
            Object::Pod((namespace, name), pod) => {
                self.policy.pods.insert(format!("{namespace}/{name}"), pod.policy.clone());
                self.pods.insert((namespace, name), pod);
            }
            Object::NetworkPolicy(key, o) => drop(self.policy.network_policies.insert(key, o)),
            Object::ClusterNetworkPolicy(name, o) => {
                drop(self.policy.cluster_network_policies.insert(name, o));
            }
            Object::Node(name, node) => drop(self.policy.nodes.insert(name, node)),
        }
    }
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

impl Observed {
    /// A source that has nothing.
    pub fn nothing() -> Self {
        Self { snapshot: Snapshot::default(), errors: Vec::new(), noticed: Instant::now() }
    }
}
