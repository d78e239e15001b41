//! The table of services against a model that looks at all objects for each question, and against itself made from scratch.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use bulkhead_api::objects::Protocol;
use bulkhead_policy::{
    Named, NodeInfo, Objects,
    service::{Endpoint, EndpointSlice, Frontend, LeftOut, Service, ServicePort, ServiceTable, SlicePort},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

const NODE: &str = "n1";
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const TCP: u8 = 6;
const UDP: u8 = 17;

#[derive(Clone, Debug, Default)]
struct World {
    nodes: Named<NodeInfo>,
    services: Named<Service>,
    slices: Named<EndpointSlice>,
}

fn ip(v6: bool, net: u8, host: u8) -> IpAddr {
    match v6 {
        true => Ipv6Addr::new(0xfd00, 0, 0, net.into(), 0, 0, 0, host.into()).into(),
        false => Ipv4Addr::new(10, net, 0, host).into(),
    }
}

/// What stands for a connection to `to`, by looking at everything: `None`: nothing.
fn naive(world: &World, to: SocketAddr, proto: u8) -> Option<BTreeSet<SocketAddr>> {
    let node_at =
        world.nodes.iter().find(|(_, n)| n.addresses.contains(&to.ip())).map(|(name, _)| name.as_str());
    let mut claims = BTreeMap::new();
    for (name, service) in world.services.iter().filter(|(_, s)| s.left_out.is_none()) {
        if !service.cluster_ips.iter().any(|c| c.is_ipv6() == to.is_ipv6()) {
            continue;
        }
        let protocol = if proto == TCP { Protocol::TCP } else { Protocol::UDP };
        for (index, port) in service.ports.iter().enumerate().filter(|(_, p)| p.protocol == protocol) {
            let all = endpoints(world, name, port, to.is_ipv6());
            let mut claim = |rank: u8, backends| drop(claims.insert((rank, name.clone(), index), backends));
            let anywhere = || cluster(world, &all);
            if port.port == to.port() {
                if service.cluster_ips.contains(&to.ip()) {
                    claim(0, if service.internal_local { local(&all, NODE) } else { anywhere() });
                } else if service.load_balancer_ips.contains(&to.ip()) && !service.restricted {
                    claim(1, anywhere());
                } else if service.external_ips.contains(&to.ip()) {
                    claim(2, anywhere());
                }
            }
            if port.node_port == Some(to.port())
                && let Some(node) = node_at
            {
                // A node's own port with policy Local comes before what is for any node.
                let backends =
                    if node == NODE || !service.external_local { anywhere() } else { local(&all, node) };
                if !service.external_local {
                    claim(4, backends);
                } else if node == NODE || !backends.is_empty() {
                    claim(3, backends);
                }
            }
        }
    }
    claims.into_values().next()
}

type Found = BTreeMap<SocketAddr, Endpoint>;

fn endpoints(world: &World, service: &str, port: &ServicePort, v6: bool) -> Found {
    let mut found = Found::new();
    for slice in world.slices.values().filter(|s| s.service == service) {
        for number in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for e in slice.endpoints.iter().filter(|e| e.address.is_ipv6() == v6) {
                let at = SocketAddr::new(e.address, number.port);
                let better = |old: &Endpoint| (e.ready, e.serving) > (old.ready, old.serving);
                if found.get(&at).is_none_or(better) {
                    found.insert(at, e.clone());
                }
            }
        }
    }
    found
}

fn which(all: &Found, wanted: impl Fn(&Endpoint) -> bool) -> BTreeSet<SocketAddr> {
    all.iter().filter(|(_, e)| wanted(e)).map(|(at, _)| *at).collect()
}

fn cluster(world: &World, all: &Found) -> BTreeSet<SocketAddr> {
    let zone =
        world.nodes.get(NODE).and_then(|n| n.labels.get("topology.kubernetes.io/zone").map(str::to_owned));
    let ready = which(all, |e| e.ready);
    if ready.is_empty() {
        return which(all, |e| e.serving && e.terminating);
    }
    let hinted = |hints: fn(&Endpoint) -> &Vec<String>, here: Option<&String>| {
        let complete = all.values().filter(|e| e.ready).all(|e| !hints(e).is_empty());
        let near = which(all, |e| e.ready && here.is_some_and(|h| hints(e).contains(h)));
        (complete && !near.is_empty()).then_some(near)
    };
    let by_node = hinted(|e| &e.for_nodes, Some(&NODE.to_string()));
    by_node.or_else(|| hinted(|e| &e.for_zones, zone.as_ref())).unwrap_or(ready)
}

