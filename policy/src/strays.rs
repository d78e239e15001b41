//! Strays: pods whose address is another partition's by the ranges, or nobody's.
//!
//! In a cluster the source tells of every pod: its partition is that of its namespace, also of a pod that runs while its
//! namespace is moved, while a partition is laid over it or while a range is shrunk. In a directory, where pods may be
//! unknown, a block is claimed for one partition and stays that partition's for the life of its pods, wherever ranges move
//! meanwhile. In range, where nearly all are, both say nothing new and make no entry.

use crate::{Named, Objects, Pod, prefix::Prefix};
use bulkhead_api::objects::{DEFAULT_PARTITION, IPBlockSpec};
use bulkhead_ebpf_abi::Addr;
use imbl::{OrdMap, ordmap::DiffItem};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Whose the addresses are that ranges call another partition's, or nobody's.
pub type Strays = OrdMap<IpNetwork, String>;

/// What makes a stray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// A claim alone: whoever writes a directory's claims may write its policy too. Pods may be unknown there.
    None,
    /// A pod that is told to be on a node and to have an address that this node has claimed; it is of its namespace's
    /// partition. A daemon's token claims for its node, but what addresses a pod has, it cannot say.
    Pod,
}

/// Strays, and which pods can make others of them.
pub fn strays(objects: &Objects, blocks: &Named<IPBlockSpec>, witness: Witness) -> (Strays, StrayPods) {
    let ranges = Ranges::of(objects);
    match witness {
        Witness::None => (claimed(objects, blocks, &ranges), StrayPods::default()),
        Witness::Pod => seen(objects, blocks, ranges),
    }
}

/// Which pods are strays, or would be with a claim of their node. All others come and go without a look at anybody.
#[derive(Clone, Debug, Default)]
pub struct StrayPods {
    ranges: Ranges,
    claims: Claims,
    /// What strays have: another pod with one may take it over, or make a dispute of it.
    addresses: BTreeSet<Addr>,
    /// A pod is where ranges say otherwise, and its node has not claimed it: of another plugin, or its claim is yet to be told.
    is_claim_awaited: bool,
}

impl StrayPods {
    /// Takes over other claims; `false`: they may make others of strays.
    pub fn take_claims(&mut self, blocks: &Named<IPBlockSpec>) -> bool {
        let same = self.addresses.is_empty() && !self.is_claim_awaited;
        if same {
            self.claims = Claims::of(blocks);
        }
        same
    }

    /// Whether strays may be others with these pods, where ranges and the partitions of namespaces are the same.
    pub fn change(&mut self, before: &Objects, now: &Objects) -> bool {
        let same = |a: &Pod, b: &Pod| {
            (&a.node, &a.addresses, a.host_network) == (&b.node, &b.addresses, b.host_network)
        };
        let mut homes = Homes::of(now);
        let mut awaited = false;
        let mut concern = |key: &str, pod: &Pod| {
            told(pod).any(|(node, address)| {
                let elsewhere =
                    homes.of_pod(key).is_some_and(|home| self.ranges.of_address(address) != Some(home));
                let claimed = elsewhere && self.claims.hold(node, address);
                awaited |= elsewhere && !claimed;
                claimed || self.addresses.contains(&address)
            })
        };
        let concerned = before.pods.diff(&now.pods).any(|item| match item {
            DiffItem::Add(key, pod) | DiffItem::Remove(key, pod) => concern(key, pod),
            DiffItem::Update { old: (_, old), new: (key, new) } => {
                !same(old, new) && (concern(key, old) || concern(key, new))
            }
        });
        self.is_claim_awaited |= awaited;
        concerned
    }
}

/// Who has claimed what.
#[derive(Clone, Debug, Default)]
struct Claims {
    blocks: BTreeMap<Prefix, Vec<String>>,
    lengths: BTreeSet<u8>,
}

impl Claims {
    fn of(blocks: &Named<IPBlockSpec>) -> Self {
        let mut claims = Self::default();
        for block in blocks.values() {
            let prefix = Prefix::of(block.cidr);
            claims.blocks.entry(prefix).or_default().push(block.node.clone());
            claims.lengths.insert(prefix.length);
        }
        claims
    }

    /// Whether a node has claimed a block around this address.
    fn hold(&self, node: &str, address: Addr) -> bool {
        let mut around =
            self.lengths.iter().filter_map(|l| self.blocks.get(&Prefix::of_address(address, *l)));
        around.any(|nodes| nodes.iter().any(|n| n == node))
    }
}

