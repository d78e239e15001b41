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
    /// Since it was looked at.
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

    fn tell(&mut self, claims: BTreeSet<IpNetwork>) {
        if self.told.as_ref() != Some(&claims) {
            self.told = Some(claims);
            self.changed = true;
        }
    }
}

impl Node {
    /// Blocks of all nodes have been told. Without an API server nobody but the node itself removes a claim.
    pub(super) fn know_claims(&mut self) {
        if matches!(self.config.origin(), Ok(Origin::Kubernetes(_))) {
            let ours = self.in_force.blocks.values().filter(|block| block.node == self.config.node);
            self.claims.tell(ours.map(|block| block.cidr).collect());
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
