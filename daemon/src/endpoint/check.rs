//! CHECK: what kernel and maps hold of a pod, compared with its record and with what the runtime was told.

use super::{EndpointRecord, effect::Wired};
use crate::{
    datapath::{DatapathError, PodMaps},
    net::{self, HostState, Link, Net, NetError, PodState, nat},
};
use bulkhead_ebpf_abi::{Delivery, Endpoint, Identity};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, fmt, net::IpAddr, path::Path};

/// What was found of a pod.
#[derive(Clone, Debug)]
pub struct Found {
    pub host: Option<Link>,
    pub host_state: HostState,
    pub pod: Option<PodState>,
    pub rates: (Option<u64>, Option<u64>),
    pub endpoint: Option<Endpoint>,
    pub identities: BTreeMap<IpAddr, Identity>,
    pub deliveries: BTreeMap<IpAddr, Delivery>,
    pub attached: bool,
    /// Of a pod with host ports.
    pub translated: Option<nat::Found>,
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Maps(#[from] DatapathError),
}

/// Looks; changes nothing.
pub async fn find<N: Net, M: PodMaps>(
    net: &N,
    maps: &M,
    record: &EndpointRecord,
    netns: &Path,
) -> Result<Found, FindError> {
    let host = net.find(&record.host_interface).await?;
    let index = host.as_ref().map(|l| l.index);
    let (host_state, rates) = match index {
        Some(index) => (net.inspect_host(index).await?, net.rates(index, &record.ifb()).await?),
        None => Default::default(),
    };
    let (mut identities, mut deliveries) = (BTreeMap::new(), BTreeMap::new());
    for &address in &record.addresses {
        if let Some(identity) = maps.address(address)? {
            identities.insert(address, identity);
        }
        if let Some(delivery) = maps.delivery(address)? {
            deliveries.insert(address, delivery);
        }
    }
    Ok(Found {
        pod: net.inspect_pod(netns, &record.id.ifname).await?,
        endpoint: match index {
            Some(index) => maps.endpoints()?.remove(&index),
            None => None,
        },
        identities,
        deliveries,
        attached: maps.attached()?.contains(&record.host_interface),
        translated: if record.port_mappings.is_empty() { None } else { Some(net.translated().await?) },
        host,
        host_state,
        rates,
    })
}

/// Every difference, in words. `told`: the addresses of the result that the runtime holds.
pub fn mismatches(record: &EndpointRecord, wired: Wired, told: &[IpNetwork], found: &Found) -> Vec<String> {
    let mut list = Mismatches::default();
    for address in told {
        let known = record.addresses.iter().any(|a| net::host_network(*a) == *address);
        list.require(known, || format!("the runtime holds {address}, the record does not"));
    }
    for &address in &record.addresses {
        let known = told.is_empty() || told.contains(&net::host_network(address));
        list.require(known, || format!("the record holds {address}, the runtime does not"));
    }
    host_side(record, wired, found, &mut list);
    pod_side(record, found, &mut list);
    policy(record, wired, found, &mut list);
    let ports = record.host_ports();
    let missing = found.translated.iter().flat_map(|t| t.missing(&ports));
    list.0.extend(missing.map(|port| format!("the host port {port} does not lead to the pod")));
    list.0
}

#[derive(Default)]
struct Mismatches(Vec<String>);

impl Mismatches {
    fn require(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.0.push(text());
        }
    }

    fn same<T: PartialEq + fmt::Debug>(&mut self, what: impl fmt::Display, found: T, expected: T) {
        self.require(found == expected, || format!("{what} is {found:?}, not {expected:?}"));
    }
}

fn link(what: &str, found: &Link, mac: net::Mac, mtu: u32, list: &mut Mismatches) {
    list.require(found.up, || format!("{what} is down"));
    list.same(format_args!("MAC of {what}"), found.mac, mac);
    list.same(format_args!("MTU of {what}"), found.mtu, mtu);
}

fn host_side(record: &EndpointRecord, wired: Wired, found: &Found, list: &mut Mismatches) {
    let name = &record.host_interface;
    let Some(host) = &found.host else {
        list.0.push(format!("host interface {name} is missing"));
        return;
    };
    list.same(format_args!("index of {name}"), host.index, wired.host_ifindex);
    link(name, host, record.host_mac, record.mtu, list);
    for &address in &record.addresses {
        let routed = found.host_state.routes.contains(&net::host_network(address));
        list.require(routed, || format!("the route to {address} over {name} is missing"));
        let neighbour = found.host_state.neighbours.get(&address).copied();
        list.same(format_args!("neighbour {address} on {name}"), neighbour, Some(record.pod_mac));
    }
    // The kernel holds whole bytes a second.
    let rate = |limit: Option<net::Limit>| limit.map(|l| l.rate_bits / 8 * 8);
    list.same("rate into the pod", found.rates.0, rate(record.limits.ingress));
    list.same("rate out of the pod", found.rates.1, rate(record.limits.egress));
}

fn pod_side(record: &EndpointRecord, found: &Found, list: &mut Mismatches) {
    let name = format!("{} in the pod", record.id.ifname);
    let Some(pod) = &found.pod else {
        list.0.push(format!("{name} is missing"));
        return;
    };
    link(&name, &pod.link, record.pod_mac, record.mtu, list);
    for &address in &record.addresses {
        let present = pod.addresses.contains(&net::host_network(address));
        list.require(present, || format!("{name} has no address {address}"));
        let gateway = net::gateway_of(address);
        let routed = pod.routes.contains(&(net::default_of(address), Some(gateway)));
        list.require(routed, || format!("{name} has no default route by {gateway}"));
        let reachable = gateway.is_ipv6() || pod.routes.contains(&(net::host_network(gateway), None));
        list.require(reachable, || format!("{name} has no route to its gateway {gateway}"));
        let neighbour = pod.neighbours.get(&gateway).copied();
        list.same(format_args!("neighbour {gateway} of {name}"), neighbour, Some(record.host_mac));
    }
}

fn policy(record: &EndpointRecord, wired: Wired, found: &Found, list: &mut Mismatches) {
    list.require(found.attached, || format!("{} has no programs attached", record.host_interface));
    let endpoint = record.endpoint(wired.ifb_ifindex);
    list.same("endpoint entry", found.endpoint, Some(endpoint));
    for (address, entry) in record.identity_entries() {
        let identity = found.identities.get(&address).copied();
        list.same(format_args!("identity of {address}"), identity, Some(entry));
        let delivery = found.deliveries.get(&address).copied();
        let expected = Delivery::to(wired.host_ifindex, &endpoint);
        list.same(format_args!("delivery to {address}"), delivery, Some(expected));
    }
}
