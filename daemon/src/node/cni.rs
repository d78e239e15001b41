//! The CNI verbs: what the plugin asks, in terms of what is in force.

use super::Node;
use crate::{bandwidth::PodBandwidth, config::Origin, endpoint::PodContext, ipam::is_fixed, reservation};
use bulkhead_api::{
    messages::{Attach, Attachment, Check, Detach, DrainInfo, DrainRequest, ErrorReply, Gc, PodRef, code},
    objects::{ANNOTATION_IP, DEFAULT_PARTITION},
};
use bulkhead_policy::{LocalPod, Placement, PodUid};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// Other pods wait while an API server that does not answer is asked.
const RELEASE_AGAIN: Duration = Duration::from_secs(30);

impl Node {
    pub async fn add(&mut self, request: &Attach) -> Result<Attachment, ErrorReply> {
        self.ready().map_err(|e| ErrorReply { code: code::TRY_AGAIN_LATER, ..e })?;
        self.knows(&request.pod)?;
        let connected = self.connect(request).await;
        if let Err(error) = &connected {
            self.events.not_connected(&request.pod, error);
        }
        self.tell_room(&request.pod, connected.as_ref().err());
        connected
    }

    /// Whether the pod's partition had an address for it.
    fn tell_room(&mut self, pod: &PodRef, error: Option<&ErrorReply>) {
        let partition = self.in_force.policy.partition_of_namespace(&pod.namespace);
        match error {
            None => self.waiting.connected(partition),
            Some(error) if error.code == code::NO_ADDRESS => {
                self.waiting.failed(partition, format!("{}/{}", pod.namespace, pod.name), &error.details);
            }
            Some(_) => return,
        }
        self.report_waiting();
    }

    async fn connect(&mut self, request: &Attach) -> Result<Attachment, ErrorReply> {
        let (context, placement) = self.context(request).await?;
        let compiled = self.compiled.as_ref().ok_or_else(starting)?;
        let identity = |address| compiled.pod_identity(&placement, address);
        let wired = self.endpoints.add(&mut self.datapath, &context, identity, request).await;
        if wired.is_err() {
            // It may have claimed a block for nothing, which another node could use.
            self.release_blocks().await;
        }
        let attachment = wired?;
        let addresses: Vec<_> = attachment.addresses.iter().map(|a| a.ip().to_string()).collect();
        info!(
            pod = %format_args!("{}/{}", request.pod.namespace, request.pod.name),
            partition = %context.partition,
            addresses = %addresses.join(" "),
            "pod wired"
        );
        self.announce_blocks().await;
        Ok(attachment)
    }

    pub async fn del(&mut self, request: &Detach) -> Result<(), ErrorReply> {
        self.endpoints.del(&mut self.datapath, request).await?;
        info!(container = request.id.container_id, "pod removed");
        self.release_blocks().await;
        Ok(())
    }

    /// Carries out DELs that the plugin left on disk while nobody answered.
    pub async fn replay_queued(&mut self) {
        match self.endpoints.replay_queued(&mut self.datapath).await {
            Ok(report) => {
                for error in report.errors {
                    warn!(error, "a queued DEL waits on");
                }
                if !report.removed.is_empty() {
                    info!(removed = report.removed.len(), "queued DELs carried out");
                    self.release_blocks().await;
                }
            }
            Err(e) => warn!(error = %e, "queued DELs wait on"),
        }
    }

    pub async fn check(&mut self, request: &Check) -> Result<(), ErrorReply> {
        self.endpoints.check(&self.datapath, request).await
    }

    pub async fn gc(&mut self, request: &Gc) -> Result<(), ErrorReply> {
        self.endpoints.gc(&mut self.datapath, request).await?;
        self.release_blocks().await;
        Ok(())
    }

