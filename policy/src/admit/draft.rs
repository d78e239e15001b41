//! The set of objects being put together: for each object, which of its versions.

use crate::{Named, Objects, Sourced};
use bulkhead_api::objects::{
    BandwidthClassSpec, ClusterNetworkPolicySpec, NetworkGroupSpec, NetworkPolicySpec, PartitionSpec,
};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Partition,
    NetworkGroup,
    BandwidthClass,
    NetworkPolicy,
    ClusterNetworkPolicy,
}

pub(super) type Key = (Kind, String);

/// What can be moved back to what is in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// To its previous version, to none if it had none; a deleted one comes back.
    Object(Key),
    /// Labels of a namespace.
    Labels(String),
    /// Ranges of the default partition.
    Ranges,
}

/// `Partition/web`.
pub(super) fn title((kind, name): &Key) -> String {
    format!("{kind:?}/{name}")
}

/// All objects of one kind.
pub(super) struct Layer<'a, T> {
    previous: &'a Named<Sourced<T>>,
    candidate: Named<Sourced<T>>,
    /// As the set now stands.
    pub current: Named<Sourced<T>>,
    /// Moved back: their previous version, or none, is current.
    back: BTreeSet<String>,
}

impl<'a, T: Clone + PartialEq> Layer<'a, T> {
    fn new(previous: &'a Named<Sourced<T>>, candidate: Named<Sourced<T>>) -> Self {
        Self { previous, current: candidate.clone(), candidate, back: BTreeSet::new() }
    }

    /// Whether what stands now is other than what is in force.
    fn changed(&self, name: &str) -> bool {
        self.current.get(name).map(|o| &o.spec) != self.previous.get(name).map(|o| &o.spec)
    }

    fn move_back(&mut self, name: &str) -> bool {
        if !self.changed(name) || !self.back.insert(name.to_string()) {
            return false;
        }
        match self.previous.get(name) {
            Some(previous) => self.current.insert(name.to_string(), previous.clone()),
            None => self.current.remove(name),
        };
        true
    }
}

pub(super) struct Draft<'a> {
    pub in_force: &'a Objects,
    pub partitions: Layer<'a, PartitionSpec>,
    pub network_groups: Layer<'a, NetworkGroupSpec>,
    pub bandwidth_classes: Layer<'a, BandwidthClassSpec>,
    pub network_policies: Layer<'a, NetworkPolicySpec>,
    pub cluster_network_policies: Layer<'a, ClusterNetworkPolicySpec>,
    /// What has no versions to choose from, apart from labels and ranges.
    pub rest: Objects,
}

impl<'a> Draft<'a> {
    pub fn new(in_force: &'a Objects, mut candidate: Objects) -> Self {
        Self {
            in_force,
            partitions: Layer::new(&in_force.partitions, std::mem::take(&mut candidate.partitions)),
            network_groups: Layer::new(
                &in_force.network_groups,
                std::mem::take(&mut candidate.network_groups),
            ),
            bandwidth_classes: Layer::new(
                &in_force.bandwidth_classes,
                std::mem::take(&mut candidate.bandwidth_classes),
            ),
            network_policies: Layer::new(
                &in_force.network_policies,
                std::mem::take(&mut candidate.network_policies),
            ),
            cluster_network_policies: Layer::new(
                &in_force.cluster_network_policies,
                std::mem::take(&mut candidate.cluster_network_policies),
            ),
            rest: candidate,
        }
    }

    pub fn into_objects(self) -> Objects {
        Objects {
            partitions: self.partitions.current,
            network_groups: self.network_groups.current,
            bandwidth_classes: self.bandwidth_classes.current,
            network_policies: self.network_policies.current,
            cluster_network_policies: self.cluster_network_policies.current,
            ..self.rest
        }
    }

