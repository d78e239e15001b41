//! A connection is what its initiator began.

use crate::{
    node::{A, B, End, FAMILIES, Node, POLICY_A, POLICY_B, V4, V6, VM},
    packet::{ACK, FIN, RST, SYN, TCP, UDP, sctp, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{
    DROP_POLICY, FLOW_ANSWERED, FLOW_CLOSING, FLOW_VERSION, PATH_STACK, RULE_DEFAULT_DENY,
};

crate::trials! {
    connections:
    replies_of_an_allowed_connection_pass,
    without_the_connection_the_same_packets_are_refused,
    a_flow_has_one_entry_for_both_ends,
    a_syn_against_the_direction_is_a_new_connection,
    a_refused_syn_against_the_direction_leaves_the_connection_alone,
    a_refused_responder_leaves_no_entry,
    closing_and_answers_are_seen_and_a_new_syn_begins_again,
    packets_and_bytes_are_counted_once,
    flows_are_listed_and_forgotten_by_address,
}

const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);

fn a_to_b() -> Rules {
    Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71)
}

fn replies_of_an_allowed_connection_pass() {
    let mut rules = a_to_b();
    for port in [Port::Tcp80, Port::Udp53, Port::Sctp3868] {
        rules = rules.egress(POLICY_A, VM, port, 72).ingress(POLICY_B, VM, port, 73);
    }
    let node = Node::new(rules);
    for f in FAMILIES {
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, End::Next);
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), SYN | ACK), VM).end, End::Next);
        assert_eq!(node.send(A, &udp((f.a, 5), (f.vm, 53))).end, End::Next);
        assert_eq!(node.deliver(A, &udp((f.vm, 53), (f.a, 5)), VM).end, End::Next);
        assert_eq!(node.deliver(B, &sctp((f.vm, 5), (f.b, 3868)), VM).end, End::Next);
        assert_eq!(node.send(B, &sctp((f.b, 3868), (f.vm, 5))).end, End::Next);
        assert_eq!(node.pass(A, &tcp((f.a, 6), (f.b, 80), SYN)), [End::Next; 2]);
        assert_eq!(node.pass(B, &tcp((f.b, 80), (f.a, 6), SYN | ACK)), [End::Next; 2]);
    }
}

fn without_the_connection_the_same_packets_are_refused() {
    let node = Node::new(a_to_b().egress(POLICY_A, VM, Port::Udp53, 72));
    for f in FAMILIES {
        assert_eq!(node.deliver(A, &udp((f.vm, 53), (f.a, 5)), VM).end, DENIED);
        assert_eq!(node.send(B, &tcp((f.b, 80), (f.a, 6), SYN | ACK)).end, DENIED);
        // Another port of the same hosts is another flow.
        assert_eq!(node.send(A, &udp((f.a, 5), (f.vm, 53))).end, End::Next);
        assert_eq!(node.deliver(A, &udp((f.vm, 53), (f.a, 7)), VM).end, DENIED);
        assert_eq!(node.deliver(A, &udp((f.vm, 54), (f.a, 5)), VM).end, DENIED);
    }
}

fn a_flow_has_one_entry_for_both_ends() {
    let node = Node::new(a_to_b());
    for f in FAMILIES {
        assert_eq!(node.pass(A, &tcp((f.a, 5), (f.b, 80), SYN)), [End::Next; 2]);
        let flow = node.flow((f.a, 5), (f.b, 80), TCP).expect("an entry");
        assert_eq!((flow.generations, flow.rules), ([1, 1], [70, 71]));
        assert_eq!(
            (flow.service_port, flow.version, flow.path, flow.origin),
            (80, FLOW_VERSION, PATH_STACK, 0)
        );
        assert_ne!(flow.last_seen, 0);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 2);
}

