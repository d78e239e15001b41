//! What is wrong with a draft, and for each fault the one object that gives way.
//!
//! Of two objects that contradict each other the changed one gives way to the unchanged, and of two changed ones the
//! later by name.

use super::draft::{Draft, Key, Kind, Subject, title};
use crate::{Named, Objects, Sourced, objects::selects, prefix::Prefix};
use bulkhead_api::{
    messages::ObjectError,
    objects::{
        BUILT_IN_CLASSES, DEFAULT_PARTITION, FieldError, PartitionSpec, RulePeer, check_bandwidth_class,
        check_cluster_network_policy, check_network_group, check_network_policy, check_partition,
    },
};
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Fault {
    pub error: ObjectError,
    /// The object that the error's object is at odds with.
    pub with: Option<Key>,
    /// None: nothing that changed is to blame; all that can be done is to say so.
    pub gives_way: Option<Subject>,
}

/// In an order in which each can be acted on: what is wrong with one object first, then contradictions in order of who
/// gives way, so that the one it gives way to has been looked at before.
pub(super) fn faults(draft: &Draft<'_>) -> Vec<Fault> {
    let mut faults = alone(draft);
    faults.extend(policy_ids(draft));
    faults.extend(references(draft));
    faults.extend(overlaps(draft));
    faults.extend(namespaces(draft));
    faults.sort_by_key(|f| (f.with.is_some(), f.error.object.clone()));
    faults
}

/// What is wrong with objects on their own.
fn alone(draft: &Draft<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |key: Key, file: &Option<String>, errors: Vec<FieldError>| {
        for FieldError { field, message } in errors {
            faults.push(refusal(draft, &key, file, field, message));
        }
    };
    for (name, o) in &draft.partitions.current {
        add((Kind::Partition, name.clone()), &o.file, check_partition(name, &o.spec));
    }
    for (name, o) in &draft.network_groups.current {
        add((Kind::NetworkGroup, name.clone()), &o.file, check_network_group(name, &o.spec));
    }
    for (name, o) in &draft.bandwidth_classes.current {
        add((Kind::BandwidthClass, name.clone()), &o.file, check_bandwidth_class(name, &o.spec));
    }
    for (name, o) in &draft.cluster_network_policies.current {
        let key = (Kind::ClusterNetworkPolicy, name.clone());
        add(key, &o.file, check_cluster_network_policy(name, &o.spec));
    }
    for (key, o) in &draft.network_policies.current {
        add((Kind::NetworkPolicy, key.clone()), &o.file, check_network_policy(&o.spec));
    }
    faults
}

/// A fault of one object.
fn refusal(draft: &Draft<'_>, key: &Key, file: &Option<String>, field: String, message: String) -> Fault {
    let error = ObjectError { file: file.clone(), object: Some(title(key)), field: Some(field), message };
    let gives_way = draft.changed(key).then(|| Subject::Object(key.clone()));
    Fault { error, with: None, gives_way }
}

/// A fault of a partition with another one.
fn conflict(
    draft: &Draft<'_>,
    blamed: &str,
    other: &str,
    field: String,
    message: impl Fn(&str) -> String,
) -> Fault {
    let file = |name: &str| draft.partitions.current.get(name).and_then(|p| p.file.clone());
    let [blamed_key, other_key] = [blamed, other].map(partition_key);
    let other_title = match file(other) {
        Some(file) => format!("{} ({file})", title(&other_key)),
        None => title(&other_key),
    };
    let fault = refusal(draft, &blamed_key, &file(blamed), field, message(&other_title));
    Fault { with: Some(other_key), ..fault }
}

/// Of two partitions (in order of their names): who gives way, and to whom.
fn in_turn<'a>(draft: &Draft<'_>, first: &'a str, second: &'a str) -> (&'a str, &'a str) {
    // Who comes gives way to who is there, even to one that changes: else what was refused once would stop all its changes.
    let newness = |name| (draft.changed(&partition_key(name)), !draft.in_force.partitions.contains_key(name));
    if newness(first) > newness(second) { (first, second) } else { (second, first) }
}

fn partition_key(name: &str) -> Key {
    (Kind::Partition, name.to_string())
}

fn policy_ids(draft: &Draft<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut owners: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for (name, partition) in &draft.partitions.current {
        let id = partition.spec.policy_id;
        if id != 0 {
            owners.entry(id).or_default().push(name);
        }
        let previous = draft.in_force.partitions.get(name).map(|p| p.spec.policy_id).filter(|p| *p != id);
        if let Some(previous) = previous {
            let message = format!(
                "was {previous} and never changes: write {previous}, or make a new Partition for {id}"
            );
            let key = partition_key(name);
            faults.push(refusal(draft, &key, &partition.file, "spec.policyID".into(), message));
        }
    }
    for (id, names) in owners {
        for (first, second) in pairs(&names) {
            let (blamed, other) = in_turn(draft, first, second);
            faults.push(conflict(draft, blamed, other, "spec.policyID".into(), |other| {
                format!("{id} is the policyID of {other} already: choose a number that is free")
            }));
        }
    }
    faults
}

