//! Between pods of one node: straight from the sender's hook into the other pod, both ends decided there.

use crate::{
    node::{A, B, End, FAMILIES, Family, MAC_A, MAC_B, Node, POLICY_A, POLICY_B, V4, ifindex},
    packet::{ACK, HOST_MAC, Packet, SYN, TCP, tcp},
    rules::{Port, Rules},
};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{
    DROP_POLICY, DROP_REVOKED, ENDPOINT_PACED, PATH_DIRECT, PATH_STACK, RULE_DEFAULT_DENY,
};

crate::trials! {
    direct:
    both_ends_are_asked_before_a_connection_goes_straight,
    a_packet_that_goes_straight_looks_as_the_stack_would_have_forwarded_it,
    a_known_packet_goes_straight_and_is_counted_once,
    what_the_stack_must_answer_is_left_to_it_with_its_origin,
    a_limit_takes_a_live_connection_to_the_stack,
    a_pod_that_is_gone_gets_no_known_packet,
    a_change_of_either_ends_rules_cuts_a_known_connection,
}

const MTU: u16 = 1500;

fn rules() -> Rules {
    Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71)
}

fn node(rules: Rules) -> Node {
    let mut node = Node::new(rules);
    node.rewire(MTU, 0);
    node
}

fn request(f: &Family, flags: u8) -> Packet {
    tcp((f.a, 5), (f.b, 80), flags).payload(40)
}

fn reply(f: &Family, flags: u8) -> Packet {
    tcp((f.b, 80), (f.a, 5), flags).payload(40)
}

fn establish(node: &Node, f: &Family) {
    assert_eq!(node.send(A, &request(f, SYN)).end, End::Redirect);
    assert_eq!(node.send(B, &reply(f, SYN | ACK)).end, End::Redirect);
    assert_eq!(node.send(A, &request(f, ACK)).end, End::Redirect);
}

fn both_ends_are_asked_before_a_connection_goes_straight() {
    let egress = Rules::none().egress(POLICY_A, B, Port::Tcp80, 70);
    let ingress = Rules::none().ingress(POLICY_B, A, Port::Tcp80, 71);
    for (rules, end) in [
        (Rules::none(), End::Drop(DROP_POLICY, RULE_DEFAULT_DENY)),
        (egress, End::Drop(DROP_POLICY, RULE_DEFAULT_DENY)),
        (ingress, End::Drop(DROP_POLICY, RULE_DEFAULT_DENY)),
        (rules(), End::Redirect),
    ] {
        let node = node(rules);
        for f in FAMILIES {
            assert_eq!(node.send(A, &request(&f, SYN)).end, end);
        }
    }
}

fn a_packet_that_goes_straight_looks_as_the_stack_would_have_forwarded_it() {
    let node = node(rules());
    for f in FAMILIES {
        establish(&node, &f);
        // By the short way, and by the long one.
        for packet in [request(&f, ACK), request(&f, SYN)] {
            let outcome = node.send(A, &packet.clone().hop_limit(9));
            assert_eq!(outcome.end, End::Redirect);
            let mut expected = packet.hop_limit(8).frame();
            expected[..6].copy_from_slice(&MAC_B);
            expected[6..12].copy_from_slice(&HOST_MAC);
            assert_eq!(outcome.frame, expected);
            // Marks are the host's own.
            assert_eq!(outcome.mark, 0);
        }
    }
}

fn a_known_packet_goes_straight_and_is_counted_once() {
    let node = node(rules());
    for f in FAMILIES {
        establish(&node, &f);
        let entry = || node.flow((f.a, 5), (f.b, 80), TCP).expect("an entry");
        let before = entry();
        assert_eq!(before.path, PATH_DIRECT);
        assert_eq!(node.send(A, &request(&f, ACK)).end, End::Redirect);
        assert_eq!(node.send(B, &reply(&f, ACK)).end, End::Redirect);
        let after = entry();
        let length = request(&f, ACK).frame().len() as u64;
        assert_eq!((after.packets - before.packets, after.bytes - before.bytes), (2, 2 * length));
    }
}

fn a_pod_that_is_gone_gets_no_known_packet() {
    let mut node = node(rules());
    for f in FAMILIES {
        establish(&node, &f);
        assert_eq!(node.send(A, &request(&f, ACK)).end, End::Redirect);
    }
    node.datapath.remove_endpoint(ifindex("pod-b")).expect("removed");
    for f in FAMILIES {
        assert_ne!(node.send(A, &request(&f, ACK)).end, End::Redirect);
    }
}

fn what_the_stack_must_answer_is_left_to_it_with_its_origin() {
    let mut node = node(rules());
    for f in FAMILIES {
        establish(&node, &f);
        let outcome = node.send(A, &request(&f, ACK).hop_limit(1));
        assert_eq!((outcome.end, outcome.origin), (End::Next, A));
    }
    node.rewire(60, 0);
    for f in FAMILIES {
        let outcome = node.send(A, &request(&f, ACK));
        assert_eq!((outcome.end, outcome.origin), (End::Next, A));
    }
    // One packet for the stack, and several on the wire, which fit.
    let frame = request(&V4, ACK).with_mac(MAC_A).frame();
    assert_eq!(node.send_gso(A, &frame, 20).end, End::Redirect);
    assert_eq!(node.send_gso(A, &frame, 21).end, End::Next);
}

fn a_limit_takes_a_live_connection_to_the_stack() {
    let mut node = node(rules());
    for f in FAMILIES {
        establish(&node, &f);
    }
    node.rewire(MTU, ENDPOINT_PACED);
    for f in FAMILIES {
        let outcome = node.send(A, &request(&f, ACK));
        assert_eq!((outcome.end, outcome.origin), (End::Next, A));
        let entry = node.flow((f.a, 5), (f.b, 80), TCP).expect("an entry");
        assert_eq!(entry.path, PATH_STACK);
        assert_eq!(node.deliver(B, &request(&f, ACK), A).end, End::Next);
        assert_eq!(node.send(B, &reply(&f, ACK)).end, End::Next);
    }
}

fn a_change_of_either_ends_rules_cuts_a_known_connection() {
    for left in [
        Rules::none().egress(POLICY_A, B, Port::Tcp80, 70),
        Rules::none().ingress(POLICY_B, A, Port::Tcp80, 71),
    ] {
        for replies_first in [false, true] {
            let mut node = node(rules());
            for f in FAMILIES {
                establish(&node, &f);
            }
            node.apply(&left);
            for f in FAMILIES {
                let (pod, packet) = if replies_first { (B, reply(&f, ACK)) } else { (A, request(&f, ACK)) };
                assert_eq!(node.send(pod, &packet).end, End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY));
            }
        }
    }
}
