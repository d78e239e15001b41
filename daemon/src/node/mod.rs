//! The state of one node, and the one road every change takes:
//!
//! ```text
//! Observed ──admit──▶ in force ──compile──▶ tables ──datapath──▶ generation ──▶ endpoints ──▶ BGP
//!    a refusal, a failed compile or a failed write leaves what was in force where it was
//! ```

mod apply;
mod claims;
mod cni;
mod diff;
mod explain;
mod explain_service;
mod fixed;
mod orphans;
mod own;
mod preflight;
mod refused_rules;
mod rollback;
mod services;
mod switch;
mod uninstall;
mod uplinks;
mod views;
mod waiting;
mod written;

pub use preflight::preflight;
pub use uninstall::uninstall;

use crate::{
    bandwidth::{PodBandwidth, asked_now, pod_bandwidth},
    bgp::Bgp,
    config::Config,
    datapath::{Datapath, DatapathError},
    endpoint::{Cause, Endpoints, LoadError, NodeNet},
    history::History,
    ipam::{ClaimError, Claims},
    masquerade,
    metrics::{COMPILE_BOUNDS, Histogram},
    net::{
        Kernel, NarrowRoutes, NetError, Sources, Uplink, node::prepare_node, uplinks as rules,
        watch_narrow_routes,
    },
    pod_events::PodEvents,
    report::{Outcome, report},
    source::{Observed, Snapshot, Versions},
    store::{self, StoreError},
};
use bulkhead_api::{
    messages::{AttachmentId, ErrorReply, ObjectError, PodRef, RuntimeBandwidth, code},
    objects::{ANNOTATION_BANDWIDTH_CLASS, NodeReportSpec},
};
use bulkhead_ebpf_abi::{Connections, Sizes};
use bulkhead_policy::{Compiled, Grounds, Interner};
use refused_rules::RefusedRules;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use switch::Standing;
use tokio::sync::watch;
use tracing::{error, info, warn};
use written::{RangesBy, Written};