fn a_syn_against_the_direction_is_a_new_connection() {
    // Both ends may open to port 80; from there they meet on the same pair of ports.
    let node = Node::new(a_to_b().egress(POLICY_B, A, Port::Tcp80, 80).ingress(POLICY_A, B, Port::Tcp80, 81));
    for f in FAMILIES {
        assert_eq!(node.pass(A, &tcp((f.a, 80), (f.b, 80), SYN)), [End::Next; 2]);
        assert_eq!(node.pass(B, &tcp((f.b, 80), (f.a, 80), SYN)), [End::Next; 2]);
        let flow = node.flow((f.a, 80), (f.b, 80), TCP).expect("an entry");
        assert_eq!(flow.rules, [80, 81]);
    }
}

fn a_refused_syn_against_the_direction_leaves_the_connection_alone() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70));
    for f in FAMILIES {
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, End::Next);
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), SYN), VM).end, DENIED);
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), ACK), VM).end, End::Next);
    }
}

fn a_refused_responder_leaves_no_entry() {
    let node = Node::new(Rules::none().egress(POLICY_A, B, Port::Tcp80, 70));
    assert_eq!(node.pass(A, &tcp((V4.a, 5), (V4.b, 80), SYN)), [End::Next, DENIED]);
    assert_eq!(node.flow((V4.a, 5), (V4.b, 80), TCP), None);
    // So its reply is not one.
    assert_eq!(node.send(B, &tcp((V4.b, 80), (V4.a, 5), SYN | ACK)).end, DENIED);
}

fn closing_and_answers_are_seen_and_a_new_syn_begins_again() {
    let node = Node::new(a_to_b());
    let flags = |f: crate::node::Family| {
        node.flow((f.a, 5), (f.b, 80), TCP).expect("an entry").flags & (FLOW_ANSWERED | FLOW_CLOSING)
    };
    for f in FAMILIES {
        for close in [FIN | ACK, RST] {
            node.pass(A, &tcp((f.a, 5), (f.b, 80), SYN));
            assert_eq!(flags(f), 0);
            node.pass(B, &tcp((f.b, 80), (f.a, 5), SYN | ACK));
            assert_eq!(flags(f), FLOW_ANSWERED);
            node.pass(A, &tcp((f.a, 5), (f.b, 80), close));
            assert_eq!(flags(f), FLOW_ANSWERED | FLOW_CLOSING);
        }
    }
}

fn packets_and_bytes_are_counted_once() {
    let node = Node::new(a_to_b().egress(POLICY_A, VM, Port::Tcp80, 72));
    for _ in 0..3 {
        node.pass(A, &tcp((V4.a, 5), (V4.b, 80), ACK));
        node.pass(B, &tcp((V4.b, 80), (V4.a, 5), ACK).payload(100));
        node.send(A, &tcp((V4.a, 5), (V4.vm, 80), ACK));
        node.deliver(A, &tcp((V4.vm, 80), (V4.a, 5), ACK).payload(100), VM);
    }
    for other in [V4.b, V4.vm] {
        let flow = node.flow((V4.a, 5), (other, 80), TCP).expect("an entry");
        assert_eq!((flow.packets, flow.bytes), (6, 3 * 54 + 3 * 154), "{other}");
    }
}

fn flows_are_listed_and_forgotten_by_address() {
    let mut node =
        Node::new(a_to_b().egress(POLICY_A, VM, Port::Udp53, 72).ingress(POLICY_B, VM, Port::Udp53, 73));
    for port in 0..200 {
        node.send(A, &udp((V4.a, port), (V4.vm, 53)));
        node.deliver(B, &udp((V4.vm, port), (V4.b, 53)), VM);
    }
    node.send(A, &udp((V6.a, 1), (V6.vm, 53)));
    assert_eq!(node.datapath.flow_count().expect("count"), 401);
    let gone = node.datapath.forget_flows(&[V4.a.parse().expect("address"), V6.a.parse().expect("address")]);
    assert_eq!(gone.expect("forgotten"), 201);
    let left: Vec<_> = node.datapath.flows().map(|flow| flow.expect("a flow").0).collect();
    assert_eq!(left.len(), 200);
    assert!(left.iter().all(|key| key.proto == UDP && key.low_port.min(key.high_port) < 200));
    assert_eq!(node.datapath.forget_flows(&[]).expect("none"), 0);
}
