//! Where a packet came into the host is known at its way out, whatever the host's stack made of its addresses.

use crate::{
    node::{A, B, End, FAMILIES, Family, NODE, Node, POLICY_A, POLICY_B, V4, VM, WORLD, addr},
    packet::{ACK, HOST_MAC, SYN, TCP, frame, icmp, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_daemon::datapath::{Generation, PodMaps};
use bulkhead_ebpf_abi::{
    DROP_POLICY, DROP_REVOKED, DROP_SPOOFED_UPLINK, DROP_UNKNOWN_ORIGIN, FLOW_UNASKED, IDENTITY_LOCAL_POD,
    Identity, ORIGIN_ITSELF, ORIGIN_NONE, ORIGIN_UNKNOWN, POLICY_AUDIT, POLICY_OPEN, RULE_DEFAULT_DENY,
    RULE_LOOPBACK, RULE_NONE, origin_of,
};

crate::trials! {
    origins:
    pods_and_uplinks_mark_what_they_bring_in,
    a_forged_mark_is_overwritten_and_the_lower_half_kept,
    what_cannot_be_read_from_an_uplink_is_of_unknown_origin,
    the_node_reaches_its_own_pods_and_gets_its_replies,
    masqueraded_traffic_never_passes_as_the_node,
    a_masqueraded_connection_is_decided_by_who_began_it,
    what_comes_in_where_nobody_marks_does_not_pass_as_the_node,
    what_comes_in_where_nobody_marks_does_not_pass_as_a_pod_of_the_node,
    a_client_that_gets_another_identity_keeps_its_masqueraded_connection,
    a_number_that_is_given_out_again_is_not_whoever_had_it_before,
    a_number_that_wiring_or_a_change_of_addresses_gives_out_again_is_not_whoever_had_it_before,
    another_client_does_not_get_what_is_kept,
    unknown_origin_enters_open_partitions_only,
    audit_records_unknown_origin_and_lets_it_pass,
    a_pod_reaches_itself_whatever_its_policy_says,
    a_pod_reaches_itself_through_a_service_that_is_masqueraded,
    a_pod_reaches_itself_while_it_becomes_another_to_the_rules,
    nobody_passes_as_the_pod_itself,
    another_origin_behind_the_same_address_and_port_is_another_flow,
}

const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);

fn pods_and_uplinks_mark_what_they_bring_in() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70));
    for f in FAMILIES {
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).origin, A);
        assert_eq!(node.uplink(&tcp((f.vm, 5), (f.a, 80), SYN).frame(), 0).origin, VM);
        assert_eq!(node.uplink(&tcp((f.world, 5), (f.a, 80), SYN).frame(), 0).origin, WORLD);
    }
    assert_eq!([ORIGIN_ITSELF, 0xffff].map(origin_of), [ORIGIN_UNKNOWN; 2]);
}

fn a_forged_mark_is_overwritten_and_the_lower_half_kept() {
    let node = Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70));
    for f in FAMILIES {
        for forged in [0, NODE, B, ORIGIN_UNKNOWN] {
            let mark = forged << 16 | 0x4001;
            let frame = tcp((f.a, 5), (f.vm, 80), SYN).with_mac(crate::node::MAC_A).frame();
            assert_eq!(node.send_raw(A, &frame, mark).mark, A << 16 | 0x4001);
            let frame = tcp((f.vm, 5), (f.a, 80), SYN).frame();
            assert_eq!(node.uplink(&frame, mark).mark, VM << 16 | 0x4001);
        }
    }
}

fn what_cannot_be_read_from_an_uplink_is_of_unknown_origin() {
    let node = Node::new(Rules::none());
    for f in FAMILIES {
        let whole = tcp((f.vm, 5), (f.a, 80), SYN).frame();
        let mut broken = whole.clone();
        broken[14] = 0x11;
        let broken = node.uplink(&broken, 0);
        assert_eq!((broken.end, broken.origin), (End::Next, ORIGIN_UNKNOWN));
        // Tags within tags: whatever device takes them off, the packet is not this host's own.
        let tagged = [vec![0, 5, 0x08, 0x00], whole[14..].to_vec()].concat();
        let tagged = node.uplink(&frame(HOST_MAC, 0x8100, &tagged), 0);
        assert_eq!((tagged.end, tagged.origin), (End::Next, ORIGIN_UNKNOWN));
        // What only its transport header makes unreadable is the host's business, and its source is known.
        let short = node.uplink(&tcp((f.vm, 5), (f.a, 80), SYN).frame()[..whole.len() - 20], 0);
        assert_eq!(short.end, End::Next);
    }
}

