//! Objects as people write them: YAML files, the same kinds as the API server's.
//!
//! ```text
//! file ──parse──▶ objects ──snapshot──▶ Snapshot, and what stands twice
//! ```

mod document;
mod pod;

pub use document::{Object, parse};

use crate::{Objects, Pod, Sourced};
use bulkhead_api::{
    messages::ObjectError,
    objects::{BGPConfigurationSpec, BGPPeerSpec},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

/// All objects of all files, by the files' names. An object that stands twice is refused where it stands second.
pub fn snapshot<'a>(files: impl Iterator<Item = (&'a str, &'a [Object])>) -> (Snapshot, Vec<ObjectError>) {
    let mut snapshot = Snapshot::default();
    let mut errors = Vec::new();
    let mut first_seen: BTreeMap<String, &str> = BTreeMap::new();
    for (name, objects) in files {
        for object in objects {
            let key = object.key();
            if let Some(other) = first_seen.get(&key) {
                errors.push(ObjectError {
                    file: Some(name.into()),
                    object: Some(key),
                    field: Some("metadata.name".into()),
                    message: format!("stands in {other} already: remove one of the two"),
                });
                continue;
            }
            first_seen.insert(key, name);
            snapshot.insert(object.clone());
        }
    }
    (snapshot, errors)
}

/// Whether a directory's file holds objects, by its name.
pub fn is_object_file(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}
