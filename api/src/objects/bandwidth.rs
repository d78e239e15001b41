//! `BandwidthClass`: what the capacity team sells.

#[cfg(feature = "kube")]
use super::ObjectStatus;
use super::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rate for both directions of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "bulkhead.dev",
        version = "v1alpha1",
        kind = "BandwidthClass",
        doc = "A rate for both directions of a pod.",
        derive = "PartialEq",
        status = "ObjectStatus",
        category = "bulkhead",
        shortname = "bwc",
        printcolumn(name = "Rate", json_path = ".spec.rate", type_ = "string"),
        printcolumn(name = "Burst", json_path = ".spec.burst", type_ = "string"),
        printcolumn(
            name = "Accepted",
            json_path = ".status.conditions[?(@.type=='Accepted')].status",
            type_ = "string"
        ),
        printcolumn(name = "Age", json_path = ".metadata.creationTimestamp", type_ = "date"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BandwidthClassSpec {
    /// Bits a second on the wire (Ethernet bytes), e.g. `1G`.
    pub rate: Quantity,
    /// Bytes that may go out at once; default four milliseconds' worth, at least 128 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Quantity>,
}

impl BandwidthClassSpec {
    /// Bytes that may go out at once. The default is a tick at 250 Hz: of a queue that is woken a tick late nothing is lost.
    pub fn burst_bytes(&self) -> u64 {
        self.burst.map_or_else(|| (self.rate.0 / 8 / 250).max(128 * 1024), |b| b.0)
    }
}

/// The classes that exist without an object; an object of the same name replaces one.
pub const BUILT_IN_CLASSES: [(&str, u64); 4] =
    [("management", 500_000_000), ("low", 1_000_000_000), ("medium", 2_000_000_000), ("high", 4_000_000_000)];
