//! One of the two states that are compared: objects, the rules they make, and who stands where.
//!
//! The rules are read as lists and not off the tables: tables are a node's, and here the pods of the whole cluster are
//! judged. That both decide alike is what the property tests say.

use crate::{
    CompileError, Compiled, Interner, LocalPod, NodeInfo, Objects, Pod, Stray,
    compile::{self, Policy},
    evaluate::Decision,
    prefix::Prefix,
};
use bulkhead_api::{messages::RuleInfo, objects::DEFAULT_PARTITION};
use bulkhead_ebpf_abi::{Addr, DIR_EGRESS, DIR_INGRESS, ID_WORLD, RULE_OPEN, RULE_OWN_NODE};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

pub struct Side {
    pub(super) objects: Objects,
    pub(super) compiled: Compiled,
    /// Pods that are told of, by address.
    pub(super) pods: BTreeMap<Addr, PodAt>,
    /// Every (address, node): more than one may be told to have it.
    nodes: BTreeSet<(Addr, String)>,
    /// By partition: the policy of a pod that nobody tells of.
    nameless: BTreeMap<String, u32>,
    lengths: BTreeSet<u8>,
}

/// A pod at one of its addresses.
pub(super) struct PodAt {
    /// `namespace/name`.
    pub key: String,
    pub policy: u32,
    /// The node it is on, where that is told.
    pub node: Option<String>,
}

/// All that decisions about an address depend on: the policy that judges it, if it is a pod, and who it is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct View {
    pub policy: Option<u32>,
    pub identity: u32,
}

/// What happens to a flow, and the rule that decides: the first end's that refuses, else the last's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowVerdict {
    pub allowed: bool,
    /// An end that admits it keeps its connections over changes (`established: Keep`).
    pub keep: bool,
    pub rule: u32,
}

impl Side {
    /// `node`: the one that is asked; empty: none. `local`: its pods, which the objects need not tell of. Both sides of a
    /// comparison share the interner.
    ///
    /// # Errors
    /// When the objects outgrow what can be numbered.
    pub fn of(
        objects: &Objects,
        interner: &mut Interner,
        node: &str,
        local: &[LocalPod],
    ) -> Result<Self, CompileError> {
        let objects = with_local(objects.clone(), local);
        let pods = pods(&objects, local);
        let partitions = objects.partitions.keys().map(String::as_str).chain([DEFAULT_PARTITION]);
        let nameless: Vec<LocalPod> = partitions.map(nameless).collect();
        let judged = pods.values().chain(&nameless);
        // To the rules a node is any node; which pods are its own is looked at pod by pod.
        let (compiled, policies) = compile::without_tables(&objects, interner, "", judged)?;
        let (of_pods, of_nameless) = policies.split_at(pods.len());
        let of_nameless = of_nameless.iter().copied();
        let own: BTreeSet<String> = local.iter().map(LocalPod::key).collect();
        let at = |pod: LocalPod, policy: u32| {
            let key = pod.key();
            let told = || objects.pod(&key).and_then(|p| p.node.clone().map(String::from));
            let node = if own.contains(&key) { Some(node.to_string()) } else { told() };
            PodAt { key, policy, node }
        };
        let pods = pods.into_iter().zip(of_pods);
        let pods = pods.map(|((address, pod), policy)| (address, at(pod, *policy))).collect();
        Ok(Self {
            pods,
            nodes: nodes(&objects),
            nameless: nameless.into_iter().map(|pod| pod.partition).zip(of_nameless).collect(),
            lengths: compiled.prefixes.keys().map(|(_, length)| *length).collect(),
            objects,
            compiled,
        })
    }

    pub(super) fn view(&self, address: Addr) -> View {
        let of_prefix = || {
            let mut prefixes = self.lengths.iter().rev().map(|length| Prefix::of_address(address, *length));
            prefixes.find_map(|p| self.compiled.prefixes.get(&(p.address, p.length)))
        };
        let identity = self.compiled.exact.get(&address).or_else(of_prefix).map_or(ID_WORLD, |i| i.id);
        let policy = match self.pods.get(&address) {
            Some(pod) => Some(pod.policy),
            None => self.partition(identity).and_then(|p| self.nameless.get(p)).copied(),
        };
        View { policy, identity }
    }

    /// The node that has the address, or the one that the pod there is on, where that is told.
    pub(super) fn node(&self, address: Addr) -> Option<&str> {
        let of_pod = || self.pods.get(&address).and_then(|pod| pod.node.as_deref());
        self.nodes_at(address).next().or_else(of_pod)
    }

