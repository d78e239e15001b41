//! `BGPPeer` and `BGPConfiguration`.

use super::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A router, and which nodes peer with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(group = "bulkhead.dev", version = "v1alpha1", kind = "BGPPeer", derive = "PartialEq")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPPeerSpec {
    /// Peer from this node only; absent with no selector: from every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Peer from nodes with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    pub peer_address: IpAddr,
    #[serde(rename = "peerASN")]
    pub peer_asn: u32,
    #[serde(default = "bgp_port")]
    pub port: u16,
    /// RFC 4271 section 4.2: 0, or at least 3. Default 90.
    #[serde(default = "hold_time")]
    pub hold_time_seconds: u16,
    #[serde(default = "connect_retry")]
    pub connect_retry_seconds: u16,
    /// Address families of the session.
    #[serde(default = "both_families")]
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
    kube(group = "bulkhead.dev", version = "v1alpha1", kind = "BGPConfiguration", derive = "PartialEq")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPConfigurationSpec {
    /// The cluster's AS number.
    pub asn: u32,
    /// RFC 4724 restart time; 1 to 4095.
    #[serde(default = "restart_time")]
    pub restart_time_seconds: u16,
    /// RFC 1997 communities on every block, as `65000:100`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
}

fn restart_time() -> u16 {
    60
}
