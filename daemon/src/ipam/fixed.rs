//! Fixed addresses of this node: whether their claims are its own still. A claim goes with its `Node` object, of a node that may be
//! alive all the same.

use super::{BlockClaims, Claim, ClaimError, Ipam, keep::Holder};
use bulkhead_api::objects::IPBlockSpec;
use futures_util::future::join_all;
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What the claims say of a fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Ours,
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
    /// Asks for all at once: what does not answer is waited for once. One that nobody has is claimed again; one that is another
    /// node's is no block of this node any more, and is told as long as a pod here has it.
    pub async fn ask_for_fixed(&mut self) -> Vec<(IpNetwork, Asked)> {
        let fixed: Vec<_> = self.blocks().iter().filter(|(block, _)| is_fixed(block)).collect();
        let spec = |(block, partition): (&IpNetwork, &String)| IPBlockSpec {
            cidr: *block,
            partition: partition.clone(),
            node: self.node.clone(),
        };
        let specs: Vec<IPBlockSpec> = fixed.into_iter().map(spec).collect();
        let outside: Vec<IpAddr> = self.allocator.outside().collect();
        let answers = join_all(specs.iter().map(|spec| ask(&self.claims, spec))).await;
        let mut asked = Vec::new();
        for (spec, answer) in specs.iter().zip(answers) {
            let answer = answer.unwrap_or(Asked::Unknown);
            if let Asked::Anothers(node) = &answer {
                self.lose(spec.clone(), Holder::Claim(IPBlockSpec { node: node.clone(), ..spec.clone() }));
            }
            asked.push((spec.cidr, answer));
        }
        for address in outside {
            let found = self.claims.get(address.into()).await.ok().flatten();
            let other = found.filter(|found| found.node != self.node);
            asked.extend(other.map(|found| (address.into(), Asked::Anothers(found.node))));
        }
        asked
    }
}

async fn ask<C: BlockClaims>(claims: &C, spec: &IPBlockSpec) -> Result<Asked, ClaimError> {
    let holder = match claims.get(spec.cidr).await? {
        None if claims.claim(spec).await? == Claim::Won => return Ok(Asked::Ours),
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
    use crate::ipam::ClaimFiles;
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
        one.release_empty_blocks().await.unwrap();
        assert_eq!(one.ask_for_fixed().await, []);
        assert_eq!(two.ask_for_fixed().await, [(block, Asked::Ours)]);
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
