//! The kernel side, packet by packet: programs are run on made-up packets (`BPF_PROG_TEST_RUN`) without attaching them,
//! and on real interfaces where that alone shows what must be true. Everything in namespaces of its own.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "datapath/node.rs"]
mod node;
#[path = "datapath/packet.rs"]
mod packet;
#[path = "datapath/rules.rs"]
mod rules;
#[path = "datapath/sandbox.rs"]
mod sandbox;
#[path = "datapath/traffic.rs"]
mod traffic;

#[path = "datapath/adoption.rs"]
mod adoption;
#[path = "datapath/ages.rs"]
mod ages;
#[path = "datapath/connections.rs"]
mod connections;
#[path = "datapath/counted.rs"]
mod counted;
#[path = "datapath/decisions.rs"]
mod decisions;
#[path = "datapath/departures.rs"]
mod departures;
#[path = "datapath/direct.rs"]
mod direct;
#[path = "datapath/floods.rs"]
mod floods;
#[path = "datapath/fragments.rs"]
mod fragments;
#[path = "datapath/frontends.rs"]
mod frontends;
#[path = "datapath/generations.rs"]
mod generations;
#[path = "datapath/icmp.rs"]
mod icmp;
#[path = "datapath/interfaces.rs"]
mod interfaces;
#[path = "datapath/known.rs"]
mod known;
#[path = "datapath/live.rs"]
mod live;
#[path = "datapath/oracle.rs"]
mod oracle;
#[path = "datapath/origins.rs"]
mod origins;
#[path = "datapath/paged.rs"]
mod paged;
#[path = "datapath/parsing.rs"]
mod parsing;
#[path = "datapath/processors.rs"]
mod processors;
#[path = "datapath/rings.rs"]
mod rings;
#[path = "datapath/room.rs"]
mod room;
#[path = "datapath/sources.rs"]
mod sources;

#[path = "datapath/switches.rs"]
mod switches;

use libtest_mimic::Arguments;
use std::process::ExitCode;

/// Tests by their functions: a name is the sentence that must be true.
macro_rules! trials {
    ($module:ident: $($test:ident),+ $(,)?) => {
        pub fn trials() -> Vec<libtest_mimic::Trial> {
            vec![$(libtest_mimic::Trial::test(concat!(stringify!($module), "::", stringify!($test)), || {
                $test();
                Ok(())
            })),+]
        }
    };
}
pub(crate) use trials;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let sandbox = if arguments.list { None } else { Some(sandbox::enter()) };
    let tests = [
        parsing::trials(),
        sources::trials(),
        decisions::trials(),
        direct::trials(),
        connections::trials(),
        counted::trials(),
        known::trials(),
        live::trials(),
        processors::trials(),
        icmp::trials(),
        fragments::trials(),
        origins::trials(),
        departures::trials(),
        generations::trials(),
        switches::trials(),
        adoption::trials(),
        interfaces::trials(),
        paged::trials(),
        frontends::trials(),
        oracle::trials(),
        rings::trials(),
        room::trials(),
        ages::trials(),
        floods::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, tests.into_iter().flatten().collect());
    drop(sandbox);
    conclusion.exit_code()
}
