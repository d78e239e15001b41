//! The tables decide: by policy, direction, peer and port; and where they say nothing, the answer is no.

use crate::{
    node::{A, B, End, FAMILIES, Node, POLICY_A, POLICY_B, V4, V6, VM, WORLD, addr, ifindex},
    packet::{SYN, tcp, udp},
    rules::{Port, Rules, SIZES},
};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, DROP_POLICY, Identity, POLICY_AUDIT, RULE_DEFAULT_DENY, RULE_NONE,
};
use std::sync::Arc;

crate::trials! {
    decisions:
    both_ends_must_allow,
    a_drop_names_rule_policy_and_direction,
    the_longest_prefix_is_the_peer,
    an_exact_entry_goes_before_every_prefix,
    identities_no_rule_tells_apart_are_decided_as_the_world,
    without_a_generation_nothing_passes,
    a_policy_that_no_generation_wrote_denies,
    tables_that_point_beyond_their_half_deny,
    an_audited_refusal_is_counted_and_passes,
    audit_does_not_soften_what_another_tier_refuses,
}

fn both_ends_must_allow() {
    let egress = Rules::none().egress(POLICY_A, B, Port::Tcp80, 70);
    let ingress = Rules::none().ingress(POLICY_B, A, Port::Tcp80, 71);
    let both = egress.clone().ingress(POLICY_B, A, Port::Tcp80, 71);
    let denied = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);
    for f in FAMILIES {
        let packet = tcp((f.a, 1), (f.b, 80), SYN);
        assert_eq!(Node::new(egress.clone()).pass(A, &packet), [End::Next, denied]);
        assert_eq!(Node::new(ingress.clone()).pass(A, &packet), [denied, denied]);
        let node = Node::new(both.clone());
        assert_eq!(node.pass(A, &packet), [End::Next, End::Next]);
        assert_eq!(node.pass(B, &tcp((f.b, 9), (f.a, 80), SYN)), [denied, denied]);
    }
}

fn a_drop_names_rule_policy_and_direction() {
    let node = Node::new(Rules::none());
    let sent = node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).counted.expect("a drop");
    assert_eq!((sent.rule, sent.policy, u32::from(sent.dir)), (RULE_DEFAULT_DENY, POLICY_A, DIR_EGRESS));
    let got = node.deliver(B, &tcp((V4.vm, 1), (V4.b, 80), SYN), VM).counted.expect("a drop");
    assert_eq!((got.rule, got.policy, u32::from(got.dir)), (RULE_DEFAULT_DENY, POLICY_B, DIR_INGRESS));
    let bytes: u64 = node.datapath.drops().expect("drops").iter().map(|(_, c)| c.bytes).sum();
    assert_eq!(bytes, 2 * 54);
}

fn the_longest_prefix_is_the_peer() {
    let mut node = Node::new(Rules::none());
    let wide = Identity { id: 31, flags: 0 };
    node.prefixes.insert((addr("192.0.0.0"), 96 + 16), wide);
    node.prefixes.insert((addr("2001:db8::"), 32), wide);
    node.apply(&Rules::none().egress(POLICY_A, 31, Port::Tcp80, 70).egress(POLICY_A, VM, Port::Udp53, 71));
    for (vm, neighbour) in [(V4.vm, "192.0.3.1"), (V6.vm, "2001:db8:3::1")] {
        let a = if vm == V4.vm { V4.a } else { V6.a };
        assert_eq!(node.send(A, &tcp((a, 1), (neighbour, 80), SYN)).end, End::Next);
        assert!(matches!(node.send(A, &tcp((a, 1), (vm, 80), SYN)).end, End::Drop(DROP_POLICY, _)));
        assert_eq!(node.send(A, &udp((a, 1), (vm, 53))).end, End::Next);
        assert!(matches!(node.send(A, &udp((a, 1), (neighbour, 53))).end, End::Drop(DROP_POLICY, _)));
    }
}

fn an_exact_entry_goes_before_every_prefix() {
    let mut node = Node::new(Rules::none());
    node.exact.insert(addr(V4.vm), Identity { id: 32, flags: 0 });
    node.apply(&Rules::none().egress(POLICY_A, 32, Port::Tcp80, 70));
    assert_eq!(node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end, End::Next);
    assert!(matches!(node.send(A, &tcp((V4.a, 1), ("192.0.2.8", 80), SYN)).end, End::Drop(DROP_POLICY, _)));
}

