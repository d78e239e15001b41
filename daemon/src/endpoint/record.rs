//! One wired pod as it stands on disk, and what follows from it.

use crate::{
    ipam::Family,
    net::{self, IFB_PREFIX, Limits, Mac, Names, Sources, nat},
    store::Key,
};
use bulkhead_api::messages::{
    Attach, Attachment, AttachmentId, EndpointInfo, Interface, PodRef, PodRoute, PortMapping,
    RuntimeBandwidth,
};
use bulkhead_ebpf_abi::{Addr, ENDPOINT_PACED, Endpoint, IDENTITY_LOCAL_POD, Identity};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

/// What the controller knows of a pod: where it belongs and what it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodContext {
    pub partition: String,
    /// The partition's podCIDRs.
    pub ranges: Vec<IpNetwork>,
    /// Those parts of them that are kept for reservations.
    pub fixed_ranges: Vec<IpNetwork>,
    /// What a reservation gives the pod; empty: any.
    pub fixed: Vec<IpAddr>,
    /// Row of the `POLICY` map.
    pub policy: u32,
    pub limits: Limits,
    pub bandwidth_class: Option<String>,
}

/// What pods have from their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeNet {
    /// The least of the uplinks'.
    pub mtu: u32,
    pub sources: Sources,
}

/// What the node says of a pod that is about to be wired.
#[derive(Clone, Copy, Debug)]
pub struct FromNode {
    pub mtu: u32,
    pub netns_cookie: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRecord {
    #[serde(flatten)]
    pub id: AttachmentId,
    pub pod: PodRef,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// What the kernel's programs know it by; 0: wired by a daemon that did not ask.
    #[serde(default)]
    pub netns_cookie: u64,
    pub partition: String,
    pub policy: u32,
    /// At most one of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Identity of each address.
    pub identities: Vec<u32>,
    pub host_interface: String,
    pub host_mac: Mac,
    pub pod_mac: Mac,
    pub mtu: u32,
    #[serde(default)]
    pub limits: Limits,
    /// What the runtime asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_bandwidth: Option<RuntimeBandwidth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_class: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

impl EndpointRecord {
    pub fn new(
        key: &Key,
        request: &Attach,
        pod: &PodContext,
        addresses: Vec<IpAddr>,
        identities: Vec<u32>,
        node: FromNode,
    ) -> Self {
        let names = Names::of(key.as_str());
        Self {
            id: request.id.clone(),
            pod: request.pod.clone(),
            netns: request.netns.clone().into(),
            netns_cookie: node.netns_cookie,
            partition: pod.partition.clone(),
            policy: pod.policy,
            addresses,
            identities,
            host_interface: names.host,
            host_mac: names.host_mac,
            pod_mac: names.pod_mac,
            mtu: node.mtu,
            limits: pod.limits,
            runtime_bandwidth: request.bandwidth,
            bandwidth_class: pod.bandwidth_class.clone(),
            port_mappings: request.port_mappings.clone(),
        }
    }

    /// Ports of the node that lead to it.
    pub fn host_ports(&self) -> nat::HostPorts {
        nat::host_ports(&self.port_mappings, &self.addresses)
    }

    /// Name of the `ifb`, where the pod has one.
    pub fn ifb(&self) -> String {
        let tail = self.host_interface.strip_prefix(net::HOST_PREFIX).unwrap_or(&self.host_interface);
        format!("{IFB_PREFIX}{tail}")
    }

    /// What the runtime is told; follows from the record alone, so that it is the same every time.
    pub fn attachment(&self) -> Attachment {
        let interface =
            |name: &str, mac: Mac| Interface { name: name.into(), mac: mac.to_string(), mtu: self.mtu };
        let route = |&a: &IpAddr| PodRoute { dst: net::default_of(a), gateway: net::gateway_of(a) };
        Attachment {
            host_interface: interface(&self.host_interface, self.host_mac),
            pod_interface: interface(&self.id.ifname, self.pod_mac),
            addresses: self.addresses.iter().map(|&a| net::host_network(a)).collect(),
            routes: self.addresses.iter().map(route).collect(),
        }
    }

    /// The entry of the `ENDPOINT` map.
    pub fn endpoint(&self, ifb_ifindex: u32) -> Endpoint {
        let of = |family: Family| {
            let address = self.addresses.iter().find(|a| family.holds(net::host_network(**a)));
            address.map_or(Addr::default(), |a| Addr::from_ip(*a))
        };
        let identity_of = |address: Addr| {
            let found = self.identity_entries().find(|(a, _)| Addr::from_ip(*a) == address);
            found.map_or(0, |(_, identity)| identity.id)
        };
        Endpoint {
            ipv4: of(Family::V4),
            ipv6: of(Family::V6),
            policies: [self.policy; 2],
            identity_v4: identity_of(of(Family::V4)),
            identity_v6: identity_of(of(Family::V6)),
            ifb_ifindex,
            mac: self.pod_mac.0,
            host_mac: self.host_mac.0,
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            flags: if self.limits == Limits::default() { 0 } else { ENDPOINT_PACED },
        }
    }

    /// The exact entries of its addresses.
    pub fn identity_entries(&self) -> impl Iterator<Item = (IpAddr, Identity)> + '_ {
        let entry = |(&a, &id): (&IpAddr, &u32)| (a, Identity { id, flags: IDENTITY_LOCAL_POD });
        self.addresses.iter().zip(&self.identities).map(entry)
    }
}

impl From<&EndpointRecord> for EndpointInfo {
    fn from(record: &EndpointRecord) -> Self {
        Self {
            id: record.id.clone(),
            pod: record.pod.clone(),
            partition: record.partition.clone(),
            addresses: record.addresses.clone(),
            host_interface: record.host_interface.clone(),
            mac: record.pod_mac.to_string(),
            identity: record.identities.first().copied().unwrap_or_default(),
            bandwidth_class: record.bandwidth_class.clone(),
            ingress_rate: record.limits.ingress.map(|l| l.rate_bits),
            egress_rate: record.limits.egress.map(|l| l.rate_bits),
        }
    }
}
