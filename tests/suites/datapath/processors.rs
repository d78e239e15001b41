//! One connection on two processors at once: what one of them writes into the entry the other does not take away.

use crate::{
    node::{A, B, End, FAMILIES, MAC_A, MAC_B, Node, POLICY_A, POLICY_B, V4, VM, ifindex},
    packet::{ACK, FIN, Packet, SYN, TCP, tcp},
    rules::{Port, Rules},
    traffic::{Stream, meanwhile, pin_to, processors},
};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{
    FLOW_ANSWERED, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_INITIATOR_LOW, Flow, PATH_DIRECT,
    PATH_STACK,
};
use bulkhead_lab::wait::until_true;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

crate::trials! {
    processors:
    both_directions_at_once_leave_a_whole_entry,
    flags_that_two_processors_write_at_once_are_all_there,
    a_connection_that_two_processors_begin_at_once_is_one,
}

const DEADLINE: Duration = Duration::from_secs(30);

fn rules() -> Rules {
    let rules = Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71);
    rules.egress(POLICY_A, VM, Port::Tcp80, 72)
}

/// Straight between two pods, by the short way and by the long one, and by the stack through the hooks of both.
fn both_directions_at_once_leave_a_whole_entry() {
    const ENOUGH: u64 = 20_000;
    for (f, direct) in FAMILIES.into_iter().flat_map(|f| [(f, true), (f, false)]) {
        let mut node = Node::new(rules());
        if direct {
            node.rewire(1500, 0);
        }
        let ends = [(f.a, 5), (f.b, 80)];
        let packet = |from: usize, flags| tcp(ends[from], ends[1 - from], flags).payload(40);
        // What the stack hands from one pod's hook to the other's bears the sender's mark.
        let met = |from: usize, packet: &Packet| {
            let pods = [("pod-a", MAC_A, A), ("pod-b", MAC_B, B)];
            let sent = packet.clone().with_mac(pods[from].1);
            let sent = Stream::new(Hook::FromPod, pods[from].0, 0, &sent, true);
            let received = Stream::new(Hook::ToPod, pods[1 - from].0, pods[from].2, packet, true);
            if direct { vec![sent] } else { vec![sent, received] }
        };
        for (from, flags) in [(0, SYN), (1, SYN | ACK), (0, ACK)] {
            met(from, &packet(from, flags)).iter().for_each(|stream| assert_eq!(stream.send(&node), 1));
        }
        let entry = |node: &Node| node.flow(ends[0], ends[1], TCP).expect("an entry");
        let before = entry(&node);
        let generation = node.datapath.running_generation().expect("a generation");
        let streams = [0, 1].map(|from| {
            let plain = packet(from, ACK);
            let mut streams = met(from, &plain);
            // Options are no matter for the short way, nor for the direct path.
            if !direct {
                streams.extend(met(from, &Packet { options: vec![1; 4], ..plain }));
            }
            streams
        });
        let sent = meanwhile(&mut node, &streams, |node| {
            until_true("packets of both", DEADLINE, || Ok(entry(node).packets >= ENOUGH)).expect("packets");
        });
        let after = entry(&node);
        let by_pods: u64 = streams
            .iter()
            .flatten()
            .zip(sent.iter().flatten())
            .filter(|(stream, _)| matches!(stream.hook, Hook::FromPod))
            .map(|(_, sent)| sent)
            .sum();
        let length = streams[0].iter().map(|stream| stream.frame.len() as u64).max().expect("streams");
        let (packets, bytes) = (after.packets - before.packets, after.bytes - before.bytes);
        // One that falls between another's reading and writing may be missing; none is counted twice.
        assert!((ENOUGH / 2..=by_pods).contains(&packets), "{packets} of {by_pods}");
        assert!(bytes <= by_pods * length, "{bytes} bytes in {by_pods} packets of {length} at most");
        let stage = after.flags & !FLOW_INITIATOR_LOW;
        assert_eq!(stage, FLOW_ANSWERED | FLOW_ESTABLISHED);
        let expected = Flow {
            last_seen: after.last_seen,
            tick: after.tick,
            packets: after.packets,
            bytes: after.bytes,
            generations: [generation; 2],
            path: if direct { PATH_DIRECT } else { PATH_STACK },
            rules: [70, 71],
            ..before
        };
        assert_eq!(after, expected);
        assert!(after.last_seen >= before.last_seen);
        assert_eq!(node.datapath.drops().expect("drops"), []);
        assert_eq!(node.datapath.flow_count().expect("count"), 1);
    }
}

