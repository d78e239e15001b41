//! Generations are switched while packets are on their way, on two CPUs at once.

use crate::{
    node::{B, MAC_A, Node, POLICY_A, POLICY_B, V4, VM, WORLD, addr, ifindex},
    packet::icmp,
    rules::{CLASSES, Port, Rules},
    traffic::{Stream, meanwhile},
};
use aya::maps::MapData;
use bulkhead_daemon::datapath::{Generation, Hook, Placed};
use bulkhead_ebpf_abi::{DROP_POLICY, DROP_REVOKED, DropKey, Identity};
use bulkhead_lab::bpf::{self, Input, instruction};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

crate::trials! {
    switches:
    no_packet_mixes_two_generations,
    an_address_that_moves_with_the_rules_is_never_somebody_that_neither_generation_knows_it_as,
    a_pod_of_the_node_that_becomes_another_with_the_rules_is_never_one_under_the_rules_for_the_other,
    the_half_that_a_packet_reads_is_written_only_when_it_has_left,
}

pub const SWITCHES: u32 = 150;
/// Packets of one test-run.
const RUNS: u32 = 500;

/// In every generation pod a may send echo replies to the vm and nothing unreachable; with everybody else it is the other way
/// round. Each generation has other rules, and its classes and rows in other places: who mixes two is mistaken.
fn generation(n: u32) -> Rules {
    generation_of(n, VM)
}

/// The same, where the vm is known by this identity.
fn generation_of(n: u32, vm: u32) -> Rules {
    let rule = 1000 + n * 10;
    let others = (0..CLASSES).filter(|peer| *peer != vm);
    let rules = others.fold(Rules::none(), |rules, peer| {
        rules.egress_denied(POLICY_A, peer, Port::EchoReply, 100).egress(
            POLICY_A,
            peer,
            Port::Unreachable,
            101,
        )
    });
    rules
        .egress(POLICY_A, vm, Port::EchoReply, rule)
        .egress_denied(POLICY_A, vm, Port::Unreachable, rule + 1)
        .turned(n * 7)
}

fn no_packet_mixes_two_generations() {
    let node = Node::new(generation(0));
    switch_under_packets(node, V4.vm, |node, n| {
        node.apply(&generation(n));
    });
}

/// The vm's address is known by its prefix, as one and as another, and by itself; entries come, change and go with each
/// switch, and each of the identities is somebody else's too.
fn an_address_that_moves_with_the_rules_is_never_somebody_that_neither_generation_knows_it_as() {
    let [first, second, third] = [VM, VM + 1, VM + 2];
    let mut node = Node::empty();
    node.wire();
    let known = |id| Identity { id, flags: 0 };
    let prefix = (addr("192.0.2.0"), 120);
    for (address, id) in [("198.51.100.1", first), ("198.51.100.2", second), ("198.51.100.3", third)] {
        node.exact.insert(addr(address), known(id));
    }
    let apply = move |node: &mut Node, n: u32| {
        let [by_prefix, by_address] = match n % 4 {
            0 => [Some(first), None],
            1 => [Some(second), None],
            2 => [Some(first), Some(third)],
            _ => [None, Some(second)],
        };
        match by_prefix {
            Some(id) => drop(node.prefixes.insert(prefix, known(id))),
            None => drop(node.prefixes.remove(&prefix)),
        }
        match by_address {
            Some(id) => drop(node.exact.insert(addr(V4.vm), known(id))),
            None => drop(node.exact.remove(&addr(V4.vm))),
        }
        node.apply(&generation_of(n, by_address.or(by_prefix).unwrap_or(WORLD)));
    };
    apply(&mut node, 0);
    switch_under_packets(node, V4.vm, apply);
}

fn a_pod_of_the_node_that_becomes_another_with_the_rules_is_never_one_under_the_rules_for_the_other() {
    let mut node = Node::empty();
    node.wire();
    for (address, id) in [("198.51.100.1", B), ("198.51.100.2", B + 1)] {
        node.exact.insert(addr(address), Identity { id, flags: 0 });
    }
    let apply = |node: &mut Node, n: u32| {
        let id = B + n % 2;
        let tables = generation_of(n, id).tables();
        let generation = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
        let pods = [(addr(V4.b), Placed { identity: id, policy: POLICY_B })].into();
        node.datapath.apply_with(&generation, &pods).expect("applied");
    };
    apply(&mut node, 0);
    switch_under_packets(node, V4.b, apply);
}

/// Packets that all generations allow, and packets that all deny, from two processors.
fn switch_under_packets(mut node: Node, to: &str, apply: impl Fn(&mut Node, u32)) {
    // Neither begins a connection: each of them is decided.
    let streams = [(0, true), (3, false)].map(|(kind, passes)| {
        let packet = icmp(V4.a, to, kind, 5, &[]).with_mac(MAC_A);
        vec![Stream::new(Hook::FromPod, "pod-a", 0, &packet, passes).repeated(RUNS)]
    });
    switch_under(&mut node, &streams, |_, policy| policy == POLICY_A, apply);
}

