//! Goes into a virtual machine: the running program is started again under a kernel of Debian's, above the very files that it sees here.
//!
//! ```text
//! host: virtiofsd, qemu ──boots──▶ guest: init (tests/kernel) ──▶ this program, with the same arguments
//!   │ prints what comes                        │
//!   └◀───────────── console ───────────────────┘ its exit code in the last line
//! ```
//! For what the machine's own kernel has not (bonds, sockets of SCTP), and to see that nothing hangs on one kernel. What the guest
//! writes goes to its memory; it has no network. Both programs end with this one, however it ends.

use crate::{Context, Error, Result, programs, unmet, until};
use nix::sys::{prctl, signal::Signal};
use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, ErrorKind},
    os::unix::process::CommandExt,
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
const LISTENS: Duration = Duration::from_secs(20);
/// What the console tells before init speaks is the firmware's.
const BEGAN: &str = "guest began";
const ENDED: &str = "guest ended: ";

/// Returns in the guest only; on the host the program exits with the guest's code.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("run");
    fs::write(&script, again()?).during(|| script.display().to_string())?;
    let socket = dir.path().join("files");
    let files = files(&socket)?;
    let mut guest = boot(&script, &socket)?;
    let code = watch(&mut guest.0)?;
    drop((guest, files, dir));
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

fn files(socket: &Path) -> Result<Ends> {
    if !Path::new(FILES).exists() {
        return Err(Error::NotInstalled("virtiofsd of QEMU"));
    }
    let mut command = Command::new(FILES);
    command.arg(format!("--socket-path={}", socket.display())).args([
        "-o",
        "source=/",
        "-o",
        "sandbox=chroot",
        "-o",
        "cache=always",
    ]);
    let files = bound(&mut command).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let files = Ends(files.during(|| FILES.into())?);
    until("virtiofsd listens", LISTENS, || Ok(socket.exists().then_some(())))?;
    Ok(files)
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
    for line in BufReader::new(console).lines() {
        let line = line?;
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
