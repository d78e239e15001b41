//! From objects to what the node decides by: compile, switch, and what follows at its pods.

use super::{INTERNER_FILE, Node, pod_error, unix_seconds};
use crate::{
    bandwidth::PodBandwidth,
    datapath::{DatapathError, Generation, Placed},
    endpoint::EndpointRecord,
    history::Switched,
    store::{self, StoreError},
};
use bulkhead_api::messages::{AttachmentId, PodRef};
use bulkhead_ebpf_abi::{Addr, ID_WORLD, RULE_FIRST_DYNAMIC};
use bulkhead_policy::{
    CompileError, Compiled, EAGER_PARTITIONS, Interner, Local, LocalPod, Objects, Witness, compile,
    compile_at_once,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};
use tracing::{info, warn};

/// Why the generation that runs stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSwitch {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Now, or a short while ago and not tried again.
    #[error("{0}")]
    Refused(Arc<NoSwitch>),
}

impl NoSwitch {
    /// Whether it is the objects that do not fit: nothing was touched.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Compile(_) | Self::Datapath(DatapathError::TooLarge { .. }) | Self::Refused(_))
    }
}

impl Node {
    /// Compiles and switches the whole node to the result, and remembers it. `coming`: a pod that is about to be wired.
    ///
    /// Where only facts have changed and the tables know everybody already, a pod that came or was labelled anew is an entry
    /// in the map of identities, and no generation; unless a pod of this node gets another policy by it, which its connections
    /// are asked about.
    pub(super) fn switch(
        &mut self,
        objects: Objects,
        rollback_of: Option<u32>,
        coming: Option<&LocalPod>,
    ) -> Result<(), NoSwitch> {
        // What only the generation before still needs takes room.
        self.datapath.settle()?;
        let pods: Vec<_> = self.local_pods(&objects).into_iter().chain(coming.cloned()).collect();
        let began = Instant::now();
        let (compiled, interner) = self.compile_to_fit(&objects, &pods)?;
        self.compile_times.observe(began.elapsed().as_secs_f64());
        // On disk first: a successor must read the numbers in the kernel as we do.
        if !interner.says_the_same(&self.interner) || self.compiled.is_none() {
            store::write_beside_maps(&self.config.state_dir.join(INTERNER_FILE), &interner)?;
        }
        self.interner = interner;
        let wanted = generation_of(&compiled);
        let same_tables = self.compiled.as_ref().is_some_and(|c| c.tables == compiled.tables);
        let standing = self.standing(&compiled, &objects);
        let pods = standing.values().flat_map(Standing::places).collect();
        let same = same_tables && rollback_of.is_none() && objects.same_rules(&self.in_force.policy);
        if same && self.datapath.have_policies(&pods)? {
            self.datapath.follow(&wanted)?;
            (self.compiled, self.in_force.policy, self.standing) = (Some(compiled), objects, None);
            return Ok(());
        }
        let generation = self.datapath.apply_with(&wanted, &pods)?;
        if self.interner.switched() {
            self.forget_rules();
        }
        self.generation_since = unix_seconds();
        info!(generation, partitions = objects.partitions.len(), "switched");
        self.compiled = Some(compiled);
        self.standing = Some(standing);
        let switched = Switched { generation, since: self.generation_since, rollback_of };
        self.history.record(switched, &self.in_force.policy, &objects);
        self.in_force.policy = objects;
        Ok(())
    }

    /// What is refused here leaves no trace: neither a number that is given out nor a table that is written.
    pub(super) fn compile_to_fit(
        &self,
        objects: &Objects,
        pods: &[LocalPod],
    ) -> Result<(Compiled, Interner), NoSwitch> {
        let none = BTreeSet::new();
        let local = local_of(&self.config.node, objects, pods, &none, self.compiled.as_ref());
        let mut interner = self.interner.clone();
        let compiled = compile(objects, &mut interner, &local)?;
        match self.datapath.check_room(&generation_of(&compiled)) {
            // What has kept its place over many changes leaves gaps; made at once it may fit.
            Err(DatapathError::TooLarge { .. }) if local.former.is_some() => {
                let mut interner = self.interner.clone();
                let compiled = compile_at_once(objects, &mut interner, &local)?;
                self.datapath.check_room(&generation_of(&compiled))?;
                Ok((compiled, interner))
            }
            fits => Ok(fits.map(|()| (compiled, interner))?),
        }
    }

