//! Generations are switched under live connections, at every hook and in both directions at once, each on a processor of its
//! own: no packet is dropped that both generations allow, none passes that both deny, and none meets half of each.

use crate::{
    node::{A, B, FAMILIES, Family, MAC_A, MAC_B, Node, POLICY_A, POLICY_B, VM, addr, ifindex},
    packet::{ACK, HOST_MAC, Packet, SYN, TCP, icmp, tcp},
    rules::{CLASSES, Port, Rules},
    switches::{SWITCHES, switch_under},
    traffic::Stream,
};
use bulkhead_daemon::datapath::{Generation, Hook, Placed, PodMaps};
use bulkhead_ebpf_abi::{Addr, Identity};
use std::collections::BTreeMap;

crate::trials! {
    live:
    no_hook_mixes_two_generations_in_a_packet_that_is_decided,
    a_live_connection_is_cut_by_the_generations_that_deny_it_and_by_no_other,
    a_pod_gets_its_other_policy_with_the_tables_and_not_behind_them,
}

/// Somebody whose addresses the stack may translate.
const STACK: u32 = VM + 2;
/// Of pods a and b: policies and identities.
type Pods = ([u32; 2], [u32; 2]);
const PODS: Pods = ([POLICY_A, POLICY_B], [A, B]);
/// Others that they may have.
const OTHERS: Pods = ([3, 0], [22, 23]);

fn stack(f: &Family) -> &'static str {
    if f.echo == 8 { "198.51.100.1" } else { "2001:db8:51::1" }
}

/// Between the pods, and between them and their friends, port 80 and echo replies pass, ports from 8000 on and what is
/// unreachable do not. It is the contrary with all other identities, and in all other policies.
fn generation(n: u32, (policies, identities): Pods) -> Rules {
    let rule = 1000 + n * 10;
    let mut rules = Rules::none();
    for policy in 0..4 {
        for peer in 0..CLASSES {
            let friends = identities.contains(&peer) || [VM, STACK].contains(&peer);
            let right = friends && policies.contains(&policy);
            let (yes, no) = if right { (rule, rule + 1) } else { (100, 101) };
            let mut kinds = [(Port::Tcp80, Port::TcpRange), (Port::EchoReply, Port::Unreachable)];
            if !right {
                kinds = kinds.map(|(allowed, denied)| (denied, allowed));
            }
            for (allowed, denied) in kinds {
                rules = rules
                    .egress(policy, peer, allowed, yes)
                    .egress_denied(policy, peer, denied, no)
                    .ingress(policy, peer, allowed, yes)
                    .ingress_denied(policy, peer, denied, no);
            }
        }
    }
    rules.turned(n * 7)
}

/// The first generation lets all of it begin.
fn beginning() -> Rules {
    let mut rules = Rules::none();
    for (policy, peer) in PODS.0.into_iter().flat_map(|policy| [A, B, VM, STACK].map(|peer| (policy, peer))) {
        for port in [Port::Tcp80, Port::TcpRange] {
            rules = rules.egress(policy, peer, port, 102).ingress(policy, peer, port, 102);
        }
    }
    rules
}

/// The vm's addresses are translated by nobody, so its connections pass the stack by.
fn node() -> Node {
    let mut node = Node::empty();
    node.wire();
    node.rewire(1500, 0);
    for f in FAMILIES {
        node.exact.insert(addr(stack(&f)), Identity { id: STACK, flags: 0 });
    }
    let direct = ["192.0.2.0/24", "2001:db8:2::/48"].map(|range| range.parse().expect("a range"));
    node.datapath.set_direct(direct.iter(), [].iter()).expect("ranges");
    node.apply(&beginning());
    node
}

