//! What the compiler reads: a snapshot of all objects of the cluster that policy can see.

use crate::{Strays, prefix::Prefix, selector};
use bulkhead_api::objects::{
    BandwidthClassSpec, ClusterNetworkPolicySpec, DEFAULT_PARTITION, Labels, NetworkGroupSpec,
    NetworkPolicySpec, PartitionSpec, Protocol,
};
use bulkhead_ebpf_abi::{Addr, DIR_EGRESS};
use imbl::{OrdMap, ordmap::DiffItem};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};

/// Objects by name. A clone shares everything with its original, and what is changed afterwards is all that the two do not
/// share: a snapshot costs nothing, and two snapshots are compared by what differs.
pub type Named<T> = OrdMap<String, Arc<T>>;

/// An object with the file it came from, where the source has files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sourced<T> {
    pub spec: T,
    /// `web.yaml`, or `web.yaml:12` (line of the document).
    pub file: Option<String>,
    #[serde(default)]
    pub lines: RuleLines,
}

/// Lines of the file that the rules of an object begin on, in the order written; empty where that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuleLines {
    pub egress: Vec<u32>,
    pub ingress: Vec<u32>,
}

impl<T> Sourced<T> {
    /// Of an object whose rules' lines are not known, or that has none.
    pub fn new(spec: T, file: Option<String>) -> Self {
        Self { spec, file, lines: RuleLines::default() }
    }

    /// `web.yaml:14`: where a rule stands, or else the document.
    pub(crate) fn origin(&self, dir: u32, rule: usize) -> Option<String> {
        let document = self.file.as_ref()?;
        let lines = if dir == DIR_EGRESS { &self.lines.egress } else { &self.lines.ingress };
        let Some(line) = lines.get(rule) else { return Some(document.clone()) };
        let name = document.rsplit_once(':').map_or(document.as_str(), |(name, _)| name);
        Some(format!("{name}:{line}"))
    }
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Objects {
    pub partitions: Named<Sourced<PartitionSpec>>,
    pub network_groups: Named<Sourced<NetworkGroupSpec>>,
    pub bandwidth_classes: Named<Sourced<BandwidthClassSpec>>,
    /// By `namespace/name`.
    pub network_policies: Named<Sourced<NetworkPolicySpec>>,
    pub cluster_network_policies: Named<Sourced<ClusterNetworkPolicySpec>>,
    /// By `namespace/name`: the cluster's pods, as far as the source tells of them.
    pub pods: Named<Pod>,
    pub namespaces: Named<Labels>,
    pub nodes: Named<NodeInfo>,
    /// Addresses that are not whose range they lie in.
    pub strays: Strays,
    /// Ranges of the default partition (cluster pod ranges).
    pub default_pod_cidrs: Vec<IpNetwork>,
    /// Addresses that answer cluster DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// At which ports besides 53, in order: packets to a service carry its backend's (`targetPort`).
    pub cluster_dns_ports: Vec<u16>,
    /// Where API servers are: of the control plane, also where they are no nodes of the cluster.
    pub api_servers: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeInfo {
    pub addresses: Vec<IpAddr>,
    pub control_plane: bool,
    pub labels: Labels,
    /// Its annotation of that name, as it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_routes: Option<String>,
}

/// A pod's uid, 128 bits in hexadecimal digits however they are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUid(u64, u64);

impl PodUid {
    /// `None`: it is of another form, and no two such are told apart.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
        Some(Self((number >> 64) as u64, number as u64))
    }
}

/// What rules can see of a pod, and which one of its name it is.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Pod {
    /// Of a name that was given again this is another one.
    pub uid: Option<PodUid>,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    pub node: Option<Box<str>>,
    /// Has its node's addresses, and is the node to every rule.
    pub host_network: bool,
    pub ports: Vec<ContainerPort>,
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// A pod of the node that tables are for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalPod {
    pub namespace: String,
    pub name: String,
    /// Whose rules judge it.
    pub partition: String,
    /// None yet: it is about to be wired, with addresses of its partition's ranges.
    pub addresses: Vec<IpAddr>,
}

