//! Strays: pods of a partition with addresses that lie in none of its ranges any more.
//!
//! A block is claimed for one partition and stays that partition's for the life of its pods, wherever ranges move meanwhile.
//! So claims tell every node whose the addresses are; in range, where nearly all are, they say nothing new and make no entry.

use crate::{Named, Objects, Pod, prefix::Prefix};
use bulkhead_api::objects::{DEFAULT_PARTITION, IPBlockSpec};
use bulkhead_ebpf_abi::Addr;
use imbl::{OrdMap, ordmap::DiffItem};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};

/// Whose the addresses are that ranges call another partition's, or nobody's: by what their blocks were claimed for.
pub type Strays = OrdMap<IpNetwork, String>;

/// What a claim must have beside it to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// Nothing: whoever writes a directory's claims may write its policy too. Pods may be unknown there.
    None,
    /// A pod that is told to be on the claiming node and to have the address. A daemon's token claims for its node, and could
    /// call anybody's addresses outside the cluster a partition's; what addresses a pod has, it cannot say.
    Pod,
}

/// Strays, and which pods can make others of them.
pub fn strays(objects: &Objects, blocks: &Named<IPBlockSpec>, witness: Witness) -> (Strays, StrayPods) {
    let ranges = Ranges::of(objects);
    let pods = match witness {
        Witness::None => return (claimed(objects, blocks, &ranges), StrayPods::default()),
        Witness::Pod => StrayPods::of(objects, blocks, &ranges),
    };
    if pods.blocks.is_empty() { (Strays::new(), pods) } else { seen(objects, blocks, &ranges, pods) }
}

/// Where pods are strays by what their own node has claimed. All others come and go without a look at anybody.
#[derive(Clone, Debug, Default)]
pub struct StrayPods {
    /// Blocks that lie where ranges say otherwise.
    blocks: BTreeSet<(Prefix, String)>,
    lengths: BTreeSet<u8>,
    /// What such a pod has: another node's pod with it makes a dispute of it.
    addresses: BTreeSet<Addr>,
}

impl StrayPods {
    fn of(objects: &Objects, blocks: &Named<IPBlockSpec>, ranges: &Ranges<'_>) -> Self {
        let block = |b: &IPBlockSpec| (Prefix::of(b.cidr), b.node.clone());
        let is_astray =
            |b: &IPBlockSpec| astray(ranges, Prefix::of(b.cidr), partition_of(objects, b)).next().is_some();
        let blocks: BTreeSet<_> = blocks.values().filter(|b| is_astray(b)).map(|b| block(b)).collect();
        let lengths = blocks.iter().map(|(prefix, _)| prefix.length).collect();
        Self { blocks, lengths, addresses: BTreeSet::new() }
    }

    /// Whether strays may be others with these pods.
    pub fn change(&self, before: &Named<Pod>, now: &Named<Pod>) -> bool {
        let same = |a: &Pod, b: &Pod| {
            (&a.node, &a.addresses, a.host_network) == (&b.node, &b.addresses, b.host_network)
        };
        !self.blocks.is_empty()
            && before.diff(now).any(|item| match item {
                DiffItem::Add(_, pod) | DiffItem::Remove(_, pod) => self.concern(pod),
                DiffItem::Update { old: (_, old), new: (_, new) } => {
                    !same(old, new) && (self.concern(old) || self.concern(new))
                }
            })
    }

