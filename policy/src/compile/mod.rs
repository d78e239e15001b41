//! Objects into tables and identities. Same objects and same interner: same result; and no decision depends on what
//! the interner has seen before.
//!
//! ```text
//! pods of the node ─▶ policies (who judges them) ─▶ what those ask ─┬─▶ rules by tier ─▶ ports: port classes ─┐
//! Objects ─────────────────────▶ addresses and pods, as atoms ──────┴─▶ classes of identities ───────────────┴─▶ builder
//! ```
//! Only policies that pods of this node have are compiled, and only what these ask makes identities: a node's tables grow
//! with its own pods, not with the cluster's policies.

mod addresses;
mod builder;
mod classes;
mod cluster_policy;
mod identities;
mod network_policy;
mod place;
mod policy;
mod ports;
mod rules;
mod selection;
mod tiers;

use crate::{Interner, LocalPod, Objects, atom::Atom, rulebook::RuleBook, tables::Tables};
use bulkhead_api::objects::DEFAULT_PARTITION;
use bulkhead_ebpf_abi::{Addr, DIR_EGRESS, DIR_INGRESS, Identity};
pub(crate) use identities::partition as partition_of;
pub use place::Placement;
pub(crate) use policy::Policy;
use policy::PolicyKey;
pub(crate) use rules::{Rule, Verdict};
use selection::Selections;
use std::collections::{BTreeMap, BTreeSet};
pub(crate) use tiers::{TIERS, cell};

/// The node that tables are for, and whose policies it needs.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    pub node: &'a str,
    pub pods: &'a [LocalPod],
    /// Partitions that need a policy also without a pod; None: all.
    pub partitions: Option<&'a BTreeSet<String>>,
    /// What is in force until the switch: pods have its policies until they are told of their new ones.
    pub former: Option<&'a Compiled>,
}

/// Everything a generation is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    pub tables: Tables,
    /// By longest prefix: (address, length); IPv4 lengths are 96 larger.
    pub prefixes: BTreeMap<(Addr, u8), Identity>,
    /// Addresses of nodes, and of pods of which rules see more than their prefix. The daemon sets its own pods' itself:
    /// see [`Compiled::pod_identity`].
    pub exact: BTreeMap<Addr, Identity>,
    pub rules: RuleBook,
    /// Number of the policy of pods that only their partition judges, by partition, as far as needed.
    pub policies: BTreeMap<String, u32>,
    /// Identity, by partition, of a pod of which no rule sees more than its partition.
    pub pod_identities: BTreeMap<String, u32>,
    /// What an identity stands for.
    pub(crate) identities: BTreeMap<u32, Vec<Atom>>,
    by_meaning: BTreeMap<Vec<Atom>, u32>,
    /// The rules behind the tables, for people.
    pub(crate) lists: BTreeMap<(u32, u32), Policy>,
    numbers: BTreeMap<PolicyKey, u32>,
    /// Of these, the ones that were needed for themselves.
    needed: BTreeSet<PolicyKey>,
    asked: Selections,
    /// By partition: what its ranges' prefixes are known as.
    variants: BTreeMap<String, BTreeSet<Vec<Atom>>>,
}

/// The objects do not fit the tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error(
        "Partition/{partition}: the rules of one direction tell more than 65535 sets of ports apart: join port ranges, \
         or split the partition"
    )]
    PortClasses { partition: String },
    #[error(
        "Partition/{partition}: the decision tables grow beyond 32-bit offsets: use fewer peers or ports"
    )]
    TooLarge { partition: String },
    #[error(
        "Partition/{partition}: no number is left for a policy, rule or identity: start with a new state folder"
    )]
    Numbers { partition: String },
}

impl CompileError {
    fn numbers(partition: &str) -> Self {
        Self::Numbers { partition: partition.into() }
    }
}

/// Compiles all objects for one node. The interner changes only on success.
///
/// # Errors
/// When something outgrows the tables; names the partition.
pub fn compile(
    objects: &Objects,
    interner: &mut Interner,
    local: &Local<'_>,
) -> Result<Compiled, CompileError> {
    let mut numbers = interner.clone();
    let needed = keys(objects, local);
    let former = local.former.iter().flat_map(|f| &f.needed).filter(|k| is_there(objects, &k.partition));
    let keys: BTreeSet<PolicyKey> = needed.iter().chain(former).cloned().collect();
    let mut compiled = rules_of(objects, &mut numbers, local, keys)?;
    compiled.needed = needed;
    // In the order of the keys: what is stored first does not depend on the numbers.
    let lists = compiled.numbers.values().flat_map(|n| [DIR_EGRESS, DIR_INGRESS].map(|dir| (*n, dir)));
    let lists: Vec<&Policy> = lists.filter_map(|list| compiled.lists.get(&list)).collect();
    compiled.tables = tables(&lists, &numbers)?;
    *interner = numbers;
    Ok(compiled)
}

