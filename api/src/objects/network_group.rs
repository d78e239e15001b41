//! `NetworkGroup`: what lies outside the cluster.

#[cfg(feature = "kube")]
use super::ObjectStatus;
use super::schema;
use ipnetwork::IpNetwork;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named list of networks outside the cluster: virtual machines, databases, branch offices.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "NetworkGroup",
        doc = "Networks outside the cluster, by one name.",
        derive = "PartialEq",
        status = "ObjectStatus",
        category = "bulkhead",
        shortname = "netgroup",
        printcolumn(name = "CIDRs", json_path = ".spec.cidrs", type_ = "string"),
        printcolumn(
            name = "Accepted",
            json_path = ".status.conditions[?(@.type=='Accepted')].status",
            type_ = "string"
        ),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkGroupSpec {
    #[schemars(schema_with = "schema::many_cidrs")]
    pub cidrs: Vec<IpNetwork>,
}
