//! What leaves by an uplink in the node's name for a pod of another node, and whose it is.

use crate::{
    node::{A, B, CONNECTIONS, End, FAMILIES, NODE, Node, POLICY_B, V4, VM, WORLD, ifindex},
    packet::{ACK, Packet, RST, SYN, sctp, tcp, udp},
    room::LASTING,
    rules::{Port, Rules},
};
use aya::{
    maps::{HashMap, Map, MapData},
    programs::SchedClassifier,
};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{
    Ages, BEGUN_HERE, Connections, DIR_INGRESS, DROP_POLICY, DROP_RANGE_CLOSED, DROP_REVOKED,
    DROP_UNKNOWN_ORIGIN, DROP_UNNOTED, ORIGIN_ITSELF, ORIGIN_NONE, ORIGIN_SHIFT, ORIGIN_UNKNOWN,
    POLICY_AUDIT, RANGE_CLOSED, RANGE_OPEN, RULE_DEFAULT_DENY, RULE_NONE,
};
use bulkhead_lab::bpf::{self, Input};
use std::{fs, os::fd::AsFd, path::Path, thread::sleep, time::Duration};

crate::trials! {
    departures:
    nobody_leaves_as_the_node_for_a_pod_that_does_not_let_him_in,
    a_connection_that_left_in_the_nodes_name_is_cut_unless_it_is_kept,
    what_is_not_in_the_nodes_name_is_judged_at_the_pod_alone,
    what_came_in_where_nobody_marks_leaves_for_no_enforced_partition_in_the_nodes_name,
    datagrams_are_judged_but_for_those_that_answer_a_pod,
    a_pods_answer_to_a_call_makes_nobodys_datagram_an_answer,
    a_call_is_answered_as_long_as_a_connection_of_its_protocol_lives,
    the_pods_own_packets_renew_the_note_of_its_call,
    a_flood_of_notes_of_one_kind_takes_no_place_of_the_other,
    a_pod_that_calls_from_ever_other_ports_takes_few_others_notes,
    a_reset_that_is_none_keeps_nobody_from_being_cut,
    whom_there_is_no_place_to_note_is_not_sent_on,
    a_range_without_a_policy_here_is_open_or_closed_as_it_was_told,
    of_whom_nobody_knows_a_closed_range_says_that_first,
    audit_records_who_leaves_and_lets_him,
    audit_lets_him_also_where_there_is_no_place_to_note_him,
}

const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);
const REVOKED: End = End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY);
const UNKNOWN: End = End::Drop(DROP_UNKNOWN_ORIGIN, RULE_NONE);

/// A pod of another node, by family: its partition's rules are pod b's.
fn far(v4: bool) -> &'static str {
    if v4 { "10.0.9.9" } else { "fd00:4:9::9" }
}

fn ranges(node: &mut Node, ranges: &[(&str, u32)]) {
    let ranges = ranges.iter().map(|(range, policy)| (range.parse().expect("a range"), *policy));
    node.datapath.set_range_policies(&ranges.collect()).expect("set");
}

/// Lets in `VM` and this node.
fn rules() -> Rules {
    let rules = Rules::none().ingress(POLICY_B, VM, Port::Tcp80, 70).ingress(POLICY_B, NODE, Port::Tcp80, 71);
    rules.ingress(POLICY_B, VM, Port::Udp53, 72).ingress(POLICY_B, VM, Port::Sctp3868, 73)
}

fn node_with(rules: Rules) -> Node {
    let mut node = Node::new(rules);
    ranges(&mut node, &[("10.0.9.0/24", POLICY_B), ("fd00:4:9::/48", POLICY_B)]);
    node
}

