//! What asking the policy takes: who the other end is, and what the tables say of it; and how that grows with the rules.

use super::{
    ACK, Bench, RUNS, SYN, Subject, TCP, asm,
    asm::{Layout, V4, V6, Vary},
    driver, request, vary,
    world::{Rules, World, frame, tcp, told},
};
use crate::{
    Result,
    bpf::{self, Input},
    figure::Figure,
    unmet,
};
use aya::programs::ProgramFd;
use bulkhead_daemon::datapath::Hook;
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
};

/// What is left of a decision when the bare look-up is taken off, in nanoseconds.
const DECISION: f64 = 50.0;
/// What a decision among 100,000 rules takes, beside one among ten.
const MANY: f64 = 1.1;

/// Kinds of peers that the rules of one partition tell apart: it has twenty rules in the promised set.
const KINDS: u32 = 32;
const TEN: Rules = Rules { addresses: 110, identities: 10, kinds: 10, ports: 0 };
const HUNDRED_THOUSAND: Rules = Rules { addresses: 110, identities: 110, kinds: 110, ports: 909 };

const SCTP: u8 = 132;

pub fn run(bench: &mut Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut other = World::new("pod1")?;
    for (layout, family) in [(&V4, "ipv4"), (&V6, "ipv6")] {
        for hook in [Hook::ToPod, Hook::FromPod] {
            let end = format!("{}_{family}", hook.name());
            for (addresses, name, identities) in [(110, "110", 110), (30_000, "30k", 10_000)] {
                let rules = Rules { addresses, identities, kinds: KINDS, ports: 16 };
                let one = |bench: &mut Bench, kind| {
                    Questions::new(&bench.table, &mut bench.world, kind, layout, hook, &rules)
                };
                let known = one(bench, Kind::Known)?;
                let [[ours, bare]] = measured(bench, [&known])?;
                again(&mut bench.world)?;
                let figure = Figure::new(format!("packet_decision_{name}_{end}"), ours, "ns");
                figures.push(figure.beside(bare).at_most_beyond(DECISION));
                let requests = one(bench, Kind::Request)?;
                let [[ours, bare]] = measured(bench, [&requests])?;
                figures.push(Figure::new(format!("packet_request_{name}_{end}"), ours, "ns").beside(bare));
            }
            figures.extend(many(bench, &mut other, layout, hook, &end)?);
        }
    }
    Ok(figures)
}

/// 100,000 rules beside ten: the decision, the hook of a request, and the look-up of one of so many cells, which none can do without.
fn many(bench: &mut Bench, other: &mut World, layout: &Layout, hook: Hook, end: &str) -> Result<Vec<Figure>> {
    let figure = |what: &str, [less, more]: [f64; 2]| {
        Figure::new(format!("packet_{what}_100k_rules_{end}"), more, "ns").beside(less)
    };
    let known = both(bench, other, Kind::Known, layout, hook)?;
    let decisions = measured(bench, known.each_ref())?.map(|[asking, _]| asking);
    again(&mut bench.world)?;
    again(other)?;
    let cells = cells(bench, layout, &known[1])?;
    let requests = both(bench, other, Kind::Request, layout, hook)?;
    let requests = measured(bench, requests.each_ref())?.map(|[hook, _]| hook);
    Ok(vec![
        figure("decision", decisions).ratio_at_most(MANY),
        figure("request", requests).ratio_at_most(MANY),
        figure("bare_cell", cells),
    ])
}

fn both(
    bench: &mut Bench,
    other: &mut World,
    kind: Kind,
    layout: &Layout,
    hook: Hook,
) -> Result<[Questions; 2]> {
    Ok([
        Questions::new(&bench.table, other, kind, layout, hook, &TEN)?,
        Questions::new(&bench.table, &mut bench.world, kind, layout, hook, &HUNDRED_THOUSAND)?,
    ])
}

#[derive(Clone, Copy)]
enum Kind {
    /// Packets of known connections, once in the generation that admitted them, and once each in another one, so that each is asked
    /// about again. Of SCTP, of which all packets take the same way through the hook: what differs is the question.
    Known,
    /// A SYN that is repeated: of each the policy is asked again, as of the first, and what else a first packet takes (making its
    /// entry) is not measured.
    Request,
}

/// Packets that vary, of connections that are there, and what asks of them.
struct Questions {
    kind: Kind,
    packet: Vec<u8>,
    ifindex: u32,
    program: ProgramFd,
    /// The look-ups that nobody can do without: of the address; of a request's connection, too.
    bare: OwnedFd,
    same: OwnedFd,
    next: OwnedFd,
}

