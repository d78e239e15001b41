//! Goes into namespaces of its own: the running program is started again as the first process of a fresh pid, network, mount
//! and ipc namespace.
//!
//! ```text
//! outer: unshare (one thread) ─spawn─▶ inner: pid 1, own /proc, /run, /sys/fs/bpf; runs the lab
//!   │ waits, passes the exit code on      │
//!   └◀──────────── pipe: lines ───────────┘
//! ```
//! When init dies, the kernel kills every process of its pid namespace; with the last process go the interfaces, the mounts
//! (pins, files) and the programs. Init dies with the outer process (`PR_SET_PDEATHSIG`), however that one ends: a panic,
//! Ctrl-C, `kill -9`. Only [`Inside::keep`] lets it live on.

use crate::{Context, Error, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
    unistd,
};
use std::{
    env, fs,
    fs::File,
    io::{self, BufRead, BufReader, PipeReader, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{self, Child, Command},
    thread,
    time::Duration,
};

/// Set for the inner process: the descriptor of its pipe to the outer one.
const PIPE: &str = "BULKHEAD_LAB_PIPE";
/// Work directory of the lab, in a tmpfs of its own.
pub const WORK: &str = "/run/lab";
/// The lab's own bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The inner process's end of the lab.
pub struct Inside {
    pipe: File,
}

/// What the outer process sees of a lab that is over, or kept.
#[derive(Debug)]
pub struct Ended {
    /// Exit code of the lab.
    pub code: i32,
    /// Process of the outer namespace that is the lab's init, while it lives on.
    pub kept: Option<u32>,
    /// Inode of the lab's pid namespace: nobody may live in it any more.
    pub pid_namespace: String,
    /// What the lab told by [`Inside::tell`].
    pub told: Vec<String>,
}

/// Returns in the inner process only; the outer one waits for it and exits with its code.
pub fn enter() -> Result<Inside> {
    enter_then(|ended| ended.code)
}

/// As [`enter`]; the outer process runs `afterwards` when the lab is over, and exits with what that says.
pub fn enter_then(afterwards: impl FnOnce(&Ended) -> i32) -> Result<Inside> {
    if let Some(fd) = env::var(PIPE).ok().and_then(|v| v.parse().ok())
        && process::id() == 1
    {
        // SAFETY: the outer process made this descriptor for us alone, and nobody else in this process knows it.
        let pipe = unsafe { OwnedFd::from_raw_fd(fd) };
        nix::fcntl::fcntl(&pipe, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        furnish()?;
        return Ok(Inside { pipe: pipe.into() });
    }
    if !unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    // A thread: unshare must not change the outer process, and the death signal is sent when the *thread* ends.
    let ended =
        thread::spawn(outside).join().map_err(|_| Error::Unmet("the lab's parent panicked".into()))??;
    process::exit(afterwards(&ended))
}

fn outside() -> Result<Ended> {
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).during(|| "making the lab's namespaces".into())?;
    let (reader, writer) = io::pipe()?;
    let mut child = spawn_inner(writer.as_raw_fd())?;
    drop(writer);
    let link = format!("/proc/{}/ns/pid", child.id());
    let pid_namespace = fs::read_link(&link).during(|| link)?.display().to_string();
    watch(&mut child, reader, pid_namespace)
}

fn spawn_inner(pipe: i32) -> Result<Child> {
    let mut inner = Command::new(env::current_exe()?);
    inner.args(env::args_os().skip(1)).env(PIPE, pipe.to_string()).env("TMPDIR", format!("{WORK}/tmp"));
    // SAFETY: between fork and exec only async-signal-safe system calls are made (prctl, fcntl).
    unsafe {
        inner.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            let fd = std::os::fd::BorrowedFd::borrow_raw(pipe);
            nix::fcntl::fcntl(fd, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::empty()))?;
            Ok(())
        });
    }
    inner.spawn().during(|| "starting the lab's init process".into())
}

fn watch(child: &mut Child, pipe: PipeReader, pid_namespace: String) -> Result<Ended> {
    let mut told = Vec::new();
    for line in BufReader::new(pipe).lines() {
        let line = line?;
        if let Some(code) = line.strip_prefix("keep ").and_then(|c| c.parse().ok()) {
            return Ok(Ended { code, kept: Some(child.id()), pid_namespace, told });
        }
        told.push(line);
    }
    let status = child.wait()?;
    Ok(Ended { code: status.code().unwrap_or(1), kept: None, pid_namespace, told })
}

/// Gives the namespaces what programs expect to find.
fn furnish() -> Result<()> {
    // Own session: Ctrl-C goes to the outer process, whose death ends everything at once. Fails only where we lead already.
    let _ = unistd::setsid();
    end_on_sigterm()?;
    // Here and not in the parent, which goes on to read its own /proc.
    unshare(CloneFlags::CLONE_NEWNS).during(|| "making the lab's mount namespace".into())?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .during(|| "making mounts private".into())?;
    for (kind, at) in [("proc", "/proc"), ("tmpfs", "/run"), ("bpf", BPFFS)] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none)
            .during(|| format!("mounting {kind} on {at}"))?;
    }
    for dir in ["/run/netns", "/run/lab/tmp"] {
        fs::create_dir_all(dir).during(|| dir.into())?;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    crate::link::ip(None, "link set lo up")
}

extern "C" fn on_sigterm(_: i32) {
    // SAFETY: `_exit` is async-signal-safe.
    unsafe { libc::_exit(128 + libc::SIGTERM) }
}

/// The first process of a pid namespace is deaf to signals without a handler.
fn end_on_sigterm() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_sigterm), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only calls `_exit`.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    Ok(())
}

/// Ends the lab with a failure when it has not ended by itself after this long, whatever hangs.
pub fn die_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("the lab has not ended within {limit:?}: it is killed");
        // SAFETY: no handler runs and nothing is flushed; the kernel kills whoever is left in the namespaces.
        unsafe { libc::_exit(1) }
    });
}

impl Inside {
    /// A line for the outer process.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.pipe, "{line}").during(|| "telling the outer process".into())
    }

    /// Lets the lab live on without the outer process, which exits with `code`. Ends by SIGTERM.
    pub fn keep(mut self, code: i32) -> Result<std::convert::Infallible> {
        prctl::set_pdeathsig(None)?;
        let null = File::options().read(true).write(true).open(Path::new("/dev/null"))?;
        unistd::dup2_stdin(&null)?;
        unistd::dup2_stdout(&null)?;
        unistd::dup2_stderr(&null)?;
        self.tell(&format!("keep {code}"))?;
        drop(self.pipe);
        loop {
            unistd::pause();
        }
    }
}