impl LocalPod {
    /// Its key in [`Objects::pods`].
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The label that the API server sets on every namespace.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Objects {
    /// What is the case, whether anybody likes it or not, under the rules of others.
    #[must_use]
    pub fn ruled_by(self, rules: Self) -> Self {
        let Self {
            partitions,
            network_groups,
            bandwidth_classes,
            network_policies,
            cluster_network_policies,
            pods: _,
            namespaces: _,
            nodes: _,
            strays: _,
            default_pod_cidrs: _,
            cluster_dns: _,
            cluster_dns_ports: _,
            api_servers: _,
        } = rules;
        Self {
            partitions,
            network_groups,
            bandwidth_classes,
            network_policies,
            cluster_network_policies,
            ..self
        }
    }

    /// Whether both have the same rules; what they know of pods, namespaces and nodes aside.
    pub fn same_rules(&self, other: &Self) -> bool {
        self.partitions == other.partitions
            && self.network_groups == other.network_groups
            && self.bandwidth_classes == other.bandwidth_classes
            && self.network_policies == other.network_policies
            && self.cluster_network_policies == other.cluster_network_policies
    }

    /// What the source tells of a pod, by `namespace/name`.
    pub fn pod(&self, key: &str) -> Option<&Pod> {
        self.pods.get(key).map(Arc::as_ref)
    }

    /// The partition that pods of a namespace belong to: the one that names it, else the first (by name) whose
    /// selector matches it, else the default partition.
    pub fn partition_of_namespace(&self, namespace: &str) -> &str {
        let named = self.partitions.iter().find(|(_, p)| p.spec.namespaces.iter().any(|n| n == namespace));
        let found = named.or_else(|| {
            let labels = self.labels(namespace);
            self.partitions.iter().find(|(_, p)| selects(&p.spec, &labels))
        });
        found.map_or(DEFAULT_PARTITION, |(name, _)| name)
    }

    /// The partition whose range or strays hold the address; none for addresses of nodes and outside the cluster, whoever is
    /// told to have them.
    pub fn partition_of_address(&self, address: IpAddr) -> Option<&str> {
        let address = Addr::from_ip(address);
        if self.nodes.values().flat_map(|n| &n.addresses).any(|a| Addr::from_ip(*a) == address) {
            return None;
        }
        let mut best: Option<(u8, &str)> = None;
        for (name, cidr) in self.ranges() {
            let prefix = Prefix::of(*cidr);
            if prefix.contains(address) && best.is_none_or(|(length, _)| prefix.length > length) {
                best = Some((prefix.length, name));
            }
        }
        best.map(|(_, name)| name)
    }

    /// The pod that has a stray's address, as far as it is known by more than a kubelet's word.
    pub(crate) fn pod_of_stray(&self, address: Addr) -> Option<&str> {
        self.strays.get(&Prefix { address, length: 128 }.network())?.pod.as_deref()
    }

    /// Objects of a namespace, of those whose key is `namespace/name`.
    pub(crate) fn within<'a, T>(
        all: &'a Named<T>,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<T>)> {
        // `0` follows `/`.
        let keys = format!("{namespace}/")..format!("{namespace}0");
        all.range(keys).map(|(key, value)| (key.as_str(), value))
    }

    /// Who has which addresses: of two equal prefixes the first. Strays, then [`Self::own_ranges`].
    pub fn ranges(&self) -> impl Iterator<Item = (&str, &IpNetwork)> {
        self.strays.iter().map(|(cidr, stray)| (stray.partition.as_str(), cidr)).chain(self.own_ranges())
    }

    /// All pod ranges with their partition: by name, the default partition's last.
    pub fn own_ranges(&self) -> impl Iterator<Item = (&str, &IpNetwork)> {
        let partitions =
            self.partitions.iter().flat_map(|(n, p)| p.spec.pod_cidrs.iter().map(move |c| (n.as_str(), c)));
        partitions.chain(self.default_pod_cidrs.iter().map(|c| (DEFAULT_PARTITION, c)))
    }

    /// Whether both have the same partitions with the same ranges, whatever their rules are.
    pub(crate) fn same_ranges(&self, other: &Self) -> bool {
        self.default_pod_cidrs == other.default_pod_cidrs
            && self.partitions.diff(&other.partitions).all(|item| match item {
                DiffItem::Update { old: (_, old), new: (_, new) } => old.spec.pod_cidrs == new.spec.pod_cidrs,
                DiffItem::Add(..) | DiffItem::Remove(..) => false,
            })
    }

    /// Labels of a namespace, also of one that no source has told of yet.
    pub(crate) fn labels(&self, namespace: &str) -> Labels {
        let labels = self.namespaces.get(namespace).map(|l| Labels::clone(l)).unwrap_or_default();
        with_name(labels, namespace)
    }
}

/// Labels of a namespace with the one that the API server sets on each.
pub(crate) fn with_name(labels: Labels, namespace: &str) -> Labels {
    if labels.contains_key(NAMESPACE_NAME_LABEL) {
        labels
    } else {
        labels.with(NAMESPACE_NAME_LABEL, namespace)
    }
}

/// Whether the partition asks for a namespace with these labels.
pub(crate) fn selects(spec: &PartitionSpec, labels: &Labels) -> bool {
    spec.namespace_selector.as_ref().is_some_and(|s| selector::matches(s, labels))
}