fn nobody_leaves_as_the_node_for_a_pod_that_does_not_let_him_in() {
    let node = node_with(rules());
    for f in FAMILIES {
        let to = far(f.a == V4.a);
        let call = |flags| tcp((f.node, 5), (to, 80), flags);
        let leaves = |by, packet: &Packet, origin| node.leave(Some(by), packet, origin).end;
        assert_eq!(leaves("up0", &call(SYN), VM), End::Next);
        for (by, origin) in [("up0", WORLD), ("pod-a", A), ("pod-b", B)] {
            assert_eq!(leaves(by, &call(SYN), origin), DENIED, "origin {origin}");
            // Of which nobody knows who began it.
            assert_eq!(leaves(by, &tcp((f.node, 6), (to, 80), ACK), origin), End::Next);
            assert_eq!(leaves(by, &tcp((f.node, 80), (to, 5), SYN | ACK), origin), End::Next);
        }
        assert_eq!(leaves("up0", &tcp((f.node, 5), (to, 81), SYN), VM), DENIED);
        let counted = node.leave(Some("up0"), &call(SYN), WORLD).counted.expect("a drop");
        assert_eq!((counted.policy, u32::from(counted.dir)), (POLICY_B, DIR_INGRESS));
        assert_eq!(node.leave(None, &call(SYN), ORIGIN_NONE).end, End::Next);
    }
}

fn a_connection_that_left_in_the_nodes_name_is_cut_unless_it_is_kept() {
    for kept in [false, true] {
        let none = Rules::none();
        let mut node = node_with(if kept {
            none.ingress_keep(POLICY_B, VM, Port::Tcp80, 70)
        } else {
            none.ingress(POLICY_B, VM, Port::Tcp80, 70)
        });
        for f in FAMILIES {
            let packet = |flags| tcp((f.node, 5), (far(f.a == V4.a), 80), flags);
            assert_eq!(node.leave(Some("up0"), &packet(SYN), VM).end, End::Next);
            node.apply(&Rules::none());
            let goes_on = node.leave(Some("up0"), &packet(ACK), VM).end;
            assert_eq!(goes_on, if kept { End::Next } else { REVOKED });
            node.apply(&Rules::none().ingress_keep(POLICY_B, VM, Port::Tcp80, 70));
            assert_eq!(node.leave(Some("up0"), &packet(ACK), VM).end, End::Next);
            if !kept {
                node.apply(&Rules::none().ingress(POLICY_B, VM, Port::Tcp80, 70));
            }
        }
    }
}

fn what_is_not_in_the_nodes_name_is_judged_at_the_pod_alone() {
    let node = node_with(rules());
    for f in FAMILIES {
        let to = far(f.a == V4.a);
        for (from, by, origin) in [(f.world, "up0", WORLD), (f.a, "pod-a", A), (f.a, "pod-a", ORIGIN_ITSELF)]
        {
            assert_eq!(node.leave(Some(by), &tcp((from, 5), (to, 80), SYN), origin).end, End::Next);
        }
        // Whoever masquerades what leaves for the world, or for the other node.
        let away = tcp((f.node, 5), (f.world, 80), SYN);
        assert_eq!(node.leave(Some("pod-a"), &away, A).end, End::Next);
    }
}

fn what_came_in_where_nobody_marks_leaves_for_no_enforced_partition_in_the_nodes_name() {
    let node = node_with(rules());
    for f in FAMILIES {
        let call = tcp((f.node, 5), (far(f.a == V4.a), 80), SYN);
        assert_eq!(node.leave(Some("up0"), &call, ORIGIN_NONE).end, UNKNOWN);
        assert_eq!(node.leave(Some("up0"), &call, ORIGIN_UNKNOWN).end, UNKNOWN);
        assert_eq!(node.leave(Some("lo"), &call, ORIGIN_NONE).end, End::Next);
    }
}

fn datagrams_are_judged_but_for_those_that_answer_a_pod() {
    let node = node_with(rules());
    for f in FAMILIES {
        let to = far(f.a == V4.a);
        for (transport, port) in [(udp as fn(_, _) -> Packet, 53), (sctp, 3868)] {
            let call = transport((f.node, 40_000), (to, port));
            assert_eq!(node.leave(Some("up0"), &call, WORLD).end, DENIED);
            assert_eq!(node.leave(Some("up0"), &call, VM).end, End::Next);
            // What a host port of this node answers the pod with, from whichever port.
            for (own, theirs) in [(8053, 50_000), (50_001, 8054)] {
                let answer = transport((f.node, own), (to, theirs));
                assert_eq!(node.leave(Some("pod-a"), &answer, A).end, DENIED);
                assert_eq!(node.uplink(&transport((to, theirs), (f.node, own)).frame(), 0).end, End::Next);
                assert_eq!(node.leave(Some("pod-a"), &answer, A).end, End::Next);
                // It is what that port answers, and no other.
                assert_eq!(
                    node.leave(Some("pod-a"), &transport((f.node, own + 1), (to, theirs)), A).end,
                    DENIED
                );
            }
        }
    }
}