    /// More moves than there can be.
    pub fn moves_left(&self) -> usize {
        fn of<T>(layer: &Layer<'_, T>) -> usize {
            layer.candidate.len() + layer.previous.len()
        }
        of(&self.partitions)
            + of(&self.network_groups)
            + of(&self.bandwidth_classes)
            + of(&self.network_policies)
            + of(&self.cluster_network_policies)
            + self.rest.namespaces.len()
            + self.in_force.namespaces.len()
            + 2
    }

    pub fn changed(&self, (kind, name): &Key) -> bool {
        match kind {
            Kind::Partition => self.partitions.changed(name),
            Kind::NetworkGroup => self.network_groups.changed(name),
            Kind::BandwidthClass => self.bandwidth_classes.changed(name),
            Kind::NetworkPolicy => self.network_policies.changed(name),
            Kind::ClusterNetworkPolicy => self.cluster_network_policies.changed(name),
        }
    }

    pub fn present(&self, (kind, name): &Key) -> bool {
        match kind {
            Kind::Partition => self.partitions.current.contains_key(name),
            Kind::NetworkGroup => self.network_groups.current.contains_key(name),
            Kind::BandwidthClass => self.bandwidth_classes.current.contains_key(name),
            Kind::NetworkPolicy => self.network_policies.current.contains_key(name),
            Kind::ClusterNetworkPolicy => self.cluster_network_policies.current.contains_key(name),
        }
    }

    /// Whether the candidate had it, in force or refused.
    pub fn offered(&self, (kind, name): &Key) -> bool {
        match kind {
            Kind::Partition => self.partitions.candidate.contains_key(name),
            Kind::NetworkGroup => self.network_groups.candidate.contains_key(name),
            Kind::BandwidthClass => self.bandwidth_classes.candidate.contains_key(name),
            Kind::NetworkPolicy => self.network_policies.candidate.contains_key(name),
            Kind::ClusterNetworkPolicy => self.cluster_network_policies.candidate.contains_key(name),
        }
    }

    /// Whether it can be moved back into force.
    pub fn was_in_force(&self, (kind, name): &Key) -> bool {
        match kind {
            Kind::Partition => self.partitions.previous.contains_key(name),
            Kind::NetworkGroup => self.network_groups.previous.contains_key(name),
            Kind::BandwidthClass => self.bandwidth_classes.previous.contains_key(name),
            Kind::NetworkPolicy => self.network_policies.previous.contains_key(name),
            Kind::ClusterNetworkPolicy => self.cluster_network_policies.previous.contains_key(name),
        }
    }

    /// Says whether anything changed by it.
    pub fn move_back(&mut self, subject: &Subject) -> bool {
        match subject {
            Subject::Object((Kind::Partition, name)) => self.partitions.move_back(name),
            Subject::Object((Kind::NetworkGroup, name)) => self.network_groups.move_back(name),
            Subject::Object((Kind::BandwidthClass, name)) => self.bandwidth_classes.move_back(name),
            Subject::Object((Kind::NetworkPolicy, name)) => self.network_policies.move_back(name),
            Subject::Object((Kind::ClusterNetworkPolicy, name)) => {
                self.cluster_network_policies.move_back(name)
            }
            Subject::Labels(namespace) => {
                let Some(previous) = self.in_force.namespaces.get(namespace) else { return false };
                let replaced = self.rest.namespaces.insert(namespace.clone(), previous.clone());
                replaced.as_ref() != Some(previous)
            }
            Subject::Ranges => {
                let changed = self.ranges_changed();
                self.rest.default_pod_cidrs.clone_from(&self.in_force.default_pod_cidrs);
                changed
            }
        }
    }

    /// Whether a namespace that was known has other labels now.
    pub fn labels_changed(&self, namespace: &str) -> bool {
        let previous = self.in_force.namespaces.get(namespace);
        previous.is_some() && previous != self.rest.namespaces.get(namespace)
    }

    pub fn ranges_changed(&self) -> bool {
        self.rest.default_pod_cidrs != self.in_force.default_pod_cidrs
    }
}
