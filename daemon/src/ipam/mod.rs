//! Pod addresses: blocks of a partition's ranges, claimed by this node, and the addresses in them.
//!
//! ```text
//! range of the partition ─▶ blocks, in order ─▶ claimed by a node (BlockClaims: creating is the lock)
//!                                               └▶ addresses, lowest free after the last one given (Allocator: pure)
//! ```
//! [`Ipam`] joins the two. It never touches the kernel and keeps no file but the claims.

mod allocator;
mod claims;
mod fixed;
mod keep;
mod kept;
mod objects;
#[cfg(test)]
mod observed;

pub use allocator::{Allocator, Family, free_blocks, is_block_of, overlap};
pub use claims::{BlockClaims, Claim, ClaimError, ClaimFiles};
pub use fixed::{Asked, is_fixed};
pub use keep::{Holder, Kept, Lost};
pub use kept::Claims;
pub use objects::ClaimObjects;

use bulkhead_api::objects::IPBlockSpec;
use futures_util::future::join_all;
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error(
        "partition {partition} has no free {family} address: every block of {} is full or claimed by another node",
        Ranges(ranges)
    )]
    Exhausted { partition: String, family: Family, ranges: Vec<IpNetwork> },
    #[error("partition {partition} has no podCIDRs")]
    NoRanges { partition: String },
    #[error(
        "{address} is held by {holder}: the pod waits until it is given back, or its node is removed from the cluster"
    )]
    Held { address: IpAddr, holder: String },
    #[error(transparent)]
    Claims(#[from] ClaimError),
}

struct Ranges<'a>(&'a [IpNetwork]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// This node's addresses.
pub struct Ipam<C> {
    allocator: Allocator,
    claims: C,
    node: String,
    /// Given back, though nobody knows whether that got through: another node may have them. With their partitions.
    leaving: BTreeMap<IpNetwork, String>,
    /// Were this node's, and hold addresses of its pods.
    lost: BTreeMap<IpNetwork, Lost>,
    /// Blocks of which nobody could say whether they are this node's still: they give no address.
    unsure: BTreeSet<IpNetwork>,
}

impl<C: BlockClaims> Ipam<C> {
    /// Takes up the blocks that this node claimed before.
    pub async fn load(claims: C, node: &str) -> Result<Self, ClaimError> {
        claims.tidy(node).await?;
        let mut allocator = Allocator::default();
        let claimed = claims.of_node(node).await?;
        // What was taken away while no daemon looked is claimed again with the first [`Self::keep`].
        let mut known = claims.remembered();
        known.retain(|block| !claimed.iter().any(|c| c.cidr == block.cidr));
        let (gone, lost): (Vec<_>, Vec<_>) = known.into_iter().partition(|block| block.node == node);
        for block in claimed {
            allocator.add_block(&block.partition, block.cidr);
        }
        let (leaving, unsure) = Default::default();
        let mut ipam = Self { allocator, claims, node: node.into(), leaving, lost: BTreeMap::new(), unsure };
        for block in lost {
            ipam.lose(block, Holder::Unknown);
        }
        let all = if gone.is_empty() { Vec::new() } else { ipam.claims.list().await.unwrap_or_default() };
        for block in gone {
            match all.iter().find(|c| overlap(c.cidr, block.cidr)) {
                Some(claim) => ipam.lose(block, Holder::Claim(claim.clone())),
                None => {
                    ipam.unsure.insert(block.cidr);
                    ipam.allocator.add_block(&block.partition, block.cidr);
                }
            }
        }
        Ok(ipam)
    }

    fn spec(&self, cidr: IpNetwork, partition: &str) -> IPBlockSpec {
        IPBlockSpec { cidr, partition: partition.into(), node: self.node.clone() }
    }

    /// A claim that failed may stand all the same.
    fn give_back_half(&mut self, error: &ClaimError, block: IpNetwork, partition: &str) {
        let none_made = matches!(error, ClaimError::NoNode(_));
        if !none_made && !self.allocator.blocks().contains_key(&block) {
            self.leaving.insert(block, partition.into());
        }
    }

    /// Exactly these addresses; all or none. Each is claimed as a block of its own, so that nobody else can have it until
    /// it is given back, also where its node is cut off.
    pub async fn take(&mut self, partition: &str, addresses: &[IpAddr]) -> Result<(), IpamError> {
        let mut taken = Vec::new();
        for address in addresses {
            if let Err(error) = self.take_one(partition, *address).await {
                taken.into_iter().for_each(|a| self.free(a));
                return Err(error);
            }
            taken.push(*address);
        }
        Ok(())
    }

    async fn take_one(&mut self, partition: &str, address: IpAddr) -> Result<(), IpamError> {
        if self.allocator.is_used(address) {
            return Err(IpamError::Held { address, holder: "another pod of this node".into() });
        }
        let cidr = IpNetwork::from(address);
        if !self.allocator.blocks().contains_key(&cidr) || self.unsure.contains(&cidr) {
            let spec = self.spec(cidr, partition);
            let holder = |blocks: Vec<IPBlockSpec>| blocks.into_iter().find(|b| overlap(b.cidr, cidr));
            let mut held = holder(self.claims.list().await?);
            // Ours may be one that is leaving.
            if held.as_ref().is_none_or(|held| *held == spec) {
                let answer = self.claims.claim(&spec).await;
                if let Err(error) = &answer {
                    self.give_back_half(error, cidr, partition);
                }
                if answer? == Claim::Taken {
                    held = holder(self.claims.list().await?).or(Some(spec.clone()));
                }
            }
            if let Some(block) = held.filter(|held| *held != spec) {
                let holder = format!("block {} of node {}", block.cidr, block.node);
                return Err(IpamError::Held { address, holder });
            }
            self.add_block(partition, cidr);
        }
        self.allocator.restore(address);
        Ok(())
    }