fn pairs<'a>(names: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    names.iter().enumerate().flat_map(|(i, a)| names[i + 1..].iter().map(move |b| (*a, *b))).collect()
}

/// Names of objects that are not there.
fn references(draft: &Draft<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (name, partition) in &draft.partitions.current {
        let key = partition_key(name);
        for (field, target) in targets(&partition.spec).into_iter().filter(|(_, t)| !exists(draft, t)) {
            if draft.changed(&key) || !draft.was_in_force(&target) {
                faults.push(refusal(draft, &key, &partition.file, field, unknown(draft, &target)));
                continue;
            }
            let message = format!(
                "{} was deleted and is named here: it stays in force until nothing in force names it",
                title(&target)
            );
            let fault = refusal(draft, &key, &partition.file, field, message);
            faults.push(Fault { gives_way: Some(Subject::Object(target)), ..fault });
        }
    }
    faults
}

fn exists(draft: &Draft<'_>, target: &Key) -> bool {
    let built_in = match target.0 {
        Kind::Partition => target.1 == DEFAULT_PARTITION,
        Kind::BandwidthClass => BUILT_IN_CLASSES.iter().any(|(name, _)| *name == target.1),
        Kind::NetworkGroup | Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => false,
    };
    built_in || draft.present(target)
}

fn unknown(draft: &Draft<'_>, target: &Key) -> String {
    let kind = target.0;
    if draft.offered(target) {
        return format!(
            "{} is refused itself, see its own error: nothing can name it before it is in force",
            title(target)
        );
    }
    let mut known: Vec<&str> = match kind {
        Kind::Partition => {
            draft.partitions.current.keys().map(String::as_str).chain([DEFAULT_PARTITION]).collect()
        }
        Kind::NetworkGroup => draft.network_groups.current.keys().map(String::as_str).collect(),
        // Nothing names one.
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => Vec::new(),
        Kind::BandwidthClass => {
            let made = draft.bandwidth_classes.current.keys().map(String::as_str);
            made.chain(BUILT_IN_CLASSES.iter().map(|(name, _)| *name)).collect()
        }
    };
    known.sort_unstable();
    known.dedup();
    let there = match known.len() {
        0 => "there is none".to_string(),
        1..=12 => format!("there are {}", known.join(", ")),
        more => format!("there are {more} others"),
    };
    format!("there is no {kind:?} `{}`: correct the name or make the object ({there})", target.1)
}

/// Every object that a partition names, with the field that does.
fn targets(spec: &PartitionSpec) -> Vec<(String, Key)> {
    let mut targets = Vec::new();
    let mut peers = |field: String, peers: &[RulePeer]| {
        for (i, peer) in peers.iter().enumerate() {
            if let Some(name) = &peer.partition {
                targets.push((format!("{field}[{i}].partition"), (Kind::Partition, name.clone())));
            }
            if let Some(name) = &peer.network_group {
                targets.push((format!("{field}[{i}].networkGroup"), (Kind::NetworkGroup, name.clone())));
            }
        }
    };
    for (i, rule) in spec.ingress.iter().enumerate() {
        peers(format!("spec.ingress[{i}].from"), &rule.from);
    }
    for (i, rule) in spec.egress.iter().enumerate() {
        peers(format!("spec.egress[{i}].to"), &rule.to);
    }
    if let Some(bandwidth) = &spec.bandwidth {
        if let Some(class) = &bandwidth.default_class {
            targets.push(("spec.bandwidth.defaultClass".into(), (Kind::BandwidthClass, class.clone())));
        }
        for (i, class) in bandwidth.allowed_classes.iter().enumerate() {
            targets
                .push((format!("spec.bandwidth.allowedClasses[{i}]"), (Kind::BandwidthClass, class.clone())));
        }
    }
    targets
}

/// A pod range and where it stands; no partition: the default one.
#[derive(Clone, Copy)]
struct Range<'a> {
    prefix: Prefix,
    partition: Option<&'a str>,
    index: usize,
}

/// Ranges that are not disjoint. In order, every range that holds another stands on the stack when that one comes.
fn overlaps(draft: &Draft<'_>) -> Vec<Fault> {
    let of_default = draft.rest.default_pod_cidrs.iter().enumerate();
    let mut ranges: Vec<_> =
        of_default.map(|(index, c)| Range { prefix: Prefix::of(*c), partition: None, index }).collect();
    for (name, partition) in &draft.partitions.current {
        let cidrs = partition.spec.pod_cidrs.iter().enumerate();
        ranges.extend(cidrs.map(|(index, c)| Range { prefix: Prefix::of(*c), partition: Some(name), index }));
    }
    ranges.sort_by_key(|r| (r.prefix, r.partition, r.index));
    let mut faults = Vec::new();
    let mut around: Vec<Range<'_>> = Vec::new();
    for range in ranges {
        // `::/0` is not around IPv4.
        around.retain(|outer| outer.prefix.spans(range.prefix));
        for outer in around.iter().filter(|o| o.prefix.covers(range.prefix)) {
            faults.extend(overlap(draft, *outer, range));
        }
        around.push(range);
    }
    faults
}

