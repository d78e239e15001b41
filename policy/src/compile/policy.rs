//! A policy: everything that judges a set of pods, one ordered list of rules a direction.
//!
//! Pods of one partition that the same NetworkPolicies select share a policy, and with it a row of the tables.

use super::{
    CompileError, cluster_policy,
    network_policy::{self, PortNames},
    rules::{self, Book, Rule, Verdict},
    selection::named_ports,
    tiers::{Firsts, TIERS, Tier},
};
use crate::{
    Interner, Labels, LocalPod, Objects, Sourced,
    atom::{Atom, NamedPort},
    rulebook::RuleEntry,
};
use bulkhead_api::objects::{
    ClusterNetworkPolicySpec, DEFAULT_PARTITION, Isolation, NetworkPolicySpec, PartitionSpec,
};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, POLICY_AUDIT, POLICY_OPEN, RULE_DEFAULT_DENY, RULE_OWN_NODE, port_slot,
};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// What makes the policies of two pods one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyKey {
    pub partition: String,
    /// `namespace/name`, sorted.
    pub network_policies: Vec<String>,
    /// By priority, both tiers together.
    pub cluster_policies: Vec<String>,
    /// What names of ports in ingress rules stand for on these pods, sorted.
    pub ports: Vec<NamedPort>,
}

impl PolicyKey {
    /// Of pods that only their partition judges.
    pub fn plain(partition: &str) -> Self {
        Self {
            partition: partition.into(),
            network_policies: Vec::new(),
            cluster_policies: Vec::new(),
            ports: Vec::new(),
        }
    }

    pub fn is_plain(&self) -> bool {
        self.network_policies.is_empty() && self.cluster_policies.is_empty()
    }

    /// A partition that is gone leaves its pods to the default one; a pod that no source tells of has no labels.
    pub fn of(objects: &Objects, local: &LocalPod) -> Self {
        let there = objects.partitions.contains_key(&local.partition);
        let partition = if there { local.partition.as_str() } else { DEFAULT_PARTITION };
        let pod = objects.pod(&local.key());
        let none = Labels::default();
        let labels = pod.map_or(&none, |p| &p.labels);
        let network_policies = network_policy::selecting(objects, &local.namespace, labels);
        let specs = network_policies.iter().filter_map(|key| objects.network_policies.get(key));
        let cluster_policies = cluster_policy::selecting(objects, &local.namespace, labels);
        let clusters = cluster_policies.iter().filter_map(|name| objects.cluster_network_policies.get(name));
        let names: BTreeSet<&str> = specs
            .flat_map(|p| network_policy::subject_port_names(&p.spec))
            .chain(clusters.flat_map(|p| cluster_policy::subject_port_names(&p.spec)))
            .collect();
        let ports = pod.into_iter().flat_map(named_ports).filter(|p| names.contains(p.name.as_str()));
        let ports: BTreeSet<NamedPort> = ports.collect();
        let ports = ports.into_iter().collect();
        Self { partition: partition.into(), network_policies, cluster_policies, ports }
    }
}

/// By this the number is kept: names have no `|`.
impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.partition)?;
        for key in &self.network_policies {
            write!(f, "|NetworkPolicy/{key}")?;
        }
        for name in &self.cluster_policies {
            write!(f, "|ClusterNetworkPolicy/{name}")?;
        }
        self.ports.iter().try_for_each(|port| write!(f, "|{port}"))
    }
}

/// All that the rules of a policy are read from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sources {
    partition: Option<Arc<Sourced<PartitionSpec>>>,
    network_policies: Vec<Option<Arc<Sourced<NetworkPolicySpec>>>>,
    cluster_policies: Vec<Option<Arc<Sourced<ClusterNetworkPolicySpec>>>>,
    peer_ports: Arc<BTreeSet<NamedPort>>,
    /// Pods of the partition answer cluster DNS.
    hosts_dns: bool,
    dns_ports: Arc<[u16]>,
}

