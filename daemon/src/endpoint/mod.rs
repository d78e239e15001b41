//! The pods of this node: ADD, DEL, CHECK, GC, and what the daemon finds when it starts.
//!
//! [`Endpoints`] owns the records, the addresses and the way to the kernel; the eBPF side is handed in with each call,
//! because the controller owns it. It decides nothing about policy or bandwidth: [`PodContext`] says what a pod may.
//!
//! A call that changes something must run to its end: a future dropped half way leaves half a pod, which only the next DEL
//! or start removes. Run calls in a task of their own, not in a request's.

mod check;
mod effect;
#[cfg(test)]
mod fake;
mod ports;
mod reconcile;
mod record;
#[cfg(test)]
mod tests;

pub use effect::{Cause, Effect, Failure, Wired, plan};
pub use reconcile::Reconciled;
pub use record::{EndpointRecord, FromNode, NodeNet, PodContext};

use crate::{
    datapath::PodMaps,
    ipam::{Asked, BlockClaims, ClaimError, Ipam, IpamError, Kept, Lost},
    net::{Limits, Names, Net, NetError, nat::HostPorts},
    store::{Key, Store, StoreError},
};
use bulkhead_api::messages::{Attach, Attachment, AttachmentId, Check, Detach, ErrorReply, Gc, PodRef, code};
use effect::World;
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
};
use tracing::warn;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Claims(#[from] ClaimError),
}

struct Entry {
    record: EndpointRecord,
    /// `None`: not known to stand (before the first reconcile, or when an undo failed).
    wired: Option<Wired>,
}

/// All endpoints of this node.
pub struct Endpoints<N, C> {
    net: N,
    ipam: Ipam<C>,
    store: Store,
    node: NodeNet,
    entries: BTreeMap<Key, Entry>,
    /// Records that could not be read, and the addresses that their pods have: what is wired under them is left alone.
    unreadable: BTreeMap<Key, Vec<IpAddr>>,
    /// Queued DELs that cannot be read and have been told.
    unread_queue: BTreeSet<String>,
    /// Blocks that have their discard routes.
    routed_blocks: BTreeSet<IpNetwork>,
    translated: ports::Translated,
}

impl<N: Net, C: BlockClaims> Endpoints<N, C> {
    /// Reads claims and records; touches nothing. The errors name records that could not be read. [`Self::reconcile`] must
    /// follow before anything else.
    pub async fn load(
        net: N,
        claims: C,
        state: &Path,
        node_name: &str,
        node: NodeNet,
    ) -> Result<(Self, Vec<StoreError>), LoadError> {
        let store = Store::open(state)?;
        let mut ipam = Ipam::load(claims, node_name).await?;
        let loaded = store.load::<EndpointRecord>()?;
        let mut unreadable: BTreeMap<_, _> = loaded.unreadable().map(|key| (key, Vec::new())).collect();
        let (mut entries, mut errors) = (BTreeMap::new(), loaded.errors);
        for (path, record) in loaded.items {
            let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            match Key::of(&record.id) {
                Ok(key) if key.as_str() == name => {
                    record.addresses.iter().for_each(|a| ipam.restore(*a));
                    entries.insert(key, Entry { record, wired: None });
                }
                // A file under another pod's name.
                Ok(_) | Err(_) => {
                    unreadable.extend(Key::of_stem(&path).map(|key| (key, Vec::new())));
                    errors.push(StoreError::Name(path.display().to_string()));
                }
            }
        }
        let (unread_queue, routed_blocks) = Default::default();
        let ports = entries.values().flat_map(|e: &Entry| e.record.host_ports()).collect::<HostPorts>();
        let translated = ports::Translated::new(ports, node.sources);
        Ok((
            Self { net, ipam, store, node, entries, unreadable, unread_queue, routed_blocks, translated },
            errors,
        ))
    }

    pub fn iter(&self) -> impl Iterator<Item = &EndpointRecord> {
        self.entries.values().map(|e| &e.record)
    }

    pub fn get(&self, id: &AttachmentId) -> Option<&EndpointRecord> {
        Some(&self.entries.get(&Key::of(id).ok()?)?.record)
    }

