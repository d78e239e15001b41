//! What a node needs of the objects: the policies of its pods, and what these ask. Of what has not changed, neither in a pod
//! nor in what could pick it, it is the former's.

use super::{
    Compiled, Local, cluster_policy, network_policy, policy::PolicyKey, rules, selection::Selections,
};
use crate::{LocalPod, Objects, Sourced, atom::Atom};
use bulkhead_api::objects::{DEFAULT_PARTITION, PartitionSpec};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn is_there(objects: &Objects, partition: &str) -> bool {
    partition == DEFAULT_PARTITION || objects.partitions.contains_key(partition)
}

/// Which policy judges each pod of this node.
pub(super) type Subjects = BTreeMap<LocalPod, PolicyKey>;

pub(super) struct Keys {
    pub subjects: Subjects,
    /// What the node needs; the default partition's always.
    pub needed: BTreeSet<PolicyKey>,
    /// And what its pods have until they are told.
    pub all: BTreeSet<PolicyKey>,
}

pub(super) fn keys(objects: &Objects, local: &Local<'_>) -> Keys {
    let wanted = |name: &&String| local.partitions.is_none_or(|p| p.contains(*name));
    let names = objects.partitions.keys().filter(wanted).map(String::as_str).chain([DEFAULT_PARTITION]);
    let subjects = subjects(objects, local);
    let needed: BTreeSet<PolicyKey> = names.map(PolicyKey::plain).chain(subjects.values().cloned()).collect();
    let former = local.former.iter().flat_map(|f| &f.needed).filter(|k| is_there(objects, &k.partition));
    let all = needed.iter().chain(former).cloned().collect();
    Keys { subjects, needed, all }
}

/// Of a pod of which nothing has changed, nor of the policies that there are, it is the former one.
fn subjects(objects: &Objects, local: &Local<'_>) -> Subjects {
    let former =
        local.former.filter(|f| f.has_policies(objects) && f.objects.namespaces == objects.namespaces);
    let of = |pod: &LocalPod| {
        let (key, partition) = (pod.key(), &pod.partition);
        let known = former.filter(|f| {
            f.objects.pods.get(&key) == objects.pods.get(&key)
                && is_there(&f.objects, partition) == is_there(objects, partition)
        });
        let known = known.and_then(|f| f.subjects.get(pod)).cloned();
        (pod.clone(), known.unwrap_or_else(|| PolicyKey::of(objects, pod)))
    };
    local.pods.iter().map(of).collect()
}

/// What NetworkPolicies and ClusterNetworkPolicies ask of pods and addresses.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Asked {
    pub selections: Selections,
    blocks: BTreeSet<Atom>,
}

impl Compiled {
    fn has_policies(&self, objects: &Objects) -> bool {
        self.objects.network_policies == objects.network_policies
            && self.objects.cluster_network_policies == objects.cluster_network_policies
    }
}

/// What these policies ask, and with it every block that any rule names.
pub(super) fn ask(
    objects: &Objects,
    keys: &BTreeSet<PolicyKey>,
    former: Option<&Compiled>,
) -> (Arc<Asked>, Arc<BTreeSet<Atom>>) {
    let same = former.filter(|f| f.has_policies(objects) && f.judged.keys().eq(keys));
    let asked = same.map_or_else(|| Arc::new(asked(objects, keys)), |f| f.asked.clone());
    let partitions: BTreeSet<&String> = keys.iter().map(|k| &k.partition).collect();
    let blocks = |p: &Sourced<PartitionSpec>| rules::blocks(&p.spec).collect::<BTreeSet<_>>();
    let names_the_same = |former: &Objects, name: &String| {
        let [before, now] = [former, objects].map(|o| o.partitions.get(name));
        match (before, now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now) || blocks(before) == blocks(now),
            _ => before.is_none() && now.is_none(),
        }
    };
    let same = same.filter(|f| partitions.iter().all(|p| names_the_same(&f.objects, p)));
    if let Some(former) = same {
        return (asked, former.blocks.clone());
    }
    let partitions = partitions.into_iter().filter_map(|name| objects.partitions.get(name));
    let of_partitions = partitions.flat_map(|p| rules::blocks(&p.spec));
    let blocks = asked.blocks.iter().cloned().chain(of_partitions).collect();
    (asked, Arc::new(blocks))
}

fn asked(objects: &Objects, keys: &BTreeSet<PolicyKey>) -> Asked {
    let Asked { mut selections, mut blocks } = Asked::default();
    let policies: BTreeSet<&String> = keys.iter().flat_map(|k| &k.network_policies).collect();
    for key in policies {
        let Some(policy) = objects.network_policies.get(key) else { continue };
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        network_policy::ask(namespace, &policy.spec, &mut selections, &mut blocks);
    }
    let policies: BTreeSet<&String> = keys.iter().flat_map(|k| &k.cluster_policies).collect();
    for policy in policies.into_iter().filter_map(|name| objects.cluster_network_policies.get(name)) {
        cluster_policy::ask(&policy.spec, &mut selections, &mut blocks);
    }
    Asked { selections, blocks }
}
