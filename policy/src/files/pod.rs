//! A Pod object: what rules and limits can see of it.

use super::{PodInfo, document::FieldError};
use crate::{ContainerPort, Pod, PodUid};
use bulkhead_api::objects::{ANNOTATION_EGRESS_BANDWIDTH, ANNOTATION_INGRESS_BANDWIDTH, Protocol};
use k8s_openapi::api::core::v1;
use std::{net::IpAddr, sync::Arc};

/// Of a pod that a kubelet has from a file: the uid that it goes by there, and which the runtime is told.
const ANNOTATION_STATIC: &str = "kubernetes.io/config.hash";

/// How annotations begin that say something to us, and those besides.
const OWN: &str = "bulkhead.dev/";
const OTHERS: [&str; 2] = [ANNOTATION_INGRESS_BANDWIDTH, ANNOTATION_EGRESS_BANDWIDTH];
/// Phases in which a pod has no network any more: its addresses may be another's.
const ENDED: [&str; 2] = ["Succeeded", "Failed"];

pub fn info(pod: v1::Pod) -> Result<PodInfo, FieldError> {
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let uid = annotations.get(ANNOTATION_STATIC).or(pod.metadata.uid.as_ref());
    let uid = uid.and_then(|uid| PodUid::parse(uid));
    let spec = pod.spec.unwrap_or_default();
    let host_network = spec.host_network.unwrap_or_default();
    let policy = Arc::new(Pod {
        uid,
        labels: pod.metadata.labels.unwrap_or_default().into(),
        addresses: pod.status.map_or_else(|| Ok(Vec::new()), addresses)?,
        ports: ports(&spec)?,
        node: spec.node_name.map(Into::into),
        host_network,
    });
    let told = |key: &str| key.starts_with(OWN) || OTHERS.contains(&key);
    let annotations = annotations.into_iter().filter(|(key, _)| told(key)).collect();
    Ok(PodInfo { annotations, policy })
}

fn addresses(status: v1::PodStatus) -> Result<Vec<IpAddr>, FieldError> {
    if status.phase.is_some_and(|phase| ENDED.contains(&phase.as_str())) {
        return Ok(Vec::new());
    }
    let listed = status.pod_ips.unwrap_or_default().into_iter().map(|a| a.ip);
    let mut written: Vec<(String, String)> =
        listed.enumerate().map(|(i, ip)| (format!("status.podIPs[{i}].ip"), ip)).collect();
    if written.is_empty() {
        written.extend(status.pod_ip.map(|ip| ("status.podIP".to_string(), ip)));
    }
    let parse = |(field, ip): (String, String)| {
        ip.parse().map_err(|_| (Some(field), format!("`{ip}` is not an IP address")))
    };
    let mut addresses = written.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    addresses.shrink_to_fit();
    Ok(addresses)
}

/// Those that have a name; of side cars (init containers that go on running) too.
fn ports(spec: &v1::PodSpec) -> Result<Vec<ContainerPort>, FieldError> {
    let side_cars = spec.init_containers.iter().flatten().enumerate();
    let side_cars = side_cars.filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"));
    let side_cars = side_cars.map(|(i, c)| (format!("spec.initContainers[{i}]"), c));
    let containers = spec.containers.iter().enumerate();
    let containers = containers.map(|(i, c)| (format!("spec.containers[{i}]"), c));
    let mut ports = Vec::new();
    for (path, container) in containers.chain(side_cars) {
        for (i, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = port.name.clone() else { continue };
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::TCP,
                Some("UDP") => Protocol::UDP,
                Some("SCTP") => Protocol::SCTP,
                Some(other) => {
                    let message = format!("`{other}` is no protocol here: use TCP, UDP or SCTP");
                    return Err((Some(format!("{path}.ports[{i}].protocol")), message));
                }
            };
            let port = u16::try_from(port.container_port).ok().filter(|p| *p != 0).ok_or_else(|| {
                let message = format!("{} is not a port: ports go from 1 to 65535", port.container_port);
                (Some(format!("{path}.ports[{i}].containerPort")), message)
            })?;
            ports.push(ContainerPort { name, protocol, port });
        }
    }
    ports.shrink_to_fit();
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn uid(metadata: serde_json::Value) -> Option<PodUid> {
        info(serde_json::from_value(json!({"metadata": metadata})).unwrap()).unwrap().policy.uid
    }

    #[test]
    fn a_pod_of_a_file_goes_by_the_uid_that_its_runtime_is_told() {
        let (api, of_file) = ("0b9d3b5e-7a54-4c9c-9d2c-0a1b2c3d4e5f", "6f1ed002ab5595859014ebf0951522d9");
        assert_eq!(uid(json!({"name": "a", "uid": api})), PodUid::parse(api));
        let mirror = json!({"name": "a", "uid": api, "annotations": {ANNOTATION_STATIC: of_file}});
        assert!(uid(mirror) == PodUid::parse(of_file) && PodUid::parse(of_file).is_some());
        assert_eq!(uid(json!({"name": "a", "uid": "made by hand"})), None);
    }
}
