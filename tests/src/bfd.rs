//! `bulkhead-bfd` in a namespace, and a client of it.

use crate::{Context, Error, Netns, Result, programs, unmet, until};
use bulkhead_bgp::bfd::control::{Report, Request, SessionInfo, Wanted};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

const START: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);

/// Killed when dropped.
#[derive(Debug)]
pub struct Bfd {
    process: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl Bfd {
    /// Returns when it answers; `dir` takes its socket and log.
    pub fn start(netns: &Netns, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        let (socket, log) = (dir.join("bfd.sock"), dir.join("bfd.log"));
        let process = netns
            .command(programs::find("bulkhead-bfd")?)
            .arg(&socket)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .during(|| "bulkhead-bfd".into())?;
        let mut bfd = Self { process, socket, log };
        until("bulkhead-bfd answers", START, || {
            if let Some(status) = bfd.process.try_wait()? {
                return unmet(format!("{status}: {}", fs::read_to_string(&bfd.log)?));
            }
            bfd.client()?.list().map(Some)
        })?;
        Ok(bfd)
    }

    pub fn client(&self) -> Result<Client> {
        let stream = UnixStream::connect(&self.socket).during(|| self.socket.display().to_string())?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Client { reader: BufReader::new(stream.try_clone()?), stream })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGTERM; it goes on telling its neighbours for a while.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }
}

impl Bfd {
    /// It stands still until [`Self::goes_on`], as on a machine that its host has paused.
    pub fn stands_still(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn goes_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.process.id() as i32), signal).during(|| signal.to_string())
    }

    /// SIGTERM; returns when it has ended.
    pub fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        until("bulkhead-bfd ends", START, || Ok(self.process.try_wait()?)).map(drop)
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection to the process; what it asked for goes on when it is dropped.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    pub fn say(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request).map_err(json)?;
        line.push(b'\n');
        Ok(self.stream.write_all(&line)?)
    }

    pub fn hear(&mut self) -> Result<Report> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(json)
    }

    /// Until this says what it is looked for.
    pub fn hear_of<T>(&mut self, mut wanted: impl FnMut(&Report) -> Option<T>) -> Result<T> {
        // A client hears nothing but changes and answers: bounded by the read's timeout, and by this.
        for _ in 0..1000 {
            if let Some(found) = wanted(&self.hear()?) {
                return Ok(found);
            }
        }
        unmet("1000 reports, and not the one")
    }

    pub fn configure(&mut self, sessions: &[Wanted]) -> Result<Vec<SessionInfo>> {
        self.say(&Request::Configure(sessions.to_vec()))?;
        self.sessions()
    }

    pub fn list(&mut self) -> Result<Vec<SessionInfo>> {
        self.say(&Request::List)?;
        self.sessions()
    }

    fn sessions(&mut self) -> Result<Vec<SessionInfo>> {
        self.hear_of(|report| match report {
            Report::Sessions { sessions, .. } => Some(Ok(sessions.clone())),
            Report::Refused { message } => Some(Err(Error::Unmet(message.clone()))),
            Report::Changed { .. } => None,
        })?
    }
}

fn json(source: serde_json::Error) -> Error {
    Error::Json { what: "a line of bulkhead-bfd".into(), source }
}
