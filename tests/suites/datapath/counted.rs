//! What a rule decided on is counted at it: by both ends, once, whatever becomes of the entry that counted.

use crate::{
    node::{A, B, CONNECTIONS, End, FAMILIES, Node, POLICY_A, POLICY_B, V4, VM},
    packet::{ACK, FIN, SYN, TCP, icmp, tcp, udp},
    rules::{Port, Rules},
};
use aya::maps::{Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{
    Ages, Connections, POLICY_AUDIT, RULE_DEFAULT_DENY, RULE_LOOPBACK, RULE_OWN_NODE, RuleCounter,
};
use std::{collections::BTreeMap, thread::sleep, time::Duration};

crate::trials! {
    counted:
    an_allowed_flow_counts_at_the_rules_of_both_ends,
    a_rule_that_decides_at_both_ends_counts_once,
    a_refusal_counts_at_the_rule_that_refused,
    what_is_audited_counts_as_what_would_refuse_it,
    the_node_itself_counts_at_its_own_rule,
    a_pod_that_reaches_itself_counts_at_a_rule_of_its_own,
    what_has_no_connection_counts_too,
    nothing_is_lost_when_an_entry_is_forgotten,
    nothing_is_lost_when_an_entry_dies_of_age,
    nothing_is_lost_when_an_entry_is_evicted,
    nothing_is_lost_when_a_flow_takes_the_place_of_another,
    another_rule_counts_from_where_it_took_over,
    a_kept_connection_counts_at_the_rule_that_admitted_it,
    a_connection_begun_again_is_a_new_one_and_a_repeated_request_is_not,
    a_full_map_of_counters_drops_nothing,
    counters_outlive_the_daemon,
    counters_of_rules_that_nobody_can_name_are_removed,
}

/// Packets, bytes, connections by rule.
fn counts(node: &Node) -> BTreeMap<u32, (u64, u64, u64)> {
    let rules = node.datapath.rules().expect("rules");
    rules.into_iter().map(|(rule, c)| (rule, (c.packets, c.bytes, c.connections))).collect()
}

fn a_to_b() -> Rules {
    Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71)
}

fn to_vm() -> Rules {
    Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70).egress(POLICY_A, VM, Port::Udp53, 72)
}

fn with_ages(ages: Ages) -> Connections {
    Connections { ages, ..CONNECTIONS }
}

fn query(node: &Node, port: u16) {
    assert_eq!(node.send(A, &udp((V4.a, port), (V4.vm, 53))).end, End::Next);
}

fn an_allowed_flow_counts_at_the_rules_of_both_ends() {
    for f in FAMILIES {
        let node = Node::new(a_to_b());
        assert_eq!(counts(&node), [].into());
        assert_eq!(node.pass(A, &tcp((f.a, 5), (f.b, 80), SYN)), [End::Next; 2]);
        node.pass(B, &tcp((f.b, 80), (f.a, 5), SYN | ACK).payload(100));
        node.pass(A, &tcp((f.a, 5), (f.b, 80), ACK));
        let flow = node.flow((f.a, 5), (f.b, 80), TCP).expect("an entry");
        let all = RuleCounter { packets: 3, bytes: flow.bytes, connections: 1, last: flow.last_seen };
        assert_eq!(node.datapath.rules().expect("rules"), [(70, all), (71, all)].into());
        assert!(flow.bytes >= 3 * 54 + 100);
        let age = node.datapath.age(all.last).expect("an age");
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}

fn a_rule_that_decides_at_both_ends_counts_once() {
    let same = Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 70);
    let mut node = Node::new(same);
    node.pass(A, &tcp((V4.a, 5), (V4.b, 80), SYN));
    node.pass(B, &tcp((V4.b, 80), (V4.a, 5), SYN | ACK));
    let once = [(70, (2, 2 * 54, 1))].into();
    assert_eq!(counts(&node), once);
    assert_eq!(node.datapath.forget_flows(&[V4.a.parse().expect("an address")]).expect("forgotten"), 1);
    assert_eq!(counts(&node), once);
}