fn a_pods_answer_to_a_call_makes_nobodys_datagram_an_answer() {
    let mut node = node_with(rules());
    for f in FAMILIES {
        let to = far(f.a == V4.a);
        for (transport, port) in [(udp as fn(_, _) -> Packet, 53), (sctp, 3868)] {
            let call = transport((f.node, 40_000), (to, port));
            let leaves = |node: &Node, origin| node.leave(Some("up0"), &call, origin).end;
            assert_eq!(leaves(&node, VM), End::Next);
            assert_eq!(node.uplink(&transport((to, port), (f.node, 40_000)).frame(), 0).end, End::Next);
            assert_eq!(leaves(&node, VM), End::Next);
            // Another one, who has the same port now; and himself, once his rule has gone.
            assert_eq!(leaves(&node, WORLD), REVOKED);
            node.apply(&Rules::none());
            assert_eq!(leaves(&node, VM), REVOKED);
            node.apply(&rules());
            assert_eq!(leaves(&node, VM), End::Next);
        }
    }
}

/// Both ends have the same port, as they have where a protocol says so: a call has its answer's addresses and ports.
fn a_call_is_answered_as_long_as_a_connection_of_its_protocol_lives() {
    const SHORT: u64 = 1_000_000;
    let kinds = [(udp as fn(_, _) -> Packet, 5060), (sctp, 2905)];
    let mut node = Node::with_room(rules(), Connections { ages: LASTING, ..CONNECTIONS });
    ranges(&mut node, &[("10.0.9.0/24", POLICY_B), ("fd00:4:9::/48", POLICY_B)]);
    for f in FAMILIES {
        for (transport, port) in kinds {
            let to = far(f.a == V4.a);
            assert_eq!(node.uplink(&transport((to, port), (f.node, port)).frame(), 0).end, End::Next);
        }
    }
    sleep(Duration::from_millis(20));
    for (ages, ends) in [
        (LASTING, [End::Next, End::Next]),
        (Ages { udp: SHORT, ..LASTING }, [DENIED, End::Next]),
        (Ages { other: SHORT, ..LASTING }, [End::Next, DENIED]),
    ] {
        let Node { datapath, pins, .. } = node;
        drop(datapath);
        node = Node::open_for(pins, Connections { ages, ..CONNECTIONS });
        for f in FAMILIES {
            for ((transport, port), end) in kinds.into_iter().zip(ends) {
                let packet = transport((f.node, port), (far(f.a == V4.a), port));
                assert_eq!(node.leave(Some("up0"), &packet, WORLD).end, end, "{port}, {ages:?}");
            }
        }
    }
}

fn the_pods_own_packets_renew_the_note_of_its_call() {
    let node = node_with(rules());
    let notes = MapData::from_pin(node.pins.join("maps/CALLED")).expect("pinned");
    let notes = Map::from_map_data(notes).expect("a map");
    let mut notes = HashMap::<_, [u32; 10], u32>::try_from(notes).expect("a hash");
    let call = udp((far(true), 5), (V4.node, 8053)).frame();
    for _ in 0..2 {
        assert_eq!(node.uplink(&call, 0).end, End::Next);
        let (key, at) = notes.iter().next().expect("a note").expect("read");
        assert_ne!(at, 0);
        // An answer, or what looks like one, renews nothing.
        notes.insert(key, 0, 0).expect("written");
        node.leave(Some("pod-a"), &udp((V4.node, 8053), (far(true), 5)), A);
        assert_eq!(notes.get(&key, 0).expect("read"), 0);
    }
}

