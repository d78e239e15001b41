//! One of the two states that are compared: objects, the rules they make, and who stands where.
//!
//! The rules are read as lists and not off the tables: tables are a node's, and here the pods of the whole cluster are
//! judged. That both decide alike is what the property tests say.

use crate::{
    CompileError, Compiled, Interner, LocalPod, Objects, Pod,
    compile::{self, Policy},
    evaluate::Decision,
    prefix::Prefix,
};
use bulkhead_api::{messages::RuleInfo, objects::DEFAULT_PARTITION};
use bulkhead_ebpf_abi::{
    Addr, CELL_FINAL, CELL_KEEP, DIR_EGRESS, DIR_INGRESS, ID_WORLD, RULE_OPEN, VERDICT_ALLOW,
};
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
    /// By partition: the policy of a pod that nobody tells of.
    nameless: BTreeMap<String, u32>,
    lengths: BTreeSet<u8>,
}

/// A pod at one of its addresses.
pub(super) struct PodAt {
    /// `namespace/name`.
    pub key: String,
    pub policy: u32,
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
    /// `node`: the one whose own reach to its pods counts; empty: none. `local`: its pods, which the objects need not tell
    /// of. Both sides of a comparison share the interner.
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
        let (compiled, policies) = compile::without_tables(&objects, interner, node, judged)?;
        let (of_pods, of_nameless) = policies.split_at(pods.len());
        let of_nameless = of_nameless.iter().copied();
        let pods = pods.into_iter().zip(of_pods);
        Ok(Self {
            pods: pods.map(|((a, pod), n)| (a, PodAt { key: pod.key(), policy: *n })).collect(),
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

    /// Whether one end alone cuts a live connection: the initiator's egress, or the responder's ingress. One that it has
    /// `kept` is shielded from the partition tier. An end outside cuts none.
    pub fn cuts(&self, dir: u32, from: IpAddr, to: IpAddr, proto: u8, port: u16, kept: bool) -> bool {
        let (end, peer) = if dir == DIR_EGRESS { (from, to) } else { (to, from) };
        self.decide(end, peer, dir, proto, port).is_some_and(|d| !d.passes() && (d.last || !kept))
    }

    fn decide(&self, end: IpAddr, peer: IpAddr, dir: u32, proto: u8, port: u16) -> Option<Decision> {
        let list = self.list(self.view(Addr::from_ip(end)).policy?, dir)?;
        let peer = self.view(Addr::from_ip(peer)).identity;
        let atoms = self.compiled.meaning(peer);
        let cell = compile::cell(list.audit(), &list.firsts(atoms, proto, port));
        Some(Decision {
            allowed: cell.verdict == VERDICT_ALLOW,
            audit: list.audit() && cell.flags & CELL_FINAL == 0,
            keep: cell.flags & CELL_KEEP != 0,
            rule: cell.rule,
            last: cell.flags & CELL_FINAL != 0,
            open: list.is_open(),
        })
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

/// A source need not tell of the node's own pods.
fn with_local(mut objects: Objects, local: &[LocalPod]) -> Objects {
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

/// Of two pods with one address the first has it, and before both a pod of this node.
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
    let mut of_namespace: HashMap<&str, &str> = HashMap::new();
    let told = |pod: &Pod| !pod.host_network;
    for (key, pod) in objects.pods.iter().filter(|(_, pod)| told(pod)) {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        for address in pod.addresses.iter().map(|a| Addr::from_ip(*a)).filter(|a| !nodes.contains(a)) {
            pods.entry(address).or_insert_with(|| {
                let stray = || {
                    *of_namespace
                        .entry(namespace)
                        .or_insert_with(|| objects.partition_of_namespace(namespace))
                };
                LocalPod {
                    namespace: namespace.into(),
                    name: name.into(),
                    partition: ranges.partition(address).unwrap_or_else(stray).into(),
                    addresses: Vec::new(),
                }
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
