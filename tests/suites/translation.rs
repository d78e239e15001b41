//! What the node translates for pods, with real pods, nodes and connections: host ports and masquerade.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "translation/masquerade.rs"]
mod masquerade;
#[path = "translation/ports.rs"]
mod ports;
#[path = "translation/sctp.rs"]
mod sctp;
#[allow(dead_code, reason = "shared with the forwarding suite")]
#[path = "forwarding/support.rs"]
mod support;
#[path = "translation/table.rs"]
mod table;

use bulkhead_lab::{Lab, Result, enter};
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::{Arc, Mutex, PoisonError};

type Case = fn(&mut Lab) -> Result<()>;

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // One lab: the cases take turns.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(&Arc::new(Mutex::new(Err("not started".into()))))).exit();
    }
    let _inside = enter()?;
    let lab = Arc::new(Mutex::new(start().map_err(|e| e.to_string())));
    let conclusion = libtest_mimic::run(&arguments, trials(&lab));
    let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
    if let (true, Ok(lab)) = (conclusion.has_failed(), &*lab) {
        eprintln!("{}", lab.logs(30));
    }
    *lab = Err("over".into());
    drop(lab);
    conclusion.exit()
}

fn start() -> Result<Lab> {
    let mut lab = Lab::start()?;
    support::wire(&mut lab)?;
    Ok(lab)
}

fn trials(lab: &Arc<Mutex<std::result::Result<Lab, String>>>) -> Vec<Trial> {
    // The last changes the first node's configuration.
    let cases = [ports::CASES, sctp::CASES, table::CASES, masquerade::CASES].into_iter().flatten();
    let trial = |(name, case): &(&'static str, Case)| {
        let (lab, case) = (lab.clone(), *case);
        Trial::test(*name, move || match &mut *lab.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(lab) => case(lab).map_err(Failed::from),
            Err(why) => Err(why.clone().into()),
        })
    };
    cases.map(trial).collect()
}