fn a_refusal_counts_at_the_rule_that_refused() {
    // Pod a may, pod b does not let it: either end counts what it decided.
    let node = Node::new(Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).egress_final(
        POLICY_A,
        VM,
        Port::Tcp80,
        73,
    ));
    for port in 5..7 {
        node.pass(A, &tcp((V4.a, port), (V4.b, 80), SYN));
        node.send(A, &tcp((V4.a, port), (V4.vm, 80), SYN));
    }
    let expected = [(RULE_DEFAULT_DENY, (2, 108, 0)), (70, (2, 108, 2)), (73, (2, 108, 0))].into();
    assert_eq!(counts(&node), expected);
    assert!(node.datapath.rules().expect("rules").values().all(|c| c.last != 0));
    // What no rule refused is none's.
    node.send_raw(A, &tcp((V4.b, 1), (V4.vm, 80), SYN).frame(), 0);
    assert_eq!(counts(&node), expected);
}

fn what_is_audited_counts_as_what_would_refuse_it() {
    let node = Node::new(Rules::none().flags(POLICY_A, POLICY_AUDIT));
    assert_eq!(node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end, End::Next);
    assert_eq!(node.deliver(A, &tcp((V4.vm, 80), (V4.a, 1), SYN | ACK), VM).end, End::Next);
    assert_eq!(counts(&node), [(RULE_DEFAULT_DENY, (2, 108, 1))].into());
}

fn the_node_itself_counts_at_its_own_rule() {
    let node = Node::new(Rules::none());
    assert_eq!(node.deliver(B, &tcp((V4.node, 1), (V4.b, 80), SYN), 0).end, End::Next);
    assert_eq!(node.send(B, &tcp((V4.b, 80), (V4.node, 1), SYN | ACK)).end, End::Next);
    assert_eq!(counts(&node), [(RULE_OWN_NODE, (2, 108, 1))].into());
}

fn a_pod_that_reaches_itself_counts_at_a_rule_of_its_own() {
    let node = Node::new(Rules::none());
    assert_eq!(node.deliver_from(B, B, &tcp((V4.node, 1), (V4.b, 80), SYN), B).end, End::Next);
    assert_eq!(node.send(B, &tcp((V4.b, 80), (V4.node, 1), SYN | ACK)).end, End::Next);
    assert_eq!(counts(&node), [(RULE_LOOPBACK, (2, 108, 1))].into());
}

fn what_has_no_connection_counts_too() {
    for f in FAMILIES {
        let rules = Rules::none().ingress(POLICY_A, VM, Port::Unreachable, 74).ingress(
            POLICY_A,
            VM,
            Port::EchoReply,
            75,
        );
        let node = Node::new(rules);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.unreachable, 0, &[]), VM).end, End::Next);
        assert_eq!(node.deliver(A, &icmp(f.vm, f.a, f.echo_reply, 7, &[]), VM).end, End::Next);
        let connections: Vec<_> = counts(&node).into_iter().map(|(rule, c)| (rule, c.0, c.2)).collect();
        assert_eq!(connections, [(74, 1, 0), (75, 1, 0)]);
    }
}

fn nothing_is_lost_when_an_entry_is_forgotten() {
    let mut node = Node::new(a_to_b());
    for _ in 0..3 {
        node.pass(A, &tcp((V4.a, 5), (V4.b, 80), ACK));
    }
    let before = node.datapath.rules().expect("rules");
    assert_eq!(counts(&node), [(70, (3, 162, 1)), (71, (3, 162, 1))].into());
    assert_eq!(node.datapath.forget_flows(&[V4.a.parse().expect("an address")]).expect("forgotten"), 1);
    assert_eq!(node.datapath.rules().expect("rules"), before);
    node.pass(A, &tcp((V4.a, 5), (V4.b, 80), ACK));
    assert_eq!(counts(&node), [(70, (4, 216, 2)), (71, (4, 216, 2))].into());
}

