//! A node of the cluster: its namespace, its uplink, its `bulkheadd` in standalone mode.

use crate::{
    Context, Error, Netns, Result,
    enter::BPFFS,
    link::{ip_output, run},
    programs, until,
};
use bulkhead_api::client::request;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Start, including the load of the eBPF programs; stop.
const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(5);
pub const UPLINK: &str = "eth0";

/// Its daemon is killed when dropped.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    dir: PathBuf,
    daemon: Option<Child>,
    /// Of the daemon, where it is not the usual one.
    program: Option<PathBuf>,
}

impl Node {
    /// Writes the daemon's configuration under `lab`; directories of objects and blocks are shared by all nodes.
    pub fn create(netns: Netns, v4: Ipv4Addr, v6: Ipv6Addr, lab: &Path) -> Result<Self> {
        fs::create_dir_all(lab.join("blocks"))?;
        let lab_dir = lab.display();
        Self::create_with(
            netns,
            v4,
            v6,
            lab,
            &format!("objects: {lab_dir}/objects\nblocks: {lab_dir}/blocks\n"),
        )
    }

    /// As [`Self::create`], of a node of a cluster.
    pub fn create_in_cluster(
        netns: Netns,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        lab: &Path,
        kubeconfig: &Path,
    ) -> Result<Self> {
        let origin = format!("kubernetes: {{kubeconfig: {}}}\n", kubeconfig.display());
        Self::create_with(netns, v4, v6, lab, &origin)
    }

    /// `origin`: the lines of the configuration that say where objects come from.
    fn create_with(netns: Netns, v4: Ipv4Addr, v6: Ipv6Addr, lab: &Path, origin: &str) -> Result<Self> {
        let name = netns.name().to_string();
        let dir = lab.join(&name);
        fs::create_dir_all(&dir).during(|| dir.display().to_string())?;
        let pins = Path::new(BPFFS).join(&name);
        let configuration = format!(
            "node: {name}\n{origin}stateDir: {dir}/state\nsocket: {dir}/bulkheadd.sock\n\
             bfdSocket: {dir}/bfd.sock\npinDir: {pins}\npodCIDRs: [10.64.0.0/16, \"fd00:64::/48\"]\nclusterDNS: []\nuplinks: [{UPLINK}]\nlog: info\n",
            dir = dir.display(),
            pins = pins.display(),
        );
        fs::write(dir.join("bulkheadd.yaml"), configuration).during(|| format!("configuring {name}"))?;
        Ok(Self { name, netns, v4, v6, dir, daemon: None, program: None })
    }

    /// Everything of its own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("bulkheadd.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.name)
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("bulkheadd.log")
    }

    /// Starts the daemon and waits until an ADD would work.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.start_daemon_unready()?;
        self.wait_ready()
    }

    /// Starts the daemon and waits for nothing.
    pub fn start_daemon_unready(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let program = match &self.program {
            Some(program) => program.clone(),
            None => programs::find("bulkheadd")?,
        };
        let daemon = self
            .netns
            .command(program)
            .arg("--config")
            .arg(self.dir.join("bulkheadd.yaml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .during(|| format!("starting the daemon of {}", self.name))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let what = format!("the daemon of {} is ready", self.name);
        let ended = until(&what, START, || {
            if let Some(status) = self.daemon.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Ok(Some(Some(status)));
            }
            self.get::<serde_json::Value>("/v1/cni/status").map(|_| Some(None))
        })?;
        match ended {
            None => Ok(()),
            Some(status) => Err(Error::Command {
                command: format!("bulkheadd on {}", self.name),
                status,
                stderr: self.log_tail(40),
            }),
        }
    }

    /// The next start is of another build: a program of its own, whose file differs.
    pub fn upgrade(&mut self) -> Result<()> {
        let number = self.program.iter().count();
        let (usual, other) = (programs::find("bulkheadd")?, self.dir.join(format!("bulkheadd-{number}")));
        fs::copy(&usual, &other).during(|| other.display().to_string())?;
        // What stands behind an ELF file's end is nobody's business.
        let mut file = File::options().append(true).open(&other)?;
        writeln!(file, "another build")?;
        self.program = Some(other);
        Ok(())
    }

    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// `kill -9`; returns when the process is gone.
    pub fn kill_daemon(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; the daemon must end well by itself.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM)?;
        let what = format!("the daemon of {} ends on SIGTERM", self.name);
        let status = until(&what, STOP, || Ok(daemon.try_wait()?))?;
        self.daemon = None;
        if status.success() {
            return Ok(());
        }
        Err(Error::Command {
            command: format!("bulkheadd on {}", self.name),
            status,
            stderr: self.log_tail(40),
        })
    }

    pub fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R> {
        Ok(request::<(), R>(&self.socket(), path, None, REQUEST)?)
    }

    pub fn post<B: Serialize, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R> {
        Ok(request(&self.socket(), path, Some(body), REQUEST)?)
    }

    /// `bulkhead --socket ... ` with these arguments; its standard output.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(programs::find("bulkhead")?).arg("--socket").arg(self.socket()).args(arguments))
    }

    /// Names of the interfaces of this node.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let text = ip_output(Some(&self.netns), "-o link show")?;
        let name = |line: &str| {
            let name = line.split(": ").nth(1)?;
            Some(name.split('@').next().unwrap_or(name).to_string())
        };
        Ok(text.lines().filter_map(name).collect())
    }

    /// The last lines that the daemon logged.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill_daemon();
    }
}
