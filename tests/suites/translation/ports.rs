//! Host ports: who reaches them, as whom, and who does not.

use crate::{
    Case,
    support::{alternative, bound, exchange_at, nft, require, says},
};
use bulkhead_lab::{Lab, Netns, Pod, Result, unmet};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

pub const CASES: &[(&str, Case)] = &[
    ("a host port leads to the pod from wherever it is called", from_everywhere),
    ("the pod behind a host port judges who really calls", judged),
    ("a host port of one address is no other's", one_address),
    ("datagrams reach a pod that came after them, and not one that is gone", datagrams),
    ("no pod calls what listens at the node's loopback", loopback),
    ("a pod that asks for a host port that another has is told so", taken),
];

/// Wired with these mappings on the first node.
pub fn wired(lab: &Lab, namespace: &str, name: &str, mappings: Value) -> Result<Pod> {
    let mut pod = Pod::create(0, namespace, name)?;
    pod.runtime_config = json!({"portMappings": mappings});
    pod.add(&lab.nodes[0])?;
    Ok(pod)
}

pub fn node(lab: &Lab, v6: bool) -> IpAddr {
    let node = &lab.nodes[0];
    if v6 { node.v6.into() } else { node.v4.into() }
}

fn from_everywhere(lab: &mut Lab) -> Result<()> {
    let pod = wired(
        lab,
        "shop",
        "ported-0",
        json!([{"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"}]),
    )?;
    let (cart, far, limited) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?, lab.pod("shop/low-0")?);
    let (first, second) = (&lab.nodes[0], &lab.nodes[1]);
    for v6 in [false, true] {
        let called = SocketAddr::new(node(lab, v6), 8088);
        let as_v6 =
            |v4: Ipv4Addr, six: std::net::Ipv6Addr| -> IpAddr { if v6 { six.into() } else { v4.into() } };
        let callers: [(&str, &Netns, IpAddr); 7] = [
            ("a machine outside", &lab.vm.netns, as_v6(lab.vm.v4, lab.vm.v6)),
            ("a pod of this node", &cart.netns, alternative(cart, v6)),
            ("a pod with a bandwidth", &limited.netns, alternative(limited, v6)),
            ("a pod of another node", &far.netns, alternative(far, v6)),
            ("another node", &second.netns, as_v6(second.v4, second.v6)),
            ("the node itself", &first.netns, node(lab, v6)),
            // It takes nothing that comes from its own address.
            ("the pod itself", &pod.netns, node(lab, v6)),
        ];
        for (who, caller, as_whom) in callers {
            match exchange_at(caller, &pod.netns, 8080, called, None) {
                Ok(seen) => require(seen == as_whom, &format!("{who}: the pod saw {seen}"))?,
                Err(e) => return unmet(format!("{who} calls {called}: {e}")),
            }
        }
    }
    let called = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8088);
    let seen = exchange_at(&first.netns, &pod.netns, 8080, called, None)?;
    require(seen == node(lab, false), &format!("from the loopback: the pod saw {seen}"))?;
    pod.check(first)?;
    pod.del(first)?;
    require(
        exchange_at(&lab.vm.netns, &pod.netns, 8080, SocketAddr::new(node(lab, false), 8088), None).is_err(),
        "the port leads somewhere without its pod",
    )
}

fn judged(lab: &mut Lab) -> Result<()> {
    let mappings = json!([{"hostPort": 20881, "containerPort": 20880, "protocol": "tcp"}]);
    let pod = wired(lab, "payments", "ported-1", mappings)?;
    for v6 in [false, true] {
        let called = SocketAddr::new(node(lab, v6), 20881);
        // The machine may, by the partition's rule; and the node reaches its own pods.
        exchange_at(&lab.vm.netns, &pod.netns, 20880, called, None)?;
        exchange_at(&lab.nodes[0].netns, &pod.netns, 20880, called, None)?;
        for (who, caller) in [
            ("a pod of this node", &lab.pod("shop/cart-0")?.netns),
            ("a pod of another node", &lab.pod("shop/cart-1")?.netns),
            ("another node", &lab.nodes[1].netns),
        ] {
            // With bits of its own choice, too.
            for mark in [None, Some(30 << 16 | 1)] {
                let reached = exchange_at(caller, &pod.netns, 20880, called, mark).is_ok();
                require(!reached, &format!("{who} reaches what no rule allows"))?;
            }
        }
    }
    pod.del(&lab.nodes[0])
}

