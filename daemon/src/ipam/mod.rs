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
mod told;

pub use allocator::{Allocator, Family, blocks_of, overlap};
pub use claims::{BlockClaims, Claim, ClaimError, ClaimFiles};
pub use fixed::{Asked, is_fixed};
pub use keep::{Holder, Kept, Lost};
pub use kept::Claims;
pub use objects::ClaimObjects;
pub use told::{ToldClaims, watch_claims};

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
        let taken: BTreeMap<IpAddr, IpNetwork> =
            self.claims.list().await?.into_iter().map(|b| (b.cidr.network(), b.cidr)).collect();
        let free = |block: &IpNetwork| {
            if fixed.iter().any(|f| overlap(*f, *block)) {
                return false;
            }
            // Claimed blocks do not overlap each other: the last that begins at or before our end decides.
            let last = taken.range(..=block.broadcast()).next_back();
            let comes_back = self.leaving.get(block).is_some_and(|p| p == partition);
            last.is_none_or(|(_, t)| t.broadcast() < block.network() || (comes_back && t == block))
        };
        let mine = self.allocator.blocks();
        let not_ours = |block: &IpNetwork| !mine.contains_key(block);
        let mut failed = None;
        for block in ranges.iter().flat_map(|r| blocks_of(*r)).filter(free).filter(not_ours) {
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

    /// Gives back the blocks that hold no address. Explicit, because a block that stays claimed costs nothing and spares
    /// the routers a withdrawal and an announcement each time the last pod goes.
    ///
    /// # Errors
    /// The first of the claims' errors. A block is none of this node's from here on, whatever is known of its claim:
    /// see [`Self::release_leaving`].
    pub async fn release_empty_blocks(&mut self) -> Result<Vec<IpNetwork>, ClaimError> {
        self.forget_lost();
        for (block, partition) in self.allocator.empty_blocks() {
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
mod tests {
    use super::{observed::Observed, *};
    use bulkhead_api::objects::block_name;
    use std::{collections::BTreeSet, path::Path};

    fn nets(text: &[&str]) -> Vec<IpNetwork> {
        text.iter().map(|t| t.parse().unwrap()).collect()
    }

    async fn node(dir: &Path, name: &str) -> Ipam<ClaimFiles> {
        Ipam::load(ClaimFiles::new(dir.into()).unwrap(), name).await.unwrap()
    }

    #[tokio::test]
    async fn an_address_of_each_family_the_ranges_have() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = node(dir.path(), "n1").await;
        let both = ipam.allocate("web", &nets(&["10.1.0.0/24", "fd00:1::/64"]), &[]).await.unwrap();
        assert_eq!(both, ["10.1.0.1".parse::<IpAddr>().unwrap(), "fd00:1::1".parse().unwrap()]);
        assert_eq!(ipam.allocate("six", &nets(&["fd00:2::/64"]), &[]).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn exhaustion_names_partition_and_ranges_and_gives_back_the_other_family() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = node(dir.path(), "n1").await;
        let ranges = nets(&["10.1.0.0/28", "fd00:1::/127"]);
        ipam.allocate("web", &ranges, &[]).await.unwrap();
        let error = ipam.allocate("web", &ranges, &[]).await.unwrap_err().to_string();
        assert!(error.contains("web") && error.contains("IPv6") && error.contains("fd00:1::/127"), "{error}");
        // 14 others fit still: the failed attempt kept none of them.
        for _ in 0..14 {
            ipam.allocate("web", &ranges[..1], &[]).await.unwrap();
        }
        let error = ipam.allocate("web", &ranges[..1], &[]).await.unwrap_err().to_string();
        assert!(error.contains("IPv4") && error.contains("10.1.0.0/28"), "{error}");
    }

    #[tokio::test]
    async fn a_partition_without_ranges_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            node(dir.path(), "n1").await.allocate("web", &[], &[]).await,
            Err(IpamError::NoRanges { .. })
        ));
    }

    #[tokio::test]
    async fn blocks_are_claimed_in_order_and_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = nets(&["10.1.0.0/25"]);
        let mut one = node(dir.path(), "n1").await;
        let mut two = node(dir.path(), "n2").await;
        one.allocate("web", &ranges, &[]).await.unwrap();
        two.allocate("web", &ranges, &[]).await.unwrap();
        assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.0/26"]));
        assert_eq!(two.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.64/26"]));
        let again = node(dir.path(), "n2").await;
        assert_eq!(again.blocks(), two.blocks());
    }

    #[tokio::test]
    async fn a_full_block_is_followed_by_the_next_free_one() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = nets(&["10.1.0.0/24"]);
        let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
        one.allocate("web", &ranges, &[]).await.unwrap();
        two.allocate("web", &ranges, &[]).await.unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            assert!(seen.insert(one.allocate("web", &ranges, &[]).await.unwrap()));
        }
        assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.0/26", "10.1.0.128/26"]));
    }

    #[tokio::test]
    async fn released_blocks_are_free_for_others_and_used_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = node(dir.path(), "n1").await;
        let web = one.allocate("web", &nets(&["10.1.0.0/26"]), &[]).await.unwrap();
        one.allocate("pay", &nets(&["10.2.0.0/26"]), &[]).await.unwrap();
        web.into_iter().for_each(|a| one.free(a));
        assert_eq!(one.blocks_in_use().keys().copied().collect::<Vec<_>>(), nets(&["10.2.0.0/26"]));
        assert_eq!(one.release_empty_blocks().await.unwrap(), nets(&["10.1.0.0/26"]));
        assert_eq!(*one.blocks(), one.blocks_in_use());
        assert!(!dir.path().join(format!("{}.yaml", block_name("10.1.0.0/26".parse().unwrap()))).exists());
        let mut two = node(dir.path(), "n2").await;
        two.allocate("web", &nets(&["10.1.0.0/26"]), &[]).await.unwrap();
        assert!(two.allocate("pay", &nets(&["10.2.0.0/26"]), &[]).await.is_err());
    }

    #[test]
    fn nodes_that_race_for_blocks_never_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = nets(&["10.1.0.0/21", "fd00:1::/117"]);
        let claim = |name: String| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut ipam = node(dir.path(), &name).await;
                let mut addresses = Vec::new();
                for _ in 0..200 {
                    addresses.extend(ipam.allocate("web", &ranges, &[]).await.unwrap());
                }
                (addresses, ipam.blocks().clone())
            })
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|n| scope.spawn(move || claim(format!("n{n}")))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let addresses: Vec<_> = results.iter().flat_map(|(a, _)| a).collect();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
        let blocks: Vec<_> = results.iter().flat_map(|(_, b)| b.keys()).collect();
        assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), blocks.len());
    }

    #[tokio::test]
    async fn a_fixed_address_is_given_to_one_pod_until_it_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
        let fixed: Vec<IpAddr> = vec!["10.1.0.7".parse().unwrap(), "fd00:1::7".parse().unwrap()];
        one.take("web", &fixed).await.unwrap();
        let error = two.take("web", &fixed).await.unwrap_err().to_string();
        assert!(error.contains("10.1.0.7 is held by block 10.1.0.7/32 of node n1"), "{error}");
        assert!(matches!(one.take("web", &fixed[..1]).await, Err(IpamError::Held { .. })));
        // It is announced like any block: as a host route.
        assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.7/32", "fd00:1::7/128"]));
        fixed.iter().for_each(|a| one.free(*a));
        one.release_empty_blocks().await.unwrap();
        two.take("web", &fixed).await.unwrap();
    }

    #[tokio::test]
    async fn what_failed_half_way_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
        let fixed: Vec<IpAddr> = vec!["10.1.0.7".parse().unwrap(), "fd00:1::7".parse().unwrap()];
        two.take("web", &fixed[1..]).await.unwrap();
        assert!(one.take("web", &fixed).await.is_err());
        one.release_empty_blocks().await.unwrap();
        two.take("web", &fixed[..1]).await.unwrap();
    }

    /// Real claims, with one block whose release is never heard of again: on its way there, or back.
    struct Lossy {
        claims: ClaimFiles,
        block: IpNetwork,
        /// 0: nothing is lost, 1: the answer, 2: the request.
        loses: std::sync::atomic::AtomicU8,
    }

    impl BlockClaims for Lossy {
        async fn claim(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
            self.claims.claim(block).await
        }

        async fn release(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
            let loses = self.loses.load(std::sync::atomic::Ordering::Relaxed);
            if block.cidr != self.block || loses != 2 {
                self.claims.release(block).await?;
            }
            if block.cidr != self.block || loses == 0 {
                return Ok(());
            }
            Err(ClaimError::Api { what: "IPBlock".into(), reason: "no answer".into() })
        }

        async fn tidy(&self, node: &str) -> Result<(), ClaimError> {
            self.claims.tidy(node).await
        }

        async fn get(&self, cidr: IpNetwork) -> Result<Option<IPBlockSpec>, ClaimError> {
            self.claims.get(cidr).await
        }

        async fn list(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
            self.claims.list().await
        }

        async fn of_node(&self, node: &str) -> Result<Vec<IPBlockSpec>, ClaimError> {
            self.claims.of_node(node).await
        }

        fn remembered(&self) -> Vec<IPBlockSpec> {
            self.claims.remembered()
        }

        fn remember_lost(&self, block: &IPBlockSpec) {
            self.claims.remember_lost(block);
        }
    }

    /// Two blocks of one node, of which the first is released without an answer.
    async fn unanswered(dir: &Path, loses: u8) -> Ipam<Lossy> {
        let claims = ClaimFiles::new(dir.into()).unwrap();
        let lossy = Lossy { claims, block: nets(&["10.1.0.0/26"])[0], loses: loses.into() };
        let mut one = Ipam::load(lossy, "n1").await.unwrap();
        let mut addresses = one.allocate("web", &nets(&["10.1.0.0/24"]), &[]).await.unwrap();
        addresses.extend(one.allocate("pay", &nets(&["10.2.0.0/26"]), &[]).await.unwrap());
        addresses.into_iter().for_each(|a| one.free(a));
        one.release_empty_blocks().await.unwrap_err();
        assert_eq!(*one.blocks(), BTreeMap::new(), "nothing that may be another's is announced");
        assert!(
            !dir.join(format!("{}.yaml", block_name(nets(&["10.2.0.0/26"])[0]))).exists(),
            "the others go on"
        );
        one.claims.loses = 0.into();
        one
    }

    #[tokio::test]
    async fn a_block_that_was_released_without_an_answer_is_another_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = unanswered(dir.path(), 1).await;
        let mut two = node(dir.path(), "n2").await;
        let ranges = nets(&["10.1.0.0/24"]);
        let theirs = two.allocate("web", &ranges, &[]).await.unwrap();
        let ours = one.allocate("web", &ranges, &[]).await.unwrap();
        assert_eq!(theirs, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(ours, ["10.1.0.64".parse::<IpAddr>().unwrap()]);
        assert_eq!(one.release_leaving().await.unwrap(), nets(&["10.1.0.0/26"]));
        assert_eq!(node(dir.path(), "n2").await.blocks().len(), 1, "their claim stands");
    }

    #[tokio::test]
    async fn a_block_whose_release_was_lost_is_tried_again_or_claimed_anew() {
        for used_again in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut one = unanswered(dir.path(), 2).await;
            if used_again {
                let address = one.allocate("web", &nets(&["10.1.0.0/24"]), &[]).await.unwrap();
                assert_eq!(address, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
            }
            assert_eq!(one.release_leaving().await.unwrap().len(), usize::from(!used_again));
            assert_eq!(node(dir.path(), "n1").await.blocks().len(), usize::from(used_again));
        }
    }

    #[tokio::test]
    async fn a_fixed_address_whose_release_was_lost_is_claimed_anew() {
        let dir = tempfile::tempdir().unwrap();
        let fixed: IpAddr = "10.1.0.7".parse().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        let mut one = Ipam::load(Lossy { claims, block: fixed.into(), loses: 1.into() }, "n1").await.unwrap();
        one.take("web", &[fixed]).await.unwrap();
        one.free(fixed);
        one.release_empty_blocks().await.unwrap_err();
        one.take("web", &[fixed]).await.unwrap();
        assert_eq!(one.release_leaving().await.unwrap(), []);
        assert!(node(dir.path(), "n2").await.take("web", &[fixed]).await.is_err());
    }

    #[tokio::test]
    async fn a_claim_that_was_made_without_an_answer_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Ipam::load(Observed::new(dir.path()), "n1").await.unwrap();
        one.claims.seen.lock().unwrap().answer_is_lost = true;
        one.allocate("web", &nets(&["10.1.0.0/24"]), &[]).await.unwrap_err();
        one.take("web", &["10.1.1.7".parse().unwrap()]).await.unwrap_err();
        assert_eq!((one.claims.list().await.unwrap().len(), one.blocks().len()), (2, 0));
        assert!(one.is_leaving());
        one.release_leaving().await.unwrap();
        assert_eq!(one.claims.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_remembered_and_another_has_is_none_of_ours_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        node(dir.path(), "n2").await.allocate("web", &nets(&["10.1.0.0/27"]), &[]).await.unwrap();
        let claims = Observed::new(dir.path());
        let spec = |cidr: &str, node: &str| IPBlockSpec {
            cidr: cidr.parse().unwrap(),
            partition: "web".into(),
            node: node.into(),
        };
        claims.seen.lock().unwrap().remembered =
            vec![spec("10.1.0.0/26", "n1"), spec("10.1.0.64/26", "n1"), spec("10.1.0.128/26", "")];
        let one = Ipam::load(claims, "n1").await.unwrap();
        assert_eq!(one.blocks().keys().copied().collect::<Vec<_>>(), nets(&["10.1.0.64/26"]));
        assert_eq!(
            one.lost().keys().copied().collect::<Vec<_>>(),
            nets(&["10.1.0.0/26", "10.1.0.128/26"]),
            "of another's, and lost before"
        );
        assert_eq!(one.claims.seen.lock().unwrap().remembered_lost[1], spec("10.1.0.0/26", "n1"));
    }

    #[tokio::test]
    async fn no_block_is_cut_from_what_is_kept_for_reservations() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = node(dir.path(), "n1").await;
        let (ranges, fixed) = (nets(&["10.1.0.0/25"]), nets(&["10.1.0.0/28"]));
        one.take("web", &["10.1.0.7".parse().unwrap()]).await.unwrap();
        let address = one.allocate("web", &ranges, &fixed).await.unwrap();
        assert_eq!(address, ["10.1.0.64".parse::<IpAddr>().unwrap()]);
        one.free("10.1.0.7".parse().unwrap());
        let all = nets(&["10.1.0.0/28"]);
        assert!(matches!(one.allocate("web", &all, &fixed).await, Err(IpamError::Exhausted { .. })));
    }
}
