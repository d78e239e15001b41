//! The table of connections keeps room: dead entries make way, each pod has its share, and what is established goes on.

use crate::{
    node::{A, B, End, FAMILIES, MAC_A, MAC_B, Node, POLICY_A, POLICY_B, V4, VM, addr, ifindex},
    packet::{ACK, FIN, Packet, RST, SYN, TCP, UDP, icmp, sctp, tcp, udp},
    rules::{Port, Rules, SIZES},
};
use aya::{
    maps::{HashMap, Map, MapData},
    programs::SchedClassifier,
};
use bulkhead_daemon::datapath::{Datapath, Hook, PodMaps};
use bulkhead_ebpf_abi::{
    Addr, Ages, Connections, DROP_CONNTRACK_FULL, DROP_CONNTRACK_SHARE, DROP_REVOKED, FLOW_CLOSED,
    FLOW_CLOSING, Flow, FlowKey, ORIGIN_SHIFT, RULE_DEFAULT_DENY, RULE_NONE, RecentKey, RecentPage,
};
use bulkhead_lab::bpf::{self, Input};
use std::{collections::BTreeSet, mem::offset_of, os::fd::AsFd, path::Path, thread::sleep, time::Duration};

crate::trials! {
    room:
    an_hour_of_churn_without_a_daemon_does_not_fill_the_table,
    an_hour_of_churn_of_every_kind_leaves_nothing_behind,
    an_entry_past_its_age_is_none,
    what_both_ends_have_sent_closes_a_connection_whatever_became_of_its_flags,
    a_cut_connection_stays_refused_and_gives_its_share_back_soon,
    established_flows_outlive_a_flood_from_their_own_pod_and_new_ones_are_refused,
    who_is_refused_for_its_share_has_evicted_nobody,
    closed_connections_make_way,
    a_full_table_refuses_and_counts_and_established_flows_go_on,
    among_128k_connections_those_of_an_address_are_forgotten_and_no_others,
    forgetting_flows_gives_their_share_back,
    a_removed_endpoint_leaves_no_share_and_no_rings,
}

pub const FULL: End = End::Drop(DROP_CONNTRACK_FULL, RULE_NONE);
const SHARE: End = End::Drop(DROP_CONNTRACK_SHARE, RULE_NONE);

/// No test lives that long.
const NEVER: u64 = 3_600_000_000_000;
pub const LASTING: Ages = Ages {
    unanswered: NEVER,
    tcp: NEVER,
    closing: NEVER,
    closed: NEVER,
    cut: NEVER,
    udp: NEVER,
    echo: NEVER,
    other: NEVER,
};
pub const ROOM: Connections =
    Connections { entries: 512, per_pod: 128, unanswered: 16, closed: 32, ages: LASTING };

pub fn rules() -> Rules {
    Rules::none()
        .egress(POLICY_A, VM, Port::Tcp80, 70)
        .egress(POLICY_A, VM, Port::Udp53, 71)
        .egress(POLICY_B, VM, Port::Tcp80, 72)
        .ingress(POLICY_A, VM, Port::Tcp80, 73)
        .ingress(POLICY_B, VM, Port::Tcp80, 74)
}

/// Handshake of pod a's connection to the vm from `port`.
pub fn connect(node: &Node, port: u16) -> End {
    let end = node.send(A, &tcp((V4.a, port), (V4.vm, 80), SYN)).end;
    if end == End::Next {
        assert_eq!(node.deliver(A, &tcp((V4.vm, 80), (V4.a, port), SYN | ACK), VM).end, End::Next);
        assert_eq!(node.send(A, &tcp((V4.a, port), (V4.vm, 80), ACK)).end, End::Next);
    }
    end
}

pub fn lives(node: &Node, port: u16) -> bool {
    node.flow((V4.a, port), (V4.vm, 80), TCP).is_some()
        && node.deliver(A, &tcp((V4.vm, 80), (V4.a, port), ACK), VM).end == End::Next
}

