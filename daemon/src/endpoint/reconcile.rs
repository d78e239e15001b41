//! What the daemon does with what it finds when it starts: adopts pods that stand, finishes queued DELs, removes what has no
//! owner. Traffic of adopted pods goes on.
//!
//! A pod stands when its host side is up: opening it is the last effect of wiring. So a half-wired pod of a daemon that was
//! killed needs no mark on disk.

use super::{Cause, EndpointRecord, Endpoints, Entry, PodContext, Wired, effect};
use crate::{
    datapath::{DatapathError, PodMaps},
    ipam::BlockClaims,
    net::{HostSide, IFB_PREFIX, Limits, Link, Names, Net, NetError, OwnRoute, host_network},
    store::{Key, StoreError},
};
use bulkhead_api::messages::{AttachmentId, ErrorReply};
use bulkhead_ebpf_abi::{Addr, Endpoint, Identity};
use std::collections::{BTreeMap, BTreeSet};

/// What a start found and did.
#[derive(Debug, Default)]
pub struct Reconciled {
    pub adopted: usize,
    /// Records whose interface was gone or half made, and queued DELs.
    pub removed: Vec<AttachmentId>,
    /// Interfaces, routes, map entries and pins that no record owned.
    pub ownerless: Vec<String>,
    /// What could not be done; everything else was.
    pub errors: Vec<String>,
}

/// What was there before anything was touched.
struct Seen {
    links: BTreeMap<String, Link>,
    routes: BTreeSet<OwnRoute>,
    pins: BTreeSet<String>,
    endpoints: BTreeMap<u32, Endpoint>,
}