/// Switches from generation to generation, and looks at what was dropped meanwhile: each packet by the rule of a generation
/// for the vm, and by a policy that a pod has in that generation.
pub fn switch_under(
    node: &mut Node,
    streams: &[Vec<Stream>; 2],
    has: impl Fn(u32, u32) -> bool,
    apply: impl Fn(&mut Node, u32),
) {
    let sum = |node: &Node| {
        let drops = node.datapath.drops().expect("drops");
        drops.iter().map(|(_, counter)| counter.packets).sum::<u64>()
    };
    let before = sum(node);
    let sent = meanwhile(node, streams, |node| (1..=SWITCHES).for_each(|n| apply(node, n)));
    let drops = node.datapath.drops().expect("drops");
    let right = |key: &DropKey| {
        let generation = key.rule.wrapping_sub(1000) / 10;
        [DROP_POLICY, DROP_REVOKED].contains(&key.reason)
            && key.rule >= 1000
            && key.rule % 10 == 1
            && has(generation, key.policy)
    };
    let mistaken: Vec<_> = drops.iter().filter(|(key, _)| !right(key)).collect();
    assert!(mistaken.is_empty(), "{mistaken:?}");
    let met: BTreeSet<u32> = drops.iter().map(|(key, _)| key.rule).collect();
    assert!(met.len() > SWITCHES as usize / 4, "packets met {} generations only", met.len());
    let all = streams.iter().flatten().zip(sent.iter().flatten());
    for (stream, sent) in all.clone() {
        let least = u64::from(SWITCHES / 4 * stream.repeat);
        assert!(*sent > least, "{sent} packets only at {:?}", stream.hook);
    }
    let refused: u64 = all.filter(|(stream, _)| !stream.passes).map(|(_, sent)| sent).sum();
    assert_eq!(sum(node) - before, refused);
}

/// A packet that takes its time: reads the generation once, then the cell of its half (`at`) twice, and says whether it was
/// the same (1) or not (0).
fn slow_packet(node: &Node, at: [u32; 2]) -> OwnedFd {
    /// Calls of the clock between the two readings: some milliseconds.
    const WAIT: i32 = 60_000;
    let map = |name: &str| MapData::from_pin(node.pins.join("maps").join(name)).expect("a pinned map");
    let (generation, cells) = (map("GENERATION"), map("CELL"));
    let fd = |map: &MapData| map.fd().as_fd().as_raw_fd();
    let [first, second] = at.map(|index| index as i32);
    let mut code = vec![
        // The running half, of the only entry of GENERATION.
        instruction(0x18, 1, 2, 0, fd(&generation)),
        0,
        instruction(0x61, 2, 1, 0, 0),
        instruction(0x57, 2, 0, 0, 1),
        instruction(0xb7, 3, 0, 0, first),
        instruction(0x15, 2, 0, 1, 0),
        instruction(0xb7, 3, 0, 0, second),
        // r6: its cell.
        instruction(0x63, 10, 3, -4, 0),
        instruction(0x18, 1, 1, 0, fd(&cells)),
        0,
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, 0, 0, 0, 1),
        instruction(0x55, 0, 0, 1, 0),
        instruction(0x95, 0, 0, 0, 0),
        instruction(0xbf, 6, 0, 0, 0),
    ];
    // r7: the rule now; r8: how long to wait.
    code.push(instruction(0x61, 7, 6, 0, 0));
    code.push(instruction(0xb7, 8, 0, 0, WAIT));
    code.push(instruction(0x85, 0, 0, 0, 5));
    code.push(instruction(0x07, 8, 0, 0, -1));
    code.push(instruction(0x55, 8, 0, -3, 0));
    // The rule then.
    code.push(instruction(0x61, 1, 6, 0, 0));
    code.push(instruction(0xb7, 0, 0, 0, 1));
    code.push(instruction(0x1d, 1, 7, 1, 0));
    code.push(instruction(0xb7, 0, 0, 0, 0));
    code.push(instruction(0x95, 0, 0, 0, 0));
    bpf::load("a slow packet", &code).expect("loaded")
}

fn the_half_that_a_packet_reads_is_written_only_when_it_has_left() {
    let mut node = Node::new(generation(0).turned(0));
    // The same cell of every generation: pod a's egress to the vm.
    let tables = generation(0).turned(0).tables();
    let row = tables.policies[POLICY_A as usize][0].row_base + VM;
    let cell = tables.rows[row as usize] + Port::EchoReply as u32;
    let program = slow_packet(&node, [cell, cell + crate::rules::SIZES.cells]);
    let frame = icmp(V4.a, V4.vm, 0, 5, &[]).with_mac(MAC_A).frame();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let packets = scope.spawn(|| {
            let input = Input { frame: &frame, mark: 0, ifindex: ifindex("pod-a") };
            let mut packets = 0;
            while !over.load(Ordering::Relaxed) {
                let (said, _) = bpf::run(program.as_fd(), &input, 1).expect("a test-run");
                assert_eq!(said, 1, "packet {packets} saw its half change");
                packets += 1;
            }
            packets
        });
        for n in 1..=SWITCHES / 3 {
            node.apply(&generation(n).turned(0));
        }
        over.store(true, Ordering::Relaxed);
        assert!(packets.join().expect("no half changes under a packet") > 10);
    });
}