    /// Blocks that this node claims, and their partitions: what it announces.
    pub fn blocks(&self) -> &BTreeMap<IpNetwork, String> {
        self.ipam.blocks()
    }

    /// Those of them that hold a pod's address: what is left after [`Self::release_empty_blocks`].
    pub fn blocks_in_use(&self) -> BTreeMap<IpNetwork, String> {
        self.ipam.blocks_in_use()
    }

    /// CNI ADD. The same request again gets the same answer and touches nothing while the interface stands.
    pub async fn add<M: PodMaps>(
        &mut self,
        maps: &mut M,
        pod: &PodContext,
        identity_of: impl Fn(IpAddr) -> u32,
        request: &Attach,
    ) -> Result<Attachment, ErrorReply> {
        let key = Key::of(&request.id)
            .map_err(|e| reply(code::INVALID_ENVIRONMENT, "cannot wire the pod", e.to_string()))?;
        self.replay_pending_of(maps, &key).await?;
        if let Some(entry) = self.entries.get(&key)
            && entry.record.netns == Path::new(&request.netns)
            && self.stands(entry).await?
        {
            return Ok(entry.record.attachment());
        }
        self.ports_are_free(&key, pod, request)?;
        let netns_cookie = self.net.netns_cookie(Path::new(&request.netns)).await;
        let netns_cookie = netns_cookie.map_err(|e| failure_reply(&e.into()))?;
        let addresses = match self.take_down(maps, &key).await? {
            Some(old) if old.partition == pod.partition && suits(&old.addresses, pod) => old.addresses,
            old => {
                self.free(&old.map_or_else(Vec::new, |o| o.addresses));
                self.allocate(pod).await?
            }
        };
        let identities = addresses.iter().map(|a| identity_of(*a)).collect();
        let node = FromNode { mtu: self.node.mtu, netns_cookie };
        let record = EndpointRecord::new(&key, request, pod, addresses, identities, node);
        self.wire(maps, key, record).await
    }

    /// CNI DEL. What is missing is fine; everything is gone when this succeeds.
    pub async fn del<M: PodMaps>(&mut self, maps: &mut M, request: &Detach) -> Result<(), ErrorReply> {
        // A name that ADD refuses was never wired.
        let Ok(key) = Key::of(&request.id) else { return Ok(()) };
        match self.take_down(maps, &key).await? {
            Some(old) => self.free(&old.addresses),
            None => self.sweep(maps, &key).await?,
        }
        Ok(())
    }

    /// CNI CHECK.
    pub async fn check<M: PodMaps>(&self, maps: &M, request: &Check) -> Result<(), ErrorReply> {
        let unknown = || {
            let who = format!("{} {}", request.id.container_id, request.id.ifname);
            reply(code::UNKNOWN_CONTAINER, "no such endpoint", who)
        };
        let key = Key::of(&request.id).map_err(|_| unknown())?;
        let entry = self.entries.get(&key).ok_or_else(unknown)?;
        let found = check::find(&self.net, maps, &entry.record, Path::new(&request.netns)).await;
        let found = found.map_err(|e| reply(code::WIRING, "cannot look at the endpoint", e.to_string()))?;
        let wired = entry.wired.unwrap_or_default();
        let mismatches = check::mismatches(&entry.record, wired, &request.addresses, &found);
        if mismatches.is_empty() {
            return Ok(());
        }
        Err(reply(code::WIRING, "the endpoint is not as it was wired", mismatches.join("; ")))
    }

