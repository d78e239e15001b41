//! What differs between two sets of objects, by name.

use crate::{Named, Objects, Sourced};
use imbl::ordmap::DiffItem;
use std::collections::BTreeMap;

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
    fn add<T: PartialEq>(
        &mut self,
        kind: &str,
        before: &Named<T>,
        after: &Named<T>,
        same: impl Fn(&T, &T) -> bool,
    ) {
        for item in before.diff(after) {
            match item {
                DiffItem::Add(name, _) => drop(self.there.insert(format!("{kind}/{name}"), '+')),
                DiffItem::Update { old: (_, old), new: (name, new) } if !same(old, new) => {
                    self.there.insert(format!("{kind}/{name}"), '~');
                }
                DiffItem::Update { .. } => {}
                DiffItem::Remove(name, _) => self.gone.push(format!("{kind}/{name}")),
            }
        }
        self.gone.sort_unstable();
    }
}

/// Another file or line is no change.
fn same_spec<T: PartialEq>(a: &Sourced<T>, b: &Sourced<T>) -> bool {
    a.spec == b.spec
}
