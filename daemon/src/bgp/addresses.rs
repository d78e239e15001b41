//! Single addresses of services: external IPs and those of load balancers, announced from where their traffic policy wants it. Pure.
//!
//! Whoever may write a Service may write any address: only those in the ranges that the administrator names are announced, and
//! none that is a pod's.

use crate::announce::{self, Routes};
use bulkhead_api::objects::BGPConfigurationSpec;
use bulkhead_policy::{
    Named, Objects,
    service::{EndpointSlice, Service},
};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, net::IpAddr};

/// What the source says of services.
#[derive(Clone, Copy)]
pub struct Services<'a> {
    pub services: &'a Named<Service>,
    pub slices: &'a Named<EndpointSlice>,
}

/// The host routes of this node.
pub fn routes(
    node: &str,
    objects: &Objects,
    said: Services<'_>,
    configuration: &BGPConfigurationSpec,
) -> Routes {
    let mut routes = Routes::new();
    if is_off(configuration) {
        return routes;
    }
    let here = with_endpoint_on(node, said.slices);
    for (name, service) in said.services {
        if service.left_out.is_some() || (service.external_local && !here.contains(name.as_str())) {
            continue;
        }
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        let partition = objects.partitions.get(objects.partition_of_namespace(namespace));
        let bgp = partition.and_then(|p| p.spec.bgp.as_ref());
        for address in admitted(service, objects, configuration) {
            let route = || announce::attributes(&configuration.service_communities, bgp);
            routes.entry(address.into()).or_insert_with(route);
        }
    }
    routes
}

/// Those that a daemon before this one announced, while the source has not told of services: nothing is withdrawn for its
/// silence.
pub fn kept(before: &[IpNetwork], objects: &Objects, configuration: &BGPConfigurationSpec) -> Routes {
    let ranges =
        || configuration.advertise_external_ips.iter().chain(&configuration.advertise_load_balancer_ips);
    let is_address = |prefix: &&IpNetwork| prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 };
    let admitted = |prefix: &&IpNetwork| {
        ranges().any(|range| range.contains(prefix.ip())) && !is_pods(&prefix.ip(), objects)
    };
    let kept = before.iter().filter(is_address).filter(admitted);
    kept.map(|prefix| (*prefix, announce::of_services(configuration))).collect()
}

fn is_off(configuration: &BGPConfigurationSpec) -> bool {
    configuration.advertise_external_ips.is_empty() && configuration.advertise_load_balancer_ips.is_empty()
}

fn admitted<'a>(
    service: &'a Service,
    objects: &'a Objects,
    configuration: &'a BGPConfigurationSpec,
) -> impl Iterator<Item = IpAddr> + 'a {
    let of = |addresses: &'a [IpAddr], ranges: &'a [IpNetwork]| {
        addresses.iter().filter(move |address| ranges.iter().any(|range| range.contains(**address)))
    };
    let external = of(&service.external_ips, &configuration.advertise_external_ips);
    let balancers = of(&service.load_balancer_ips, &configuration.advertise_load_balancer_ips);
    external.chain(balancers).filter(|address| !is_pods(address, objects)).copied()
}

/// A host route would draw a pod's traffic to it.
fn is_pods(address: &IpAddr, objects: &Objects) -> bool {
    objects.ranges().any(|(_, range)| range.contains(*address))
}

/// Services that have a ready endpoint on this node.
fn with_endpoint_on<'a>(node: &str, slices: &'a Named<EndpointSlice>) -> BTreeSet<&'a str> {
    let has_one = |slice: &&EndpointSlice| {
        slice.endpoints.iter().any(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(node))
    };
    slices.values().map(|slice| &**slice).filter(has_one).map(|slice| slice.service.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Snapshot, parse};

    const RANGES: &str = "advertiseExternalIPs: [192.0.2.0/24], advertiseLoadBalancerIPs: [198.51.100.0/24, '2001:db8:5::/64']";

    fn configuration(yaml: &str) -> BGPConfigurationSpec {
        serde_saphyr::from_str(&format!("{{asn: 65010, serviceCommunities: ['65010:2'], {yaml}}}")).unwrap()
    }

    fn service(policy: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: front, namespace: web}}\n\
             spec: {{type: LoadBalancer, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{{port: 80}}],\n\
             externalIPs: [192.0.2.7, 203.0.113.7, 10.66.0.7], externalTrafficPolicy: {policy}}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.7, ipMode: VIP}}, {{ip: 192.0.2.8, ipMode: VIP}}]}}}}\n"
        )
    }

    fn slice(ready: bool, node: &str) -> String {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: front-{node}, namespace: web, labels: {{kubernetes.io/service-name: front}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\n\
             endpoints: [{{addresses: [10.66.0.9], nodeName: {node}, conditions: {{ready: {ready}, serving: true, terminating: true}}}}]\n"
        )
    }

    const PARTITION: &str = "---\napiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: web}\n\
        spec: {policyID: 20, namespaces: [web], podCIDRs: [10.66.0.0/16], bgp: {communities: ['65010:66']}}\n";

    fn announced(text: &str, yaml: &str) -> Routes {
        let mut snapshot = Snapshot::default();
        parse("all.yaml", &(text.to_owned() + PARTITION))
            .unwrap()
            .into_iter()
            .for_each(|object| snapshot.insert(object));
        let said = Services { services: &snapshot.services, slices: &snapshot.endpoint_slices };
        routes("n1", &snapshot.policy, said, &configuration(yaml))
    }

    fn prefixes(routes: &Routes) -> Vec<String> {
        routes.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn what_lies_in_the_ranges_is_announced_and_no_pods_address() {
        let routes = announced(&service("Cluster"), RANGES);
        assert_eq!(prefixes(&routes), ["192.0.2.7/32", "198.51.100.7/32"]);
        assert!(routes.values().all(|route| route.communities == [65010 << 16 | 2, 65010 << 16 | 66]));
        assert!(routes.values().all(|route| !route.exclusive), "others announce it too");
        assert_eq!(prefixes(&announced(&service("Cluster"), "")), [""; 0]);
        let all = announced(&service("Cluster"), "advertiseExternalIPs: [10.0.0.0/8]");
        assert_eq!(prefixes(&all), [""; 0], "a pod's address is nobody's to announce so");
    }

    #[test]
    fn with_policy_local_a_ready_endpoint_here_decides() {
        let local = |slice: &str| prefixes(&announced(&(service("Local") + slice), RANGES)).len();
        assert_eq!(local(""), 0);
        assert_eq!(local(&slice(true, "n2")), 0);
        assert_eq!(local(&slice(false, "n1")), 0, "one that is on its way out draws no traffic");
        assert_eq!(local(&slice(true, "n1")), 2);
    }

    #[test]
    fn what_was_announced_stays_while_nobody_tells_of_services() {
        let before: Vec<IpNetwork> = ["192.0.2.7/32", "192.0.2.0/26", "10.66.0.7/32", "203.0.113.7/32"]
            .map(|p| p.parse().unwrap())
            .into();
        let kept = kept(&before, &Objects::default(), &configuration(RANGES));
        assert_eq!(prefixes(&kept), ["192.0.2.7/32"]);
        assert_eq!(kept.into_values().next().unwrap().communities, [65010 << 16 | 2]);
    }
}