/// The partitions of namespaces, each looked for once.
pub struct Homes<'a> {
    objects: &'a Objects,
    known: HashMap<String, Option<&'a str>>,
}

impl<'a> Homes<'a> {
    pub fn of(objects: &'a Objects) -> Self {
        Self { objects, known: HashMap::new() }
    }

    /// None: the namespace is not told of, which says nothing of its labels.
    pub fn of_namespace(&mut self, namespace: &str) -> Option<&'a str> {
        if let Some(home) = self.known.get(namespace) {
            return *home;
        }
        let objects = self.objects;
        let told = objects.namespaces.contains_key(namespace);
        let home = told.then(|| objects.partition_of_namespace(namespace));
        self.known.insert(namespace.into(), home);
        home
    }

    /// By `namespace/name`.
    fn of_pod(&mut self, key: &str) -> Option<&'a str> {
        self.of_namespace(key.split_once('/').map_or("", |(namespace, _)| namespace))
    }
}

/// A pod's addresses, where it is told to be on a node and to have some of its own.
fn told(pod: &Pod) -> impl Iterator<Item = (&str, Addr)> {
    let node = pod.node.as_deref().filter(|_| !pod.host_network);
    node.into_iter().flat_map(|node| pod.addresses.iter().map(move |a| (node, Addr::from_ip(*a))))
}

/// Of a partition that is gone pods are the default partition's.
fn partition_of<'a>(objects: &Objects, block: &'a IPBlockSpec) -> &'a str {
    let there = objects.partitions.contains_key(&block.partition);
    if there { block.partition.as_str() } else { DEFAULT_PARTITION }
}

/// What of a block is not its partition's by the ranges.
fn astray(ranges: &Ranges, prefix: Prefix, partition: &str) -> impl Iterator<Item = Prefix> {
    let around = (ranges.around(prefix) != Some(partition)).then_some(prefix);
    around.into_iter().chain(ranges.within(prefix, partition))
}

/// Whole blocks. One that overlaps another node's says nothing: else whoever may claim for one node could say whose the
/// pods of others are.
fn claimed(objects: &Objects, blocks: &Named<IPBlockSpec>, ranges: &Ranges) -> Strays {
    let mut sorted: Vec<_> = blocks.values().map(|block| (Prefix::of(block.cidr), &**block)).collect();
    sorted.sort_unstable_by_key(|(prefix, block)| (*prefix, &block.node));
    let disputed = disputed(&sorted);
    let mut strays = Strays::new();
    for (prefix, block) in sorted.into_iter().filter(|(prefix, _)| !disputed.contains(prefix)) {
        let partition = partition_of(objects, block);
        for stray in astray(ranges, prefix, partition) {
            strays.insert(stray.network(), partition.to_string());
        }
    }
    strays
}

/// Addresses of pods that their own node has claimed a block around, whatever others have claimed. Of two pods of a node with
/// one address the first has it, as everywhere; where pods of two nodes have it, ranges say whose it is.
fn seen(objects: &Objects, blocks: &Named<IPBlockSpec>, ranges: Ranges) -> (Strays, StrayPods) {
    let (claims, mut homes) = (Claims::of(blocks), Homes::of(objects));
    let all = || objects.pods.iter().flat_map(|(key, pod)| told(pod).map(move |(node, a)| (key, node, a)));
    let (mut addresses, mut is_claim_awaited) = (BTreeSet::new(), false);
    for (key, node, address) in all() {
        let Some(home) = homes.of_pod(key) else { continue };
        if ranges.of_address(address) == Some(home) {
            continue;
        }
        if claims.hold(node, address) {
            addresses.insert(address);
        } else {
            is_claim_awaited = true;
        }
    }
    let mut owners: BTreeMap<Addr, Option<(&str, &str)>> = BTreeMap::new();
    if !addresses.is_empty() {
        for (key, node, address) in all().filter(|(_, _, address)| addresses.contains(address)) {
            let own = owners.entry(address).or_insert_with(|| homes.of_pod(key).map(|home| (node, home)));
            *own = own.filter(|(first, _)| *first == node);
        }
    }
    let stray = |(address, owner): (Addr, Option<(&str, &str)>)| {
        let (_, home) = owner
            .filter(|(node, home)| ranges.of_address(address) != Some(home) && claims.hold(node, address))?;
        Some((network(address), home.to_string()))
    };
    let strays = owners.into_iter().filter_map(stray).collect();
    (strays, StrayPods { ranges, claims, addresses, is_claim_awaited })
}

