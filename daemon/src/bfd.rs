//! The daemon's end of `bulkhead-bfd`: keeps the sessions there equal to those that peers want, and tells the speaker when a
//! path has died.
//!
//! ```text
//!   Speaker ──Paths──▶ task ⇄ lines of JSON ⇄ bulkhead-bfd
//!           ◀──path_down─┘ └──View──▶ status
//! ```
//!
//! Nothing is said before [`Bfd::follow`]: what a daemon before us asked for goes on until we know better; and so does the
//! session with the router of an interface until it is known who that is. The task never
//! waits for the node; without the process BGP goes on, and [`Bfd::error`] says so.

use bulkhead_api::messages::BgpBfdInfo;
use bulkhead_bgp::{
    Paths, Speaker,
    bfd::{
        Diagnostic, Key, State,
        control::{Report, Request, SessionInfo, Wanted as Wish},
        session::Change,
    },
};
use std::{
    collections::BTreeMap,
    future::pending,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

/// Between two attempts to reach the process; doubled with each.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often intervals and states are asked for; what changes is told at once.
const POLL: Duration = Duration::from_secs(5);
/// A process that is silent for so long has stopped.
const SILENCE: Duration = Duration::from_secs(15);
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Who says what is wanted, and is told of paths that died; nobody wants anything where there is none.
#[derive(Clone, Default)]
struct Wanted(Option<(Speaker, watch::Receiver<Paths>)>);

impl Wanted {
    fn paths(&self) -> Paths {
        self.0.as_ref().map(|(_, paths)| paths.borrow().clone()).unwrap_or_default()
    }

    /// What is known from then on.
    fn read(&mut self) -> Paths {
        self.0.as_mut().map(|(_, paths)| paths.borrow_and_update().clone()).unwrap_or_default()
    }

    /// Waits for what has not been read yet. May be dropped and called again.
    async fn changed(&mut self) {
        if let Some((_, paths)) = &mut self.0
            && paths.changed().await.is_ok()
        {
            return;
        }
        pending().await
    }
}

/// What is known of the process.
#[derive(Clone, Debug, Default, PartialEq)]
struct View {
    sessions: BTreeMap<Key, SessionInfo>,
    error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("bulkhead-bfd does not answer on {path} ({source}): does it run on this node?")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the connection to bulkhead-bfd was lost: {0}")]
    Lost(#[from] io::Error),
    #[error("bulkhead-bfd has said nothing for {} s", SILENCE.as_secs())]
    Silent,
    #[error("bulkhead-bfd says what is no report ({0}): is it of another version?")]
    Report(#[from] serde_json::Error),
}

/// Its task ends with it; the sessions go on.
pub struct Bfd {
    wanted: watch::Sender<Option<Wanted>>,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
}

impl Bfd {
    pub fn start(socket: PathBuf) -> Self {
        let (wanted, to_task) = watch::channel(None);
        let (from_task, view) = watch::channel(View::default());
        let client = Client { socket, wanted: to_task, view: from_task };
        Self { wanted, view, task: tokio::spawn(client.run()) }
    }

    /// From now on this speaker says what is wanted.
    pub fn follow(&self, speaker: &Speaker) {
        self.wanted.send_replace(Some(Wanted(Some((speaker.clone(), speaker.paths())))));
    }

    /// Nothing is wanted any more.
    pub fn nobody(&self) {
        self.wanted.send_replace(Some(Wanted::default()));
    }

    /// Why what is wanted is not there.
    pub fn error(&self) -> Option<String> {
        let wants = self.wanted.borrow().as_ref().is_some_and(|wanted| wanted.paths() != Paths::default());
        self.view.borrow().error.clone().filter(|_| wants)
    }

    pub fn sessions(&self) -> Sessions {
        Sessions(self.view.clone())
    }
}

/// What `bulkhead-bfd` tells.
#[derive(Clone)]
pub struct Sessions(watch::Receiver<View>);

impl Sessions {
    pub fn info(&self, session: &Key) -> BgpBfdInfo {
        let view = self.0.borrow();
        match (&view.error, view.sessions.get(session)) {
            (None, Some(session)) => info_of(session),
            (error, _) => BgpBfdInfo {
                state: "Unknown".into(),
                detection_time_millis: None,
                transmit_interval_millis: None,
                reason: error.clone(),
            },
        }
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn info_of(session: &SessionInfo) -> BgpBfdInfo {
    let reason = match session.fell {
        _ if session.state == State::Up => None,
        Some(fell) if fell.neighbor_admin_down => Some("the router has stopped BFD on purpose".into()),
        Some(fell) => Some(fell.diagnostic.to_string()),
        None => Some("the router has not answered yet".into()),
    };
    BgpBfdInfo {
        state: session.state.to_string(),
        detection_time_millis: Some(session.detection_time_micros / 1000),
        transmit_interval_millis: session.transmit_interval_micros.map(|micros| micros / 1000),
        reason,
    }
}

struct Client {
    socket: PathBuf,
    wanted: watch::Receiver<Option<Wanted>>,
    view: watch::Sender<View>,
}

impl Client {
    /// Ends with the handle.
    async fn run(mut self) {
        if self.wanted.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut wait = FIRST_WAIT;
        loop {
            let error = match connect(&self.socket).await {
                Ok(stream) => {
                    wait = FIRST_WAIT;
                    match self.serve(stream).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.failed(&error.to_string());
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// `Ok`: nobody wants anything any more.
    async fn serve(&mut self, stream: UnixStream) -> Result<(), ClientError> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll.reset();
        let mut told = None;
        let mut heard = Instant::now();
        let mut knows = false;
        // Which sessions there are, before the whole set is said.
        say(&mut writer, &Request::List).await?;
        loop {
            let mut speaker = self.wanted.borrow_and_update().clone().unwrap_or_default();
            let there: Vec<Key> = self.view.borrow().sessions.keys().copied().collect();
            let wanted = speaker.read().wanted(there);
            if knows && told.as_ref() != Some(&wanted) {
                let wishes = wanted.iter().map(|(key, settings)| Wish::new(*key, *settings)).collect();
                say(&mut writer, &Request::Configure(wishes)).await?;
                told = Some(wanted);
            }
            tokio::select! {
                line = next(&mut lines) => {
                    heard = Instant::now();
                    let report = serde_json::from_str(&line?)?;
                    knows |= matches!(report, Report::Sessions { .. });
                    self.hear(report);
                }
                () = speaker.changed() => {}
                changed = self.wanted.changed() => if changed.is_err() {
                    return Ok(());
                },
                _ = poll.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(ClientError::Silent);
                    }
                    say(&mut writer, &Request::List).await?;
                }
            }
        }
    }

    fn hear(&self, report: Report) {
        match report {
            Report::Sessions { sessions, .. } => {
                let now: BTreeMap<Key, SessionInfo> = sessions.into_iter().map(|s| (s.key, s)).collect();
                for (key, change) in missed(&self.view.borrow().sessions, &now) {
                    self.fell(&key, &change);
                }
                let reached = self.view.borrow().error.is_some();
                self.view.send_replace(View { sessions: now, error: None });
                if reached {
                    info!("bulkhead-bfd answers");
                }
            }
            Report::Changed { session, change } => {
                self.view.send_modify(|view| {
                    if let Some(known) = view.sessions.get_mut(&session) {
                        known.state = change.to;
                        known.diagnostic = change.diagnostic;
                        if change.from == State::Up {
                            known.fell = Some(change);
                        }
                    }
                });
                self.fell(&session, &change);
            }
            Report::Refused { message } => {
                self.failed(&format!("bulkhead-bfd refuses the sessions: {message}"));
            }
        }
    }

    fn fell(&self, session: &Key, change: &Change) {
        if !change.is_path_down() {
            return;
        }
        warn!(peer = %session.peer, diagnostic = %change.diagnostic, "BFD: the path to the router is dead");
        let wanted = self.wanted.borrow().clone().unwrap_or_default();
        if let Some((speaker, _)) = wanted.0 {
            let silent = change.diagnostic == Diagnostic::DETECTION_TIME_EXPIRED;
            speaker.path_down(session, change.neighbor_control_plane_independent, silent);
        }
    }

    /// The sessions as they were last known stay in the view: a fall that is told of later is then seen as one.
    fn failed(&self, error: &str) {
        let wants = self.wanted.borrow().as_ref().is_some_and(|wanted| wanted.paths() != Paths::default());
        let new = self.view.send_if_modified(|view| {
            let differs = view.error.as_deref() != Some(error);
            view.error = Some(error.to_owned());
            differs
        });
        if new && wants {
            warn!("{error}; BGP goes on without BFD");
        }
    }
}

/// What happened while the connection was lost. A session of a process that began anew never fell.
fn missed(before: &BTreeMap<Key, SessionInfo>, now: &BTreeMap<Key, SessionInfo>) -> Vec<(Key, Change)> {
    let was_up = |key: &Key| before.get(key).is_some_and(|session| session.state == State::Up);
    let fallen = now.iter().filter(|(key, session)| was_up(key) && session.state != State::Up);
    fallen.filter_map(|(key, session)| Some((*key, session.fell?))).collect()
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let failed = |source| ClientError::Connect { path: socket.into(), source };
    UnixStream::connect(socket).await.map_err(failed)
}

async fn next(lines: &mut tokio::io::Lines<BufReader<OwnedReadHalf>>) -> io::Result<String> {
    lines.next_line().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

async fn say(writer: &mut OwnedWriteHalf, request: &Request) -> Result<(), ClientError> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let written = timeout(WRITE_LIMIT, writer.write_all(&line)).await;
    Ok(written.map_err(|_| ClientError::Silent)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(state: State, fell: Option<Change>) -> BTreeMap<Key, SessionInfo> {
        let peer = std::net::IpAddr::from([192, 0, 2, 1]);
        let key = Key { peer, local: None, ifindex: None, multihop: None };
        let info = SessionInfo {
            key,
            state,
            diagnostic: Diagnostic::NONE,
            detection_time_micros: 900_000,
            transmit_interval_micros: None,
            fell,
        };
        BTreeMap::from([(key, info)])
    }

    fn expired() -> Change {
        Change {
            from: State::Up,
            to: State::Down,
            diagnostic: Diagnostic::DETECTION_TIME_EXPIRED,
            neighbor_admin_down: false,
            neighbor_control_plane_independent: true,
            neighbor_began_anew: false,
        }
    }

    #[test]
    fn what_fell_while_nobody_listened_is_noticed_once() {
        let (up, down) = (session(State::Up, None), session(State::Down, Some(expired())));
        let changes: Vec<Change> = missed(&up, &down).into_iter().map(|(_, change)| change).collect();
        assert_eq!(changes, [expired()]);
        assert_eq!(missed(&down, &down), []);
    }

    #[test]
    fn a_session_that_begins_anew_or_is_up_has_not_fallen() {
        let up = session(State::Up, None);
        assert_eq!(missed(&up, &session(State::Down, None)), []);
        assert_eq!(missed(&up, &session(State::Up, Some(expired()))), []);
        assert_eq!(missed(&BTreeMap::new(), &session(State::Down, Some(expired()))), []);
    }
}
