//! `BGPPeer` and `BGPConfiguration`.

#[cfg(feature = "kube")]
use super::ObjectStatus;
use super::{BGPSession, IpNetwork, LabelSelector, schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// A router, and which nodes peer with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "BGPPeer",
        doc = "A router, and which nodes peer with it.",
        derive = "PartialEq",
        status = "ObjectStatus",
        category = "bulkhead",
        shortname = "bgpp",
        validation = Rule::new("[has(self.spec.peerAddress), has(self.spec.peerRange), has(self.spec.interface)].filter(x, x).size() == 1")
            .message("set one of peerAddress, peerRange and interface"),
        printcolumn(name = "Address", json_path = ".spec.peerAddress", type_ = "string"),
        printcolumn(name = "Interface", json_path = ".spec.interface", type_ = "string", priority = 1),
        printcolumn(name = "ASN", json_path = ".spec.peerASN", type_ = "integer"),
        printcolumn(name = "Node", json_path = ".spec.node", type_ = "string"),
        printcolumn(
            name = "Accepted",
            json_path = ".status.conditions[?(@.type=='Accepted')].status",
            type_ = "string"
        ),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPPeerSpec {
    /// Peer from this node only; absent with no selector: from every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Peer from nodes with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The router's address; or `peerRange`, or `interface`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ip")]
    pub peer_address: Option<IpAddr>,
    /// Every router with an address of this range may connect, and none is dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidr")]
    pub peer_range: Option<IpNetwork>,
    /// Unnumbered: the router that advertises itself on this interface (RFC 4861), over link-local addresses. Routes of both
    /// IP versions have a link-local next hop (RFC 8950).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[^/\\s]+$"))]
    pub interface: Option<String>,
    /// One of `peerGroups` of the BGPConfiguration: what `session` does not say is as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default)]
    pub session: BGPSession,
    #[serde(rename = "peerASN")]
    #[schemars(range(min = 1))]
    pub peer_asn: u32,
    #[serde(default = "bgp_port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// RFC 4271 section 4.2: 0, or at least 3. Default 90.
    #[serde(default = "hold_time")]
    #[schemars(transform = schema::hold_time)]
    pub hold_time_seconds: u16,
    #[serde(default = "connect_retry")]
    pub connect_retry_seconds: u16,
    /// Address families of the session.
    #[serde(default = "both_families")]
    #[schemars(length(min = 1, max = 2))]
    pub families: Vec<AddressFamily>,
}

fn bgp_port() -> u16 {
    179
}
fn hold_time() -> u16 {
    90
}
fn connect_retry() -> u16 {
    5
}
fn both_families() -> Vec<AddressFamily> {
    vec![AddressFamily::IPv4, AddressFamily::IPv6]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AddressFamily {
    IPv4,
    IPv6,
}

/// What holds for every session of the cluster. One object, named `default`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "BGPConfiguration",
        doc = "What holds for every BGP session of the cluster.",
        derive = "PartialEq",
        status = "ObjectStatus",
        category = "bulkhead",
        shortname = "bgpc",
        validation = Rule::new("self.metadata.name == 'default'")
            .message("there is one BGPConfiguration, and its name is `default`"),
        printcolumn(name = "ASN", json_path = ".spec.asn", type_ = "integer"),
        printcolumn(name = "Accepted", json_path = ".status.conditions[?(@.type=='Accepted')].status", type_ = "string"),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPConfigurationSpec {
    /// The cluster's AS number.
    #[schemars(range(min = 1))]
    pub asn: u32,
    /// RFC 4724 restart time; 1 to 4095.
    #[serde(default = "restart_time")]
    #[schemars(range(min = 1, max = 4095))]
    pub restart_time_seconds: u16,
    /// Communities on every block: `65000:100`, or large ones as `65000:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    pub communities: Vec<String>,
    /// Service ranges that every node announces, besides the `serviceCIDRs` of partitions with `bgp.advertiseServices`. A
    /// router that has several nodes for a range spreads connections over them.
    #[serde(rename = "advertiseServiceCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::service_ranges")]
    pub advertise_service_cidrs: Vec<IpNetwork>,
    /// External IPs of services are announced, as host routes, as far as they lie in these ranges: by every node, with
    /// `externalTrafficPolicy: Local` by those that have a ready endpoint. What lies in the range of a partition is not.
    #[serde(rename = "advertiseExternalIPs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::service_ranges")]
    pub advertise_external_ips: Vec<IpNetwork>,
    /// The same of addresses of load balancers.
    #[serde(rename = "advertiseLoadBalancerIPs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::service_ranges")]
    pub advertise_load_balancer_ips: Vec<IpNetwork>,
    /// The same on every service range and address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    pub service_communities: Vec<String>,
    /// Monitoring stations (BMP, RFC 7854) that every node tells of its sessions and of what they received.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub monitoring: Vec<BGPMonitoring>,
    /// Settings that peers share, by the name that they give as their `group`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub peer_groups: BTreeMap<String, BGPSession>,
}

/// A collector of BMP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPMonitoring {
    #[schemars(schema_with = "schema::ip")]
    pub address: IpAddr,
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Between two statistics reports. Default 60; 0: none.
    #[serde(default = "statistics_seconds")]
    pub statistics_seconds: u16,
}

fn statistics_seconds() -> u16 {
    60
}

fn restart_time() -> u16 {
    60
}
