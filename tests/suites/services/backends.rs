//! Which backend a call comes to: policies, conditions, hints, affinity, and services without a selector.

use crate::site::{CLIENT, Case, FAR, NEAR, SERVED, SOON, Site, at, require, service, slice, virtual_ip};
use bulkhead_lab::{Result, unmet, until};
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

pub const CASES: &[(&str, Case)] = &[
    ("a node port is answered at every node's address", node_ports),
    ("a node port with policy Local leads to the backends of the node that is called", local_node_ports),
    (
        "external and load balancers' addresses lead to the backends, but for those that others check",
        external,
    ),
    ("internal policy Local leads to backends of the own node alone", internal_local),
    ("backends that terminate serve while nothing is ready", terminating),
    ("hints keep calls near while all backends have them", hints),
    ("a client keeps its backend for as long as the service says", affinity),
    ("backends on the host's network are reached on either node", host_network),
    ("endpoints that somebody wrote by hand are backends", by_hand),
];

const TCP: &str = "protocol: TCP, port: 80";
const NODE_PORT: u16 = 30080;

fn node_port(more: &str) -> String {
    service("web", 1, &format!("{TCP}, nodePort: {NODE_PORT}"), &format!("  type: NodePort\n{more}"))
}

fn at_node(site: &Site, node: &str, v6: bool) -> Result<SocketAddr> {
    Ok(SocketAddr::new(site.address(node, v6)?, NODE_PORT))
}

fn node_ports(site: &mut Site) -> Result<()> {
    site.set(&[
        node_port(""),
        site.slice("web", false, &[NEAR, FAR])?,
        site.slice("web", true, &[NEAR, FAR])?,
    ])?;
    for v6 in [false, true] {
        for node in ["node1", "node2"] {
            site.until_answered_by(CLIENT, at_node(site, node, v6)?, &[NEAR, FAR])?;
        }
        site.until_answered_by(CLIENT, at(1, v6), &[NEAR, FAR])?;
    }
    // Whoever calls no address at all means itself.
    for own in ["0.0.0.0", "::"] {
        let own = SocketAddr::new(own.parse().expect("an address"), NODE_PORT);
        require(
            site.call_error(CLIENT, own)?.kind() == ErrorKind::ConnectionRefused,
            &format!("a node port answers at {own}"),
        )?;
    }
    // No node has the address of a pod.
    let pod = SocketAddr::new(site.address(NEAR, false)?, NODE_PORT);
    require(site.call_error(CLIENT, pod)?.kind() == ErrorKind::ConnectionRefused, "a pod is no node")
}

fn local_node_ports(site: &mut Site) -> Result<()> {
    let local = "  externalTrafficPolicy: Local\n";
    site.set(&[node_port(local), site.slice("web", false, &[NEAR, FAR])?])?;
    site.until_answered_by(CLIENT, at_node(site, "node2", false)?, &[FAR])?;
    // What a pod calls at its own node is not bound by the policy, as with kube-proxy.
    site.until_answered_by(CLIENT, at_node(site, "node1", false)?, &[NEAR, FAR])?;
    // A node that has none is left to say so: nothing listens there.
    site.set(&[node_port(local), site.slice("web", false, &[NEAR])?])?;
    site.until_answered_by(CLIENT, at_node(site, "node1", false)?, &[NEAR])?;
    site.until_fails(CLIENT, at_node(site, "node2", false)?, ErrorKind::ConnectionRefused)
}

fn external(site: &mut Site) -> Result<()> {
    let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.8}, {ip: 192.0.2.9, ipMode: Proxy}]}}\n";
    let web = |more: &str| {
        let spec = "  type: LoadBalancer\n  externalIPs: [198.51.100.7]\n";
        service("web", 1, TCP, &format!("{spec}{more}{status}"))
    };
    site.set(&[web(""), site.slice("web", false, &[FAR])?])?;
    for ip in ["198.51.100.7", "192.0.2.8"] {
        site.until_answered_by(CLIENT, SocketAddr::new(ip.parse().expect("an address"), 80), &[FAR])?;
    }
    let addresses = |site: &Site| -> Result<Vec<IpAddr>> {
        Ok(site.told(0)?.frontends.iter().filter_map(|f| f.address).collect())
    };
    let seen = addresses(site)?;
    require(!seen.contains(&"192.0.2.9".parse().expect("an address")), "a proxy's address is translated")?;
    site.set(&[web("  loadBalancerSourceRanges: [10.0.0.0/8]\n"), site.slice("web", false, &[FAR])?])?;
    until("the checked address is left to others", SOON, || {
        let left = site.told(0)?.left;
        let found =
            left.iter().any(|l| l.what.as_deref() == Some("192.0.2.8") && l.why.contains("SourceRanges"));
        let gone = !addresses(site)?.contains(&"192.0.2.8".parse().expect("an address"));
        if found && gone { Ok(Some(())) } else { unmet(format!("{left:?}")) }
    })
}

fn internal_local(site: &mut Site) -> Result<()> {
    let web = service("web", 1, TCP, "  internalTrafficPolicy: Local\n");
    site.set(&[web.clone(), site.slice("web", false, &[NEAR, FAR])?])?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR])?;
    site.until_answered_by(FAR, at(1, false), &[FAR])?;
    site.set(&[web, site.slice("web", false, &[FAR])?])?;
    site.until_fails(CLIENT, at(1, false), ErrorKind::ConnectionRefused)
}

