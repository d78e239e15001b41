//! The state of one node, and the one road every change takes:
//!
//! ```text
//! Observed ──admit──▶ in force ──compile──▶ tables ──datapath──▶ generation ──▶ endpoints ──▶ BGP
//!    a refusal, a failed compile or a failed write leaves what was in force where it was
//! ```

mod cni;
mod views;

use crate::{
    bandwidth::{PodBandwidth, pod_bandwidth},
    bgp::Bgp,
    config::Config,
    datapath::{Datapath, DatapathError, Generation},
    endpoint::{EndpointRecord, Endpoints, PodContext},
    ipam::DirectoryClaims,
    net::{Netlink, Uplink},
    source::{Observed, Snapshot},
    store,
};
use bulkhead_api::{
    messages::{ErrorReply, ObjectError, PodRef, RuntimeBandwidth, code},
    objects::{ANNOTATION_BANDWIDTH_CLASS, DEFAULT_PARTITION},
};
use bulkhead_ebpf_abi::Sizes;
use bulkhead_policy::{Compiled, Interner, Objects, admit, compile};
use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};
use tracing::{error, info, warn};

pub struct Node {
    config: Config,
    uplinks: Vec<Uplink>,
    datapath: Datapath,
    endpoints: Endpoints<Netlink, DirectoryClaims>,
    interner: Interner,
    in_force: Snapshot,
    /// None until the first generation of this process is live.
    compiled: Option<Compiled>,
    errors: Vec<ObjectError>,
    pub bgp: Bgp,
    generation_since: u64,
    last_change_millis: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Net(#[from] crate::net::NetError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Claims(#[from] crate::ipam::ClaimError),
    #[error("no uplink found: name one in `uplinks`, or give the node a default route")]
    NoUplink,
}

impl Node {
    /// Loads or adopts the datapath, adopts the pods on disk. Policy in force in the kernel stays until [`Self::apply`].
    pub async fn open(config: Config) -> Result<Self, NodeError> {
        let mut net = Netlink::open()?;
        net.prepare_node().await?;
        let uplinks = net.uplinks(&config.uplinks).await?;
        let uplink = uplinks.first().cloned().ok_or(NodeError::NoUplink)?;
        let opened = Datapath::open(&config.pin_dir, Sizes::DEFAULT, config.conntrack_entries)?;
        let mut datapath = opened.datapath;
        info!(adopted = opened.adopted, generation = datapath.running_generation(), "datapath ready");

        let claims = DirectoryClaims::open(&config.blocks, &config.node)?;
        let mut endpoints = Endpoints::open(&config.state_dir, net, claims, uplink.clone())?;
        for problem in endpoints.reconcile(&mut datapath).await {
            warn!("reconcile: {problem}");
        }
        for uplink in &uplinks {
            datapath.attach_uplink(&uplink.name, uplink.ifindex)?;
        }
        let interner = store::read_json(&config.state_dir.join(INTERNER_FILE))?.unwrap_or_default();
        let bgp = Bgp::new(
            config.node.clone(),
            (&uplink).into(),
            config.state_dir.join("announced.json"),
            opened.adopted,
        );
        Ok(Self {
            config,
            uplinks,
            datapath,
            endpoints,
            interner,
            in_force: Snapshot::default(),
            compiled: None,
            errors: Vec::new(),
            bgp,
            generation_since: 0,
            last_change_millis: 0,
        })
    }

    /// Takes over a new snapshot as far as it is valid.
    pub async fn apply(&mut self, observed: Observed) {
        let mut errors = observed.errors;
        let candidate = self.with_own_node(observed.snapshot.policy);
        let (objects, refused) = admit(&self.in_force.policy, candidate);
        errors.extend(refused);
        let changed = self.compiled.is_none() || objects != self.in_force.policy;
        if changed {
            match self.switch(&objects) {
                Ok(()) => {
                    self.in_force.policy = objects;
                    self.last_change_millis = observed.noticed.elapsed().as_millis() as u64;
                }
                Err(message) => {
                    error!(message, "the change is not in force; the running generation stays");
                    errors.push(ObjectError { file: None, object: None, field: None, message });
                }
            }
        }
        self.in_force.pods = observed.snapshot.pods;
        self.in_force.bgp_peers = observed.snapshot.bgp_peers;
        self.in_force.bgp = observed.snapshot.bgp;
        errors.extend(self.update_endpoints().await);
        if self.compiled.is_some() {
            errors.extend(self.bgp.apply(&self.in_force, &self.endpoints.blocks()).await);
        }
        for error in errors.iter().filter(|e| !self.errors.contains(e)) {
            warn!("refused: {error}");
        }
        self.errors = errors;
    }

