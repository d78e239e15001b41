//! A lab that is ended by force leaves nothing: this program starts itself as a lab, kills it, and looks.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

use bulkhead_lab::{
    Bird, Netns, Result, enter,
    enter::{BPFFS, Ended},
    leftovers::{Machine, pinned},
    link::{End, veth},
    unmet,
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{sys::signal, unistd::Pid};
use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

const VICTIM: &str = "--victim";

fn main() -> Result<()> {
    if env::args().any(|a| a == VICTIM) {
        return victim();
    }
    let trials = vec![
        Trial::test("a lab whose parent is killed leaves nothing", || ended_by(kill)),
        Trial::test("a lab whose init is killed leaves nothing", || ended_by(kill_init)),
    ];
    // Both compare the machine before and after: one at a time.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit()
}

/// A lab with a bit of everything, until it is killed.
fn victim() -> Result<()> {
    let _inside = enter()?;
    let (a, b) = (Netns::create("vanish-a")?, Netns::create("vanish-b")?);
    let end = |netns| End { netns, name: "vanish0", addresses: &["172.31.0.1/24"] };
    veth(end(&a), end(&b))?;
    let _bird = Bird::start(&a, Path::new("/run/lab/bird"), "router id 1.2.3.4;\nprotocol device {}\n")?;
    pin_a_map();
    for object in pinned(Path::new(BPFFS)) {
        println!("{object}");
    }
    println!("namespace {}", fs::read_link("/proc/self/ns/pid")?.display());
    println!("up");
    loop {
        thread::park();
    }
}

fn pin_a_map() {
    let mut ebpf = aya::Ebpf::load(bulkhead_daemon::datapath::OBJECT).expect("the eBPF object");
    ebpf.map_mut("ENDPOINT").expect("map ENDPOINT").pin(Path::new(BPFFS).join("vanish")).expect("a pin");
}

fn ended_by(end: fn(&mut Child, &Ended) -> Result<()>) -> std::result::Result<(), Failed> {
    let before = Machine::now()?;
    let mut child =
        Command::new(env::current_exe()?).arg(VICTIM).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut ended = Ended { code: 0, kept: None, pid_namespace: String::new(), told: Vec::new() };
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        match line? {
            line if line == "up" => break,
            line => match line.strip_prefix("namespace ") {
                Some(namespace) => ended.pid_namespace = namespace.into(),
                None => ended.told.push(line),
            },
        }
    }
    assert!(!ended.told.is_empty() && !ended.pid_namespace.is_empty(), "the lab did not come up: {ended:?}");
    assert!(before.nothing_left_now(&ended).is_err(), "a running lab is seen");
    end(&mut child, &ended)?;
    child.wait()?;
    before.nothing_left(&ended)?;
    Ok(())
}

fn kill(child: &mut Child, _: &Ended) -> Result<()> {
    Ok(child.kill()?)
}

/// The namespace's process number 1.
fn kill_init(_: &mut Child, ended: &Ended) -> Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let inside = fs::read_link(entry.path().join("ns/pid"));
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let first = status.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1"));
        if first && inside.is_ok_and(|i| i.display().to_string() == ended.pid_namespace) {
            let pid = entry.file_name().to_string_lossy().parse().unwrap_or(0);
            return Ok(signal::kill(Pid::from_raw(pid), signal::SIGKILL)?);
        }
    }
    unmet("the lab has no init process")
}
