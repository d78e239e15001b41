//! Strays: pods whose address is another partition's by the ranges, or nobody's.
//!
//! In a cluster the source tells of every pod: its partition is that of its namespace, also of a pod that runs while its
//! namespace is moved, while a partition is laid over it or while a range is shrunk. In a directory, where pods may be
//! unknown, a block is claimed for one partition and stays that partition's for the life of its pods, wherever ranges move
//! meanwhile. In range, where nearly all are, both say nothing new and make no entry.
//!
//! An address outside all ranges that is no stray's is the world, whatever pod is told to have it.

mod claims;
mod ranges;

use crate::{Compiled, Named, Objects, Pod, homes::Homes, prefix::Prefix};
use bulkhead_api::objects::{DEFAULT_PARTITION, IPBlockSpec};
use bulkhead_ebpf_abi::Addr;
use claims::Claims;
use imbl::{OrdMap, ordmap::DiffItem};
use ipnetwork::IpNetwork;
use ranges::Ranges;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Whose the addresses are that ranges call another partition's, or nobody's.
pub type Strays = OrdMap<IpNetwork, Stray>;

/// On disk a text, `web` or `web shop/cart`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Stray {
    pub partition: String,
    /// The pod that has the address, as `namespace/name`, whatever others are told to have it. None: a block's, whose pods may be
    /// unknown.
    pub pod: Option<String>,
}

impl From<&str> for Stray {
    fn from(text: &str) -> Self {
        let (partition, pod) = text.split_once(' ').map_or((text, None), |(name, pod)| (name, Some(pod)));
        Self { partition: partition.into(), pod: pod.map(Into::into) }
    }
}

impl From<String> for Stray {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Stray> for String {
    fn from(Stray { partition, pod }: Stray) -> Self {
        pod.map_or_else(|| partition.clone(), |pod| format!("{partition} {pod}"))
    }
}

/// What makes a stray.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Witness {
    /// A claim alone: whoever writes a directory's claims may write its policy too. Pods may be unknown there.
    #[default]
    None,
    /// A pod that is told to be on a node and to have an address that this node has claimed; it is of its namespace's
    /// partition. A daemon's token claims for its node, but what addresses a pod has, it cannot say.
    Pod,
}

/// What strays were found by, so that the next are found by what differs.
#[derive(Clone, Debug, Default)]
pub struct Grounds {
    witness: Witness,
    blocks: Named<IPBlockSpec>,
    claims: Arc<Claims>,
    ranges: Arc<Ranges>,
    homes: Homes,
}

/// By address: pods that may have it, as `namespace/name`.
type Concerned<'a> = BTreeMap<Addr, BTreeSet<&'a str>>;

/// Strays, with a look at everybody.
pub fn strays(objects: &Objects, blocks: &Named<IPBlockSpec>, witness: Witness) -> (Strays, Grounds) {
    let grounds = Grounds {
        witness,
        blocks: blocks.clone(),
        claims: Arc::new(Claims::of(blocks)),
        ranges: Arc::new(Ranges::of(objects)),
        homes: Homes::of(objects),
    };
    (grounds.all(objects), grounds)
}

impl Grounds {
    pub fn homes(&self) -> &Homes {
        &self.homes
    }

    /// Strays of these objects, where these were the grounds for those in `former`: only addresses are looked at that somebody may
    /// say something else of than before, unless ranges are others.
    pub fn follow(
        &self,
        former: &Compiled,
        objects: &Objects,
        blocks: &Named<IPBlockSpec>,
    ) -> (Strays, Self) {
        let before = former.objects();
        let (same_blocks, same_ranges) = (self.blocks.ptr_eq(blocks), before.same_ranges(objects));
        let now = Self {
            witness: self.witness,
            blocks: blocks.clone(),
            claims: if same_blocks { self.claims.clone() } else { Arc::new(Claims::of(blocks)) },
            ranges: if same_ranges { self.ranges.clone() } else { Arc::new(Ranges::of(objects)) },
            homes: self.homes.follow(objects),
        };
        let strays = match self.witness {
            Witness::None if same_ranges && same_blocks => before.strays.clone(),
            Witness::Pod if same_ranges => {
                let mut strays = before.strays.clone();
                now.look(objects, &self.concerned(&now, former, objects), &mut strays);
                strays
            }
            Witness::None | Witness::Pod => now.all(objects),
        };
        (strays, now)
    }

