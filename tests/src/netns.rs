//! A network namespace of the lab.

use crate::{Context, Error, Result, link};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::AsRawFd, unix::process::CommandExt},
    panic,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// Named under `/run/netns`, as `ip netns` names it; goes when dropped (and when the last process in it ends), if it was made here.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    made_here: bool,
}

impl Netns {
    /// A new namespace with `lo` up, and nothing else.
    pub fn create(name: &str) -> Result<Self> {
        let path = Path::new("/run/netns").join(name);
        File::create_new(&path).during(|| format!("naming namespace {name}"))?;
        let made = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
            Ok(())
        });
        if let Err(e) = made {
            // The name alone must not stand for a namespace that is not there.
            let _ = fs::remove_file(&path);
            return Err(e);
        }
        let file = File::open(&path).during(|| path.display().to_string())?;
        let netns = Self { name: name.into(), path, file, made_here: true };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// One that somebody else has made, and that goes when he likes.
    pub fn of(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).during(|| path.display().to_string())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, path, file, made_here: false })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a container runtime hands over as `CNI_NETNS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` on a thread inside this namespace; sockets made there stay there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET).during(|| format!("going into {}", self.name))?;
            f()
        })
    }

    /// A command that will run inside this namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = self.file.as_raw_fd();
        // SAFETY: only setns, an async-signal-safe system call, is made between fork and exec. The descriptor is a
        // number: should the namespace be dropped before the spawn, setns fails with EBADF and so does the spawn.
        unsafe {
            command.pre_exec(move || {
                let file = std::os::fd::BorrowedFd::borrow_raw(fd);
                setns(file, CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command
    }

    /// `ip` inside this namespace; the arguments as one line.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        link::ip(Some(self), arguments)
    }

    /// Writes `/proc/sys/{key}` of this namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| fs::write(&path, value).during(|| path.display().to_string()))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.made_here {
            return;
        }
        // Nothing to do where it fails: the mount namespace goes with the lab.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

fn in_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, f).map_err(Error::from) {
        Ok(handle) => handle.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)),
        Err(e) => Err(e),
    })
}
