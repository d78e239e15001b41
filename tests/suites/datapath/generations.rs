//! One store changes the whole node; live connections are asked about again.

use crate::{
    node::{A, B, End, FAMILIES, NODE, Node, POLICY_A, POLICY_B, V4, VM, WORLD, addr},
    packet::{ACK, Packet, SYN, TCP, icmp, tcp, udp},
    rules::{CLASSES, Port, Rules, SIZES},
};
use aya::maps::{Array, HashMap, Map, MapData};
use bulkhead_daemon::datapath::{DatapathError, Generation, Identities, Placed, PodMaps};
use bulkhead_ebpf_abi::{
    Addr, Cell, DROP_POLICY, DROP_REVOKED, IDENTITY_LOCAL_POD, Identity, ORIGIN_NONE, RULE_DEFAULT_DENY,
};
use bulkhead_lab::bpf;
use std::{collections::BTreeMap, os::fd::AsFd, sync::Arc};

crate::trials! {
    generations:
    a_connection_still_allowed_is_restamped,
    a_connection_no_longer_allowed_is_cut_at_both_ends,
    a_cut_connection_is_not_carried_on_from_the_other_end,
    a_cut_connection_lives_again_when_it_is_allowed_again,
    a_renewed_decision_is_made_in_the_initiators_direction,
    a_connection_that_is_kept_survives_but_no_new_one_begins,
    a_connection_that_the_responder_keeps_survives_too,
    a_connection_that_is_kept_is_cut_when_another_tier_refuses_it,
    the_nodes_own_connections_survive_every_generation,
    a_switch_is_whole_and_numbers_go_on,
    a_connection_is_asked_about_again_by_the_policy_that_its_pod_has_now,
    numbers_are_compared_whole_and_go_round,
    tables_too_large_change_nothing,
    a_full_map_of_addresses_leaves_the_running_generation_in_force_until_there_is_room,
    a_table_that_refuses_a_write_leaves_the_running_generation_in_force,
    shrinking_tables_leave_nothing_behind,
    identities_come_before_the_switch_and_go_behind_it,
    what_was_written_for_a_generation_that_is_refused_is_taken_back,
    what_is_prepared_and_not_switched_to_is_taken_back_by_the_next,
    until_the_switch_a_number_given_out_again_means_what_its_address_meant,
    a_pods_own_entry_is_not_the_generations_to_change,
}

const DENIED: End = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);
const CUT: End = End::Drop(DROP_REVOKED, RULE_DEFAULT_DENY);

fn a_to_b() -> Rules {
    Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71).egress(
        POLICY_A,
        VM,
        Port::Tcp80,
        72,
    )
}

fn a_connection_still_allowed_is_restamped() {
    let mut node = Node::new(a_to_b());
    for f in FAMILIES {
        node.pass(A, &tcp((f.a, 5), (f.b, 80), SYN));
    }
    let generation = node.apply(&a_to_b().egress(POLICY_A, VM, Port::Udp53, 73));
    for f in FAMILIES {
        assert_eq!(node.pass(B, &tcp((f.b, 80), (f.a, 5), ACK)), [End::Next; 2]);
        let flow = node.flow((f.a, 5), (f.b, 80), TCP).expect("an entry");
        assert_eq!((flow.generations, flow.rules), ([generation; 2], [70, 71]));
    }
}

fn a_connection_no_longer_allowed_is_cut_at_both_ends() {
    for f in FAMILIES {
        let (request, reply) = (tcp((f.a, 5), (f.b, 80), ACK), tcp((f.b, 80), (f.a, 5), ACK));
        for left in [
            Rules::none().egress(POLICY_A, B, Port::Tcp80, 70),
            Rules::none().ingress(POLICY_B, A, Port::Tcp80, 71),
        ] {
            let mut node = Node::new(a_to_b());
            node.pass(A, &tcp((f.a, 5), (f.b, 80), SYN));
            assert_eq!(node.pass(A, &request), [End::Next; 2]);
            node.apply(&left);
            let [_, request] = node.pass(A, &request);
            let [_, reply] = node.pass(B, &reply);
            assert_eq!((request, reply), (CUT, CUT));
        }
    }
}