fn nothing_is_lost_when_an_entry_dies_of_age() {
    let node = Node::with_room(to_vm(), with_ages(Ages { unanswered: 500_000_000, ..Ages::DEFAULT }));
    for port in 1..=4 {
        query(&node, port);
        query(&node, port);
    }
    sleep(Duration::from_millis(520));
    // The dead count, swept or not; the same name again takes the place of a dead one.
    assert_eq!(counts(&node), [(72, (8, 8 * 42, 4))].into());
    query(&node, 1);
    query(&node, 9);
    assert!(node.datapath.flows().count() < 5, "some were swept");
    assert_eq!(counts(&node), [(72, (10, 10 * 42, 6))].into());
}

fn nothing_is_lost_when_an_entry_is_evicted() {
    let node = Node::with_room(to_vm(), Connections { unanswered: 2, ..CONNECTIONS });
    for port in 1..=20 {
        query(&node, port);
    }
    assert_eq!(node.datapath.flow_count().expect("count"), 2);
    assert_eq!(counts(&node), [(72, (20, 20 * 42, 20))].into());
}

fn nothing_is_lost_when_a_flow_takes_the_place_of_another() {
    let node = Node::new(a_to_b().egress(POLICY_B, A, Port::Tcp80, 80).ingress(POLICY_A, B, Port::Tcp80, 81));
    node.pass(A, &tcp((V4.a, 80), (V4.b, 80), SYN));
    node.pass(B, &tcp((V4.b, 80), (V4.a, 80), SYN));
    let one = (1, 54, 1);
    assert_eq!(counts(&node), [(70, one), (71, one), (80, one), (81, one)].into());
}

fn another_rule_counts_from_where_it_took_over() {
    let mut node = Node::new(a_to_b());
    node.pass(A, &tcp((V4.a, 5), (V4.b, 80), SYN));
    node.pass(B, &tcp((V4.b, 80), (V4.a, 5), SYN | ACK));
    // The same rules under another generation go on.
    node.apply(&a_to_b());
    node.pass(A, &tcp((V4.a, 5), (V4.b, 80), ACK));
    assert_eq!(counts(&node), [(70, (3, 162, 1)), (71, (3, 162, 1))].into());
    node.apply(&Rules::none().egress(POLICY_A, B, Port::Tcp80, 76).ingress(POLICY_B, A, Port::Tcp80, 71));
    for _ in 0..2 {
        node.pass(A, &tcp((V4.a, 5), (V4.b, 80), ACK));
    }
    assert_eq!(counts(&node), [(70, (3, 162, 1)), (71, (5, 270, 1)), (76, (2, 108, 0))].into());
    // Cut: the rule that refuses counts what it refused, and nobody else does.
    node.apply(&Rules::none());
    assert!(matches!(node.send(A, &tcp((V4.a, 5), (V4.b, 80), ACK)).end, End::Drop(..)));
    let cut = [(RULE_DEFAULT_DENY, (1, 54, 0)), (70, (3, 162, 1)), (71, (5, 270, 1)), (76, (2, 108, 0))];
    assert_eq!(counts(&node), cut.into());
}

fn a_kept_connection_counts_at_the_rule_that_admitted_it() {
    let mut node = Node::new(Rules::none().egress_keep(POLICY_A, VM, Port::Tcp80, 70));
    node.send(A, &tcp((V4.a, 5), (V4.vm, 80), SYN));
    node.apply(&Rules::none());
    assert_eq!(node.send(A, &tcp((V4.a, 5), (V4.vm, 80), ACK)).end, End::Next);
    assert_eq!(counts(&node), [(70, (2, 108, 1))].into());
}

