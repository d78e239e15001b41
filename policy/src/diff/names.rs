//! Sets of groups in words that a person can read.
//!
//! ```text
//! anyone ─┬─ any pod ─── partition ─── namespace ─── pods by the labels that selectors ask for
//!         └─ anyone else ─── network groups, prefixes, nodes, the world
//! ```
//! A branch that is in the set as a whole is said by its name; one that is but for a little, by its name and the little.

use super::{groups::Group, side::Side, turned::Set};
use bulkhead_api::objects::{ClusterNetworkPolicySpec, LabelSelector, NetworkPolicySpec};
use std::collections::{BTreeMap, BTreeSet};

/// What is left out of a branch is named up to so many.
const EXCEPTIONS: usize = 3;

pub(super) struct Names {
    root: Branch,
    of_groups: Vec<String>,
}

struct Branch {
    /// None: its parts do not tell it from others.
    name: Option<String>,
    branches: Vec<Branch>,
    groups: Vec<u32>,
}

impl Names {
    pub fn of(sides: [&Side; 2], groups: &[Group]) -> Self {
        let keys: BTreeSet<String> = sides.iter().flat_map(|side| label_keys(side)).collect();
        let places: Vec<Place> = groups.iter().map(|group| Place::of(sides, group, &keys)).collect();
        let of_groups = group_names(&places);
        let mut by_partition: BTreeMap<&str, BTreeMap<Option<&str>, Vec<u32>>> = BTreeMap::new();
        let mut outside = Vec::new();
        for (place, n) in places.iter().zip(0..) {
            match &place.partition {
                Some(partition) => {
                    let namespaces = by_partition.entry(partition).or_default();
                    namespaces.entry(place.namespace.as_deref()).or_default().push(n);
                }
                None => outside.push(n),
            }
        }
        // A namespace whose pods stand in other places too is no branch with a name.
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for place in &places {
            let spread = if place.namespace.is_some() && place.partition.is_some() { 0 } else { 2 };
            place.namespaces.iter().for_each(|n| *seen.entry(n).or_default() += spread);
        }
        for namespace in by_partition.values().flat_map(BTreeMap::keys).flatten() {
            *seen.entry(namespace).or_default() += 1;
        }
        let namespace = |(name, groups): (Option<&str>, Vec<u32>)| Branch {
            name: name.filter(|n| seen.get(n) == Some(&1)).map(|n| format!("namespace {n}")),
            branches: Vec::new(),
            groups,
        };
        let partitions = by_partition.into_iter().map(|(name, namespaces)| Branch {
            name: Some(format!("partition {name}")),
            branches: namespaces.into_iter().map(namespace).collect(),
            groups: Vec::new(),
        });
        let branch = |name: &str, branches, groups| Branch { name: Some(name.into()), branches, groups };
        let pods = branch("any pod", partitions.collect(), Vec::new());
        let others = branch("anyone but pods", Vec::new(), outside);
        Self { root: branch("anyone", vec![pods, others], Vec::new()), of_groups }
    }

    pub fn say(&self, set: &Set) -> Vec<String> {
        let mut member = vec![false; self.of_groups.len()];
        for (first, last) in set {
            member[*first as usize..=*last as usize].fill(true);
        }
        self.cover(&self.root, &member)
    }

    fn cover(&self, branch: &Branch, member: &[bool]) -> Vec<String> {
        let plain = self.plain(branch, &|n| member[n as usize], &|b| self.cover(b, member));
        let Some(name) = branch.name.as_ref().filter(|_| plain.len() > 1) else {
            return self.whole(branch, member).unwrap_or(plain);
        };
        let missing = self.plain(branch, &|n| !member[n as usize], &|b| self.missing(b, member));
        match missing.as_slice() {
            [] => vec![name.clone()],
            few if few.len() <= EXCEPTIONS && few.len() + 1 < plain.len() => {
                vec![format!("{name} but {}", few.join(", "))]
            }
            _ => plain,
        }
    }

    /// Its name, if all of it is in the set and it has one.
    fn whole(&self, branch: &Branch, member: &[bool]) -> Option<Vec<String>> {
        let all = branch.all(&|n| member[n as usize]) && !branch.is_empty();
        branch.name.clone().filter(|_| all).map(|name| vec![name])
    }

    /// What of a branch is not in the set.
    fn missing(&self, branch: &Branch, member: &[bool]) -> Vec<String> {
        match &branch.name {
            Some(name) if !branch.is_empty() && branch.all(&|n| !member[n as usize]) => vec![name.clone()],
            _ => self.plain(branch, &|n| !member[n as usize], &|b| self.missing(b, member)),
        }
    }

    fn plain(
        &self,
        branch: &Branch,
        wanted: &dyn Fn(u32) -> bool,
        inner: &dyn Fn(&Branch) -> Vec<String>,
    ) -> Vec<String> {
        let groups =
            branch.groups.iter().filter(|n| wanted(**n)).map(|n| self.of_groups[*n as usize].clone());
        branch.branches.iter().flat_map(inner).chain(groups).collect()
    }
}

impl Branch {
    fn all(&self, wanted: &dyn Fn(u32) -> bool) -> bool {
        self.groups.iter().all(|n| wanted(*n)) && self.branches.iter().all(|b| b.all(wanted))
    }

    fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.branches.iter().all(Branch::is_empty)
    }
}

/// Where a group stands, and what its name is made of.
struct Place {
    partition: Option<String>,
    /// The one that all of it lies in.
    namespace: Option<String>,
    namespaces: BTreeSet<String>,
    labels: String,
    /// What else rules see of it: network groups, prefixes.
    known_as: Vec<String>,
    /// One of its pods.
    pod: Option<String>,
    rest: bool,
}

impl Place {
    fn of(sides: [&Side; 2], group: &Group, keys: &BTreeSet<String>) -> Self {
        // As the side after has it, but for pods that are gone there.
        let at = if group.views[1].policy.is_none() && group.views[0].policy.is_some() { 0 } else { 1 };
        let (side, identity) = (sides[at], group.views[at].identity);
        let namespaces: BTreeSet<String> =
            group.pods.iter().filter_map(|key| Some(key.split_once('/')?.0.to_string())).collect();
        let namespace = namespaces.first().filter(|_| namespaces.len() == 1 && !group.rest).cloned();
        let [before, after] = sides.map(|side| labels(side, group, keys));
        let labels = match (before, after) {
            (Some(before), Some(after)) if before != after => {
                let word = |labels: String| if labels.is_empty() { "no label".into() } else { labels };
                format!("{} (were {})", word(after), word(before))
            }
            (before, after) => after.or(before).unwrap_or_default(),
        };
        Self {
            partition: side.partition(identity).map(str::to_string),
            namespace,
            namespaces,
            labels,
            known_as: side.compiled.places(identity),
            pod: group.pods.first().cloned(),
            rest: group.rest,
        }
    }
}

/// Those of the labels that selectors ask for which all pods of the group have; none: the side tells of none of them.
fn labels(side: &Side, group: &Group, keys: &BTreeSet<String>) -> Option<String> {
    let mut pods = group.pods.iter().filter_map(|key| side.objects.pods.get(key));
    let first = pods.next()?;
    let asked = first.labels.iter().filter(|(key, _)| keys.contains(*key));
    let mut common: BTreeSet<_> = asked.collect();
    pods.for_each(|pod| common.retain(|(key, value)| pod.labels.get(key) == Some(value)));
    Some(common.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","))
}

fn group_names(places: &[Place]) -> Vec<String> {
    let mut in_partition: BTreeMap<&str, usize> = BTreeMap::new();
    places
        .iter()
        .filter_map(|p| p.partition.as_deref())
        .for_each(|p| *in_partition.entry(p).or_default() += 1);
    let names = places.iter().map(|place| {
        let known = if place.known_as.is_empty() {
            String::new()
        } else {
            format!(" ({})", place.known_as.join(", "))
        };
        match (&place.partition, &place.namespace) {
            (None, _) => place.known_as.join(", "),
            (Some(_), Some(namespace)) if place.labels.is_empty() => {
                format!("other pods in namespace {namespace}{known}")
            }
            (Some(_), Some(namespace)) => format!("pods {} in namespace {namespace}{known}", place.labels),
            (Some(partition), None)
                if in_partition.get(partition.as_str()) == Some(&1) || !known.is_empty() =>
            {
                format!("partition {partition}{known}")
            }
            (Some(partition), None) => format!("other pods of partition {partition}"),
        }
    });
    let mut names: Vec<String> = names.collect();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    names.iter().for_each(|name| *count.entry(name.clone()).or_default() += 1);
    for (name, place) in names.iter_mut().zip(places) {
        // Told apart by what their names do not say, as a named port.
        if let Some(pod) = place.pod.as_ref().filter(|_| count[name.as_str()] > 1 && !place.rest) {
            *name = format!("{name} as {pod}");
        }
    }
    names
}

/// Keys of labels that selectors of pods ask for.
fn label_keys(side: &Side) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut ask = |selector: &LabelSelector| {
        keys.extend(selector.match_labels.iter().map(|(key, _)| key.to_string()));
        keys.extend(selector.match_expressions.iter().map(|e| e.key.to_string()));
    };
    for policy in side.objects.network_policies.values() {
        of_network_policy(&policy.spec).for_each(&mut ask);
    }
    for policy in side.objects.cluster_network_policies.values() {
        of_cluster_policy(&policy.spec).for_each(&mut ask);
    }
    keys
}

fn of_network_policy(spec: &NetworkPolicySpec) -> impl Iterator<Item = &LabelSelector> {
    let peers = spec.ingress.iter().chain(&spec.egress).flat_map(|r| &r.peers);
    [&spec.pod_selector].into_iter().chain(peers.filter_map(|peer| peer.pod_selector.as_deref()))
}

fn of_cluster_policy(spec: &ClusterNetworkPolicySpec) -> impl Iterator<Item = &LabelSelector> {
    let ingress = spec.ingress.iter().flat_map(|r| &r.from);
    let peers = ingress.chain(spec.egress.iter().flat_map(|r| &r.to)).filter_map(|peer| peer.pods.as_ref());
    spec.subject.pods.iter().chain(peers).map(|pods| &pods.pod_selector)
}