fn a_cut_connection_is_not_carried_on_from_the_other_end() {
    // The vm may reach pod a at its client port, too.
    let both = Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70).ingress(POLICY_A, VM, Port::Other, 71);
    for f in FAMILIES {
        let mut node = Node::new(both.clone());
        node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN));
        node.apply(&Rules::none().ingress(POLICY_A, VM, Port::Other, 71));
        for _ in 0..3 {
            assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), ACK), VM).end, CUT);
            assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, CUT);
        }
        // A connection of its own is another matter.
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), SYN), VM).end, End::Next);
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, End::Next);
    }
}

fn a_cut_connection_lives_again_when_it_is_allowed_again() {
    for f in FAMILIES {
        let mut node = Node::new(a_to_b());
        node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN));
        node.apply(&Rules::none());
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, CUT);
        node.apply(&a_to_b());
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), ACK), VM).end, End::Next);
    }
}

fn a_renewed_decision_is_made_in_the_initiators_direction() {
    let rules = Rules::none().ingress(POLICY_B, VM, Port::Udp53, 70).ingress(POLICY_B, VM, Port::Echo, 71);
    for f in FAMILIES {
        let mut node = Node::new(rules.clone());
        let packets: [(Packet, Packet); 2] = [
            (udp((f.vm, 5), (f.b, 53)), udp((f.b, 53), (f.vm, 5))),
            (icmp(f.vm, f.b, f.echo, 5, &[]), icmp(f.b, f.vm, f.echo_reply, 5, &[])),
        ];
        for (request, _) in &packets {
            assert_eq!(node.deliver(B, request, VM).end, End::Next);
        }
        // The reply comes first; pod b's egress, which allows nothing, is not asked.
        node.apply(&rules);
        for (_, reply) in &packets {
            assert_eq!(node.send(B, reply).end, End::Next);
        }
        node.apply(&Rules::none());
        for (_, reply) in &packets {
            assert_eq!(node.send(B, reply).end, CUT);
            // A datagram has no connection that outlives its refusal.
            assert_eq!(node.send(B, reply).end, DENIED);
        }
    }
}

fn a_connection_that_is_kept_survives_but_no_new_one_begins() {
    for f in FAMILIES {
        let mut node = Node::new(Rules::none().egress_keep(POLICY_A, VM, Port::Tcp80, 70));
        node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN));
        let generation = node.apply(&Rules::none());
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, End::Next);
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), ACK), VM).end, End::Next);
        let flow = node.flow((f.a, 5), (f.vm, 80), TCP).expect("an entry");
        assert_eq!((flow.generations[0], flow.rules[0]), (generation, 70));
        assert_eq!(node.send(A, &tcp((f.a, 6), (f.vm, 80), SYN)).end, DENIED);
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, DENIED);
    }
}

fn a_connection_that_the_responder_keeps_survives_too() {
    for f in FAMILIES {
        let mut node = Node::new(Rules::none().ingress_keep(POLICY_B, VM, Port::Tcp80, 70));
        assert_eq!(node.deliver(B, &tcp((f.vm, 5), (f.b, 80), SYN), VM).end, End::Next);
        node.apply(&Rules::none());
        // Also when the reply is the first to ask.
        assert_eq!(node.send(B, &tcp((f.b, 80), (f.vm, 5), SYN | ACK)).end, End::Next);
        assert_eq!(node.deliver(B, &tcp((f.vm, 5), (f.b, 80), ACK), VM).end, End::Next);
        assert_eq!(node.deliver(B, &tcp((f.vm, 6), (f.b, 80), SYN), VM).end, DENIED);
    }
}

fn a_connection_that_is_kept_is_cut_when_another_tier_refuses_it() {
    for f in FAMILIES {
        let mut node = Node::new(Rules::none().egress_keep(POLICY_A, VM, Port::Tcp80, 70));
        node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN));
        node.apply(&Rules::none().egress_final(POLICY_A, VM, Port::Tcp80, 71));
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, End::Drop(DROP_REVOKED, 71));
        assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), ACK), VM).end, End::Drop(DROP_REVOKED, 71));
    }
}

