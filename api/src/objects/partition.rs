//! `Partition`: the tenant.

#[cfg(feature = "kube")]
use super::PartitionStatus;
use super::{LabelSelector, Quantity, schema};
use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tenant of the cluster: namespaces, their addresses, and what may pass in and out.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "Partition",
        doc = "A tenant of the cluster: namespaces, their addresses, and what may pass in and out.",
        derive = "PartialEq",
        status = "PartitionStatus",
        category = "bulkhead",
        shortname = "part",
        validation = Rule::new("self.metadata.name != 'default'")
            .message("`default` is the partition of all namespaces that no Partition names: choose another name"),
        printcolumn(name = "ID", json_path = ".spec.policyID", type_ = "integer"),
        printcolumn(name = "Isolation", json_path = ".spec.isolation", type_ = "string"),
        printcolumn(name = "Ranges", json_path = ".spec.podCIDRs", type_ = "string"),
        printcolumn(name = "In force", json_path = ".status.nodesInForce", type_ = "integer"),
        printcolumn(name = "Nodes", json_path = ".status.nodes", type_ = "integer"),
        printcolumn(name = "Accepted", json_path = ".status.conditions[?(@.type=='Accepted')].status", type_ = "string"),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = schema::pod_ranges)]
pub struct PartitionSpec {
    /// Number of the partition in flow records and communities; 1 to 65535, unique, never changed.
    #[serde(rename = "policyID")]
    #[schemars(range(min = 1), transform = schema::policy_id)]
    pub policy_id: u16,
    /// Namespaces by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub namespaces: Vec<String>,
    /// Namespaces by label, in addition to those by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Ranges that this partition alone draws pod addresses from.
    #[serde(rename = "podCIDRs", default)]
    #[schemars(schema_with = "schema::ranges")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// Parts of podCIDRs for pods with an IPReservation alone: they are never cut into blocks.
    #[serde(rename = "fixedCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::ranges")]
    pub fixed_cidrs: Vec<IpNetwork>,
    /// Service ranges of the partition: for announcement and explain, never for the verdict.
    #[serde(rename = "serviceCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::service_ranges")]
    pub service_cidrs: Vec<IpNetwork>,
    #[serde(default)]
    pub isolation: Isolation,
    /// Admit cluster DNS on both sides of an isolated partition.
    #[serde(rename = "allowClusterDNS", default = "yes")]
    pub allow_cluster_dns: bool,
    /// Admit the control plane (webhooks): its nodes, and the API servers wherever they are.
    #[serde(default = "yes")]
    pub allow_control_plane: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub ingress: Vec<IngressRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub egress: Vec<EgressRule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<PartitionBandwidth>,
    /// Its pods leave for addresses outside as their node; absent: they are themselves everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<PartitionMasquerade>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<PartitionBgp>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Isolation {
    /// Nothing passes across partitions unless a rule allows it.
    #[default]
    Enforced,
    /// Decides and records as `Enforced`, drops nothing.
    Audit,
    /// Everything passes.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    #[default]
    Allow,
    /// Deny rules are looked at before Allow rules.
    Deny,
}

/// Connections that pods open to addresses outside the cluster come from the address of the interface by which they leave
/// their node. Pods and nodes always see the pod's own address.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionMasquerade {
    /// Addresses outside that see the pod's own address all the same.
    #[serde(rename = "nonMasqueradeCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::ranges")]
    pub non_masquerade_cidrs: Vec<IpNetwork>,
}

/// What becomes of a live connection when this rule no longer allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Established {
    #[default]
    Cut,
    Keep,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// Name in explain, counters and drops; default `ingress[n]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub action: Action,
    /// Sources; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub from: Vec<RulePeer>,
    /// Destination ports; empty: all protocols and ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<RulePort>,
    #[serde(default)]
    pub established: Established,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Name in explain, counters and drops; default `egress[n]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub action: Action,
    /// Destinations; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub to: Vec<RulePeer>,
    /// Destination ports; empty: all protocols and ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<RulePort>,
    #[serde(default)]
    pub established: Established,
}

/// The other end. Exactly one field is set.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = schema::one_peer)]
pub struct RulePeer {
    /// A partition by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Pods of every partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_partitions: Option<Empty>,
    /// A `NetworkGroup` by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlockPeer>,
    /// The cluster's nodes (host-network pods among them).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Empty>,
    /// Nodes of the control plane, and the API servers wherever they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<Empty>,
}

/// `{}`: the peer has no parameters yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlockPeer {
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: IpNetwork,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::exceptions")]
    pub except: Vec<IpNetwork>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    #[default]
    TCP,
    UDP,
    SCTP,
    /// ICMP and ICMPv6; `port` is the type.
    ICMP,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = schema::port_range)]
pub struct RulePort {
    #[serde(default)]
    pub protocol: Protocol,
    /// A port, or an ICMP type; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Last port of the range that begins at `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartitionBandwidth {
    /// Class of pods that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_class: Option<String>,
    /// Classes that pods may name; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_classes: Vec<String>,
    /// Upper limit for any pod, bits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Quantity>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartitionBgp {
    /// Announce this partition's blocks.
    #[serde(default = "yes")]
    pub advertise: bool,
    /// Announce its `serviceCIDRs` too, from every node. Default: no.
    #[serde(default)]
    pub advertise_services: bool,
    /// Nodes that announce its `podCIDRs` whole, besides the blocks that all announce. No discard goes with it: whoever sends these
    /// nodes a packet for an address that no node has gets it back. Default: none; aggregates are the routers' own work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub aggregate_from: Vec<String>,
    /// `65000:100`, or large ones as `65000:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    pub communities: Vec<String>,
    /// Towards routers of our own AS. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_preference: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    /// How many times more our AS number stands in the path, towards routers of another AS.
    #[serde(default)]
    #[schemars(range(max = 16))]
    pub prepend: u8,
}
