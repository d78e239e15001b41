//! A connection has an age by its protocol and by how far it is, and no other one's.

use crate::{
    node::{A, End, FAMILIES, Family, Node, POLICY_A, V4, VM},
    packet::{ACK, FIN, Packet, SYN, icmp, sctp, tcp, udp},
    room::LASTING,
    rules::{Port, Rules},
};
use bulkhead_ebpf_abi::{Ages, Connections, DROP_POLICY, DROP_REVOKED, RULE_DEFAULT_DENY};
use std::{thread::sleep, time::Duration};

crate::trials! {
    ages:
    a_connection_dies_at_the_age_of_its_kind_and_of_no_other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    UnansweredTcp,
    UnansweredUdp,
    Tcp,
    Closing,
    Closed,
    Cut,
    Udp,
    Echo,
    Other,
}
use Kind::*;

const KINDS: [Kind; 9] = [UnansweredTcp, UnansweredUdp, Tcp, Closing, Closed, Cut, Udp, Echo, Other];

/// All others last.
const SHORT: u64 = 1_000_000;
const AGES: [(&[Kind], Ages); 8] = [
    (&[UnansweredTcp, UnansweredUdp], Ages { unanswered: SHORT, ..LASTING }),
    (&[Tcp], Ages { tcp: SHORT, ..LASTING }),
    (&[Closing], Ages { closing: SHORT, ..LASTING }),
    (&[Closed], Ages { closed: SHORT, ..LASTING }),
    (&[Cut], Ages { cut: SHORT, ..LASTING }),
    (&[Udp], Ages { udp: SHORT, ..LASTING }),
    (&[Echo], Ages { echo: SHORT, ..LASTING }),
    (&[Other], Ages { other: SHORT, ..LASTING }),
];

/// A connection of pod a with the vm.
#[derive(Clone, Copy, Debug)]
struct Connection {
    kind: Kind,
    family: Family,
    port: u16,
    /// Its packets are too complicated for the short way.
    long_way: bool,
}

impl Connection {
    fn packet(&self, forth: bool, flags: u8) -> Packet {
        let Self { kind, family: f, port, .. } = *self;
        let between = |server| {
            let ends = [(f.a, port), (f.vm, server)];
            if forth { ends } else { [ends[1], ends[0]] }
        };
        let mut packet = match kind {
            UnansweredTcp | Tcp | Closing | Closed => {
                let [from, to] = between(80);
                tcp(from, to, flags)
            }
            Cut => {
                let [from, to] = between(8000);
                tcp(from, to, flags)
            }
            UnansweredUdp | Udp => {
                let [from, to] = between(53);
                udp(from, to)
            }
            Echo if forth => icmp(f.a, f.vm, f.echo, port, &[]),
            Echo => icmp(f.vm, f.a, f.echo_reply, port, &[]),
            Other => {
                let [from, to] = between(3868);
                sctp(from, to)
            }
        };
        if self.long_way && f.a == V4.a {
            packet.options = vec![1; 4];
        } else if self.long_way {
            packet.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])];
        }
        packet
    }

    fn pass(&self, node: &Node, forth: bool, flags: u8) -> End {
        let packet = self.packet(forth, flags);
        if forth { node.send(A, &packet).end } else { node.deliver(A, &packet, VM).end }
    }

    fn begin(&self, node: &Node) {
        const FORTH: bool = true;
        const BACK: bool = false;
        let steps: &[(bool, u8)] = match self.kind {
            UnansweredTcp | UnansweredUdp => &[(FORTH, SYN)],
            Tcp | Cut => &[(FORTH, SYN), (BACK, SYN | ACK), (FORTH, ACK)],
            Closing => &[(FORTH, SYN), (BACK, SYN | ACK), (FORTH, ACK), (FORTH, FIN | ACK)],
            Closed => &[(FORTH, SYN), (BACK, SYN | ACK), (FORTH, ACK), (FORTH, FIN | ACK), (BACK, FIN | ACK)],
            Udp | Echo | Other => &[(FORTH, SYN), (BACK, SYN)],
        };
        for (forth, flags) in steps {
            assert_eq!(self.pass(node, *forth, *flags), End::Next, "{self:?}");
        }
    }

    /// What the next packet meets: an answer is let in as such alone; what was cut is told from what was never allowed.
    fn is_alive(&self, node: &Node) -> bool {
        const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);
        const CUT: End = End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY);
        match (self.kind, self.pass(node, self.kind == Cut, ACK)) {
            (Cut, CUT) => true,
            (Cut, DENIED) => false,
            (Cut, end) => panic!("{self:?}: {end:?}"),
            (_, End::Next) => true,
            (_, DENIED) => false,
            (_, end) => panic!("{self:?}: {end:?}"),
        }
    }
}

/// As many of each kind as there are ages: a look at one changes it.
fn connections(set: usize) -> Vec<Connection> {
    let mut connections = Vec::new();
    for family in FAMILIES {
        for long_way in [false, true] {
            for (kind, n) in KINDS.into_iter().zip(0..) {
                let port = 1024 + set as u16 * 64 + n * 2 + u16::from(long_way);
                connections.push(Connection { kind, family, port, long_way });
            }
        }
    }
    connections
}

fn a_connection_dies_at_the_age_of_its_kind_and_of_no_other() {
    let rules = Rules::none()
        .egress(POLICY_A, VM, Port::Tcp80, 70)
        .egress(POLICY_A, VM, Port::Udp53, 71)
        .egress(POLICY_A, VM, Port::Sctp3868, 72)
        .egress(POLICY_A, VM, Port::Echo, 73);
    let room = |ages| Connections { ages, ..crate::node::CONNECTIONS };
    let mut node = Node::with_room(rules.clone().egress(POLICY_A, VM, Port::TcpRange, 74), room(LASTING));
    let mut sets: Vec<Vec<Connection>> = (0..AGES.len()).map(connections).collect();
    sets.iter().flatten().for_each(|connection| connection.begin(&node));
    node.apply(&rules);
    // One is cut; the others go on, and have been asked about when they are looked at.
    for connection in sets.iter().flatten() {
        let goes_on = connection.pass(&node, true, ACK) == End::Next;
        assert_eq!(goes_on, connection.kind != Cut, "{connection:?}");
    }
    let all = sets.iter().flatten().count();
    assert_eq!(node.datapath.flow_count().expect("count"), all);
    sleep(Duration::from_millis(20));
    for (n, (dying, ages)) in AGES.into_iter().enumerate() {
        // The maps stay, and all that lies in them.
        let Node { datapath, pins, .. } = node;
        drop(datapath);
        node = Node::open_for(pins, room(ages));
        assert!(node.adopted);
        let living = sets.iter().flatten().filter(|c| !dying.contains(&c.kind)).count();
        assert_eq!(node.datapath.flow_count().expect("count"), living, "{dying:?}");
        for connection in &mut sets[n] {
            let (alive, lasts) = (connection.is_alive(&node), !dying.contains(&connection.kind));
            assert_eq!(alive, lasts, "{connection:?} where {dying:?} die");
            // It has been answered.
            if alive && connection.kind == UnansweredUdp {
                connection.kind = Udp;
            }
        }
    }
}