    /// Where this node's pods stand in what was compiled; without those that it does not know.
    fn standing(&self, compiled: &Compiled, objects: &Objects) -> BTreeMap<AttachmentId, Standing> {
        let standing = |(record, pod): (&EndpointRecord, LocalPod)| {
            let placement = compiled.place(objects, &pod)?;
            let identity = |address: &IpAddr| (*address, compiled.pod_identity(&placement, *address));
            let identities = pod.addresses.iter().map(identity).collect();
            let standing = Standing { partition: pod.partition, policy: placement.policy, identities };
            Some((record.id.clone(), standing))
        };
        self.endpoints.iter().zip(self.local_pods(objects)).filter_map(standing).collect()
    }

    /// The pods of this node, in the endpoints' order. Where others are told of pods, one is of its namespace's partition;
    /// where they are not, of the one it was wired into, as its claim tells them.
    pub(super) fn local_pods(&self, objects: &Objects) -> Vec<LocalPod> {
        let homes = (self.witness() == Witness::Pod).then(|| self.grounds.homes().follow(objects));
        let pod = |record: &EndpointRecord| {
            let PodRef { namespace, name, .. } = &record.pod;
            // Of a namespace that nobody tells of any more, a pod stays where it was.
            let home = homes.as_ref().and_then(|homes| homes.of_namespace(namespace));
            LocalPod {
                namespace: namespace.clone(),
                name: name.clone(),
                partition: home.unwrap_or(&record.partition).into(),
                addresses: record.addresses.clone(),
            }
        };
        self.endpoints.iter().map(pod).collect()
    }

    /// Counters of rules that have no name any more.
    fn forget_rules(&mut self) {
        let named = self.interner.rule_numbers();
        let known = |number| number < RULE_FIRST_DYNAMIC || named.contains(&number);
        if let Err(e) = self.datapath.keep_rules(known) {
            warn!(error = %e, "cannot remove counters of rules that are gone; tried again when the next is");
        }
    }

    /// Brings every pod's policy, identity and limits in line with the objects in force.
    pub(super) async fn update_endpoints(&mut self) {
        let Some(compiled) = &self.compiled else { return };
        let standing = match self.standing.take() {
            Some(standing) => standing,
            None => self.standing(compiled, &self.in_force.policy),
        };
        let (mut refused, mut failed) = (Vec::new(), Vec::new());
        for record in self.endpoints.iter().cloned().collect::<Vec<_>>() {
            // What is in force has every pod that was wired under it; a pod it lacks stays as it is.
            let stands = standing.get(&record.id).filter(|s| s.is_of(&record));
            let partition = stands.map_or(&record.partition, |s| &s.partition);
            if let Some(Standing { policy, identities, .. }) = stands {
                let identity = |address| identities.get(&address).copied().unwrap_or(ID_WORLD);
                let (maps, place) = (&mut self.datapath, (partition.as_str(), *policy));
                let set = self.endpoints.set_identity(maps, &record.id, place, identity).await;
                if let Err(e) = set {
                    failed.push(pod_error(&record.pod, e.to_string()));
                    // Its limits are written with what is recorded of it.
                    continue;
                }
            }
            let bandwidth = match self.bandwidth(&record.pod, partition, record.runtime_bandwidth) {
                Ok(bandwidth) => bandwidth,
                Err(error) => {
                    refused.push(error);
                    continue;
                }
            };
            let PodBandwidth { class, limits, origins: _ } = bandwidth;
            if let Err(e) = self.endpoints.set_limits(&mut self.datapath, &record.id, limits, class).await {
                failed.push(pod_error(&record.pod, e.to_string()));
            }
        }
        refused.retain(|e| !self.refused.contains(e));
        self.refused.extend(refused);
        self.failed.extend(failed);
    }
}

fn generation_of(compiled: &Compiled) -> Generation<'_> {
    Generation { tables: &compiled.tables, prefixes: &compiled.prefixes, exact: &compiled.exact }
}

/// What this node needs of the objects; `none` is an empty set.
fn local_of<'a>(
    node: &'a str,
    objects: &Objects,
    pods: &'a [LocalPod],
    none: &'a BTreeSet<String>,
    former: Option<&'a Compiled>,
) -> Local<'a> {
    let partitions = (objects.partitions.len() > EAGER_PARTITIONS).then_some(none);
    Local { node, pods, partitions, former }
}

/// The partition and the policy of a pod, and who its addresses are.
pub(super) struct Standing {
    partition: String,
    policy: u32,
    identities: BTreeMap<IpAddr, u32>,
}

impl Standing {
    /// Whether it is of a pod that has these addresses.
    fn is_of(&self, record: &EndpointRecord) -> bool {
        record.addresses.iter().all(|address| self.identities.contains_key(address))
    }

    fn places(&self) -> impl Iterator<Item = (Addr, Placed)> {
        let place = |(address, identity): (&IpAddr, &u32)| {
            (Addr::from_ip(*address), Placed { identity: *identity, policy: self.policy })
        };
        self.identities.iter().map(place)
    }
}