/// Everything but the tables, and the number of each pod's policy: to compare whole clusters. Tables are a node's; those
/// of all policies of a cluster would grow with policies times identities.
pub(crate) fn without_tables<'a>(
    objects: &Objects,
    interner: &mut Interner,
    node: &str,
    pods: impl Iterator<Item = &'a LocalPod>,
) -> Result<(Compiled, Vec<u32>), CompileError> {
    let none = BTreeSet::new();
    let local = Local { node, pods: &[], partitions: Some(&none), former: None };
    let keys: Vec<PolicyKey> = pods.map(|pod| PolicyKey::of(objects, pod)).collect();
    let compiled = rules_of(objects, interner, &local, keys.iter().cloned().collect())?;
    let numbers = keys.iter().filter_map(|key| compiled.numbers.get(key)).copied().collect();
    Ok((compiled, numbers))
}

/// The policies as lists of rules, and everybody they can tell apart.
fn rules_of(
    objects: &Objects,
    numbers: &mut Interner,
    local: &Local<'_>,
    keys: BTreeSet<PolicyKey>,
) -> Result<Compiled, CompileError> {
    let (asked, blocks) = ask(objects, &keys);
    let peer_ports = asked.named_ports(objects);
    let mut policies = Vec::new();
    let mut book = BTreeMap::new();
    for key in &keys {
        for dir in [DIR_EGRESS, DIR_INGRESS] {
            policies.push(Policy::of(objects, key, dir, &peer_ports, numbers, &mut book)?);
        }
    }
    let addresses = addresses::Addresses::of(objects, local.node, &asked, &blocks);
    let identities = identities::Identities::of(objects, local, &addresses, &asked, numbers)?;
    let by_key: BTreeMap<PolicyKey, u32> =
        keys.into_iter().zip(policies.iter().step_by(2).map(|p| p.number)).collect();
    let plain = by_key.iter().filter(|(key, _)| key.is_plain());
    Ok(Compiled {
        tables: Tables::default(),
        prefixes: identities.prefixes,
        exact: identities.exact,
        rules: RuleBook::new(book, numbers),
        policies: plain.map(|(key, number)| (key.partition.clone(), *number)).collect(),
        pod_identities: identities.of_partitions,
        by_meaning: identities.meanings.iter().map(|(id, atoms)| (atoms.clone(), *id)).collect(),
        identities: identities.meanings,
        lists: policies.into_iter().map(|p| ((p.number, p.dir), p)).collect(),
        numbers: by_key,
        needed: BTreeSet::new(),
        asked,
        variants: identities.variants,
    })
}

fn is_there(objects: &Objects, partition: &str) -> bool {
    partition == DEFAULT_PARTITION || objects.partitions.contains_key(partition)
}

/// The policies that the node needs; the default partition's always.
fn keys(objects: &Objects, local: &Local<'_>) -> BTreeSet<PolicyKey> {
    let needed = |name: &&String| local.partitions.is_none_or(|p| p.contains(*name));
    let names = objects.partitions.keys().filter(needed).map(String::as_str).chain([DEFAULT_PARTITION]);
    let of_pods = local.pods.iter().map(|pod| PolicyKey::of(objects, pod));
    names.map(PolicyKey::plain).chain(of_pods).collect()
}

/// What these policies ask of pods and addresses.
fn ask(objects: &Objects, keys: &BTreeSet<PolicyKey>) -> (Selections, BTreeSet<Atom>) {
    let (mut selections, mut blocks) = (Selections::default(), BTreeSet::new());
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
    (selections, blocks)
}

fn tables(policies: &[&Policy], numbers: &Interner) -> Result<Tables, CompileError> {
    let classes = classes::Classes::of(policies, numbers);
    let mut builder = builder::Builder::new(&classes);
    for policy in policies {
        builder.add(policy)?;
    }
    // A number between those in use may stand in a pod's entry that is about to be rewritten: nothing passes.
    let used: BTreeSet<u32> = policies.iter().map(|p| p.number).collect();
    let last = used.last().copied().unwrap_or_default();
    for hole in (0..last).filter(|n| !used.contains(n)) {
        for dir in [DIR_EGRESS, DIR_INGRESS] {
            builder.add(&Policy::closed(hole, dir))?;
        }
    }
    Ok(builder.finish())
}
