//! `NodeReport`: what one node makes of the objects.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Beyond it a report says nothing of the kinds whose refusals it has no room for.
pub const MOST_REFUSALS: usize = 100;
/// Of partitions without an address, in one report: no node has so many pods, and each of them is of one partition.
pub const MOST_EXHAUSTED: usize = 1000;
/// Of a message, in characters.
pub const LONGEST_MESSAGE: usize = 1000;

/// What one node makes of the objects. As large with ten thousand of them as with ten. Named after the node and written by its daemon alone; the controller counts all of
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
        printcolumn(name = "Held", json_path = ".spec.held", type_ = "integer"),
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
    /// The generation whose objects `bulkhead policy rollback` holds in force against the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u32>,
    /// By kind, a digest of the versions of all its objects that this node goes by, but for those in `refused`. No entry:
    /// nothing is said of the kind.
    #[serde(default)]
    pub digests: BTreeMap<String, String>,
    /// Versions that this node did not take over.
    #[serde(default)]
    #[schemars(length(max = MOST_REFUSALS))]
    pub refused: Vec<Refusal>,
    /// Partitions that have no free address for pods of this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MOST_EXHAUSTED))]
    pub exhausted: Vec<Exhausted>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exhausted {
    pub partition: String,
    /// That wait for an address.
    #[schemars(range(min = 1))]
    pub pods: u32,
    /// Why the first of them has none.
    #[schemars(length(max = LONGEST_MESSAGE))]
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
    #[schemars(length(max = LONGEST_MESSAGE))]
    pub field: Option<String>,
    #[schemars(length(max = LONGEST_MESSAGE))]
    pub message: String,
}