fn an_hour_of_churn_without_a_daemon_does_not_fill_the_table() {
    // An age is a thousandth of a second, and nothing is evicted: only what is dead makes way.
    let ages = Ages { unanswered: 1_000_000, ..LASTING };
    let room = Connections { per_pod: 512, unanswered: 8192, ages, ..ROOM };
    let Node { datapath, pins, .. } = Node::with_room(rules(), room);
    // Nothing is left of the daemon but what it pinned.
    drop(datapath);
    let program = SchedClassifier::from_pin(pins.join("programs/from_pod")).expect("a pinned program");
    let program = program.fd().expect("loaded");
    for port in 1000..4000u16 {
        let frame = udp((V4.a, port), (V4.vm, 53)).with_mac(MAC_A).frame();
        let input = Input { frame: &frame, mark: 0, ifindex: ifindex("pod-a") };
        let (said, _) = bpf::run(program.as_fd(), &input, 1).expect("a test-run");
        assert_eq!(said, -1, "{port}");
        if port % 100 == 0 {
            sleep(Duration::from_millis(12));
        }
    }
    let next = Datapath::open(&pins, SIZES, room).unwrap_or_else(|e| panic!("{e}"));
    assert!(next.adopted);
    assert!(next.datapath.flows().count() < 512);
    sleep(Duration::from_millis(20));
    assert_eq!(next.datapath.flow_count().expect("count"), 0, "status counts the living only");
}

/// What becomes of a TCP connection in the churn.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Unanswered,
    Open,
    HalfClosed,
    Closed,
    Reset,
}

fn an_hour_of_churn_of_every_kind_leaves_nothing_behind() {
    // Ages are of some thousandths of a second, and nothing is evicted: only what is dead makes way.
    const MS: u64 = 1_000_000;
    let ages = Ages {
        unanswered: MS,
        tcp: 4 * MS,
        closing: 2 * MS,
        closed: MS,
        cut: 3 * MS,
        udp: MS,
        echo: MS,
        other: 2 * MS,
    };
    let room = Connections { entries: 1024, per_pod: 1024, unanswered: 8192, closed: 8192, ages };
    // Where a pause has made an entry die early, what was its answer is a connection of its own.
    let all =
        [Port::Other, Port::Tcp80, Port::TcpRange, Port::Udp53, Port::Sctp3868, Port::Echo, Port::EchoReply];
    let rules = (75..).zip(all).fold(Rules::none(), |rules, (rule, port)| {
        rules.egress(POLICY_A, VM, port, rule).ingress(POLICY_A, VM, port, rule)
    });
    let Node { datapath, pins, .. } = Node::with_room(rules, room);
    // Nothing is left of the daemon but what it pinned.
    drop(datapath);
    let churn = Churn::new(&pins);
    for n in 0..1500u16 {
        for f in FAMILIES {
            for fate in [Fate::Unanswered, Fate::Open, Fate::HalfClosed, Fate::Closed, Fate::Reset] {
                let port = 1024 + n * 5 + fate as u16;
                churn.tcp((f.a, port), (f.vm, 80), fate);
                churn.tcp((f.vm, port), (f.a, 80), fate);
            }
            let (own, theirs) = ((f.a, 1024 + n), (f.vm, 1024 + n));
            churn.pass(&udp(own, (f.vm, 53)));
            churn.pass(&udp(theirs, (f.a, 53)));
            churn.pass(&icmp(f.a, f.vm, f.echo, n, &[]));
            churn.pass(&icmp(f.vm, f.a, f.echo, n, &[]));
            churn.pass(&sctp(own, (f.vm, 3868)));
            if n % 2 == 0 {
                churn.pass(&udp((f.vm, 53), own));
                churn.pass(&udp((f.a, 53), theirs));
                churn.pass(&icmp(f.vm, f.a, f.echo_reply, n, &[]));
                churn.pass(&icmp(f.a, f.vm, f.echo_reply, n, &[]));
                churn.pass(&sctp((f.vm, 3868), own));
            }
        }
        if n % 10 == 0 {
            sleep(Duration::from_millis(12));
        }
    }
    let next = Datapath::open(&pins, SIZES, room).unwrap_or_else(|e| panic!("{e}"));
    assert!(next.adopted);
    assert!(next.datapath.flows().count() < 1024);
    sleep(Duration::from_millis(20));
    assert_eq!(next.datapath.flow_count().expect("count"), 0, "status counts the living only");
    // What is counted as the pod's is what lies in the table.
    let of_pod = next.datapath.share(ifindex("pod-a")).expect("share").expect("a share");
    assert_eq!((of_pod.flows, of_pod.refused), (next.datapath.flows().count() as u64, 0));
}

