//! Floods of requests that nobody answers, or whose sender does not go on: a flood is the matter of the pod that it comes from
//! or is for, and locks nobody out.

use crate::{
    node::{A, B, End, FAMILIES, Family, MAC_B, Node, POLICY_A, POLICY_B, V4, V6, VM, addr, ifindex},
    packet::{ACK, HOST_MAC, Packet, SYN, TCP, tcp},
    room::{FULL, ROOM, connect, lives, rules},
    rules::Port,
};
use aya::maps::{HashMap, Map, MapData};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{Connections, ENDPOINT_PACED, Endpoint, RecentKey, RecentPage, Share};

crate::trials! {
    floods:
    a_flood_from_one_pod_locks_no_other_out,
    a_flood_from_one_pod_to_another_leaves_that_its_share,
    a_flood_beside_many_connections_locks_no_other_out,
    a_syn_flood_from_outside_locks_nobody_out,
    a_flood_over_more_pods_than_there_is_room_for_locks_nobody_out,
    where_there_is_no_room_those_of_a_flood_go_and_not_whose_ring_has_come_round,
    a_flood_from_a_pod_that_finds_no_room_for_rings_takes_its_share_and_locks_no_other_out,
}

fn share(node: &Node, pod: &str) -> Share {
    node.datapath.share(ifindex(pod)).expect("share").unwrap_or_default()
}

