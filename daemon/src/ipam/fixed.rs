//! Fixed addresses of this node: whether their claims are its own still. A claim goes with its `Node` object, of a node that may be
//! alive all the same.

use super::{BlockClaims, Claim, ClaimError, Ipam, keep::Holder};
use bulkhead_api::objects::IPBlockSpec;
use futures_util::future::{join, join_all};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What the claims say of a fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Ours,
    /// It was nobody's, and is claimed anew: another node may have had it meanwhile.
    Again,
    /// This node has it.
    Anothers(String),
    /// There was no answer.
    Unknown,
}

/// A block of one address.
pub fn is_fixed(block: &IpNetwork) -> bool {
    block.prefix() == if block.is_ipv4() { 32 } else { 128 }
}

impl<C: BlockClaims> Ipam<C> {
    /// Asks for all at once: what does not answer is waited for once. One that nobody has is claimed again, also where it was
    /// lost; one that is another
    /// node's is no block of this node any more, and is told as long as a pod here has it.
    pub async fn ask_for_fixed(&mut self) -> Vec<(IpNetwork, Asked)> {
        self.forget_lost();
        let lost = self.lost.iter().map(|(block, lost)| (block, &lost.partition));
        let fixed = self.blocks().iter().chain(lost).filter(|(block, _)| is_fixed(block));
        let specs: Vec<IPBlockSpec> = fixed.map(|(block, partition)| self.spec(*block, partition)).collect();
        // Those that a daemon before this one has lost.
        let known = |address: &IpAddr| self.lost.keys().any(|block| block.contains(*address));
        let outside: Vec<IpNetwork> =
            self.allocator.outside().filter(|address| !known(address)).map(IpNetwork::from).collect();
        let (answers, found) = join(
            join_all(specs.iter().map(|spec| ask(&self.claims, spec))),
            join_all(outside.iter().map(|address| self.claims.get(*address))),
        )
        .await;
        let mut asked = Vec::new();
        for (spec, answer) in specs.into_iter().zip(answers) {
            let answer = answer.unwrap_or(Asked::Unknown);
            asked.push((spec.cidr, answer.clone()));
            match answer {
                Asked::Ours | Asked::Again => self.add_block(&spec.partition, spec.cidr),
                Asked::Anothers(node) => {
                    let claim = IPBlockSpec { node, ..spec.clone() };
                    self.lose(spec, Holder::Claim(claim));
                }
                Asked::Unknown => {}
            }
        }
        let others = found.into_iter().filter_map(|found| found.ok().flatten());
        for claim in others.filter(|claim| claim.node != self.node).collect::<Vec<_>>() {
            asked.push((claim.cidr, Asked::Anothers(claim.node.clone())));
            self.lose(self.spec(claim.cidr, &claim.partition), Holder::Claim(claim));
        }
        asked
    }
}