fn the_node_reaches_its_own_pods_and_gets_its_replies() {
    let node = Node::new(Rules::none());
    for f in FAMILIES {
        assert_eq!(node.deliver(A, &tcp((f.node, 5), (f.a, 8080), SYN), ORIGIN_NONE).end, End::Next);
        let flow = node.flow((f.node, 5), (f.a, 8080), TCP).expect("an entry");
        assert_ne!(flow.flags & FLOW_UNASKED, 0);
        assert_eq!(node.send(A, &tcp((f.a, 8080), (f.node, 5), SYN | ACK)).end, End::Next);
        assert_eq!(node.deliver(A, &icmp(f.node, f.a, f.echo, 3, &[]), ORIGIN_NONE).end, End::Next);
        assert_eq!(node.send(A, &icmp(f.a, f.node, f.echo_reply, 3, &[])).end, End::Next);
        // The pod opens nothing to the node by it.
        assert_eq!(node.send(A, &tcp((f.a, 8080), (f.node, 5), SYN)).end, DENIED);
    }
    assert_eq!(node.deliver(A, &udp(("169.254.1.1", 5), (V4.a, 9)), ORIGIN_NONE).end, End::Next);
}

fn masqueraded_traffic_never_passes_as_the_node() {
    let node = Node::new(Rules::none());
    for f in FAMILIES {
        for origin in [B, VM, WORLD] {
            let end = node.deliver(A, &tcp((f.node, 5), (f.a, 8080), SYN), origin).end;
            assert_eq!(end, DENIED, "origin {origin}");
        }
        let end = node.deliver(A, &tcp((f.node, 5), (f.a, 8080), SYN), ORIGIN_UNKNOWN).end;
        assert_eq!(end, End::Drop(DROP_UNKNOWN_ORIGIN, RULE_NONE));
    }
}

fn a_masqueraded_connection_is_decided_by_who_began_it() {
    let allowed = Rules::none().ingress(POLICY_B, A, Port::Tcp80, 70);
    for f in FAMILIES {
        let mut node = Node::new(allowed.clone());
        let request = tcp((f.node, 5), (f.b, 80), SYN);
        let reply = tcp((f.b, 80), (f.node, 5), ACK);
        assert_eq!(node.deliver(B, &request, VM).end, DENIED);
        assert_eq!(node.deliver(B, &request, A).end, End::Next);
        assert_eq!(node.send(B, &reply).end, End::Next);
        assert_eq!(u32::from(node.flow((f.node, 5), (f.b, 80), TCP).expect("an entry").origin), A);
        // The reply is the first to ask the next generation; it carries no mark of the initiator.
        node.apply(&allowed);
        assert_eq!(node.send(B, &reply).end, End::Next);
        node.apply(&Rules::none().ingress(POLICY_B, NODE, Port::Tcp80, 70));
        assert!(matches!(node.send(B, &reply).end, End::Drop(..)));
    }
}

const UNKNOWN: End = End::Drop(DROP_UNKNOWN_ORIGIN, RULE_NONE);

fn what_comes_in_where_nobody_marks_does_not_pass_as_the_node() {
    let rules = Rules::none().ingress(POLICY_A, VM, Port::Tcp80, 70).ingress(POLICY_A, NODE, Port::Tcp80, 71);
    let node = Node::new(rules);
    for f in FAMILIES {
        let request = |flags| tcp((f.node, 5), (f.a, 80), flags);
        assert_eq!(node.deliver_by("up0", A, &request(SYN), ORIGIN_NONE).end, UNKNOWN);
        assert_eq!(node.deliver_by("up0", A, &icmp(f.node, f.a, f.echo, 3, &[]), ORIGIN_NONE).end, UNKNOWN);
        // Whoever speaks as himself is whom his address says.
        let own = tcp((f.vm, 5), (f.a, 80), SYN);
        assert_eq!(node.deliver_by("up0", A, &own, ORIGIN_NONE).end, End::Next);
        // The node's own, which has never been received, or from the node itself.
        assert_eq!(node.deliver(A, &request(SYN), ORIGIN_NONE).end, End::Next);
        assert_eq!(node.deliver_by("lo", A, &tcp((f.node, 6), (f.a, 80), SYN), ORIGIN_NONE).end, End::Next);
        // That connection is nobody else's either, and goes on.
        assert_eq!(node.deliver_by("up0", A, &request(ACK), ORIGIN_NONE).end, UNKNOWN);
        assert_eq!(node.deliver(A, &request(ACK), ORIGIN_NONE).end, End::Next);
        assert_eq!(node.send(A, &tcp((f.a, 80), (f.node, 5), SYN | ACK)).end, End::Next);
    }
    let open = Node::new(Rules::none().flags(POLICY_A, POLICY_OPEN).ingress(POLICY_A, WORLD, Port::Tcp80, 3));
    for f in FAMILIES {
        let request = tcp((f.node, 5), (f.a, 80), SYN);
        assert_eq!(open.deliver_by("up0", A, &request, ORIGIN_NONE).end, End::Next);
        assert_eq!(open.send(A, &tcp((f.a, 80), (f.node, 5), SYN | ACK)).end, End::Next);
    }
}

