//! Packets of established connections take a short way through the hooks; what is wrong with one is seen all the same.

use crate::{
    node::{A, B, End, FAMILIES, Family, MAC_B, Node, POLICY_A, POLICY_B, V4, V6, VM, addr, ifindex},
    packet::{ACK, FIN, HOST_MAC, Packet, RST, SYN, TCP, UDP, frame, ip, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{
    Ages, Connections, DROP_MALFORMED, DROP_NO_ENDPOINT, DROP_POLICY, DROP_REVOKED, DROP_SPOOFED_POD,
    DROP_TRUNCATED, Endpoint, Flow, RULE_DEFAULT_DENY, RULE_NONE,
};
use std::{thread::sleep, time::Duration};

crate::trials! {
    known:
    a_packet_of_a_connection_with_the_wrong_source_is_dropped,
    a_packet_of_a_connection_that_contradicts_itself_is_dropped,
    a_packet_of_a_connection_with_options_or_payload_passes,
    an_address_mapped_into_ipv6_is_no_part_of_a_connection,
    packets_both_ways_are_counted_once_and_keep_the_connection_alive,
    the_short_way_ends_with_the_generation,
    a_changed_endpoint_is_known_to_the_next_packet,
    the_short_way_makes_of_a_connection_what_the_long_way_makes_of_it,
}

fn rules() -> Rules {
    Rules::none()
        .egress(POLICY_A, VM, Port::Tcp80, 70)
        .egress(POLICY_A, VM, Port::Udp53, 71)
        .egress(POLICY_A, B, Port::Tcp80, 72)
        .ingress(POLICY_B, A, Port::Tcp80, 73)
}

fn dropped(reason: u8) -> End {
    End::Drop(reason, RULE_NONE)
}

/// Established connections of pod a to the vm: TCP from port 5, UDP from port 6.
fn established() -> Node {
    let node = Node::new(rules());
    FAMILIES.iter().for_each(|f| establish(&node, f));
    node
}

fn establish(node: &Node, f: &Family) {
    for (flags, reply) in [(SYN, false), (SYN | ACK, true), (ACK, false)] {
        let end = if reply {
            node.deliver(A, &tcp((f.vm, 80), (f.a, 5), flags), VM).end
        } else {
            node.send(A, &tcp((f.a, 5), (f.vm, 80), flags)).end
        };
        assert_eq!(end, End::Next);
    }
    assert_eq!(node.send(A, &udp((f.a, 6), (f.vm, 53))).end, End::Next);
    assert_eq!(node.deliver(A, &udp((f.vm, 53), (f.a, 6)), VM).end, End::Next);
}

/// Packets of pod a's connections, long enough that nothing of their headers is out of sight.
fn packets(f: &Family) -> [Packet; 2] {
    [tcp((f.a, 5), (f.vm, 80), ACK).payload(40), udp((f.a, 6), (f.vm, 53)).payload(40)]
}

fn a_packet_of_a_connection_with_the_wrong_source_is_dropped() {
    let node = established();
    for f in FAMILIES {
        for packet in packets(&f) {
            assert_eq!(node.send(A, &packet).end, End::Next);
            let stolen = packet.clone().with_mac(MAC_B).frame();
            assert_eq!(node.send_raw(A, &stolen, 0).end, dropped(DROP_SPOOFED_POD));
            // Pod b speaks as pod a, with its own MAC.
            assert_eq!(node.send(B, &packet).end, dropped(DROP_SPOOFED_POD));
        }
    }
}

fn a_packet_of_a_connection_that_contradicts_itself_is_dropped() {
    let node = established();
    for f in FAMILIES {
        let v6 = f.a.contains(':');
        for packet in packets(&f) {
            let whole = packet.with_mac(crate::node::MAC_A).frame();
            let with = |at: usize, bytes: &[u8]| {
                let mut frame = whole.clone();
                frame[at..at + bytes.len()].copy_from_slice(bytes);
                node.send_raw(A, &frame, 0).end
            };
            // Longer than it is, and without room for its own header.
            let length = if v6 { 18 } else { 16 };
            assert_eq!(with(length, &[0x10, 0]), dropped(DROP_MALFORMED));
            let short = if v6 { [0, 7] } else { [0, 27] };
            assert_eq!(with(length, &short), dropped(DROP_TRUNCATED));
            // Another version.
            assert_eq!(with(14, &[0x50]), dropped(DROP_MALFORMED));
            if !v6 {
                // A later fragment, whose first was not seen.
                assert!(matches!(with(20, &[0, 8]), End::Drop(..)));
            }
        }
    }
}

fn a_packet_of_a_connection_with_options_or_payload_passes() {
    let node = established();
    for f in FAMILIES {
        for mut packet in packets(&f) {
            if f.a.contains(':') {
                packet.extensions.push((60, vec![0, 1, 4, 0, 0, 0, 0]));
            } else {
                packet.options = vec![1; 8];
            }
            assert_eq!(node.send(A, &packet).end, End::Next);
        }
        // The shortest, which ends before a TCP header would.
        assert_eq!(node.send(A, &udp((f.a, 6), (f.vm, 53))).end, End::Next);
    }
}

fn an_address_mapped_into_ipv6_is_no_part_of_a_connection() {
    let node = established();
    let mapped = |v4: &str| format!("::ffff:{v4}");
    let (vm, a) = (mapped(V4.vm), mapped(V4.a));
    let mut raw = ip(&vm, &a, TCP, tcp((V4.vm, 80), (V4.a, 5), ACK).payload).payload(40).network();
    raw[0] = 0x60;
    let end =
        node.run(bulkhead_daemon::datapath::Hook::ToPod, "pod-a", &frame(HOST_MAC, 0x86dd, &raw), VM << 16);
    assert_eq!(end.end, dropped(DROP_MALFORMED));
}

fn packets_both_ways_are_counted_once_and_keep_the_connection_alive() {
    const AGE: Duration = Duration::from_millis(400);
    let ages = Ages { tcp: AGE.as_nanos() as u64, udp: AGE.as_nanos() as u64, ..Ages::DEFAULT };
    let node = Node::with_room(rules(), Connections { ages, ..crate::node::CONNECTIONS });
    establish(&node, &V4);
    establish(&node, &V6);
    let counts = |f: &Family, proto, port, other| {
        let flow = node.flow((f.a, port), (f.vm, other), proto).expect("an entry");
        (flow.packets, flow.bytes, flow.last_seen)
    };
    for f in FAMILIES {
        let [request, _] = packets(&f);
        let before = counts(&f, TCP, 5, 80);
        // Three ages long.
        for _ in 0..12 {
            sleep(AGE / 4);
            assert_eq!(node.send(A, &request).end, End::Next);
            assert_eq!(node.send(A, &udp((f.a, 6), (f.vm, 53)).payload(40)).end, End::Next);
            let reply = tcp((f.vm, 80), (f.a, 5), ACK).payload(40);
            assert_eq!(node.deliver(A, &reply, VM).end, End::Next);
        }
        let after = counts(&f, TCP, 5, 80);
        let long = request.frame().len() as u64;
        assert_eq!((after.0 - before.0, after.1 - before.1), (24, 24 * long));
        assert!(after.2 > before.2 + 2 * AGE.as_nanos() as u64);
        assert!(node.flow((f.a, 6), (f.vm, 53), UDP).is_some());
        sleep(AGE * 2);
        // Dead: what would be a reply is a connection of its own, and not allowed.
        let reply = tcp((f.vm, 80), (f.a, 5), ACK).payload(40);
        assert_eq!(node.deliver(A, &reply, VM).end, End::Drop(DROP_POLICY, RULE_DEFAULT_DENY));
        establish(&node, &V6);
    }
}

fn the_short_way_ends_with_the_generation() {
    let mut node = established();
    node.apply(&Rules::none());
    for f in FAMILIES {
        for packet in packets(&f) {
            assert_eq!(node.send(A, &packet).end, End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY));
        }
    }
}

fn a_changed_endpoint_is_known_to_the_next_packet() {
    let mut node = established();
    let request = tcp((V4.a, 9), (V4.vm, 80), SYN);
    assert_eq!(node.send(A, &request).end, End::Next);
    let index = ifindex("pod-a");
    let pod = node.datapath.endpoints().expect("endpoints")[&index];
    node.datapath.set_endpoint(index, &Endpoint { policies: [POLICY_B; 2], ..pod }).expect("endpoint");
    let other = tcp((V4.a, 10), (V4.vm, 80), SYN);
    assert_eq!(node.send(A, &other).end, End::Drop(DROP_POLICY, RULE_DEFAULT_DENY));
    let moved = Endpoint { ipv4: addr("10.0.1.99"), ..pod };
    node.datapath.set_endpoint(index, &moved).expect("endpoint");
    assert_eq!(node.send(A, &packets(&V4)[0]).end, dropped(DROP_SPOOFED_POD));
    node.datapath.set_endpoint(index, &pod).expect("endpoint");
    assert_eq!(node.send(A, &packets(&V4)[0]).end, End::Next);
    node.datapath.remove_endpoint(index).expect("removed");
    assert_eq!(node.send(A, &packets(&V4)[0]).end, dropped(DROP_NO_ENDPOINT));
    assert_eq!(node.deliver(A, &tcp((V4.vm, 80), (V4.a, 5), ACK), VM).end, dropped(DROP_NO_ENDPOINT));
}

/// Every sequence of so many packets behind each part of a handshake, on two connections: IP options take the packets of one of
/// them the long way.
fn the_short_way_makes_of_a_connection_what_the_long_way_makes_of_it() {
    const ROOM: Connections = Connections {
        entries: 16_384,
        per_pod: 16_384,
        unanswered: 8_192,
        closed: 8_192,
        ages: Ages::DEFAULT,
    };
    const FORTH: bool = true;
    const BACK: bool = false;
    let handshake = [(FORTH, SYN), (BACK, SYN | ACK), (FORTH, ACK)];
    let steps: Vec<(bool, u8)> = [FORTH, BACK]
        .into_iter()
        .flat_map(|way| [SYN, SYN | ACK, ACK, FIN | ACK, RST].map(|flags| (way, flags)))
        .collect();
    let node = Node::with_room(rules(), ROOM);
    let pass = |port, (forth, flags), options: &[u8]| {
        let packet = if forth {
            Packet { options: options.into(), ..tcp((V4.a, port), (V4.vm, 80), flags) }
        } else {
            Packet { options: options.into(), ..tcp((V4.vm, 80), (V4.a, port), flags) }
        };
        if forth { node.send(A, &packet).end } else { node.deliver(A, &packet, VM).end }
    };
    let entry = |port| {
        let flow = node.flow((V4.a, port), (V4.vm, 80), TCP)?;
        // Of the packets' lengths, of chance and of time.
        Some(Flow { bytes: 0, serial: 0, ring: 0, tick: 0, last_seen: 0, ..flow })
    };
    let mut port = 1024;
    for begun in 1..=handshake.len() {
        for n in 0..steps.len().pow(3) {
            let rest = [n / 100, n / 10 % 10, n % 10].map(|step| steps[step]);
            let sequence = [&handshake[..begun], &rest].concat();
            let ends = |port, options: &[u8]| -> Vec<End> {
                sequence.iter().map(|step| pass(port, *step, options)).collect()
            };
            assert_eq!(ends(port, &[]), ends(port + 1, &[1; 4]), "{sequence:?}");
            assert_eq!(entry(port), entry(port + 1), "{sequence:?}");
            port += 2;
        }
    }
}
