//! What a packet costs at a hook, beside the one look-up that nobody can do without.
//!
//! Programs are run on packets that vary from run to run: with one and the same packet every map lies in the first-level
//! cache. A driver of a few instructions makes the next packet and jumps to the program under test: a hook as it is
//! pinned, the bare look-up, or nothing at all. That last one's time is taken off the other two. All three take turns in
//! short slices, and of each the fastest slice counts: whatever else the machine does can only make it slower.

mod asm;
mod world;

use crate::{
    Result,
    bpf::{self, Input},
    figure::Figure,
    unmet,
};
use asm::{Layout, V4, V6, Vary};
use aya::maps::MapData;
use bulkhead_daemon::datapath::Hook;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use world::{FIRST_V4, FIRST_V6, Rules, World, frame, tcp};

/// What is left of a hook when the bare look-up is taken off, in nanoseconds.
const KNOWN: f64 = 30.0;
const DECISION: f64 = 50.0;
/// What a decision among 100,000 rules takes, beside one among ten.
const MANY: f64 = 1.1;

/// Kinds of peers that the rules of one partition tell apart: it has twenty rules in the promised set.
const KINDS: u32 = 32;

const ROUNDS: usize = 40;
const RUNS: u32 = 20_000;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const SYN: u8 = 2;
const ACK: u8 = 16;

struct Bench {
    world: World,
    table: OwnedFd,
    generation: MapData,
    connections: MapData,
    addresses: MapData,
}

/// A program under test, and what it has to say of every packet.
struct Subject<'a> {
    name: &'static str,
    driver: &'a OwnedFd,
    program: BorrowedFd<'a>,
    says: i32,
}

impl Bench {
    /// Nanoseconds of each subject; the fastest of many slices.
    fn compare(&self, input: &Input<'_>, subjects: &[Subject<'_>]) -> Result<Vec<f64>> {
        let mut best = vec![f64::INFINITY; subjects.len()];
        for round in 0..ROUNDS {
            for (subject, best) in subjects.iter().zip(&mut best) {
                bpf::point(&self.table, subject.program)?;
                let (said, time) = bpf::run(subject.driver.as_fd(), input, RUNS)?;
                if said != subject.says {
                    return unmet(format!("{} says {said} in round {round}", subject.name));
                }
                *best = best.min(time);
            }
        }
        Ok(best)
    }

    fn driver(&self, layout: &Layout, vary: &Vary, step: i32) -> Result<OwnedFd> {
        let code = asm::driver(layout, vary, &self.table, self.generation.fd(), step);
        bpf::load("a driver", &code)
    }
}

pub fn run() -> Result<Vec<Figure>> {
    let world = World::new()?;
    let mut bench = Bench {
        table: bpf::jump_table()?,
        generation: world.map("GENERATION")?,
        connections: world.map("CONNTRACK")?,
        addresses: world.map("IDENTITY_EXACT")?,
        world,
    };
    let mut figures = known(&mut bench)?;
    figures.extend(decisions(&mut bench)?);
    Ok(figures)
}

/// Packets that are decided and begin nothing: ICMP of a type that is neither echo nor an error. So a hook's whole time
/// is seen, reading and the check of the source included, and none of what an entry takes.
fn decisions(bench: &mut Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (layout, family) in [(&V4, "ipv4"), (&V6, "ipv6")] {
        for (addresses, name, identities) in [(110, "110", 110), (30_000, "30k", 10_000)] {
            let rules = Rules { addresses, identities, kinds: KINDS, ports: 16 };
            for hook in [Hook::ToPod, Hook::FromPod] {
                let [ours, bare] = decision(bench, layout, hook, &rules)?;
                let name = format!("packet_decision_{name}_{}_{family}", hook.name());
                figures.push(Figure::new(name, ours, "ns").beside(bare).at_most_beyond(DECISION));
            }
        }
        let few = Rules { addresses: 110, identities: 10, kinds: 10, ports: 0 };
        let [few, _] = decision(bench, layout, Hook::ToPod, &few)?;
        let many = Rules { addresses: 110, identities: 110, kinds: 110, ports: 909 };
        let [many, _] = decision(bench, layout, Hook::ToPod, &many)?;
        let name = format!("packet_decision_100k_rules_{family}");
        figures.push(Figure::new(name, many, "ns").beside(few).ratio_at_most(MANY));
    }
    Ok(figures)
}

