//! Objects as people write them: YAML files, the same kinds as the API server's.
//!
//! ```text
//! file ──parse──▶ objects ──snapshot──▶ Snapshot, and what stands twice
//! ```

mod document;
mod pod;
mod service;

pub use document::{Kind, Object, parse, typed};

use crate::{
    Labels, Named, Objects, Pod, Sourced,
    service::{EndpointSlice, Service},
};
use bulkhead_api::{
    messages::{DiffRequest, ObjectError},
    objects::{BGPConfigurationSpec, BGPPeerSpec, IPBlockSpec, IPReservationSpec},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Everything a source knows, readable objects only. It enters object by object, by [`Snapshot::insert`] and
/// [`Snapshot::remove`]; a clone costs nothing and shares all that is not changed afterwards.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Snapshot {
    pub policy: Objects,
    /// Those of our own that pods have, by `namespace/name`.
    pub annotations: Named<Labels>,
    pub bgp_peers: BTreeMap<String, Sourced<BGPPeerSpec>>,
    pub bgp: Option<Sourced<BGPConfigurationSpec>>,
    /// By `namespace/name`.
    pub reservations: Named<IPReservationSpec>,
    pub blocks: Named<IPBlockSpec>,
    pub services: Named<Service>,
    pub endpoint_slices: Named<EndpointSlice>,
}

impl Snapshot {
    /// In place of an object of the same kind and name.
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Partition(name, o) => drop(self.policy.partitions.insert(name, o)),
            Object::NetworkGroup(name, o) => drop(self.policy.network_groups.insert(name, o)),
            Object::BandwidthClass(name, o) => drop(self.policy.bandwidth_classes.insert(name, o)),
            Object::BgpPeer(name, o) => drop(self.bgp_peers.insert(name, *o)),
            Object::BgpConfiguration(_, o) => self.bgp = Some(*o),
            Object::IpReservation(key, o) => drop(self.reservations.insert(key, o)),
            Object::IpBlock(name, o) => drop(self.blocks.insert(name, o)),
            Object::Namespace(name, labels) => drop(self.policy.namespaces.insert(name, labels)),
            Object::Pod(key, pod) => {
                match pod.annotations.is_empty() {
                    true => drop(self.annotations.remove(&key)),
                    false => drop(self.annotations.insert(key.clone(), Arc::new(pod.annotations))),
                }
                self.policy.pods.insert(key, pod.policy);
            }
            Object::NetworkPolicy(key, o) => drop(self.policy.network_policies.insert(key, o)),
            Object::ClusterNetworkPolicy(name, o) => {
                drop(self.policy.cluster_network_policies.insert(name, o));
            }
            Object::Node(name, node) => drop(self.policy.nodes.insert(name, node)),
            Object::Service(key, o) => drop(self.services.insert(key, o)),
            Object::EndpointSlice(key, o) => drop(self.endpoint_slices.insert(key, o)),
        }
    }

    /// Whether this very version of the object is in here.
    pub fn holds(&self, object: &Object) -> bool {
        let policy = &self.policy;
        match object {
            Object::Partition(name, o) => policy.partitions.get(name) == Some(o),
            Object::NetworkGroup(name, o) => policy.network_groups.get(name) == Some(o),
            Object::BandwidthClass(name, o) => policy.bandwidth_classes.get(name) == Some(o),
            Object::BgpPeer(name, o) => self.bgp_peers.get(name) == Some(o),
            Object::BgpConfiguration(_, o) => self.bgp.as_ref() == Some(&**o),
            Object::IpReservation(key, o) => self.reservations.get(key) == Some(o),
            Object::IpBlock(name, o) => self.blocks.get(name) == Some(o),
            Object::Namespace(name, labels) => policy.namespaces.get(name) == Some(labels),
            Object::Pod(key, pod) => {
                let annotations =
                    self.annotations.get(key).map_or(&Labels::default(), |a| a) == &pod.annotations;
                annotations && policy.pods.get(key) == Some(&pod.policy)
            }
            Object::NetworkPolicy(key, o) => policy.network_policies.get(key) == Some(o),
            Object::ClusterNetworkPolicy(name, o) => policy.cluster_network_policies.get(name) == Some(o),
            Object::Node(name, node) => policy.nodes.get(name) == Some(node),
            Object::Service(key, o) => self.services.get(key) == Some(o),
            Object::EndpointSlice(key, o) => self.endpoint_slices.get(key) == Some(o),
        }
    }

    /// Whether there is an object of that kind and name.
    pub fn has(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Partition => self.policy.partitions.contains_key(name),
            Kind::NetworkGroup => self.policy.network_groups.contains_key(name),
            Kind::BandwidthClass => self.policy.bandwidth_classes.contains_key(name),
            Kind::BgpPeer => self.bgp_peers.contains_key(name),
            Kind::BgpConfiguration => self.bgp.is_some(),
            Kind::IpReservation => self.reservations.contains_key(name),
            Kind::IpBlock => self.blocks.contains_key(name),
            Kind::Namespace => self.policy.namespaces.contains_key(name),
            Kind::Pod => self.policy.pods.contains_key(name),
            Kind::NetworkPolicy => self.policy.network_policies.contains_key(name),
            Kind::ClusterNetworkPolicy => self.policy.cluster_network_policies.contains_key(name),
            Kind::Node => self.policy.nodes.contains_key(name),
            Kind::Service => self.services.contains_key(name),
            Kind::EndpointSlice => self.endpoint_slices.contains_key(name),
        }
    }

    /// Forgets an object, if there is one of that kind and name (`namespace/name` where the kind has a namespace).
    pub fn remove(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Partition => drop(self.policy.partitions.remove(name)),
            Kind::NetworkGroup => drop(self.policy.network_groups.remove(name)),
            Kind::BandwidthClass => drop(self.policy.bandwidth_classes.remove(name)),
            Kind::BgpPeer => drop(self.bgp_peers.remove(name)),
            Kind::BgpConfiguration => self.bgp = None,
            Kind::IpReservation => drop(self.reservations.remove(name)),
            Kind::IpBlock => drop(self.blocks.remove(name)),
            Kind::Namespace => drop(self.policy.namespaces.remove(name)),
            Kind::Pod => {
                self.policy.pods.remove(name);
                self.annotations.remove(name);
            }
            Kind::NetworkPolicy => drop(self.policy.network_policies.remove(name)),
            Kind::ClusterNetworkPolicy => drop(self.policy.cluster_network_policies.remove(name)),
            Kind::Node => drop(self.policy.nodes.remove(name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::EndpointSlice => drop(self.endpoint_slices.remove(name)),
        }
    }
}

