//! What wiring does to the kernel's maps and hooks.

use super::{
    Datapath, DatapathError, PodMaps, generation::absent_is_fine, links::Hook, pins::release, values::Raw,
};
use aya::maps::MapError;
use bulkhead_ebpf_abi::{Addr, Delivery, Endpoint, Identity};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::{Ordering, fence},
};

impl PodMaps for Datapath {
    fn set_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        // Whoever is decided by the former half still has the policy of that.
        self.come_to_rest()?;
        self.write_endpoints(&[(ifindex, *endpoint)])
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.leave_endpoint(ifindex);
        let removed = self.take_endpoint(ifindex);
        // Also of what could be done in part.
        self.endpoints_changed()?;
        removed?;
        self.release_share(ifindex)
    }

    fn set_address(&mut self, address: IpAddr, identity: Identity) -> Result<(), DatapathError> {
        if identity.id >= self.sizes.identities {
            let (needed, room) = (identity.id as usize + 1, self.sizes.identities);
            return Err(DatapathError::TooLarge { table: "CLASS", needed, room });
        }
        let addr = Addr::from_ip(address);
        self.come_to_rest()?;
        if self.identities.exact.get(&addr) == Some(&identity) {
            return Ok(());
        }
        self.give_out([identity.id].into())?;
        self.set_exact(addr, identity)
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let addr = Addr::from_ip(address);
        self.leave_address(addr);
        self.remove_exact(addr)
    }

    fn attach_pod(&mut self, ifname: &str, ifindex: u32) -> Result<(), DatapathError> {
        // What enters the pod first: a half-attached pod must not be reachable.
        self.attach(ifname, ifindex, Hook::ToPod)?;
        let attached = self.attach(ifname, ifindex, Hook::FromPod);
        if attached.is_err() {
            // The first error is the one to report.
            let _ = self.detach_pod(ifname);
        }
        attached
    }

    fn detach_pod(&mut self, ifname: &str) -> Result<(), DatapathError> {
        let first = release(&self.pins.link(ifname, Hook::FromPod));
        release(&self.pins.link(ifname, Hook::ToPod)).and(first)
    }

    fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<usize, DatapathError> {
        let gone: BTreeSet<Addr> = addresses.iter().copied().map(Addr::from_ip).collect();
        let mut keys = Vec::new();
        for flow in self.flows() {
            let (key, _) = flow?;
            if gone.contains(&key.low) || gone.contains(&key.high) {
                keys.push(key);
            }
        }
        for key in &keys {
            self.forget(key)?;
        }
        Ok(keys.len())
    }

    fn set_netns(&mut self, cookie: u64) -> Result<(), DatapathError> {
        let failed =
            |source| DatapathError::Map { what: "telling the hooks of a pod's namespace".into(), source };
        self.services.pods.insert(Raw(cookie), Raw(1), 0).map_err(failed)
    }

    fn remove_netns(&mut self, cookie: u64) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { what: "removing a pod's namespace".into(), source };
        absent_is_fine(self.services.pods.remove(&Raw(cookie))).map_err(failed)
    }

    fn netns(&self) -> Result<BTreeSet<u64>, DatapathError> {
        let failed = |source| DatapathError::Map { what: "reading pods' namespaces".into(), source };
        self.services
            .pods
            .iter()
            .map(|e| e.map(|(Raw(cookie), _)| cookie))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }

    fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, DatapathError> {
        self.read_endpoints()
    }

    fn address(&self, address: IpAddr) -> Result<Option<Identity>, DatapathError> {
        match self.exact.get(&Raw(Addr::from_ip(address)), 0) {
            Ok(Raw(identity)) => Ok(Some(identity)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => {
                Err(DatapathError::Map { what: format!("reading the identity of {address}"), source })
            }
        }
    }

    fn delivery(&self, address: IpAddr) -> Result<Option<Delivery>, DatapathError> {
        match self.local.get(&Raw(Addr::from_ip(address)), 0) {
            Ok(Raw(delivery)) => Ok(Some(delivery)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => {
                Err(DatapathError::Map { what: format!("reading the delivery to {address}"), source })
            }
        }
    }

    fn attached(&self) -> Result<BTreeSet<String>, DatapathError> {
        let pinned = self.links_pinned()?;
        let has = |name: &str, hook: Hook| pinned.iter().any(|(n, h)| n == name && *h == hook);
        let both = |name: &&String| has(name, Hook::FromPod) && has(name, Hook::ToPod);
        Ok(pinned.iter().map(|(name, _)| name).filter(both).cloned().collect())
    }
}

impl Datapath {
    /// And the ways to their pods.
    pub(super) fn write_endpoints(&mut self, endpoints: &[(u32, Endpoint)]) -> Result<(), DatapathError> {
        if endpoints.is_empty() {
            return Ok(());
        }
        let written = self.put_endpoints(endpoints);
        // Also of those before one that could not be written.
        self.endpoints_changed()?;
        written
    }

    fn put_endpoints(&mut self, endpoints: &[(u32, Endpoint)]) -> Result<(), DatapathError> {
        for (ifindex, endpoint) in endpoints {
            self.endpoints.insert(Raw(*ifindex), Raw(*endpoint), 0).map_err(|source| DatapathError::Map {
                what: format!("endpoint of interface {ifindex}"),
                source,
            })?;
            let delivery = Delivery::to(*ifindex, endpoint);
            for address in addresses(endpoint) {
                self.local.insert(Raw(address), Raw(delivery), 0).map_err(|source| DatapathError::Map {
                    what: format!("delivery to {}", address.to_ip()),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The entry last: until then the next attempt finds the addresses.
    fn take_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.remove_deliveries(ifindex)?;
        absent_is_fine(self.endpoints.remove(&Raw(ifindex)))
            .map_err(|source| DatapathError::Map { what: format!("endpoint of interface {ifindex}"), source })
    }

    /// Behind every change of an endpoint: on return each packet meets the new one.
    ///
    /// Whichever processor sees the new epoch must see the change, also where stores are not seen in order (arm64). Here all
    /// that was written lies before the fence and the epoch behind it; the hooks order their reads likewise (`kept`).
    fn endpoints_changed(&mut self) -> Result<(), DatapathError> {
        fence(Ordering::SeqCst);
        let failed = |source| DatapathError::Map { what: "telling the hooks of an endpoint".into(), source };
        let epoch = self.endpoint_epoch.get(&0, 0).map_err(failed)?;
        self.endpoint_epoch.set(0, epoch.wrapping_add(1), 0).map_err(failed)
    }

    /// To the addresses of an interface's pod; another pod may have one of them by now.
    fn remove_deliveries(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let endpoint = match self.endpoints.get(&Raw(ifindex), 0) {
            Ok(Raw(endpoint)) => endpoint,
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(source) => {
                let what = format!("reading the endpoint of interface {ifindex}");
                return Err(DatapathError::Map { what, source });
            }
        };
        for address in addresses(&endpoint) {
            if self.delivery(address.to_ip())?.is_some_and(|d| d.ifindex == ifindex) {
                absent_is_fine(self.local.remove(&Raw(address))).map_err(|source| DatapathError::Map {
                    what: format!("delivery to {}", address.to_ip()),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = Addr> {
    [endpoint.ipv4, endpoint.ipv6].into_iter().filter(|a| *a != Addr::default())
}