fn terminating(site: &mut Site) -> Result<()> {
    let condition = |ready: bool, serving: bool, terminating: bool| {
        format!(", conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}")
    };
    let set = |near: &str, far: &str| -> Result<()> {
        let endpoints = site.endpoint(NEAR, false, near)? + &site.endpoint(FAR, false, far)?;
        site.set(&[service("web", 1, TCP, ""), slice("web", false, &endpoints)])
    };
    set(&condition(false, true, true), "")?;
    site.until_answered_by(CLIENT, at(1, false), &[FAR])?;
    set(&condition(false, true, true), &condition(false, false, true))?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR])?;
    set(&condition(false, false, true), &condition(false, false, false))?;
    site.until_fails(CLIENT, at(1, false), ErrorKind::ConnectionRefused)
}

fn hints(site: &mut Site) -> Result<()> {
    let cluster = site.lab.objects.read("cluster.yaml")?;
    let mut zoned = cluster.clone();
    for (node, zone) in [("node1", "a"), ("node2", "b")] {
        let named = format!("  name: {node}\n");
        zoned = zoned.replace(&named, &format!("{named}  labels: {{topology.kubernetes.io/zone: {zone}}}\n"));
    }
    site.lab.objects.write("cluster.yaml", &zoned)?;
    let zone = |zone: &str| format!(", hints: {{forZones: [{{name: {zone}}}]}}");
    let set = |near: &str, far: &str| -> Result<()> {
        let endpoints = site.endpoint(NEAR, false, near)? + &site.endpoint(FAR, false, far)?;
        let spec = "  trafficDistribution: PreferClose\n";
        site.set(&[service("web", 1, TCP, spec), slice("web", false, &endpoints)])
    };
    set(&zone("a"), &zone("b"))?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR])?;
    site.until_answered_by(FAR, at(1, false), &[FAR])?;
    set(&zone("a"), "")?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR, FAR])?;
    site.lab.objects.write("cluster.yaml", &cluster).map(drop)
}

fn affinity(site: &mut Site) -> Result<()> {
    let web = |seconds: u32| {
        let config = format!("  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n");
        service(
            "web",
            1,
            &format!("{TCP}, nodePort: {NODE_PORT}"),
            &format!("  sessionAffinity: ClientIP\n{config}"),
        )
    };
    site.set(&[web(600), site.slice("web", false, &[NEAR, FAR])?])?;
    until("the service answers", SOON, || site.call(CLIENT, at(1, false)).map(Some))?;
    until("the affinity is told", SOON, || {
        Ok(site.told(0)?.frontends.iter().any(|f| f.affinity_seconds == Some(600)).then_some(()))
    })?;
    let first = site.call(CLIENT, at(1, false))?;
    let node = at_node(site, "node2", false)?;
    for _ in 0..16 {
        // The same service by another address is the same client's.
        for to in [at(1, false), node] {
            let name = site.call(CLIENT, to)?;
            require(name == first, &format!("{first} has answered, and then {name}"))?;
        }
    }
    // What is gone is not kept to, and what is kept to instead is kept when it is back.
    let other = if first == NEAR { FAR } else { NEAR };
    site.set(&[web(600), site.slice("web", false, &[other])?])?;
    site.until_answered_by(CLIENT, at(1, false), &[other])?;
    site.set(&[web(600), site.slice("web", false, &[NEAR, FAR])?])?;
    until("both are backends again", SOON, || {
        Ok(site.told(0)?.frontends.iter().any(|f| f.backends.len() == 2).then_some(()))
    })?;
    for _ in 0..16 {
        let name = site.call(CLIENT, at(1, false))?;
        require(name == other, &format!("{other} has answered, and then {name}"))?;
    }
    // With a second's affinity, calls that are two seconds apart are strangers.
    site.set(&[web(1), site.slice("web", false, &[NEAR, FAR])?])?;
    until("the client comes to another backend after a while", SOON, || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        Ok((site.call(CLIENT, at(1, false))? == first).then_some(()))
    })
}

fn host_network(site: &mut Site) -> Result<()> {
    for node in ["node1", "node2"] {
        site.set(&[
            service("web", 1, TCP, ""),
            site.slice("web", false, &[node])?,
            site.slice("web", true, &[node])?,
        ])?;
        for v6 in [false, true] {
            site.until_answered_by(CLIENT, at(1, v6), &[node])?;
        }
    }
    Ok(())
}

/// No selector, no node, and outside of the cluster.
fn by_hand(site: &mut Site) -> Result<()> {
    let address = virtual_ip(9, false);
    let endpoints = format!("- addresses: [\"{}\"]\n", site.lab.vm.v4);
    site.set(&[service("web", 9, TCP, ""), slice("web", false, &endpoints)])?;
    let listener = site.lab.vm.netns.run(|| Ok(std::net::TcpListener::bind(("0.0.0.0", SERVED))?))?;
    listener.set_nonblocking(true)?;
    until("the machine outside is called", SOON, || {
        site.netns(CLIENT)?.run(|| {
            Ok(std::net::TcpStream::connect_timeout(&SocketAddr::new(address, 80), SOON).map(drop)?)
        })?;
        listener.accept().map(|_| Some(())).map_err(Into::into)
    })
}
