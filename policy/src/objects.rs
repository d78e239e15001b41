//! What the compiler reads: a snapshot of all objects of the cluster that policy can see.

use bulkhead_api::objects::{BandwidthClassSpec, NetworkGroupSpec, PartitionSpec};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr};

/// An object with the file it came from, where the source has files.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced<T> {
    pub spec: T,
    /// `web.yaml`, or `web.yaml:12` (line of the document).
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Objects {
    pub partitions: BTreeMap<String, Sourced<PartitionSpec>>,
    pub network_groups: BTreeMap<String, Sourced<NetworkGroupSpec>>,
    pub bandwidth_classes: BTreeMap<String, Sourced<BandwidthClassSpec>>,
    /// Labels by namespace.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub nodes: BTreeMap<String, NodeInfo>,
    /// Ranges of the default partition (cluster pod ranges).
    pub default_pod_cidrs: Vec<IpNetwork>,
    /// Addresses that answer cluster DNS.
    pub cluster_dns: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeInfo {
    pub addresses: Vec<IpAddr>,
    pub control_plane: bool,
    pub labels: BTreeMap<String, String>,
}
