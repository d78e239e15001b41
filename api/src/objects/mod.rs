//! The kinds of `bulkhead.dev/v1alpha1`, written the way Kubernetes' own NetworkPolicy is written.
//!
//! Field names are the wire format. A `*Spec` here is a plain struct; with feature `kube` it also derives the
//! custom resource around it (`Partition`, `NetworkGroup`, ...), whose definitions stand in `deploy/crds`.

#![allow(
    clippy::duplicated_attributes,
    reason = "the lint takes equal types of two printed columns for one attribute twice"
)]

mod address;
mod bandwidth;
mod bgp;
mod bgp_session;
mod cluster_network_policy;
mod labels;
mod network_group;
mod network_policy;
mod node_report;
mod partition;
mod quantity;
mod schema;
mod status;
mod validate;

pub use address::*;
pub use bandwidth::*;
pub use bgp::*;
pub use bgp_session::*;
pub use cluster_network_policy::*;
pub use labels::*;
pub use network_group::*;
pub use network_policy::*;
pub use node_report::*;
pub use partition::*;
pub use quantity::*;
pub use status::*;
pub use validate::*;

pub use ipnetwork::IpNetwork;
/// What the types of NetworkPolicy here are read from and written as.
pub use k8s_openapi::api::networking::v1 as upstream;
pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub const GROUP: &str = "bulkhead.dev";
pub const VERSION: &str = "v1alpha1";
pub const API_VERSION: &str = "bulkhead.dev/v1alpha1";

/// Pod annotation: name of a [`BandwidthClassSpec`].
pub const ANNOTATION_BANDWIDTH_CLASS: &str = "bulkhead.dev/bandwidth-class";
/// Pod annotations of Kubernetes' own: bits a second into the pod and out of it. The runtime hands on what they are when the
/// pod is made.
pub const ANNOTATION_INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
pub const ANNOTATION_EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// Node annotation: what the node announces is to go another way. `true`, or names of `BGPPeer` objects.
pub const ANNOTATION_DRAIN_ROUTES: &str = "bulkhead.dev/drain-routes";
/// Pod annotation: the addresses that a reservation of its namespace holds for it, as `10.65.15.7,fd00:65:f::7`.
pub const ANNOTATION_IP: &str = "bulkhead.dev/ip";
/// The partition of namespaces that no `Partition` names.
pub const DEFAULT_PARTITION: &str = "default";