/// The objects as a request to `diff` would have them.
///
/// # Errors
/// A file that cannot be read, or an object to be removed that is not there.
pub fn edited(before: &Snapshot, request: &DiffRequest) -> Result<Snapshot, ObjectError> {
    let mut after = before.clone();
    if request.prune {
        // What is the case is nobody's file to decide on.
        let policy = after.policy.ruled_by(Objects::default());
        let Snapshot { annotations, services, endpoint_slices, reservations, blocks, .. } = after;
        let facts = Snapshot { policy, annotations, services, endpoint_slices, ..Snapshot::default() };
        after = Snapshot { reservations, blocks, ..facts };
    }
    for file in &request.files {
        parse(&file.name, &file.text)?.into_iter().for_each(|object| after.insert(object));
    }
    for key in &request.delete {
        let named = key.split_once('/').and_then(|(kind, name)| Some((Kind::named(kind)?, name)));
        let (kind, name) = named.filter(|(kind, name)| after.has(*kind, name)).ok_or_else(|| ObjectError {
            file: None,
            object: Some(key.clone()),
            field: None,
            message: "is not there to be removed; objects are named as in Partition/web or NetworkPolicy/shop/db".into(),
        })?;
        after.remove(kind, name);
    }
    Ok(after)
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodInfo {
    /// Ours alone.
    pub annotations: Labels,
    /// What rules can see of it.
    #[serde(flatten)]
    pub policy: Arc<Pod>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::messages::FileText;

    const OBJECTS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n---\napiVersion: v1\nkind: Pod\n\
        metadata: {name: a, namespace: web}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: web, \
        annotations: {bulkhead.dev/ip: 10.0.0.9, kubernetes.io/egress-bandwidth: 1M, other.dev/x: other}}\n---\n\
        apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\nspec: {cidrs: [10.0.0.0/8]}\n";

    #[test]
    fn what_entered_and_was_removed_again_leaves_nothing() {
        let mut snapshot = Snapshot::default();
        let objects = parse("a.yaml", OBJECTS).unwrap();
        objects.iter().cloned().for_each(|o| snapshot.insert(o));
        assert_eq!((snapshot.annotations.len(), snapshot.policy.pods.len()), (1, 2));
        objects.iter().for_each(|o| {
            let (kind, name) = o.id();
            snapshot.remove(kind, name);
        });
        assert_eq!(snapshot, Snapshot::default());
    }

    #[test]
    fn a_snapshot_shares_with_the_next_what_did_not_change() {
        let mut snapshot = Snapshot::default();
        parse("a.yaml", OBJECTS).unwrap().into_iter().for_each(|o| snapshot.insert(o));
        let before = snapshot.clone();
        snapshot.remove(Kind::Pod, "web/b");
        assert!(Arc::ptr_eq(&before.policy.pods["web/a"], &snapshot.policy.pods["web/a"]));
        assert!(before.policy.namespaces.ptr_eq(&snapshot.policy.namespaces));
        assert_eq!((before.policy.pods.len(), snapshot.policy.pods.len()), (2, 1));
        let annotations = before.annotations["web/b"].iter().collect::<Vec<_>>();
        assert_eq!(annotations, [("bulkhead.dev/ip", "10.0.0.9"), ("kubernetes.io/egress-bandwidth", "1M")]);
    }

    #[test]
    fn an_edit_puts_in_place_removes_by_name_and_prunes_rules_but_no_facts() {
        let group = |name: &str| {
            format!(
                "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {{name: {name}}}\nspec: {{cidrs: [10.0.0.0/8]}}\n"
            )
        };
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n";
        let mut before = Snapshot::default();
        for text in [group("a"), group("b"), namespace.to_string()] {
            parse("before.yaml", &text).unwrap().into_iter().for_each(|o| before.insert(o));
        }
        let told = |delete: &[&str], prune| {
            let files = vec![FileText { name: "c.yaml".into(), text: group("c") }];
            let delete = delete.iter().map(ToString::to_string).collect();
            let after = edited(&before, &DiffRequest { files, delete, prune }).map_err(|e| e.to_string())?;
            Ok::<_, String>(crate::changes(&before.policy, &after.policy).join(" "))
        };
        assert_eq!(told(&["networkgroup/a"], false).unwrap(), "+NetworkGroup/c -NetworkGroup/a");
        assert_eq!(told(&[], true).unwrap(), "+NetworkGroup/c -NetworkGroup/a -NetworkGroup/b");
        for nothing in ["NetworkGroup/x", "Service/a", "a"] {
            let error = told(&[nothing], false).unwrap_err();
            assert!(error.starts_with(&format!("{nothing}: is not there to be removed")), "{error}");
        }
    }
}
