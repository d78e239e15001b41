//! Service and EndpointSlice objects: what of them says where a connection goes.

use super::document::FieldError;
use crate::service::{Endpoint, EndpointSlice, LeftOut, Service, ServicePort, SlicePort};
use bulkhead_api::objects::Protocol;
use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
use std::{collections::BTreeMap, net::IpAddr};

const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The API server's default.
const AFFINITY_SECONDS: u32 = 10_800;

type Labels = Option<BTreeMap<String, String>>;

pub fn service(service: v1::Service) -> Result<Service, FieldError> {
    let spec = service.spec.unwrap_or_default();
    let left_out = left_out(&service.metadata.labels, &spec);
    let listed = spec.cluster_ips.filter(|ips| !ips.is_empty());
    let cluster_ips = listed.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let cluster_ips = if left_out.is_some() { Vec::new() } else { cluster_ips };
    let ingress = service.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
    // A load balancer in mode Proxy is itself the client that nodes see.
    let vips = ingress.into_iter().filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip);
    let timeout = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
    let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    Ok(Service {
        cluster_ips: addresses("spec.clusterIPs", cluster_ips.into_iter().filter(|ip| !ip.is_empty()))?,
        ports: ports(spec.ports.unwrap_or_default())?,
        external_ips: addresses("spec.externalIPs", spec.external_ips.unwrap_or_default().into_iter())?,
        load_balancer_ips: addresses("status.loadBalancer.ingress", vips)?,
        restricted: spec.load_balancer_source_ranges.is_some_and(|r| !r.is_empty()),
        affinity_seconds: affinity.then(|| {
            timeout.and_then(|t| u32::try_from(t).ok()).filter(|t| *t != 0).unwrap_or(AFFINITY_SECONDS)
        }),
        external_local: is_local(&spec.external_traffic_policy),
        internal_local: is_local(&spec.internal_traffic_policy),
        left_out,
    })
}

fn left_out(labels: &Labels, spec: &v1::ServiceSpec) -> Option<LeftOut> {
    let has = |label| labels.as_ref().is_some_and(|l| l.contains_key(label));
    if has(OTHER_PROXY_LABEL) {
        Some(LeftOut::OtherProxy)
    } else if spec.type_.as_deref() == Some("ExternalName") {
        Some(LeftOut::ExternalName)
    } else if has(HEADLESS_LABEL) || spec.cluster_ip.as_deref() == Some("None") {
        Some(LeftOut::Headless)
    } else {
        None
    }
}

fn ports(ports: Vec<v1::ServicePort>) -> Result<Vec<ServicePort>, FieldError> {
    let read = |(i, p): (usize, v1::ServicePort)| {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let node_port = p.node_port.filter(|port| *port != 0);
        Ok(ServicePort {
            name: p.name.unwrap_or_default(),
            protocol: protocol(p.protocol.as_deref(), || field("protocol"))?,
            port: port(p.port, || field("port"))?,
            node_port: node_port.map(|p| port(p, || field("nodePort"))).transpose()?,
        })
    };
    ports.into_iter().enumerate().map(read).collect()
}

pub fn endpoint_slice(slice: discovery::EndpointSlice, namespace: &str) -> Result<EndpointSlice, FieldError> {
    let service = slice.metadata.labels.and_then(|mut l| l.remove(SERVICE_NAME_LABEL));
    let mut read = EndpointSlice {
        service: service.map(|name| format!("{namespace}/{name}")).unwrap_or_default(),
        ..EndpointSlice::default()
    };
    if slice.address_type == "FQDN" {
        return Ok(read);
    }
    for (i, p) in slice.ports.unwrap_or_default().into_iter().enumerate() {
        // No port is all ports: none of a service's.
        let Some(number) = p.port else { continue };
        read.ports.push(SlicePort {
            name: p.name.unwrap_or_default(),
            protocol: protocol(p.protocol.as_deref(), || format!("ports[{i}].protocol"))?,
            port: port(number, || format!("ports[{i}].port"))?,
        });
    }
    for (i, e) in slice.endpoints.into_iter().enumerate() {
        read.endpoints.extend(endpoint(e, i)?);
    }
    Ok(read)
}

