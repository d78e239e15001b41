//! What is read of a Service and an EndpointSlice.

use bulkhead_api::objects::Protocol;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// One of each IP version at most.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers that hand packets on as they are (`ipMode: VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges` are given.
    pub restricted: bool,
    /// `sessionAffinity: ClientIP`, and for how long.
    pub affinity_seconds: Option<u32>,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// Nothing of it is translated.
    pub left_out: Option<LeftOut>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeftOut {
    Headless,
    ExternalName,
    OtherProxy,
}

impl LeftOut {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Headless => "headless: DNS answers with the pods' own addresses",
            Self::ExternalName => "ExternalName: DNS answers with another name",
            Self::OtherProxy => {
                "the label service.kubernetes.io/service-proxy-name gives it to another proxy"
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Empty where there is one port without a name.
    #[serde(default)]
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    #[serde(default)]
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// `namespace/name`; empty where it is nobody's.
    pub service: String,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    #[serde(default)]
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub address: IpAddr,
    #[serde(default)]
    pub node: Option<String>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Hints: zones whose clients it is for; nodes likewise.
    #[serde(default)]
    pub for_zones: Vec<String>,
    #[serde(default)]
    pub for_nodes: Vec<String>,
}
