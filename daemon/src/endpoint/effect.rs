//! Wiring a pod as a list of effects, each with its undo, and the one executor that runs them.
//!
//! The order is fail-closed: the host side comes up last, when policy is in the maps and the programs are attached, so the
//! pod never has a network without policy. For the same reason the undo of opening is to delete the pair, not to close it.
//!
//! Undos are idempotent and content with what is missing, so the undo of a whole plan is also DEL, and an effect that failed
//! half way is undone like one that succeeded.
//!
//! ```text
//! apply ─▶ SaveRecord  MakePair  ConfigurePod  Shape  SetEndpoint  SetAddresses  SetNetns  AttachPrograms  MapPorts  OpenHostSide
//!  undo ─▶                                                                                             ◀─ in reverse
//! ```

use super::{ports::Translated, record::EndpointRecord};
use crate::{
    datapath::{DatapathError, PodMaps},
    net::{HostSide, Limits, Net, NetError, Pair, PodSide, Sources, nat::HostPorts},
    store::{Key, Store, StoreError},
};
use bulkhead_ebpf_abi::{Endpoint, Identity};
use std::{fmt, net::IpAddr};

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    SaveRecord(Box<EndpointRecord>),
    MakePair(Pair),
    ConfigurePod(PodSide),
    Shape {
        ifb: String,
        limits: Limits,
    },
    /// The index of the `ifb` is filled in when it is known.
    SetEndpoint(Endpoint),
    SetAddresses {
        entries: Vec<(IpAddr, Identity)>,
    },
    /// The cookie of the pod's network namespace.
    SetNetns(u64),
    AttachPrograms {
        ifname: String,
    },
    /// Of a pod that has any.
    MapPorts(HostPorts),
    OpenHostSide {
        ifname: String,
        host: HostSide,
    },
}

/// All effects of a pod, in order.
pub fn plan(record: &EndpointRecord, sources: Sources) -> Vec<Effect> {
    let host = record.host_interface.clone();
    let ports = record.host_ports();
    let from_loopback = ports.keys().any(|port| port.address.is_ipv4());
    let map_ports = (!ports.is_empty()).then_some(Effect::MapPorts(ports));
    let mut effects = vec![
        Effect::SaveRecord(Box::new(record.clone())),
        Effect::MakePair(Pair {
            host: host.clone(),
            host_mac: record.host_mac,
            netns: record.netns.clone(),
            pod: record.id.ifname.clone(),
            pod_mac: record.pod_mac,
            mtu: record.mtu,
            from_loopback,
        }),
        Effect::ConfigurePod(PodSide {
            netns: record.netns.clone(),
            ifname: record.id.ifname.clone(),
            addresses: record.addresses.clone(),
            gateway_mac: record.host_mac,
        }),
        Effect::Shape { ifb: record.ifb(), limits: record.limits },
        Effect::SetEndpoint(record.endpoint(0)),
        Effect::SetAddresses { entries: record.identity_entries().collect() },
        Effect::SetNetns(record.netns_cookie),
        Effect::AttachPrograms { ifname: host.clone() },
    ];
    effects.extend(map_ports);
    effects.push(Effect::OpenHostSide {
        ifname: host,
        host: HostSide { addresses: record.addresses.clone(), pod_mac: record.pod_mac, sources },
    });
    effects
}

/// Indexes that only the kernel can give; 0: not known, or not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wired {
    pub host_ifindex: u32,
    pub pod_ifindex: u32,
    pub ifb_ifindex: u32,
}

/// What effects act on.
pub(super) struct World<'a, N, M> {
    pub net: &'a N,
    pub maps: &'a mut M,
    pub store: &'a Store,
    pub key: &'a Key,
    pub translated: &'a mut Translated,
}

