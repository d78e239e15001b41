//! The CustomResourceDefinitions of our kinds, made from the types: `deploy/crds` holds them as files.

use crate::objects::{
    AddressBlock, BGPConfiguration, BGPPeer, BandwidthClass, IPReservation, NetworkGroup, NodeReport,
    Partition,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// Formats that the API server knows, of those that the types give; it warns of others.
const KNOWN_FORMATS: [&str; 4] = ["int32", "int64", "date-time", "cidr"];

/// Of every kind of ours, by name.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = [
        BandwidthClass::crd(),
        BGPConfiguration::crd(),
        BGPPeer::crd(),
        AddressBlock::crd(),
        IPReservation::crd(),
        NetworkGroup::crd(),
        NodeReport::crd(),
        Partition::crd(),
    ];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        let schema = version.schema.iter_mut().filter_map(|s| s.open_api_v3_schema.as_mut());
        schema.for_each(without_unknown_formats);
    }
    crds.into()
}

fn without_unknown_formats(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| !KNOWN_FORMATS.contains(&format.as_str()));
    schema.properties.iter_mut().flatten().for_each(|(_, property)| without_unknown_formats(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        without_unknown_formats(items);
    }
}
