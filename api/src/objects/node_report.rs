//! `NodeReport`: what one node makes of the objects.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one node makes of the objects. Named after the node and written by its daemon alone; the controller counts all of
/// them on the objects' own status. Made by the daemons, not by hand.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "NodeReport",
        doc = "What one node makes of the objects.",
        derive = "PartialEq",
        category = "bulkhead",
        shortname = "nrep",
        printcolumn(name = "Version", json_path = ".spec.version", type_ = "string"),
        printcolumn(name = "Generation", json_path = ".spec.generation", type_ = "integer"),
        printcolumn(name = "Refused", json_path = ".spec.refused[*].object", type_ = "string"),
        printcolumn(name = "Exhausted", json_path = ".spec.exhausted[*].partition", type_ = "string"),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportSpec {
    /// Of the daemon.
    pub version: String,
    /// Of the policy that the node's kernel decides by; 0: none yet.
    pub generation: u32,
    /// `Partition/web`: the version of the object (`metadata.generation`) that this node goes by.
    #[serde(default)]
    pub in_force: BTreeMap<String, i64>,
    /// Versions that this node did not take over.
    #[serde(default)]
    pub refused: Vec<Refusal>,
    /// Partitions that have no free address for pods of this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exhausted: Vec<Exhausted>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exhausted {
    pub partition: String,
    /// That wait for an address.
    pub pods: i32,
    /// Why the first of them has none.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// `Partition/web`.
    pub object: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    pub message: String,
}