impl Sources {
    pub fn of(
        objects: &Objects,
        key: &PolicyKey,
        peer_ports: &Arc<BTreeSet<NamedPort>>,
        hosts_dns: bool,
        dns_ports: &Arc<[u16]>,
    ) -> Self {
        let network = key.network_policies.iter().map(|k| objects.network_policies.get(k).cloned());
        let cluster = key.cluster_policies.iter().map(|n| objects.cluster_network_policies.get(n).cloned());
        Self {
            partition: objects.partitions.get(&key.partition).cloned(),
            network_policies: network.collect(),
            cluster_policies: cluster.collect(),
            peer_ports: peer_ports.clone(),
            hosts_dns,
            dns_ports: dns_ports.clone(),
        }
    }

    /// Whether they are the very same objects. Equal ones that were read anew may be told apart.
    pub fn same(&self, other: &Self) -> bool {
        fn one<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            }
        }
        fn all<T>(a: &[Option<Arc<T>>], b: &[Option<Arc<T>>]) -> bool {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| one(a, b))
        }
        one(&self.partition, &other.partition)
            && all(&self.network_policies, &other.network_policies)
            && all(&self.cluster_policies, &other.cluster_policies)
            && self.hosts_dns == other.hosts_dns
            && self.dns_ports == other.dns_ports
            && self.peer_ports == other.peer_ports
    }
}

/// A policy in both directions, and what it was read from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub sources: Sources,
    pub dirs: [Arc<Policy>; 2],
    pub book: Book,
}

impl Judged {
    pub fn of(
        objects: &Objects,
        key: &PolicyKey,
        sources: Sources,
        numbers: &mut Interner,
    ) -> Result<Self, CompileError> {
        let mut book = Book::new();
        let mut policy = |dir| Policy::of(objects, key, dir, &sources, numbers, &mut book).map(Arc::new);
        let dirs = [policy(DIR_EGRESS)?, policy(DIR_INGRESS)?];
        Ok(Self { sources, dirs, book })
    }

    pub fn number(&self) -> u32 {
        self.dirs[0].number
    }

    /// Numbers of its rules.
    pub fn rules(&self) -> impl Iterator<Item = u32> {
        self.book.keys().copied()
    }
}

/// One direction of a policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub partition: String,
    pub number: u32,
    pub dir: u32,
    pub flags: u32,
    /// By tier; the last one of the partition tier matches everything.
    pub rules: Vec<Rule>,
}

impl Policy {
    pub fn of(
        objects: &Objects,
        key: &PolicyKey,
        dir: u32,
        sources: &Sources,
        numbers: &mut Interner,
        book: &mut Book,
    ) -> Result<Self, CompileError> {
        let peer_ports = &sources.peer_ports;
        let no_number = || CompileError::numbers(&key.partition);
        let number = numbers.policy(&key.to_string()).map_err(|_| no_number())?;
        let mut rules = rules::partition_tier(objects, &key.partition, dir, sources.hosts_dns, numbers, book)
            .ok_or_else(no_number)?;
        rules
            .extend(network_policy_tier(objects, key, dir, peer_ports, numbers, book).ok_or_else(no_number)?);
        rules.extend(cluster_tiers(objects, key, dir, peer_ports, numbers, book).ok_or_else(no_number)?);
        let isolation = rules::isolation(objects, &key.partition);
        let only_open = isolation == Isolation::Open && rules.iter().all(|r| r.tier == Tier::Partition);
        if dir == DIR_INGRESS && !only_open {
            rules.push(Rule::built_in(Tier::Node, Verdict::Allow, RULE_OWN_NODE, Some(Atom::LocalNode)));
        }
        rules.sort_by_key(|rule| rule.tier);
        let flags = match isolation {
            Isolation::Audit => POLICY_AUDIT,
            Isolation::Open if only_open => POLICY_OPEN,
            _ => 0,
        };
        Ok(Self { partition: key.partition.clone(), number, dir, flags, rules })
    }

    /// For numbers that stand between those in use.
    pub fn closed(number: u32, dir: u32) -> Self {
        let rules = vec![Rule::built_in(Tier::Partition, Verdict::Deny, RULE_DEFAULT_DENY, None)];
        Self { partition: String::new(), number, dir, flags: 0, rules }
    }

