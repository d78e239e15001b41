//! What the hook costs by which packets leave the node, of those that it asks about and of all others.

use super::{
    ACK, Bench, SYN, Subject, TCP, asm,
    asm::{Layout, V4, V6},
    request, vary,
    world::{OTHERS, OWN, POLICY, Rules, frame, node, tcp, told},
};
use crate::{
    Result,
    bpf::{self, Input},
    figure::Figure,
};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{ORIGIN_ITSELF, ORIGIN_NONE, ORIGIN_SHIFT, RANGE_OPEN};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

/// Ranges of both families, as many as partitions have in the promised set.
const PARTITIONS: u16 = 1000;
/// Connections; they are noted in a map of 16,384.
const FLOWS: u32 = 1 << 10;

/// Who sends a packet, as its mark and its source say.
struct Sender {
    name: &'static str,
    origin: u32,
    is_node: bool,
    /// The look-up that nobody can do without, if there is one.
    bare: Bare,
}

enum Bare {
    Nothing,
    Source,
    /// Of the connection.
    Note,
}

const SENDERS: [Sender; 4] = [
    // A pod's packet that has passed the stack by: the most frequent.
    Sender { name: "direct", origin: ORIGIN_ITSELF, is_node: false, bare: Bare::Nothing },
    // One that has not.
    Sender { name: "forwarded", origin: OWN, is_node: false, bare: Bare::Source },
    // Of a socket of the host.
    Sender { name: "own", origin: ORIGIN_NONE, is_node: true, bare: Bare::Nothing },
    // Somebody's who was let in before, in the node's name.
    Sender { name: "masqueraded", origin: OTHERS, is_node: true, bare: Bare::Note },
];

pub fn run(bench: &mut Bench) -> Result<Vec<Figure>> {
    bench.world.apply(&Rules { addresses: 256, identities: 256, kinds: 256, ports: 64 })?;
    let mut ranges: BTreeMap<_, _> = (0..PARTITIONS)
        .flat_map(|n| [format!("10.{}.{}.0/24", 64 + (n >> 8), n & 255), format!("fd00:{n:x}::/48")])
        .map(|range| Ok((told(range.parse())?, RANGE_OPEN)))
        .collect::<Result<_>>()?;
    ranges.extend([(told("172.16.0.0/12".parse())?, POLICY), (told("2001:db8:2::/48".parse())?, POLICY)]);
    told(bench.world.datapath.set_range_policies(&ranges))?;
    let mut figures = Vec::new();
    for (layout, family) in [(&V4, "ipv4"), (&V6, "ipv6")] {
        for sender in &SENDERS {
            let [ours, bare] = measured(bench, layout, sender)?;
            let figure = Figure::new(format!("packet_leaves_{}_{family}", sender.name), ours, "ns");
            figures.push(match sender.bare {
                Bare::Nothing => figure,
                Bare::Source | Bare::Note => figure.beside(bare),
            });
        }
    }
    Ok(figures)
}

/// The hook, and the bare look-up.
fn measured(bench: &Bench, layout: &Layout, sender: &Sender) -> Result<[f64; 2]> {
    let hook = bench.world.hook(Hook::ToUplink)?;
    let vary = vary(layout, true, FLOWS);
    let packet = |flags| {
        let mut packet = frame(layout, true, TCP, &tcp(true, flags));
        if sender.is_node {
            let address = node(layout).0;
            let length = if layout.ipv6 { 16 } else { 4 };
            packet[layout.src as usize..][..length].copy_from_slice(&address[16 - length..]);
        }
        packet
    };
    let (begins, goes_on) = (packet(SYN), packet(ACK));
    let input = |frame| Input { frame, mark: sender.origin << ORIGIN_SHIFT, ifindex: bench.world.ifindex };
    request(&hook, &vary, &input(&begins))?;
    let driver = &bench.driver(layout, &vary)?;
    let (empty, bare) = (bpf::load("nothing", &asm::empty())?, bare(bench, layout, &sender.bare)?);
    let input = &input(&goes_on);
    let subject = |name, program, says| Subject { name, driver, input, before: 0, program, says };
    let looked_up = if matches!(sender.bare, Bare::Nothing) { -1 } else { 1 };
    let times = bench.compare(&[
        subject("nothing", empty.as_fd(), -1),
        subject("the bare look-up", bare.as_fd(), looked_up),
        subject("the hook", hook.as_fd(), -1),
    ])?;
    Ok([times[2] - times[0], times[1] - times[0]])
}

fn bare(bench: &Bench, layout: &Layout, bare: &Bare) -> Result<OwnedFd> {
    let world = &bench.world;
    let code = match bare {
        Bare::Nothing => asm::empty(),
        Bare::Source => asm::bare_address(layout, false, world.addresses.fd()),
        Bare::Note => asm::bare_connection(layout, true, TCP, world.begun.fd()),
    };
    bpf::load("the bare look-up", &code)
}