/// A connection between a pod and the vm, whichever has begun it.
#[derive(Clone, Copy)]
struct Connection {
    pod: u32,
    client: (&'static str, u16),
    server: (&'static str, u16),
}

impl Connection {
    fn from_pod(pod: u32, f: &Family, port: u16) -> Self {
        Self { pod, client: (if pod == A { f.a } else { f.b }, port), server: (f.vm, 80) }
    }

    fn to_pod(pod: u32, f: &Family, port: u16) -> Self {
        Self { pod, client: (f.vm, port), server: (if pod == A { f.a } else { f.b }, 80) }
    }

    fn pass(&self, node: &Node, forth: bool, flags: u8) {
        assert_eq!(self.send(node, forth, flags), End::Next, "{:?}, {forth}, flags {flags:#x}", self.client);
    }

    fn send(&self, node: &Node, forth: bool, flags: u8) -> End {
        let (from, to) = if forth { (self.client, self.server) } else { (self.server, self.client) };
        let packet = tcp(from, to, flags);
        let sends = ![V4.vm, V6.vm].contains(&from.0);
        if sends { node.send(self.pod, &packet).end } else { node.deliver(self.pod, &packet, VM).end }
    }

    fn establish(self, node: &Node) -> Self {
        for (forth, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
            self.pass(node, forth, flags);
        }
        self.check(node);
        self
    }

    /// Where there is no room the queue may begin with such as nobody evicts: TCP asks again, six times and more.
    fn establish_at_last(self, node: &Node) -> Self {
        let tries: Vec<End> = (0..4).map(|_| self.send(node, true, SYN)).collect();
        assert!(
            tries.iter().all(|end| [End::Next, FULL].contains(end)) && tries.contains(&End::Next),
            "{tries:?}"
        );
        self.establish(node)
    }

    /// It lives, and both ways are open.
    fn check(&self, node: &Node) {
        assert!(node.flow(self.client, self.server, TCP).is_some(), "{:?}", self.client);
        self.pass(node, true, ACK);
        self.pass(node, false, ACK);
    }
}

fn a_flood_from_one_pod_locks_no_other_out() {
    let node = Node::with_room(rules(), ROOM);
    assert_eq!(connect(&node, 999), End::Next);
    // Unanswered: only the last few are kept, and none is refused.
    for port in 1000..3000 {
        assert_eq!(node.send(A, &tcp((V4.a, port), (V4.vm, 80), SYN)).end, End::Next);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 1 + 16);
    assert!(lives(&node, 999));
    Connection::from_pod(B, &V4, 5).establish(&node);
}

fn a_flood_from_one_pod_to_another_leaves_that_its_share() {
    for flags in [ENDPOINT_PACED, 0] {
        let to_b = rules().egress(POLICY_A, B, Port::Tcp80, 75).ingress(POLICY_B, A, Port::Tcp80, 76);
        let mut node = Node::with_room(to_b, ROOM);
        node.rewire(1500, flags);
        let mut others = Vec::new();
        for n in 0..200 {
            for f in FAMILIES {
                let request = tcp((f.a, 1000 + n), (f.b, 80), SYN);
                let sent = node.send(A, &request).end;
                assert_eq!(sent, if flags == 0 { End::Redirect } else { End::Next });
                if sent == End::Next {
                    assert_eq!(node.deliver(B, &request, A).end, End::Next);
                }
                if n % 8 == 0 {
                    others.push(Connection::from_pod(B, &f, 5000 + n).establish(&node));
                    others.push(Connection::to_pod(B, &f, 5000 + n).establish(&node));
                }
            }
        }
        others.iter().for_each(|connection| connection.check(&node));
        assert_eq!([share(&node, "pod-a").flows, share(&node, "pod-b").flows], [16, others.len() as u64]);
        assert_eq!([share(&node, "pod-a").refused, share(&node, "pod-b").refused], [0; 2]);
    }
}

/// Names of what was evicted make way for those of newcomers, also between many that live, whose age nobody has to look at yet.
fn a_flood_beside_many_connections_locks_no_other_out() {
    let room = Connections { per_pod: 400, ..ROOM };
    let node = Node::with_room(rules(), room);
    assert!((1000..1200).all(|port| connect(&node, port) == End::Next));
    for port in 2000..6000 {
        assert_eq!(node.send(A, &tcp((V4.a, port), (V4.vm, 80), SYN)).end, End::Next, "{port}");
        let other = tcp((V4.b, port), (V4.vm, 80), SYN);
        assert_eq!(node.send(B, &other).end, End::Next, "{port}");
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 200 + 16 + 16);
    assert!((1000..1200).all(|port| lives(&node, port)));
}

fn a_syn_flood_from_outside_locks_nobody_out() {
    let room = Connections { entries: 1024, per_pod: 400, ..ROOM };
    let node = Node::with_room(rules(), room);
    let mut others: Vec<Connection> =
        FAMILIES.iter().map(|f| Connection::from_pod(A, f, 999).establish(&node)).collect();
    for n in 0..1000 {
        for f in FAMILIES {
            let flood = Connection::to_pod(A, &f, 1000 + n);
            flood.pass(&node, true, SYN);
            // The pod answers each; nobody is there to go on.
            flood.pass(&node, false, SYN | ACK);
            // A client that does, while the flood lasts.
            if n % 8 == 0 {
                others.push(Connection::to_pod(A, &f, 10_000 + n).establish(&node));
            }
        }
    }
    others.iter().for_each(|connection| connection.check(&node));
    let flows = node.datapath.flow_count().expect("count");
    assert!(flows <= others.len() + 16, "{flows}");
    // The pod's own, and another pod's.
    for f in FAMILIES {
        Connection::from_pod(A, &f, 998).establish(&node);
        Connection::to_pod(B, &f, 7).establish(&node);
        Connection::from_pod(B, &f, 8).establish(&node);
    }
    assert_eq!(share(&node, "pod-a").refused, 0);
}

/// Each has room for its share of unanswered ones; all of them have none.
fn a_flood_over_more_pods_than_there_is_room_for_locks_nobody_out() {
    const PODS: u8 = 255;
    const INTERFACES: u32 = 1 << 20;
    let room = Connections { ages: ROOM.ages, ..Connections::of(1024) };
    let mut node = Node::with_room(rules(), room);
    let direct = ["192.0.2.0/24", "2001:db8:2::/48"].map(|range| range.parse().expect("a range"));
    node.datapath.set_direct(direct.iter(), [].iter()).expect("ranges");
    let addresses = |n: u8| [format!("10.0.3.{n}"), format!("fd00:3::{n}")];
    for n in 0..PODS {
        let [ipv4, ipv6] = addresses(n).map(|address| addr(&address));
        let pod = Endpoint {
            ipv4,
            ipv6,
            policies: [POLICY_B; 2],
            identity_v4: B,
            identity_v6: B,
            mac: MAC_B,
            host_mac: HOST_MAC,
            mtu: 1500,
            ..Endpoint::default()
        };
        node.datapath.set_endpoint(INTERFACES + u32::from(n), &pod).expect("endpoint");
    }
    let mut others: Vec<Connection> =
        (1..20).map(|port| Connection::from_pod(A, &V4, port).establish(&node)).collect();
    let mut refused = 0;
    for round in 0..10u16 {
        for n in 0..PODS {
            for (f, address) in FAMILIES.iter().zip(addresses(n)) {
                let request: Packet = tcp((f.vm, 1000 + round), (&address, 80), SYN);
                let end = node.uplink(&request.frame(), 0).end;
                assert!(
                    end == End::Redirect || round > 0 && end == FULL,
                    "round {round} at {address}: {end:?}"
                );
                refused += u32::from(end == FULL);
                if round >= 4 && n % 32 == 0 {
                    let port = 100 + round * 256 + u16::from(n);
                    for pod in [A, B] {
                        others.push(Connection::from_pod(pod, f, port).establish_at_last(&node));
                        others.push(Connection::to_pod(pod, f, port).establish_at_last(&node));
                    }
                }
            }
        }
        // From the third on there is no room left.
        let flows = node.datapath.flow_count().expect("count");
        assert!(round < 3 || flows > 1000, "{flows} in round {round}");
    }
    others.iter().for_each(|connection| connection.check(&node));
    // Not even of the flood many are refused.
    assert!(refused < 100, "{refused}");
    let refused = |pod| share(&node, pod).refused;
    assert_eq!(["pod-a", "pod-b"].map(refused), [0; 2]);
}

fn where_there_is_no_room_those_of_a_flood_go_and_not_whose_ring_has_come_round() {
    const RING: u16 = 16;
    let mut node = Node::with_room(rules(), Connections { per_pod: 512, ..ROOM });
    for port in 1..=512 - 2 * RING {
        Connection::to_pod(B, &V4, port).establish(&node);
    }
    let request = |node: &Node, pod: u32, f: &Family, port: u16| {
        let connection = Connection::from_pod(pod, f, port);
        connection.pass(node, true, SYN);
        connection
    };
    (0..2 * RING).for_each(|n| {
        request(&node, B, &V4, 1000 + n);
    });
    // A ring of a pod that is no flood: who stood in it is gone by the time that it comes round.
    (0..RING).for_each(|n| {
        request(&node, A, &V6, 2000 + n);
    });
    let gone = [V6.a.parse().expect("an address")];
    assert_eq!(node.datapath.forget_flows(&gone).expect("forgotten"), usize::from(RING));
    let begun: Vec<Connection> = (0..RING).map(|n| request(&node, A, &V4, 3000 + n)).collect();
    assert_eq!(node.datapath.flow_count().expect("count"), 512, "the table is full");
    for port in 4000..4008 {
        Connection::to_pod(B, &V4, port).establish(&node);
    }
    for connection in begun {
        connection.pass(&node, false, SYN | ACK);
        connection.pass(&node, true, ACK);
        connection.check(&node);
    }
}

/// Others have all the pages that there are: as on a node with more pods than those are for.
fn a_flood_from_a_pod_that_finds_no_room_for_rings_takes_its_share_and_locks_no_other_out() {
    let node = Node::with_room(rules(), ROOM);
    let pinned = MapData::from_pin(node.pins.join("maps/RECENT")).expect("a pinned map");
    let mut rings: HashMap<_, [u8; size_of::<RecentKey>()], [u8; size_of::<RecentPage>()]> =
        Map::from_map_data(pinned).expect("a map").try_into().expect("a hash");
    let others = (0u32..).map(|owner| [u32::MAX - owner, 0, 0].map(u32::to_ne_bytes).concat());
    let taken = others
        .map(|key| rings.insert(<[u8; 12]>::try_from(key).expect("a key"), [0; size_of::<RecentPage>()], 0))
        .take_while(Result::is_ok)
        .count();
    assert!(taken as u32 >= 250 * ROOM.pages_per_pod(), "{taken}");
    let own = Connection::from_pod(A, &V4, 1).establish(&node);
    let ends: Vec<End> =
        (0..200).map(|n| Connection::from_pod(A, &V4, 1000 + n).send(&node, true, SYN)).collect();
    assert_eq!(ends.iter().filter(|end| **end == End::Next).count() as u32, ROOM.per_pod - 1);
    assert_eq!(share(&node, "pod-a").refused, 200 - u64::from(ROOM.per_pod - 1));
    own.check(&node);
    for f in FAMILIES {
        Connection::from_pod(B, &f, 2).establish(&node);
        Connection::to_pod(B, &f, 3).establish(&node);
    }
    // What was begun is as good as any other, once it is answered.
    let begun = Connection::from_pod(A, &V4, 1000);
    begun.pass(&node, false, SYN | ACK);
    begun.pass(&node, true, ACK);
    begun.check(&node);
}
