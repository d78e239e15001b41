//! All services' frontends, kept up to date.

use super::{
    EndpointSlice, Frontend, Left, Service, Stands,
    plan::{Facts, Plan},
    reach::Place,
};
use crate::{Named, NodeInfo, Objects};
use bulkhead_ebpf_abi::{Addr, FrontendKey};
use imbl::ordmap::DiffItem;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Why a frontend that a service claims is not its own.
const TAKEN: &str = "another service has this address and port";

const DNS_PORT: u16 = 53;

/// What decides between two claims.
type Claimant = (Stands, String);

#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    services: Named<Service>,
    slices: Named<EndpointSlice>,
    nodes: Named<NodeInfo>,
    facts: Facts,
    nodes_changed: bool,
    slices_of: BTreeMap<String, BTreeSet<String>>,
    plans: BTreeMap<String, Plan>,
    claims: BTreeMap<FrontendKey, BTreeMap<Claimant, Frontend>>,
}

impl ServiceTable {
    /// Takes over the objects; the frontends that may stand for something else than before.
    pub fn update(
        &mut self,
        node: &str,
        nodes: &Named<NodeInfo>,
        services: &Named<Service>,
        slices: &Named<EndpointSlice>,
    ) -> BTreeSet<FrontendKey> {
        let mut touched: BTreeSet<String> = changed(&self.services, services).cloned().collect();
        touched.extend(self.move_slices(slices));
        self.services.clone_from(services);
        if self.follow_nodes(node, nodes) {
            touched.extend(self.services.keys().cloned());
        }
        touched.into_iter().flat_map(|name| self.plan(&name)).collect()
    }

    /// Services whose slices differ.
    fn move_slices(&mut self, slices: &Named<EndpointSlice>) -> BTreeSet<String> {
        let before = std::mem::replace(&mut self.slices, slices.clone());
        let mut touched = BTreeSet::new();
        for name in changed(&before, slices) {
            if let Some(old) = before.get(name) {
                touched.insert(old.service.clone());
                if let Some(names) = self.slices_of.get_mut(&old.service) {
                    names.remove(name);
                    if names.is_empty() {
                        self.slices_of.remove(&old.service);
                    }
                }
            }
            if let Some(new) = slices.get(name) {
                touched.insert(new.service.clone());
                self.slices_of.entry(new.service.clone()).or_default().insert(name.clone());
            }
        }
        touched
    }

    /// Whether what plans depend on has changed.
    fn follow_nodes(&mut self, node: &str, nodes: &Named<NodeInfo>) -> bool {
        let same = |name: &String| {
            let (old, new) = (self.nodes.get(name), nodes.get(name));
            old.map(|n| (&n.addresses, n.labels.get(ZONE_LABEL)))
                == new.map(|n| (&n.addresses, n.labels.get(ZONE_LABEL)))
        };
        let differ = changed(&self.nodes, nodes).any(|name| !same(name));
        self.nodes.clone_from(nodes);
        if !differ && self.facts.place.node == node {
            return false;
        }
        let zone = nodes.get(node).and_then(|n| n.labels.get(ZONE_LABEL)).map(str::to_owned);
        let addresses = |n: &NodeInfo| n.addresses.iter().copied().filter(|a| !is_link_local(*a)).collect();
        let facts = Facts {
            place: Place { node: node.into(), zone },
            nodes: nodes.iter().map(|(name, n)| (name.clone(), addresses(n))).collect(),
        };
        let changed = facts != self.facts;
        self.nodes_changed |= facts.nodes != self.facts.nodes;
        self.facts = facts;
        changed
    }