fn overlap(draft: &Draft<'_>, outer: Range<'_>, inner: Range<'_>) -> Option<Fault> {
    let networks = [outer, inner].map(|r| r.prefix.network());
    match (outer.partition, inner.partition) {
        (None, None) => None,
        (Some(a), Some(b)) if a == b => {
            let key = partition_key(a);
            let file = &draft.partitions.current.get(a)?.file;
            let message = format!(
                "{} overlaps {} (spec.podCIDRs[{}]): write each range once",
                networks[1], networks[0], outer.index
            );
            Some(refusal(draft, &key, file, format!("spec.podCIDRs[{}]", inner.index), message))
        }
        (Some(a), Some(b)) => {
            let (blamed, other) = in_turn(draft, a.min(b), a.max(b));
            let (own, theirs) = if blamed == a { (outer, inner) } else { (inner, outer) };
            let [own_network, theirs] = [own, theirs].map(|r| r.prefix.network());
            let field = format!("spec.podCIDRs[{}]", own.index);
            Some(conflict(draft, blamed, other, field, |other| {
                format!("{own_network} overlaps {theirs} of {other}: a range belongs to one partition")
            }))
        }
        (Some(name), None) | (None, Some(name)) => {
            let (own, default) = if outer.partition.is_some() { (outer, inner) } else { (inner, outer) };
            let key = partition_key(name);
            let file = &draft.partitions.current.get(name)?.file;
            let message = format!(
                "{} overlaps {} of the default partition (`podCIDRs` in the node's configuration): take it out of one",
                own.prefix.network(),
                default.prefix.network()
            );
            let mut fault = refusal(draft, &key, file, format!("spec.podCIDRs[{}]", own.index), message);
            if !draft.changed(&key) && draft.ranges_changed() {
                fault.gives_way = Some(Subject::Ranges);
            }
            Some(fault)
        }
    }
}

/// Namespaces that two partitions ask for.
fn namespaces(draft: &Draft<'_>) -> Vec<Fault> {
    let now = claims(&draft.partitions.current, &draft.rest);
    let twice: Vec<_> = now.iter().filter(|(_, owners)| owners.len() > 1).collect();
    if twice.is_empty() {
        return Vec::new();
    }
    let before = claims(&draft.in_force.partitions, draft.in_force);
    let mut faults = Vec::new();
    for (namespace, owners) in twice {
        for (first, second) in pairs(owners) {
            let mut fault = double_claim(draft, namespace, first, second);
            if before.get(namespace).is_some_and(|old| old.contains(&first) && old.contains(&second)) {
                // Labels made it so, before this change: no partition is held up for that.
                fault.gives_way = None;
            } else if fault.gives_way.is_none() && draft.labels_changed(namespace) {
                fault.gives_way = Some(Subject::Labels(namespace.clone()));
            }
            faults.push(fault);
        }
    }
    faults
}

fn double_claim(draft: &Draft<'_>, namespace: &str, first: &str, second: &str) -> Fault {
    let (blamed, other) = in_turn(draft, first, second);
    let partition = draft.partitions.current.get(blamed);
    let named = partition.and_then(|p| p.spec.namespaces.iter().position(|n| n == namespace));
    let field = named.map_or("spec.namespaceSelector".to_string(), |i| format!("spec.namespaces[{i}]"));
    conflict(draft, blamed, other, field, |other| {
        format!("namespace `{namespace}` belongs to {other} already: a namespace is in one partition")
    })
}

/// Partitions, by name, that ask for a namespace, for every namespace that any is known of.
fn claims<'a>(
    partitions: &'a Named<Sourced<PartitionSpec>>,
    objects: &Objects,
) -> BTreeMap<String, Vec<&'a str>> {
    let mut claims: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, partition) in partitions {
        for namespace in &partition.spec.namespaces {
            claims.entry(namespace.clone()).or_default().insert(name);
        }
    }
    let selecting: Vec<_> = partitions.iter().filter(|(_, p)| p.spec.namespace_selector.is_some()).collect();
    let known: BTreeSet<&String> = objects.namespaces.keys().collect();
    let listed: Vec<String> = claims.keys().cloned().collect();
    for namespace in known.into_iter().cloned().chain(listed).collect::<BTreeSet<_>>() {
        let labels = objects.labels(&namespace);
        for (name, _) in selecting.iter().filter(|(_, p)| selects(&p.spec, &labels)) {
            claims.entry(namespace.clone()).or_default().insert(name);
        }
    }
    claims.into_iter().map(|(namespace, owners)| (namespace, owners.into_iter().collect())).collect()
}