    fn concern(&self, pod: &Pod) -> bool {
        told(pod).any(|(node, address)| {
            let mut around = self.lengths.iter().map(|l| (Prefix::of_address(address, *l), node.to_string()));
            self.addresses.contains(&address) || around.any(|block| self.blocks.contains(&block))
        })
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
fn astray(ranges: &Ranges<'_>, prefix: Prefix, partition: &str) -> impl Iterator<Item = Prefix> {
    let around = (ranges.around(prefix) != Some(partition)).then_some(prefix);
    around.into_iter().chain(ranges.within(prefix, partition))
}

/// Whole blocks. One that overlaps another node's says nothing: else whoever may claim for one node could say whose the
/// pods of others are.
fn claimed(objects: &Objects, blocks: &Named<IPBlockSpec>, ranges: &Ranges<'_>) -> Strays {
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

/// Addresses of pods, each by the block that the pod's own node has claimed around it, whatever others have claimed. Where
/// pods of two nodes have one, ranges say whose it is.
fn seen(
    objects: &Objects,
    blocks: &Named<IPBlockSpec>,
    ranges: &Ranges<'_>,
    pods: StrayPods,
) -> (Strays, StrayPods) {
    let claims: BTreeMap<(Prefix, &str), &str> =
        blocks.values().map(|b| ((Prefix::of(b.cidr), b.node.as_str()), partition_of(objects, b))).collect();
    let lengths: BTreeSet<u8> = claims.keys().map(|(prefix, _)| prefix.length).collect();
    let all = || objects.pods.values().flat_map(|pod| told(pod));
    let mut found = BTreeMap::new();
    for (node, address) in all() {
        let mut around = lengths.iter().rev().map(|l| (Prefix::of_address(address, *l), node));
        let Some(partition) = around.find_map(|block| claims.get(&block)) else { continue };
        if ranges.around(Prefix { address, length: 128 }) != Some(*partition) {
            found.insert(address, (node, *partition));
        }
    }
    let is_others = |(node, address): &(&str, Addr)| found.get(address).is_some_and(|(own, _)| own != node);
    let disputed: BTreeSet<Addr> = all().filter(is_others).map(|(_, address)| address).collect();
    let strays = found.iter().filter(|(address, _)| !disputed.contains(address));
    let strays = strays.map(|(address, (_, partition))| (network(*address), (*partition).to_string()));
    (strays.collect(), StrayPods { addresses: found.keys().copied().collect(), ..pods })
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

struct Ranges<'a> {
    partitions: BTreeMap<Prefix, &'a str>,
    lengths: BTreeSet<u8>,
}

impl<'a> Ranges<'a> {
    fn of(objects: &'a Objects) -> Self {
        let mut partitions = BTreeMap::new();
        for (name, cidr) in objects.own_ranges() {
            partitions.entry(Prefix::of(*cidr)).or_insert(name);
        }
        let lengths = partitions.keys().map(|p| p.length).collect();
        Self { partitions, lengths }
    }

    /// The partition that has all of a block, by the longest range around it.
    fn around(&self, block: Prefix) -> Option<&'a str> {
        let lengths = self.lengths.range(..=block.length).rev();
        let mut ranges = lengths.map(|length| Prefix::of_address(block.address, *length));
        ranges.find_map(|r| self.partitions.get(&r).filter(|_| r.covers(block))).copied()
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
            let spec = serde_json::json!({"policyID": n + 1, "podCIDRs": [cidr]});
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

    /// Pods as `n1 10.1.0.5`.
    fn with_pods(mut objects: Objects, pods: &[&str]) -> Objects {
        for (n, pod) in pods.iter().enumerate() {
            let (node, address) = pod.split_once(' ').unwrap();
            let pod =
                Pod { node: Some(node.into()), addresses: vec![address.parse().unwrap()], ..Pod::default() };
            objects.pods.insert(format!("shop/{n}"), Arc::new(pod));
        }
        objects
    }

    #[test]
    fn a_claim_that_needs_a_pod_says_whose_the_pods_of_its_own_node_are_and_nothing_else() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let claims =
            ["10.66.0.0/26 web n1", "10.99.0.0/26 web n1", "10.65.0.0/26 web n1", "203.0.113.0/26 pay bad"];
        let found =
            |pods: &[&str], claims: &[&str]| found_by(Witness::Pod, &with_pods(ranges.clone(), pods), claims);
        assert_eq!(found(&[], &claims), [""; 0]);
        let pods = ["n1 10.66.0.5", "n1 10.99.0.5", "n1 10.65.0.5", "n2 10.99.0.6", "n2 203.0.113.5"];
        assert_eq!(found(&pods, &claims), ["10.66.0.5/32 web", "10.99.0.5/32 web"]);
        // Whatever another node claims around it, across it, or in it.
        for claimed in
            ["10.0.0.0/8 pay bad", "10.99.0.0/26 pay bad", "10.99.0.5/32 pay bad", "0.0.0.0/0 pay bad"]
        {
            let claims = [&claims[..], &[claimed]].concat();
            assert_eq!(found(&pods, &claims), ["10.66.0.5/32 web", "10.99.0.5/32 web"], "{claimed}");
        }
        // Of its own node's the closest.
        let own = [&claims[..], &["10.99.0.5/32 pay n1"]].concat();
        assert_eq!(found(&pods, &own), ["10.66.0.5/32 web", "10.99.0.5/32 pay"]);
        // Of an address that pods of two nodes have no claim says anything, whichever of them is told of first.
        for order in [["n1 10.66.0.5", "n2 10.66.0.5"], ["n2 10.66.0.5", "n1 10.66.0.5"]] {
            let others: [&[&str]; 2] = [&["10.66.0.0/26 db n2"], &[]];
            for of_other in others {
                assert_eq!(found(&order, &[&claims[..], of_other].concat()), [""; 0], "{order:?}");
            }
        }
        assert_eq!(found(&["n1 10.66.0.5", "n1 10.66.0.5"], &claims), ["10.66.0.5/32 web"]);
    }

    #[test]
    fn only_pods_that_their_own_node_calls_strays_ask_for_a_look_at_all() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let claims = blocks_of(&["10.66.0.0/26 web n1", "10.65.0.0/26 web n1", "10.65.1.0/26 web n2"]);
        let change = |before: &[&str], now: &[&str]| {
            let before = with_pods(ranges.clone(), before);
            let (found, pods) = strays(&before, &claims, Witness::Pod);
            let now = with_pods(ranges.clone(), now);
            let asks = pods.change(&before.pods, &now.pods);
            assert!(asks || strays(&now, &claims, Witness::Pod).0 == found);
            asks
        };
        for pod in ["n1 10.65.0.5", "n2 10.65.1.5", "n2 10.66.0.5", "n2 10.99.0.5"] {
            assert!(!change(&[], &[pod]) && !change(&[pod], &[]), "{pod}");
        }
        assert!(change(&[], &["n1 10.66.0.5"]) && change(&["n1 10.66.0.5"], &[]));
        assert!(change(&["n1 10.66.0.5"], &["n1 10.65.0.5"]) && change(&["n1 10.65.0.5"], &["n1 10.66.0.5"]));
        // Another's with the address of one begins a dispute, and ends it.
        let (one, both) = (["n1 10.66.0.5"], ["n1 10.66.0.5", "n2 10.66.0.5"]);
        assert!(change(&one, &both) && change(&both, &one));
        assert!(!change(&one, &["n1 10.66.0.5", "n2 10.66.0.6"]));
        let (_, none) = strays(&ranges, &blocks_of(&["10.65.0.0/26 web n1"]), Witness::Pod);
        assert!(!none.change(&ranges.pods, &with_pods(ranges.clone(), &one).pods));
    }

    /// As many as a cluster is promised to have, and each is one.
    #[test]
    fn strays_of_all_pods_of_a_cluster_have_room() {
        let ranges = objects(&[("pay", "10.66.0.0/16"), ("web", "10.65.0.0/16")]);
        let number = |n: u32| std::net::Ipv4Addr::from(u32::from_be_bytes([10, 66, 0, 0]) + n);
        let pods: Vec<String> = (0..30_000).map(|n| format!("n1 {}", number(n))).collect();
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
        let mut objects = with_pods(objects(&[("web", "10.65.0.0/16")]), &["n1 192.0.2.1"]);
        let pod = Pod { host_network: true, ..Pod::clone(&objects.pods["shop/0"]) };
        objects.pods.insert("shop/0".into(), Arc::new(pod));
        assert_eq!(found_by(Witness::Pod, &objects, &["192.0.2.0/26 web n1"]), [""; 0]);
    }
}