#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Maps(#[from] DatapathError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A plan that failed, with everything that went wrong on the way back.
#[derive(Debug)]
pub struct Failure {
    pub cause: Cause,
    pub undo: Vec<Cause>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        for error in &self.undo {
            write!(f, "; and when undoing: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Runs all effects, or undoes what was done.
pub(super) async fn run<N: Net, M: PodMaps>(
    effects: &[Effect],
    world: &mut World<'_, N, M>,
) -> Result<Wired, Failure> {
    let mut wired = Wired::default();
    for (done, effect) in effects.iter().enumerate() {
        if let Err(cause) = effect.apply(world, &mut wired).await {
            return Err(Failure { cause, undo: undo(&effects[..=done], world, wired).await });
        }
    }
    Ok(wired)
}

/// Undoes in reverse. Where something could not be undone the record stays, so that a later attempt finds what is left.
pub(super) async fn undo<N: Net, M: PodMaps>(
    effects: &[Effect],
    world: &mut World<'_, N, M>,
    wired: Wired,
) -> Vec<Cause> {
    let mut errors = Vec::new();
    for effect in effects.iter().rev() {
        if matches!(effect, Effect::SaveRecord(_)) && !errors.is_empty() {
            continue;
        }
        if let Err(error) = effect.undo(world, wired).await {
            errors.push(error);
        }
    }
    errors
}

impl Effect {
    async fn apply<N: Net, M: PodMaps>(
        &self,
        world: &mut World<'_, N, M>,
        wired: &mut Wired,
    ) -> Result<(), Cause> {
        match self {
            Self::SaveRecord(record) => save(world.store, world.key, record).await?,
            Self::MakePair(pair) => {
                let index = world.net.create_pair(pair).await?;
                wired.host_ifindex = index.host;
                wired.pod_ifindex = index.pod;
            }
            Self::ConfigurePod(pod) => world.net.configure_pod(wired.pod_ifindex, pod).await?,
            Self::Shape { limits, .. } if *limits == Limits::default() => {}
            Self::Shape { ifb, limits } => {
                wired.ifb_ifindex = world.net.set(wired.host_ifindex, ifb, limits).await?;
            }
            Self::SetEndpoint(endpoint) => {
                let endpoint = Endpoint { ifb_ifindex: wired.ifb_ifindex, ..*endpoint };
                world.maps.set_endpoint(wired.host_ifindex, &endpoint)?;
            }
            Self::SetAddresses { entries } => {
                for &(address, identity) in entries {
                    world.maps.set_address(address, identity)?;
                }
            }
            Self::SetNetns(cookie) => world.maps.set_netns(*cookie)?,
            Self::AttachPrograms { ifname } => world.maps.attach_pod(ifname, wired.host_ifindex)?,
            Self::MapPorts(ports) => world.translated.map(world.net, ports).await?,
            Self::OpenHostSide { host, .. } => world.net.open(wired.host_ifindex, host).await?,
        }
        Ok(())
    }

    async fn undo<N: Net, M: PodMaps>(&self, world: &mut World<'_, N, M>, wired: Wired) -> Result<(), Cause> {
        match self {
            Self::SaveRecord(_) => remove(world.store, world.key).await?,
            Self::MakePair(Pair { host, .. }) | Self::OpenHostSide { ifname: host, .. } => {
                world.net.delete(host).await?;
            }
            // Goes with the pair.
            Self::ConfigurePod(_) => {}
            Self::Shape { ifb, limits } => {
                if limits.egress.is_some() || wired.ifb_ifindex != 0 {
                    world.net.clear_egress(ifb).await?;
                }
            }
            Self::SetEndpoint(_) => {
                if wired.host_ifindex != 0 {
                    world.maps.remove_endpoint(wired.host_ifindex)?;
                }
            }
            Self::SetAddresses { entries } => {
                let addresses: Vec<_> = entries.iter().map(|(address, _)| *address).collect();
                for &address in &addresses {
                    world.maps.remove_address(address)?;
                }
                world.maps.forget_flows(&addresses)?;
            }
            Self::SetNetns(cookie) => world.maps.remove_netns(*cookie)?,
            Self::AttachPrograms { ifname } => world.maps.detach_pod(ifname)?,
            Self::MapPorts(ports) => world.translated.unmap(world.net, ports).await?,
        }
        Ok(())
    }
}

/// `fsync` takes milliseconds; the runtime's threads have other work.
async fn on_disk(work: impl FnOnce() -> Result<(), StoreError> + Send + 'static) -> Result<(), StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Interrupted(error.to_string())),
    }
}

pub async fn save(store: &Store, key: &Key, record: &EndpointRecord) -> Result<(), StoreError> {
    let (store, key, record) = (store.clone(), key.clone(), record.clone());
    on_disk(move || store.save(&key, &record)).await
}

pub async fn remove(store: &Store, key: &Key) -> Result<(), StoreError> {
    let (store, key) = (store.clone(), key.clone());
    on_disk(move || store.remove(&key)).await
}