fn a_connection_begun_again_is_a_new_one_and_a_repeated_request_is_not() {
    let node = Node::new(a_to_b());
    let (there, back) =
        (|flags| tcp((V4.a, 5), (V4.b, 80), flags), |flags| tcp((V4.b, 80), (V4.a, 5), flags));
    for _ in 0..2 {
        node.pass(A, &there(SYN));
        node.pass(A, &there(SYN));
        node.pass(B, &back(SYN | ACK));
        node.pass(A, &there(ACK));
        node.pass(A, &there(FIN | ACK));
        node.pass(B, &back(FIN | ACK));
    }
    assert_eq!(counts(&node), [(70, (12, 12 * 54, 2)), (71, (12, 12 * 54, 2))].into());
    // The node's own connections have no end that is asked.
    let node = Node::new(Rules::none());
    for _ in 0..2 {
        node.deliver(B, &tcp((V4.node, 5), (V4.b, 80), SYN), 0);
        node.send(B, &tcp((V4.b, 80), (V4.node, 5), FIN | ACK));
    }
    assert_eq!(counts(&node), [(RULE_OWN_NODE, (4, 216, 2))].into());
}

fn a_full_map_of_counters_drops_nothing() {
    let mut node = Node::new(to_vm());
    let pinned = MapData::from_pin(node.pins.join("maps/RULES")).expect("a map");
    let mut map: PerCpuHashMap<_, u32, [u64; 4]> =
        Map::from_map_data(pinned).expect("a map").try_into().expect("a per-CPU hash");
    let cpus = aya::util::nr_cpus().expect("CPUs");
    let nothing = || PerCpuValues::try_from(vec![[0; 4]; cpus]).expect("a value for each CPU");
    let mut full = 1000;
    loop {
        match map.insert(full, nothing(), 0) {
            Ok(()) => full += 1,
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::E2BIG) => break,
            // The kernel's own store of memory for small elements runs dry now and then, and fills again.
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOMEM) => {}
            Err(e) => panic!("rule {full}: {e}"),
        }
    }
    assert_eq!(full, 1000 + 65_536);
    let vm = V4.vm.parse().expect("an address");
    for port in 1..4 {
        query(&node, port);
        assert_eq!(node.datapath.forget_flows(&[vm]).expect("forgotten"), 1);
    }
    assert_eq!(counts(&node), [].into());
    // What there is room for counts on.
    map.remove(&1000).expect("removed");
    query(&node, 5);
    node.datapath.forget_flows(&[vm]).expect("forgotten");
    assert_eq!(counts(&node), [(72, (1, 42, 1))].into());
}

fn counters_outlive_the_daemon() {
    let mut node = Node::new(to_vm());
    query(&node, 1);
    node.datapath.forget_flows(&[V4.vm.parse().expect("an address")]).expect("forgotten");
    query(&node, 2);
    let (before, pins) = (node.datapath.rules().expect("rules"), node.pins.clone());
    drop(node);
    let node = Node::open(pins);
    assert!(node.adopted);
    assert_eq!(node.datapath.rules().expect("rules"), before);
    assert_eq!(counts(&node), [(72, (2, 84, 2))].into());
}

fn counters_of_rules_that_nobody_can_name_are_removed() {
    let mut node = Node::new(to_vm());
    query(&node, 1);
    node.send(A, &tcp((V4.a, 5), (V4.vm, 80), SYN));
    node.datapath.forget_flows(&[V4.vm.parse().expect("an address")]).expect("forgotten");
    node.send(A, &tcp((V4.a, 6), (V4.b, 22), SYN));
    let dropped =
        |node: &Node| node.datapath.drops().expect("drops").iter().map(|(key, _)| key.rule).collect();
    let refusal: Vec<u32> = dropped(&node);
    assert_eq!(refusal, [RULE_DEFAULT_DENY]);
    node.datapath.keep_rules(|rule| [70, RULE_DEFAULT_DENY].contains(&rule)).expect("removed");
    assert_eq!((counts(&node)[&70], dropped(&node)), ((1, 54, 1), refusal));
    node.datapath.keep_rules(|rule| rule == 70).expect("removed");
    assert_eq!((counts(&node), dropped(&node)), ([(70, (1, 54, 1))].into(), vec![]));
}
