//! The demo's steps as tests: one lab, the steps in order, each a trial.

use bulkhead_lab::{Lab, Result, demo::STEPS, enter, unmet};
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::{Arc, Mutex, PoisonError};

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // Each step finds the lab as the one before left it.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(&Arc::new(Mutex::new(Err("not started".into()))))).exit();
    }
    let _inside = enter()?;
    let lab = Arc::new(Mutex::new(Lab::start().map_err(|e| e.to_string())));
    let conclusion = libtest_mimic::run(&arguments, trials(&lab));
    let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
    if let (true, Ok(lab)) = (conclusion.has_failed(), &*lab) {
        eprintln!("{}", lab.logs(30));
    }
    // Daemons and router end before the process does.
    *lab = Err("over".into());
    drop(lab);
    conclusion.exit()
}

type Shared = Arc<Mutex<std::result::Result<Lab, String>>>;

fn trials(lab: &Shared) -> Vec<Trial> {
    let numbered = STEPS.iter().enumerate();
    numbered
        .map(|(n, step)| {
            let lab = lab.clone();
            Trial::test(format!("step {:>2}: {}", n + 1, step.title), move || {
                run(&lab, step.run).map_err(Failed::from)
            })
        })
        .collect()
}

fn run(lab: &Shared, step: fn(&mut Lab) -> Result<bulkhead_lab::demo::Held>) -> Result<()> {
    match &mut *lab.lock().unwrap_or_else(PoisonError::into_inner) {
        Ok(lab) => step(lab).map(|held| println!("{}", held.figure)),
        Err(why) => unmet(format!("the lab did not start: {why}")),
    }
}