    /// One address of each family that the ranges have outside `fixed`, IPv4 first; all or none.
    pub async fn allocate(
        &mut self,
        partition: &str,
        ranges: &[IpNetwork],
        fixed: &[IpNetwork],
    ) -> Result<Vec<IpAddr>, IpamError> {
        let mut addresses = Vec::new();
        for family in [Family::V4, Family::V6] {
            let ranges: Vec<_> = ranges.iter().copied().filter(|r| family.holds(*r)).collect();
            if ranges.is_empty() {
                continue;
            }
            match self.allocate_one(partition, family, &ranges, fixed).await {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    addresses.into_iter().for_each(|a| self.free(a));
                    return Err(error);
                }
            }
        }
        if addresses.is_empty() {
            return Err(IpamError::NoRanges { partition: partition.into() });
        }
        Ok(addresses)
    }

    async fn allocate_one(
        &mut self,
        partition: &str,
        family: Family,
        ranges: &[IpNetwork],
        fixed: &[IpNetwork],
    ) -> Result<IpAddr, IpamError> {
        let kept_free: Vec<_> = fixed.iter().chain(&self.unsure).copied().collect();
        loop {
            if let Some(address) = self.allocator.allocate(partition, ranges, &kept_free) {
                return Ok(address);
            }
            let block = self.claim_next(partition, ranges, &kept_free).await?;
            let Some(block) = block else {
                return Err(IpamError::Exhausted {
                    partition: partition.into(),
                    family,
                    ranges: ranges.to_vec(),
                });
            };
            self.add_block(partition, block);
        }
    }

    /// One that was claimed just now.
    fn add_block(&mut self, partition: &str, block: IpNetwork) {
        self.leaving.remove(&block);
        self.lost.remove(&block);
        self.unsure.remove(&block);
        self.allocator.add_block(partition, block);
    }

    /// The first block in order that nobody has. `None`: there is none left.
    async fn claim_next(
        &mut self,
        partition: &str,
        ranges: &[IpNetwork],
        fixed: &[IpNetwork],
    ) -> Result<Option<IpNetwork>, ClaimError> {
        // One of ours that is leaving, and was cut like this, may come back.
        let comes_back = |block: &IpNetwork| {
            self.leaving.get(block).is_some_and(|p| p == partition)
                && ranges.iter().any(|range| is_block_of(*range, *block))
        };
        let claimed = self.claims.list().await?.into_iter().map(|b| b.cidr).filter(|b| !comes_back(b));
        let mine = self.allocator.blocks().keys().copied();
        let taken: Vec<_> = claimed.chain(mine).chain(fixed.iter().copied()).collect();
        let mut failed = None;
        for block in ranges.iter().flat_map(|range| free_blocks(*range, &taken)) {
            match self.claims.claim(&self.spec(block, partition)).await {
                Ok(Claim::Won) => return Ok(Some(block)),
                Ok(Claim::Taken) => {}
                Err(error) => {
                    failed = Some((block, error));
                    break;
                }
            }
        }
        let Some((block, error)) = failed else { return Ok(None) };
        self.give_back_half(&error, block, partition);
        Err(error)
    }

    pub fn free(&mut self, address: IpAddr) {
        self.allocator.free(address);
    }

    /// An address that a pod has already. It is not given again even where no block of ours holds it.
    pub fn restore(&mut self, address: IpAddr) {
        self.allocator.restore(address);
    }

    /// Claimed blocks of this node and their partitions.
    pub fn blocks(&self) -> &BTreeMap<IpNetwork, String> {
        self.allocator.blocks()
    }

    /// Those that hold an address.
    pub fn blocks_in_use(&self) -> BTreeMap<IpNetwork, String> {
        let mut blocks = self.allocator.blocks().clone();
        for (empty, _) in self.allocator.empty_blocks() {
            blocks.remove(&empty);
        }
        blocks
    }

    /// Gives back the blocks that hold no address, but for those that are held. Explicit, because a block that stays claimed costs nothing and spares
    /// the routers a withdrawal and an announcement each time the last pod goes.
    ///
    /// # Errors
    /// The first of the claims' errors. A block is none of this node's from here on, whatever is known of its claim:
    /// see [`Self::release_leaving`].
    pub async fn release_empty_blocks(
        &mut self,
        held: &BTreeSet<IpNetwork>,
    ) -> Result<Vec<IpNetwork>, ClaimError> {
        self.forget_lost();
        for (block, partition) in self.allocator.empty_blocks() {
            if held.contains(&block) {
                continue;
            }
            self.allocator.remove_block(block);
            self.unsure.remove(&block);
            self.leaving.insert(block, partition);
        }
        self.release_leaving().await
    }

    /// Whether [`Self::release_leaving`] has something to do.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Tries again what is not known to be given back. All at once: what does not answer is waited for once.
    pub async fn release_leaving(&mut self) -> Result<Vec<IpNetwork>, ClaimError> {
        let specs = self.leaving.iter().map(|(block, partition)| self.spec(*block, partition));
        let specs: Vec<IPBlockSpec> = specs.collect();
        let answers = join_all(specs.iter().map(|spec| self.claims.release(spec))).await;
        let (mut released, mut failed) = (Vec::new(), None);
        for (spec, answer) in specs.iter().zip(answers) {
            match answer {
                // Another node's: ours went, and its answer did not come.
                Ok(()) | Err(ClaimError::NotOurs { .. }) => {
                    self.leaving.remove(&spec.cidr);
                    released.push(spec.cidr);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(released), Err)
    }
}

#[cfg(test)]
mod tests;