fn the_nodes_own_connections_survive_every_generation() {
    for f in FAMILIES {
        let mut node = Node::new(Rules::none().ingress(POLICY_A, NODE, Port::Tcp80, 70));
        assert_eq!(node.deliver(A, &tcp((f.node, 5), (f.a, 80), SYN), ORIGIN_NONE).end, End::Next);
        node.apply(&Rules::none());
        assert_eq!(node.send(A, &tcp((f.a, 80), (f.node, 5), ACK)).end, End::Next);
        assert_eq!(node.deliver(A, &tcp((f.node, 5), (f.a, 80), ACK), ORIGIN_NONE).end, End::Next);
    }
}

fn a_switch_is_whole_and_numbers_go_on() {
    let mut node = Node::new(a_to_b());
    for round in 0..20u16 {
        let (rules, end) = if round % 2 == 0 { (Rules::none(), DENIED) } else { (a_to_b(), End::Next) };
        let generation = node.apply(&rules);
        assert_eq!(generation, u32::from(round) + 2);
        assert_eq!(node.datapath.running_generation().expect("generation"), generation);
        for f in FAMILIES {
            assert_eq!(node.send(A, &tcp((f.a, 100 + round), (f.vm, 80), SYN)).end, end);
        }
    }
}

fn a_connection_is_asked_about_again_by_the_policy_that_its_pod_has_now() {
    let mut node = Node::new(a_to_b());
    let generation = node.apply(&a_to_b());
    for f in FAMILIES {
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, End::Next);
    }
    // The same tables; policy 3 allows nothing.
    let pods = FAMILIES.map(|f| (addr(f.a), Placed { identity: A, policy: 3 })).into();
    assert!(!node.datapath.have_policies(&pods).expect("endpoints"));
    let tables = a_to_b().tables();
    let same = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
    assert_eq!(node.datapath.apply_with(&same, &pods).expect("applied"), generation + 1);
    assert!(node.datapath.have_policies(&pods).expect("endpoints"));
    for f in FAMILIES {
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, CUT);
    }
}

/// As if so many had been in force.
fn renumber(node: &Node, generation: u32) {
    let mut map: Array<_, u32> = Map::Array(pinned(node, "GENERATION")).try_into().expect("an array");
    map.set(0, generation, 0).expect("written");
}

fn numbers_are_compared_whole_and_go_round() {
    // All are odd, of the half that holds the rules. The last number is followed by the second.
    for (admitted, switches, asked) in [(1, 2, 65_537), (65_537, 2, 1), (u32::MAX, 1, 2)] {
        let mut node = Node::new(a_to_b());
        renumber(&node, admitted);
        for f in FAMILIES {
            // One that takes the short way, and one that does not.
            assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, End::Next);
            assert_eq!(node.deliver(A, &tcp((f.vm, 80), (f.a, 5), SYN | ACK), VM).end, End::Next);
            assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), ACK)).end, End::Next);
            assert_eq!(node.send(A, &tcp((f.a, 6), (f.vm, 80), SYN)).end, End::Next);
        }
        for _ in 0..switches {
            node.apply(&Rules::none());
        }
        renumber(&node, asked);
        for f in FAMILIES {
            for port in [5, 6] {
                assert_eq!(node.send(A, &tcp((f.a, port), (f.vm, 80), ACK)).end, CUT, "{admitted} {port}");
            }
        }
    }
}