    /// In a cluster a pod and its namespace decide by labels and annotations, and may be older here than they are: one that
    /// is not known yet, or only by one of its name that was there before, would be wired as what it is not.
    fn knows(&self, pod: &PodRef) -> Result<(), ErrorReply> {
        let in_cluster = matches!(self.config.origin(), Ok(Origin::Kubernetes(_)));
        let uid = pod.uid.as_deref().and_then(PodUid::parse);
        let objects = &self.in_force.policy;
        let of_name = objects.pods.get(&format!("{}/{}", pod.namespace, pod.name));
        let known = of_name.is_some_and(|known| uid.is_none() || known.uid.is_none() || known.uid == uid)
            && objects.namespaces.contains_key(&pod.namespace);
        if known || !in_cluster {
            return Ok(());
        }
        Err(ErrorReply {
            code: code::TRY_AGAIN_LATER,
            msg: format!("pod {}/{} is not known yet", pod.namespace, pod.name),
            details: "the API server has not told of it, or of its namespace".into(),
        })
    }

    async fn context(&mut self, request: &Attach) -> Result<(PodContext, Placement), ErrorReply> {
        let objects = &self.in_force.policy;
        let partition = objects.partition_of_namespace(&request.pod.namespace);
        let ranges = match objects.partitions.get(partition) {
            Some(p) => &p.spec.pod_cidrs,
            None => &objects.default_pod_cidrs,
        };
        if ranges.is_empty() {
            return Err(ErrorReply {
                code: code::NO_ADDRESS,
                msg: format!("partition {partition} has no pod range"),
                details: if partition == DEFAULT_PARTITION {
                    "set `podCIDRs` in the node's configuration".into()
                } else {
                    "set its spec.podCIDRs".into()
                },
            });
        }
        let bandwidth =
            self.bandwidth(&request.pod, partition, request.bandwidth).map_err(|e| ErrorReply {
                code: code::INVALID_CONFIG,
                msg: "the pod's bandwidth is refused".into(),
                details: e.to_string(),
            })?;
        let fixed_ranges =
            objects.partitions.get(partition).map_or(&[][..], |p| &p.spec.fixed_cidrs).to_vec();
        let fixed = self.fixed_addresses(&request.pod, partition, &fixed_ranges)?;
        let (partition, ranges) = (partition.to_string(), ranges.clone());
        let placement = self.place_new(&request.pod, &partition).await?;
        let policy = placement.policy;
        let PodBandwidth { limits, class: bandwidth_class, origins: _ } = bandwidth;
        Ok((
            PodContext { partition, ranges, fixed_ranges, fixed, policy, limits, bandwidth_class },
            placement,
        ))
    }

    /// What a reservation gives the pod; empty where it may have any address.
    fn fixed_addresses(
        &self,
        pod: &PodRef,
        partition: &str,
        ranges: &[IpNetwork],
    ) -> Result<Vec<IpAddr>, ErrorReply> {
        let annotations = self.in_force.annotations.get(&format!("{}/{}", pod.namespace, pod.name));
        let asked = annotations.and_then(|all| all.get(ANNOTATION_IP));
        let reservations = self.in_force.reservations.iter();
        let of_namespace = reservations.filter_map(|(key, spec)| {
            let (namespace, name) = key.split_once('/')?;
            (namespace == pod.namespace).then_some((name, &**spec))
        });
        reservation::fixed(&pod.name, asked, of_namespace, partition, ranges).map_err(|details| ErrorReply {
            code: code::INVALID_CONFIG,
            msg: "the pod's fixed address is refused".into(),
            details,
        })
    }