fn network(address: Addr) -> IpNetwork {
    Prefix { address, length: 128 }.network()
}

/// In order, every block that holds another stands on the stack when that one comes.
fn disputed(sorted: &[(Prefix, &IPBlockSpec)]) -> BTreeSet<Prefix> {
    let mut disputed = BTreeSet::new();
    let mut around: Vec<(Prefix, &str)> = Vec::new();
    for (prefix, block) in sorted {
        around.retain(|(outer, _)| outer.spans(*prefix));
        for (outer, _) in around.iter().filter(|(_, node)| *node != block.node) {
            disputed.extend([*outer, *prefix]);
        }
        around.push((*prefix, &block.node));
    }
    disputed
}

#[derive(Clone, Debug, Default)]
struct Ranges {
    partitions: BTreeMap<Prefix, String>,
    lengths: BTreeSet<u8>,
}

impl Ranges {
    fn of(objects: &Objects) -> Self {
        let mut partitions = BTreeMap::new();
        for (name, cidr) in objects.own_ranges() {
            partitions.entry(Prefix::of(*cidr)).or_insert_with(|| name.into());
        }
        let lengths = partitions.keys().map(|p: &Prefix| p.length).collect();
        Self { partitions, lengths }
    }

    fn of_address(&self, address: Addr) -> Option<&str> {
        self.around(Prefix { address, length: 128 })
    }

    /// The partition that has all of a block, by the longest range around it.
    fn around(&self, block: Prefix) -> Option<&str> {
        let lengths = self.lengths.range(..=block.length).rev();
        let mut ranges = lengths.map(|length| Prefix::of_address(block.address, *length));
        ranges.find_map(|r| self.partitions.get(&r).filter(|_| r.covers(block))).map(String::as_str)
    }

