//! Events of all watches into one snapshot. Pure: no client, no clock but to say when something was noticed.

use super::kinds::api_version;
use crate::source::{Kind, Object, Observed, Snapshot, Version, Versions};
use bulkhead_api::messages::ObjectError;
use bulkhead_policy::files;
use kube::api::{DynamicObject, ObjectMeta, ResourceExt};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

/// What a watch of one kind tells.
#[derive(Debug)]
pub enum Change {
    /// A list of all objects begins.
    Begin,
    Listed(DynamicObject),
    /// The list is whole: what it lacks is gone.
    Complete,
    Applied(DynamicObject),
    Deleted(DynamicObject),
    /// The cluster has no such kind.
    Undefined,
    /// The watch broke and is begun anew.
    Failed(String),
    /// The watch goes on where it broke.
    Mended,
}

/// An object as far as it is read.
struct Read {
    object: Result<Object, ObjectError>,
    version: Version,
}

type Listing = BTreeMap<String, Read>;

#[derive(Default)]
struct OfKind {
    /// Listed to the end at least once.
    complete: bool,
    /// Never listed, because the cluster does not have the kind.
    undefined: bool,
    listing: Option<Listing>,
    /// Names of all objects, also of those that cannot be read.
    names: BTreeSet<String>,
    broken: Option<String>,
}

pub struct Collector {
    snapshot: Snapshot,
    kinds: BTreeMap<Kind, OfKind>,
    /// Objects that cannot be read; of those the last readable version stays.
    unreadable: BTreeMap<(Kind, String), ObjectError>,
    versions: Arc<Versions>,
    /// Since when there is something that was not observed.
    news: Option<Instant>,
}

impl Collector {
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self {
            snapshot: Snapshot::default(),
            kinds: kinds.into_iter().map(|kind| (kind, OfKind::default())).collect(),
            unreadable: BTreeMap::new(),
            versions: Arc::default(),
            news: None,
        }
    }

    pub fn handle(&mut self, kind: Kind, change: Change) {
        match change {
            Change::Begin => self.of(kind).listing = Some(Listing::new()),
            Change::Listed(object) => {
                let (name, object) = read(kind, object);
                self.of(kind).listing.get_or_insert_default().insert(name, object);
            }
            Change::Complete => {
                let listing = self.of(kind).listing.take().unwrap_or_default();
                self.replace(kind, listing);
                self.of(kind).undefined = false;
                self.sound(kind);
            }
            Change::Applied(object) => {
                let (name, object) = read(kind, object);
                self.put(kind, name, object);
                self.sound(kind);
            }
            Change::Deleted(object) => {
                self.remove(kind, &key(&object));
                self.sound(kind);
            }
            // Asked for again and again: it may be defined later.
            Change::Undefined if self.of(kind).undefined => self.sound(kind),
            Change::Undefined if !self.of(kind).complete => {
                self.of(kind).undefined = true;
                self.replace(kind, Listing::new());
                self.sound(kind);
            }
            Change::Undefined => self.broke(kind, "the API server does not know the kind any more".into()),
            Change::Failed(reason) => self.broke(kind, reason),
            Change::Mended => self.sound(kind),
        }
    }

    /// Whether [`Self::observe`] would say something else than it last did.
    pub fn has_news(&self) -> bool {
        self.news.is_some()
    }

    pub fn observe(&mut self) -> Observed {
        let waiting: Vec<_> =
            self.kinds.iter().filter(|(_, k)| !k.complete).map(|(n, _)| n.to_string()).collect();
        let general = |message| ObjectError { file: None, object: None, field: None, message };
        let mut errors: Vec<_> = self.unreadable.values().cloned().collect();
        for (kind, of) in &self.kinds {
            let Some(reason) = &of.broken else { continue };
            errors
                .push(general(format!("cannot watch {kind} objects: {reason}; what is known of them stays")));
        }
        if !waiting.is_empty() {
            errors.push(general(format!("waiting for the API server to list {}", waiting.join(", "))));
        }
        Observed {
            snapshot: waiting.is_empty().then(|| self.snapshot.clone()),
            errors,
            versions: self.versions.clone(),
            noticed: self.news.take().unwrap_or_else(Instant::now),
        }
    }

    fn of(&mut self, kind: Kind) -> &mut OfKind {
        self.kinds.entry(kind).or_default()
    }

    fn changed(&mut self) {
        self.news.get_or_insert_with(Instant::now);
    }

    fn broke(&mut self, kind: Kind, reason: String) {
        let of = self.of(kind);
        if of.broken.as_ref() != Some(&reason) {
            of.broken = Some(reason);
            self.changed();
        }
    }

    fn sound(&mut self, kind: Kind) {
        if self.of(kind).broken.take().is_some() {
            self.changed();
        }
    }

    fn replace(&mut self, kind: Kind, listing: Listing) {
        let gone: Vec<_> =
            self.of(kind).names.iter().filter(|n| !listing.contains_key(*n)).cloned().collect();
        for name in gone {
            self.remove(kind, &name);
        }
        for (name, object) in listing {
            self.put(kind, name, object);
        }
        if !std::mem::replace(&mut self.of(kind).complete, true) {
            self.changed();
        }
    }

    fn put(&mut self, kind: Kind, name: String, read: Read) {
        self.of(kind).names.insert(name.clone());
        let told = format!("{kind}/{name}");
        if is_told(kind) && self.versions.get(&told) != Some(read.version) {
            Arc::make_mut(&mut self.versions).insert(kind, told, read.version);
            self.changed();
        }
        match read.object {
            Ok(object) => {
                if self.unreadable.remove(&(kind, name)).is_some() {
                    self.changed();
                }
                // A heartbeat, or a change of what no rule sees.
                if !self.snapshot.holds(&object) {
                    self.snapshot.insert(object);
                    self.changed();
                }
            }
            Err(error) => {
                if self.unreadable.get(&(kind, name.clone())) != Some(&error) {
                    self.unreadable.insert((kind, name), error);
                    self.changed();
                }
            }
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        if self.of(kind).names.remove(name) {
            self.snapshot.remove(kind, name);
            self.unreadable.remove(&(kind, name.to_string()));
            if is_told(kind) {
                Arc::make_mut(&mut self.versions).remove(kind, &format!("{kind}/{name}"));
            }
            self.changed();
        }
    }
}

