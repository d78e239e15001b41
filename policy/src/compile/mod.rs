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
mod classes;
mod cluster_policy;
mod identities;
mod layout;
mod needs;
mod network_policy;
mod place;
mod pods;
mod policy;
mod port_table;
mod ports;
mod rows;
mod rules;
mod selection;
mod spans;
mod tiers;

use crate::{
    Interner, LocalPod, Objects, atom::Atom, interner, prefix::Prefix, rulebook::RuleBook, tables::Tables,
};
use addresses::Addresses;
use bulkhead_ebpf_abi::{Addr, Identity};
use classes::Classes;
use identities::Identities;
pub(crate) use identities::partition as partition_of;
use imbl::OrdMap;
use layout::Layout;
use needs::{Asked, Keys, Subjects, ask, keys};
pub use place::Placement;
pub(crate) use policy::Policy;
use policy::{Judged, PolicyKey};
pub(crate) use rules::{Rule, Verdict};
use selection::Selections;
pub(crate) use spans::Map;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
pub(crate) use tiers::{TIERS, cell};

/// Up to so many partitions all have their policy in a node's tables, so that a pod that comes needs no generation; the rows
/// of the tables grow with policies times classes, so beyond it only those do that pods of the node have.
pub const EAGER_PARTITIONS: usize = 128;

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

/// Everything a generation is made of. A clone shares it all.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    pub tables: Tables,
    /// By longest prefix: (address, length); IPv4 lengths are 96 larger.
    pub prefixes: OrdMap<(Addr, u8), Identity>,
    /// Addresses of nodes, and of pods of which rules see more than their prefix. The daemon sets its own pods' itself:
    /// see [`Compiled::pod_identity`].
    pub exact: OrdMap<Addr, Identity>,
    pub rules: RuleBook,
    /// Number of the policy of pods that only their partition judges, by partition, as far as needed.
    pub policies: BTreeMap<String, u32>,
    /// Identity, by partition, of a pod of which no rule sees more than its partition.
    pub pod_identities: BTreeMap<String, u32>,
    /// The rules behind the tables, for people.
    pub(crate) lists: BTreeMap<(u32, u32), Arc<Policy>>,
    numbers: BTreeMap<PolicyKey, u32>,
    subjects: Subjects,
    /// Of these, the ones that were needed for themselves.
    needed: BTreeSet<PolicyKey>,
    asked: Arc<Asked>,
    identities: Identities,
    /// What was compiled, and what it was made of: the next compile looks at what differs.
    objects: Objects,
    blocks: Arc<BTreeSet<Atom>>,
    judged: BTreeMap<PolicyKey, Arc<Judged>>,
    classes: Arc<Classes>,
    layout: Arc<Layout>,
    /// As it was when this was compiled.
    interner: Interner,
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
/// What `local.former` (compiled for the same node with the same interner) was made of is made again only as far as it
/// differs, and what it has in the tables stays in its place there. Nobody is judged otherwise for that: what is decided
/// depends on the objects alone.
///
/// # Errors
/// When something outgrows the tables; names the partition.
pub fn compile(
    objects: &Objects,
    interner: &mut Interner,
    local: &Local<'_>,
) -> Result<Compiled, CompileError> {
    compile_keys(objects, interner, local, keys(objects, local))
}

/// As [`compile`], but everything is made and placed anew, without the gaps that many changes leave in the tables. Policies
/// that pods have until they are told of their new ones are among it all the same.
///
/// # Errors
/// As [`compile`].
pub fn compile_at_once(
    objects: &Objects,
    interner: &mut Interner,
    local: &Local<'_>,
) -> Result<Compiled, CompileError> {
    compile_keys(objects, interner, &Local { former: None, ..*local }, keys(objects, local))
}

fn compile_keys(
    objects: &Objects,
    interner: &mut Interner,
    local: &Local<'_>,
    Keys { subjects, needed, all }: Keys,
) -> Result<Compiled, CompileError> {
    let mut numbers = interner.clone();
    let judges = Judges::of(objects, &mut numbers, local, all)?;
    let policies: Vec<Arc<Policy>> = judges.policies().collect();
    let classes = Classes::of(&policies, numbers.identities(), local.former.map(|f| &f.classes));
    let layout = Layout::of(policies, &classes, local.former.map(|f| &f.layout))?;
    let compiled = judges.into_compiled(objects, numbers.clone(), local.former, classes, layout);
    let compiled = Compiled { subjects, needed, ..compiled };
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
    let judges = Judges::of(objects, interner, &local, keys.iter().cloned().collect())?;
    let numbers = keys.iter().filter_map(|key| judges.judged.get(key)).map(|j| j.number()).collect();
    let (classes, layout) = (Arc::default(), Arc::default());
    Ok((judges.into_compiled(objects, interner.clone(), None, classes, layout), numbers))
}

/// The policies as lists of rules, and everybody they can tell apart.
struct Judges {
    asked: Arc<Asked>,
    blocks: Arc<BTreeSet<Atom>>,
    identities: Identities,
    judged: BTreeMap<PolicyKey, Arc<Judged>>,
}

