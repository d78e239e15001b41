//! Services in the kernel's maps: which writes lead from what the maps hold to what is wanted, and in which order.
//!
//! ```text
//! set of backends: written whole ──▶ FRONTEND: one store ──▶ (grace period) ──▶ the former set is removed
//! ```
//! So no call ever meets half a service. Sets are numbered on and on: a number that a call has just read is not another's by
//! the time it looks. Frontends with the same backends share a set.

mod hooks;
mod sets;

pub use hooks::find_cgroup;
pub(super) use hooks::{load, release_all};

use super::{
    Datapath, DatapathError, generation::absent_is_fine, read::Entries, table::HashMap, values::Raw,
};
use aya::maps::MapError;
use bulkhead_ebpf_abi::{
    Addr, BackendAddr, BackendKey, FrontendKey, FrontendValue, MemberKey, PROTO_UDP, TranslatedKey,
    TranslatedValue,
};
use bulkhead_policy::service::{Backend, Frontend};
use sets::{Numbers, Sets};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

/// Entries of sets that nobody names any more, before they are removed at once.
const MOST_LEFT: usize = 16_384;

/// The maps, and what they hold as far as that is known.
pub(super) struct Services {
    pub pods: HashMap<u64, u32>,
    pub nodes: HashMap<Addr, u32>,
    pub frontends: HashMap<FrontendKey, FrontendValue>,
    pub backends: HashMap<BackendKey, BackendAddr>,
    pub members: HashMap<MemberKey, u32>,
    /// What the programs keep of sockets that called services.
    pub translated: OwnedFd,
    pub known: Option<Known>,
}

/// Frontends that stand for what they stood for before, and the first error.
#[derive(Debug)]
pub struct Unwritten {
    pub keys: BTreeSet<FrontendKey>,
    pub error: DatapathError,
}

#[derive(Default)]
pub(super) struct Known {
    frontends: BTreeMap<FrontendKey, FrontendValue>,
    nodes: BTreeSet<Addr>,
    sets: Sets,
    numbers: Numbers,
}

impl Datapath {
    /// Every frontend that the maps hold.
    pub fn frontends(&mut self) -> Result<BTreeSet<FrontendKey>, DatapathError> {
        Ok(self.services.known()?.frontends.keys().copied().collect())
    }

    /// Makes these frontends stand for what is wanted; the others stay. Each changes in one store. All are tried.
    pub fn set_frontends<'a>(
        &mut self,
        wanted: impl Iterator<Item = (FrontendKey, Option<&'a Frontend>)>,
    ) -> Option<Unwritten> {
        let mut failed: Option<Unwritten> = None;
        let unwritten = |error| Unwritten { keys: BTreeSet::new(), error };
        for (key, frontend) in wanted {
            if let Err(error) = self.services.set(key, frontend) {
                failed.get_or_insert_with(|| unwritten(error)).keys.insert(key);
            }
        }
        if self.services.known.as_ref().is_some_and(|k| k.sets.left() > MOST_LEFT)
            && let Err(error) = self.settle_services()
        {
            failed.get_or_insert_with(|| unwritten(error));
        }
        failed
    }

    /// Exactly these are addresses of nodes afterwards.
    pub fn set_node_addresses(&mut self, wanted: &BTreeSet<Addr>) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { what: "setting nodes' addresses".into(), source };
        let Services { nodes, known, .. } = {
            self.services.known()?;
            &mut self.services
        };
        let Some(known) = known else { return Ok(()) };
        for address in wanted.difference(&known.nodes.clone()) {
            nodes.insert(Raw(*address), Raw(1), 0).map_err(failed)?;
            known.nodes.insert(*address);
        }
        for address in known.nodes.clone().difference(wanted) {
            absent_is_fine(nodes.remove(&Raw(*address))).map_err(failed)?;
            known.nodes.remove(address);
        }
        Ok(())
    }

    /// UDP sockets, by their cookies, that were given a backend of which `is_gone` says yes, and that backend. Of those that called
    /// longest ago nothing is kept.
    pub fn udp_sockets_at(
        &self,
        is_gone: impl Fn(SocketAddr) -> bool,
    ) -> Result<BTreeSet<(u64, SocketAddr)>, DatapathError> {
        let mut found = BTreeSet::new();
        let calls = self.services.translated.as_fd();
        for entry in Entries::<TranslatedKey, TranslatedValue>::of(calls, "who called services", 4096) {
            let (TranslatedKey { cookie, backend, proto }, _) = entry?;
            let backend = SocketAddr::new(backend.address.to_ip(), backend.port);
            if proto == u32::from(PROTO_UDP) && is_gone(backend) {
                found.insert((cookie, backend));
            }
        }
        Ok(found)
    }

    /// Removes sets that no frontend names any more, once no call is left that may look into them. All are tried; what
    /// could not be removed is left for the next time.
    pub fn settle_services(&mut self) -> Result<(), DatapathError> {
        if self.services.known.as_ref().is_none_or(|k| k.sets.left() == 0) {
            return Ok(());
        }
        self.grace_period()?;
        let services = &mut self.services;
        let Some(known) = services.known.as_mut() else { return Ok(()) };
        let (mut unremoved, mut first) = (Vec::new(), Ok(()));
        for (set, backends) in known.sets.take_left() {
            if let Err(error) = remove_set(&mut services.backends, &mut services.members, set, &backends) {
                first = first.and(Err(error));
                unremoved.push((set, backends));
            }
        }
        known.sets.put_back(unremoved);
        first
    }
}

