//! Later fragments follow their first; what could rewrite or hide ports is dropped.

use crate::{
    node::{A, B, End, FAMILIES, Family, Node, POLICY_A, POLICY_B, V4, V6, VM},
    packet::{Packet, SYN, icmp, tcp, udp},
    rules::{Port, Rules},
};
use aya::maps::{HashMap, Map, MapData, MapError};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{
    DROP_FRAGMENT, DROP_FRAGMENT_TINY, DROP_MALFORMED, DROP_POLICY, FRAGMENTS_PER_RING, RULE_DEFAULT_DENY,
    RULE_NONE,
};

crate::trials! {
    fragments:
    later_fragments_follow_their_first,
    later_fragments_follow_a_first_with_headers_behind_its_own,
    later_fragments_without_their_first_are_dropped,
    fragments_of_a_refused_first_are_dropped,
    a_first_fragment_without_its_ports_is_dropped,
    fragments_that_overlap_the_first_are_dropped,
    both_hooks_of_one_node_see_the_same_fragments,
    a_flood_of_first_pieces_harms_the_pod_that_sends_it_and_no_other,
    a_flood_of_first_pieces_from_outside_harms_no_pods_datagram,
    a_first_piece_that_comes_twice_takes_one_place,
    full_rings_drop_no_pods_datagram,
    an_atomic_fragment_is_a_whole_packet,
    fragments_that_cannot_be_are_malformed,
    echo_in_fragments_is_one_flow,
}

fn to_vm() -> Node {
    Node::new(
        Rules::none()
            .egress(POLICY_A, VM, Port::Tcp80, 70)
            .egress(POLICY_A, VM, Port::Udp53, 71)
            .egress(POLICY_A, VM, Port::Echo, 72)
            .egress(POLICY_A, B, Port::Udp53, 73)
            .ingress(POLICY_B, A, Port::Udp53, 74),
    )
}

const ORPHAN: End = End::Drop(DROP_FRAGMENT, RULE_NONE);
const TINY: End = End::Drop(DROP_FRAGMENT_TINY, RULE_NONE);

fn datagram(f: Family, port: u16) -> Packet {
    udp((f.a, 5), (f.vm, port)).payload(3000)
}

fn later_fragments_follow_their_first() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = datagram(f, 53);
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1480)).end, End::Next);
        assert_eq!(node.send(A, &whole.fragment(9, 1480, 2960)).end, End::Next);
        assert_eq!(node.send(A, &whole.fragment(9, 2960, 3008)).end, End::Next);
        assert_eq!(node.flow((f.a, 5), (f.vm, 53), 17).expect("an entry").packets, 3);
    }
}

fn later_fragments_follow_a_first_with_headers_behind_its_own() {
    let node = to_vm();
    let mut whole = datagram(V6, 53);
    // Destination options in the part that is cut to pieces: each piece names them, not UDP.
    whole.payload = [vec![whole.proto, 0, 1, 4, 0, 0, 0, 0], whole.payload].concat();
    whole.proto = 60;
    for (from, to) in [(0, 1480), (1480, 2960), (2960, 3016)] {
        assert_eq!(node.send(A, &whole.fragment(9, from, to)).end, End::Next);
    }
    assert_eq!(node.flow((V6.a, 5), (V6.vm, 53), 17).expect("an entry").packets, 3);
}

fn later_fragments_without_their_first_are_dropped() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = datagram(f, 53);
        assert_eq!(node.send(A, &whole.fragment(9, 1480, 2960)).end, ORPHAN);
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1480)).end, End::Next);
        // Of another datagram.
        assert_eq!(node.send(A, &whole.fragment(10, 1480, 2960)).end, ORPHAN);
    }
}

fn fragments_of_a_refused_first_are_dropped() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = datagram(f, 54);
        let end = node.send(A, &whole.fragment(9, 0, 1480)).end;
        assert_eq!(end, End::Drop(DROP_POLICY, RULE_DEFAULT_DENY));
        assert_eq!(node.send(A, &whole.fragment(9, 1480, 3008)).end, ORPHAN);
    }
}