fn identities_no_rule_tells_apart_are_decided_as_the_world() {
    // Class 0 stands for them: it is the row of identity 0 in these tables.
    let mut node = Node::new(Rules::none());
    node.exact.insert(addr("198.51.100.1"), Identity { id: 60, flags: 0 });
    node.apply(&Rules::none().egress(POLICY_A, 0, Port::Tcp80, 70).egress(POLICY_A, WORLD, Port::Udp53, 71));
    assert_eq!(node.send(A, &tcp((V4.a, 1), ("198.51.100.1", 80), SYN)).end, End::Next);
    assert_eq!(node.send(A, &udp((V4.a, 1), (V4.world, 53))).end, End::Next);
}

fn without_a_generation_nothing_passes() {
    let mut node = Node::empty();
    node.wire();
    assert_eq!(node.datapath.running_generation().expect("generation"), 0);
    for f in FAMILIES {
        let end = node.send(A, &tcp((f.a, 1), (f.vm, 80), SYN)).end;
        assert_eq!(end, End::Drop(DROP_POLICY, RULE_NONE));
        let end = node.deliver(A, &tcp((f.vm, 1), (f.a, 80), SYN), VM).end;
        assert_eq!(end, End::Drop(DROP_POLICY, RULE_NONE));
    }
}

fn a_policy_that_no_generation_wrote_denies() {
    let rules = Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70);
    let mut node = Node::new(rules.clone());
    let mut tables = rules.tables();
    Arc::make_mut(&mut tables.policies).truncate(POLICY_A as usize);
    let (prefixes, exact) = (node.prefixes.clone(), node.exact.clone());
    // Twice: the half written first still held the policy.
    for _ in 0..2 {
        let generation =
            bulkhead_daemon::datapath::Generation { tables: &tables, prefixes: &prefixes, exact: &exact };
        node.datapath.apply(&generation).expect("applied");
        let end = node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end;
        assert_eq!(end, End::Drop(DROP_POLICY, RULE_NONE));
    }
    let mut endpoint = node.datapath.endpoints().expect("endpoints")[&ifindex("pod-a")];
    endpoint.policies = [SIZES.policies; 2];
    node.datapath.set_endpoint(ifindex("pod-a"), &endpoint).expect("endpoint");
    let end = node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end;
    assert_eq!(end, End::Drop(DROP_POLICY, RULE_NONE));
}

fn tables_that_point_beyond_their_half_deny() {
    let rules = Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70);
    let mut node = Node::new(rules.clone());
    let (prefixes, exact) = (node.prefixes.clone(), node.exact.clone());
    let good = rules.tables();
    for what in ["row", "cell", "port table", "page"] {
        let mut tables = good.clone();
        let policy = &mut Arc::make_mut(&mut tables.policies)[POLICY_A as usize][DIR_EGRESS as usize];
        match what {
            "row" => policy.row_base = SIZES.rows,
            "cell" => tables.rows = vec![SIZES.cells; tables.rows.len()].into(),
            "port table" => policy.port_table = SIZES.port_tables,
            _ => {
                tables.port_directories = vec![[SIZES.port_pages; 256]; tables.port_directories.len()].into();
            }
        }
        let generation =
            bulkhead_daemon::datapath::Generation { tables: &tables, prefixes: &prefixes, exact: &exact };
        node.datapath.apply(&generation).expect("applied");
        let end = node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end;
        assert_eq!(end, End::Drop(DROP_POLICY, RULE_NONE), "{what}");
    }
}

fn an_audited_refusal_is_counted_and_passes() {
    let node = Node::new(Rules::none().flags(POLICY_A, POLICY_AUDIT));
    let packet = tcp((V4.a, 1), (V4.vm, 80), SYN);
    let outcome = node.send(A, &packet);
    assert_eq!((outcome.end, outcome.audited), (End::Next, Some(RULE_DEFAULT_DENY)));
    // It is a connection now: its replies pass, and it is not counted again.
    let reply = tcp((V4.vm, 80), (V4.a, 1), SYN | 16);
    let outcome = node.deliver(A, &reply, VM);
    assert_eq!((outcome.end, outcome.audited), (End::Next, None));
}

fn audit_does_not_soften_what_another_tier_refuses() {
    let rules = Rules::none().egress_final(POLICY_A, VM, Port::Tcp80, 71).flags(POLICY_A, POLICY_AUDIT);
    let outcome = Node::new(rules).send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN));
    assert_eq!((outcome.end, outcome.audited), (End::Drop(DROP_POLICY, 71), None));
}
