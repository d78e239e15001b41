//! `IPBlock` and `IPReservation`.

#[cfg(feature = "kube")]
use super::ObjectStatus;
use super::schema;
use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A block of a partition's range, claimed by one node. The object's name is made of its CIDR (`10-65-0-0-26`), so that
/// creating it is the lock. Made by the daemons, not by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "IPBlock",
        root = "AddressBlock",
        doc = "A block of a partition's range, claimed by one node.",
        derive = "PartialEq",
        category = "bulkhead",
        shortname = "ipb",
        validation = Rule::new("self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')")
            .message("the name of an IPBlock is its CIDR with `-` for `.`, `:` and `/`"),
        printcolumn(name = "CIDR", json_path = ".spec.cidr", type_ = "string"),
        printcolumn(name = "Partition", json_path = ".spec.partition", type_ = "string"),
        printcolumn(name = "Node", json_path = ".spec.node", type_ = "string"),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = schema::immutable)]
pub struct IPBlockSpec {
    #[schemars(schema_with = "schema::block_cidr")]
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
        doc = "A fixed address for a pod of this namespace.",
        derive = "PartialEq",
        status = "ObjectStatus",
        category = "bulkhead",
        shortname = "ipr",
        printcolumn(name = "Pod", json_path = ".spec.pod", type_ = "string"),
        printcolumn(name = "Addresses", json_path = ".spec.addresses", type_ = "string"),
        printcolumn(
            name = "Accepted",
            json_path = ".status.conditions[?(@.type=='Accepted')].status",
            type_ = "string"
        ),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IPReservationSpec {
    /// One address, or one of each family.
    #[schemars(schema_with = "schema::one_of_each_family")]
    pub addresses: Vec<IpAddr>,
    /// Name of the pod that holds them.
    pub pod: String,
}