/// Both wait here for each other.
#[derive(Default)]
struct Meeting(AtomicUsize);

impl Meeting {
    fn meet(&self, times: &mut usize) {
        *times += 1;
        self.0.fetch_add(1, Ordering::SeqCst);
        let began = Instant::now();
        while self.0.load(Ordering::SeqCst) < *times * 2 {
            assert!(began.elapsed() < DEADLINE, "the other one does not come");
            thread::yield_now();
        }
    }
}

/// Each on its own processor.
fn on_two(first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
    let [one, other] = processors();
    thread::scope(|scope| {
        let threads = [
            scope.spawn(move || {
                pin_to(one);
                first();
            }),
            scope.spawn(move || {
                pin_to(other);
                second();
            }),
        ];
        for thread in threads {
            thread.join().expect("this thread's half");
        }
    });
}

/// While one end ends its half, the other's packets tell of an answer: each way writes other bits. It is begun again more often
/// than a ring of closed connections has room, and does not evict itself.
fn flags_that_two_processors_write_at_once_are_all_there() {
    const ROUNDS: usize = 3_000;
    let node = Node::new(rules());
    let ends = [(V4.a, 5), (V4.vm, 80)];
    let forth =
        |flags| Stream::new(Hook::FromPod, "pod-a", 0, &tcp(ends[0], ends[1], flags).with_mac(MAC_A), true);
    let back = |flags| Stream::new(Hook::ToPod, "pod-a", VM, &tcp(ends[1], ends[0], flags), true);
    let meeting = Meeting::default();
    let (node, meeting) = (&node, &meeting);
    let flags = |seen: u8| {
        let flow = node.flow(ends[0], ends[1], TCP).expect("an entry");
        let wanted = seen | Flow::closing(flow.fin, flow.fin_back);
        (flow.flags & (FLOW_ANSWERED | FLOW_CLOSING) & wanted, wanted & (FLOW_ANSWERED | FLOW_CLOSING))
    };
    on_two(
        || {
            let mut times = 0;
            for round in 0..ROUNDS {
                forth(SYN).send(node);
                meeting.meet(&mut times);
                forth(FIN | ACK).send(node);
                meeting.meet(&mut times);
                let (found, wanted) = flags(FLOW_ANSWERED);
                assert_eq!(found, wanted, "round {round}");
                back(FIN | ACK).send(node);
                let flow = node.flow(ends[0], ends[1], TCP).expect("an entry");
                assert_ne!(flow.flags & FLOW_CLOSED, 0, "round {round}");
                meeting.meet(&mut times);
            }
        },
        || {
            let mut times = 0;
            for _ in 0..ROUNDS {
                meeting.meet(&mut times);
                back(SYN | ACK).send(node);
                meeting.meet(&mut times);
                meeting.meet(&mut times);
            }
        },
    );
}

/// A request that is sent again may be on the other processor before the first one has its entry.
fn a_connection_that_two_processors_begin_at_once_is_one() {
    const CONNECTIONS: u16 = 500;
    let node = Node::new(rules());
    let meeting = Meeting::default();
    let (node, meeting) = (&node, &meeting);
    let begin = || {
        let mut times = 0;
        for port in 1..=CONNECTIONS {
            let request = tcp((V4.a, port), (V4.vm, 80), SYN).with_mac(MAC_A);
            let stream = Stream::new(Hook::FromPod, "pod-a", 0, &request, true);
            meeting.meet(&mut times);
            stream.send(node);
        }
    };
    on_two(begin, begin);
    assert_eq!(node.datapath.flow_count().expect("count"), usize::from(CONNECTIONS));
    let share = node.datapath.share(ifindex("pod-a")).expect("a share").expect("of pod a");
    assert_eq!((share.flows, share.refused), (u64::from(CONNECTIONS), 0));
    assert_eq!(node.send(A, &tcp((V4.a, 1), (V4.vm, 80), ACK)).end, End::Next);
}
