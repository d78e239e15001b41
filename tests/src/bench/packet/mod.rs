//! What a packet costs at a hook, beside the one look-up that nobody can do without.
//!
//! Programs are run on packets that vary from run to run: with one and the same packet every map lies in the first-level
//! cache. A driver of a few instructions makes the next packet and jumps to the program under test: a hook as it is
//! pinned, the bare look-up, or nothing at all. That last one's time is taken off the other two. All three take turns in
//! short slices, and of each the fastest slice counts: whatever else the machine does can only make it slower.

pub(super) mod asm;
mod leaving;
mod questions;
mod world;

use crate::{
    Result,
    bpf::{self, Input},
    figure::Figure,
    unmet,
};
use asm::{Layout, V4, V6, Vary};
use aya::programs::ProgramFd;
use bulkhead_daemon::datapath::Hook;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use world::{FIRST_V4, FIRST_V6, Rules, World, frame, tcp};

/// What is left of a hook when the bare look-up is taken off, in nanoseconds.
const KNOWN: f64 = 30.0;

const ROUNDS: usize = 40;
const RUNS: u32 = 20_000;

const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;

struct Bench {
    world: World,
    table: OwnedFd,
}

/// A program under test, and what it has to say of every packet.
struct Subject<'a> {
    name: &'static str,
    driver: &'a OwnedFd,
    input: &'a Input<'a>,
    /// Packets before each slice, the same as its own, whose time does not count.
    before: u32,
    program: BorrowedFd<'a>,
    says: i32,
}

impl Bench {
    /// Nanoseconds of each subject; the fastest of many slices.
    fn compare(&self, subjects: &[Subject<'_>]) -> Result<Vec<f64>> {
        let mut best = vec![f64::INFINITY; subjects.len()];
        for round in 0..ROUNDS {
            for (subject, best) in subjects.iter().zip(&mut best) {
                bpf::point(&self.table, subject.program)?;
                if subject.before > 0 {
                    bpf::run(subject.driver.as_fd(), subject.input, subject.before)?;
                }
                let (said, time) = bpf::run(subject.driver.as_fd(), subject.input, RUNS)?;
                if said != subject.says {
                    return unmet(format!("{} says {said} in round {round}", subject.name));
                }
                *best = best.min(time);
            }
        }
        Ok(best)
    }

    fn driver(&self, layout: &Layout, vary: &Vary) -> Result<OwnedFd> {
        driver(&self.table, &self.world, layout, vary, 0)
    }
}

fn driver(table: &OwnedFd, world: &World, layout: &Layout, vary: &Vary, step: i32) -> Result<OwnedFd> {
    bpf::load("a driver", &asm::driver(layout, vary, table, world.generation.fd(), step))
}

pub fn run() -> Result<Vec<Figure>> {
    let mut bench = Bench { table: bpf::jump_table()?, world: World::new("pod0")? };
    let mut figures = known(&mut bench)?;
    figures.extend(questions::run(&mut bench)?);
    figures.extend(leaving::run(&mut bench)?);
    Ok(figures)
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
                let bare = asm::bare_connection(layout, sends, TCP, bench.world.connections.fd());
                let bare = bpf::load("the bare look-up", &bare)?;
                let driver = bench.driver(layout, &vary(layout, sends, flows))?;
                let packet = frame(layout, sends, TCP, &tcp(sends, ACK));
                let input = &Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
                let subject =
                    |name, program, says| Subject { name, driver: &driver, input, before: 0, program, says };
                let times = bench.compare(&[
                    subject("nothing", empty.as_fd(), -1),
                    subject("the bare look-up", bare.as_fd(), 1),
                    subject("the hook", program.as_fd(), -1),
                ])?;
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
        let input = Input { frame: &packet, mark: 0, ifindex: bench.world.ifindex };
        request(&hook, &vary(layout, sends, flows), &input)?;
    }
    Ok(())
}

/// Each packet that a driver makes, once.
fn request(hook: &ProgramFd, vary: &Vary, input: &Input<'_>) -> Result<()> {
    let mut packet = input.frame.to_vec();
    for n in 0..vary.packets {
        let port = vary.first_port + (n & ((1 << vary.ports_bits) - 1)) as u16;
        let address = vary.first_address + (n >> vary.ports_bits);
        packet[vary.port as usize..][..2].copy_from_slice(&port.to_be_bytes());
        packet[vary.address as usize..][..4].copy_from_slice(&address.to_be_bytes());
        let (said, _) = bpf::run(hook.as_fd(), &Input { frame: &packet, ..*input }, 1)?;
        if said != -1 {
            return unmet(format!("packet {n} is refused: {said}"));
        }
    }
    Ok(())
}