pub struct Node {
    config: Config,
    net: Kernel,
    uplinks: Vec<Uplink>,
    hooks: uplinks::Hooks,
    /// The newest snapshot is asked for again when a hold is released.
    source: watch::Receiver<Observed>,
    datapath: Datapath,
    endpoints: Endpoints<Kernel, Claims>,
    interner: Interner,
    in_force: Snapshot,
    own: own::OwnNode,
    /// When blocks that were given back without an answer are tried again.
    release_at: Instant,
    /// Blocks without pods wait until they can be withdrawn.
    release_held: bool,
    /// As the log has it.
    held_by: BTreeSet<String>,
    claims: claims::Claimed,
    /// Why strays in force are what they are.
    grounds: Grounds,
    /// When the claims of fixed addresses are asked for again.
    ask_at: Instant,
    /// Whether an admission found no fault in the objects in force.
    clean: bool,
    history: History,
    /// None until the first generation of this process is live.
    compiled: Option<Compiled>,
    /// Where pods stand in it, as long as nothing has come between its switch and telling them.
    standing: Option<BTreeMap<AttachmentId, Standing>>,
    /// A daemon before us left a generation in force: what it announced stays announced, whatever becomes of ours.
    adopted: bool,
    /// Objects that were refused; told until the source says otherwise.
    refused: Vec<ObjectError>,
    refused_rules: RefusedRules,
    /// What could not be done, though nothing was wrong with the objects; tried again now and then.
    failed: Vec<ObjectError>,
    /// Ranges of pods in the kernel.
    ranges: Written<RangesBy>,
    pub bgp: Bgp,
    services: services::Services,
    generation_since: u64,
    last_change_millis: u64,
    compile_times: Histogram,
    /// What is in force, for whoever tells the cluster.
    reports: watch::Sender<NodeReportSpec>,
    waiting: waiting::Waiting,
    events: PodEvents,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(
        "cannot take over the pins in {}: {source}; what they enforce stays in force: start the daemon that made them, or \
         drain the node and begin anew with `bulkheadd --uninstall`", pins.display()
    )]
    Pins { pins: PathBuf, source: DatapathError },
    #[error(
        "the pins in {} enforce a policy that {} knows nothing of: is that folder the right one, and mounted? Restore it, \
         or drain the node and begin anew with `bulkheadd --uninstall`", pins.display(), state.display()
    )]
    StateLost { pins: PathBuf, state: PathBuf },
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
    pub async fn open(
        config: Config,
        source: watch::Receiver<Observed>,
        claims: Claims,
    ) -> Result<Self, NodeError> {
        // Nothing is touched before all that can be refused is read.
        let (history, policy) = History::open(&config.state_dir)?;
        let bgp_objects = store::read_json(&config.state_dir.join(BGP_FILE))?;
        let own = own::OwnNode::open(&config.state_dir)?;
        let pinned = Datapath::is_pinned(&config.pin_dir);
        let known = numbers(store::read_json(&config.state_dir.join(INTERNER_FILE)), pinned)?;
        let net = Kernel::open()?;
        let (candidates, loopback) = net.candidates().await?;
        let found = rules::choose(&config.uplinks, &candidates, &loopback).map_err(NetError::Uplink)?;
        let room = Connections::of(config.conntrack_entries);
        let opened = Datapath::open(&config.pin_dir, Sizes::DEFAULT, room)
            .map_err(|source| pins_error(&config, source))?;
        let mut datapath = opened.datapath;
        let generation = datapath.running_generation()?;
        // Pins without a generation forward nothing.
        let forwarding = opened.adopted && generation != 0;
        if forwarding && known.is_none() {
            return Err(NodeError::StateLost { pins: config.pin_dir, state: config.state_dir });
        }
        info!(adopted = opened.adopted, generation, "datapath ready");
        prepare_node(&found)?;
        let (uplinks, hooks) = uplinks::attach_found(&config, &mut datapath, found, &candidates)?;
        let endpoints = Self::load_endpoints(&config, claims, net.clone(), &uplinks, &mut datapath).await?;
        let announced = config.state_dir.join(ANNOUNCED_FILE);
        let bfd = config.bfd_socket.clone();
        let bgp = Bgp::new(config.node.clone(), sources(&uplinks), announced, bfd, net.clone(), forwarding);
        let (bgp_peers, bgp_configuration) = bgp_objects.unwrap_or_default();
        let mut policy = policy.unwrap_or_default();
        policy.nodes.extend(own.known().map(|info| (config.node.clone(), info)));
        let in_force = Snapshot { policy, bgp_peers, bgp: bgp_configuration, ..Snapshot::default() };
        Ok(Self {
            config,
            net,
            uplinks,
            hooks,
            source,
            datapath,
            endpoints,
            interner: known.unwrap_or_default(),
            in_force,
            own,
            release_at: Instant::now(),
            // Of a daemon that died between claiming a block and wiring its first pod, or that held them back itself.
            release_held: true,
            held_by: BTreeSet::new(),
            claims: claims::Claimed::default(),
            grounds: Grounds::default(),
            ask_at: Instant::now(),
            clean: false,
            history,
            compiled: None,
            standing: None,
            adopted: forwarding,
            refused: Vec::new(),
            refused_rules: RefusedRules::default(),
            failed: Vec::new(),
            ranges: Written::default(),
            bgp,
            services: services::Services::default(),
            generation_since: 0,
            last_change_millis: 0,
            compile_times: Histogram::new(COMPILE_BOUNDS),
            reports: watch::Sender::default(),
            waiting: waiting::Waiting::default(),
            events: PodEvents::default(),
        })
    }

    /// What is in force after each snapshot.
    pub fn reports(&self) -> watch::Receiver<NodeReportSpec> {
        self.reports.subscribe()
    }

    /// Where pods that could not be connected are told of.
    pub fn set_events(&mut self, events: PodEvents) {
        self.events = events;
    }

    async fn load_endpoints(
        config: &Config,
        claims: Claims,
        net: Kernel,
        uplinks: &[Uplink],
        datapath: &mut Datapath,
    ) -> Result<Endpoints<Kernel, Claims>, NodeError> {
        let (mut endpoints, unreadable) =
            Endpoints::load(net, claims, &config.state_dir, &config.node, node_net(uplinks)).await?;
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

    /// `failed`: what was in force before still is.
    fn report(&self, versions: &Versions, failed: bool) {
        let outcome = match self.history.held() {
            Some(generation) => Outcome::Held(generation),
            None if failed => Outcome::Failed,
            None => Outcome::Taken,
        };
        // 0: not known, which is not worth failing for.
        let generation = self.datapath.running_generation().unwrap_or_default();
        let errors = self.errors();
        self.reports.send_if_modified(|told| {
            let report = report(told, versions, &errors, outcome, generation);
            let changed = *told != report;
            *told = report;
            changed
        });
    }

    fn report_waiting(&self) {
        let exhausted = self.waiting.told();
        self.reports.send_if_modified(|told| {
            let changed = told.exhausted != exhausted;
            told.exhausted = exhausted;
            changed
        });
    }

    /// Everything that people must be told.
    fn errors(&self) -> Vec<ObjectError> {
        let services = self.services.errors().to_vec();
        let others = [&self.refused, &self.failed, self.bgp.errors(), &services].into_iter().flatten();
        others.cloned().chain(self.lost_blocks()).collect()
    }

    /// To be called now and then: carries out queued DELs, tries again what failed, and looks at what nobody may have told of.
    pub async fn look_after(&mut self) {
        self.replay_queued().await;
        self.look_after_services();
        self.look_after_blocks().await;
        self.look_after_claims().await;
        self.look_after_fixed().await;
        if let Err(e) = self.endpoints.keep_translation().await {
            warn!(error = %e, "cannot look after host ports and masquerade; tried again");
        }
        let moved = self.is_look_due() && {
            let seen = self.net.candidates().await;
            self.follow_uplinks(seen)
        };
        if moved || !self.failed.is_empty() || self.refused_rules.are_due(Instant::now()) {
            let observed = self.source.borrow().clone();
            self.apply(observed).await;
        } else if !self.bgp.errors().is_empty() || self.bgp.drain_is_due().await {
            self.announce_blocks().await;
        }
    }

    /// What follows a switch: pods, announcements, and the end of the former generation.
    async fn follow(&mut self) {
        if let Err(e) = self.set_ranges() {
            self.failed.push(ObjectError { file: None, object: None, field: None, message: e.to_string() });
        }
        // Before the first switch the nodes of the cluster are not known: the table of the daemon before stays.
        let wanted = masquerade::masquerade(&self.in_force.policy, self.config.masquerade.as_ref());
        if self.compiled.is_some()
            && let Err(e) = self.endpoints.set_masquerade(wanted).await
        {
            self.failed.push(ObjectError { file: None, object: None, field: None, message: e.to_string() });
        }
        self.announce_blocks().await;
        self.settle().await;
    }

    /// Ends the former generation; records and limits of pods are of the new one from then on.
    pub(super) async fn settle(&mut self) {
        if let Err(e) = self.datapath.settle() {
            warn!(error = %e, "cannot remove what only the former generation needed; tried again with the next change");
        }
        self.update_endpoints().await;
    }

    /// Pods' ranges are routed as they are, by what this plugin is; of other addresses only the configuration knows, and
    /// whoever is masqueraded for them. Partitions judge what the node sends on to their ranges in its own name.
    pub(super) fn set_ranges(&mut self) -> Result<(), DatapathError> {
        let by = RangesBy::of(&self.in_force.policy, self.compiled.as_ref().map(|c| &c.policies));
        self.ranges.unless_by(by, |RangesBy { objects, policies }| {
            let judged = policies.as_ref().map_or(Ok(()), |policies| {
                self.datapath.set_range_policies(&masquerade::judges(objects, policies, DIRECT_STRAYS))
            });
            let own = self.config.masquerade.as_ref();
            let outside = masquerade::direct(&self.config.direct_to, objects, own);
            let ranges = objects.own_ranges().map(|(_, range)| range);
            let direct = ranges.chain(objects.strays.keys().take(DIRECT_STRAYS)).chain(&outside);
            let services = objects.partitions.values().flat_map(|p| &p.spec.service_cidrs);
            // One is no reason to leave the other as it was.
            self.datapath.set_direct(direct, services.chain(&self.config.service_cidrs)).and(judged)
        })
    }

    /// To be handed to [`Self::set_narrow_routes`] whenever it changes.
    pub fn watch_narrow_routes(&self) -> Result<watch::Receiver<NarrowRoutes>, NetError> {
        watch_narrow_routes(self.net.clone())
    }

    /// What is too long for its route is left to the stack, also where the programs' own look-up does not say so.
    pub fn set_narrow_routes(&mut self, routes: &NarrowRoutes) {
        if let Err(e) = self.datapath.set_narrow_routes(routes) {
            warn!(error = %e, "cannot tell the programs of the MTUs of routes; tried again with the next change");
        }
    }

    fn bandwidth(
        &self,
        pod: &PodRef,
        partition: &str,
        runtime: Option<RuntimeBandwidth>,
    ) -> Result<PodBandwidth, ObjectError> {
        let objects = &self.in_force.policy;
        let of_partition = objects.partitions.get(partition).and_then(|p| p.spec.bandwidth.as_ref());
        let annotations = self.in_force.annotations.get(&format!("{}/{}", pod.namespace, pod.name));
        let annotation = annotations.and_then(|all| all.get(ANNOTATION_BANDWIDTH_CLASS));
        asked_now(annotations.map(|all| &**all), runtime)
            .and_then(|runtime| pod_bandwidth(&objects.bandwidth_classes, of_partition, annotation, runtime))
            .map_err(|e| ObjectError { object: Some(format!("Pod/{}/{}", pod.namespace, pod.name)), ..e })
    }

    /// Whether an ADD would work now, its record on disk included.
    pub fn available(&self) -> Result<(), ErrorReply> {
        self.ready()?;
        self.endpoints.writable().map_err(|e| ErrorReply {
            code: code::NOT_AVAILABLE,
            msg: "no pod can be recorded".into(),
            details: e.to_string(),
        })
    }

    /// Whether there is a policy for pods to live under.
    fn ready(&self) -> Result<(), ErrorReply> {
        if self.compiled.is_some() {
            return Ok(());
        }
        let reasons: Vec<_> = self.errors().iter().map(ToString::to_string).collect();
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
}

/// Numbers that cannot be read: the machine went down while they were written, and took with it the maps that they are of.
/// Where there are maps it is something else, and to begin anew would give their entries other meanings.
fn numbers(read: Result<Option<Interner>, StoreError>, pinned: bool) -> Result<Option<Interner>, StoreError> {
    match read {
        Err(error @ StoreError::Forgotten { .. }) if !pinned => {
            warn!(%error, "numbers of maps that are gone: they begin anew");
            Ok(None)
        }
        read => read,
    }
}

/// Numbers that stand for identities, policies and rules in the kernel.
const INTERNER_FILE: &str = "interner.json";
/// BGP objects in force.
const BGP_FILE: &str = "bgp.json";
/// What was last announced.
const ANNOUNCED_FILE: &str = "announced.json";
const DEFAULT_MTU: u32 = 1500;
/// They may be as many as pods, and must leave ranges their room. Those beyond go through the stack, unless a range holds them.
const DIRECT_STRAYS: usize = 8192;

fn node_net(uplinks: &[Uplink]) -> NodeNet {
    let mtu = uplinks.iter().map(|u| u.mtu).min().unwrap_or(DEFAULT_MTU);
    NodeNet { mtu, sources: sources(uplinks) }
}

/// A folder that is no bpffs says by itself what to do.
fn pins_error(config: &Config, source: DatapathError) -> NodeError {
    match source {
        DatapathError::Version { .. } | DatapathError::Incompatible { .. } | DatapathError::Map { .. } => {
            NodeError::Pins { pins: config.pin_dir.clone(), source }
        }
        other => NodeError::Datapath(other),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_were_torn_are_begun_anew_only_where_no_map_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(INTERNER_FILE);
        let read = |pinned| numbers(store::read_json(&file), pinned);
        store::write_beside_maps(&file, &Interner::default()).unwrap();
        assert!(read(true).unwrap().is_some() && read(false).unwrap().is_some());
        // As a file system leaves it whose power failed before it wrote what was renamed.
        std::fs::write(&file, "").unwrap();
        assert!(read(false).unwrap().is_none());
        read(true).unwrap_err();
    }
}
