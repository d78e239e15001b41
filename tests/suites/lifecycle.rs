//! The life of the daemon, the plugin and the command line when things go wrong around them: killed, stopped, started twice,
//! out of disk, out of addresses, with broken files, with objects that come and go.
//!
//! Real programs, real kernel, real router; every case has a lab of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "lifecycle/bandwidth.rs"]
mod bandwidth;
#[path = "lifecycle/bgp.rs"]
mod bgp;
#[allow(dead_code, reason = "shared with the forwarding suite")]
#[path = "forwarding/support.rs"]
mod calls;
#[path = "lifecycle/churn.rs"]
mod churn;
#[path = "lifecycle/cli.rs"]
mod cli;
#[path = "lifecycle/down.rs"]
mod down;
#[path = "lifecycle/ends.rs"]
mod ends;
#[path = "lifecycle/first.rs"]
mod first;
#[path = "lifecycle/idle.rs"]
mod idle;
#[path = "lifecycle/kernel.rs"]
mod kernel;
#[path = "lifecycle/killed.rs"]
mod killed;
#[path = "lifecycle/objects.rs"]
mod objects;
#[path = "lifecycle/ranges.rs"]
mod ranges;
#[path = "lifecycle/refused.rs"]
mod refused;
#[path = "lifecycle/room.rs"]
mod room;
#[path = "lifecycle/support.rs"]
mod support;
#[path = "lifecycle/takeover.rs"]
mod takeover;
#[path = "lifecycle/uplinks.rs"]
mod uplinks;

use bulkhead_lab::{Result, enter};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // One set of namespaces: the cases take turns.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials()).exit();
    }
    let _inside = enter()?;
    let conclusion = libtest_mimic::run(&arguments, trials());
    conclusion.exit()
}

fn trials() -> Vec<Trial> {
    [killed::CASES, churn::CASES, down::CASES, refused::CASES, objects::CASES, ranges::CASES]
        .into_iter()
        .chain([
            bandwidth::CASES,
            bgp::CASES,
            ends::CASES,
            cli::CASES,
            uplinks::CASES,
            takeover::CASES,
            first::CASES,
            idle::CASES,
            room::CASES,
        ])
        .flatten()
        .map(|(name, case)| Trial::test(*name, || support::in_a_lab(*case).map_err(Failed::from)))
        .collect()
}