    /// CNI GC: everything that is not named goes. All are tried; the errors come together.
    pub async fn gc<M: PodMaps>(&mut self, maps: &mut M, request: &Gc) -> Result<(), ErrorReply> {
        let valid: BTreeSet<_> = request.valid.iter().filter_map(|id| Key::of(id).ok()).collect();
        let unread: Vec<_> = self.unreadable.keys().filter(|key| !valid.contains(key)).cloned().collect();
        let mut errors = Vec::new();
        for key in unread {
            errors.extend(self.sweep(maps, &key).await.err().map(|e| e.to_string()));
        }
        let gone = self.iter().map(|r| &r.id).filter(|id| !request.valid.contains(id));
        let gone: Vec<_> = gone.cloned().collect();
        for id in gone {
            if let Err(error) = self.del(maps, &Detach { id, netns: None }).await {
                errors.push(error.to_string());
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(reply(code::WIRING, "cannot remove all", errors.join("; ")))
        }
    }

    /// Changes a live pod's policy row and identities.
    pub async fn set_identity<M: PodMaps>(
        &mut self,
        maps: &mut M,
        id: &AttachmentId,
        (partition, policy): (&str, u32),
        identity_of: impl Fn(IpAddr) -> u32,
    ) -> Result<(), Cause> {
        let key = Key::of(id)?;
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(()) };
        let identities: Vec<_> = entry.record.addresses.iter().map(|a| identity_of(*a)).collect();
        let partition = partition.to_string();
        let record = EndpointRecord { partition, policy, identities, ..entry.record.clone() };
        if record == entry.record {
            return Ok(());
        }
        if let Some(wired) = entry.wired {
            reconcile::program(maps, &record, &record.endpoint(wired.ifb_ifindex), wired)?;
        }
        effect::save(&self.store, &key, &record).await?;
        // Only now: what failed half way must not look done.
        entry.record = record;
        Ok(())
    }

