//! `NetworkGroup`: what lies outside the cluster.

use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named list of networks outside the cluster: virtual machines, databases, branch offices.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(group = "bulkhead.dev", version = "v1alpha1", kind = "NetworkGroup", derive = "PartialEq")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkGroupSpec {
    #[schemars(with = "Vec<String>")]
    pub cidrs: Vec<IpNetwork>,
}
