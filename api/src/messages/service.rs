//! `GET /v1/services`.

use super::RuleInfo;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// What pods of this node call, and what they reach by it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// By service, then as it writes them.
    pub frontends: Vec<FrontendInfo>,
    /// What is not translated at the socket.
    pub left: Vec<LeftInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendInfo {
    /// `namespace/name`
    pub service: String,
    /// Its name, or number.
    pub port_name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalIP`
    pub kind: String,
    /// Absent: any node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    pub ipv6: bool,
    pub port: u16,
    /// `tcp`, `udp`
    pub protocol: String,
    /// Seconds that a client keeps its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// None: a call is refused at once.
    pub backends: Vec<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftInfo {
    pub service: String,
    /// An address or a port; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    pub why: String,
}

/// Of `explain`: what a pod of this node reaches instead of the address that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedService {
    /// `namespace/name`
    pub name: String,
    /// As [`FrontendInfo::kind`].
    pub kind: String,
    pub called: SocketAddr,
    /// None: the call is refused at once.
    pub backends: Vec<ExplainedBackend>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedBackend {
    pub address: SocketAddr,
    pub allowed: bool,
    /// The rule that decides; absent: neither end is a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleInfo>,
}
