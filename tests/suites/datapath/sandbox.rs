//! Namespaces of our own: mounts, so that our BPF file system is nobody else's, and network.

use crate::packet::DST_MAC;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use std::{path::PathBuf, process::Command, sync::OnceLock};
use tempfile::TempDir;

static BPF: OnceLock<PathBuf> = OnceLock::new();

/// The pods' interfaces and the uplink; their peers end in `-peer`.
pub const INTERFACES: [&str; 3] = ["pod-a", "pod-b", "up0"];

pub struct Sandbox {
    dir: TempDir,
}

/// Moves this process there; before any thread is started.
pub fn enter() -> Sandbox {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    let dir = TempDir::new().expect("a folder");
    mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).expect("a BPF file system");
    BPF.set(dir.path().to_path_buf()).expect("entered once");
    run("ip", &["link", "set", "lo", "up"]);
    // Frames are for this host.
    let mac = DST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for name in INTERFACES {
        let peer = format!("{name}-peer");
        run("ip", &["link", "add", name, "address", &mac, "type", "veth", "peer", "name", &peer]);
    }
    Sandbox { dir }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// A folder on the BPF file system that no other test uses.
pub fn pin_dir() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    BPF.get().expect("entered").join(format!("node{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
