//! Packets on two processors at once, for as long as something is done to the node.

use crate::{
    node::{Node, ifindex},
    packet::Packet,
};
use aya::programs::SchedClassifier;
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::ORIGIN_SHIFT;
use bulkhead_lab::bpf::{self, Input};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// The same packet at the same hook, over and over.
#[derive(Clone)]
pub struct Stream {
    pub hook: Hook,
    pub interface: &'static str,
    /// The mark that it comes with.
    pub origin: u32,
    pub frame: Vec<u8>,
    /// By every generation; the other ones are dropped by every generation.
    pub passes: bool,
    /// A packet that is redirected is written to, so it is sent once a call.
    pub repeat: u32,
}

impl Stream {
    pub fn new(hook: Hook, interface: &'static str, origin: u32, packet: &Packet, passes: bool) -> Self {
        Self { hook, interface, origin, frame: packet.frame(), passes, repeat: 1 }
    }

    pub fn repeated(self, repeat: u32) -> Self {
        Self { repeat, ..self }
    }

    /// One call; how many packets that were.
    pub fn send(&self, node: &Node) -> u64 {
        self.run(&node_program(node, self.hook))
    }

    fn run(&self, program: &SchedClassifier) -> u64 {
        let mark = self.origin << ORIGIN_SHIFT;
        let input = Input { frame: &self.frame, mark, ifindex: ifindex(self.interface) };
        let program = program.fd().expect("loaded");
        let (said, _) = bpf::run(std::os::fd::AsFd::as_fd(program), &input, self.repeat).expect("a test-run");
        let right = if self.passes { [-1, 7].contains(&said) } else { said == 2 };
        assert!(right, "{:?} at {} says {said} of {:02x?}", self.hook, self.interface, self.frame);
        u64::from(self.repeat)
    }
}

fn node_program(node: &Node, hook: Hook) -> SchedClassifier {
    let path = node.pins.join("programs").join(hook.name());
    SchedClassifier::from_pin(path).expect("a pinned program")
}

/// Two of those that this process may use.
pub fn processors() -> [usize; 2] {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the processors of this process");
    let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).is_ok_and(|set| set));
    [(); 2].map(|()| usable.next().expect("this test needs two processors"))
}

/// Of the thread that calls.
pub fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &set).expect("this thread on that processor");
}

/// Does it while each of two processors sends its streams in turn; how often each stream was sent.
pub fn meanwhile(node: &mut Node, streams: &[Vec<Stream>; 2], act: impl FnOnce(&mut Node)) -> [Vec<u64>; 2] {
    let over = AtomicBool::new(false);
    let programs =
        [Hook::FromPod, Hook::ToPod, Hook::FromUplink].map(|hook| (hook, node_program(node, hook)));
    thread::scope(|scope| {
        let threads = [0, 1].map(|n| {
            let (streams, over, programs, cpu) = (&streams[n], &over, &programs, processors()[n]);
            scope.spawn(move || {
                pin_to(cpu);
                let mut sent = vec![0; streams.len()];
                while !over.load(Ordering::Relaxed) {
                    for (sent, stream) in sent.iter_mut().zip(streams) {
                        let program = programs.iter().find(|(hook, _)| *hook == stream.hook);
                        *sent += stream.run(&program.expect("a hook of packets").1);
                    }
                }
                sent
            })
        });
        // Also of an act that fails, so that its failure is what is told.
        let _ends = Ends(&over);
        act(node);
        over.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().expect("what all generations say of a packet is done to it"))
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
