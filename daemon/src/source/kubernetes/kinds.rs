//! What is watched.

use super::Kind;
use bulkhead_api::objects::{GROUP, VERSION};
use kube::core::{ApiResource, GroupVersionKind};

pub struct Watched {
    pub kind: Kind,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    /// Field selector.
    pub fields: Option<&'static str>,
    /// A cluster may lack the definition; then there are none.
    pub optional: bool,
}

const fn watched(kind: Kind, group: &'static str, version: &'static str, plural: &'static str) -> Watched {
    Watched { kind, group, version, plural, fields: None, optional: false }
}

pub const WATCHED: [Watched; 14] = [
    watched(Kind::Partition, GROUP, VERSION, "partitions"),
    watched(Kind::NetworkGroup, GROUP, VERSION, "networkgroups"),
    watched(Kind::BandwidthClass, GROUP, VERSION, "bandwidthclasses"),
    watched(Kind::BgpPeer, GROUP, VERSION, "bgppeers"),
    watched(Kind::BgpConfiguration, GROUP, VERSION, "bgpconfigurations"),
    watched(Kind::IpReservation, GROUP, VERSION, "ipreservations"),
    watched(Kind::IpBlock, GROUP, VERSION, "ipblocks"),
    watched(Kind::Namespace, "", "v1", "namespaces"),
    watched(Kind::Node, "", "v1", "nodes"),
    // Pods that ended have no address any more; those of the host's network are the node to every rule.
    Watched {
        fields: Some("status.phase!=Succeeded,status.phase!=Failed,spec.hostNetwork=false"),
        ..watched(Kind::Pod, "", "v1", "pods")
    },
    watched(Kind::Service, "", "v1", "services"),
    watched(Kind::EndpointSlice, "discovery.k8s.io", "v1", "endpointslices"),
    watched(Kind::NetworkPolicy, "networking.k8s.io", "v1", "networkpolicies"),
    Watched {
        optional: true,
        ..watched(
            Kind::ClusterNetworkPolicy,
            "policy.networking.k8s.io",
            "v1alpha2",
            "clusternetworkpolicies",
        )
    },
];

impl Watched {
    pub fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, &self.kind.to_string());
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }
}

/// `bulkhead.dev/v1alpha1`, or `v1`.
pub fn api_version(kind: Kind) -> String {
    let found = WATCHED.iter().find(|w| w.kind == kind);
    found.map(|w| w.resource().api_version).unwrap_or_default()
}