async fn ask<C: BlockClaims>(claims: &C, spec: &IPBlockSpec) -> Result<Asked, ClaimError> {
    let holder = match claims.get(spec.cidr).await? {
        None if claims.claim(spec).await? == Claim::Won => return Ok(Asked::Again),
        None => claims.get(spec.cidr).await?,
        found => found,
    };
    Ok(match holder {
        Some(found) if found == *spec => Asked::Ours,
        Some(found) => Asked::Anothers(found.node),
        // Taken, and given back at once.
        None => Asked::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::{ClaimFiles, observed::Observed};
    use std::{fs, path::Path};

    async fn node(dir: &Path, name: &str) -> Ipam<ClaimFiles> {
        Ipam::load(ClaimFiles::new(dir.into()).unwrap(), name).await.unwrap()
    }

    #[tokio::test]
    async fn what_another_node_has_claimed_meanwhile_is_ours_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
        let fixed: IpAddr = "10.1.0.7".parse().unwrap();
        let block = IpNetwork::from(fixed);
        one.take("web", &[fixed]).await.unwrap();
        one.allocate("web", &["10.1.0.64/26".parse().unwrap()], &[]).await.unwrap();
        assert_eq!(
            one.ask_for_fixed().await,
            [(block, Asked::Ours)],
            "of blocks that are shared nobody is asked"
        );
        // The claim goes with a Node object, and is claimed again as long as nobody else has.
        let file = dir.path().join("10-1-0-7-32.yaml");
        fs::remove_file(&file).unwrap();
        assert_eq!(one.ask_for_fixed().await, [(block, Asked::Again)]);
        assert_eq!(one.ask_for_fixed().await, [(block, Asked::Ours)]);
        fs::remove_file(&file).unwrap();
        two.take("web", &[fixed]).await.unwrap();
        assert_eq!(one.ask_for_fixed().await, [(block, Asked::Anothers("n2".into()))]);
        assert!(!one.blocks().contains_key(&block), "it is not announced");
        // Also to a daemon that comes later.
        let mut again = node(dir.path(), "n1").await;
        again.restore(fixed);
        for one in [&mut one, &mut again] {
            assert_eq!(one.ask_for_fixed().await, [(block, Asked::Anothers("n2".into()))]);
        }
        // Its pod's end gives back nothing that is another's.
        one.free(fixed);
        one.release_empty_blocks(&Default::default()).await.unwrap();
        assert_eq!(one.ask_for_fixed().await, []);
        assert_eq!(two.ask_for_fixed().await, [(block, Asked::Ours)]);
    }

    #[tokio::test]
    async fn what_another_node_has_given_back_is_claimed_again_for_the_pod_that_has_it_still() {
        for restarted in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (mut one, mut two) = (node(dir.path(), "n1").await, node(dir.path(), "n2").await);
            let fixed: IpAddr = "10.1.0.7".parse().unwrap();
            let block = IpNetwork::from(fixed);
            one.take("web", &[fixed]).await.unwrap();
            fs::remove_file(dir.path().join("10-1-0-7-32.yaml")).unwrap();
            two.take("web", &[fixed]).await.unwrap();
            if restarted {
                one = node(dir.path(), "n1").await;
                one.restore(fixed);
            }
            assert_eq!(one.ask_for_fixed().await, [(block, Asked::Anothers("n2".into()))]);
            assert!(one.lost().contains_key(&block) && one.blocks().is_empty());
            two.free(fixed);
            two.release_empty_blocks(&Default::default()).await.unwrap();
            assert_eq!(one.ask_for_fixed().await, [(block, Asked::Again)]);
            assert!(one.lost().is_empty() && one.blocks().contains_key(&block));
        }
    }

    #[tokio::test]
    async fn all_are_asked_for_at_once_and_addresses_of_lost_blocks_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Ipam::load(Observed::new(dir.path()), "n1").await.unwrap();
        one.take("web", &["10.1.1.7".parse().unwrap()]).await.unwrap();
        for _ in 0..3 {
            one.allocate("web", &["10.1.0.0/26".parse().unwrap()], &[]).await.unwrap();
        }
        fs::remove_file(dir.path().join("10-1-0-0-26.yaml")).unwrap();
        node(dir.path(), "n2").await.allocate("web", &["10.1.0.0/26".parse().unwrap()], &[]).await.unwrap();
        one.keep(&["10.1.1.7/32".parse().unwrap()].into()).await;
        let strays: [IpAddr; 3] = ["10.2.0.1", "10.2.0.2", "10.2.0.3"].map(|a| a.parse().unwrap());
        strays.iter().for_each(|a| one.restore(*a));
        assert_eq!(one.lost().len(), 1);
        one.ask_for_fixed().await;
        let seen = one.claims.seen.lock().unwrap();
        assert_eq!((seen.got.len(), seen.at_once), (4, 4), "{:?}", seen.got);
    }

    #[tokio::test]
    async fn a_claim_that_cannot_be_read_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = node(dir.path(), "n1").await;
        let fixed: IpAddr = "10.1.0.7".parse().unwrap();
        one.take("web", &[fixed]).await.unwrap();
        fs::write(dir.path().join("10-1-0-7-32.yaml"), "half").unwrap();
        assert_eq!(one.ask_for_fixed().await, [(IpNetwork::from(fixed), Asked::Unknown)]);
        assert_eq!(one.blocks().len(), 1, "and what was ours stays so");
    }
}