fn a_first_fragment_without_its_ports_is_dropped() {
    let node = to_vm();
    for f in FAMILIES {
        let stream = tcp((f.a, 5), (f.vm, 80), SYN).payload(100);
        for length in [8, 16] {
            assert_eq!(node.send(A, &stream.fragment(9, 0, length)).end, TINY, "{length} bytes");
        }
        assert_eq!(node.send(A, &stream.fragment(9, 0, 24)).end, End::Next);
    }
    // The transport header hidden behind another header of the chain (RFC 7112).
    let mut hidden = udp((V6.a, 5), (V6.vm, 53));
    hidden.proto = 60;
    hidden.payload = [vec![17, 0, 0, 0, 0, 0, 0, 0], hidden.payload, vec![0; 64]].concat();
    assert_eq!(node.send(A, &hidden.fragment(9, 0, 8)).end, TINY);
}

fn fragments_that_overlap_the_first_are_dropped() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = datagram(f, 53);
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1480)).end, End::Next);
        for start in [8, 16, 1472] {
            assert_eq!(node.send(A, &whole.fragment(9, start, 2960)).end, TINY, "from {start}");
        }
    }
}

fn both_hooks_of_one_node_see_the_same_fragments() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = udp((f.a, 5), (f.b, 53)).payload(3000);
        for (from, to) in [(0, 1480), (1480, 2960), (2960, 3008)] {
            assert_eq!(node.pass(A, &whole.fragment(9, from, to)), [End::Next; 2]);
        }
    }
}

/// Many more than a ring has room for; the first, than all rings have.
const FLOODS: [(Family, u16); 2] = [(V4, 20_000), (V6, 1_000)];
const RING: u16 = FRAGMENTS_PER_RING as u16;

fn a_flood_of_first_pieces_harms_the_pod_that_sends_it_and_no_other() {
    let rules = Rules::none().egress(POLICY_A, VM, Port::Udp53, 71).egress(POLICY_B, VM, Port::Udp53, 72);
    let rules = rules.ingress(POLICY_A, VM, Port::Udp53, 73).ingress(POLICY_A, B, Port::Udp53, 74);
    let node = Node::new(rules);
    for (f, last) in FLOODS {
        let (own, theirs) = (datagram(f, 53), udp((f.b, 5), (f.vm, 53)).payload(3000));
        let (outside, passed) =
            (udp((f.vm, 5), (f.a, 53)).payload(3000), udp((f.b, 5), (f.a, 53)).payload(3000));
        assert_eq!(node.send(A, &own.fragment(9, 0, 1480)).end, End::Next);
        assert_eq!(node.deliver_by("up0", A, &outside.fragment(9, 0, 1480), VM).end, End::Next);
        assert_eq!(node.send(B, &theirs.fragment(9, 0, 1480)).end, End::Next);
        for id in 10..=last {
            node.flood(Hook::FromPod, B, "pod-b", &theirs.fragment(id, 0, 1480));
            node.flood(Hook::ToPod, A, "pod-b", &passed.fragment(id, 0, 1480));
        }
        assert_eq!(node.send(A, &own.fragment(9, 1480, 3008)).end, End::Next);
        assert_eq!(node.deliver_by("up0", A, &outside.fragment(9, 1480, 3008), VM).end, End::Next);
        assert_eq!(node.send(B, &theirs.fragment(9, 1480, 3008)).end, ORPHAN);
        // The last of the flood are there.
        assert_eq!(node.send(B, &theirs.fragment(last - RING + 1, 1480, 3008)).end, End::Next);
        assert_eq!(node.send(B, &theirs.fragment(last - RING, 1480, 3008)).end, ORPHAN);
    }
}