fn local(all: &Found, node: &str) -> BTreeSet<SocketAddr> {
    let on = |e: &Endpoint| e.node.as_deref() == Some(node);
    let ready = which(all, |e| on(e) && e.ready);
    if ready.is_empty() { which(all, |e| on(e) && e.serving && e.terminating) } else { ready }
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Service>),
    Slice(u8, Option<EndpointSlice>),
    Node(u8, Option<NodeInfo>),
}

fn service(n: u8) -> impl Strategy<Value = Service> {
    let port = (any::<bool>(), 0..3u8, proptest::option::of(0..3u16)).prop_map(|(udp, name, node_port)| {
        let protocol = if udp { Protocol::UDP } else { Protocol::TCP };
        let node_port = node_port.map(|p| 30000 + p);
        ServicePort { name: name.to_string(), protocol, port: 80 + u16::from(name % 2), node_port }
    });
    let families = prop_oneof![Just(vec![false]), Just(vec![true]), Just(vec![false, true])];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1));
    let affinity = proptest::option::of(1..9u32);
    // Some claim what is another's.
    let addresses = proptest::collection::vec((any::<bool>(), 0..6u8), 0..3);
    (proptest::collection::vec(port, 1..3), families, flags, affinity, addresses).prop_map(
        move |(
            ports,
            families,
            (external_local, internal_local, restricted, headless),
            affinity_seconds,
            more,
        )| {
            let of = |odd: u8| {
                more.iter().filter(move |(_, h)| h % 2 == odd).map(|(v6, h)| ip(*v6, 96, *h)).collect()
            };
            Service {
                cluster_ips: families.into_iter().map(|v6| ip(v6, 96, n)).collect(),
                ports,
                external_ips: of(0),
                load_balancer_ips: of(1),
                restricted,
                affinity_seconds,
                external_local,
                internal_local,
                left_out: headless.then_some(LeftOut::Headless),
            }
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let hints = |of: &'static [&'static str]| prop_oneof![3 => Just(Vec::new()), 2 => proptest::sample::select(of).prop_map(|h| vec![h.to_string()])];
    let node = proptest::option::of(proptest::sample::select(&NODES[..]));
    let state = (any::<bool>(), any::<bool>(), any::<bool>());
    let endpoint = (0..6u8, node, state, hints(&["a", "b"]), hints(&NODES));
    let endpoint =
        endpoint.prop_map(|(host, node, (ready, serving, terminating), for_zones, for_nodes)| Endpoint {
            address: ip(host % 2 == 1, 64, host),
            node: node.map(Into::into),
            ready,
            serving: serving || ready,
            terminating: terminating && !ready,
            for_zones,
            for_nodes,
        });
    let port = (any::<bool>(), 0..3u8, 0..2u16).prop_map(|(udp, name, port)| SlicePort {
        name: name.to_string(),
        protocol: if udp { Protocol::UDP } else { Protocol::TCP },
        port: 8080 + port,
    });
    (0..4u8, proptest::collection::vec(port, 0..4), proptest::collection::vec(endpoint, 0..5)).prop_map(
        |(service, ports, endpoints)| EndpointSlice { service: format!("ns/s{service}"), ports, endpoints },
    )
}

fn node(n: u8) -> impl Strategy<Value = NodeInfo> {
    (proptest::option::of(proptest::sample::select(&["a", "b"][..])), any::<bool>()).prop_map(
        move |(zone, both)| {
            let labels = zone.map(|z| ("topology.kubernetes.io/zone".to_string(), z.to_string()));
            let mut addresses = vec![ip(false, 30, n)];
            addresses.extend(both.then(|| ip(true, 30, n)));
            NodeInfo {
                addresses,
                control_plane: false,
                drain_routes: None,
                labels: labels.into_iter().collect(),
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0..4u8).prop_flat_map(|n| {
        proptest::option::weighted(0.8, service(n)).prop_map(move |s| Step::Service(n, s))
    });
    let slice = (0..6u8, proptest::option::weighted(0.8, slice())).prop_map(|(n, s)| Step::Slice(n, s));
    let node = (0..3u8)
        .prop_flat_map(|n| proptest::option::weighted(0.8, node(n)).prop_map(move |i| Step::Node(n, i)));
    prop_oneof![3 => service, 3 => slice, 1 => node]
}

fn put<T: Clone>(map: &mut Named<T>, name: String, value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(name, Arc::new(value))),
        None => drop(map.remove(&name)),
    }
}

impl World {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Service(n, s) => put(&mut self.services, format!("ns/s{n}"), s),
            Step::Slice(n, s) => put(&mut self.slices, format!("ns/e{n}"), s),
            Step::Node(n, i) => put(&mut self.nodes, NODES[usize::from(n)].into(), i),
        }
    }
}

