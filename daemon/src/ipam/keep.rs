//! What becomes of a block whose claim somebody has taken away while this node has pods in it.
//!
//! ```text
//!            looked at again ◀───────────────────────────────────────┐ now and then
//!  missing ──▶ list ──nothing overlaps──▶ claim ──Won──▶ ours again    │
//!                ├──something does, or no such node──▶ lost ───────────┘  not announced, gives no address; its pods keep theirs
//!                └──no answer──▶ unsure: announced as before, gives no address
//! ```
//! Until the last pod with an address of a lost block is gone, that address is given to no other.

use super::{BlockClaims, Claim, ClaimError, Ipam, overlap};
use bulkhead_api::objects::IPBlockSpec;
use futures_util::future::join_all;
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A block that was this node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub partition: String,
    pub holder: Holder,
}

/// Whose it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Claim(IPBlockSpec),
    /// This node is none of the cluster's any more, and can claim nothing.
    NoNode,
    /// Another's, who has given it back meanwhile.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(IPBlockSpec { cidr, node, .. }) => write!(f, "node {node} holds {cidr} now"),
            Self::NoNode => f.write_str("this node has been deleted from the cluster"),
            Self::Unknown => f.write_str("another node has claimed it"),
        }
    }
}

/// What [`Ipam::keep`] did.
#[derive(Debug, Default)]
pub struct Kept {
    /// Were gone, and are this node's again: another may have had them meanwhile.
    pub again: Vec<IpNetwork>,
    /// Lost by this call.
    pub lost: Vec<IpNetwork>,
    /// Somebody did not answer: to be called again.
    pub failed: Option<ClaimError>,
}

impl<C: BlockClaims> Ipam<C> {
    /// Claims again what is not among `told`, the claims that the cluster has of this node, and what was lost. `told` may be
    /// older than the last claim, so that all claims are listed before anything is claimed.
    pub async fn keep(&mut self, told: &BTreeSet<IpNetwork>) -> Kept {
        self.forget_lost();
        self.unsure.retain(|block| !told.contains(block));
        let missing = self.allocator.blocks().iter().filter(|(block, _)| !told.contains(block));
        let lost = self.lost.iter().map(|(block, lost)| (block, &lost.partition));
        let specs: Vec<IPBlockSpec> = missing.chain(lost).map(|(b, p)| self.spec(*b, p)).collect();
        let mut kept = Kept::default();
        if specs.is_empty() {
            return kept;
        }
        let answers = match self.claims.list().await {
            Ok(listed) => join_all(specs.iter().map(|spec| stands(&self.claims, spec, &listed))).await,
            Err(error) => {
                kept.failed = Some(error);
                specs.iter().map(|_| Ok(Stands::Unknown)).collect()
            }
        };
        for (spec, answer) in specs.into_iter().zip(answers) {
            let was_lost = self.lost.contains_key(&spec.cidr);
            let failed = match answer {
                Ok(Stands::Ours { again }) => {
                    if again || was_lost {
                        kept.again.push(spec.cidr);
                    }
                    self.add_block(&spec.partition, spec.cidr);
                    continue;
                }
                Ok(Stands::Not(holder)) => {
                    if !was_lost {
                        kept.lost.push(spec.cidr);
                    }
                    self.lose(spec, holder);
                    continue;
                }
                Ok(Stands::Unknown) => None,
                Err(error) => Some(error),
            };
            if !was_lost {
                self.unsure.insert(spec.cidr);
            }
            kept.failed = kept.failed.or(failed);
        }
        kept
    }

    pub(super) fn lose(&mut self, block: IPBlockSpec, holder: Holder) {
        self.claims.remember_lost(&block);
        let IPBlockSpec { cidr, partition, .. } = block;
        self.allocator.remove_block(cidr);
        self.unsure.remove(&cidr);
        self.lost.insert(cidr, Lost { partition, holder });
    }

    /// Blocks that hold pods' addresses and are this node's no more.
    pub fn lost(&self) -> &BTreeMap<IpNetwork, Lost> {
        &self.lost
    }

    /// Those of them whose last pod has gone. A claim that was made again without an answer is given back.
    pub(super) fn forget_lost(&mut self) {
        let allocator = &self.allocator;
        let forgotten = self.lost.extract_if(.., |block, _| !allocator.is_any_used(*block));
        self.leaving.extend(forgotten.map(|(block, lost)| (block, lost.partition)));
    }
}

/// What has become of a claim.
enum Stands {
    Ours {
        /// It was gone.
        again: bool,
    },
    Not(Holder),
    Unknown,
}