/// Of the hook, and of the bare look-up of an address. To a pod all that is done is the decision and its count at the rule; a
/// pod's own packets are looked at for the direct path, too.
fn decision(bench: &mut Bench, layout: &Layout, hook: Hook, rules: &Rules) -> Result<[f64; 2]> {
    bench.world.apply(rules)?;
    let sends = hook == Hook::FromPod;
    let other = if sends { layout.dst } else { layout.src };
    let vary = Vary {
        packets: rules.addresses << 6,
        ports_bits: 6,
        port: layout.ports,
        port_shift: 8,
        first_port: 192 << 8,
        address: other + if layout.ipv6 { 12 } else { 0 },
        first_address: if layout.ipv6 { FIRST_V6 } else { FIRST_V4 },
    };
    let program = bench.world.hook(hook)?;
    let empty = bpf::load("nothing", &asm::empty())?;
    let bare = asm::bare_address(layout, other, bench.addresses.fd());
    let bare = bpf::load("the bare look-up", &bare)?;
    let driver = bench.driver(layout, &vary, 0)?;
    let subject = |name, program, says| Subject { name, driver: &driver, program, says };
    let packet = frame(layout, sends, if layout.ipv6 { ICMPV6 } else { ICMP }, &[192, 0, 0, 0, 0, 0, 0, 0]);
    let input = Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
    let times = bench.compare(
        &input,
        &[
            subject("nothing", empty.as_fd(), -1),
            subject("the bare look-up", bare.as_fd(), 1),
            subject("the hook", program.as_fd(), -1),
        ],
    )?;
    Ok([times[2] - times[0], times[1] - times[0]])
}

/// Connections, on that many ports of addresses.
fn vary(layout: &Layout, sends: bool, packets: u32) -> Vary {
    let (address, port) = if sends { (layout.dst, layout.ports + 2) } else { (layout.src, layout.ports) };
    Vary {
        packets,
        ports_bits: 10,
        port,
        port_shift: 0,
        first_port: 1024,
        address: address + if layout.ipv6 { 12 } else { 0 },
        first_address: if layout.ipv6 { FIRST_V6 } else { FIRST_V4 },
    }
}

/// Packets of established connections.
fn known(bench: &mut Bench) -> Result<Vec<Figure>> {
    bench.world.apply(&Rules { addresses: 256, identities: 256, kinds: 256, ports: 64 })?;
    let mut figures = Vec::new();
    let empty = bpf::load("nothing", &asm::empty())?;
    for (flows, name) in [(1 << 10, "1k"), (1 << 14, "16k"), (1 << 17, "128k")] {
        for (layout, family) in [(&V4, "ipv4"), (&V6, "ipv6")] {
            establish(bench, layout, flows)?;
            for (hook, sends) in [(Hook::FromPod, true), (Hook::ToPod, false)] {
                let program = bench.world.hook(hook)?;
                let bare = asm::bare_connection(layout, sends, TCP, bench.connections.fd());
                let bare = bpf::load("the bare look-up", &bare)?;
                let driver = bench.driver(layout, &vary(layout, sends, flows), 0)?;
                let subject = |name, program, says| Subject { name, driver: &driver, program, says };
                let packet = frame(layout, sends, TCP, &tcp(sends, ACK));
                let input = Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
                let times = bench.compare(
                    &input,
                    &[
                        subject("nothing", empty.as_fd(), -1),
                        subject("the bare look-up", bare.as_fd(), 1),
                        subject("the hook", program.as_fd(), -1),
                    ],
                )?;
                let name = format!("packet_known_{name}_{}_{family}", hook.name());
                figures.push(
                    Figure::new(name, times[2] - times[0], "ns")
                        .beside(times[1] - times[0])
                        .at_most_beyond(KNOWN),
                );
            }
        }
    }
    Ok(figures)
}

/// Request, answer and acknowledgement of each connection.
fn establish(bench: &Bench, layout: &Layout, flows: u32) -> Result<()> {
    let hooks = [bench.world.hook(Hook::FromPod)?, bench.world.hook(Hook::ToPod)?];
    for (sends, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        let mut packet = frame(layout, sends, TCP, &tcp(sends, flags));
        let vary = vary(layout, sends, flows);
        for n in 0..flows {
            let port = vary.first_port + (n & ((1 << vary.ports_bits) - 1)) as u16;
            let address = vary.first_address + (n >> vary.ports_bits);
            packet[vary.port as usize..][..2].copy_from_slice(&port.to_be_bytes());
            packet[vary.address as usize..][..4].copy_from_slice(&address.to_be_bytes());
            let input = Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
            let (said, _) = bpf::run(hooks[usize::from(!sends)].as_fd(), &input, 1)?;
            if said != -1 {
                return unmet(format!("connection {n} is refused: {said}"));
            }
        }
    }
    Ok(())
}