/// Packets that pass, one after the other.
fn flood(node: &Node, hook: Hook, origin: u32, packet: impl Fn(u16) -> Packet) {
    let program = SchedClassifier::from_pin(node.pins.join("programs").join(hook.name())).expect("pinned");
    let program = program.fd().expect("loaded").as_fd();
    // Three times as many as there are places for one kind.
    for port in 10_000..60_000 {
        let frame = packet(port).frame();
        let input = Input { frame: &frame, mark: origin << ORIGIN_SHIFT, ifindex: ifindex("up0") };
        assert_eq!(bpf::run(program, &input, 1).expect("a test-run").0, -1, "port {port}");
    }
}

fn a_flood_of_notes_of_one_kind_takes_no_place_of_the_other() {
    let mut node = node_with(rules());
    let to = far(true);
    let sent_on = |flags| tcp((V4.node, 5), (to, 80), flags);
    assert_eq!(node.leave(Some("up0"), &sent_on(SYN), VM).end, End::Next);
    flood(&node, Hook::FromUplink, WORLD, |port| udp((to, port), (V4.node, 8053)));
    node.apply(&Rules::none());
    assert_eq!(node.leave(Some("up0"), &sent_on(ACK), VM).end, REVOKED);

    node.apply(&rules());
    let (call, answer) = (udp((to, 5), (V4.node, 8054)), udp((V4.node, 8054), (to, 5)));
    assert_eq!(node.uplink(&call.frame(), 0).end, End::Next);
    flood(&node, Hook::ToUplink, VM, |port| tcp((V4.node, port), (to, 80), SYN));
    assert_eq!(node.leave(Some("pod-a"), &answer, A).end, End::Next);
}

/// Sixteen share what there is.
fn a_pod_that_calls_from_ever_other_ports_takes_few_others_notes() {
    const OTHERS: usize = 64;
    let node = node_with(rules());
    for f in FAMILIES {
        let v4 = f.a == V4.a;
        let others = (0x40..0x40 + OTHERS)
            .map(|n| if v4 { format!("10.0.9.{n}") } else { format!("fd00:4:9::{n:x}") });
        let others: Vec<_> = others.collect();
        for other in &others {
            assert_eq!(node.uplink(&udp((other, 5), (f.node, 8054)).frame(), 0).end, End::Next);
        }
        flood(&node, Hook::FromUplink, WORLD, |port| udp((far(v4), port), (f.node, 8053)));
        let answer = |other: &&String| udp((f.node, 8054), (other.as_str(), 5));
        let answered = others.iter().filter(|o| node.leave(Some("pod-a"), &answer(o), A).end == End::Next);
        assert!(answered.count() >= OTHERS - OTHERS / 8);
        // Its own latest calls are answered, too.
        assert_eq!(node.leave(Some("pod-a"), &udp((f.node, 8053), (far(v4), 59_999)), A).end, End::Next);
    }
}

/// A receiver passes over one beyond its window.
fn a_reset_that_is_none_keeps_nobody_from_being_cut() {
    let mut node = node_with(rules());
    let packet = |flags| tcp((V4.node, 5), (far(true), 80), flags);
    for flags in [SYN, RST] {
        assert_eq!(node.leave(Some("up0"), &packet(flags), VM).end, End::Next);
    }
    node.apply(&Rules::none());
    assert_eq!(node.leave(Some("up0"), &packet(ACK), VM).end, REVOKED);
}

/// A map that is full, and in which nothing makes way, where the notes were.
fn fill(pin: &Path) {
    const PLACES: u32 = 16_384;
    let map = MapData::from_fd(bpf::hash(40, 4, PLACES).expect("a map")).expect("a map");
    fs::remove_file(pin).expect("unpinned");
    map.pin(pin).expect("pinned");
    let mut map = HashMap::<_, [u32; 10], u32>::try_from(Map::HashMap(map)).expect("a hash");
    for n in 0..PLACES {
        map.insert([n; 10], BEGUN_HERE, 0).expect("a place");
    }
}

