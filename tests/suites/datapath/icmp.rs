//! Echo is a flow; an error belongs to the flow it speaks of; all else is decided by its type.

use crate::{
    node::{A, B, End, FAMILIES, Family, Node, POLICY_A, POLICY_B, V4, V6, VM, WORLD},
    packet::{ACK, ICMP, ICMPV6, Packet, SYN, icmp, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_ebpf_abi::{DROP_POLICY, DROP_TRUNCATED, RULE_DEFAULT_DENY, RULE_NONE};

crate::trials! {
    icmp:
    an_echo_reply_passes_for_its_request_only,
    an_echo_reply_alone_is_decided_by_its_own_type_and_opens_nothing,
    an_echo_request_against_the_direction_is_decided_anew,
    an_error_passes_with_the_flow_it_speaks_of,
    an_error_about_a_packet_with_options_or_more_headers_passes_with_its_flow,
    an_error_about_a_later_piece_or_endless_headers_is_no_pass,
    an_error_about_a_connection_that_was_cut_is_no_pass,
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

/// What a router says of the packet, all of it quoted.
fn too_big(f: &Family, about: &Packet) -> Packet {
    let (router, kind) = if f.a == V4.a { ("198.51.100.254", 3) } else { ("2001:db8:fe::1", 2) };
    icmp(router, &about.src.to_string(), kind, 0, &about.network())
}

fn an_error_about_a_packet_with_options_or_more_headers_passes_with_its_flow() {
    const PADDED: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];
    let node =
        Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70).egress(POLICY_A, VM, Port::Udp53, 71));
    let mut packets = Vec::new();
    for (n, f) in (5..).zip([V4; 3].into_iter().chain([V6; 5])) {
        let mut packet = if n % 2 == 0 { tcp((f.a, n), (f.vm, 80), SYN) } else { udp((f.a, n), (f.vm, 53)) };
        packet = packet.payload(100);
        match n {
            5 => packet.options = vec![1; 4],
            6 => packet.options = vec![1; 40],
            // The first piece of a datagram, which is what is too big.
            7 | 8 => packet = packet.payload(1200).fragment(9, 0, 1208),
            9 => packet.extensions = vec![(60, PADDED.to_vec())],
            10 => packet.extensions = vec![(0, PADDED.to_vec()), (60, vec![1; 15]), (43, PADDED.to_vec())],
            11 => packet.extensions = vec![(51, vec![2; 15])],
            _ => {
                packet.extensions = vec![(0, PADDED.to_vec())];
                packet = packet.payload(1200).fragment(9, 0, 1208);
            }
        }
        if n == 10 {
            packet.extensions[1].1[0] = 1;
        }
        packets.push((f, packet));
    }
    for (f, packet) in packets {
        assert_eq!(node.deliver(A, &too_big(&f, &packet), WORLD).end, DENIED, "nothing was sent yet");
        assert_eq!(node.send(A, &packet).end, End::Next);
        assert_eq!(node.deliver(A, &too_big(&f, &packet), WORLD).end, End::Next, "{:?}", packet.extensions);
    }
}

fn an_error_about_a_later_piece_or_endless_headers_is_no_pass() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Udp53, 71));
    for f in FAMILIES {
        let whole = udp((f.a, 5), (f.vm, 53)).payload(3000);
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1480)).end, End::Next);
        assert_eq!(node.deliver(A, &too_big(&f, &whole.fragment(9, 1480, 2960)), WORLD).end, DENIED);
    }
    let mut endless = udp((V6.a, 5), (V6.vm, 53));
    endless.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0]); 9];
    assert_eq!(node.deliver(A, &too_big(&V6, &endless), WORLD).end, DENIED);
    // Cut within its headers, each of which says that there is more.
    let mut long = udp((V6.a, 5), (V6.vm, 53));
    long.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0]); 3];
    assert_eq!(node.send(A, &long).end, End::Next);
    let whole = too_big(&V6, &long);
    for length in 8..whole.payload.len() {
        let mut cut = whole.clone();
        cut.payload.truncate(length);
        let end = if length < 8 + 40 + 24 + 8 { DENIED } else { End::Next };
        assert_eq!(node.deliver(A, &cut, WORLD).end, end, "{length} bytes");
    }
}

fn an_error_about_a_connection_that_was_cut_is_no_pass() {
    let rules = Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70);
    for f in FAMILIES {
        let mut node = Node::new(rules.clone());
        let packet = tcp((f.a, 5), (f.vm, 80), SYN);
        let later = tcp((f.a, 5), (f.vm, 80), ACK);
        assert_eq!(node.send(A, &packet).end, End::Next);
        node.apply(&Rules::none());
        assert!(matches!(node.send(A, &later).end, End::Drop(..)));
        assert_eq!(node.deliver(A, &too_big(&f, &later), WORLD).end, DENIED);
        node.apply(&rules);
        assert_eq!(node.send(A, &later).end, End::Next);
        assert_eq!(node.deliver(A, &too_big(&f, &later), WORLD).end, End::Next);
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