    fn all(&self, objects: &Objects) -> Strays {
        match self.witness {
            Witness::None => claimed(objects, &self.blocks, &self.ranges),
            Witness::Pod => {
                let mut strays = Strays::new();
                let mut all = Concerned::new();
                objects.pods.iter().for_each(|(key, pod)| concern(&mut all, key, pod));
                self.look(objects, &all, &mut strays);
                strays
            }
        }
    }

    /// Addresses of which pods, claims or the partitions of namespaces say something else than before.
    fn concerned<'a>(&self, now: &Self, former: &'a Compiled, objects: &'a Objects) -> Concerned<'a> {
        let mut concerned = Concerned::new();
        for item in former.objects().pods.diff(&objects.pods) {
            match item {
                DiffItem::Add(key, pod) | DiffItem::Remove(key, pod) => concern(&mut concerned, key, pod),
                DiffItem::Update { old: (_, old), new: (key, new) } => {
                    if (&old.node, &old.addresses, old.host_network)
                        != (&new.node, &new.addresses, new.host_network)
                    {
                        concern(&mut concerned, key, old);
                        concern(&mut concerned, key, new);
                    }
                }
            }
        }
        for namespace in self.homes.unlike(&now.homes) {
            for (key, pod) in Objects::within(&objects.pods, namespace) {
                concern(&mut concerned, key, pod);
            }
        }
        for block in unlike(&self.blocks, &now.blocks) {
            for (address, _) in former.pods_within(Prefix::of(block.cidr)) {
                concerned.entry(address).or_default();
            }
        }
        for (address, pods) in &mut concerned {
            pods.extend(former.pods_within(Prefix { address: *address, length: 128 }).map(|(_, pod)| pod));
        }
        concerned
    }

    fn look(&self, objects: &Objects, concerned: &Concerned<'_>, strays: &mut Strays) {
        for (address, pods) in concerned {
            let network = Prefix { address: *address, length: 128 }.network();
            let home = self.home_of_stray(objects, *address, pods);
            // What stays is shared with the strays before: the same map is seen to be the same.
            let same =
                |stray: &Stray| home == Some((&stray.partition, stray.pod.as_deref().unwrap_or_default()));
            if strays.get(&network).map_or(home.is_none(), same) {
                continue;
            }
            match home {
                Some((home, pod)) => {
                    strays.insert(network, Stray { partition: home.into(), pod: Some(pod.into()) });
                }
                None => drop(strays.remove(&network)),
            }
        }
    }

    /// With the pod that has it: of those that their own node has claimed a block for, whatever others claim or are told to have. Of two pods of a node with
    /// one address the first has it, as everywhere; where pods of two nodes have it, ranges say whose it is.
    fn home_of_stray<'a>(
        &'a self,
        objects: &Objects,
        address: Addr,
        pods: &BTreeSet<&'a str>,
    ) -> Option<(&'a str, &'a str)> {
        let mut claimants = pods.iter().filter_map(|key| {
            let (node, _) = told(objects.pod(key)?).find(|(_, told)| *told == address)?;
            self.claims.hold(node, address).then_some((node, *key))
        });
        let (node, first) = claimants.next()?;
        if claimants.any(|(other, _)| other != node) {
            return None;
        }
        let home = self.homes.of_pod(first).filter(|home| self.ranges.of_address(address) != Some(home));
        home.map(|home| (home, first))
    }
}

fn concern<'a>(concerned: &mut Concerned<'a>, key: &'a str, pod: &Pod) {
    for (_, address) in told(pod) {
        concerned.entry(address).or_default().insert(key);
    }
}

/// Blocks that stand in one of the two alone.
fn unlike<'a>(a: &'a Named<IPBlockSpec>, b: &'a Named<IPBlockSpec>) -> impl Iterator<Item = &'a IPBlockSpec> {
    a.diff(b).flat_map(|item| {
        let (old, new) = match item {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            DiffItem::Remove(_, old) => (Some(old), None),
        };
        old.into_iter().chain(new).map(Arc::as_ref)
    })
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
            strays.insert(stray.network(), partition.into());
        }
    }
    strays
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

#[cfg(test)]
mod tests;