fn a_flood_of_first_pieces_from_outside_harms_no_pods_datagram() {
    let rules = Rules::none().ingress(POLICY_A, VM, Port::Udp53, 73).ingress(POLICY_A, B, Port::Udp53, 74);
    let node = Node::new(rules.ingress(POLICY_B, VM, Port::Udp53, 75));
    for (f, last) in FLOODS {
        let (flood, to_b) =
            (udp((f.vm, 5), (f.a, 53)).payload(3000), udp((f.vm, 5), (f.b, 53)).payload(3000));
        let from_b = udp((f.b, 5), (f.a, 53)).payload(3000);
        assert_eq!(node.deliver_by("up0", B, &to_b.fragment(9, 0, 1480), VM).end, End::Next);
        assert_eq!(node.deliver_from(B, A, &from_b.fragment(9, 0, 1480), B).end, End::Next);
        for id in 10..=last {
            node.flood(Hook::ToPod, A, "up0", &flood.fragment(id, 0, 1480));
        }
        assert_eq!(node.deliver_by("up0", B, &to_b.fragment(9, 1480, 3008), VM).end, End::Next);
        assert_eq!(node.deliver_from(B, A, &from_b.fragment(9, 1480, 3008), B).end, End::Next);
    }
}

fn a_first_piece_that_comes_twice_takes_one_place() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = datagram(f, 53);
        for id in 1..RING {
            assert_eq!(node.send(A, &whole.fragment(id, 0, 1480)).end, End::Next);
        }
        for _ in 0..RING {
            assert_eq!(node.send(A, &whole.fragment(RING, 0, 1480)).end, End::Next);
        }
        assert_eq!(node.send(A, &whole.fragment(1, 1480, 3008)).end, End::Next);
    }
}

fn full_rings_drop_no_pods_datagram() {
    let node = to_vm();
    let pinned = MapData::from_pin(node.pins.join("maps/FRAGMENT_RING")).expect("a map");
    let mut rings: HashMap<_, [u32; 3], [u8; 40]> =
        Map::from_map_data(pinned).expect("a map").try_into().expect("a hash");
    // As pods that flood fill them.
    let mut places = (0..).map(|n: u32| [1_000_000 + n / FRAGMENTS_PER_RING, 0, n % FRAGMENTS_PER_RING]);
    loop {
        match rings.insert(places.next().expect("a place"), [0; 40], 0) {
            Ok(()) => {}
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::E2BIG) => break,
            // See `counted`.
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOMEM) => {}
            Err(e) => panic!("{e}"),
        }
    }
    for f in FAMILIES {
        let whole = datagram(f, 53);
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1480)).end, End::Next);
        assert_eq!(node.send(A, &whole.fragment(9, 1480, 3008)).end, End::Next);
    }
}

fn an_atomic_fragment_is_a_whole_packet() {
    let node = to_vm();
    let mut packet = udp((V6.a, 5), (V6.vm, 53));
    packet.fragment = Some((9, 0, false));
    assert_eq!(node.send(A, &packet).end, End::Next);
}

fn fragments_that_cannot_be_are_malformed() {
    let node = to_vm();
    for f in FAMILIES {
        let malformed = End::Drop(DROP_MALFORMED, RULE_NONE);
        let whole = datagram(f, 53);
        // Not the last, and no multiple of eight.
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1481)).end, malformed);
        // Beyond 65,535.
        let mut far = whole.fragment(9, 1480, 2960);
        far.fragment = Some((9, 65_528, false));
        assert_eq!(node.send(A, &far).end, malformed);
        // Of nothing.
        let mut empty = whole.fragment(9, 1480, 2960);
        empty.payload.clear();
        assert_eq!(node.send(A, &empty).end, malformed);
    }
}

fn echo_in_fragments_is_one_flow() {
    let node = to_vm();
    for f in FAMILIES {
        let whole = icmp(f.a, f.vm, f.echo, 7, &[0; 3000]);
        assert_eq!(node.send(A, &whole.fragment(9, 0, 1480)).end, End::Next);
        assert_eq!(node.send(A, &whole.fragment(9, 1480, 3008)).end, End::Next);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 2);
}
