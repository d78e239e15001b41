//! From bytes to addresses, protocol and ports; what cannot be read whole is refused.

use crate::{
    node::{A, End, FAMILIES, MAC_A, Node, POLICY_A, V4, V6, VM},
    packet::{ACK, SYN, frame, ip, sctp, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_ebpf_abi::{
    DROP_MALFORMED, DROP_NOT_IP, DROP_POLICY, DROP_TRUNCATED, RULE_DEFAULT_DENY, RULE_NONE,
};
use std::net::Ipv6Addr;

crate::trials! {
    parsing:
    ports_of_every_protocol_are_found_in_both_families,
    options_of_ipv4_are_stepped_over,
    every_extension_header_of_ipv6_is_stepped_over,
    a_chain_of_headers_without_end_is_malformed,
    a_header_that_contradicts_itself_is_malformed,
    a_packet_cut_behind_its_ip_header_is_dropped,
    a_frame_that_is_not_ip_is_dropped,
    padding_behind_the_packet_is_not_taken_for_ports,
    a_super_packet_longer_than_its_length_field_can_say_passes,
}

fn to_vm() -> Node {
    let mut rules = Rules::none();
    for port in [Port::Tcp80, Port::TcpRange, Port::Udp53, Port::Sctp3868, Port::Gre] {
        rules = rules.egress(POLICY_A, VM, port, 100 + port as u32);
    }
    Node::new(rules)
}

const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);

fn ports_of_every_protocol_are_found_in_both_families() {
    let node = to_vm();
    for f in FAMILIES {
        let cases = [
            (tcp((f.a, 1234), (f.vm, 80), SYN), End::Next),
            (tcp((f.a, 1234), (f.vm, 81), SYN), DENIED),
            (tcp((f.a, 1234), (f.vm, 7999), SYN), DENIED),
            (tcp((f.a, 1234), (f.vm, 8000), SYN), End::Next),
            (tcp((f.a, 1234), (f.vm, 9999), SYN), End::Next),
            (tcp((f.a, 1234), (f.vm, 10_000), SYN), DENIED),
            (udp((f.a, 1234), (f.vm, 53)), End::Next),
            (udp((f.a, 1234), (f.vm, 80)), DENIED),
            (sctp((f.a, 1234), (f.vm, 3868)), End::Next),
            (sctp((f.a, 1234), (f.vm, 3869)), DENIED),
            (ip(f.a, f.vm, 47, vec![0; 4]), End::Next),
            (ip(f.a, f.vm, 50, vec![0; 4]), DENIED),
        ];
        for (i, (packet, end)) in cases.iter().enumerate() {
            assert_eq!(node.send(A, packet).end, *end, "case {i} of {f:?}");
        }
    }
}

fn options_of_ipv4_are_stepped_over() {
    let node = to_vm();
    for length in (0..=40).step_by(4) {
        for (port, end) in [(80, End::Next), (443, DENIED)] {
            let mut packet = tcp((V4.a, 1000 + length as u16), (V4.vm, port), SYN);
            packet.options = vec![1; length];
            assert_eq!(node.send(A, &packet).end, end, "{length} bytes of options");
        }
    }
}

fn every_extension_header_of_ipv6_is_stepped_over() {
    let node = to_vm();
    let plain = vec![0; 7];
    let mut long = vec![2];
    long.extend([0; 22]);
    // Authentication: its length counts words of four, minus two.
    let authentication = (51, [vec![4u8], vec![0; 22]].concat());
    let mut chains = vec![vec![authentication.clone()]];
    for number in [0, 43, 60] {
        chains.push(vec![(number, plain.clone())]);
        chains.push(vec![(number, long.clone()), authentication.clone()]);
    }
    chains.push(vec![(0, plain.clone()), (60, long.clone()), (43, plain.clone()), authentication]);
    for (i, chain) in chains.iter().enumerate() {
        for (port, end) in [(80, End::Next), (443, DENIED)] {
            let mut packet = tcp((V6.a, 1000 + i as u16), (V6.vm, port), SYN);
            packet.extensions = chain.clone();
            assert_eq!(node.send(A, &packet).end, end, "chain {i}");
        }
    }
}

fn a_chain_of_headers_without_end_is_malformed() {
    let node = to_vm();
    let mut packet = tcp((V6.a, 1), (V6.vm, 80), SYN);
    packet.extensions = vec![(60, vec![0; 7]); 20];
    assert_eq!(node.send(A, &packet).end, End::Drop(DROP_MALFORMED, RULE_NONE));
}

fn a_header_that_contradicts_itself_is_malformed() {
    let node = to_vm();
    let v4 = tcp((V4.a, 1), (V4.vm, 80), SYN).with_mac(MAC_A).frame();
    let v6 = tcp((V6.a, 1), (V6.vm, 80), SYN).with_mac(MAC_A).frame();
    let broken = |frame: &[u8], at: usize, byte: u8| {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    };
    let mapped = |at: usize, address: &str| {
        let mut frame = v6.clone();
        frame[at..at + 16].copy_from_slice(&address.parse::<Ipv6Addr>().expect("an address").octets());
        frame
    };
    let cases = [
        ("IPv4 header of 16 bytes", broken(&v4, 14, 0x44)),
        ("IPv4 header longer than its packet", broken(&v4, 14, 0x4f)),
        ("IPv4 with version 6", broken(&v4, 14, 0x65)),
        ("IPv4 total length beyond the packet", broken(&v4, 17, 41)),
        ("IPv4 total length within the header", broken(&v4, 17, 19)),
        ("IPv6 with version 4", broken(&v6, 14, 0x40)),
        ("IPv6 payload beyond the packet", broken(&v6, 19, 21)),
        ("IPv6 from an IPv4-mapped address", mapped(8 + 14, "::ffff:10.0.1.1")),
        ("IPv6 to an IPv4-mapped address", mapped(24 + 14, "::ffff:192.0.2.7")),
    ];
    for (what, frame) in cases {
        let end = node.send_raw(A, &frame, 0).end;
        assert!(matches!(end, End::Drop(DROP_MALFORMED, RULE_NONE)), "{what}: {end:?}");
    }
}

fn a_packet_cut_behind_its_ip_header_is_dropped() {
    let node = to_vm();
    for f in FAMILIES {
        let (header, length_at) = if f.a == V4.a { (34, 17) } else { (54, 19) };
        for (packet, needed) in [
            (tcp((f.a, 9), (f.vm, 80), SYN), 20),
            (udp((f.a, 9), (f.vm, 53)), 8),
            (sctp((f.a, 9), (f.vm, 3868)), 12),
        ] {
            let whole = packet.with_mac(MAC_A).frame();
            for length in header..whole.len() {
                // Cut on the way: shorter than it says of itself.
                let mut cut = whole[..length].to_vec();
                let end = node.send_raw(A, &cut, 0).end;
                assert_eq!(end, End::Drop(DROP_MALFORMED, RULE_NONE), "{length} bytes");
                // Made short: its length is true, its transport header is not whole.
                cut[length_at] = (length - if header == 34 { 14 } else { 54 }) as u8;
                let end = node.send_raw(A, &cut, 0).end;
                let short = length - header < needed;
                let expected = if short { End::Drop(DROP_TRUNCATED, RULE_NONE) } else { End::Next };
                assert_eq!(end, expected, "{length} true bytes");
            }
        }
    }
}

fn a_frame_that_is_not_ip_is_dropped() {
    let node = to_vm();
    for ethertype in [0x88cc, 0x8847, 0x0842, 0x0010] {
        let end = node.send_raw(A, &frame(MAC_A, ethertype, &[0; 46]), 0).end;
        assert_eq!(end, End::Drop(DROP_NOT_IP, RULE_NONE));
    }
    // A tag in front of an allowed packet.
    let mut tagged = vec![0, 5, 0x08, 0x00];
    tagged.extend(tcp((V4.a, 1), (V4.vm, 80), SYN).network());
    let end = node.send_raw(A, &frame(MAC_A, 0x8100, &tagged), 0).end;
    assert_eq!(end, End::Drop(DROP_NOT_IP, RULE_NONE));
}

fn padding_behind_the_packet_is_not_taken_for_ports() {
    let node = to_vm();
    // An IPv4 packet of 20 bytes, padded to the shortest Ethernet frame with what looks like an allowed port.
    let mut frame = ip(V4.a, V4.vm, 6, Vec::new()).with_mac(MAC_A).frame();
    frame.extend(tcp((V4.a, 1), (V4.vm, 80), SYN).payload);
    assert_eq!(node.send_raw(A, &frame, 0).end, End::Drop(DROP_TRUNCATED, RULE_NONE));
}

fn a_super_packet_longer_than_its_length_field_can_say_passes() {
    let node = to_vm();
    for (f, at) in [(V4, 16), (V6, 18)] {
        let mut frame = tcp((f.a, 77), (f.vm, 80), ACK).payload(3000).with_mac(MAC_A).frame();
        frame[at..at + 2].fill(0);
        let single = node.send_raw(A, &frame, 0).end;
        assert!(matches!(single, End::Drop(DROP_MALFORMED | DROP_TRUNCATED, _)), "{single:?}");
        assert_eq!(node.send_gso(A, &frame, 1448).end, End::Next);
    }
}
