//! The task of one neighbour: waits, feeds [`Neighbour`], and does what its effects say.

use super::bmp::{Monitored, Stations};
use super::config::{PeerConfig, Remote, SpeakerConfig};
use super::learned::Member;
use super::links::{Alive, LinkEvent, Links};
use super::mailbox::{Command, Decision, Inbox};
use super::record::History;
use super::socket::{self, Options};
use super::speaker::unpoisoned;
use super::status::{self, PeerStatus};
use super::unnumbered::{Located, Search};
use crate::fsm::{ConnId, Connection, Input, Negotiated, PeerError, StateName, Stop};
use crate::neighbour::{Effect, Intent, Neighbour, Note};
use crate::rib::Source;
use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Of a session: BFD of its peer may not have begun anew.
const YOUNG: Duration = Duration::from_secs(5);

/// Octets of UPDATEs that may wait in one connection's output.
const OUTPUT_LIMIT: usize = 64 * 1024;

type Dial = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Until when those who were taken out of the configuration may keep what was announced to them.
pub(super) type Left = Arc<Mutex<BTreeMap<String, std::time::Instant>>>;

/// What is announced to everybody, and what all of them tell.
pub(super) struct Orders {
    pub intent: watch::Receiver<Intent>,
    pub begun: Arc<watch::Sender<u64>>,
    pub alive: Alive,
    pub left: Left,
    /// Nobody has announced anything to the peer so far.
    pub is_a_stranger: bool,
}

pub(super) struct Task {
    speaker: SpeakerConfig,
    config: PeerConfig,
    neighbour: Neighbour,
    links: Links,
    dial: Option<Dial>,
    inbox: Inbox,
    orders: Orders,
    flushes: Vec<oneshot::Sender<()>>,
    learned: Member,
    /// Whom what is learned is from: this session, or the last one while the peer restarts.
    source: Option<Arc<Source>>,
    /// Of a peer that is the router of an interface.
    search: Option<Search>,
    monitored: Monitored,
    history: History,
    epoch: Instant,
    next_id: u64,
    leaving: bool,
    /// The connection of the last session.
    session: Option<ConnId>,
}

/// What woke the task.
enum Wake {
    Command(Command),
    Decision(Decision),
    Dialled(io::Result<TcpStream>),
    Link(LinkEvent),
    /// Collectors of BMP came, went, or want a report.
    Collectors,
    /// The router of the interface was found, or is elsewhere.
    Located,
    Other,
    /// The speaker is gone.
    Orphaned,
}

impl Task {
    pub fn new(
        speaker: &SpeakerConfig,
        config: PeerConfig,
        inbox: Inbox,
        mut orders: Orders,
        learned: Member,
        search: Option<Search>,
        stations: &Stations,
    ) -> Task {
        orders.intent.mark_changed();
        let mut neighbour = Neighbour::new(config.settings(speaker), config.policy(speaker), Duration::ZERO);
        if orders.is_a_stranger {
            neighbour.is_a_stranger();
        }
        Task {
            neighbour,
            speaker: speaker.clone(),
            config,
            links: Links::new(orders.alive.clone()),
            dial: None,
            inbox,
            orders,
            flushes: Vec::new(),
            learned,
            source: None,
            search,
            monitored: Monitored::new(stations),
            history: History::default(),
            epoch: Instant::now(),
            next_id: 1,
            leaving: false,
            session: None,
        }
    }

    /// Ends when told to leave, or with the speaker.
    pub async fn run(mut self) {
        if self.config.shutdown.is_none() {
            self.feed(Input::Start);
        }
        while !self.leaving {
            self.advertise();
            self.tell_learned();
            let wake = self.wait().await;
            match wake {
                Wake::Command(command) => self.command(command),
                Wake::Decision(decision) => self.decided(decision),
                Wake::Orphaned => return,
                Wake::Dialled(Ok(stream)) => self.adopt(stream, Input::Connected),
                Wake::Dialled(Err(error)) => {
                    self.search.iter().for_each(Search::doubt);
                    self.feed(Input::ConnectFailed(error.kind()));
                }
                Wake::Link(LinkEvent::Received(id, bytes)) => self.received(id, bytes),
                Wake::Link(LinkEvent::Closed(id, kind)) => {
                    self.feed(Input::Closed(id, kind));
                    self.monitored.close(id);
                }
                Wake::Link(LinkEvent::Told(id)) => self.told(id),
                Wake::Link(LinkEvent::Sent { id, all }) => self.feed(Input::Written { id, all }),
                Wake::Collectors => self.monitored.attend(&self.neighbour),
                // An attempt that waits for the router to be found, or is to where it was before, begins anew.
                Wake::Located if self.dial.is_some() => self.connect(),
                Wake::Located | Wake::Other => {}
            }
            // After what was received: a process that was held up must not take that for silence.
            if self.neighbour.deadline().is_some_and(|deadline| deadline <= self.now()) {
                self.feed(Input::TimerTick);
            }
        }
        for id in self.links.told().await {
            self.told(id);
        }
        let Some(until) = self.neighbour.kept_until(self.now()) else { return };
        let until = (self.epoch + until).into_std();
        let mut left = unpoisoned(&self.orders.left);
        let known = left.entry(self.config.name).or_insert(until);
        *known = until.max(*known);
    }