impl<N: Net, C: BlockClaims> Endpoints<N, C> {
    /// Brings kernel, maps and records together. `context` says what a pod may now; `None` leaves it as recorded.
    pub async fn reconcile<M: PodMaps>(
        &mut self,
        maps: &mut M,
        mut context: impl FnMut(&EndpointRecord) -> Option<PodContext>,
    ) -> Result<Reconciled, Cause> {
        let mut report = Reconciled::default();
        self.replay_pending(maps, &mut report).await?;
        let links = self.net.list().await?.into_iter().map(|l| (l.name.clone(), l)).collect();
        let routes = self.net.list_routes().await?;
        let seen = Seen { links, routes, pins: maps.attached()?, endpoints: maps.endpoints()? };
        self.remember_unreadable(&seen);
        for key in self.entries.keys().cloned().collect::<Vec<_>>() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let link = seen.links.get(&entry.record.host_interface);
            let stands = link.is_some_and(|l| l.up && l.mac == entry.record.host_mac);
            let id = entry.record.id.clone();
            if stands && let Some(link) = link {
                let before = entry.record.clone();
                if let Some(pod) = context(&entry.record) {
                    entry.record.policy = pod.policy;
                    entry.record.limits = pod.limits;
                    entry.record.bandwidth_class = pod.bandwidth_class;
                }
                match self.adopt(maps, &key, link, &before, &seen).await {
                    Ok(()) => report.adopted += 1,
                    Err(error) => report.errors.push(format!("{}: {error}", id.container_id)),
                }
            } else {
                match self.take_down(maps, &key).await {
                    Ok(old) => self.free(&old.map_or_else(Vec::new, |o| o.addresses)),
                    Err(error) => report.errors.push(error.to_string()),
                }
                report.removed.push(id);
            }
        }
        self.remove_ownerless(maps, &mut report).await?;
        self.route_blocks().await?;
        // No reason for a daemon not to start: it is looked at again as soon as it is known what is wanted.
        if let Err(error) = self.restore_translation().await {
            report.errors.push(format!("host ports: {error}"));
        }
        Ok(report)
    }

    /// Carries out DELs that the plugin queued. To be called now and then also after the start: the plugin may have found
    /// the daemon down an instant before it was up.
    pub async fn replay_queued<M: PodMaps>(&mut self, maps: &mut M) -> Result<Reconciled, Cause> {
        let mut report = Reconciled::default();
        self.replay_pending(maps, &mut report).await?;
        Ok(report)
    }

    async fn replay_pending<M: PodMaps>(
        &mut self,
        maps: &mut M,
        report: &mut Reconciled,
    ) -> Result<(), StoreError> {
        let pending = self.store.pending()?;
        let unread: BTreeSet<_> = pending.errors.iter().map(ToString::to_string).collect();
        report.errors.extend(unread.difference(&self.unread_queue).cloned());
        self.unread_queue = unread;
        for (path, detach) in pending.items {
            match self.del(maps, &detach).await {
                Ok(()) => {
                    self.store.done(&path)?;
                    report.removed.push(detach.id);
                }
                Err(error) => report.errors.push(error.to_string()),
            }
        }
        Ok(())
    }

    /// A DEL of the same attachment that is still queued comes before its new ADD.
    pub(super) async fn replay_pending_of<M: PodMaps>(
        &mut self,
        maps: &mut M,
        key: &Key,
    ) -> Result<(), ErrorReply> {
        let failed =
            |e: StoreError| super::reply(super::code::IO_FAILURE, "cannot read queued DELs", e.to_string());
        for (path, detach) in self.store.pending().map_err(failed)?.items {
            if Key::of(&detach.id).is_ok_and(|k| k == *key) {
                self.del(maps, &detach).await?;
                self.store.done(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Addresses of pods whose records cannot be read are known by their routes and by the maps.
    fn remember_unreadable(&mut self, seen: &Seen) {
        for (key, addresses) in &mut self.unreadable {
            let Some(link) = seen.links.get(&Names::of(key.as_str()).host) else { continue };
            let routed = seen.routes.iter().filter(|r| r.ifindex == Some(link.index)).map(|r| r.dst.ip());
            let entry = seen.endpoints.get(&link.index);
            let mapped = entry.into_iter().flat_map(|e| [e.ipv4, e.ipv6]).map(|a| a.to_ip());
            let all: BTreeSet<_> = routed.chain(mapped.filter(|a| !a.is_unspecified())).collect();
            all.iter().for_each(|a| self.ipam.restore(*a));
            *addresses = all.into_iter().collect();
        }
    }

    /// Sets right what differs and nothing else.
    async fn adopt<M: PodMaps>(
        &mut self,
        maps: &mut M,
        key: &Key,
        link: &Link,
        before: &EndpointRecord,
        seen: &Seen,
    ) -> Result<(), Cause> {
        let Some(Entry { record, wired: known }) = self.entries.get_mut(key) else { return Ok(()) };
        let ifb = record.ifb();
        let mut wired = Wired {
            host_ifindex: link.index,
            pod_ifindex: link.peer,
            ifb_ifindex: seen.links.get(&ifb).map_or(0, |l| l.index),
        };
        *known = Some(wired);
        if record.limits != Limits::default() || before.limits != Limits::default() {
            wired.ifb_ifindex = self.net.set(link.index, &ifb, &record.limits).await?;
        } else {
            wired.ifb_ifindex = 0;
        }
        if record.netns_cookie == 0 {
            // Wired by a daemon that did not ask. Where the namespace is gone there is nobody to call a service.
            record.netns_cookie = self.net.netns_cookie(&record.netns).await.unwrap_or(0);
        }
        let standing = seen.endpoints.get(&link.index).filter(|_| record == before);
        program(maps, record, &standing_as(record.endpoint(wired.ifb_ifindex), standing), wired)?;
        *known = Some(wired);
        if !seen.pins.contains(&record.host_interface) {
            maps.attach_pod(&record.host_interface, link.index)?;
        }
        let routed = |a| seen.routes.contains(&OwnRoute { dst: host_network(a), ifindex: Some(link.index) });
        if !record.addresses.iter().all(|a| routed(*a)) {
            let sources = self.node.sources;
            let host = HostSide { addresses: record.addresses.clone(), pod_mac: record.pod_mac, sources };
            self.net.open(link.index, &host).await?;
        }
        if record != before {
            effect::save(&self.store, key, record).await?;
        }
        Ok(())
    }

    async fn remove_ownerless<M: PodMaps>(
        &mut self,
        maps: &mut M,
        report: &mut Reconciled,
    ) -> Result<(), Cause> {
        let mut owned = BTreeSet::new();
        for (key, entry) in &self.entries {
            owned.insert(Names::of(key.as_str()).host);
            if entry.record.limits.egress.is_some() {
                owned.insert(entry.record.ifb());
            }
        }
        for key in self.unreadable.keys() {
            let names = Names::of(key.as_str());
            owned.extend([names.host, names.ifb]);
        }
        self.remove_interfaces(&owned, report).await?;
        let left = self.net.list().await?;
        let indexes: BTreeSet<_> = left.iter().map(|l| l.index).collect();
        self.remove_routes(&indexes, report).await?;
        let pins = maps.attached()?;
        for name in pins.difference(&owned).filter(|n| !n.starts_with(IFB_PREFIX)) {
            maps.detach_pod(name)?;
            report.ownerless.push(format!("pins of {name}"));
        }
        self.remove_entries(maps, &indexes, report)?;
        Ok(self.remove_namespaces(maps)?)
    }

    /// Of a record that cannot be read nobody knows the namespace: while there is one, all stay.
    pub(super) fn remove_namespaces<M: PodMaps>(&self, maps: &mut M) -> Result<(), DatapathError> {
        if !self.unreadable.is_empty() {
            return Ok(());
        }
        let known: BTreeSet<_> = self.iter().map(|r| r.netns_cookie).collect();
        let there = maps.netns()?;
        there.difference(&known).try_for_each(|cookie| maps.remove_netns(*cookie))
    }

    async fn remove_interfaces(
        &self,
        owned: &BTreeSet<String>,
        report: &mut Reconciled,
    ) -> Result<(), NetError> {
        for link in self.net.list().await?.into_iter().filter(|l| !owned.contains(&l.name)) {
            self.net.delete(&link.name).await?;
            report.ownerless.push(format!("interface {}", link.name));
        }
        Ok(())
    }

    /// Routes to addresses that no record has; those of interfaces that are gone went with them.
    async fn remove_routes(&self, indexes: &BTreeSet<u32>, report: &mut Reconciled) -> Result<(), NetError> {
        let mut owned = BTreeSet::new();
        let mut known = BTreeSet::new();
        for entry in self.entries.values() {
            let index = entry.wired.map(|w| w.host_ifindex);
            known.extend(index);
            owned.extend(
                entry.record.addresses.iter().map(|a| OwnRoute { dst: host_network(*a), ifindex: index }),
            );
        }
        let ownerless = |r: &OwnRoute| {
            let unreadable = r.ifindex.is_some_and(|i| indexes.contains(&i) && !known.contains(&i));
            r.ifindex.is_some() && !owned.contains(r) && !unreadable
        };
        let routes: Vec<_> = self.net.list_routes().await?.into_iter().filter(ownerless).collect();
        self.net.remove_routes(&routes).await?;
        report.ownerless.extend(routes.iter().map(|r| format!("route {}", r.dst)));
        Ok(())
    }

    fn remove_entries<M: PodMaps>(
        &self,
        maps: &mut M,
        indexes: &BTreeSet<u32>,
        report: &mut Reconciled,
    ) -> Result<(), DatapathError> {
        let addresses: BTreeSet<_> = self.iter().flat_map(|r| r.addresses.iter().copied()).collect();
        for (index, endpoint) in maps.endpoints()? {
            if indexes.contains(&index) {
                continue;
            }
            maps.remove_endpoint(index)?;
            for address in [endpoint.ipv4, endpoint.ipv6].map(|a| a.to_ip()) {
                if !address.is_unspecified() && !addresses.contains(&address) {
                    maps.remove_address(address)?;
                    maps.forget_flows(&[address])?;
                }
            }
            report.ownerless.push(format!("endpoint entry {index}"));
        }
        Ok(())
    }
}

/// A daemon that died behind a switch has not recorded how its pods stand in that generation: the maps know.
fn standing_as(pod: Endpoint, standing: Option<&Endpoint>) -> Endpoint {
    match standing.filter(|s| (s.ipv4, s.ipv6) == (pod.ipv4, pod.ipv6)) {
        Some(Endpoint { policies, identity_v4, identity_v6, .. }) => {
            Endpoint { policies: *policies, identity_v4: *identity_v4, identity_v6: *identity_v6, ..pod }
        }
        None => pod,
    }
}

/// The maps as the record says, and `pod`, which follows from it.
pub(super) fn program<M: PodMaps>(
    maps: &mut M,
    record: &EndpointRecord,
    pod: &Endpoint,
    wired: Wired,
) -> Result<(), DatapathError> {
    for (address, entry) in record.identity_entries() {
        let addr = Addr::from_ip(address);
        let id = if addr == pod.ipv4 { pod.identity_v4 } else { pod.identity_v6 };
        maps.set_address(address, Identity { id, ..entry })?;
    }
    if record.netns_cookie != 0 {
        maps.set_netns(record.netns_cookie)?;
    }
    maps.set_endpoint(wired.host_ifindex, pod)
}