fn tables_too_large_change_nothing() {
    let mut node = Node::new(a_to_b());
    let good = a_to_b().tables();
    let addresses = |node: &Node| {
        let map: HashMap<_, [u8; 16], [u8; 8]> =
            Map::HashMap(pinned(node, "IDENTITY_EXACT")).try_into().expect("a hash map");
        map.iter().map(|entry| entry.expect("an entry")).collect::<BTreeMap<_, _>>()
    };
    let before = addresses(&node);
    for what in [
        "CLASS",
        "POLICY",
        "PORT_DIR",
        "PORT_PAGE",
        "ROW",
        "CELL",
        "IDENTITY_PREFIX",
        "IDENTITY_EXACT",
        "identity",
    ] {
        let mut tables = good.clone();
        let (mut prefixes, mut exact) = (node.prefixes.clone(), node.exact.clone());
        match what {
            "CLASS" => Arc::make_mut(&mut tables.classes).resize(SIZES.identities as usize + 1, 0),
            "POLICY" => {
                Arc::make_mut(&mut tables.policies).resize(SIZES.policies as usize + 1, Default::default())
            }
            "PORT_DIR" => tables.port_directories.resize(7, [0; 256]),
            "PORT_PAGE" => tables.port_pages.resize(SIZES.port_pages as usize + 1, [0; 256]),
            "ROW" => tables.rows.resize(SIZES.rows as usize + 1, 0),
            "CELL" => tables.cells.resize(SIZES.cells as usize + 1, Cell::default()),
            // Those that stand there already take room, too.
            "IDENTITY_PREFIX" => {
                prefixes.extend(strangers(prefixes.len()).map(|(address, vm)| ((address, 127), vm)));
            }
            "IDENTITY_EXACT" => exact.extend(strangers(before.len())),
            _ => {
                prefixes.insert((addr("198.51.100.0"), 120), Identity { id: SIZES.identities, flags: 0 });
            }
        }
        let refused =
            node.datapath.apply(&Generation { tables: &tables, prefixes: &prefixes, exact: &exact });
        let table = if what == "identity" { "CLASS" } else { what };
        assert!(
            matches!(refused, Err(DatapathError::TooLarge { table: t, .. }) if t == table),
            "{what}: {refused:?}"
        );
        assert_eq!(addresses(&node), before, "{what}");
        // One less fits.
        let one = Addr(strange(0));
        if exact.remove(&one).or(prefixes.remove(&(one, 127))).is_some() {
            let less = Generation { tables: &tables, prefixes: &prefixes, exact: &exact };
            node.datapath.check_room(&less).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        assert_eq!(node.datapath.running_generation().expect("generation"), 1);
        assert_eq!(node.send(A, &tcp((V4.a, 5), (V4.vm, 80), SYN)).end, End::Next);
    }
    assert_eq!(node.apply(&a_to_b()), 2);
}

/// Addresses of the vm: with so many that are there one more than maps of this size hold.
fn strangers(there: usize) -> impl Iterator<Item = (Addr, Identity)> {
    let room = SIZES.identities as usize * 2;
    (0..).map(|n: u16| (Addr(strange(n * 2)), Identity { id: VM, flags: 0 })).take(room + 1 - there)
}

/// The map itself, which others share with the daemon.
fn pinned(node: &Node, map: &str) -> MapData {
    MapData::from_pin(node.pins.join("maps").join(map)).expect("a pinned map")
}

fn refusal(node: &mut Node, rules: &Rules) -> DatapathError {
    let tables = rules.tables();
    let generation = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
    node.datapath.apply(&generation).expect_err("the kernel refuses")
}

/// What generation 1 says, and nothing of a later one.
fn is_in_force(node: &Node) {
    assert_eq!(node.datapath.running_generation().expect("generation"), 1);
    for f in FAMILIES {
        assert_eq!(node.pass(A, &tcp((f.a, 5), (f.b, 80), SYN)), [End::Next; 2]);
        assert_eq!(node.send(A, &tcp((f.a, 5), (f.vm, 80), SYN)).end, End::Next);
        assert_eq!(node.send(A, &udp((f.a, 5), (f.vm, 53))).end, DENIED);
    }
    assert_eq!(node.send(A, &tcp((V4.a, 5), ("10.7.0.1", 80), SYN)).end, DENIED);
}

/// The map of addresses, without room for another.
struct Full {
    map: HashMap<MapData, [u8; 16], [u8; 8]>,
    entries: u16,
}

impl Full {
    fn of(node: &Node) -> Self {
        let mut map: HashMap<_, [u8; 16], [u8; 8]> =
            Map::HashMap(pinned(node, "IDENTITY_EXACT")).try_into().expect("a hash map");
        let entries = (0..).position(|n| map.insert(strange(n), [0; 8], 0).is_err()).expect("an end");
        Self { map, entries: entries as u16 }
    }

    fn make_room(mut self) {
        (0..self.entries).for_each(|n| self.map.remove(&strange(n)).expect("removed"));
    }
}

fn strange(n: u16) -> [u8; 16] {
    [[0xee; 14].as_slice(), &n.to_be_bytes()].concat().try_into().expect("sixteen")
}

fn a_full_map_of_addresses_leaves_the_running_generation_in_force_until_there_is_room() {
    const KIND: u32 = 35;
    let mut node = Node::new(a_to_b());
    // Rules, an identity and an address that are new.
    node.exact.insert(addr("10.7.0.1"), Identity { id: KIND, flags: 0 });
    let next = Rules::none().egress(POLICY_A, VM, Port::Udp53, 73).egress(POLICY_A, KIND, Port::Tcp80, 74);
    let full = Full::of(&node);
    for _ in 0..2 {
        let refused = refusal(&mut node, &next).to_string();
        assert!(refused.contains("IDENTITY_EXACT") && refused.contains("10.7.0.1"), "{refused}");
        is_in_force(&node);
    }
    full.make_room();
    assert_eq!(node.apply(&next), 2);
    assert_eq!(node.send(A, &udp((V4.a, 5), (V4.vm, 53))).end, End::Next);
    assert_eq!(node.send(A, &tcp((V4.a, 6), ("10.7.0.1", 80), SYN)).end, End::Next);
    assert_eq!(node.send(A, &tcp((V4.a, 6), (V4.vm, 80), SYN)).end, DENIED);
}

fn a_table_that_refuses_a_write_leaves_the_running_generation_in_force() {
    let mut node = Node::new(a_to_b());
    bpf::freeze(pinned(&node, "CELL").fd().as_fd()).expect("frozen");
    for _ in 0..2 {
        let refused = refusal(&mut node, &Rules::none().egress(POLICY_A, VM, Port::Udp53, 73)).to_string();
        assert!(refused.contains("CELL") && refused.contains("not permitted"), "{refused}");
        is_in_force(&node);
    }
}

/// The compile in force has no class for the number, which the refused one gave to the vm: it may give it to somebody else.
fn what_was_written_for_a_generation_that_is_refused_is_taken_back() {
    const NUMBER: u32 = CLASSES + 5;
    let mut node = Node::new(a_to_b());
    let somebody = "198.51.100.1";
    node.exact.insert(addr(V4.vm), Identity { id: NUMBER, flags: 0 });
    let full = Full::of(&node);
    let refused = refusal(&mut node, &Rules::none().egress(POLICY_A, VM, Port::Udp53, 73)).to_string();
    assert!(refused.contains("IDENTITY_EXACT"), "{refused}");
    full.make_room();
    is_in_force(&node);
    node.exact.remove(&addr(V4.vm));
    node.exact.insert(addr(somebody), Identity { id: NUMBER, flags: 0 });
    let tables = a_to_b().tables();
    let generation = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
    node.datapath.follow(&generation).expect("followed");
    assert_eq!(node.send(A, &tcp((V4.a, 5), (somebody, 80), SYN)).end, DENIED);
    is_in_force(&node);
}

fn what_is_prepared_and_not_switched_to_is_taken_back_by_the_next() {
    let mut node = Node::new(a_to_b());
    let before = node.datapath.read_identities().expect("identities");
    let endpoints = node.datapath.endpoints().expect("endpoints");
    let (prefixes, mut exact) = (Default::default(), node.exact.clone());
    exact.insert(addr(V4.vm), Identity { id: CLASSES + 5, flags: 0 });
    let pods = FAMILIES.map(|f| (addr(f.a), Placed { identity: CLASSES + 6, policy: 3 })).into();
    let tables = Rules::none().tables();
    let other = Generation { tables: &tables, prefixes: &prefixes, exact: &exact };
    node.datapath.prepare(&other, &pods).expect("prepared");
    is_in_force(&node);
    assert_ne!(node.datapath.read_identities().expect("identities"), before);
    assert_ne!(node.datapath.endpoints().expect("endpoints"), endpoints);
    let tables = a_to_b().tables();
    let same = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
    node.datapath.follow(&same).expect("followed");
    assert_eq!(node.datapath.read_identities().expect("identities"), before);
    assert_eq!(node.datapath.endpoints().expect("endpoints"), endpoints);
    is_in_force(&node);
}

fn until_the_switch_a_number_given_out_again_means_what_its_address_meant() {
    // In the running generation one of them may be called, whoever it was, and the other may not.
    const CALLED: u32 = 35;
    const REFUSED: u32 = 36;
    let rules = Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70).egress(POLICY_A, CALLED, Port::Tcp80, 71);
    let mut node = Node::new(rules);
    for (address, id) in [(V4.world, CALLED), (V4.vm, REFUSED)] {
        node.exact.insert(addr(address), Identity { id, flags: 0 });
    }
    let tables = Rules::none().tables();
    let next = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
    node.datapath.prepare(&next, &[].into()).expect("prepared");
    let ids = [V4.world, V4.vm].map(|a| node.datapath.address(a.parse().expect("an address")).expect("read"));
    assert_eq!(ids.map(|i| i.expect("an entry").id), [CALLED, REFUSED]);
    assert_eq!(node.send(A, &tcp((V4.a, 5), (V4.world, 80), SYN)).end, DENIED);
    assert_eq!(node.send(A, &tcp((V4.a, 5), (V4.vm, 80), SYN)).end, End::Next);
}