/// Claims only what nothing overlaps: a claim that gives way at once would wake whoever watches, and others might give way to it.
async fn stands<C: BlockClaims>(
    claims: &C,
    spec: &IPBlockSpec,
    listed: &[IPBlockSpec],
) -> Result<Stands, ClaimError> {
    let other = listed.iter().find(|c| *c != spec && overlap(c.cidr, spec.cidr));
    Ok(match (listed.contains(spec), other) {
        (true, None) => Stands::Ours { again: false },
        (false, Some(other)) => Stands::Not(Holder::Claim(other.clone())),
        // Of two that overlap the older one counts.
        (_, other) => match claims.claim(spec).await {
            Ok(Claim::Won) => Stands::Ours { again: other.is_none() },
            Ok(Claim::Taken) => Stands::Not(other.cloned().map_or(Holder::Unknown, Holder::Claim)),
            Err(ClaimError::NoNode(_)) => Stands::Not(Holder::NoNode),
            Err(error) => return Err(error),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::{ClaimFiles, IpamError, observed::Observed};
    use std::{fs, net::IpAddr, path::Path};

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    async fn node(dir: &Path, name: &str) -> Ipam<ClaimFiles> {
        Ipam::load(ClaimFiles::new(dir.into()).unwrap(), name).await.unwrap()
    }

    /// A node with one pod in the first of two blocks, whose claim somebody has removed.
    async fn robbed(dir: &Path) -> (Ipam<ClaimFiles>, IpAddr) {
        let mut one = node(dir, "n1").await;
        let address = one.allocate("web", &[net("10.1.0.0/25")], &[]).await.unwrap()[0];
        fs::remove_file(dir.join("10-1-0-0-26.yaml")).unwrap();
        (one, address)
    }

    #[tokio::test]
    async fn a_claim_that_was_taken_away_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, _) = robbed(dir.path()).await;
        let kept = one.keep(&BTreeSet::new()).await;
        assert_eq!((kept.again, one.lost().len()), (vec![net("10.1.0.0/26")], 0));
        assert!(dir.path().join("10-1-0-0-26.yaml").exists());
    }

    #[tokio::test]
    async fn a_block_that_another_has_claimed_since_is_lost_until_he_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, address) = robbed(dir.path()).await;
        let mut two = node(dir.path(), "n2").await;
        let theirs = two.allocate("web", &[net("10.1.0.0/26")], &[]).await.unwrap()[0];
        let kept = one.keep(&BTreeSet::new()).await;
        assert_eq!((kept.lost.as_slice(), one.blocks().len()), (&[net("10.1.0.0/26")][..], 0));
        let lost = &one.lost()[&net("10.1.0.0/26")];
        assert_eq!(lost.holder.to_string(), "node n2 holds 10.1.0.0/26 now");
        // Nobody gets an address of it.
        let other = one.allocate("web", &[net("10.1.0.0/25")], &[]).await.unwrap()[0];
        assert_eq!(other, "10.1.0.64".parse::<IpAddr>().unwrap());
        two.free(theirs);
        two.release_empty_blocks(&Default::default()).await.unwrap();
        let kept = one.keep(&[net("10.1.0.64/26")].into()).await;
        assert_eq!((kept.again, one.lost().len()), (vec![net("10.1.0.0/26")], 0));
        assert!(one.blocks_in_use().contains_key(&net("10.1.0.0/26")), "{address} is in it still");
    }

    #[tokio::test]
    async fn nothing_is_claimed_where_another_has_a_part_nor_what_is_ours_already() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Ipam::load(Observed::new(dir.path()), "n1").await.unwrap();
        for range in ["10.1.0.0/26", "10.1.0.64/26"] {
            one.allocate("web", &[net(range)], &[]).await.unwrap();
        }
        fs::remove_file(dir.path().join("10-1-0-0-26.yaml")).unwrap();
        node(dir.path(), "n2").await.allocate("web", &[net("10.1.0.32/27")], &[]).await.unwrap();
        one.claims.seen.lock().unwrap().claimed.clear();
        for lost_now in [1, 0] {
            let kept = one.keep(&BTreeSet::new()).await;
            assert_eq!((kept.lost.len(), kept.again.len(), one.lost().len()), (lost_now, 0, 1));
        }
        assert_eq!(one.claims.seen.lock().unwrap().claimed, []);
        assert_eq!(one.lost()[&net("10.1.0.0/26")].holder.to_string(), "node n2 holds 10.1.0.32/27 now");
        assert!(one.blocks().contains_key(&net("10.1.0.64/26")));
    }

    #[tokio::test]
    async fn a_lost_block_is_forgotten_with_its_last_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, address) = robbed(dir.path()).await;
        node(dir.path(), "n2").await.allocate("web", &[net("10.1.0.0/26")], &[]).await.unwrap();
        one.keep(&BTreeSet::new()).await;
        one.free(address);
        one.release_empty_blocks(&Default::default()).await.unwrap();
        assert_eq!(one.lost().len(), 0);
        assert_eq!(node(dir.path(), "n2").await.blocks().len(), 1, "their claim stands");
    }

    #[tokio::test]
    async fn a_block_of_which_nobody_knows_whose_it_is_stays_announced_and_gives_no_address() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, _) = robbed(dir.path()).await;
        let claim = dir.path().join("10-1-0-0-26.yaml");
        fs::write(&claim, "kind: [").unwrap();
        let kept = one.keep(&BTreeSet::new()).await;
        assert!(kept.failed.is_some() && one.blocks().contains_key(&net("10.1.0.0/26")));
        let none = one.allocate("web", &[net("10.1.0.0/26")], &[]).await;
        assert!(none.is_err(), "{none:?}");
        fs::remove_file(&claim).unwrap();
        one.keep(&BTreeSet::new()).await;
        one.allocate("web", &[net("10.1.0.0/26")], &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_fixed_address_that_was_lost_is_given_to_nobody_while_its_pod_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let fixed: IpAddr = "10.1.0.7".parse().unwrap();
        let mut one = node(dir.path(), "n1").await;
        one.take("web", &[fixed]).await.unwrap();
        fs::remove_file(dir.path().join("10-1-0-7-32.yaml")).unwrap();
        node(dir.path(), "n2").await.take("web", &[fixed]).await.unwrap();
        one.keep(&BTreeSet::new()).await;
        assert!(one.blocks().is_empty());
        assert!(matches!(one.take("web", &[fixed]).await, Err(IpamError::Held { .. })));
    }
}
