//! `IPBlock` and `IPReservation`.

use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A block of a partition's range, claimed by one node. The object's name is [`block_name`] of its CIDR, so that
/// creating it is the lock. Made by the daemons, not by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(group = "bulkhead.dev", version = "v1alpha1", kind = "IPBlock", derive = "PartialEq")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IPBlockSpec {
    #[schemars(with = "String")]
    pub cidr: IpNetwork,
    pub partition: String,
    pub node: String,
}

/// Name of the object that claims this block: `10.65.0.0/26` is `10-65-0-0-26`, `fd00:65::/122` is `fd00-65---122`.
pub fn block_name(cidr: IpNetwork) -> String {
    format!("{}-{}", cidr.network(), cidr.prefix()).replace(['.', ':'], "-")
}

/// A fixed address for a pod of this namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "IPReservation",
        namespaced,
        derive = "PartialEq"
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IPReservationSpec {
    /// One address, or one of each family.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
    /// Name of the pod that holds them.
    pub pod: String,
}
