//! Clients: what they want goes to the packet thread, what happens goes to all of them.

use super::held_up::{HeldUp, HoldUps};
use super::packets::{Command, Packets};
use crate::bfd::Key;
use crate::bfd::control::{Report, Request, SessionInfo, Wanted};
use crate::bfd::session::Settings;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A longer line is no request of ours.
const LINE_LIMIT: u64 = 1 << 20;
/// A client that does not read is let go.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// Where nothing is to be said.
const IDLE: Duration = Duration::from_secs(3600);

pub enum Event {
    Joined(u64, UnixStream),
    Said(u64, String),
    Left(u64),
    /// From the packet thread.
    Listed(Option<u64>, Vec<SessionInfo>, u64),
    CannotSend(Key, std::io::Error),
    HeldUp(Duration),
    Changed(Key, crate::bfd::session::Change),
    /// SIGTERM: told to the packet thread, which answers with `Ended`.
    Stop,
    Ended,
}

pub fn accept(listener: &UnixListener, hub: &Sender<Event>) {
    for (id, stream) in listener.incoming().enumerate() {
        let Ok(stream) = stream else { continue };
        let (id, hub) = (id as u64, hub.clone());
        thread::spawn(move || {
            // Without the hub the process is ending.
            let _ = serve(id, &stream, &hub);
            let _ = hub.send(Event::Left(id));
        });
    }
}

fn serve(id: u64, stream: &UnixStream, hub: &Sender<Event>) -> std::io::Result<()> {
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    hub.send(Event::Joined(id, stream.try_clone()?)).map_err(gone)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE_LIMIT).read_line(&mut line)? == 0 {
            return Ok(());
        }
        hub.send(Event::Said(id, line)).map_err(gone)?;
    }
}

/// Ends when the sessions have.
pub fn run(events: &Receiver<Event>, packets: &Packets) {
    let mut clients: BTreeMap<u64, UnixStream> = BTreeMap::new();
    let mut held_up = HeldUp::default();
    loop {
        let now = Instant::now();
        held_up.take(now).iter().for_each(warn);
        let event = match events.recv_timeout(held_up.due(now).unwrap_or(IDLE)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        match event {
            Event::Joined(id, stream) => {
                clients.insert(id, stream);
            }
            Event::Left(id) => {
                clients.remove(&id);
            }
            Event::Said(id, line) => match request(&line) {
                Ok(Request::List) => packets.tell(Command::List(id)),
                Ok(Request::Configure(wanted)) => match wishes(&wanted) {
                    Ok(wanted) => packets.tell(Command::Configure(wanted)),
                    Err(message) => tell(&mut clients, Some(id), &Report::Refused { message }),
                },
                Err(message) => tell(&mut clients, Some(id), &Report::Refused { message }),
            },
            Event::Listed(to, sessions, discarded) => {
                tell(&mut clients, to, &Report::Sessions { sessions, discarded });
            }
            Event::CannotSend(session, error) => tracing::warn!(peer = %session.peer, %error, "cannot send"),
            Event::HeldUp(late) => held_up.add(late),
            Event::Changed(session, change) => {
                let (from, to) = (change.from, change.to);
                tracing::info!(peer = %session.peer, %from, %to, diagnostic = %change.diagnostic, "session changed");
                tell(&mut clients, None, &Report::Changed { session, change });
            }
            Event::Stop => packets.tell(Command::Stop),
            Event::Ended => break,
        }
    }
    held_up.rest().iter().for_each(warn);
}

fn warn(held_up: &HoldUps) {
    let HoldUps { times, worst, total } = held_up;
    tracing::warn!(
        times,
        worst_ms = worst.as_millis(),
        total_ms = total.as_millis(),
        "held up: the machine or its host is too busy; neighbours are given as long"
    );
}

fn request(line: &str) -> Result<Request, String> {
    serde_json::from_str(line).map_err(|e| format!("not a request: {e}"))
}

fn wishes(wanted: &[Wanted]) -> Result<BTreeMap<Key, Settings>, String> {
    let wish = |w: &Wanted| match w.settings() {
        Ok(settings) => Ok((w.key, settings)),
        Err(e) => Err(format!("{}: {e}", w.key.peer)),
    };
    wanted.iter().map(wish).collect()
}

/// To one client or to all; who cannot take it is let go.
fn tell(clients: &mut BTreeMap<u64, UnixStream>, to: Option<u64>, report: &Report) {
    let Ok(mut line) = serde_json::to_vec(report) else { return };
    line.push(b'\n');
    clients.retain(|id, stream| {
        if to.is_some_and(|to| to != *id) || stream.write_all(&line).is_ok() {
            return true;
        }
        // Its reader ends, too.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        false
    });
}