    /// Ranges inside a block that are another partition's.
    fn within(&self, block: Prefix, partition: &str) -> impl Iterator<Item = Prefix> {
        let inside = self.partitions.range(block..).take_while(move |(range, _)| block.spans(**range));
        inside.filter(move |(range, name)| **range != block && **name != partition).map(|(range, _)| *range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Interner, Local, Sourced, compile};
    use bulkhead_api::objects::NetworkGroupSpec;
    use std::{net::IpAddr, sync::Arc};

    fn objects(ranges: &[(&str, &str)]) -> Objects {
        let mut objects =
            Objects { default_pod_cidrs: vec!["10.64.0.0/16".parse().unwrap()], ..Objects::default() };
        for (n, (name, cidr)) in ranges.iter().enumerate() {
            let spec = serde_json::json!({"policyID": n + 1, "podCIDRs": [cidr], "namespaces": [name]});
            let partition = Sourced::new(serde_json::from_value(spec).unwrap(), None);
            objects.partitions.insert((*name).into(), Arc::new(partition));
        }
        objects
    }

    /// With blocks as `10.1.0.0/26 web n1`.
    fn found(objects: &Objects, blocks: &[&str]) -> Vec<String> {
        found_by(Witness::None, objects, blocks)
    }

    fn blocks_of(blocks: &[&str]) -> Named<IPBlockSpec> {
        let block = |text: &&str| {
            let [cidr, partition, node] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let cidr = cidr.parse().unwrap();
            (
                (*text).to_string(),
                Arc::new(IPBlockSpec { cidr, partition: partition.into(), node: node.into() }),
            )
        };
        blocks.iter().map(block).collect()
    }

    fn found_by(witness: Witness, objects: &Objects, blocks: &[&str]) -> Vec<String> {
        strays(objects, &blocks_of(blocks), witness)
            .0
            .iter()
            .map(|(cidr, partition)| format!("{cidr} {partition}"))
            .collect()
    }

    #[test]
    fn a_block_outside_its_partitions_ranges_stays_its_partitions() {
        let objects = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let blocks =
            ["10.65.0.0/26 web n1", "10.66.0.0/26 web n1", "10.99.0.0/26 web n2", "10.64.0.0/26 default n1"];
        assert_eq!(found(&objects, &blocks), ["10.66.0.0/26 web", "10.99.0.0/26 web"]);
        // Of a partition that is gone pods are the default partition's.
        assert_eq!(found(&objects, &["10.65.0.64/26 gone n1"]), ["10.65.0.64/26 default"]);
    }

    #[test]
    fn a_range_inside_a_block_takes_no_pod_of_it_over() {
        let objects = objects(&[("pay", "10.65.0.32/27"), ("web", "10.65.0.0/16")]);
        assert_eq!(found(&objects, &["10.65.0.0/26 web n1"]), ["10.65.0.32/27 web"]);
        // Nor one that is the block, or that holds it more closely than the partition's own.
        assert_eq!(found(&objects, &["10.65.0.32/27 web n1"]), ["10.65.0.32/27 web"]);
        assert_eq!(found(&objects, &["10.65.0.32/28 web n1"]), ["10.65.0.32/28 web"]);
    }

    #[test]
    fn a_node_cannot_say_whose_the_pods_of_others_are() {
        let objects = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        for claimed in ["10.65.0.0/16 pay bad", "10.65.0.5/32 pay bad", "0.0.0.0/0 pay bad"] {
            assert_eq!(found(&objects, &["10.65.0.0/26 web n1", claimed]), [""; 0], "{claimed}");
        }
        assert_eq!(found(&objects, &["10.65.0.0/26 web n1", "10.65.0.64/26 pay bad"]), ["10.65.0.64/26 pay"]);
    }

    /// Pods as `n1 web 10.1.0.5`: node and namespace.
    fn with_pods(mut objects: Objects, pods: &[&str]) -> Objects {
        for (n, pod) in pods.iter().enumerate() {
            let [node, namespace, address] = pod.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let pod =
                Pod { node: Some(node.into()), addresses: vec![address.parse().unwrap()], ..Pod::default() };
            objects.pods.insert(format!("{namespace}/{n}"), Arc::new(pod));
            objects.namespaces.insert(namespace.into(), Arc::default());
        }
        objects
    }

    #[test]
    fn a_told_pod_is_of_its_namespaces_partition_wherever_its_own_node_has_claimed_its_address() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        // What a block was claimed for says nothing.
        let claims = [
            "10.66.0.0/26 pay n1",
            "10.99.0.0/26 web n1",
            "10.65.0.0/26 web n1",
            "10.64.0.0/26 default n1",
            "203.0.113.0/26 pay bad",
        ];
        let found =
            |pods: &[&str], claims: &[&str]| found_by(Witness::Pod, &with_pods(ranges.clone(), pods), claims);
        assert_eq!(found(&[], &claims), [""; 0]);
        let pods = [
            "n1 web 10.66.0.5",  // The namespace was moved,
            "n1 web 10.64.0.5",  // a partition laid over running pods,
            "n1 web 10.99.0.5",  // a range shrunk,
            "n1 shop 10.66.0.6", // or a namespace taken out.
            "n1 web 10.65.0.5",  // In range.
            "n2 web 10.99.0.6",  // Claimed by another,
            "n2 web 203.0.113.5",
            "n1 web 10.64.0.70", // or by nobody.
        ];
        let strays = ["10.64.0.5/32 web", "10.66.0.5/32 web", "10.66.0.6/32 default", "10.99.0.5/32 web"];
        assert_eq!(found(&pods, &claims), strays);
        // Whatever another node claims around it, across it, or in it.
        for claimed in
            ["10.0.0.0/8 pay bad", "10.99.0.0/26 pay bad", "10.99.0.5/32 pay bad", "0.0.0.0/0 pay bad"]
        {
            let claims = [&claims[..], &[claimed]].concat();
            assert_eq!(found(&pods, &claims), strays, "{claimed}");
        }
        // Of an address that pods of two nodes have no namespace says anything, whichever of them is told of first.
        for order in [["n1 web 10.66.0.5", "n2 web 10.66.0.5"], ["n2 pay 10.66.0.5", "n1 web 10.66.0.5"]] {
            assert_eq!(found(&order, &claims), [""; 0], "{order:?}");
        }
        // Of a pod whose namespace is not known, ranges say whose it is.
        let mut unknown = with_pods(ranges.clone(), &pods);
        unknown.namespaces = OrdMap::default();
        assert_eq!(found_by(Witness::Pod, &unknown, &claims), [""; 0]);
        // Of two pods of one node the first by name has it.
        assert_eq!(found(&["n1 web 10.66.0.5", "n1 web 10.66.0.5"], &claims), ["10.66.0.5/32 web"]);
        assert_eq!(found(&["n1 web 10.66.0.5", "n1 pay 10.66.0.5"], &claims), [""; 0]);
        assert_eq!(found(&["n1 web 10.66.0.5", "n1 zoo 10.66.0.5"], &claims), ["10.66.0.5/32 web"]);
    }

