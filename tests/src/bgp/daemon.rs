//! A router's program, running until it is dropped.

use crate::{Context, Error, Netns, Result, link::run, until};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const START: Duration = Duration::from_secs(20);

/// Ended by SIGKILL, as a power cut.
#[derive(Debug)]
pub(super) struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// `ready` is asked until it answers without an error. The program's words go to `{name}.log` in `dir`.
    pub fn start(
        netns: &Netns,
        dir: &Path,
        package: &'static str,
        command: &[&str],
        ready: impl Fn() -> Result<()>,
    ) -> Result<Daemon> {
        let name = Path::new(command[0]).file_name().map(|name| name.to_string_lossy().into_owned());
        let log = dir.join(format!("{}.log", name.unwrap_or_default()));
        let file = File::create(&log).during(|| log.display().to_string())?;
        let process = netns
            .command(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|_| Error::NotInstalled(package))?;
        let mut daemon = Daemon { process, log };
        until(&format!("{} answers", command[0]), START, || {
            if let Some(status) = daemon.process.try_wait()? {
                return Err(Error::Unmet(format!("it ended with {status}: {}", daemon.log()?)));
            }
            ready().map(Some)
        })?;
        Ok(daemon)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).during(|| self.log.display().to_string())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program of a router's package, and what it printed.
pub(super) fn ask(netns: &Netns, program: &str, arguments: &[&str]) -> Result<String> {
    run(netns.command(program).args(arguments))
}

/// As [`ask`], where the namespace does not matter.
pub(super) fn ask_here(program: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(program).args(arguments))
}
