//! Echo is a flow; an error belongs to the flow it speaks of; all else is decided by its type.

use crate::{
    node::{A, B, End, FAMILIES, Node, POLICY_A, POLICY_B, V4, V6, VM, WORLD},
    packet::{ICMP, ICMPV6, Packet, SYN, icmp, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_ebpf_abi::{DROP_POLICY, DROP_TRUNCATED, RULE_DEFAULT_DENY, RULE_NONE};

crate::trials! {
    icmp:
    an_echo_reply_passes_for_its_request_only,
    an_echo_reply_alone_is_decided_by_its_own_type_and_opens_nothing,
    an_echo_request_against_the_direction_is_decided_anew,
    an_error_passes_with_the_flow_it_speaks_of,
    an_error_that_speaks_of_no_flow_is_decided_by_its_type,
    an_error_that_speaks_of_somebody_elses_flow_does_not_pass,
    an_error_cut_anywhere_is_no_pass,
    types_without_flows_are_decided_each_time,
}

const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);

fn an_echo_reply_passes_for_its_request_only() {
    let node = Node::new(
        Rules::none().egress(POLICY_A, VM, Port::Echo, 70).egress(POLICY_A, B, Port::Echo, 71).ingress(
            POLICY_B,
            A,
            Port::Echo,
            72,
        ),
    );
    for f in FAMILIES {
        assert_eq!(node.send(A, &icmp(f.a, f.vm, f.echo, 7, &[1; 56])).end, End::Next);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo_reply, 7, &[1; 56]), VM).end, End::Next);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo_reply, 8, &[1; 56]), VM).end, DENIED);
        assert_eq!(node.pass(A, &icmp(f.a, f.b, f.echo, 9, &[])), [End::Next; 2]);
        assert_eq!(node.pass(B, &icmp(f.b, f.a, f.echo_reply, 9, &[])), [End::Next; 2]);
        let flow = node.flow((f.a, 9), (f.b, 9), if f.a == V4.a { ICMP } else { ICMPV6 });
        assert_eq!(flow.expect("an entry").service_port, u16::from(f.echo));
    }
}

fn an_echo_reply_alone_is_decided_by_its_own_type_and_opens_nothing() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::EchoReply, 70));
    for f in FAMILIES {
        assert_eq!(node.send(A, &icmp(f.a, f.vm, f.echo_reply, 7, &[])).end, End::Next);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo, 7, &[]), VM).end, DENIED);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo_reply, 7, &[]), VM).end, DENIED);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 0);
}

fn an_echo_request_against_the_direction_is_decided_anew() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Echo, 70));
    for f in FAMILIES {
        assert_eq!(node.send(A, &icmp(f.a, f.vm, f.echo, 7, &[])).end, End::Next);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo, 7, &[]), VM).end, DENIED);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo_reply, 7, &[]), VM).end, End::Next);
    }
}

/// An error from `from` to the sender of `about`.
fn error(from: &str, about: &Packet, kind: u8) -> Packet {
    let mut quote = about.network();
    quote.truncate(if about.src.is_ipv4() { 28 } else { 1232 });
    icmp(from, &about.src.to_string(), kind, 0, &quote)
}

fn an_error_passes_with_the_flow_it_speaks_of() {
    let rules = Rules::none()
        .egress(POLICY_A, VM, Port::Tcp80, 70)
        .egress(POLICY_A, VM, Port::Udp53, 71)
        .egress(POLICY_A, VM, Port::Echo, 72)
        .ingress(POLICY_B, VM, Port::Tcp80, 73);
    let node = Node::new(rules);
    let router = |v4: bool| if v4 { "198.51.100.254" } else { "2001:db8:fe::1" };
    for f in FAMILIES {
        let v4 = f.a == V4.a;
        let kinds: &[u8] = if v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        for packet in
            [tcp((f.a, 5), (f.vm, 80), SYN), udp((f.a, 5), (f.vm, 53)), icmp(f.a, f.vm, f.echo, 5, &[])]
        {
            assert_eq!(node.send(A, &packet).end, End::Next);
            for kind in kinds {
                let end = node.deliver(A, &error(router(v4), &packet, *kind), WORLD).end;
                assert_eq!(end, End::Next, "type {kind}");
            }
        }
        // And from a pod, about what it was sent.
        let packet = tcp((f.vm, 5), (f.b, 80), SYN);
        assert_eq!(node.deliver(B, &packet, VM).end, End::Next);
        assert_eq!(node.send(B, &error(f.b, &packet, f.unreachable)).end, End::Next);
    }
}

fn an_error_that_speaks_of_no_flow_is_decided_by_its_type() {
    let about = |f: crate::node::Family| tcp((f.a, 5), (f.vm, 80), SYN);
    for f in FAMILIES {
        let node = Node::new(Rules::none());
        assert_eq!(node.deliver(A, &error(f.world, &about(f), f.unreachable), WORLD).end, DENIED);
        let node = Node::new(Rules::none().ingress(POLICY_A, WORLD, Port::Unreachable, 70));
        assert_eq!(node.deliver(A, &error(f.world, &about(f), f.unreachable), WORLD).end, End::Next);
        assert_eq!(node.datapath.flow_count().expect("count"), 0);
    }
}

fn an_error_that_speaks_of_somebody_elses_flow_does_not_pass() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70));
    for f in FAMILIES {
        let packet = tcp((f.a, 5), (f.vm, 80), SYN);
        assert_eq!(node.send(A, &packet).end, End::Next);
        let mut to_b = error(f.world, &packet, f.unreachable);
        to_b.dst = f.b.parse().expect("an address");
        assert_eq!(node.deliver(B, &to_b, WORLD).end, DENIED);
        // Other ports: another flow.
        let other = tcp((f.a, 6), (f.vm, 80), SYN);
        assert_eq!(node.deliver(A, &error(f.world, &other, f.unreachable), WORLD).end, DENIED);
    }
}

fn an_error_cut_anywhere_is_no_pass() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70));
    for f in FAMILIES {
        let packet = tcp((f.a, 5), (f.vm, 80), SYN);
        assert_eq!(node.send(A, &packet).end, End::Next);
        let whole = error(f.world, &packet, f.unreachable);
        let quote = if f.a == V4.a { 20 } else { 40 };
        for length in 0..8 + quote + 8 {
            let mut cut = whole.clone();
            cut.payload.truncate(length);
            let end = if length < 8 { End::Drop(DROP_TRUNCATED, RULE_NONE) } else { DENIED };
            assert_eq!(node.deliver(A, &cut, WORLD).end, end, "{length} bytes");
        }
    }
}

fn types_without_flows_are_decided_each_time() {
    // Type 13 (timestamp) shares `Port::Other` with everything unnamed.
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Other, 70));
    assert_eq!(node.send(A, &icmp(V4.a, V4.vm, 13, 7, &[0; 12])).end, End::Next);
    assert_eq!(node.deliver(A, &icmp(V4.vm, V4.a, 14, 7, &[0; 12]), VM).end, DENIED);
    assert_eq!(node.send(A, &icmp(V6.a, V6.vm, 139, 7, &[])).end, End::Next);
    assert_eq!(node.datapath.flow_count().expect("count"), 0);
}