fn what_comes_in_where_nobody_marks_does_not_pass_as_a_pod_of_the_node() {
    let node = Node::new(Rules::none().ingress(POLICY_A, B, Port::Tcp80, 70));
    for f in FAMILIES {
        let request = tcp((f.b, 5), (f.a, 80), SYN);
        assert_eq!(node.deliver_by("up0", A, &request, ORIGIN_NONE).end, UNKNOWN);
        assert_eq!(node.deliver_from(B, A, &request, B).end, End::Next);
    }
}

fn a_client_that_gets_another_identity_keeps_its_masqueraded_connection() {
    for keep in [true, false] {
        for f in FAMILIES {
            let none = Rules::none();
            let before = if keep {
                none.ingress_keep(POLICY_B, VM, Port::Tcp80, 70)
            } else {
                none.ingress(POLICY_B, VM, Port::Tcp80, 70)
            };
            let mut node = Node::new(before);
            let request = |flags| masqueraded_with(f, flags);
            let reply = tcp((f.b, 80), (f.node, 5), SYN | ACK);
            assert_eq!(node.deliver_by("up0", B, &request(SYN), VM).end, End::Next);
            assert_eq!(node.send(B, &reply).end, End::Next);
            assert_eq!(node.deliver_by("up0", B, &request(ACK), VM).end, End::Next);
            // Nothing is allowed any more, and the client is the world.
            node.apply(&Rules::none());
            let end = node.deliver_by("up0", B, &request(ACK), WORLD).end;
            let entry = node.flow((f.node, 5), (f.b, 80), TCP).expect("an entry");
            assert_eq!(u32::from(entry.origin), WORLD);
            if keep {
                assert_eq!((end, entry.cut), (End::Next, 0));
                assert_eq!(node.send(B, &tcp((f.b, 80), (f.node, 5), ACK)).end, End::Next);
                // No new one begins.
                assert_eq!(node.deliver_by("up0", B, &request(SYN), WORLD).end, DENIED);
            } else {
                assert_eq!(end, End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY));
                assert_ne!(entry.cut, 0);
            }
        }
    }
}

fn a_number_that_is_given_out_again_is_not_whoever_had_it_before() {
    const NUMBER: u32 = 35;
    let rules = Rules::none().ingress(POLICY_B, NUMBER, Port::Tcp80, 70);
    let somebody = Identity { id: NUMBER, flags: 0 };
    for f in FAMILIES {
        let mut node = Node::new(rules.clone());
        node.exact.insert(addr("198.51.100.1"), somebody);
        node.apply(&rules);
        let request = |flags| masqueraded_with(f, flags);
        let reply = tcp((f.b, 80), (f.node, 5), ACK);
        assert_eq!(node.deliver_by("up0", B, &request(SYN), NUMBER).end, End::Next);
        assert_eq!(node.send(B, &tcp((f.b, 80), (f.node, 5), SYN | ACK)).end, End::Next);
        assert_eq!(node.deliver_by("up0", B, &request(ACK), NUMBER).end, End::Next);
        // Nobody has the number any more; then somebody else has.
        node.exact.remove(&addr("198.51.100.1"));
        node.apply(&rules);
        node.datapath.settle().expect("settled");
        assert_eq!(node.send(B, &reply).end, End::Next);
        node.exact.insert(addr("198.51.100.2"), somebody);
        node.apply(&rules);
        assert_eq!(node.send(B, &reply).end, UNKNOWN);
        // Whoever began it goes on as whom he is now.
        let end = node.deliver_by("up0", B, &request(ACK), WORLD).end;
        assert_eq!(end, End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY));
        // And the other one begins what is his own, at the same place too.
        assert_eq!(node.deliver_by("up0", B, &request(SYN), NUMBER).end, End::Next);
        assert_eq!(node.send(B, &reply).end, End::Next);
    }
}

