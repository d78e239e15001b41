//! BIRD 2, run as a data-centre router would: a real speaker to interoperate with.

use crate::{Context, Error, Netns, Result, link::run, routes::Route, until, wait::until_true};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const START: Duration = Duration::from_secs(10);

/// Stopped (SIGKILL: as a power cut) when dropped.
#[derive(Debug)]
pub struct Bird {
    process: Child,
    socket: PathBuf,
}

impl Bird {
    /// Starts BIRD in `netns` with this configuration; `dir` takes its files (`bird.conf`, `bird.log`, `bird.ctl`).
    pub fn start(netns: &Netns, dir: &Path, configuration: &str) -> Result<Self> {
        Self::start_with(netns, dir, configuration, &[])
    }

    /// As [`Self::start`], after a restart in which forwarding went on.
    pub fn recover(netns: &Netns, dir: &Path, configuration: &str) -> Result<Self> {
        Self::start_with(netns, dir, configuration, &["-R"])
    }

    fn start_with(netns: &Netns, dir: &Path, configuration: &str, more: &[&str]) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        let path = dir.join("bird.conf");
        fs::write(&path, configuration).during(|| path.display().to_string())?;
        let log = File::create(dir.join("bird.log"))?;
        let socket = dir.join("bird.ctl");
        let process = netns
            .command("/usr/sbin/bird")
            .arg("-f")
            .args(more)
            .args([Path::new("-c"), &path, Path::new("-s"), &socket, Path::new("-P"), &dir.join("bird.pid")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|_| Error::NotInstalled("bird2"))?;
        let mut bird = Self { process, socket };
        let ready = until("BIRD answers", START, || {
            if let Some(status) = bird.process.try_wait()? {
                return Ok(Some(Err(status)));
            }
            bird.birdc("show status").map(|_| Some(Ok(())))
        })?;
        match ready {
            Ok(()) => Ok(bird),
            Err(status) => Err(Error::Command {
                command: format!("bird -c {}", path.display()),
                status,
                stderr: fs::read_to_string(dir.join("bird.log")).unwrap_or_default(),
            }),
        }
    }

    /// One command of BIRD's own client.
    pub fn birdc(&self, command: &str) -> Result<String> {
        run(Command::new("/usr/sbin/birdc").arg("-s").arg(&self.socket).args(command.split_whitespace()))
    }

    pub fn established(&self, protocol: &str) -> Result<bool> {
        Ok(self.birdc(&format!("show protocols {protocol}"))?.contains("Established"))
    }

    pub fn wait_established(&self, protocols: &[&str], deadline: Duration) -> Result<()> {
        for protocol in protocols {
            let what = format!("BIRD's session {protocol} is established");
            until_true(&what, deadline, || {
                let state = self.birdc(&format!("show protocols {protocol}"))?;
                if state.contains("Established") { Ok(true) } else { Err(Error::Unmet(last_line(&state))) }
            })?;
        }
        Ok(())
    }

    /// No session of these is in a graceful restart any more: what was stale has been renewed or dropped.
    pub fn restarts_over(&self, protocols: &[&str]) -> Result<bool> {
        for protocol in protocols {
            if self.birdc(&format!("show protocols all {protocol}"))?.contains("graceful restart active") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What stands in BIRD's table from this protocol.
    pub fn routes(&self, protocol: &str) -> Result<Vec<Route>> {
        Ok(parse_routes(&self.birdc(&format!("show route protocol {protocol}"))?))
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().into()
}

/// `10.64.0.0/26  unicast [n1v4 03:06:01.1] * (100) [AS65010i]`, then, indented, `via 172.30.1.2 on n1`.
fn parse_routes(text: &str) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("via") => {
                let via = words.next().and_then(|w| w.parse().ok());
                if let Some(route) = routes.last_mut() {
                    route.via = route.via.or(via);
                }
            }
            Some(word) => {
                let prefix = word.parse().ok().filter(|_| word.contains('/'));
                routes.extend(prefix.map(|prefix| Route { prefix, via: None }));
            }
            None => {}
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn birds_table_is_read_with_next_hops() {
        let text = "BIRD 2.0.12 ready.\nTable master4:\n\
            10.64.0.0/26         unicast [n1v4 03:06:01.135] * (100) [AS65010i]\n\tvia 172.30.1.2 on n1\n\
            10.65.0.0/26         unreachable [n2v4 03:06:01.135] * (100) [AS65010i]\n";
        let expected = vec![
            Route { prefix: "10.64.0.0/26".parse().unwrap(), via: Some("172.30.1.2".parse().unwrap()) },
            Route { prefix: "10.65.0.0/26".parse().unwrap(), via: None },
        ];
        assert_eq!(parse_routes(text), expected);
    }
}