    /// Changes a live pod's bandwidth; traffic goes on.
    pub async fn set_limits<M: PodMaps>(
        &mut self,
        maps: &mut M,
        id: &AttachmentId,
        limits: Limits,
        bandwidth_class: Option<String>,
    ) -> Result<(), Cause> {
        let key = Key::of(id)?;
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(()) };
        if entry.record.limits == limits && entry.record.bandwidth_class == bandwidth_class {
            return Ok(());
        }
        let record = EndpointRecord { limits, bandwidth_class, ..entry.record.clone() };
        if let Some(wired) = &mut entry.wired {
            let ifb = record.ifb();
            let before = wired.ifb_ifindex;
            let now = self.net.set(wired.host_ifindex, &ifb, &limits).await?;
            maps.set_endpoint(wired.host_ifindex, &record.endpoint(now))?;
            if now == 0 && before != 0 {
                self.net.clear_egress(&ifb).await?;
            }
            wired.ifb_ifindex = now;
        }
        effect::save(&self.store, &key, &record).await?;
        entry.record = record;
        Ok(())
    }

    /// What pods that are wired from now on have from their node.
    pub fn set_node(&mut self, node: NodeNet) {
        self.node = node;
    }

    /// Whether a pod could be recorded now.
    ///
    /// # Errors
    /// Why it could not.
    pub fn writable(&self) -> Result<(), StoreError> {
        self.store.writable()
    }

    /// Gives blocks without pods back, but for those that are held; their discard routes go too.
    pub async fn release_empty_blocks(
        &mut self,
        held: &BTreeSet<IpNetwork>,
    ) -> Result<Vec<IpNetwork>, ErrorReply> {
        let released = self.ipam.release_empty_blocks(held).await;
        self.after_release(released).await
    }

    /// Tries again to give back what is not known to be given back.
    pub async fn release_leaving(&mut self) -> Result<Vec<IpNetwork>, ErrorReply> {
        let released = self.ipam.release_leaving().await;
        self.after_release(released).await
    }

    /// Asks whose the fixed addresses of this node are. What is another's is no block of this node any more, whatever pod has
    /// it here.
    pub async fn ask_for_fixed(&mut self) -> Vec<(IpNetwork, Asked)> {
        let answers = self.ipam.ask_for_fixed().await;
        self.follow_blocks().await;
        answers
    }

    pub fn is_leaving(&self) -> bool {
        self.ipam.is_leaving()
    }

    /// Claims again what the cluster does not have any more of this node's claims; what cannot be had again is lost, and its
    /// discard routes go.
    pub async fn keep_claims(&mut self, told: &BTreeSet<IpNetwork>) -> Kept {
        let kept = self.ipam.keep(told).await;
        self.follow_blocks().await;
        kept
    }

    /// What fails is tried again with the next question.
    async fn follow_blocks(&mut self) {
        if let Err(e) = self.route_blocks().await {
            warn!(error = %e, "cannot set discard routes of blocks; tried again");
        }
    }

    /// Blocks that were this node's, and its pods in them.
    pub fn lost(&self) -> impl Iterator<Item = (IpNetwork, &Lost, Vec<&PodRef>)> {
        self.ipam.lost().iter().map(|(block, lost)| {
            let has = |r: &&EndpointRecord| r.addresses.iter().any(|a| block.contains(*a));
            (*block, lost, self.iter().filter(has).map(|r| &r.pod).collect())
        })
    }

    async fn after_release(
        &mut self,
        released: Result<Vec<IpNetwork>, ClaimError>,
    ) -> Result<Vec<IpNetwork>, ErrorReply> {
        self.route_blocks()
            .await
            .map_err(|e| reply(code::WIRING, "cannot set discard routes", e.to_string()))?;
        released.map_err(|e| reply(code::IO_FAILURE, "cannot release a block", e.to_string()))
    }

    async fn stands(&self, entry: &Entry) -> Result<bool, ErrorReply> {
        let Some(wired) = entry.wired else { return Ok(false) };
        let link = self.net.find(&entry.record.host_interface).await;
        let link = link.map_err(|e| reply(code::WIRING, "cannot look for the interface", e.to_string()))?;
        Ok(link.is_some_and(|l| l.up && l.index == wired.host_ifindex))
    }

    async fn allocate(&mut self, pod: &PodContext) -> Result<Vec<IpAddr>, ErrorReply> {
        let allocated = match &pod.fixed[..] {
            [] => self.ipam.allocate(&pod.partition, &pod.ranges, &pod.fixed_ranges).await,
            fixed => self.ipam.take(&pod.partition, fixed).await.map(|()| fixed.to_vec()),
        };
        let addresses = allocated.map_err(|error| {
            if let IpamError::Held { .. } = error {
                return reply(code::TRY_AGAIN_LATER, "the pod's fixed address is not free", error.to_string());
            }
            let what_to_do = match &error {
                IpamError::Exhausted { .. } | IpamError::NoRanges { .. } => {
                    "; add a range to the partition's podCIDRs, or delete pods of it on nodes that hold its blocks"
                }
                IpamError::Held { .. } | IpamError::Claims(_) => "",
            };
            let code = if what_to_do.is_empty() { code::IO_FAILURE } else { code::NO_ADDRESS };
            reply(code, "no address for the pod", format!("{error}{what_to_do}"))
        })?;
        if let Err(error) = self.route_blocks().await {
            self.free(&addresses);
            return Err(reply(code::WIRING, "cannot set the discard route of a block", error.to_string()));
        }
        Ok(addresses)
    }

    /// Packets to addresses of our blocks that no pod has must not go back to the routers they came from.
    async fn route_blocks(&mut self) -> Result<(), NetError> {
        let blocks: BTreeSet<_> = self.ipam.blocks().keys().copied().collect();
        if blocks != self.routed_blocks {
            self.net.set_blocks(&blocks).await?;
            self.routed_blocks = blocks;
        }
        Ok(())
    }

    fn free(&mut self, addresses: &[IpAddr]) {
        addresses.iter().for_each(|a| self.ipam.free(*a));
    }

    async fn wire<M: PodMaps>(
        &mut self,
        maps: &mut M,
        key: Key,
        record: EndpointRecord,
    ) -> Result<Attachment, ErrorReply> {
        let other = self.iter().find(|r| r.host_interface == record.host_interface);
        if let Some(other) = other.map(|r| r.id.container_id.clone()) {
            self.free(&record.addresses);
            let details = format!("{} is the name of {other}'s too", record.host_interface);
            return Err(reply(code::WIRING, "interface name is taken", details));
        }
        let effects = self.plan(&record);
        let mut world =
            World { net: &self.net, maps, store: &self.store, key: &key, translated: &mut self.translated };
        match effect::run(&effects, &mut world).await {
            Ok(wired) => {
                let attachment = record.attachment();
                self.entries.insert(key, Entry { record, wired: Some(wired) });
                Ok(attachment)
            }
            Err(failure) => {
                if failure.undo.is_empty() {
                    self.free(&record.addresses);
                } else {
                    self.entries.insert(key, Entry { record, wired: None });
                }
                Err(wiring_failed(code_of(&failure.cause), &failure))
            }
        }
    }

    /// Undoes an endpoint's whole plan. Its addresses stay allocated: the caller frees or reuses them.
    async fn take_down<M: PodMaps>(
        &mut self,
        maps: &mut M,
        key: &Key,
    ) -> Result<Option<EndpointRecord>, ErrorReply> {
        let Some(entry) = self.entries.get_mut(key) else { return Ok(None) };
        let wired = match entry.wired.take() {
            Some(wired) => wired,
            None => {
                let link = self.net.find(&entry.record.host_interface).await.ok().flatten();
                Wired { host_ifindex: link.map_or(0, |l| l.index), ..Wired::default() }
            }
        };
        let record = entry.record.clone();
        let effects = self.plan(&record);
        let mut world =
            World { net: &self.net, maps, store: &self.store, key, translated: &mut self.translated };
        let errors = effect::undo(&effects, &mut world, wired).await;
        if errors.is_empty() {
            return Ok(self.entries.remove(key).map(|e| e.record));
        }
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Err(reply(code::WIRING, "cannot remove the endpoint", errors.join("; ")))
    }

    /// As [`plan`]. What the pod's network namespace needs is there already, and stays, where it has another attachment.
    fn plan(&self, record: &EndpointRecord) -> Vec<Effect> {
        let mut effects = plan(record, self.node.sources);
        let shares = |r: &EndpointRecord| r.id != record.id && r.netns_cookie == record.netns_cookie;
        if self.entries.values().any(|e| e.wired.is_some() && shares(&e.record)) {
            effects.retain(|effect| !matches!(effect, Effect::SetNetns(_)));
        }
        effects
    }

    /// Removes what may be left under a name that has no readable record.
    async fn sweep<M: PodMaps>(&mut self, maps: &mut M, key: &Key) -> Result<(), ErrorReply> {
        let names = Names::of(key.as_str());
        let addresses = self.unreadable.get(key).cloned().unwrap_or_default();
        let sweep = async {
            if let Some(link) = self.net.find(&names.host).await? {
                self.net.delete(&names.host).await?;
                maps.remove_endpoint(link.index)?;
            }
            self.net.delete(&names.ifb).await?;
            maps.detach_pod(&names.host)?;
            for address in &addresses {
                maps.remove_address(*address)?;
            }
            if !addresses.is_empty() {
                maps.forget_flows(&addresses)?;
            }
            Ok::<_, Cause>(effect::remove(&self.store, key).await?)
        };
        sweep.await.map_err(|e| reply(code::WIRING, "cannot remove the endpoint", e.to_string()))?;
        let unreadable = self.unreadable.remove(key).is_some();
        self.free(&addresses);
        if unreadable {
            let removed = self.remove_namespaces(maps);
            removed.map_err(|e| reply(code::WIRING, "cannot remove the endpoint", e.to_string()))?;
        }
        Ok(())
    }
}