impl Services {
    /// Read once; of maps that are new there is nothing to read.
    fn known(&mut self) -> Result<&mut Known, DatapathError> {
        if self.known.is_none() {
            let known = self.read().map_err(|source| failed("reading services", source))?;
            self.known = Some(known);
        }
        Ok(self.known.get_or_insert_default())
    }

    fn read(&self) -> Result<Known, MapError> {
        let mut known = Known::default();
        let mut sets: BTreeMap<u32, BTreeMap<u32, BackendAddr>> = BTreeMap::new();
        for entry in self.backends.iter() {
            let (Raw(key), Raw(backend)) = entry?;
            sets.entry(key.set).or_default().insert(key.index, backend);
        }
        let mut with_members = BTreeSet::new();
        for entry in self.members.iter() {
            let (Raw(key), _) = entry?;
            with_members.insert(key.set);
        }
        for (set, backends) in sets {
            known.sets.found(set, backends.into_values().collect(), with_members.contains(&set));
        }
        for entry in self.frontends.iter() {
            let (Raw(key), Raw(value)) = entry?;
            known.sets.name(value.set);
            known.numbers.found(value.service);
            known.frontends.insert(key, value);
        }
        for entry in self.nodes.iter() {
            known.nodes.insert(entry?.0.0);
        }
        known.sets.drop_unnamed();
        Ok(known)
    }

    fn set(&mut self, key: FrontendKey, wanted: Option<&Frontend>) -> Result<(), DatapathError> {
        self.known()?;
        let Self { frontends, backends, members, known, .. } = self;
        let Some(known) = known else { return Ok(()) };
        let before = known.frontends.get(&key).copied();
        let Some(wanted) = wanted else {
            absent_is_fine(frontends.remove(&Raw(key))).map_err(|e| failed("removing a frontend", e))?;
            known.frontends.remove(&key);
            known.sets.unname(before.map_or(0, |b| b.set));
            return Ok(());
        };
        let keeps = key.proto == PROTO_UDP || wanted.affinity_seconds.is_some();
        let addresses: Vec<BackendAddr> = wanted.backends.iter().map(backend_addr).collect();
        let set = match known.sets.find(&addresses, keeps) {
            Some(set) => set,
            None => {
                let set = known.sets.next();
                write_set(backends, members, set, &addresses, keeps)?;
                known.sets.found(set, addresses, keeps);
                set
            }
        };
        let of = (wanted.service.clone(), wanted.port.clone(), key.proto);
        let value = FrontendValue {
            set,
            count: u32::try_from(wanted.backends.len()).unwrap_or(u32::MAX),
            affinity_seconds: wanted.affinity_seconds.unwrap_or(0),
            service: if keeps { known.numbers.of(of, before.map_or(0, |b| b.service)) } else { 0 },
        };
        // A set that was found among those left behind is named again, also where it is for this very frontend.
        known.sets.name(set);
        if before == Some(value) {
            known.sets.unname(set);
            return Ok(());
        }
        if let Err(e) = frontends.insert(Raw(key), Raw(value), 0) {
            known.sets.unname(set);
            return Err(failed(&format!("service at {}", shown(&key)), e));
        }
        known.frontends.insert(key, value);
        known.sets.unname(before.map_or(0, |b| b.set));
        Ok(())
    }
}

fn write_set(
    backends: &mut HashMap<BackendKey, BackendAddr>,
    members: &mut HashMap<MemberKey, u32>,
    set: u32,
    addresses: &[BackendAddr],
    keeps: bool,
) -> Result<(), DatapathError> {
    let mut write = || -> Result<(), MapError> {
        for (index, backend) in (0..).zip(addresses) {
            backends.insert(Raw(BackendKey { set, index }), Raw(*backend), 0)?;
            if keeps {
                members.insert(Raw(MemberKey { backend: *backend, set }), Raw(1), 0)?;
            }
        }
        Ok(())
    };
    let written = write();
    if written.is_err() {
        // The first error is the one to report.
        let _ = remove_set(backends, members, set, addresses);
    }
    written.map_err(|e| failed("writing a service's backends", e))
}

fn remove_set(
    backends: &mut HashMap<BackendKey, BackendAddr>,
    members: &mut HashMap<MemberKey, u32>,
    set: u32,
    addresses: &[BackendAddr],
) -> Result<(), DatapathError> {
    let failed = |e| failed("removing a service's backends", e);
    for (index, backend) in (0..).zip(addresses) {
        absent_is_fine(backends.remove(&Raw(BackendKey { set, index }))).map_err(failed)?;
        absent_is_fine(members.remove(&Raw(MemberKey { backend: *backend, set }))).map_err(failed)?;
    }
    Ok(())
}

fn backend_addr(backend: &Backend) -> BackendAddr {
    BackendAddr { address: Addr::from_ip(backend.ip()), port: backend.port(), reserved: 0 }
}

fn failed(what: &str, source: MapError) -> DatapathError {
    DatapathError::Map { what: what.into(), source }
}

fn shown(key: &FrontendKey) -> String {
    SocketAddr::new(key.address.to_ip(), key.port).to_string()
}