/// All its addresses are the same pod's, and the first is the one that counts, as in kube-proxy.
fn endpoint(endpoint: discovery::Endpoint, index: usize) -> Result<Option<Endpoint>, FieldError> {
    let Some(first) = endpoint.addresses.into_iter().next() else { return Ok(None) };
    let (mut for_zones, mut for_nodes) = (Vec::new(), Vec::new());
    if let Some(hints) = endpoint.hints {
        for_zones.extend(hints.for_zones.into_iter().flatten().map(|z| z.name));
        for_nodes.extend(hints.for_nodes.into_iter().flatten().map(|n| n.name));
    }
    let conditions = endpoint.conditions.unwrap_or_default();
    Ok(Some(Endpoint {
        address: address(&first, || format!("endpoints[{index}].addresses[0]"))?,
        node: endpoint.node_name,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        for_zones,
        for_nodes,
    }))
}

fn addresses(field: &str, texts: impl Iterator<Item = String>) -> Result<Vec<IpAddr>, FieldError> {
    texts.enumerate().map(|(i, text)| address(&text, || format!("{field}[{i}]"))).collect()
}

fn address(text: &str, field: impl Fn() -> String) -> Result<IpAddr, FieldError> {
    text.parse().map_err(|_| (Some(field()), format!("`{text}` is not an IP address")))
}

fn port(number: i32, field: impl Fn() -> String) -> Result<u16, FieldError> {
    u16::try_from(number)
        .ok()
        .filter(|p| *p != 0)
        .ok_or_else(|| (Some(field()), format!("{number} is not a port: ports go from 1 to 65535")))
}

fn protocol(text: Option<&str>, field: impl Fn() -> String) -> Result<Protocol, FieldError> {
    match text {
        None | Some("TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(Protocol::SCTP),
        Some(other) => Err((Some(field()), format!("`{other}` is no protocol here: use TCP, UDP or SCTP"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Object, parse};

    fn read(spec: &str) -> Service {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n{spec}");
        match parse("a.yaml", &text).unwrap().as_slice() {
            [Object::Service(key, service)] if key == "shop/web" => Service::clone(service),
            other => panic!("{other:?}"),
        }
    }

    fn refusal(text: &str) -> String {
        parse("a.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn what_has_no_address_of_its_own_is_left_out() {
        assert_eq!(read("spec: {clusterIP: None}").left_out, Some(LeftOut::Headless));
        let named = "spec: {type: ExternalName, externalName: db.example.com}";
        assert_eq!(read(named).left_out, Some(LeftOut::ExternalName));
        let plain = read("spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 80}]}");
        assert_eq!((plain.left_out, plain.affinity_seconds), (None, Some(10_800)));
        assert_eq!(plain.cluster_ips, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn of_an_endpoint_the_first_address_counts_and_what_is_not_said_is_ready() {
        let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
            metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
            ports: [{name: http, port: 80}, {name: all}]\nendpoints: [{addresses: [10.0.0.1, 10.0.0.2]}, {addresses: []}]\n";
        let objects = parse("a.yaml", text).unwrap();
        let [Object::EndpointSlice(key, slice)] = objects.as_slice() else { panic!("{objects:?}") };
        assert_eq!((key.as_str(), slice.service.as_str(), slice.ports.len()), ("shop/web-1", "shop/web", 1));
        let [endpoint] = slice.endpoints.as_slice() else { panic!("{slice:?}") };
        assert_eq!(endpoint.address, IpAddr::from([10, 0, 0, 1]));
        assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";
        let said = refusal(&format!("{service}spec: {{clusterIP: 10.96.0.1, ports: [{{port: 70000}}]}}\n"));
        assert!(said.contains("Service/web: spec.ports[0].port: 70000 is not a port"), "{said}");
        let said = refusal(&format!("{service}spec: {{clusterIP: here}}\n"));
        assert!(said.contains("spec.clusterIPs[0]: `here` is not an IP address"), "{said}");
    }
}
