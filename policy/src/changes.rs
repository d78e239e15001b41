//! What differs between two sets of objects, by name.

use crate::{Named, Objects, Sourced};
use std::{collections::BTreeMap, sync::Arc};

/// `Partition/web`, of all objects that policy can see.
pub fn names(objects: &Objects) -> Vec<String> {
    // Against nothing, everything is new.
    let new = changes(&Objects::default(), objects);
    new.into_iter().map(|name| name.trim_start_matches('+').to_string()).collect()
}

/// `+Partition/new`, `~Partition/edited`, `-NetworkGroup/gone`.
pub fn changes(before: &Objects, after: &Objects) -> Vec<String> {
    let mut changes = Changes::default();
    changes.add("Partition", &before.partitions, &after.partitions, same_spec);
    changes.add("NetworkGroup", &before.network_groups, &after.network_groups, same_spec);
    changes.add("BandwidthClass", &before.bandwidth_classes, &after.bandwidth_classes, same_spec);
    changes.add("NetworkPolicy", &before.network_policies, &after.network_policies, same_spec);
    changes.add(
        "ClusterNetworkPolicy",
        &before.cluster_network_policies,
        &after.cluster_network_policies,
        same_spec,
    );
    changes.add("Namespace", &before.namespaces, &after.namespaces, PartialEq::eq);
    changes.add("Pod", &before.pods, &after.pods, PartialEq::eq);
    changes.add("Node", &before.nodes, &after.nodes, PartialEq::eq);
    let there = changes.there.into_iter().map(|(name, sign)| format!("{sign}{name}"));
    there.chain(changes.gone.into_iter().map(|name| format!("-{name}"))).collect()
}

#[derive(Default)]
struct Changes {
    there: BTreeMap<String, char>,
    gone: Vec<String>,
}

impl Changes {
    fn add<T>(&mut self, kind: &str, before: &Named<T>, after: &Named<T>, same: impl Fn(&T, &T) -> bool) {
        for (name, object) in after {
            let sign = match before.get(name) {
                None => '+',
                Some(old) if !Arc::ptr_eq(old, object) && !same(old, object) => '~',
                Some(_) => continue,
            };
            self.there.insert(format!("{kind}/{name}"), sign);
        }
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        self.gone.extend(gone.map(|name| format!("{kind}/{name}")));
        self.gone.sort_unstable();
    }
}

/// Another file or line is no change.
fn same_spec<T: PartialEq>(a: &Sourced<T>, b: &Sourced<T>) -> bool {
    a.spec == b.spec
}