fn whom_there_is_no_place_to_note_is_not_sent_on() {
    let node = node_with(rules());
    let pins = node.pins.clone();
    drop(node);
    fill(&pins.join("maps/BEGUN"));
    let mut node = Node::open(pins);
    let unnoted = End::Drop(DROP_UNNOTED, RULE_NONE);
    for f in FAMILIES {
        let to = far(f.a == V4.a);
        let leaves = |node: &Node, packet: &Packet| node.leave(Some("up0"), packet, VM);
        let call = tcp((f.node, 5), (to, 80), SYN);
        let refused = leaves(&node, &call);
        assert_eq!(refused.end, unnoted);
        let counted = refused.counted.expect("a drop");
        assert_eq!((counted.policy, u32::from(counted.dir)), (POLICY_B, DIR_INGRESS));
        assert_eq!(leaves(&node, &udp((f.node, 5), (to, 53))).end, unnoted);
        assert_eq!(leaves(&node, &sctp((f.node, 5), (to, 3868))).end, unnoted);
        // What needs no note leaves: an answer, and what is not to be cut.
        assert_eq!(leaves(&node, &tcp((f.node, 80), (to, 5), SYN | ACK)).end, End::Next);
        node.apply(&Rules::none().ingress_keep(POLICY_B, VM, Port::Tcp80, 70));
        assert_eq!(leaves(&node, &call).end, End::Next);
        node.apply(&rules());
    }
}

fn a_range_without_a_policy_here_is_open_or_closed_as_it_was_told() {
    let mut node = Node::new(rules());
    let none = |node: &Node| node.leave(Some("up0"), &tcp((V4.node, 5), (far(true), 80), SYN), WORLD).end;
    assert_eq!(none(&node), End::Next);
    ranges(&mut node, &[("10.0.9.0/24", RANGE_CLOSED)]);
    assert_eq!(none(&node), End::Drop(DROP_RANGE_CLOSED, RULE_NONE));
    // The node itself calls whom it likes, and nobody is kept from an answer.
    let (call, answer) =
        (tcp((V4.node, 5), (far(true), 80), SYN), tcp((V4.node, 80), (far(true), 5), SYN | ACK));
    assert_eq!(node.leave(Some("lo"), &call, ORIGIN_NONE).end, End::Next);
    assert_eq!(node.leave(Some("up0"), &answer, WORLD).end, End::Next);
    ranges(&mut node, &[("10.0.9.0/24", RANGE_CLOSED), ("10.0.9.9/32", RANGE_OPEN)]);
    assert_eq!(none(&node), End::Next);
}

fn of_whom_nobody_knows_a_closed_range_says_that_first() {
    let mut node = Node::new(rules());
    ranges(&mut node, &[("10.0.9.0/24", RANGE_CLOSED)]);
    for origin in [ORIGIN_NONE, ORIGIN_UNKNOWN] {
        let call = tcp((V4.node, 5), (far(true), 80), SYN);
        assert_eq!(node.leave(Some("up0"), &call, origin).end, UNKNOWN);
    }
}

fn audit_lets_him_also_where_there_is_no_place_to_note_him() {
    let node = node_with(rules().flags(POLICY_B, POLICY_AUDIT));
    let pins = node.pins.clone();
    drop(node);
    fill(&pins.join("maps/BEGUN"));
    let node = Node::open(pins);
    for (origin, audited) in [(VM, None), (WORLD, Some(RULE_DEFAULT_DENY))] {
        for f in FAMILIES {
            let outcome = node.leave(Some("up0"), &tcp((f.node, 5), (far(f.a == V4.a), 80), SYN), origin);
            assert_eq!((outcome.end, outcome.audited), (End::Next, audited));
        }
    }
}

fn audit_records_who_leaves_and_lets_him() {
    let node = node_with(rules().flags(POLICY_B, POLICY_AUDIT));
    for f in FAMILIES {
        let outcome = node.leave(Some("up0"), &tcp((f.node, 5), (far(f.a == V4.a), 80), SYN), WORLD);
        assert_eq!((outcome.end, outcome.audited), (End::Next, Some(RULE_DEFAULT_DENY)));
    }
}
