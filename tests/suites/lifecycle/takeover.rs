//! One daemon after another: looked at before the one that runs is ended, and waiting beside it.

use crate::support::*;
use bulkhead_lab::{Lab, Node, Result, programs, traffic::Connection, wait::until_true};
use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

pub const CASES: &[Case] = &[
    ("a preflight tells what a daemon would refuse, and changes nothing", preflight),
    ("a standby is ready, takes over when the other ends, and loses nothing", standby),
    ("a standby that is told to end ends, and the other goes on", standby_ends),
];

const EVERY: Duration = Duration::from_millis(5);

fn preflight(lab: &mut Lab) -> Result<()> {
    let pod = pods_of(lab, 0)[0];
    add(lab, pod)?;
    let node = &lab.nodes[0];
    let pins = || {
        let all = ["maps", "programs", "links"].map(|folder| fs::read_dir(node.pins().join(folder)));
        all.into_iter().flatten().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>()
    };
    let (before, running) = (pins(), node.daemon_pid());
    let generation = status(node)?.generation;
    let (code, said) = daemon_run(node, &["--preflight"])?;
    require(code == Some(0), &format!("nothing is in the way: {said}"))?;

    let known = set_layout(node, |version| version + 7)?;
    contains(&fails_to_start(node, &["--preflight"])?, &["layout version", "stays in force"])?;
    set_layout(node, |_| known)?;
    for (from, to, words) in [
        ("uplinks: [eth0]", "uplinks: [eth9]", &["eth9", "no such interface"][..]),
        ("log: info", "log: info\nconntrackEntries: 65536", &["CONNTRACK", "conntrackEntries"]),
        ("log: info", "log: info\npodCIDR: 10.0.0.0/8", &["podCIDR"]),
    ] {
        reconfigure(node, from, to)?;
        contains(&fails_to_start(node, &["--preflight"])?, words)?;
        reconfigure(node, to, from)?;
    }
    let numbers = node.state_dir().join("interner.json");
    let good = fs::read(&numbers)?;
    fs::write(&numbers, &good[..good.len() / 2])?;
    contains(&fails_to_start(node, &["--preflight"])?, &["interner.json", "restore"])?;
    fs::write(&numbers, good)?;
    let aside = numbers.with_extension("aside");
    fs::rename(&numbers, &aside)?;
    contains(&fails_to_start(node, &["--preflight"])?, &["knows nothing of", "Restore it"])?;
    fs::rename(&aside, &numbers)?;
    let log = node.state_dir().join("generations/log.jsonl");
    let good = fs::read(&log)?;
    // Whole, and of a daemon that knows more kinds than this one, or fewer.
    fs::write(&log, [&good[..], b"{\"info\": 7}\n"].concat())?;
    contains(&fails_to_start(node, &["--preflight"])?, &["log.jsonl", "restore"])?;
    fs::write(&log, good)?;

    require(pins() == before, "no pin has come or gone")?;
    require(node.daemon_pid() == running && status(node)?.generation == generation, "the daemon runs on")?;
    check(lab, pod)
}

/// A daemon that waits for the one of the node; killed when dropped.
struct Standby {
    process: Child,
    file: PathBuf,
}

impl Standby {
    fn start(node: &Node) -> Result<Self> {
        let file = lab_dir(&node.name).join("standby");
        let log = File::options().append(true).open(node.log())?;
        let mut command = node.netns.command(programs::find("bulkheadd")?);
        command.arg("--config").arg(node.dir().join("bulkheadd.yaml")).arg("--standby").arg(&file);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let standby = Self { process, file };
        until_true("it waits", SOON, || Ok(standby.says().is_ok_and(|said| said.contains("waiting"))))?;
        Ok(standby)
    }

    fn says(&self) -> std::io::Result<String> {
        fs::read_to_string(&self.file)
    }

    /// As a readiness probe asks; `socket`: where somebody answers, or not.
    fn is_ready(&self, socket: &Path) -> Result<bool> {
        self.is_ready_after("0", socket)
    }

    /// The same, where a standby is not ready before it has waited for so many seconds.
    fn is_ready_after(&self, waited: &str, socket: &Path) -> Result<bool> {
        let mut ask = Command::new(programs::find("bulkhead")?);
        ask.arg("--socket").arg(socket);
        ask.args(["status", "--ready", "--standby"]).arg(&self.file).args(["--waited", waited]);
        Ok(ask.output()?.status.success())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn standby(lab: &mut Lab) -> Result<()> {
    let (first, second) = (index(lab, "shop/cart-0"), index(lab, "shop/management-0"));
    for pod in [first, second] {
        add(lab, pod)?;
    }
    let to = SocketAddr::new(lab.pods[second].v4.into(), 7000);
    let connection = Connection::start(&lab.pods[first].netns, &lab.pods[second].netns, to, EVERY)?;
    let standby = Standby::start(&lab.nodes[0])?;
    let (socket, nobody) = (lab.nodes[0].socket(), lab.nodes[0].socket().with_extension("none"));
    require(standby.is_ready(&nobody)?, "it is ready while it waits")?;
    require(!standby.is_ready_after("3600", &nobody)?, "it is ready before its time")?;
    until_true("it has waited for a second", SOON, || standby.is_ready_after("1", &nobody))?;
    // As before it has begun.
    let said = standby.says()?;
    fs::remove_file(&standby.file)?;
    require(!standby.is_ready(&socket)?, "the other's readiness is not its own")?;
    fs::write(&standby.file, said)?;
    let generation = status(&lab.nodes[0])?.generation;
    lab.nodes[0].stop_daemon()?;
    let node = &lab.nodes[0];
    until_true("it has taken over", LATER, || Ok(node.get::<serde_json::Value>("/v1/cni/status").is_ok()))?;
    require(standby.says()?.is_empty() && !standby.is_ready(&nobody)?, "it waits no more")?;
    require(standby.is_ready_after("3600", &socket)?, "it is ready by itself")?;
    require(status(node)?.generation >= generation, "what was in force is the base of what is")?;
    check(lab, first)?;
    let report = connection.finish()?;
    require(report.lost == 0 && report.received == report.sent, &format!("{report:?}"))
}

fn standby_ends(lab: &mut Lab) -> Result<()> {
    let node = &lab.nodes[0];
    let mut standby = Standby::start(node)?;
    let pid = nix::unistd::Pid::from_raw(standby.process.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let ended = bulkhead_lab::until("the standby ends", SOON, || Ok(standby.process.try_wait()?))?;
    require(ended.success() && !standby.file.exists(), "it has ended well")?;
    node.get::<serde_json::Value>("/v1/cni/status").map(drop)
}
