//! The process around the sessions: a real-time thread for packets, and ordinary ones for clients.
//!
//! ```text
//!   clients ──lines──▶ hub ──commands, eventfd──▶ packets (SCHED_FIFO, memory locked) ⇄ UDP 3784, 4784
//!           ◀──lines──     ◀──────reports──────
//! ```
//! The packet thread never waits for a client, a disk or a log. SIGTERM means stopped on purpose: every neighbour is told
//! AdminDown before the process ends. A kill tells nothing, and the neighbours find out.

mod held_up;
mod hub;
mod packets;
mod sockets;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("UDP port {port} is taken: does another BFD daemon run on this node (BIRD's own, FRR's bfdd)?")]
    PortTaken { port: u16 },
    #[error("cannot listen on UDP port {port}: {source}")]
    Listen { port: u16, source: Errno },
    #[error("{0} answers already: another bulkhead-bfd runs on this node")]
    Running(PathBuf),
    #[error("cannot listen on {path}: {source}")]
    Control { path: PathBuf, source: io::Error },
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When a port or the socket is taken, or the kernel refuses what every process needs.
pub fn run(socket: &Path) -> Result<(), ProcessError> {
    let system = |what| move |e: Errno| ProcessError::System { what, source: e.into() };
    // Before any thread, which inherit it: one thread alone takes them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(system("block signals"))?;

    let control = listen(socket)?;
    let (to_hub, events) = mpsc::channel();
    let packets = packets::start(to_hub.clone())?;
    let on_signal = to_hub.clone();
    thread::spawn(move || {
        let _ = signals.wait();
        // The hub outlives this thread.
        let _ = on_signal.send(hub::Event::Stop);
    });
    thread::spawn(move || hub::accept(&control, &to_hub));
    tracing::info!(socket = %socket.display(), "ready");
    hub::run(&events, &packets);
    // What is left of the file would look like a process that does not answer.
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// A socket file of a process that is gone is replaced.
fn listen(path: &Path) -> Result<UnixListener, ProcessError> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ProcessError::Running(path.into()));
    }
    let error = |source| ProcessError::Control { path: path.into(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(error)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    // Root's alone, from the first moment.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path).map_err(error);
    nix::sys::stat::umask(mask);
    listener
}