    /// Nodes by address.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (Addr, &str)> {
        self.nodes.iter().map(|(address, name)| (*address, name.as_str()))
    }

    fn nodes_at(&self, address: Addr) -> impl Iterator<Item = &str> {
        let from = self.nodes.range((address, String::new())..);
        from.take_while(move |(of, _)| *of == address).map(|(_, name)| name.as_str())
    }

    /// Whether a node speaks to a pod of its own: what no rule forbids.
    pub(super) fn is_own(&self, from: Addr, to: Addr) -> bool {
        let of_pod = self.pods.get(&to).and_then(|pod| pod.node.as_deref());
        self.nodes_at(to).next().is_none() && self.nodes_at(from).any(|node| of_pod == Some(node))
    }

    /// Of pods and of addresses in a partition's range.
    pub(super) fn partition(&self, identity: u32) -> Option<&str> {
        compile::partition_of(self.compiled.meaning(identity))
    }

    pub(super) fn list(&self, policy: u32, dir: u32) -> Option<&Policy> {
        self.compiled.lists.get(&(policy, dir)).map(|list| &**list)
    }

    /// Only ends that are pods decide; what a pod sends itself never leaves it.
    pub fn verdict(&self, from: IpAddr, to: IpAddr, proto: u8, port: u16) -> FlowVerdict {
        let mut verdict = FlowVerdict { allowed: true, keep: false, rule: RULE_OPEN };
        if from == to {
            return verdict;
        }
        if self.is_own(Addr::from_ip(from), Addr::from_ip(to)) {
            return FlowVerdict { rule: RULE_OWN_NODE, ..verdict };
        }
        for (end, peer, dir) in [(from, to, DIR_EGRESS), (to, from, DIR_INGRESS)] {
            let Some(decision) = self.decide(end, peer, dir, proto, port) else { continue };
            verdict = FlowVerdict {
                allowed: decision.passes(),
                keep: verdict.keep || decision.keep,
                rule: decision.rule,
            };
            if !verdict.allowed {
                break;
            }
        }
        verdict
    }

    fn decide(&self, end: IpAddr, peer: IpAddr, dir: u32, proto: u8, port: u16) -> Option<Decision> {
        let list = self.list(self.view(Addr::from_ip(end)).policy?, dir)?;
        let peer = self.view(Addr::from_ip(peer)).identity;
        let atoms = self.compiled.meaning(peer);
        Some(Decision::of(list, &compile::cell(list.audit(), &list.firsts(atoms, proto, port))))
    }

    /// Rule as messages name it.
    pub fn rule(&self, number: u32) -> RuleInfo {
        let entry = self.compiled.rules.get(number);
        RuleInfo {
            number,
            name: entry.map_or_else(|| format!("rule {number}"), |e| e.name.clone()),
            file: entry.and_then(|e| e.file.clone()),
        }
    }
}

fn nodes(objects: &Objects) -> BTreeSet<(Addr, String)> {
    let of = |(name, node): (&String, &Arc<NodeInfo>)| {
        let addresses: Vec<_> = node.addresses.iter().map(|a| (Addr::from_ip(*a), name.clone())).collect();
        addresses
    };
    objects.nodes.iter().flat_map(of).collect()
}

/// A source need not tell of the node's own pods, nor of whose partition they are where ranges say otherwise.
fn with_local(mut objects: Objects, local: &[LocalPod]) -> Objects {
    let ranges = Ranges::of(&objects);
    let mut strays = objects.strays.clone();
    for pod in local {
        // Of a partition that is gone pods are the default partition's.
        let there = objects.partitions.contains_key(&pod.partition);
        let partition = if there { pod.partition.as_str() } else { DEFAULT_PARTITION };
        for address in &pod.addresses {
            if ranges.partition(Addr::from_ip(*address)) != Some(partition) {
                let stray = Stray { partition: partition.into(), pod: Some(pod.key()) };
                strays.insert(IpNetwork::from(*address), stray);
            }
        }
    }
    objects.strays = strays;
    for pod in local {
        let mut told = objects.pod(&pod.key()).cloned().unwrap_or_default();
        let new: Vec<IpAddr> =
            pod.addresses.iter().filter(|a| !told.addresses.contains(a)).copied().collect();
        if !told.host_network && !new.is_empty() {
            told.addresses.extend(new);
            objects.pods.insert(pod.key(), Arc::new(told));
        }
    }
    objects
}

/// Of two pods with one address the first has it, but before all a pod of this node, then the one that makes a stray of it.
fn pods(objects: &Objects, local: &[LocalPod]) -> BTreeMap<Addr, LocalPod> {
    let nodes: BTreeSet<Addr> =
        objects.nodes.values().flat_map(|n| &n.addresses).map(|a| Addr::from_ip(*a)).collect();
    let ranges = Ranges::of(objects);
    let mut pods = BTreeMap::new();
    for pod in local {
        for address in pod.addresses.iter().map(|a| Addr::from_ip(*a)) {
            pods.entry(address).or_insert_with(|| pod.clone());
        }
    }
    let told = |pod: &Pod| !pod.host_network;
    for (key, pod) in objects.pods.iter().filter(|(_, pod)| told(pod)) {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        for address in pod.addresses.iter().map(|a| Addr::from_ip(*a)).filter(|a| !nodes.contains(a)) {
            // No pod's word makes one of an address that is nobody's in the cluster.
            let Some(partition) = ranges.partition(address) else { continue };
            if objects.pod_of_stray(address).is_some_and(|pod| pod != key) {
                continue;
            }
            pods.entry(address).or_insert_with(|| LocalPod {
                namespace: namespace.into(),
                name: name.into(),
                partition: partition.into(),
                addresses: Vec::new(),
            });
        }
    }
    pods
}

/// As `Objects::partition_of_address` says, for many addresses.
struct Ranges<'a> {
    partitions: HashMap<Prefix, &'a str>,
    lengths: BTreeSet<u8>,
}

impl<'a> Ranges<'a> {
    fn of(objects: &'a Objects) -> Self {
        let mut partitions = HashMap::new();
        for (name, cidr) in objects.ranges() {
            partitions.entry(Prefix::of(*cidr)).or_insert(name);
        }
        let lengths = partitions.keys().map(|p| p.length).collect();
        Self { partitions, lengths }
    }

    fn partition(&self, address: Addr) -> Option<&'a str> {
        let mut prefixes = self.lengths.iter().rev().map(|length| Prefix::of_address(address, *length));
        prefixes.find_map(|p| self.partitions.get(&p).filter(|_| p.contains(address))).copied()
    }
}

/// A pod that no source tells of.
fn nameless(partition: &str) -> LocalPod {
    LocalPod {
        namespace: String::new(),
        name: String::new(),
        partition: partition.into(),
        addresses: Vec::new(),
    }
}