/// Packets of pod a and for it, at the pinned programs.
struct Churn {
    hooks: [SchedClassifier; 2],
    ifindex: u32,
}

impl Churn {
    fn new(pins: &Path) -> Self {
        let hooks = [Hook::FromPod, Hook::ToPod].map(|hook| {
            let path = pins.join("programs").join(hook.name());
            SchedClassifier::from_pin(path).expect("a pinned program")
        });
        Self { hooks, ifindex: ifindex("pod-a") }
    }

    fn pass(&self, packet: &Packet) {
        let sends = FAMILIES.iter().any(|f| addr(f.a).to_ip() == packet.src);
        let (hook, mark) = if sends { (&self.hooks[0], 0) } else { (&self.hooks[1], VM << ORIGIN_SHIFT) };
        let frame = packet.clone().with_mac(MAC_A).frame();
        let program = hook.fd().expect("loaded").as_fd();
        let (said, _) =
            bpf::run(program, &Input { frame: &frame, mark, ifindex: self.ifindex }, 1).expect("a run");
        assert_eq!(said, -1, "{} {:?}", packet.src, packet.payload);
    }

    fn tcp(&self, client: (&str, u16), server: (&str, u16), fate: Fate) {
        let forth = |flags| self.pass(&tcp(client, server, flags));
        let back = |flags| self.pass(&tcp(server, client, flags));
        forth(SYN);
        if fate == Fate::Unanswered {
            return;
        }
        back(SYN | ACK);
        forth(ACK);
        match fate {
            Fate::HalfClosed => forth(FIN | ACK),
            Fate::Closed => {
                back(FIN | ACK);
                forth(FIN | ACK);
                back(ACK);
            }
            Fate::Reset => back(RST),
            Fate::Unanswered | Fate::Open => {}
        }
    }
}

fn a_cut_connection_stays_refused_and_gives_its_share_back_soon() {
    const CUT: Duration = Duration::from_millis(1200);
    const REVOKED: End = End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY);
    let ages = Ages { cut: CUT.as_nanos() as u64, ..LASTING };
    let mut node = Node::with_room(rules(), Connections { ages, ..ROOM });
    let share = |node: &Node| node.datapath.share(ifindex("pod-a")).expect("share").expect("a share").flows;
    assert_eq!((1000..1128).filter(|port| connect(&node, *port) == End::Next).count(), 128);
    // The vm may still reach the ports that pod a calls from.
    let others = Rules::none().egress(POLICY_A, VM, Port::Udp53, 71).ingress(POLICY_A, VM, Port::Other, 75);
    node.apply(&others);
    let request = |port| tcp((V4.a, port), (V4.vm, 80), ACK);
    let reply = |port| tcp((V4.vm, 80), (V4.a, port), ACK);
    for port in 1000..1128 {
        assert_eq!(node.send(A, &request(port)).end, REVOKED);
    }
    // Idle for longer than its age when it was cut or not: from then on it counts, and from each attempt.
    for _ in 0..6 {
        sleep(CUT / 4);
        assert_eq!(node.send(A, &request(1000)).end, REVOKED);
        assert_eq!(node.deliver(A, &reply(1000), VM).end, REVOKED);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 1, "all but the one that goes on trying");
    for port in 2000..2127 {
        assert_eq!(node.send(A, &udp((V4.a, port), (V4.vm, 53))).end, End::Next, "{port}");
    }
    assert!(share(&node) <= 128);
    // One that is allowed again in time lives, as long as any other.
    let entry = |port| node.flow((V4.a, port), (V4.vm, 80), TCP);
    assert_ne!(entry(1000).expect("an entry").cut, 0);
    node.apply(&rules());
    assert_eq!(node.deliver(A, &reply(1000), VM).end, End::Next);
    assert_eq!(node.send(A, &request(1000)).end, End::Next);
    assert_eq!(node.flow((V4.a, 1000), (V4.vm, 80), TCP).expect("an entry").cut, 0);
    sleep(CUT * 2);
    assert_eq!(node.deliver(A, &reply(1000), VM).end, End::Next);
}