    /// Atoms that its rules ask of a peer; one may come more than once.
    pub fn asks(&self) -> impl Iterator<Item = &Atom> {
        self.rules.iter().flat_map(|r| r.peers.iter().flatten().chain(&r.requires))
    }

    pub fn audit(&self) -> bool {
        self.flags & POLICY_AUDIT != 0
    }

    pub fn is_open(&self) -> bool {
        self.flags & POLICY_OPEN != 0
    }

    /// Rule by rule, for people: the first that matches in each tier.
    pub fn firsts(&self, atoms: &[Atom], proto: u8, port: u16) -> Firsts<'_> {
        let (slot, port) = port_slot(proto, port);
        let matches = |rule: &&Rule| {
            rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|p| atoms.contains(p)))
                && rule.requires.as_ref().is_none_or(|r| atoms.contains(r))
                && rule.is_for(slot, port)
        };
        TIERS.map(|tier| self.rules.iter().filter(|r| r.tier == tier).find(matches))
    }
}

/// Nothing where no policy isolates; else allows of all of them, and behind them a deny.
fn network_policy_tier(
    objects: &Objects,
    key: &PolicyKey,
    dir: u32,
    peer_ports: &BTreeSet<NamedPort>,
    numbers: &mut Interner,
    book: &mut Book,
) -> Option<Vec<Rule>> {
    let policies = key.network_policies.iter().filter_map(|k| Some((k, objects.network_policies.get(k)?)));
    let isolating: Vec<_> = policies.filter(|(_, p)| network_policy::isolates(&p.spec, dir)).collect();
    let direction = if dir == DIR_INGRESS { "ingress" } else { "egress" };
    let ports = PortNames { subject: &key.ports, peers: peer_ports };
    let mut all = Vec::new();
    let mut enter = |numbers: &mut Interner, name: String, file: Option<String>| {
        let number = numbers.rule(&name).ok()?;
        book.insert(number, Arc::new(RuleEntry { name, file }));
        Some(number)
    };
    for (policy, written) in &isolating {
        let namespace = policy.split_once('/').map_or("", |(namespace, _)| namespace);
        all.extend(network_policy::rules(namespace, &written.spec, dir, &ports, |i| {
            enter(numbers, format!("NetworkPolicy/{policy} {direction}[{i}]"), written.origin(dir, i))
        })?);
    }
    if !isolating.is_empty() {
        let names: Vec<String> = isolating.iter().map(|(k, _)| format!("NetworkPolicy/{k}")).collect();
        let word = if names.len() == 1 { "isolates" } else { "isolate" };
        let files: Vec<&str> = isolating.iter().filter_map(|(_, p)| p.file.as_deref()).collect();
        let file = (!files.is_empty()).then(|| files.join(", "));
        let number = enter(numbers, format!("{} ({word})", names.join(", ")), file)?;
        all.push(Rule::built_in(Tier::NetworkPolicy, Verdict::Deny, number, None));
    }
    Some(all)
}

/// Admin and baseline, by priority within each.
fn cluster_tiers(
    objects: &Objects,
    key: &PolicyKey,
    dir: u32,
    peer_ports: &BTreeSet<NamedPort>,
    numbers: &mut Interner,
    book: &mut Book,
) -> Option<Vec<Rule>> {
    let direction = if dir == DIR_INGRESS { "ingress" } else { "egress" };
    let ports = PortNames { subject: &key.ports, peers: peer_ports };
    let mut all = Vec::new();
    for policy in &key.cluster_policies {
        let Some(written) = objects.cluster_network_policies.get(policy) else { continue };
        all.extend(cluster_policy::rules(&written.spec, dir, &ports, |i, own| {
            let own = own.map(|name| format!(" {name:?}")).unwrap_or_default();
            let name = format!("ClusterNetworkPolicy/{policy} {direction}[{i}]{own}");
            let number = numbers.rule(&name).ok()?;
            book.insert(number, Arc::new(RuleEntry { name, file: written.origin(dir, i) }));
            Some(number)
        })?);
    }
    Some(all)
}
