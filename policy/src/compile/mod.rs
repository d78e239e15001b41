//! Objects into tables and identities. Same objects and same interner: same result; and no decision depends on what
//! the interner has seen before.
//!
//! ```text
//! Objects ─▶ rules (ordered, built-in ones too) ─┬─▶ ports: port classes ─┐
//!       └──▶ addresses (atoms by prefix) ─▶ classes of addresses ─────────┴─▶ builder: rows, cells, pages
//! ```

mod addresses;
mod builder;
mod classes;
mod ports;
mod rules;

use crate::{Interner, Objects, atom::Atom, prefix::Prefix, rulebook::RuleBook, tables::Tables};
use bulkhead_api::objects::DEFAULT_PARTITION;
use bulkhead_ebpf_abi::{Addr, DIR_EGRESS, DIR_INGRESS, ID_WORLD, IDENTITY_LOCAL_NODE, Identity};
use std::collections::{BTreeMap, BTreeSet};

/// Everything a generation is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    pub tables: Tables,
    /// By longest prefix: (address, length); IPv4 lengths are 96 larger.
    pub prefixes: BTreeMap<(Addr, u8), Identity>,
    /// Addresses of nodes. The daemon adds its own pods: see [`Compiled::pod_identity`].
    pub exact: BTreeMap<Addr, Identity>,
    pub rules: RuleBook,
    /// Number of the policy by partition, the default partition's among them.
    pub policies: BTreeMap<String, u32>,
    /// Identity, by partition, of a pod of which no rule sees more than its partition.
    pub pod_identities: BTreeMap<String, u32>,
    /// What an identity stands for.
    pub(crate) identities: BTreeMap<u32, Vec<Atom>>,
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
    local_node: &str,
) -> Result<Compiled, CompileError> {
    let mut numbers = interner.clone();
    let mut identities = BTreeMap::new();
    let addresses = addresses::Addresses::of(objects, local_node);
    let mut identity = |numbers: &mut Interner, atoms: &Vec<Atom>| {
        let id = if atoms.is_empty() {
            ID_WORLD
        } else {
            numbers.identity(atoms).map_err(|_| CompileError::numbers(owner(atoms)))?
        };
        identities.insert(id, atoms.clone());
        Ok(id)
    };
    let mut pod_identities = BTreeMap::new();
    let names: BTreeSet<&str> =
        objects.partitions.keys().map(String::as_str).chain([DEFAULT_PARTITION]).collect();
    for name in names {
        let atoms = vec![Atom::Pod, Atom::Partition(name.into())];
        pod_identities.insert(name.to_string(), identity(&mut numbers, &atoms)?);
    }
    let mut prefixes = BTreeMap::new();
    for (Prefix { address, length }, atoms) in addresses.prefixes {
        prefixes.insert((address, length), Identity { id: identity(&mut numbers, &atoms)?, flags: 0 });
    }
    let mut exact = BTreeMap::new();
    for (address, atoms) in addresses.nodes {
        let flags = if atoms.contains(&Atom::LocalNode) { IDENTITY_LOCAL_NODE } else { 0 };
        exact.insert(address, Identity { id: identity(&mut numbers, &atoms)?, flags });
    }
    let (policies, book) = rules::policies(objects, &mut numbers)?;
    let tables = tables(&policies, &numbers)?;
    let rules = RuleBook::new(book, &numbers);
    let policies = policies.into_iter().map(|p| (p.partition, p.number)).collect();
    *interner = numbers;
    Ok(Compiled { tables, prefixes, exact, rules, policies, pod_identities, identities })
}

/// The partition to name when an identity cannot be numbered: its last atom, if it is a pod's.
fn owner(atoms: &[Atom]) -> &str {
    match atoms.last() {
        Some(Atom::Partition(name)) => name,
        _ => DEFAULT_PARTITION,
    }
}

fn tables(policies: &[rules::Policy], numbers: &Interner) -> Result<Tables, CompileError> {
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
            builder.add(&rules::closed(hole, dir))?;
        }
    }
    Ok(builder.finish())
}