fn an_entry_past_its_age_is_none() {
    let node = Node::with_room(rules(), Connections { ages: Ages { udp: 1_000_000, ..LASTING }, ..ROOM });
    let (request, reply) = (udp((V4.a, 5), (V4.vm, 53)), udp((V4.vm, 53), (V4.a, 5)));
    assert_eq!(node.send(A, &request).end, End::Next);
    assert_eq!(node.deliver(A, &reply, VM).end, End::Next);
    sleep(Duration::from_millis(20));
    assert!(matches!(node.deliver(A, &reply, VM).end, End::Drop(..)));
    assert_eq!(node.send(A, &request).end, End::Next);
    assert_eq!(node.deliver(A, &reply, VM).end, End::Next);
    assert!(node.flow((V4.a, 5), (V4.vm, 53), UDP).is_some());
}

/// As where another CPU has written back the flags it had read before.
fn lose_flags(node: &Node, fin: Option<u8>) {
    let pinned = MapData::from_pin(node.pins.join("maps/CONNTRACK")).expect("a pinned map");
    let mut map: HashMap<_, [u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]> =
        Map::from_map_data(pinned).expect("a map").try_into().expect("a hash");
    let entries: Vec<_> = map.iter().map(|e| e.expect("an entry")).collect();
    for (key, mut flow) in entries {
        flow[offset_of!(Flow, flags)] &= !(FLOW_CLOSING | FLOW_CLOSED);
        if let Some(fin) = fin {
            flow[offset_of!(Flow, fin)] = fin;
        }
        map.insert(key, flow, 0).expect("written");
    }
}

/// One way or the other of pod a's connection from `port`: whether pod a sends it, and flags of TCP.
fn pass(node: &Node, port: u16, (forth, flags): (bool, u8)) {
    let end = if forth {
        node.send(A, &tcp((V4.a, port), (V4.vm, 80), flags)).end
    } else {
        node.deliver(A, &tcp((V4.vm, 80), (V4.a, port), flags), VM).end
    };
    assert_eq!(end, End::Next);
}

fn what_both_ends_have_sent_closes_a_connection_whatever_became_of_its_flags() {
    const CLOSED: u8 = FLOW_CLOSING | FLOW_CLOSED;
    const FORTH: bool = true;
    const BACK: bool = false;
    let ways: [(u16, &[_], _); 5] = [
        (1, &[(FORTH, FIN | ACK)], FLOW_CLOSING),
        (2, &[(BACK, FIN | ACK)], FLOW_CLOSING),
        (3, &[(FORTH, FIN | ACK), (BACK, FIN | ACK)], CLOSED),
        (4, &[(FORTH, RST)], CLOSED),
        (5, &[(BACK, RST)], CLOSED),
    ];
    let entry = |node: &Node, port| node.flow((V4.a, port), (V4.vm, 80), TCP);
    let stage = |node: &Node, port| entry(node, port).expect("an entry").flags & CLOSED;
    let end_all = |node: &Node| {
        for (port, ends, expected) in ways {
            assert_eq!(connect(node, port), End::Next);
            ends.iter().for_each(|end| pass(node, port, *end));
            assert_eq!(stage(node, port), expected, "{ends:?}");
        }
    };
    let mut node = Node::with_room(rules(), ROOM);
    end_all(&node);
    lose_flags(&node, None);
    // Another generation asks about each connection anew.
    node.apply(&rules());
    for (port, ends, expected) in ways {
        assert_eq!(stage(&node, port), 0, "{ends:?}");
        pass(&node, port, (FORTH, ACK));
        assert_eq!(stage(&node, port), expected, "{ends:?}");
        // Begun again it is open.
        pass(&node, port, (FORTH, SYN));
        assert_eq!(stage(&node, port), 0, "{ends:?}");
    }
    // Of a daemon before: 2 was the responder's FIN, 3 both ends'.
    for fin in [1, 2, 3] {
        lose_flags(&node, Some(fin));
        pass(&node, 1, (FORTH, ACK));
        assert_eq!(stage(&node, 1), FLOW_CLOSING, "{fin}");
    }
    // And where no packet comes any more.
    let ages = Ages { closing: 200_000_000, closed: 200_000_000, ..LASTING };
    let node = Node::with_room(rules(), Connections { ages, ..ROOM });
    end_all(&node);
    lose_flags(&node, None);
    sleep(Duration::from_millis(400));
    assert_eq!(node.datapath.flow_count().expect("count"), 0);
    for port in 6..12 {
        assert_eq!(connect(&node, port), End::Next);
    }
    assert!(ways.iter().all(|(port, ..)| entry(&node, *port).is_none()), "what is dead is removed");
}

