//! This node's claims of blocks, held against what the cluster has of them.

use super::Node;
use crate::{
    config::Origin,
    ipam::{Asked, Lost, is_fixed},
};
use bulkhead_api::{
    messages::{ObjectError, PodRef},
    objects::{IpNetwork, block_name},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// What is lost or was not answered is tried again after it.
const AGAIN: Duration = Duration::from_secs(15);

#[derive(Default)]
pub(super) struct Claimed {
    /// Blocks that the cluster has as this node's; `None` until it has told everything.
    told: Option<BTreeSet<IpNetwork>>,
    /// Claims of any node have, since it was looked at.
    changed: bool,
    again_at: Option<Instant>,
    /// What was lost before this daemon came is told with the first look.
    looked: bool,
}

impl Claimed {
    /// What the cluster has, where it is to be looked at now: it has changed, or something is to be tried again.
    fn due(&mut self) -> Option<BTreeSet<IpNetwork>> {
        let again = self.again_at.is_some_and(|at| at <= Instant::now());
        let changed = std::mem::take(&mut self.changed);
        if again || changed { self.told.clone() } else { None }
    }

    /// `stay`: nobody has claimed or deleted anything since it was last called. That the claims are the same is not enough: what
    /// was claimed since may be gone already.
    fn tell(&mut self, claims: BTreeSet<IpNetwork>, stay: bool) {
        self.changed |= !stay || self.told.as_ref() != Some(&claims);
        self.told = Some(claims);
    }
}

impl Node {
    /// Blocks of all nodes have been told; `stay`: as before. Without an API server nobody but the node itself removes a claim.
    pub(super) fn know_claims(&mut self, stay: bool) {
        if matches!(self.config.origin(), Ok(Origin::Kubernetes(_))) {
            let ours = self.in_force.blocks.values().filter(|block| block.node == self.config.node);
            self.claims.tell(ours.map(|block| block.cidr).collect(), stay);
        }
    }

    /// Claims again what somebody has taken away. What another has claimed since is announced no more.
    pub(super) async fn look_after_claims(&mut self) {
        let Some(told) = self.claims.due() else { return };
        let kept = self.endpoints.keep_claims(&told).await;
        if !kept.again.is_empty() {
            info!(blocks = ?kept.again, "claimed again: the claims were gone");
        }
        if let Some(e) = &kept.failed {
            warn!(error = %e, "a claim is gone and cannot be made again yet; tried again");
        }
        let wait = kept.failed.is_some() || self.endpoints.lost().next().is_some();
        self.claims.again_at = wait.then(|| Instant::now() + AGAIN);
        let looked = std::mem::replace(&mut self.claims.looked, true);
        if looked && kept.again.is_empty() && kept.lost.is_empty() {
            return;
        }
        let lost = self.endpoints.lost().map(|(block, ..)| block);
        let lost: Vec<_> = lost.filter(|block| !looked || kept.lost.contains(block)).collect();
        let fixed = kept.again.iter().filter(|block| is_fixed(block));
        self.bgp.asked(None, fixed.map(|block| (*block, Asked::Again)).collect());
        self.announce_blocks().await;
        self.tell_lost(&lost);
    }

    pub(super) fn tell_lost(&self, blocks: &[IpNetwork]) {
        for (block, lost, pods) in self.endpoints.lost().filter(|(block, ..)| blocks.contains(block)) {
            let why = of_lost(block, lost, &pods);
            warn!(%block, "lost: {why}");
            pods.iter().for_each(|pod| self.events.address_lost(pod, &why));
        }
    }

    /// For the status.
    pub(super) fn lost_blocks(&self) -> impl Iterator<Item = ObjectError> {
        self.endpoints.lost().map(|(block, lost, pods)| ObjectError {
            file: None,
            object: Some(format!("IPBlock/{}", block_name(block))),
            field: None,
            message: of_lost(block, lost, &pods),
        })
    }
}

fn of_lost(block: IpNetwork, lost: &Lost, pods: &[&PodRef]) -> String {
    let mut names: Vec<_> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    names.sort();
    format!(
        "this node's claim of {block} (partition {}) was deleted, and {}: the node announces it no more, and only this node \
         reaches the addresses that {} have of it; delete these pods, so that they get others",
        lost.partition,
        lost.holder,
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_policy::Named;
    use std::sync::Arc;

    #[test]
    fn a_claim_that_was_deleted_before_it_was_told_is_looked_for() {
        let (mut claimed, mut blocks, mut in_force) = (Claimed::default(), Named::new(), Named::new());
        let mut tell = |blocks: &Named<IpNetwork>| {
            claimed.tell(blocks.values().map(|block| **block).collect(), in_force.ptr_eq(blocks));
            in_force = blocks.clone();
            claimed.due()
        };
        assert_eq!(tell(&blocks), Some(BTreeSet::new()));
        assert_eq!(tell(&blocks), None);
        blocks.insert("ours".to_string(), Arc::new("10.64.0.0/26".parse().unwrap()));
        blocks.remove("ours");
        assert_eq!(tell(&blocks), Some(BTreeSet::new()));
        assert_eq!(tell(&blocks), None);
    }
}