fn shrinking_tables_leave_nothing_behind() {
    // Identity 39 has a row of its own, then no class at all: the world's row decides.
    let mut node = Node::new(Rules::none());
    node.exact.insert(addr("198.51.100.1"), Identity { id: 39, flags: 0 });
    let rules = Rules::none().egress(POLICY_A, 39, Port::Tcp80, 70);
    node.apply(&rules);
    node.apply(&rules);
    assert_eq!(node.send(A, &tcp((V4.a, 1), ("198.51.100.1", 80), SYN)).end, End::Next);
    let mut tables = rules.tables();
    Arc::make_mut(&mut tables.classes).truncate(39);
    let (prefixes, exact) = (node.prefixes.clone(), node.exact.clone());
    node.datapath
        .apply(&Generation { tables: &tables, prefixes: &prefixes, exact: &exact })
        .expect("applied");
    assert_eq!(node.send(A, &tcp((V4.a, 2), ("198.51.100.1", 80), SYN)).end, DENIED);
}

fn identities_come_before_the_switch_and_go_behind_it() {
    let mut node = Node::new(Rules::none());
    let inner = (addr("192.0.2.0"), 96 + 28);
    node.prefixes.insert(inner, Identity { id: 33, flags: 0 });
    node.exact.insert(addr("198.51.100.1"), Identity { id: 34, flags: 0 });
    node.apply(&Rules::none().egress(POLICY_A, 33, Port::Tcp80, 70).egress(POLICY_A, 34, Port::Tcp80, 71));
    assert_eq!(node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end, End::Next);
    assert_eq!(node.send(A, &tcp((V4.a, 1), ("198.51.100.1", 80), SYN)).end, End::Next);
    node.prefixes.remove(&inner);
    node.exact.remove(&addr("198.51.100.1"));
    node.apply(&Rules::none().egress(POLICY_A, VM, Port::Udp53, 70).egress(POLICY_A, WORLD, Port::Udp53, 70));
    assert!(node.datapath.read_identities().expect("identities").prefixes.contains_key(&inner));
    node.datapath.settle().expect("settled");
    let held = node.datapath.read_identities().expect("identities");
    assert_eq!(held.prefixes, node.prefixes);
    assert_eq!(node.send(A, &udp((V4.a, 1), (V4.vm, 53))).end, End::Next);
    assert_eq!(node.send(A, &udp((V4.a, 1), ("198.51.100.1", 53))).end, End::Next);
}

fn a_pods_own_entry_is_not_the_generations_to_change() {
    let mut node = Node::new(Rules::none());
    let pod = Identity { id: A, flags: IDENTITY_LOCAL_POD };
    node.exact.insert(addr(V4.a), Identity { id: VM, flags: 0 });
    node.apply(&Rules::none());
    node.exact.clear();
    node.apply(&Rules::none());
    node.datapath.settle().expect("settled");
    let Identities { exact, .. } = node.datapath.read_identities().expect("identities");
    assert_eq!(exact.get(&addr(V4.a)), Some(&pod));
    assert_eq!(exact.len(), 4, "two pods, two families; the node's addresses are gone");
    for address in [V4.a, V4.a] {
        node.datapath.remove_address(address.parse().expect("address")).expect("removed");
    }
    assert_eq!(node.datapath.read_identities().expect("identities").exact.len(), 3);
}