    /// What the configuration and the kernel know of the cluster and the objects need not repeat.
    fn with_own_node(&self, mut objects: Objects) -> Objects {
        objects.default_pod_cidrs.clone_from(&self.config.pod_cidrs);
        objects.cluster_dns.clone_from(&self.config.cluster_dns);
        let own = objects.nodes.entry(self.config.node.clone()).or_default();
        let ours = self.uplinks.iter().flat_map(Uplink::addresses).chain(crate::net::GATEWAYS);
        for address in ours {
            if !own.addresses.contains(&address) {
                own.addresses.push(address);
            }
        }
        objects
    }

    /// Compiles and switches the whole node to the result.
    fn switch(&mut self, objects: &Objects) -> Result<(), String> {
        let mut interner = self.interner.clone();
        let compiled = compile(objects, &mut interner, &self.config.node).map_err(|e| e.to_string())?;
        // On disk first: a successor must read the numbers in the kernel as we do.
        if interner != self.interner {
            store::write_json(&self.config.state_dir.join(INTERNER_FILE), &interner).map_err(|e| e.to_string())?;
            self.interner = interner;
        }
        let generation = self
            .datapath
            .apply(&Generation { tables: &compiled.tables, prefixes: &compiled.prefixes, exact: &compiled.exact })
            .map_err(|e| e.to_string())?;
        self.generation_since = unix_seconds();
        info!(generation, partitions = objects.partitions.len(), "switched");
        self.compiled = Some(compiled);
        Ok(())
    }

    /// Brings every pod's policy, identity and limits in line with the objects in force.
    async fn update_endpoints(&mut self) -> Vec<ObjectError> {
        let Some(compiled) = &self.compiled else { return Vec::new() };
        let mut errors = Vec::new();
        for record in self.endpoints.iter().cloned().collect::<Vec<_>>() {
            let (policy, identity) = numbers(compiled, &record.partition);
            if let Err(e) = self.endpoints.set_identity(&mut self.datapath, &record.id, policy, identity).await {
                errors.push(pod_error(&record.pod, e.to_string()));
            }
            let bandwidth = match self.bandwidth(&record.pod, &record.partition, record.runtime_bandwidth) {
                Ok(bandwidth) => bandwidth,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let PodBandwidth { class, limits } = bandwidth;
            if let Err(e) = self.endpoints.set_limits(&mut self.datapath, &record.id, limits, class).await {
                errors.push(pod_error(&record.pod, e.to_string()));
            }
        }
        errors
    }

    fn bandwidth(
        &self,
        pod: &PodRef,
        partition: &str,
        runtime: Option<RuntimeBandwidth>,
    ) -> Result<PodBandwidth, ObjectError> {
        let objects = &self.in_force.policy;
        let of_partition = objects.partitions.get(partition).and_then(|p| p.spec.bandwidth.as_ref());
        let info = self.in_force.pods.get(&(pod.namespace.clone(), pod.name.clone()));
        let annotation = info.and_then(|i| i.annotations.get(ANNOTATION_BANDWIDTH_CLASS)).map(String::as_str);
        pod_bandwidth(&objects.bandwidth_classes, of_partition, annotation, runtime)
            .map_err(|e| ObjectError { object: Some(format!("Pod/{}/{}", pod.namespace, pod.name)), ..e })
    }

    /// Whether an ADD would work now.
    pub fn ready(&self) -> Result<(), ErrorReply> {
        if self.compiled.is_some() {
            return Ok(());
        }
        let reasons: Vec<_> = self.errors.iter().map(ToString::to_string).collect();
        Err(ErrorReply {
            code: code::NOT_AVAILABLE,
            msg: "no policy is in force yet".into(),
            details: if reasons.is_empty() { "the daemon is starting".into() } else { reasons.join("; ") },
        })
    }

    /// Closes the BGP sessions as a restart does; the datapath stays.
    pub async fn stop(&mut self) {
        self.bgp.stop().await;
    }

    /// Removes all that this node's daemon ever made, pods' wiring included.
    pub async fn uninstall(config: Config) -> Result<(), NodeError> {
        let mut node = Self::open(config).await?;
        for problem in node.endpoints.remove_all(&mut node.datapath).await {
            warn!("uninstall: {problem}");
        }
        node.datapath.remove_pins()?;
        info!("removed");
        Ok(())
    }
}

/// Numbers that stand for identities, policies and rules in the kernel.
const INTERNER_FILE: &str = "interner.json";

/// (policy, identity) of the pods of a partition; of one that is gone, the default partition's.
fn numbers(compiled: &Compiled, partition: &str) -> (u32, u32) {
    let of = |name: &str| Some((*compiled.policies.get(name)?, *compiled.pod_identities.get(name)?));
    of(partition).or_else(|| of(DEFAULT_PARTITION)).unwrap_or_default()
}

fn pod_error(pod: &PodRef, message: String) -> ObjectError {
    ObjectError { file: None, object: Some(format!("Pod/{}/{}", pod.namespace, pod.name)), field: None, message }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
