//! What a packet costs at a hook, beside the one look-up that nobody can do without.
//!
//! Programs are run on packets that vary from run to run: with one and the same packet every map lies in the first-level
//! cache. A driver of a few instructions makes the next packet and jumps to the program under test: a hook as it is
//! pinned, the bare look-up, or nothing at all. That last one's time is taken off the other two. All three take turns in
//! short slices, and of each the fastest slice counts: whatever else the machine does can only make it slower.

pub(super) mod asm;
mod world;

use crate::{
    Result,
    bpf::{self, Input},
    figure::Figure,
    unmet,
};
use asm::{Layout, V4, V6, Vary};
use aya::{maps::MapData, programs::ProgramFd};
use bulkhead_daemon::datapath::Hook;
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};
use world::{FIRST_V4, FIRST_V6, Rules, World, frame, tcp, told};

/// What is left of a hook when the bare look-up is taken off, in nanoseconds.
const KNOWN: f64 = 30.0;
/// The same of a decision.
const DECISION: f64 = 50.0;
/// What a decision among 100,000 rules takes, beside one among ten.
const MANY: f64 = 1.1;

/// Kinds of peers that the rules of one partition tell apart: it has twenty rules in the promised set.
const KINDS: u32 = 32;

const ROUNDS: usize = 40;
const RUNS: u32 = 20_000;

const TCP: u8 = 6;
const SCTP: u8 = 132;
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

/// What it takes to ask the policy, and the whole hook for a request.
fn decisions(bench: &mut Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (layout, family) in [(&V4, "ipv4"), (&V6, "ipv6")] {
        for (addresses, name, identities) in [(110, "110", 110), (30_000, "30k", 10_000)] {
            let rules = Rules { addresses, identities, kinds: KINDS, ports: 16 };
            for hook in [Hook::ToPod, Hook::FromPod] {
                let end = format!("{name}_{}_{family}", hook.name());
                let [ours, bare] = decision(bench, layout, hook, &rules)?;
                let figure = Figure::new(format!("packet_decision_{end}"), ours, "ns");
                figures.push(figure.beside(bare).at_most_beyond(DECISION));
                let [ours, bare] = requested(bench, layout, hook, &rules)?;
                figures.push(Figure::new(format!("packet_request_{end}"), ours, "ns").beside(bare));
            }
        }
        let few = Rules { addresses: 110, identities: 10, kinds: 10, ports: 0 };
        let [few, _] = requested(bench, layout, Hook::ToPod, &few)?;
        let many = Rules { addresses: 110, identities: 110, kinds: 110, ports: 909 };
        let [many, _] = requested(bench, layout, Hook::ToPod, &many)?;
        let name = format!("packet_request_100k_rules_{family}");
        figures.push(Figure::new(name, many, "ns").beside(few).ratio_at_most(MANY));
    }
    Ok(figures)
}

/// Who varies where policy is asked.
fn asked(layout: &Layout, hook: Hook, rules: &Rules) -> Vary {
    // All ports of few addresses, one of many: the table of connections shall not be what is measured.
    let ports_bits = if rules.addresses > 1024 { 0 } else { 6 };
    let packets = rules.addresses << ports_bits;
    Vary { ports_bits, port: layout.ports + 2, ..vary(layout, hook == Hook::FromPod, packets) }
}

/// Of asking the policy: who the other end is, and what the tables say of it; and of the bare look-up of its address.
///
/// Packets of known connections, once in the generation that admitted them, and once each in another one, so that each is asked
/// about again. Of SCTP, of which all packets take the same way through the hook: what differs is the question.
fn decision(bench: &mut Bench, layout: &Layout, hook: Hook, rules: &Rules) -> Result<[f64; 2]> {
    bench.world.forget()?;
    bench.world.apply(rules)?;
    let sends = hook == Hook::FromPod;
    let vary = asked(layout, hook, rules);
    let program = bench.world.hook(hook)?;
    let packet = frame(layout, sends, SCTP, &tcp(sends, ACK));
    request(&program, &vary, packet.clone(), bench.world.ifindex)?;
    let empty = bpf::load("nothing", &asm::empty())?;
    let bare = asm::bare_address(layout, sends, bench.addresses.fd());
    let bare = bpf::load("the bare look-up", &bare)?;
    let input = Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
    let measure = |step| -> Result<[f64; 2]> {
        let driver = bench.driver(layout, &vary, step)?;
        let subject = |name, program, says| Subject { name, driver: &driver, program, says };
        let times = bench.compare(
            &input,
            &[
                subject("nothing", empty.as_fd(), -1),
                subject("the bare look-up", bare.as_fd(), 1),
                subject("the hook", program.as_fd(), -1),
            ],
        )?;
        Ok([times[2] - times[0], times[1] - times[0]])
    };
    let [unasked, bare] = measure(0)?;
    // The next generation but one has the same tables.
    let [asked, _] = measure(2)?;
    let mut admitted_by = BTreeSet::new();
    for flow in bench.world.datapath.flows() {
        admitted_by.insert(told(flow)?.1.generations);
    }
    if admitted_by.len() < 2 {
        return unmet("nothing was asked again");
    }
    Ok([asked - unasked, bare])
}

/// Of the hook for a request that is repeated: of each the policy is asked again, as of the first, and what else a first packet
/// takes (making its entry) is not measured; and of the look-ups of the connection and of the address.
fn requested(bench: &mut Bench, layout: &Layout, hook: Hook, rules: &Rules) -> Result<[f64; 2]> {
    bench.world.forget()?;
    bench.world.apply(rules)?;
    let sends = hook == Hook::FromPod;
    let vary = asked(layout, hook, rules);
    let program = bench.world.hook(hook)?;
    request(&program, &vary, frame(layout, sends, TCP, &tcp(sends, SYN)), bench.world.ifindex)?;
    let empty = bpf::load("nothing", &asm::empty())?;
    let bare = asm::bare_request(layout, sends, TCP, bench.connections.fd(), bench.addresses.fd());
    let bare = bpf::load("the bare look-ups", &bare)?;
    let driver = bench.driver(layout, &vary, 0)?;
    let subject = |name, program, says| Subject { name, driver: &driver, program, says };
    let packet = frame(layout, sends, TCP, &tcp(sends, SYN));
    let input = Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
    let times = bench.compare(
        &input,
        &[
            subject("nothing", empty.as_fd(), -1),
            subject("the bare look-ups", bare.as_fd(), 1),
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
    for (sends, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        let hook = bench.world.hook(if sends { Hook::FromPod } else { Hook::ToPod })?;
        let packet = frame(layout, sends, TCP, &tcp(sends, flags));
        request(&hook, &vary(layout, sends, flows), packet, bench.world.ifindex)?;
    }
    Ok(())
}

/// Each packet that a driver makes, once.
fn request(hook: &ProgramFd, vary: &Vary, mut packet: Vec<u8>, ifindex: u32) -> Result<()> {
    for n in 0..vary.packets {
        let port = vary.first_port + (n & ((1 << vary.ports_bits) - 1)) as u16;
        let address = vary.first_address + (n >> vary.ports_bits);
        packet[vary.port as usize..][..2].copy_from_slice(&port.to_be_bytes());
        packet[vary.address as usize..][..4].copy_from_slice(&address.to_be_bytes());
        let input = Input { frame: &packet, mark: 0, ifindex };
        let (said, _) = bpf::run(hook.as_fd(), &input, 1)?;
        if said != -1 {
            return unmet(format!("packet {n} is refused: {said}"));
        }
    }
    Ok(())
}