    /// What was said at the end of this connection arrived.
    fn told(&mut self, id: ConnId) {
        if self.session == Some(id) {
            self.neighbour.told();
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    async fn wait(&mut self) -> Wake {
        let deadline = self.neighbour.deadline().map(|deadline| self.epoch + deadline);
        let dialled = async {
            match &mut self.dial {
                Some(dial) => dial.await,
                None => pending().await,
            }
        };
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        let located = async {
            match &mut self.search {
                Some(search) => search.changed().await,
                None => pending().await,
            }
        };
        let wake = tokio::select! {
            biased;
            decision = self.inbox.decisions.recv() => decision.map_or(Wake::Orphaned, Wake::Decision),
            command = self.inbox.commands.recv() => command.map_or(Wake::Orphaned, Wake::Command),
            () = located => Wake::Located,
            result = dialled => Wake::Dialled(result),
            event = self.links.next() => Wake::Link(event),
            changed = self.orders.intent.changed() => match changed {
                Ok(()) => {
                    self.orders.intent.mark_changed();
                    Wake::Other
                }
                Err(_) => Wake::Orphaned,
            },
            () = self.monitored.changed() => Wake::Collectors,
            () = timer => Wake::Other,
        };
        if matches!(wake, Wake::Dialled(_)) {
            self.dial = None;
        }
        wake
    }

    /// Hands out what is due, as far as the output has room.
    fn advertise(&mut self) {
        if self.orders.intent.has_changed().unwrap_or(false) {
            let intent = self.orders.intent.borrow_and_update().clone();
            let effects = self.neighbour.set_intent(intent);
            self.perform(effects);
        }
        let room = OUTPUT_LIMIT.saturating_sub(self.links.backlog());
        let effects = self.neighbour.advertise(self.now(), room);
        self.perform(effects);
        if self.neighbour.is_settled() && self.links.backlog() == 0 {
            for flush in self.flushes.drain(..) {
                // Who asked may have given up.
                let _ = flush.send(());
            }
        }
    }

    fn command(&mut self, command: Command) {
        // An answer that nobody waits for any more may be lost.
        match command {
            Command::Incoming(stream) => self.incoming(stream),
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Routes(direction, limit, reply) => {
                let _ = reply.send(status::routes(direction, &self.config.name, &self.neighbour, limit));
            }
            Command::Prefix(prefix, reply) => {
                let _ = reply.send(status::prefix_at(self.status(), &self.neighbour, &prefix));
            }
            Command::Flush(reply) => self.flushes.push(reply),
        }
    }

    fn decided(&mut self, decision: Decision) {
        match decision {
            Decision::Deconfigure => {
                self.feed(Input::Stop(Stop::Deconfigured));
                self.leaving = true;
            }
            Decision::PathDown { independent, silent } => {
                let independent = independent || (silent && self.has_stood());
                self.feed(Input::PathDown { independent });
            }
            Decision::Reconfigure(config) => self.reconfigure(*config),
        }
    }

    fn status(&self) -> PeerStatus {
        let is_away = self.neighbour.peer().state() != StateName::Established;
        PeerStatus {
            away: is_away.then(|| self.history.unchanged(self.now())),
            messages_sent: self.monitored.sent,
            messages_received: self.monitored.received,
            history: self.history.changes(self.now()),
            ups: self.history.ups(),
            ..PeerStatus::of(&self.config, &self.neighbour, self.located().as_ref(), self.now())
        }
    }

    fn reconfigure(&mut self, config: PeerConfig) {
        let before = std::mem::replace(&mut self.config, config);
        // A limit that was passed holds no longer.
        let limited = matches!(self.neighbour.peer().last_error(), Some(PeerError::TooManyPrefixes { .. }));
        self.neighbour.set_timers(self.config.timers());
        let effects = self.neighbour.set_policy(self.now(), self.config.policy(&self.speaker));
        self.perform(effects);
        let other_limit = self.config.prefix_limit != before.prefix_limit;
        match &self.config.shutdown {
            Some(text) if before.shutdown.is_none() => self.feed(Input::Stop(Stop::Shutdown(text.clone()))),
            None if before.shutdown.is_some() || (limited && other_limit) => self.feed(Input::Start),
            _ => {}
        }
    }

    fn incoming(&mut self, stream: TcpStream) {
        let ttl = self.config.ttl;
        let checked = stream.peer_addr().and_then(|from| socket::set_ttl(&stream, from.ip(), ttl));
        match checked.and_then(|()| socket::is_near(&stream, ttl)) {
            Ok(true) => self.adopt(stream, Input::Incoming),
            Ok(false) => {
                tracing::info!(peer = %self.config.name, "refused a connection: it began farther away than the peer may be, or nobody knows from where");
                socket::refuse(stream);
            }
            Err(error) => tracing::debug!(peer = %self.config.name, %error, "connection lost at once"),
        }
    }

    /// Tells what is learned now of what has changed.
    fn tell_learned(&mut self) {
        let changed = self.neighbour.take_learned_changes();
        let Some(source) = self.source.as_ref().filter(|_| !changed.is_empty()) else { return };
        let now = changed.into_iter().map(|prefix| (prefix, self.neighbour.learned(&prefix)));
        self.learned.tell(source, now);
    }

    fn source(&self, negotiated: &Negotiated) -> Source {
        Source {
            peer: self.config.name.clone(),
            external: negotiated.external,
            router_id: negotiated.peer_router_id,
            address: self.peer_address().map_or(self.config.address(), |address| address.ip()),
            interface: match self.peer_address() {
                Some(SocketAddr::V6(address)) if address.scope_id() != 0 => Some(address.scope_id()),
                _ => None,
            },
        }
    }

    fn adopt(&mut self, stream: TcpStream, input: fn(Connection) -> Input) {
        let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
        let (local, remote) = match ends {
            Ok(ends) => ends,
            Err(error) => {
                tracing::debug!(peer = %self.config.name, %error, "connection lost at once");
                self.feed(Input::ConnectFailed(ErrorKind::NotConnected));
                return;
            }
        };
        let id = ConnId(self.next_id);
        self.next_id += 1;
        self.links.add(id, stream);
        self.monitored.open(id, local, remote);
        self.feed(input(Connection { id, local: local.ip() }));
    }

    /// Absent: nobody can be dialled now.
    fn peer_address(&self) -> Option<SocketAddr> {
        match self.config.remote {
            Remote::Address(address) => Some(SocketAddr::new(address, self.config.port)),
            Remote::Range(_) => None,
            Remote::Interface(_) => self.located()?.socket_address(self.config.port).map(SocketAddr::V6),
        }
    }

    fn connect(&mut self) {
        let options = Options {
            from: self.config.local_address,
            ttl: self.config.ttl,
            password: self.config.password.clone(),
        };
        self.dial = Some(match self.peer_address() {
            Some(peer) => Box::pin(socket::dial(peer, options)),
            None => Box::pin(pending()),
        });
    }

    fn located(&self) -> Option<Located> {
        self.search.as_ref().map(Search::located)
    }

    fn feed(&mut self, input: Input) {
        let effects = self.neighbour.handle(self.now(), input);
        self.perform(effects);
    }

    fn received(&mut self, id: ConnId, bytes: Vec<u8>) {
        let updates = self.monitored.received(id, &bytes);
        let effects = self.neighbour.handle(self.now(), Input::Received(id, bytes));
        self.perform_of(Some(id), updates, effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        self.perform_of(None, Vec::new(), effects);
    }

    /// `updates`: what came on the connection `id`, as far as collectors want it.
    fn perform_of(&mut self, id: Option<ConnId>, updates: Vec<Vec<u8>>, effects: Vec<Effect>) {
        self.monitored.tell(id, updates, &effects);
        for effect in effects {
            match effect {
                Effect::Connect => {
                    if self.dial.is_some() {
                        // The former attempt was not answered.
                        self.search.iter().for_each(Search::doubt);
                    }
                    self.connect();
                }
                Effect::Send(id, bytes) => self.links.send(id, &bytes),
                Effect::Close(id) => self.links.close(id),
                Effect::Note(note) => {
                    if let Note::Up(negotiated) = &note {
                        self.source = Some(Arc::new(self.source(negotiated)));
                        self.session = self.neighbour.peer().session();
                        self.count_session();
                    }
                    self.log(&note);
                }
            }
        }
    }

    /// A peer that restarts closes its connection at once, whatever becomes of its BFD: silence on one that has stood for a while is
    /// the path's. A session that is young may have begun before the former process's BFD was missed.
    fn has_stood(&self) -> bool {
        let peer = self.neighbour.peer();
        peer.state() == StateName::Established && self.now().saturating_sub(peer.since()) >= YOUNG
    }

    fn count_session(&mut self) {
        let neighbour = &mut self.neighbour;
        self.orders.begun.send_modify(|begun| {
            *begun += 1;
            neighbour.began(*begun);
        });
    }

    fn log(&mut self, note: &Note) {
        match note {
            Note::Up(_) => self.history.note(self.now(), None),
            Note::Down(down) => self.history.note(self.now(), Some(down.reason.clone())),
            _ => {}
        }
        let peer = self.config.name.as_str();
        match note {
            Note::Up(negotiated) => {
                let graceful_restart = negotiated.restart.is_some();
                let hold_time = negotiated.hold_time;
                tracing::info!(peer, hold_time, graceful_restart, "session up");
            }
            Note::Down(down) => {
                tracing::warn!(peer, reason = %down.reason, "session down");
            }
            Note::Malformed(why) => {
                tracing::warn!(peer, %why, "malformed UPDATE: its routes count as withdrawn");
            }
            Note::ManyPrefixes(many) => tracing::warn!(peer, "{many}"),
            Note::Withheld(why) => tracing::warn!(peer, "{why}"),
        }
    }
}