    #[test]
    fn only_pods_that_are_strays_ask_for_a_look_at_all() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let claims = ["10.66.0.0/26 pay n1", "10.65.0.0/26 web n1", "10.65.1.0/26 web n2"];
        let change = |before: &[&str], now: &[&str]| {
            let before = with_pods(ranges.clone(), before);
            let (found, mut pods) = strays(&before, &blocks_of(&claims), Witness::Pod);
            let now = with_pods(ranges.clone(), now);
            let asks = pods.change(&before, &now);
            assert!(asks || strays(&now, &blocks_of(&claims), Witness::Pod).0 == found);
            asks
        };
        for pod in ["n1 web 10.65.0.5", "n2 web 10.65.1.5", "n2 web 10.66.0.5", "n2 web 10.99.0.5"] {
            assert!(!change(&[], &[pod]) && !change(&[pod], &[]), "{pod}");
        }
        let stray = "n1 web 10.66.0.5";
        assert!(change(&[], &[stray]) && change(&[stray], &[]));
        assert!(change(&[stray], &["n1 web 10.65.0.5"]) && change(&["n1 web 10.65.0.5"], &[stray]));
        // Another's with the address of one begins a dispute, and ends it.
        let (one, both) = ([stray], [stray, "n2 pay 10.66.0.5"]);
        assert!(change(&one, &both) && change(&both, &one));
        assert!(!change(&one, &[stray, "n2 pay 10.66.0.6"]));
    }

    #[test]
    fn a_claim_asks_for_a_look_at_all_where_a_pod_may_wait_for_it() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let claims = blocks_of(&["10.65.0.0/26 web n1"]);
        let with = |pods: &[&str]| with_pods(ranges.clone(), pods);
        let look = |pods: &[&str]| strays(&with(pods), &claims, Witness::Pod).1;
        assert!(look(&["n1 web 10.65.0.5"]).take_claims(&claims));
        assert!(!look(&["n1 web 10.66.0.5"]).take_claims(&claims));
        // Told of before its claim; and of claims told of without a look, pods know.
        let mut pods = look(&[]);
        assert!(!pods.change(&with(&[]), &with(&["n1 web 10.66.0.5"])));
        let claimed = blocks_of(&["10.66.0.0/26 pay n1"]);
        assert!(!pods.take_claims(&claimed));
        let mut pods = look(&[]);
        assert!(pods.take_claims(&claimed) && pods.change(&with(&[]), &with(&["n1 web 10.66.0.5"])));
    }

    /// As many as a cluster is promised to have, and each is one.
    #[test]
    fn strays_of_all_pods_of_a_cluster_have_room() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let number = |n: u32| std::net::Ipv4Addr::from(u32::from_be_bytes([10, 66, 0, 0]) + n);
        let pods: Vec<String> = (0..30_000).map(|n| format!("n1 web {}", number(n))).collect();
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        let mut objects = with_pods(ranges, &pods);
        let (found, _) = strays(&objects, &blocks_of(&["10.66.0.0/16 web n1"]), Witness::Pod);
        objects.strays = found;
        // And as many single addresses in a group: these are prefixes.
        let cidrs = (0..4_000).map(|n| IpNetwork::from(IpAddr::from(std::net::Ipv4Addr::from(n))));
        let group = Sourced::new(NetworkGroupSpec { cidrs: cidrs.collect() }, None);
        objects.network_groups.insert("many".into(), Arc::new(group));
        let local = Local { node: "n1", pods: &[], partitions: None, former: None };
        let compiled = compile(&objects, &mut Interner::default(), &local).unwrap();
        assert_eq!((objects.strays.len(), compiled.exact.len()), (30_000, 30_000));
        compiled.check_room().unwrap();
    }

    #[test]
    fn a_host_network_pod_is_no_stray_of_its_nodes_claim() {
        let mut objects = with_pods(objects(&[("web", "10.65.0.0/16")]), &["n1 web 192.0.2.1"]);
        let pod = Pod { host_network: true, ..Pod::clone(&objects.pods["web/0"]) };
        objects.pods.insert("web/0".into(), Arc::new(pod));
        assert_eq!(found_by(Witness::Pod, &objects, &["192.0.2.0/26 web n1"]), [""; 0]);
    }
}