/// The same where the other one is a pod of the node, or comes without a switch.
fn a_number_that_wiring_or_a_change_of_addresses_gives_out_again_is_not_whoever_had_it_before() {
    const NUMBER: u32 = 35;
    let rules = Rules::none().ingress(POLICY_B, NUMBER, Port::Tcp80, 70);
    for by_wiring in [true, false] {
        let mut node = Node::new(rules.clone());
        let request = masqueraded(V4);
        assert_eq!(node.deliver_by("up0", B, &request, NUMBER).end, End::Next);
        if by_wiring {
            let pod = Identity { id: NUMBER, flags: IDENTITY_LOCAL_POD };
            node.datapath.set_address("198.51.100.2".parse().expect("an address"), pod).expect("wired");
        } else {
            node.exact.insert(addr("198.51.100.2"), Identity { id: NUMBER, flags: 0 });
            let tables = rules.tables();
            let same = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
            node.datapath.follow(&same).expect("followed");
        }
        node.apply(&rules);
        assert_eq!(node.send(B, &tcp((V4.b, 80), (V4.node, 5), SYN | ACK)).end, UNKNOWN);
    }
}

fn another_client_does_not_get_what_is_kept() {
    let keeps = Rules::none().ingress_keep(POLICY_B, VM, Port::Tcp80, 70);
    for f in FAMILIES {
        let mut node = Node::new(keeps.clone());
        let request = |flags| masqueraded_with(f, flags);
        assert_eq!(node.deliver_by("up0", B, &request(SYN), VM).end, End::Next);
        assert_eq!(node.send(B, &tcp((f.b, 80), (f.node, 5), SYN | ACK)).end, End::Next);
        assert_eq!(node.deliver_by("up0", B, &request(ACK), VM).end, End::Next);
        node.apply(&Rules::none());
        // From another interface, with no known identity, or as one that begins.
        assert_eq!(node.deliver_by("pod-a", B, &request(ACK), A).end, DENIED);
        assert_eq!(node.deliver_by("up0", B, &request(ACK), ORIGIN_UNKNOWN).end, UNKNOWN);
        assert_eq!(node.deliver_by("up0", B, &request(SYN), WORLD).end, DENIED);
        // The one it was still is.
        assert_eq!(node.deliver_by("up0", B, &request(ACK), VM).end, End::Next);
    }
}

fn masqueraded_with(f: Family, flags: u8) -> crate::packet::Packet {
    tcp((f.node, 5), (f.b, 80), flags)
}

fn masqueraded(f: Family) -> crate::packet::Packet {
    tcp((f.node, 5), (f.b, 80), SYN)
}

fn unknown_origin_enters_open_partitions_only() {
    // As the world: what an open partition says of it.
    let open = Rules::none().flags(POLICY_B, POLICY_OPEN).ingress(POLICY_B, WORLD, Port::Tcp80, 3);
    let enforced =
        Rules::none().ingress(POLICY_B, WORLD, Port::Tcp80, 70).ingress(POLICY_B, NODE, Port::Tcp80, 71);
    for f in FAMILIES {
        let mut node = Node::new(open.clone());
        assert_eq!(node.deliver(B, &masqueraded(f), ORIGIN_UNKNOWN).end, End::Next);
        assert_eq!(node.deliver(B, &tcp((f.node, 5), (f.b, 80), ACK), ORIGIN_UNKNOWN).end, End::Next);
        assert_eq!(node.send(B, &tcp((f.b, 80), (f.node, 5), ACK)).end, End::Next);
        node.apply(&enforced);
        let cut = End::Drop(DROP_UNKNOWN_ORIGIN, RULE_NONE);
        assert_eq!(node.send(B, &tcp((f.b, 80), (f.node, 5), ACK)).end, cut);
        assert_eq!(node.deliver(B, &masqueraded(f), ORIGIN_UNKNOWN).end, cut);
    }
}

fn audit_records_unknown_origin_and_lets_it_pass() {
    let node = Node::new(Rules::none().flags(POLICY_B, POLICY_AUDIT));
    for f in FAMILIES {
        let outcome = node.deliver(B, &masqueraded(f), ORIGIN_UNKNOWN);
        assert_eq!((outcome.end, outcome.audited), (End::Next, Some(RULE_NONE)));
    }
}