/// `namespace/name` where the kind has a namespace.
fn key(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

pub(crate) fn version(object: &str, metadata: &ObjectMeta) -> Version {
    let (uid, generation) = (metadata.uid.as_deref().unwrap_or_default(), metadata.generation);
    Version::new(object, uid, generation.unwrap_or_default())
}

/// As a file would have it, with what is read of the metadata alone.
fn read(kind: Kind, object: DynamicObject) -> (String, Read) {
    let (key, name) = (key(&object), object.name_any());
    let DynamicObject { metadata, data, .. } = object;
    let version = version(&format!("{kind}/{key}"), &metadata);
    let mut value = data;
    if let Value::Object(fields) = &mut value {
        fields.insert("apiVersion".into(), api_version(kind).into());
        fields.insert("kind".into(), kind.to_string().into());
        let mut kept = json!({"name": name});
        if let Some(namespace) = metadata.namespace {
            kept["namespace"] = namespace.into();
        }
        if kind == Kind::Pod {
            kept["uid"] = json!(metadata.uid);
        }
        kept["labels"] = json!(metadata.labels.unwrap_or_default());
        kept["annotations"] = json!(metadata.annotations.unwrap_or_default());
        fields.insert("metadata".into(), kept);
    }
    let object = files::typed(&api_version(kind), &kind.to_string(), &name, value, None);
    let error =
        |(field, message)| ObjectError { file: None, object: Some(format!("{kind}/{key}")), field, message };
    (key.clone(), Read { object: object.map_err(error), version })
}

/// Kinds whose status tells what nodes make of them; and that whose refusals are events.
fn is_told(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Partition
            | Kind::NetworkGroup
            | Kind::BandwidthClass
            | Kind::BgpPeer
            | Kind::BgpConfiguration
            | Kind::IpReservation
            | Kind::ClusterNetworkPolicy
            | Kind::NetworkPolicy
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, cidr: &str) -> DynamicObject {
        let object = json!({
            "apiVersion": "bulkhead.dev/v1alpha1", "kind": "NetworkGroup",
            "metadata": {"name": name, "resourceVersion": "7", "managedFields": []},
            "spec": {"cidrs": [cidr]},
        });
        serde_json::from_value(object).unwrap()
    }

    fn listed(objects: Vec<DynamicObject>) -> Collector {
        let mut collector = Collector::new([Kind::NetworkGroup, Kind::Partition]);
        collector.handle(Kind::Partition, Change::Begin);
        collector.handle(Kind::Partition, Change::Complete);
        list(&mut collector, objects);
        collector
    }

    fn list(collector: &mut Collector, objects: Vec<DynamicObject>) {
        collector.handle(Kind::NetworkGroup, Change::Begin);
        objects.into_iter().for_each(|o| collector.handle(Kind::NetworkGroup, Change::Listed(o)));
        collector.handle(Kind::NetworkGroup, Change::Complete);
    }

    fn groups(collector: &mut Collector) -> Vec<String> {
        collector.observe().snapshot.unwrap().policy.network_groups.keys().cloned().collect()
    }

    #[test]
    fn there_is_no_snapshot_before_every_kind_was_listed_to_its_end() {
        let mut collector = Collector::new([Kind::NetworkGroup, Kind::Partition]);
        list(&mut collector, vec![group("vms", "10.0.0.0/8")]);
        collector.handle(Kind::Partition, Change::Begin);
        let observed = collector.observe();
        assert_eq!(observed.snapshot, None);
        assert_eq!(observed.errors[0].message, "waiting for the API server to list Partition");
        collector.handle(Kind::Partition, Change::Complete);
        assert!(collector.has_news());
        assert_eq!(groups(&mut collector), ["vms"]);
    }

    #[test]
    fn a_watch_that_breaks_leaves_its_objects_and_one_error() {
        let mut collector = listed(vec![group("vms", "10.0.0.0/8")]);
        collector.observe();
        collector.handle(Kind::NetworkGroup, Change::Failed("connection refused".into()));
        assert_eq!(collector.observe().errors.len(), 1);
        collector.handle(Kind::NetworkGroup, Change::Failed("connection refused".into()));
        assert!(!collector.has_news());
        // It lists anew, and breaks again half way.
        collector.handle(Kind::NetworkGroup, Change::Begin);
        collector.handle(Kind::NetworkGroup, Change::Failed("connection refused".into()));
        assert_eq!(groups(&mut collector), ["vms"]);
        list(&mut collector, vec![group("offices", "10.1.0.0/16")]);
        assert_eq!(groups(&mut collector), ["offices"]);
        assert_eq!(collector.observe().errors, []);
    }

    #[test]
    fn a_watch_that_goes_on_where_it_broke_leaves_no_error() {
        let mut collector = listed(vec![group("vms", "10.0.0.0/8")]);
        collector.handle(Kind::NetworkGroup, Change::Failed("connection reset".into()));
        assert_eq!(collector.observe().errors.len(), 1);
        collector.handle(Kind::NetworkGroup, Change::Mended);
        assert_eq!(collector.observe().errors, []);
        assert_eq!(groups(&mut collector), ["vms"]);
    }

    #[test]
    fn what_rules_cannot_see_is_no_news() {
        let mut collector = listed(vec![group("vms", "10.0.0.0/8")]);
        collector.observe();
        collector.handle(Kind::NetworkGroup, Change::Applied(group("vms", "10.0.0.0/8")));
        assert!(!collector.has_news());
        collector.handle(Kind::NetworkGroup, Change::Deleted(group("vms", "10.0.0.0/8")));
        assert!(collector.has_news() && groups(&mut collector).is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_keeps_its_last_readable_version_and_is_named() {
        let mut collector = listed(vec![group("vms", "10.0.0.0/8")]);
        collector.handle(Kind::NetworkGroup, Change::Applied(group("vms", "10.0.0.0/33")));
        let observed = collector.observe();
        assert_eq!(observed.errors[0].object.as_deref(), Some("NetworkGroup/vms"));
        assert_eq!(observed.errors[0].field.as_deref(), Some("spec.cidrs[0]"));
        assert_eq!(groups(&mut collector), ["vms"]);
        collector.handle(Kind::NetworkGroup, Change::Applied(group("vms", "10.0.0.0/8")));
        assert_eq!(collector.observe().errors, []);
    }

    #[test]
    fn a_kind_that_no_cluster_has_to_have_is_empty_where_it_is_not_defined() {
        let mut collector = listed(Vec::new());
        collector.kinds.insert(Kind::ClusterNetworkPolicy, OfKind::default());
        assert_eq!(collector.observe().snapshot, None);
        for _ in 0..2 {
            collector.handle(Kind::ClusterNetworkPolicy, Change::Undefined);
            let observed = collector.observe();
            assert!(observed.snapshot.is_some() && observed.errors.is_empty(), "{:?}", observed.errors);
        }
        // Defined, and then no more: what is known of it stays.
        collector.handle(Kind::ClusterNetworkPolicy, Change::Begin);
        collector.handle(Kind::ClusterNetworkPolicy, Change::Complete);
        collector.handle(Kind::ClusterNetworkPolicy, Change::Undefined);
        assert_eq!(collector.observe().errors.len(), 1);
    }
}