fn established_flows_outlive_a_flood_from_their_own_pod_and_new_ones_are_refused() {
    let node = Node::with_room(rules(), ROOM);
    let refused: Vec<u16> = (1000..1200).filter(|port| connect(&node, *port) != End::Next).collect();
    assert_eq!(refused, (1128..1200).collect::<Vec<_>>());
    assert_eq!(connect(&node, 2000), SHARE);
    assert_eq!(node.datapath.share(ifindex("pod-a")).expect("share").expect("a share").refused, 73);
    assert!((1000..1128).all(|port| lives(&node, port)));
}

fn who_is_refused_for_its_share_has_evicted_nobody() {
    let node = Node::with_room(rules(), ROOM);
    let request = |port| tcp((V4.vm, port), (V4.a, 80), SYN);
    let waits = |port| node.flow((V4.vm, port), (V4.a, 80), TCP).is_some();
    assert!((1000..1112).all(|port| connect(&node, port) == End::Next));
    assert!((1..17).all(|port| node.deliver(A, &request(port), VM).end == End::Next));
    // More than its ring has places.
    for port in 2000..2020 {
        assert_eq!(connect(&node, port), SHARE);
        assert_eq!(node.send(A, &udp((V4.a, port), (V4.vm, 53))).end, SHARE);
    }
    assert!((1..17).all(waits) && (1000..1112).all(|port| lives(&node, port)));
    // Whoever is evicted makes room for the one he is evicted for.
    assert_eq!(node.deliver(A, &request(17), VM).end, End::Next);
    assert!(!waits(1) && (2..18).all(waits));
    let share = node.datapath.share(ifindex("pod-a")).expect("share").expect("a share");
    assert_eq!((share.flows, share.refused), (128, 40));
}

fn closed_connections_make_way() {
    let node = Node::with_room(rules(), ROOM);
    for port in 1000..1600 {
        assert_eq!(connect(&node, port), End::Next, "{port}");
        assert_eq!(node.send(A, &tcp((V4.a, port), (V4.vm, 80), FIN | ACK)).end, End::Next);
        assert_eq!(node.deliver(A, &tcp((V4.vm, 80), (V4.a, port), FIN | ACK), VM).end, End::Next);
        // The last acknowledgement still finds its connection.
        assert_eq!(node.send(A, &tcp((V4.a, port), (V4.vm, 80), ACK)).end, End::Next);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 32);
}

fn a_full_table_refuses_and_counts_and_established_flows_go_on() {
    let room = Connections { entries: 64, per_pod: 1000, unanswered: 16, ..ROOM };
    let node = Node::with_room(rules(), room);
    let made = (1000..1200).filter(|port| connect(&node, *port) == End::Next).count();
    assert_eq!(made, 64);
    assert_eq!(connect(&node, 3000), FULL);
    assert_eq!(node.send(B, &tcp((V4.b, 5), (V4.vm, 80), SYN)).end, FULL);
    assert!((1000..1064).all(|port| lives(&node, port)));
}