fn a_pod_reaches_itself_whatever_its_policy_says() {
    let mut node = Node::new(Rules::none());
    for f in FAMILIES {
        // Both orders of the ports: an entry's ends are told apart by them alone.
        for (client, server) in [(5, 80), (81, 6)] {
            let request = tcp((f.a, client), (f.a, server), SYN);
            let sent = node.send(A, &request);
            assert_eq!((sent.end, sent.origin), (End::Next, A));
            assert_eq!(node.deliver_from(A, A, &request, A).end, End::Next);
            let flow = node.flow((f.a, client), (f.a, server), TCP).expect("an entry");
            assert_eq!((flow.flags & FLOW_UNASKED, flow.rules[1]), (FLOW_UNASKED, RULE_LOOPBACK));
            assert_eq!(flow.origin, ORIGIN_ITSELF as u16);
            node.apply(&Rules::none());
            let reply = tcp((f.a, server), (f.a, client), SYN | ACK);
            assert_eq!(node.send(A, &reply).end, End::Next);
            assert_eq!(node.deliver_from(A, A, &reply, A).end, End::Next);
        }
        // What begins no connection.
        let error = icmp(f.a, f.a, f.unreachable, 0, &[0; 8]);
        assert_eq!(node.send(A, &error).end, End::Next);
        assert_eq!(node.deliver_from(A, A, &error, A).end, End::Next);
    }
}

fn a_pod_reaches_itself_through_a_service_that_is_masqueraded() {
    // The address that the pod calls is judged like any other.
    let rules = Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70);
    let mut node = Node::new(rules.clone());
    for f in FAMILIES {
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, End::Next);
        let request = |flags| tcp((f.node, 9), (f.a, 8080), flags);
        assert_eq!(node.deliver_from(A, A, &request(SYN), A).end, End::Next);
        let reply = tcp((f.a, 8080), (f.node, 9), SYN | ACK);
        assert_eq!(node.send(A, &reply).end, End::Next);
        node.apply(&rules);
        assert_eq!(node.send(A, &reply).end, End::Next);
        assert_eq!(node.deliver_from(A, A, &request(ACK), A).end, End::Next);
        assert_eq!(node.deliver_from(A, A, &tcp((f.vm, 80), (f.a, 5), SYN | ACK), A).end, End::Next);
        assert_eq!(node.deliver_from(A, A, &icmp(f.node, f.a, f.echo, 3, &[]), A).end, End::Next);
    }
}

fn a_pod_reaches_itself_while_it_becomes_another_to_the_rules() {
    let node = Node::new(Rules::none());
    for f in FAMILIES {
        // Marked by its hook as whom it was then.
        for was in [VM, B] {
            for (client, port) in [(f.a, 5), (f.node, 9)] {
                let packet = |flags| tcp((client, port + was as u16), (f.a, 80), flags);
                assert_eq!(node.deliver_from(A, A, &packet(SYN), was).end, End::Next);
                assert_eq!(node.deliver_from(A, A, &packet(ACK), A).end, End::Next);
                assert_eq!(node.deliver_from(B, A, &packet(SYN), was).end, DENIED);
            }
        }
    }
}

fn nobody_passes_as_the_pod_itself() {
    let node = Node::new(Rules::none());
    for f in FAMILIES {
        let by_address = tcp((f.a, 5), (f.a, 80), SYN);
        let masqueraded = tcp((f.node, 5), (f.a, 80), SYN);
        for packet in [&by_address, &masqueraded] {
            // Of the same identity, and from another interface: another pod that no rule tells apart from it.
            assert_eq!(node.deliver_from(B, A, packet, A).end, DENIED);
            // From its own interface, and not marked by its hook.
            assert_eq!(node.deliver_from(A, A, packet, ORIGIN_NONE).end, UNKNOWN);
            assert_eq!(node.deliver(A, packet, A).end, DENIED);
        }
        assert_eq!(node.deliver(A, &by_address, ORIGIN_NONE).end, DENIED);
        assert_eq!(node.uplink(&by_address.frame(), 0).end, End::Drop(DROP_SPOOFED_UPLINK, RULE_NONE));
        // Nor by the connection of one that was: its addresses and ports are another's now.
        assert_eq!(node.deliver_from(A, A, &masqueraded, A).end, End::Next);
        assert_eq!(node.deliver_from(B, A, &masqueraded, A).end, DENIED);
    }
}

fn another_origin_behind_the_same_address_and_port_is_another_flow() {
    let node = Node::new(Rules::none().ingress(POLICY_B, A, Port::Udp53, 70));
    for f in FAMILIES {
        let packet = udp((f.node, 5), (f.b, 53));
        assert_eq!(node.deliver(B, &packet, ORIGIN_NONE).end, End::Next);
        assert_eq!(node.deliver(B, &packet, VM).end, DENIED);
        assert_eq!(node.deliver(B, &packet, A).end, End::Next);
        assert_eq!(node.deliver(B, &packet, VM).end, DENIED);
        assert_eq!(node.deliver(B, &packet, ORIGIN_NONE).end, End::Next);
    }
}
