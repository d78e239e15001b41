//! What the node's netfilter translates, as kube-proxy and a masquerading agent would have it do.

use crate::support::{Watch, alternative, bound, exchange, exchange_at, nft, require};
use bulkhead_api::messages::DropInfo;
use bulkhead_lab::{Lab, Pod, Result, unmet, wait::until_true};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(15);

/// Service addresses of both families, by number.
pub fn service(n: u16, v6: bool) -> IpAddr {
    if v6 { format!("fd00:96::{n}") } else { format!("10.96.0.{n}") }.parse().expect("an address")
}

pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Both families in one table: DNAT by destination and port, masquerade by condition.
pub fn translate(lab: &Lab, dnat: &[(SocketAddr, SocketAddr)], masquerade: &[String]) -> Result<()> {
    let dnat = dnat.iter().map(|(from, to)| {
        let family = if from.is_ipv4() { "ip" } else { "ip6" };
        let (ip, port) = (from.ip(), from.port());
        format!("  {family} daddr {ip} meta l4proto {{ tcp, udp }} th dport {port} dnat {family} to {to}\n")
    });
    let masquerade = masquerade.iter().map(|condition| format!("  {condition} masquerade\n"));
    nft(
        &lab.nodes[0].netns,
        &format!(
            "table inet proxy {{}}\ndelete table inet proxy\ntable inet proxy {{\n chain pre {{\n  type nat hook \
             prerouting priority dstnat;\n{} }}\n chain post {{\n  type nat hook postrouting priority srcnat;\n{} }}\n \
             chain filter {{\n  type filter hook forward priority 0;\n  ct state invalid drop\n }}\n}}\n",
            dnat.collect::<String>(),
            masquerade.collect::<String>()
        ),
    )
}

pub fn clear(lab: &Lab) -> Result<()> {
    nft(&lab.nodes[0].netns, "delete table inet proxy\n")
}

pub fn services(lab: &mut Lab) -> Result<()> {
    let (cart, plain, far) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?, lab.pod("shop/cart-1")?);
    let (mut dnat, mut masquerade) = (Vec::new(), Vec::new());
    for v6 in [false, true] {
        for (n, backend) in [(10, plain), (11, far), (12, cart)] {
            dnat.push((at(service(n, v6), 80), at(alternative(backend, v6), 8080)));
        }
        let (family, own) = (if v6 { "ip6" } else { "ip" }, alternative(cart, v6));
        masquerade.push(format!("{family} saddr {own} {family} daddr {own}"));
    }
    translate(lab, &dnat, &masquerade)?;
    for v6 in [false, true] {
        for (n, backend) in [(10, plain), (11, far)] {
            let watch = Watch::start(&lab.nodes[0])?;
            let called = at(service(n, v6), 80);
            let seen = exchange_at(&cart.netns, &backend.netns, 8080, called, None)?;
            require(seen == alternative(cart, v6), &format!("the backend saw {seen}"))?;
            require(watch.packets()? >= 8, "both directions must be translated")?;
            // Beside it, to the same backend without translation.
            let watch = Watch::start(&lab.nodes[0])?;
            exchange(&cart.netns, &backend.netns, alternative(backend, v6), 8080, None)?;
            require(watch.packets()? == 0, "nothing translates this one")?;
        }
        exchange_at(&cart.netns, &cart.netns, 8080, at(service(12, v6), 80), None)?;
    }
    clear(lab)
}

/// The backend answers from the higher port, as a client's datagram would come.
pub fn datagrams(lab: &mut Lab) -> Result<()> {
    const BACKEND: u16 = 9125;
    let (cart, plain, far) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?, lab.pod("shop/cart-1")?);
    for v6 in [false, true] {
        // The stack remembers what it has translated, by port.
        for (backend, port) in [(plain, 5000), (far, 5001)] {
            let (to, called) = (at(alternative(backend, v6), BACKEND), at(service(15, v6), 80));
            translate(lab, &[(called, to)], &[])?;
            let server = bound(&backend.netns, to.ip(), BACKEND)?;
            let client = bound(&cart.netns, alternative(cart, v6), port)?;
            client.connect(called)?;
            for n in 0..4 {
                client.send(&[n])?;
                let (_, from) = server.recv_from(&mut [0; 8])?;
                server.send_to(&[n, n], from)?;
                require(client.recv(&mut [0; 8])? == 2, "the answer is another's")?;
            }
        }
    }
    clear(lab)
}

/// Nobody may call the pod, not even the one that is its like in every rule's eyes; it reaches itself.
const ISOLATING: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: alone, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

pub fn itself(lab: &mut Lab) -> Result<()> {
    const FILE: &str = "alone.yaml";
    let plain = lab.pod("shop/plain-0")?;
    // The second one's packets wait in queues on their way.
    for backend in [lab.pod("shop/cart-0")?, lab.pod("shop/low-0")?] {
        let dnat = [false, true].map(|v6| (at(service(13, v6), 80), at(alternative(backend, v6), 8080)));
        let own = [false, true].map(|v6| {
            let (family, own) = (if v6 { "ip6" } else { "ip" }, alternative(backend, v6));
            format!("{family} saddr {own} {family} daddr {own}")
        });
        // As kube-proxy does with what a pod sends itself; with all that it translates.
        for masquerade in [own.to_vec(), vec!["ct status dnat".into()]] {
            translate(lab, &dnat, &masquerade)?;
            let reaches = |caller: &Pod, v6| {
                exchange_at(&caller.netns, &backend.netns, 8080, at(service(13, v6), 80), None).is_ok()
            };
            lab.objects.write(FILE, ISOLATING)?;
            until_true("the policy is in force", SOON, || Ok(!reaches(plain, false)))?;
            for v6 in [false, true] {
                require(reaches(backend, v6), "a pod does not reach itself")?;
                require(!reaches(plain, v6), "another pod passes as the pod itself")?;
            }
            lab.objects.remove(FILE)?;
            until_true("the policy is gone", SOON, || Ok(reaches(plain, false)))?;
        }
    }
    clear(lab)
}