impl Questions {
    fn new(
        table: &OwnedFd,
        world: &mut World,
        kind: Kind,
        layout: &Layout,
        hook: Hook,
        rules: &Rules,
    ) -> Result<Self> {
        world.forget()?;
        world.apply(rules)?;
        let sends = hook == Hook::FromPod;
        // All ports of few addresses, one of many: the table of connections shall not be what is measured.
        let ports_bits = if rules.addresses > 1024 { 0 } else { 6 };
        let packets = rules.addresses << ports_bits;
        let vary = Vary { ports_bits, port: layout.ports + 2, ..vary(layout, sends, packets) };
        let program = world.hook(hook)?;
        let (proto, flags) = match kind {
            Kind::Known => (SCTP, ACK),
            Kind::Request => (TCP, SYN),
        };
        let packet = frame(layout, sends, proto, &tcp(sends, flags));
        request(&program, &vary, &Input { frame: &packet, mark: 0, ifindex: world.ifindex })?;
        let bare = match kind {
            Kind::Known => asm::bare_address(layout, sends, world.addresses.fd()),
            Kind::Request => {
                asm::bare_request(layout, sends, TCP, world.connections.fd(), world.addresses.fd())
            }
        };
        Ok(Self {
            kind,
            packet,
            ifindex: world.ifindex,
            program,
            bare: bpf::load("the bare look-ups", &bare)?,
            same: driver(table, world, layout, &vary, 0)?,
            // The next generation but one has the same tables.
            next: driver(table, world, layout, &vary, 2)?,
        })
    }

    fn input(&self) -> Input<'_> {
        Input { frame: &self.packet, mark: 0, ifindex: self.ifindex }
    }

    /// The bare look-ups behind what is taken off them, and likewise the hook.
    fn subjects<'a>(&'a self, empty: &'a OwnedFd, input: &'a Input<'a>) -> [Subject<'a>; 4] {
        let subject =
            |name, driver, program, says| Subject { name, driver, input, before: RUNS, program, says };
        let nothing = || subject("nothing", &self.same, empty.as_fd(), -1);
        let hook = |name, driver| subject(name, driver, self.program.as_fd(), -1);
        let [without, with] = match self.kind {
            // In a generation that stays, none of them is asked about in the slice.
            Kind::Known => [hook("the hook", &self.same), hook("the hook that asks", &self.next)],
            Kind::Request => [nothing(), hook("the hook", &self.same)],
        };
        [nothing(), subject("the bare look-ups", &self.same, self.bare.as_fd(), 1), without, with]
    }
}

/// Of each: what is asked about, and the bare look-ups.
fn measured<const N: usize>(bench: &Bench, all: [&Questions; N]) -> Result<[[f64; 2]; N]> {
    let empty = bpf::load("nothing", &asm::empty())?;
    let inputs = all.map(Questions::input);
    let subjects: Vec<_> = all
        .into_iter()
        .zip(&inputs)
        .flat_map(|(questions, input)| questions.subjects(&empty, input))
        .collect();
    let times = bench.compare(&subjects)?;
    Ok(std::array::from_fn(|n| [times[4 * n + 3] - times[4 * n + 2], times[4 * n + 1] - times[4 * n]]))
}

/// The look-up of one of ten rules' cells, and of one of as many as are met among 100,000 rules'.
fn cells(bench: &Bench, layout: &Layout, questions: &Questions) -> Result<[f64; 2]> {
    let met = HUNDRED_THOUSAND.addresses << 6;
    let element = |count, apart| {
        bpf::load("a bare cell", &asm::bare_element(layout, bench.world.cells.fd(), count, apart))
    };
    let (few, many) = (element(TEN.cells(), 1)?, element(met, HUNDRED_THOUSAND.cells() / met)?);
    let empty = bpf::load("nothing", &asm::empty())?;
    let input = &questions.input();
    let subject =
        |name, program, says| Subject { name, driver: &questions.same, input, before: 0, program, says };
    let times = bench.compare(&[
        subject("nothing", empty.as_fd(), -1),
        subject("one of few cells", few.as_fd(), 1),
        subject("one of many cells", many.as_fd(), 1),
    ])?;
    Ok([times[1] - times[0], times[2] - times[0]])
}

/// Whether anything was asked again.
fn again(world: &mut World) -> Result<()> {
    let mut admitted_by = BTreeSet::new();
    for flow in world.datapath.flows() {
        admitted_by.insert(told(flow)?.1.generations);
    }
    if admitted_by.len() < 2 { unmet("nothing was asked again") } else { Ok(()) }
}