    /// Makes the plan of one service anew; the frontends that it or its former plan claims.
    fn plan(&mut self, name: &str) -> BTreeSet<FrontendKey> {
        let names = self.slices_of.get(name).into_iter().flatten();
        let slices: Vec<_> = names.filter_map(|n| self.slices.get(n)).map(Arc::as_ref).collect();
        let plan = self.services.get(name).map(|s| Plan::of(name, s, &slices, &self.facts));
        let old = self.plans.remove(name).unwrap_or_default();
        if plan.as_ref() == Some(&old) {
            self.plans.insert(name.into(), old);
            return BTreeSet::new();
        }
        let mut touched = BTreeSet::new();
        for (key, frontend) in old.frontends {
            touched.insert(key);
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.remove(&(frontend.stands, frontend.service));
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
        let Some(plan) = plan else { return touched };
        for (key, frontend) in &plan.frontends {
            touched.insert(*key);
            let claimant = (frontend.stands, frontend.service.clone());
            // Of one service's ports that claim the same the first has it.
            self.claims.entry(*key).or_default().entry(claimant).or_insert_with(|| frontend.clone());
        }
        self.plans.insert(name.into(), plan);
        touched
    }

    /// What a frontend stands for.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.claims.get(key)?.values().next()
    }

    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        self.claims.iter().filter_map(|(key, claims)| Some((key, claims.values().next()?)))
    }

    /// As a connection of a pod of this node finds it: by its own address, else as a node's port.
    pub fn find(&self, address: IpAddr, proto: u8, port: u16) -> Option<&Frontend> {
        // It means itself; what stands there are the node ports of all.
        if address.to_canonical().is_unspecified() {
            return None;
        }
        let key = |address| FrontendKey { address, port, proto, reserved: 0 };
        self.frontend(&key(Addr::from_ip(address))).or_else(|| {
            let is_node = self.facts.nodes.values().flatten().any(|a| *a == address);
            is_node.then(|| self.frontend(&key(super::any_node(address.is_ipv6()))))?
        })
    }

    /// Whether [`Self::node_addresses`] may say something else than when this was asked last.
    pub fn take_nodes_changed(&mut self) -> bool {
        std::mem::take(&mut self.nodes_changed)
    }

    /// Addresses at which node ports are answered.
    pub fn node_addresses(&self) -> BTreeSet<Addr> {
        self.facts.nodes.values().flatten().map(|a| Addr::from_ip(*a)).collect()
    }

    /// Backends of the service that has this address as its cluster IP and answers DNS there. What else anybody has put
    /// at the address, by an external IP at another port, makes nobody a DNS server.
    pub fn dns_behind(&self, address: IpAddr) -> BTreeSet<SocketAddr> {
        let address = Addr::from_ip(address);
        let key = |port| FrontendKey { address, port, proto: 0, reserved: 0 };
        let last = FrontendKey { proto: u8::MAX, reserved: u8::MAX, ..key(u16::MAX) };
        let in_force =
            self.claims.range(key(0)..=last).filter_map(|(key, claims)| Some((key, claims.values().next()?)));
        let dns = in_force.filter(|(key, f)| key.port == DNS_PORT && f.stands == Stands::ClusterIp);
        dns.flat_map(|(_, f)| f.backends.iter().copied()).collect()
    }

    /// What is not translated, by service.
    pub fn left(&self) -> impl Iterator<Item = (&str, Left)> {
        self.plans.iter().flat_map(|(name, plan)| {
            let lost = plan.frontends.iter().filter(|(key, f)| {
                let winner = self.frontend(key);
                winner.is_some_and(|w| w.service != f.service || w.stands != f.stands)
            });
            let taken = lost.map(|(key, _)| Left { what: shown(key), why: TAKEN });
            plan.left.iter().cloned().chain(taken).map(|left| (name.as_str(), left))
        })
    }
}

fn shown(key: &FrontendKey) -> String {
    SocketAddr::new(key.address.to_ip(), key.port).to_string()
}

/// Names of what differs, without a look at what both share.
fn changed<'a, T: PartialEq>(before: &'a Named<T>, after: &'a Named<T>) -> impl Iterator<Item = &'a String> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) | DiffItem::Update { new: (name, _), .. } => name,
    })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_loopback(),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_loopback(),
    }
}

/// Every API server keeps its own address in it; nobody else's slices of that service are looked at.
const API_SERVERS: &str = "default/kubernetes";

impl Objects {
    /// With the addresses that API servers tell of themselves.
    #[must_use]
    pub fn with_api_servers(mut self, slices: &Named<EndpointSlice>) -> Self {
        let endpoints = slices.get(API_SERVERS).into_iter().flat_map(|slice| &slice.endpoints);
        // In order: the same servers are the same objects, however their slice is written.
        let addresses: BTreeSet<_> = endpoints.map(|endpoint| endpoint.address).collect();
        self.api_servers = addresses.into_iter().collect();
        self
    }

    /// With the backends of the services at the addresses that answer cluster DNS: packets carry theirs.
    #[must_use]
    pub fn with_dns_backends(mut self, services: &ServiceTable) -> Self {
        let behind: BTreeSet<_> = self.cluster_dns.iter().flat_map(|a| services.dns_behind(*a)).collect();
        let addresses: BTreeSet<_> = behind.iter().map(SocketAddr::ip).collect();
        let new: Vec<_> = addresses.into_iter().filter(|a| !self.cluster_dns.contains(a)).collect();
        self.cluster_dns.extend(new);
        let ports: BTreeSet<_> =
            behind.iter().map(SocketAddr::port).filter(|port| *port != DNS_PORT).collect();
        self.cluster_dns_ports = ports.into_iter().collect();
        self
    }
}
