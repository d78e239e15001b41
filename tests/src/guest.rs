//! Goes into a virtual machine: the running program is started again under a kernel of Debian's, above the very files that it sees here.
//!
//! ```text
//! host: virtiofsd, qemu ──boots──▶ guest: init (tests/kernel) ──▶ this program, with the same arguments
//!   │ prints what comes                        │
//!   └◀───────────── console ───────────────────┘ its exit code in the last line
//! ```
//! For what the machine's own kernel has not (bonds, sockets of SCTP), and to see that nothing hangs on one kernel. What the guest
//! writes goes to its memory; it has no network. Both programs end with this one, however it ends.

use crate::{Context, Error, Result, programs, unmet};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{prctl, signal::Signal},
};
use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind},
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::{net::UnixListener, process::CommandExt},
    },
    path::Path,
    process::{self, Child, Command, Stdio},
    time::Duration,
};

/// Set for the program in the guest.
const INSIDE: &str = "BULKHEAD_GUEST";
/// In Debian's `qemu-system-common`.
const FILES: &str = "/usr/lib/qemu/virtiofsd";
const EMULATOR: &str = "qemu-system-x86_64";
const MEMORY: &str = "2G";
/// It hangs if it takes longer.
const LIMIT: Duration = Duration::from_secs(600);
/// Folders of the host that the guest does not see.
const OWN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];
/// What the console tells before init speaks is the firmware's.
const BEGAN: &str = "guest began";
const ENDED: &str = "guest ended: ";

/// Returns in the guest only; on the host the program exits with the guest's code.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    crate::enter::die_after(LIMIT);
    let dir = tempfile::tempdir()?;
    let (script, socket, log) = (dir.path().join("run"), dir.path().join("files"), dir.path().join("log"));
    for path in [&script, &env::current_exe()?] {
        if OWN.iter().any(|own| path.starts_with(own)) {
            return unmet(format!("{}: the guest has a {OWN:?} of its own", path.display()));
        }
    }
    fs::write(&script, again()?).during(|| script.display().to_string())?;
    let files = files(&socket, &log)?;
    let mut guest = boot(&script, &socket)?;
    let code = watch(&mut guest.0);
    drop((guest, files));
    let code =
        code.map_err(|e| Error::Unmet(format!("{e}\n{}", fs::read_to_string(&log).unwrap_or_default())))?;
    drop(dir);
    process::exit(code)
}

/// Killed when dropped.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program once more, in a shell's words.
fn again() -> Result<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut script = format!("export {INSIDE}=yes\n");
    for name in [programs::PATH, "RUST_BACKTRACE"] {
        if let Ok(value) = env::var(name) {
            let _ = writeln!(script, "export {name}={}", quoted(&value));
        }
    }
    let _ = writeln!(script, "cd {}", quoted(&env::current_dir()?.display().to_string()));
    let words = [env::current_exe()?.display().to_string()].into_iter().chain(env::args().skip(1));
    let words: Vec<String> = words.map(|word| quoted(&word)).collect();
    let _ = writeln!(script, "exec {}", words.join(" "));
    Ok(script)
}

/// Serves what there is, and lets nobody write to it.
fn files(socket: &Path, log: &Path) -> Result<Ends> {
    let listener = UnixListener::bind(socket).during(|| socket.display().to_string())?;
    let log = File::create(log)?;
    let mut command = Command::new(FILES);
    command
        .arg(format!("--fd={}", listener.as_raw_fd()))
        .args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"])
        .stdout(log.try_clone()?)
        .stderr(log);
    let fd = listener.as_raw_fd();
    // SAFETY: between fork and exec only async-signal-safe system calls are made; the listener outlives them.
    unsafe {
        command.pre_exec(move || {
            fcntl(BorrowedFd::borrow_raw(fd), FcntlArg::F_SETFD(FdFlag::empty()))?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            Ok(read_only()?)
        });
    }
    match bound(&mut command).spawn() {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::NotInstalled("virtiofsd of QEMU")),
        files => Ok(Ends(files.during(|| FILES.into())?)),
    }
}

/// All that is mounted, in the mount namespace of the caller.
fn read_only() -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: a path that ends, and a structure of the size that is told. (Linux 5.12.)
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}

fn boot(script: &Path, socket: &Path) -> Result<Ends> {
    let line = format!("console=ttyS0 quiet panic=-1 bulkhead.run={}", script.display());
    let mut command = Command::new(EMULATOR);
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-nic", "none"])
        // The files are served from the guest's own memory.
        .arg("-object")
        .arg(format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"))
        .args(["-numa", "node,memdev=memory"])
        .arg("-chardev")
        .arg(format!("socket,id=files,path={}", socket.display()))
        .args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"])
        .arg("-kernel")
        .arg(programs::find("vmlinuz")?)
        .arg("-initrd")
        .arg(programs::find("initrd")?)
        .args(["-append", &line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    match bound(&mut command).spawn() {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::NotInstalled(EMULATOR)),
        guest => Ok(Ends(guest?)),
    }
}

/// It ends with this program.
fn bound(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only an async-signal-safe system call is made.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) }
}

/// Prints what the guest says; the code of its program.
fn watch(guest: &mut Child) -> Result<i32> {
    let Some(console) = guest.stdout.take() else { return unmet("the guest has no console") };
    let mut began = false;
    for line in BufReader::new(console).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        match line.strip_prefix(ENDED).map(str::parse) {
            Some(Ok(code)) => return Ok(code),
            Some(Err(_)) => return unmet(line),
            None if began => println!("{line}"),
            None => began = line.ends_with(BEGAN),
        }
    }
    unmet("the guest went without a word")
}