    /// Where a pod that comes will stand. If the tables lack its policy, a generation that has it goes into force first.
    async fn place_new(&mut self, pod: &PodRef, partition: &str) -> Result<Placement, ErrorReply> {
        let pod = LocalPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            partition: partition.into(),
            addresses: Vec::new(),
        };
        let compiled = self.compiled.as_ref().ok_or_else(starting)?;
        if let Some(placement) = compiled.place(&self.in_force.policy, &pod) {
            return Ok(placement);
        }
        let no_policy = |details: String| ErrorReply {
            code: code::TRY_AGAIN_LATER,
            msg: "the pod's policy cannot be put into force".into(),
            details,
        };
        self.switch(self.in_force.policy.clone(), None, Some(&pod)).map_err(|e| no_policy(e.to_string()))?;
        // What its policy asks makes others of pods that are here, too: their marks, policies and records follow now. And its
        // partition may have the first policy of its own here.
        self.set_ranges().map_err(|e| no_policy(e.to_string()))?;
        self.settle().await;
        let placement = self.compiled.as_ref().and_then(|c| c.place(&self.in_force.policy, &pod));
        placement.ok_or_else(|| no_policy("the tables lack it".into()))
    }

    /// After a pod went: a block without pods has no reason to be announced here. Withdrawn first: once the claim is
    /// given back, another node may announce the block. While it cannot be withdrawn, it stays.
    async fn release_blocks(&mut self) {
        let (held, free, by) = self.empty_blocks().await;
        self.release_held = !held.is_empty();
        if !by.is_empty() && by != self.held_by {
            info!(blocks = ?held, routers = ?by, "blocks without pods are held: these routers may keep what was announced to them");
        }
        self.held_by = by;
        if free.is_empty() {
            return self.announce_blocks().await;
        }
        let mut staying = self.endpoints.blocks().clone();
        staying.retain(|block, _| !free.contains(block));
        self.announce(staying).await;
        if let Err(e) = self.endpoints.release_empty_blocks(&held).await {
            warn!(error = %e, "a block without pods is not known to be given back; tried again");
            self.release_at = Instant::now() + RELEASE_AGAIN;
        }
        self.announce_blocks().await;
    }

    /// Those to which routers may lead here whatever is said, while another node would take them at once; the others; and which
    /// routers. A fixed address waits at its new owner, in quarantine: only an interruption holds it.
    async fn empty_blocks(&self) -> (BTreeSet<IpNetwork>, BTreeSet<IpNetwork>, BTreeSet<String>) {
        let in_use = self.endpoints.blocks_in_use();
        let empty = self.endpoints.blocks().keys().filter(|block| !in_use.contains_key(block)).copied();
        if self.bgp.is_interrupted() {
            return (empty.collect(), BTreeSet::new(), BTreeSet::new());
        }
        let (free, shared): (BTreeSet<IpNetwork>, BTreeSet<IpNetwork>) = empty.partition(is_fixed);
        let by = if shared.is_empty() { BTreeSet::new() } else { self.bgp.kept_by().await };
        if by.is_empty() { (BTreeSet::new(), &free | &shared, by) } else { (shared, free, by) }
    }

    /// What was held back, or given back and not answered. Others wait meanwhile, so not all the time.
    pub(super) async fn look_after_blocks(&mut self) {
        if self.bgp.is_interrupted() {
            return;
        }
        if self.release_held {
            self.release_blocks().await;
        }
        if !self.endpoints.is_leaving() || Instant::now() < self.release_at {
            return;
        }
        match self.endpoints.release_leaving().await {
            Ok(released) => info!(?released, "blocks without pods are given back"),
            Err(_) => self.release_at = Instant::now() + RELEASE_AGAIN,
        }
    }

    /// Takes what the node announces off it, or brings it back.
    pub async fn drain(&mut self, request: &DrainRequest) -> Result<Vec<DrainInfo>, ErrorReply> {
        self.bgp.drain(request)?;
        self.announce_blocks().await;
        self.bgp.flush().await;
        Ok(self.bgp.draining())
    }

    /// After a pod came or went: a block may have been claimed or released.
    pub(super) async fn announce_blocks(&mut self) {
        self.announce(self.endpoints.blocks().clone()).await;
    }

    async fn announce(&mut self, blocks: BTreeMap<IpNetwork, String>) {
        if self.compiled.is_some() || self.adopted {
            self.bgp.apply(&self.in_force, &blocks).await;
        }
    }
}

pub(super) fn starting() -> ErrorReply {
    ErrorReply {
        code: code::TRY_AGAIN_LATER,
        msg: "no policy is in force yet".into(),
        details: "the daemon is starting".into(),
    }
}