impl Judges {
    fn of(
        objects: &Objects,
        numbers: &mut Interner,
        local: &Local<'_>,
        keys: BTreeSet<PolicyKey>,
    ) -> Result<Self, CompileError> {
        let (asked, blocks) = ask(objects, &keys, local.former);
        let addresses = changed_addresses(objects, local, &asked.selections, &blocks);
        let identities = Identities::of(objects, local, addresses, &asked, numbers)?;
        let judged = judged(objects, keys, &asked.selections, &identities, local.former, numbers)?;
        let identities_asked = identities.asked.clone();
        numbers.asked(match local.former.filter(|f| f.has_judged(&judged)) {
            Some(former) => interner::Asked { identities: identities_asked, ..former.interner.asks() },
            None => interner::Asked {
                identities: identities_asked,
                policies: ascending(judged.values().map(|j| j.number())),
                rules: ascending(judged.values().flat_map(|j| j.rules())),
            },
        });
        Ok(Self { asked, blocks, identities, judged })
    }

    /// In the order of the keys: what is stored first does not depend on the numbers.
    fn policies(&self) -> impl Iterator<Item = Arc<Policy>> {
        self.judged.values().flat_map(|j| j.dirs.clone())
    }

    fn into_compiled(
        self,
        objects: &Objects,
        interner: Interner,
        former: Option<&Compiled>,
        classes: Arc<Classes>,
        layout: Arc<Layout>,
    ) -> Compiled {
        let lists = self.policies().map(|p| ((p.number, p.dir), p)).collect();
        let Self { asked, blocks, identities, judged } = self;
        let numbers: BTreeMap<PolicyKey, u32> =
            judged.iter().map(|(key, j)| (key.clone(), j.number())).collect();
        let plain = numbers.iter().filter(|(key, _)| key.is_plain());
        let named = former.filter(|f| f.has_judged(&judged) && f.interner.rules() == interner.rules());
        let rules = named.map_or_else(
            || RuleBook::new(judged.values().flat_map(|j| &j.book), &interner),
            |f| f.rules.clone(),
        );
        Compiled {
            tables: layout.tables.clone(),
            prefixes: identities.base.prefixes.clone(),
            exact: identities.pods.exact.clone(),
            rules,
            policies: plain.map(|(key, number)| (key.partition.clone(), *number)).collect(),
            pod_identities: identities.base.of_partitions.clone(),
            lists,
            numbers,
            subjects: Subjects::new(),
            needed: BTreeSet::new(),
            asked,
            identities,
            objects: objects.clone(),
            blocks,
            judged,
            classes,
            layout,
            interner,
        }
    }
}

impl Compiled {
    /// Whether these are the very same rules.
    fn has_judged(&self, judged: &BTreeMap<PolicyKey, Arc<Judged>>) -> bool {
        let same = |((a, x), (b, y)): (_, (_, _))| a == b && Arc::ptr_eq(x, y);
        self.judged.len() == judged.len() && self.judged.iter().zip(judged).all(same)
    }

    /// Those that are one address and no prefix.
    pub(crate) fn strays(&self) -> impl Iterator<Item = Addr> {
        self.identities.base.strays.keys().copied()
    }

    /// What was compiled.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Pods that are told to have addresses of this prefix, as `namespace/name`.
    pub(crate) fn pods_within(&self, prefix: Prefix) -> impl Iterator<Item = (Addr, &str)> {
        self.identities.pods.within(prefix)
    }

    /// What an identity stands for; nothing for the world.
    pub(crate) fn meaning(&self, identity: u32) -> &[Atom] {
        self.interner.identities().get(&identity).map_or(&[], |atoms| atoms)
    }
}

/// None: as they were.
fn changed_addresses(
    objects: &Objects,
    local: &Local<'_>,
    asked: &Selections,
    blocks: &Arc<BTreeSet<Atom>>,
) -> Option<Addresses> {
    let same = local.former.is_some_and(|former| {
        former.blocks == *blocks
            && former.asked.selections.same_nodes(asked)
            && addresses::same_addresses(&former.objects, objects)
    });
    (!same).then(|| Addresses::of(objects, local.node, asked, blocks))
}

/// Rules of every policy; those of which nothing has changed are the former's.
fn judged(
    objects: &Objects,
    keys: BTreeSet<PolicyKey>,
    asked: &Selections,
    identities: &Identities,
    former: Option<&Compiled>,
    numbers: &mut Interner,
) -> Result<BTreeMap<PolicyKey, Arc<Judged>>, CompileError> {
    let peer_ports = Arc::new(asked.named_ports(identities.pods.ports()));
    let dns = objects.cluster_dns.iter().filter_map(|a| identities.partition_of_address(Addr::from_ip(*a)));
    let dns: BTreeSet<&str> = dns.collect();
    let dns_ports = objects.cluster_dns_ports.clone().into();
    let mut all = BTreeMap::new();
    for key in keys {
        let hosts_dns = dns.contains(key.partition.as_str());
        let sources = policy::Sources::of(objects, &key, &peer_ports, hosts_dns, &dns_ports);
        let same = former.and_then(|f| f.judged.get(&key)).filter(|j| j.sources.same(&sources));
        let judged = match same {
            Some(judged) => judged.clone(),
            None => Arc::new(Judged::of(objects, &key, sources, numbers)?),
        };
        all.insert(key, judged);
    }
    Ok(all)
}

fn ascending(numbers: impl Iterator<Item = u32>) -> Arc<[u32]> {
    let mut all: Vec<u32> = numbers.collect();
    all.sort_unstable();
    all.dedup();
    all.into()
}
