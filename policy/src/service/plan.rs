//! One service as frontends: what each of its addresses and ports stands for on this node, and what is left to others.

use super::{
    EndpointSlice, Service, ServicePort, any_node,
    reach::{self, Candidate, Place},
};
use bulkhead_api::objects::Protocol;
use bulkhead_ebpf_abi::{Addr, FrontendKey, PROTO_TCP, PROTO_UDP};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Where a frontend of a service comes from. Of two services that claim the same, the first in this order has it: nobody
/// takes a cluster IP away by an external IP that he writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stands {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    NodePort,
}

impl Stands {
    pub const fn text(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::NodePort => "NodePort",
        }
    }
}

pub type Backend = SocketAddr;

/// What becomes of a connection to an address, protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `namespace/name`
    pub service: String,
    /// Name of the service's port.
    pub port: String,
    pub stands: Stands,
    /// In order, without repetition. None: refused at once.
    pub backends: Arc<Vec<Backend>>,
    pub affinity_seconds: Option<u32>,
}

/// What of a service is not translated, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    /// `10.0.0.1`, `port dns`; empty: all of it.
    pub what: String,
    pub why: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub frontends: Vec<(FrontendKey, Frontend)>,
    pub left: Vec<Left>,
}

/// What a plan depends on besides the service: this node, and the addresses of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub place: Place,
    /// By node. Link-local ones are no addresses that others could mean.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl Plan {
    pub fn of(name: &str, service: &Service, slices: &[&EndpointSlice], facts: &Facts) -> Self {
        if let Some(why) = service.left_out {
            return Self { frontends: Vec::new(), left: vec![Left { what: String::new(), why: why.text() }] };
        }
        let mut plan = Self::default();
        for port in &service.ports {
            let Some(proto) = proto(port.protocol) else {
                let what = format!("port {}", port_text(port));
                plan.left
                    .push(Left { what, why: "SCTP is not translated at the socket: kube-proxy does it" });
                continue;
            };
            for cluster_ip in &service.cluster_ips {
                let of_port = OfPort { name, service, port, proto, v6: cluster_ip.is_ipv6(), facts };
                of_port.add(*cluster_ip, slices, &mut plan.frontends);
            }
        }
        plan.left.extend(left_addresses(service));
        plan
    }
}

/// One port of a service in one IP version.
struct OfPort<'a> {
    name: &'a str,
    service: &'a Service,
    port: &'a ServicePort,
    proto: u8,
    v6: bool,
    facts: &'a Facts,
}

impl OfPort<'_> {
    fn add(&self, cluster_ip: IpAddr, slices: &[&EndpointSlice], to: &mut Vec<(FrontendKey, Frontend)>) {
        let endpoints = self.endpoints(slices);
        let place = &self.facts.place;
        let anywhere = backends(reach::anywhere(&endpoints, place));
        let internal = match self.service.internal_local {
            true => backends(reach::on_node(&endpoints, &place.node)),
            false => anywhere.clone(),
        };
        let mut push = |address: Addr, port: u16, stands, backends: &Arc<Vec<Backend>>| {
            let key = FrontendKey { address, port, proto: self.proto, reserved: 0 };
            to.push((key, self.frontend(stands, backends)));
        };
        push(Addr::from_ip(cluster_ip), self.port.port, Stands::ClusterIp, &internal);
        let of_family = |ips: &Vec<IpAddr>| -> Vec<IpAddr> {
            ips.iter().copied().filter(|ip| ip.is_ipv6() == self.v6).collect()
        };
        // A pod that calls what is meant for clients outside is subject to neither traffic policy, as in kube-proxy.
        for ip in of_family(&self.service.external_ips) {
            push(Addr::from_ip(ip), self.port.port, Stands::ExternalIp, &anywhere);
        }
        if !self.service.restricted {
            for ip in of_family(&self.service.load_balancer_ips) {
                push(Addr::from_ip(ip), self.port.port, Stands::LoadBalancer, &anywhere);
            }
        }
        let Some(node_port) = self.port.node_port else { return };
        if !self.service.external_local {
            push(any_node(self.v6), node_port, Stands::NodePort, &anywhere);
            return;
        }
        // At other nodes only what they have themselves; where they have nothing they are left to answer so.
        for (node, addresses) in &self.facts.nodes {
            let own = *node == place.node;
            let there = if own { anywhere.clone() } else { backends(reach::on_node(&endpoints, node)) };
            if !own && there.is_empty() {
                continue;
            }
            for ip in of_family(addresses) {
                push(Addr::from_ip(ip), node_port, Stands::NodePort, &there);
            }
        }
    }

    fn frontend(&self, stands: Stands, backends: &Arc<Vec<Backend>>) -> Frontend {
        Frontend {
            service: self.name.into(),
            port: port_text(self.port),
            stands,
            backends: backends.clone(),
            affinity_seconds: self.service.affinity_seconds,
        }
    }

    /// Each endpoint once, with its port: slices may overlap while the controller moves endpoints between them.
    fn endpoints<'s>(&self, slices: &[&'s EndpointSlice]) -> Vec<Candidate<'s>> {
        let mut all: BTreeMap<Backend, Candidate<'_>> = BTreeMap::new();
        for slice in slices {
            let same = |p: &&super::SlicePort| p.name == self.port.name && p.protocol == self.port.protocol;
            for port in slice.ports.iter().filter(same).map(|p| p.port) {
                for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv6() == self.v6) {
                    let candidate = Candidate { endpoint, port };
                    let known = all.entry(SocketAddr::new(endpoint.address, port)).or_insert(candidate);
                    if (endpoint.ready, endpoint.serving) > (known.endpoint.ready, known.endpoint.serving) {
                        *known = candidate;
                    }
                }
            }
        }
        all.into_values().collect()
    }
}

/// In the candidates' order, which is that of their addresses and ports.
fn backends(chosen: Vec<Candidate<'_>>) -> Arc<Vec<Backend>> {
    Arc::new(chosen.iter().map(|c| SocketAddr::new(c.endpoint.address, c.port)).collect())
}

fn left_addresses(service: &Service) -> Vec<Left> {
    let has = |ip: &IpAddr| service.cluster_ips.iter().any(|c| c.is_ipv6() == ip.is_ipv6());
    let lonely = service.external_ips.iter().chain(&service.load_balancer_ips).filter(|ip| !has(ip));
    let why = "the service has no cluster IP of this IP version";
    let mut left: Vec<_> = lonely.map(|ip| Left { what: ip.to_string(), why }).collect();
    if service.restricted {
        let why = "loadBalancerSourceRanges: kube-proxy and the load balancer check them";
        let all = service.load_balancer_ips.iter().filter(|ip| has(ip));
        left.extend(all.map(|ip| Left { what: ip.to_string(), why }));
    }
    left
}

fn port_text(port: &ServicePort) -> String {
    if port.name.is_empty() { port.port.to_string() } else { port.name.clone() }
}

const fn proto(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::TCP => Some(PROTO_TCP),
        Protocol::UDP => Some(PROTO_UDP),
        _ => None,
    }
}
