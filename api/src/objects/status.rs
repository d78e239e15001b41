//! What the cluster made of an object, as its `status` tells it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition: the object can be put into force as it stands, or why not.
pub const ACCEPTED: &str = "Accepted";
/// Condition of a partition: no pod waits for an address of it, or how many do and why.
pub const ADDRESSES_AVAILABLE: &str = "AddressesAvailable";

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartitionStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Version of the object (`metadata.generation`) that the numbers of nodes speak of.
    #[serde(default)]
    pub observed_generation: i64,
    /// Nodes whose kernel decides by this version.
    #[serde(default)]
    pub nodes_in_force: i32,
    /// Nodes with a daemon.
    #[serde(default)]
    pub nodes: i32,
}
