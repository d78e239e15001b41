//! `bulkhead-demo`: brings the lab up, shows the job step by step, takes the lab down, looks whether anything is left.
//!
//! Exit code 0 only if every step held and nothing was left. With `--keep` the lab stays up before its pods are deleted.

use bulkhead_lab::{
    Lab, Result,
    demo::{Report, STEPS, painted},
    enter::{BPFFS, Ended, WORK, enter_then},
    leftovers::{Machine, pinned},
    programs,
};
use owo_colors::Style;
use std::{path::Path, process::ExitCode, time::Instant};

fn main() -> ExitCode {
    match demo() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("bulkhead-demo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<ExitCode> {
    let keep = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(other) => {
            eprintln!("bulkhead-demo: unknown argument {other}; there is only --keep");
            return Ok(ExitCode::from(2));
        }
    };
    let (before, start) = (Machine::now()?, Instant::now());
    let mut inside = enter_then(|ended| afterwards(&before, ended, start))?;
    println!("Bulkhead: a router, two nodes, a vm, eight pods\n");
    let mut lab = Lab::start()?;
    let last = if keep { STEPS.len() - 1 } else { STEPS.len() };
    let mut report = Report::default();
    for (n, step) in STEPS.iter().enumerate().take(last) {
        report.begin(n + 1, step);
        let begun = Instant::now();
        let outcome = (step.run)(&mut lab);
        report.end(n + 1, step, &outcome, begun.elapsed());
    }
    let code = i32::from(report.failed() > 0);
    if code != 0 {
        eprintln!("\n{}", lab.logs(12));
    }
    for object in pinned(Path::new(BPFFS)) {
        inside.tell(&object)?;
    }
    if keep {
        // `lab` lives as long as this process.
        match inside.keep(code)? {}
    }
    drop(lab);
    Ok(if code == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The outer process, when the lab is over or kept: the exit code.
fn afterwards(before: &Machine, ended: &Ended, start: Instant) -> i32 {
    if let Some(pid) = ended.kept {
        hints(pid);
        return ended.code;
    }
    let seconds = start.elapsed().as_secs();
    match before.nothing_left(ended) {
        Ok(()) if ended.code == 0 => {
            let text = painted("every step held, nothing is left", Style::new().green());
            println!("\n{text} ({seconds} s)");
            0
        }
        Ok(()) => {
            println!("\nthe demo did not hold; nothing is left ({seconds} s)");
            ended.code
        }
        Err(e) => {
            println!("\nsomething is left on the machine: {e}");
            1
        }
    }
}

fn hints(pid: u32) {
    let cli = programs::find("bulkhead").map_or_else(|_| "bulkhead".into(), |p| p.display().to_string());
    println!(
        "\nThe lab stays up. Go in:\n    nsenter -t {pid} -a\nand look around there:\n    \
         ip netns                                     # router, vm, node1, node2, a namespace for each pod\n    \
         ip netns exec vm ping ADDRESS                # of a pod of namespace shop: default is open\n    \
         birdc -s {WORK}/router/bird.ctl show route\n    \
         alias b='{cli} --socket {WORK}/node1/bulkheadd.sock'\n    \
         b status; b endpoints; b bgp peers; b drops\n    \
         b explain 172.30.9.2 payments/db-0 --protocol tcp --port 20880   # from the vm\n    \
         $EDITOR {WORK}/objects/payments.yaml         # and see it hold\nEnd it, from outside:\n    kill {pid}"
    );
}