fn addresses() -> Vec<IpAddr> {
    let families = [false, true].into_iter();
    let of = |v6| (0..6).map(move |h| ip(v6, 96, h)).chain((0..3).map(move |n| ip(v6, 30, n)));
    families.flat_map(of).collect()
}

fn same(world: &World, table: &ServiceTable, to: SocketAddr, proto: u8) -> Result<(), TestCaseError> {
    let found = table.find(to.ip(), proto, to.port());
    let found = found.map(|f| f.backends.iter().copied().collect::<BTreeSet<_>>());
    prop_assert_eq!(found, naive(world, to, proto), "{}/{}", to, proto);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_a_call_finds_is_what_a_look_at_all_objects_says(steps in proptest::collection::vec(step(), 1..24)) {
        let (mut world, mut table) = (World::default(), ServiceTable::default());
        let mut before: BTreeMap<_, Frontend> = BTreeMap::new();
        for step in steps {
            world.apply(step);
            let changed = table.update(NODE, &world.nodes, &world.services, &world.slices);
            for to in addresses() {
                for port in [80, 81, 30000, 30001, 30002] {
                    for proto in [TCP, UDP] {
                        same(&world, &table, SocketAddr::new(to, port), proto)?;
                    }
                }
            }
            // What differs from before is told, and the path to the objects leaves no trace.
            let now: BTreeMap<_, Frontend> = table.frontends().map(|(k, f)| (*k, f.clone())).collect();
            for key in now.keys().chain(before.keys()).filter(|k| now.get(k) != before.get(k)) {
                prop_assert!(changed.contains(key), "{:?} has changed, and nobody was told", key);
            }
            let mut anew = ServiceTable::default();
            anew.update(NODE, &world.nodes, &world.services, &world.slices);
            let anew: BTreeMap<_, Frontend> = anew.frontends().map(|(k, f)| (*k, f.clone())).collect();
            prop_assert_eq!(&now, &anew);
            before = now;
        }
    }
}

fn plain() -> World {
    let mut world = World::default();
    for n in 0..100u8 {
        let port = ServicePort { name: String::new(), protocol: Protocol::TCP, port: 80, node_port: None };
        let service =
            Service { cluster_ips: vec![ip(false, 96, n)], ports: vec![port], ..Service::default() };
        world.services.insert(format!("ns/s{n}"), Arc::new(service));
    }
    world
        .nodes
        .insert(NODE.into(), Arc::new(NodeInfo { addresses: vec![ip(false, 30, 1)], ..NodeInfo::default() }));
    world
}

#[test]
fn an_update_looks_at_services_that_changed_alone() {
    let (mut world, mut table) = (plain(), ServiceTable::default());
    let mut update = |world: &World| table.update(NODE, &world.nodes, &world.services, &world.slices).len();
    assert_eq!(update(&world), 100);
    assert_eq!(update(&world), 0);
    // As every change of policy brings it: another map of nodes that says the same.
    world.nodes.insert("n9".into(), Arc::default());
    world.nodes.remove("n9");
    assert_eq!(update(&world), 0);
    let slice = EndpointSlice { service: "ns/s7".into(), ..EndpointSlice::default() };
    world.slices.insert("ns/e7".into(), Arc::new(slice));
    // It has no endpoint, so nothing has changed.
    assert_eq!(update(&world), 0);
    world.services.remove("ns/s7");
    assert_eq!(update(&world), 1);
}

#[test]
fn nobody_takes_a_cluster_ip_away() {
    let mut world = plain();
    let mut thief = Service::clone(&world.services["ns/s1"]);
    thief.cluster_ips = vec![ip(false, 97, 1)];
    thief.external_ips = vec![ip(false, 96, 5)];
    world.services.insert("ns/a".into(), Arc::new(thief));
    let mut table = ServiceTable::default();
    table.update(NODE, &world.nodes, &world.services, &world.slices);
    assert_eq!(table.find(ip(false, 96, 5), TCP, 80).unwrap().service, "ns/s5");
    let left: Vec<_> =
        table.left().map(|(service, left)| format!("{service} {}: {}", left.what, left.why)).collect();
    assert_eq!(left, ["ns/a 10.96.0.5:80: another service has this address and port"]);
}

/// A service and its one backend.
fn with_backend(world: &mut World, name: &str, service: Service, backend: IpAddr) {
    let ports =
        service.ports.iter().map(|p| SlicePort { name: p.name.clone(), protocol: p.protocol, port: p.port });
    let endpoint = Endpoint {
        address: backend,
        node: None,
        ready: true,
        serving: true,
        terminating: false,
        for_zones: vec![],
        for_nodes: vec![],
    };
    let slice = EndpointSlice { service: name.into(), ports: ports.collect(), endpoints: vec![endpoint] };
    world.slices.insert(name.into(), Arc::new(slice));
    world.services.insert(name.into(), Arc::new(service));
}