fn one_address(lab: &mut Lab) -> Result<()> {
    let first = &lab.nodes[0];
    first.netns.ip("addr add 172.30.1.77/32 dev eth0")?;
    let mappings = json!([
        {"hostPort": 8089, "containerPort": 8080, "protocol": "tcp", "hostIP": "172.30.1.2"},
        {"hostPort": 8090, "containerPort": 8080, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 8091, "containerPort": 8080, "protocol": "tcp", "hostIP": "fd00:30:1::2"},
    ]);
    let pod = wired(lab, "shop", "ported-2", mappings)?;
    let vm = &lab.vm.netns;
    for (caller, called, reached) in [
        (vm, "172.30.1.2:8089", true),
        (&first.netns, "172.30.1.2:8089", true),
        (&first.netns, "172.30.1.77:8089", false),
        (&first.netns, "127.0.0.1:8089", false),
        (vm, "[fd00:30:1::2]:8089", false),
        (&first.netns, "127.0.0.1:8090", true),
        (vm, "172.30.1.2:8090", false),
        (vm, "[fd00:30:1::2]:8091", true),
        (vm, "172.30.1.2:8091", false),
    ] {
        let answer = exchange_at(caller, &pod.netns, 8080, called.parse().expect("an address"), None);
        require(answer.is_ok() == reached, &format!("{called} from {}: {answer:?}", caller.name()))?;
    }
    pod.del(first)?;
    first.netns.ip("addr del 172.30.1.77/32 dev eth0")
}

fn datagrams(lab: &mut Lab) -> Result<()> {
    let mappings = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let own = [false, true].map(|v6| node(lab, v6));
    let clients = own.map(|node| -> Result<_> {
        let any = if node.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("an address");
        // One socket of IPv6 would take the port of both.
        let client = bound(&lab.vm.netns, any, if node.is_ipv4() { 40_053 } else { 40_054 })?;
        client.connect(SocketAddr::new(node, 5353))?;
        // Nobody is there; the node's stack remembers the flow as one that nothing translates.
        client.send(b"?")?;
        Ok(client)
    });
    let [v4, v6] = clients;
    let clients = [v4?, v6?];
    std::thread::sleep(Duration::from_millis(100));
    let mut pods = Vec::new();
    for name in ["ported-3", "ported-4"] {
        let pod = wired(lab, "shop", name, mappings.clone())?;
        for client in &clients {
            let any = if client.local_addr()?.is_ipv4() { "0.0.0.0" } else { "::" };
            let server = bound(&pod.netns, any.parse().expect("an address"), 53)?;
            // The error of the first one may wait to be told.
            let _ = client.send(b"?");
            client.send(b"request")?;
            let mut buffer = [0; 16];
            let (length, from) = loop {
                let (length, from) = server.recv_from(&mut buffer)?;
                if length > 1 {
                    break (length, from);
                }
            };
            require(&buffer[..length] == b"request", "another datagram")?;
            server.send_to(b"answer", from)?;
            let length = client.recv(&mut buffer)?;
            require(&buffer[..length] == b"answer", "the answer is another's")?;
        }
        pod.del(&lab.nodes[0])?;
        pods.push(pod);
    }
    Ok(())
}

fn loopback(lab: &mut Lab) -> Result<()> {
    let first = &lab.nodes[0];
    let pod = wired(lab, "shop", "ported-5", json!([{"hostPort": 8092, "containerPort": 8080}]))?;
    let listener = first.netns.run(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 9999))?))?;
    listener.set_nonblocking(true)?;
    // What a pod that is root in its own namespace can do.
    pod.netns.sysctl("net/ipv4/conf/eth0/route_localnet", "1")?;
    pod.netns.ip("addr del 127.0.0.1/8 dev lo")?;
    pod.netns.ip("route add 127.0.0.1/32 via 169.254.1.1 dev eth0")?;
    let called = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9999);
    let calls = || pod.netns.run(|| Ok(TcpStream::connect_timeout(&called, Duration::from_secs(1)).is_ok()));
    let text = says(&first.netns, &["nft", "list", "table", "ip", "bulkhead"])?;
    require(!calls()?, &format!("a pod calls the node's loopback\n{text}"))?;
    // It is the rule that keeps it from that.
    nft(&first.netns, "flush chain ip bulkhead loopback\n")?;
    require(calls()?, "something else keeps the pod from the loopback: this shows nothing")?;
    drop(listener.accept()?);
    // The listener answers those whom it is there for.
    first.netns.run(|| {
        let mut stream = TcpStream::connect(called)?;
        let (mut accepted, _) =
            bulkhead_lab::until("somebody calls", Duration::from_secs(2), || Ok(listener.accept().ok()))?;
        stream.write_all(b"x")?;
        accepted.set_nonblocking(false)?;
        Ok(accepted.read_exact(&mut [0])?)
    })?;
    pod.del(first)
}

fn taken(lab: &mut Lab) -> Result<()> {
    let first = &lab.nodes[0];
    let mapping = |ip: &str| json!([{"hostPort": 8093, "containerPort": 80, "hostIP": ip}]);
    let pod = wired(lab, "shop", "ported-6", mapping(""))?;
    let error = match wired(lab, "web", "ported-7", mapping("172.30.1.2")) {
        Ok(_) => return unmet("two pods have one port"),
        Err(e) => e.to_string(),
    };
    for word in ["172.30.1.2:8093/TCP is taken", "shop/ported-6"] {
        require(error.contains(word), &error)?;
    }
    pod.del(first)?;
    wired(lab, "web", "ported-8", mapping(""))?.del(first)
}