/// A connection of TCP, and where the packets of its initiator and of its responder are met.
struct Connection {
    ends: [(&'static str, u16); 2],
    at: [(Hook, &'static str, u32, [u8; 6]); 2],
}

/// One on every way through the node.
fn connections(f: &Family, port: u16) -> [Connection; 5] {
    let from_a = (Hook::FromPod, "pod-a", 0, MAC_A);
    let from_b = (Hook::FromPod, "pod-b", 0, MAC_B);
    let uplink = (Hook::FromUplink, "up0", 0, HOST_MAC);
    let to = |pod| (Hook::ToPod, pod, STACK, HOST_MAC);
    [
        Connection { ends: [(f.a, 5), (stack(f), port)], at: [from_a, to("pod-a")] },
        Connection { ends: [(f.a, 6), (f.vm, port)], at: [from_a, uplink] },
        Connection { ends: [(f.vm, 7), (f.b, port)], at: [uplink, from_b] },
        Connection { ends: [(f.a, 8), (f.b, port)], at: [from_a, from_b] },
        Connection { ends: [(stack(f), 9), (f.b, port)], at: [to("pod-b"), from_b] },
    ]
}

impl Connection {
    fn stream(&self, from: usize, flags: u8, passes: bool) -> Stream {
        let (hook, interface, origin, mac) = self.at[from];
        let packet = tcp(self.ends[from], self.ends[1 - from], flags).payload(40).with_mac(mac);
        Stream::new(hook, interface, origin, &packet, passes)
    }

    fn establish(&self, node: &Node) {
        for (from, flags) in [(0, SYN), (1, SYN | ACK), (0, ACK)] {
            self.stream(from, flags, true).send(node);
        }
    }
}

/// Both directions of all of them, each on its own processor: those to port 80 pass, the others are cut.
fn live(node: &Node) -> [Vec<Stream>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for (port, passes) in [(80, true), (8000, false)] {
        for connection in FAMILIES.iter().flat_map(|f| connections(f, port)) {
            connection.establish(node);
            for (from, streams) in streams.iter_mut().enumerate() {
                streams.push(connection.stream(from, ACK, passes));
            }
        }
    }
    streams
}

/// Packets that begin nothing, or begin again each time.
fn decided() -> [Vec<Stream>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for f in FAMILIES {
        for (n, kind, port) in [(0, f.echo_reply, 80), (1, f.unreachable, 8000)] {
            let echo = |from, to, mac| icmp(from, to, kind, 5, &[]).with_mac(mac);
            let syn = |from, to, mac| tcp((from, 5), (to, port), SYN).payload(40).with_mac(mac);
            let all: [(Hook, &'static str, u32, Packet, u32); 5] = [
                (Hook::FromPod, "pod-a", 0, echo(f.a, f.vm, MAC_A), 100),
                (Hook::ToPod, "pod-b", STACK, echo(stack(&f), f.b, HOST_MAC), 100),
                (Hook::FromUplink, "up0", 0, syn(f.vm, f.b, HOST_MAC), 1),
                (Hook::FromPod, "pod-a", 0, syn(f.a, f.b, MAC_A), 1),
                (Hook::ToPod, "pod-a", STACK, syn(stack(&f), f.a, HOST_MAC), 100),
            ];
            streams[n].extend(all.map(|(hook, interface, origin, packet, repeat)| {
                Stream::new(hook, interface, origin, &packet, n == 0).repeated(repeat)
            }));
        }
    }
    streams
}

fn no_hook_mixes_two_generations_in_a_packet_that_is_decided() {
    let mut node = node();
    let apply = |node: &mut Node, n| {
        node.apply(&generation(n, PODS));
    };
    apply(&mut node, 0);
    switch_under(&mut node, &decided(), |_, policy| PODS.0.contains(&policy), apply);
}

fn a_live_connection_is_cut_by_the_generations_that_deny_it_and_by_no_other() {
    let mut node = node();
    let streams = live(&node);
    let apply = |node: &mut Node, n| {
        node.apply(&generation(n, PODS));
    };
    apply(&mut node, 0);
    switch_under(&mut node, &streams, |_, policy| PODS.0.contains(&policy), apply);
    is_as_the_last_generation_says(&node, &streams);
}

/// Each switch gives both pods another policy number and another identity, in policies that say the contrary to whom they
/// are not meant for.
fn a_pod_gets_its_other_policy_with_the_tables_and_not_behind_them() {
    let mut node = node();
    let mut streams = live(&node);
    for (streams, more) in streams.iter_mut().zip(decided()) {
        streams.extend(more);
    }
    let pods = |n: u32| if n.is_multiple_of(2) { PODS } else { OTHERS };
    let apply = |node: &mut Node, n: u32| {
        let tables = generation(n, pods(n)).tables();
        let generation = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
        let places: BTreeMap<Addr, Placed> = FAMILIES
            .iter()
            .flat_map(|f| [(f.a, 0), (f.b, 1)])
            .map(|(address, pod)| {
                let (policies, identities) = pods(n);
                (addr(address), Placed { identity: identities[pod], policy: policies[pod] })
            })
            .collect();
        node.datapath.apply_with(&generation, &places).expect("applied");
    };
    apply(&mut node, 0);
    switch_under(&mut node, &streams, |n, policy| pods(n).0.contains(&policy), apply);
    node.datapath.settle().expect("settled");
    let endpoints = node.datapath.endpoints().expect("endpoints");
    let (policies, identities) = pods(SWITCHES);
    for (n, name) in ["pod-a", "pod-b"].into_iter().enumerate() {
        let pod = endpoints[&ifindex(name)];
        assert_eq!(
            (pod.policies, [pod.identity_v4, pod.identity_v6]),
            ([policies[n]; 2], [identities[n]; 2])
        );
    }
    is_as_the_last_generation_says(&node, &streams);
}

/// Once the last generation has been asked: entries that pass bear its number at each end of this node, and the others are cut.
fn is_as_the_last_generation_says(node: &Node, streams: &[Vec<Stream>; 2]) {
    for stream in streams.iter().flatten() {
        stream.send(node);
    }
    let running = node.datapath.running_generation().expect("a generation");
    for f in FAMILIES {
        for (port, passes) in [(80, true), (8000, false)] {
            for connection in connections(&f, port) {
                let [from, to] = connection.ends;
                let flow = node.flow(from, to, TCP).expect("an entry");
                let here = [from.0 == f.a, to.0 == f.a || to.0 == f.b];
                for end in [0, 1].into_iter().filter(|end| here[*end]) {
                    if passes {
                        assert_eq!((flow.generations[end], flow.cut), (running, 0), "{from:?} {to:?}");
                    } else {
                        assert_ne!(flow.cut, 0, "{from:?} {to:?}");
                    }
                }
            }
        }
    }
}