pub fn masqueraded(lab: &mut Lab) -> Result<()> {
    let (cart, far, node) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?, &lab.nodes[1]);
    // As an agent does it: all that leaves for an address that is no pod's. The first node calls the machine direct.
    let rules = "table inet proxy {\n chain post {\n  type nat hook postrouting priority srcnat;\n  oifname eth0 ip daddr \
                 172.30.9.0/24 masquerade\n  oifname eth0 ip6 daddr fd00:30:9::/64 masquerade\n }\n chain filter {\n  \
                 type filter hook forward priority 0;\n  ct state invalid drop\n }\n}\n";
    nft(&node.netns, rules)?;
    for v6 in [false, true] {
        let (vm, own): (IpAddr, IpAddr) =
            if v6 { (lab.vm.v6.into(), node.v6.into()) } else { (lab.vm.v4.into(), node.v4.into()) };
        let seen = exchange(&far.netns, &lab.vm.netns, vm, 8080, None)?;
        require(seen == own, &format!("the machine saw {seen}"))?;
        let seen = exchange(&lab.vm.netns, &far.netns, alternative(far, v6), 8080, None)?;
        require(seen == vm, &format!("the pod saw {seen}"))?;
        let seen = exchange(&far.netns, &cart.netns, alternative(cart, v6), 8080, None)?;
        require(seen == alternative(far, v6), &format!("the other pod saw {seen}"))?;
    }
    nft(&node.netns, "delete table inet proxy\n")
}

pub fn node_ports(lab: &mut Lab) -> Result<()> {
    let (cart, db) = (lab.pod("shop/cart-0")?, lab.pod("payments/db-0")?);
    let (plain, far) = (lab.pod("shop/plain-0")?, lab.pod("shop/cart-1")?);
    let node = &lab.nodes[0];
    let own = |v6: bool| -> IpAddr { if v6 { node.v6.into() } else { node.v4.into() } };
    let mut dnat = Vec::new();
    for v6 in [false, true] {
        for (port, backend, to) in [(30080, plain, 8080), (30081, far, 8080), (30082, db, 20880)] {
            dnat.push((at(own(v6), port), at(alternative(backend, v6), to)));
        }
    }
    translate(lab, &dnat, &["ct status dnat".into()])?;
    // Bits of the pod's own choice.
    let marks = [None, Some(30 << 16 | 1)];
    for v6 in [false, true] {
        for caller in [&lab.vm.netns, &cart.netns] {
            for (port, backend) in [(30080, plain), (30081, far)] {
                let seen = exchange_at(caller, &backend.netns, 8080, at(own(v6), port), None)?;
                require(seen == own(v6), &format!("the backend saw {seen}"))?;
            }
        }
        let called = at(own(v6), 30082);
        // The machine may, by the partition's rule; whoever else speaks from the node's address may not.
        let seen = exchange_at(&lab.vm.netns, &db.netns, 20880, called, None)?;
        require(seen == own(v6), &format!("the backend saw {seen}"))?;
        for mark in marks {
            if exchange_at(&cart.netns, &db.netns, 20880, called, mark).is_ok() {
                return unmet("a stranger passes as the node, or as whom it likes");
            }
        }
    }
    clear(lab)
}

/// Nodes may call the pod at this port, by its partition's rule; the machine outside may not, and does not by their names.
pub fn another_node(lab: &mut Lab) -> Result<()> {
    const METRICS: u16 = 9100;
    let (cart, db, node) = (lab.pod("shop/cart-0")?, lab.pod("payments/db-1")?, &lab.nodes[0]);
    let own = |v6: bool| -> IpAddr { if v6 { node.v6.into() } else { node.v4.into() } };
    let called = |v6| at(own(v6), 30_083);
    let dnat = [false, true].map(|v6| (called(v6), at(alternative(db, v6), METRICS)));
    translate(lab, &dnat, &["ct status dnat".into()])?;
    for v6 in [false, true] {
        let seen = exchange(&node.netns, &db.netns, alternative(db, v6), METRICS, None)?;
        require(seen == own(v6), &format!("the pod saw {seen}"))?;
        for (who, caller) in [("the machine", &lab.vm.netns), ("a pod of this node", &cart.netns)] {
            for mark in [None, Some(30 << 16 | 1)] {
                let reached = exchange_at(caller, &db.netns, METRICS, called(v6), mark).is_ok();
                require(!reached, &format!("{who} passes as a node at a pod of another one"))?;
            }
        }
    }
    let drops: Vec<DropInfo> = node.get("/v1/drops")?;
    let by_payments = |d: &DropInfo| d.partition.as_deref() == Some("payments") && d.direction == "ingress";
    require(drops.iter().any(by_payments), "nobody tells of whom this node has refused")?;
    clear(lab)
}
