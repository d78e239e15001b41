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
    endpoint::{Cause, EndpointRecord, Endpoints, LoadError, NodeNet},
    ipam::{ClaimError, ClaimFiles},
    net::{
        GATEWAY_V4, GATEWAY_V6, Kernel, NetError, Sources,
        node::{Uplink, prepare_node},
    },
    source::{Observed, Snapshot},
    store::{self, StoreError},
};
use bulkhead_api::{
    messages::{ErrorReply, Gc, ObjectError, PodRef, RuntimeBandwidth, code},
    objects::ANNOTATION_BANDWIDTH_CLASS,
};
use bulkhead_ebpf_abi::Sizes;
use bulkhead_policy::{Compiled, Interner, Local, LocalPod, Objects, admit, compile};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};
use tracing::{error, info, warn};

pub struct Node {
    config: Config,
    uplinks: Vec<Uplink>,
    datapath: Datapath,
    endpoints: Endpoints<Kernel, ClaimFiles>,
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
    Net(#[from] NetError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Claims(#[from] ClaimError),
    #[error("cannot load the pods of this node: {0}")]
    Load(#[from] LoadError),
    #[error("cannot reconcile the pods of this node: {0}")]
    Reconcile(#[from] Cause),
}

impl Node {
    /// Loads or adopts the datapath and the pods on disk. What is in force in the kernel stays until [`Self::apply`].
    pub async fn open(config: Config) -> Result<Self, NodeError> {
        let net = Kernel::open()?;
        let uplinks = net.uplinks(&config.uplinks).await?;
        prepare_node(&uplinks)?;
        let sources = sources(&uplinks);
        let opened = Datapath::open(&config.pin_dir, Sizes::DEFAULT, config.conntrack_entries)?;
        let mut datapath = opened.datapath;
        info!(adopted = opened.adopted, generation = datapath.running_generation()?, "datapath ready");
        for uplink in &uplinks {
            datapath.attach_uplink(&uplink.name, uplink.ifindex)?;
        }
        let endpoints = Self::load_endpoints(&config, net, &uplinks, &mut datapath).await?;
        let policy = store::read_json(&config.state_dir.join(IN_FORCE_FILE))?.unwrap_or_default();
        let interner = store::read_json(&config.state_dir.join(INTERNER_FILE))?.unwrap_or_default();
        let bgp =
            Bgp::new(config.node.clone(), sources, config.state_dir.join(ANNOUNCED_FILE), opened.adopted);
        Ok(Self {
            config,
            uplinks,
            datapath,
            endpoints,
            interner,
            in_force: Snapshot { policy, ..Snapshot::default() },
            compiled: None,
            errors: Vec::new(),
            bgp,
            generation_since: 0,
            last_change_millis: 0,
        })
    }

    async fn load_endpoints(
        config: &Config,
        net: Kernel,
        uplinks: &[Uplink],
        datapath: &mut Datapath,
    ) -> Result<Endpoints<Kernel, ClaimFiles>, NodeError> {
        let mtu = uplinks.iter().map(|u| u.mtu).min().unwrap_or(DEFAULT_MTU);
        let node = NodeNet { mtu, sources: sources(uplinks) };
        let claims = ClaimFiles::new(config.blocks.clone())?;
        let (mut endpoints, unreadable) =
            Endpoints::load(net, claims, &config.state_dir, &config.node, node).await?;
        for error in unreadable {
            error!("{error}; what is wired under it is left alone");
        }
        let report = endpoints.reconcile(datapath, |_| None).await?;
        for error in &report.errors {
            error!("reconcile: {error}");
        }
        info!(adopted = report.adopted, removed = report.removed.len(), ownerless = ?report.ownerless, "pods reconciled");
        Ok(endpoints)
    }

    /// Takes over a new snapshot as far as it is valid.
    pub async fn apply(&mut self, observed: Observed) {
        let mut errors = observed.errors;
        let candidate = self.with_own_node(observed.snapshot.policy);
        let (objects, refused) = admit(&self.in_force.policy, candidate);
        errors.extend(refused);
        let changed = self.compiled.is_none() || objects != self.in_force.policy;
        if changed {
            match self.switch(&objects, None) {
                Ok(()) => {
                    self.in_force.policy = objects;
                    if let Err(e) =
                        store::write_json(&self.config.state_dir.join(IN_FORCE_FILE), &self.in_force.policy)
                    {
                        error!(error = %e, "cannot remember what is in force; a restart would not keep refused objects' last versions");
                    }
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
            errors.extend(self.bgp.apply(&self.in_force, self.endpoints.blocks()).await);
        }
        if let Err(e) = self.datapath.settle() {
            warn!(error = %e, "cannot remove what only the former generation needed; tried again with the next change");
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
        let of_uplink = |u: &Uplink| u.v4.map(IpAddr::V4).into_iter().chain(u.v6.map(IpAddr::V6));
        let gateways = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];
        for address in self.uplinks.iter().flat_map(of_uplink).chain(gateways) {
            if !own.addresses.contains(&address) {
                own.addresses.push(address);
            }
        }
        objects
    }

    /// Compiles and switches the whole node to the result. `coming`: a pod that is about to be wired.
    fn switch(&mut self, objects: &Objects, coming: Option<&LocalPod>) -> Result<(), String> {
        let mut interner = self.interner.clone();
        let pods: Vec<_> = self.endpoints.iter().map(local_pod).chain(coming.cloned()).collect();
        let none = BTreeSet::new();
        let local = Local {
            node: &self.config.node,
            pods: &pods,
            partitions: (objects.partitions.len() > EAGER_PARTITIONS).then_some(&none),
            former: self.compiled.as_ref(),
        };
        let compiled = compile(objects, &mut interner, &local).map_err(|e| e.to_string())?;
        // On disk first: a successor must read the numbers in the kernel as we do.
        if interner != self.interner {
            store::write_json(&self.config.state_dir.join(INTERNER_FILE), &interner)
                .map_err(|e| e.to_string())?;
            self.interner = interner;
        }
        let generation = self
            .datapath
            .apply(&Generation {
                tables: &compiled.tables,
                prefixes: &compiled.prefixes,
                exact: &compiled.exact,
            })
            .map_err(|e| e.to_string())?;
        self.interner.switched();
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
            // What is in force has every pod that was wired under it; a pod it lacks stays as it is.
            if let Some(placement) = compiled.place(&self.in_force.policy, &local_pod(&record)) {
                let identity = |address| compiled.pod_identity(&placement, address);
                let policy = placement.policy;
                if let Err(e) =
                    self.endpoints.set_identity(&mut self.datapath, &record.id, policy, identity).await
                {
                    errors.push(pod_error(&record.pod, e.to_string()));
                }
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
        let pin_dir = config.pin_dir.clone();
        let mut node = Self::open(config).await?;
        if let Err(e) = node.endpoints.gc(&mut node.datapath, &Gc { valid: Vec::new() }).await {
            error!("uninstall: {e}");
        }
        if let Err(e) = node.endpoints.release_empty_blocks().await {
            error!("uninstall: {e}");
        }
        Datapath::remove_pins(&pin_dir)?;
        info!("removed");
        Ok(())
    }
}

/// Numbers that stand for identities, policies and rules in the kernel.
const INTERNER_FILE: &str = "interner.json";
/// The accepted objects: what a refused change leaves in force, also over a restart.
const IN_FORCE_FILE: &str = "in-force.json";
/// What was last announced.
const ANNOUNCED_FILE: &str = "announced.json";
const DEFAULT_MTU: u32 = 1500;

/// Up to so many partitions all have their policy in the tables, so that a pod that comes needs no generation; the rows of
/// the tables grow with policies times classes, so beyond it only those do that pods of this node have.
const EAGER_PARTITIONS: usize = 128;

fn local_pod(record: &EndpointRecord) -> LocalPod {
    LocalPod {
        namespace: record.pod.namespace.clone(),
        name: record.pod.name.clone(),
        partition: record.partition.clone(),
        addresses: record.addresses.clone(),
    }
}

/// The first address of each family that an uplink has.
fn sources(uplinks: &[Uplink]) -> Sources {
    Sources { v4: uplinks.iter().find_map(|u| u.v4), v6: uplinks.iter().find_map(|u| u.v6) }
}

fn pod_error(pod: &PodRef, message: String) -> ObjectError {
    ObjectError {
        file: None,
        object: Some(format!("Pod/{}/{}", pod.namespace, pod.name)),
        field: None,
        message,
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