/// Whether the pod would be given these addresses now.
fn suits(addresses: &[IpAddr], pod: &PodContext) -> bool {
    if !pod.fixed.is_empty() {
        return addresses == pod.fixed;
    }
    let kept = |a: &IpAddr| pod.fixed_ranges.iter().any(|r| r.contains(*a));
    within(addresses, &pod.ranges) && !addresses.iter().any(kept)
}

/// Addresses of a former attempt count only where one of each family would be given now.
fn within(addresses: &[IpAddr], ranges: &[IpNetwork]) -> bool {
    let families: BTreeSet<_> = ranges.iter().map(IpNetwork::is_ipv4).collect();
    addresses.len() == families.len() && addresses.iter().all(|a| ranges.iter().any(|r| r.contains(*a)))
}

fn reply(code: u32, msg: &str, details: String) -> ErrorReply {
    ErrorReply { code, msg: msg.into(), details }
}

fn failure_reply(cause: &Cause) -> ErrorReply {
    wiring_failed(code_of(cause), cause)
}

fn wiring_failed(code: u32, why: &impl fmt::Display) -> ErrorReply {
    reply(code, "cannot wire the pod", why.to_string())
}

fn code_of(cause: &Cause) -> u32 {
    match cause {
        Cause::Store(_) => code::IO_FAILURE,
        Cause::Net(NetError::Namespace { .. }) => code::INVALID_ENVIRONMENT,
        Cause::Net(_) | Cause::Maps(_) => code::WIRING,
    }
}