#[test]
fn nobody_makes_his_pods_cluster_dns() {
    let (dns, server) = (ip(false, 96, 53), ip(false, 1, 1));
    let port = |port| ServicePort { name: String::new(), protocol: Protocol::UDP, port, node_port: None };
    let mut world = plain();
    let of_dns = Service { cluster_ips: vec![dns], ports: vec![port(53)], ..Service::default() };
    with_backend(&mut world, "kube-system/dns", of_dns, server);
    for (n, taken) in [(2, 9), (3, 53)] {
        let name = format!("a/thief{n}");
        let service = Service {
            cluster_ips: vec![ip(false, 97, n)],
            external_ips: vec![dns],
            ports: vec![port(taken)],
            ..Service::default()
        };
        with_backend(&mut world, &name, service, ip(false, 1, n));
    }
    let served = |world: &World| {
        let mut table = ServiceTable::default();
        table.update(NODE, &world.nodes, &world.services, &world.slices);
        let objects = Objects { cluster_dns: vec![dns], ..Objects::default() };
        let objects = objects.with_dns_backends(&table);
        (table.find(dns, UDP, 9).is_some(), objects.cluster_dns, objects.cluster_dns_ports)
    };
    // His service is translated, as external IPs are; his pods are no DNS servers by it, nor is his port one of DNS.
    assert_eq!(served(&world), (true, vec![dns, server], vec![]));
    // Not even where there is no DNS.
    world.services.remove("kube-system/dns");
    assert_eq!(served(&world), (true, vec![dns], vec![]));
}

#[test]
fn the_port_of_a_dns_servers_own_is_one_of_cluster_dns() {
    let (dns, server) = (ip(false, 96, 53), ip(false, 1, 1));
    let mut world = plain();
    let ports = vec![ServicePort { name: String::new(), protocol: Protocol::UDP, port: 53, node_port: None }];
    let service = Service { cluster_ips: vec![dns], ports, ..Service::default() };
    with_backend(&mut world, "openshift-dns/dns-default", service, server);
    let mut slice = EndpointSlice::clone(&world.slices["openshift-dns/dns-default"]);
    slice.ports[0].port = 5353;
    world.slices.insert("openshift-dns/dns-default".into(), Arc::new(slice));
    let mut table = ServiceTable::default();
    table.update(NODE, &world.nodes, &world.services, &world.slices);
    let objects = Objects { cluster_dns: vec![dns], ..Objects::default() }.with_dns_backends(&table);
    assert_eq!((objects.cluster_dns, objects.cluster_dns_ports), (vec![dns, server], vec![5353]));
}

#[test]
fn api_servers_are_who_stands_in_their_own_slice_and_nobody_who_calls_himself_one() {
    let mut world = plain();
    let (server, thief) = (ip(false, 30, 7), ip(false, 1, 9));
    with_backend(&mut world, "default/kubernetes", Service::default(), server);
    with_backend(&mut world, "default/kubernetes-2", Service::default(), thief);
    let other = world.slices["default/kubernetes-2"].clone();
    let theirs = EndpointSlice { service: "default/kubernetes".into(), ..EndpointSlice::clone(&other) };
    world.slices.insert("default/kubernetes-2".into(), Arc::new(theirs));
    let known = Objects::default().with_api_servers(&world.slices);
    assert_eq!(known.api_servers, [server]);
    assert_eq!(known.with_api_servers(&Named::new()).api_servers, [] as [IpAddr; 0]);
    // However their slice is written.
    let mut slice = EndpointSlice::clone(&world.slices["default/kubernetes"]);
    slice.endpoints = [other.endpoints.clone(), slice.endpoints.clone(), slice.endpoints].concat();
    world.slices.insert("default/kubernetes".into(), Arc::new(slice));
    assert_eq!(Objects::default().with_api_servers(&world.slices).api_servers, [thief, server]);
}

#[test]
fn a_call_of_no_address_is_no_call_of_a_node_port() {
    let mut world = plain();
    let ports =
        vec![ServicePort { name: String::new(), protocol: Protocol::TCP, port: 80, node_port: Some(30000) }];
    let service = Service { ports, ..Service::clone(&world.services["ns/s1"]) };
    world.services.insert("ns/s1".into(), Arc::new(service));
    let mut table = ServiceTable::default();
    table.update(NODE, &world.nodes, &world.services, &world.slices);
    assert!(table.find(ip(false, 30, 1), TCP, 30000).is_some());
    for own in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
        assert!(table.find(own.parse().unwrap(), TCP, 30000).is_none(), "{own}");
    }
}