fn among_128k_connections_those_of_an_address_are_forgotten_and_no_others() {
    let all = 1 << 17;
    let room = Connections { per_pod: all, unanswered: all, closed: 32, ages: LASTING, entries: 2 * all };
    let rules = rules().egress(POLICY_B, VM, Port::Udp53, 75).ingress(POLICY_A, B, Port::Tcp80, 76);
    let mut node = Node::with_room(rules.egress(POLICY_B, A, Port::Tcp80, 77), room);
    let program = SchedClassifier::from_pin(node.pins.join("programs/from_pod")).expect("a pinned program");
    let program = program.fd().expect("loaded");
    let pods = [(V4.a, MAC_A, ifindex("pod-a")), (V4.b, MAC_B, ifindex("pod-b"))];
    for (address, mac, ifindex) in pods {
        for port in 0..=u16::MAX {
            let frame = udp((address, port), (V4.vm, 53)).with_mac(mac).frame();
            let (said, _) =
                bpf::run(program.as_fd(), &Input { frame: &frame, mark: 0, ifindex }, 1).expect("a run");
            assert_eq!(said, -1, "{address} {port}");
        }
    }
    // Where it is the other end.
    for port in 0..16 {
        assert_eq!(node.pass(B, &tcp((V4.b, port), (V4.a, 80), SYN)), [End::Next; 2]);
    }
    let of_each = u64::from(all / 2);
    let share =
        |node: &Node, pod: &str| node.datapath.share(ifindex(pod)).expect("share").expect("a share").flows;
    assert_eq!([share(&node, "pod-a"), share(&node, "pod-b")], [of_each, of_each + 16]);
    let forgotten = node.datapath.forget_flows(&[V4.a.parse().expect("an address")]).expect("forgotten");
    assert_eq!(forgotten as u64, of_each + 16);
    assert_eq!([share(&node, "pod-a"), share(&node, "pod-b")], [0, of_each]);
    let left: BTreeSet<(Addr, u16)> = node
        .datapath
        .flows()
        .map(|flow| flow.expect("a flow").0)
        .map(|key| (key.low, key.low_port))
        .collect();
    assert_eq!(left, (0..=u16::MAX).map(|port| (addr(V4.b), port)).collect());
}

fn forgetting_flows_gives_their_share_back() {
    let mut node = Node::with_room(rules(), ROOM);
    let share = |node: &Node| node.datapath.share(ifindex("pod-a")).expect("share").expect("a share").flows;
    assert_eq!((1000..1128).filter(|port| connect(&node, *port) == End::Next).count(), 128);
    assert_eq!((share(&node), connect(&node, 2000)), (128, SHARE));
    assert_eq!(node.datapath.forget_flows(&[V4.vm.parse().expect("an address")]).expect("forgotten"), 128);
    assert_eq!(share(&node), 0);
    assert_eq!(connect(&node, 2000), End::Next);
    assert_eq!(share(&node), 1);
}

fn a_removed_endpoint_leaves_no_share_and_no_rings() {
    let mut node = Node::with_room(rules(), ROOM);
    let rings = |node: &Node| {
        let pinned = MapData::from_pin(node.pins.join("maps/RECENT")).expect("a pinned map");
        let map: HashMap<_, [u8; size_of::<RecentKey>()], [u8; size_of::<RecentPage>()]> =
            Map::from_map_data(pinned).expect("a map").try_into().expect("a hash");
        map.keys().count()
    };
    // More than a page of connections of each kind.
    for port in 1000..1020 {
        assert_eq!(connect(&node, port), End::Next);
        pass(&node, port, (true, RST));
        assert_eq!(node.deliver(A, &tcp((V4.vm, port), (V4.a, 80), SYN), VM).end, End::Next);
    }
    assert_eq!(rings(&node), 4);
    node.datapath.remove_endpoint(ifindex("pod-a")).expect("removed");
    assert_eq!(node.datapath.share(ifindex("pod-a")).expect("share"), None);
    assert_eq!(rings(&node), 0);
}
