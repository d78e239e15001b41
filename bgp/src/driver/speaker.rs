//! [`Speaker`]: the handle that the daemon holds.

use super::bmp::{Station, StationStatus, Stations};
use super::config::{Password, PeerConfig, Remote, SpeakerConfig};
use super::learned::{Learned, LearnedFeed, LearnedRoutes};
use super::mailbox::{Command, Decision, Mailbox};
use super::paths::Paths;
use super::status::{Direction, PeerStatus, PrefixAtPeer, Routes};
use super::table::{Former, PeerHandle, PeerTable, Table, holds};
use super::task::{Left, Orders, Task};
use super::unnumbered::{Located, Search};
use super::{listener, members, socket};
use crate::bfd;
use crate::export::RouteAttributes;
use crate::neighbour::Intent;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

#[derive(Debug, Error)]
pub enum SpeakerError {
    #[error("{address} is taken by another process: is another BGP daemon running on this node?")]
    PortTaken { address: SocketAddr, source: io::Error },
    #[error("not allowed to listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE")]
    NotAllowed { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// How long [`Speaker::flush`] waits for peers that do not read.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Of those who connect out of ranges.
const STRANGERS: usize = 16;

/// A running speaker; clones are handles of the same one. It stops when told to or with its last handle,
/// both times without NOTIFICATION.
#[derive(Clone, Debug)]
pub struct Speaker {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    config: SpeakerConfig,
    pub started: Instant,
    runtime: Handle,
    announcing: Mutex<Announcing>,
    intent: watch::Sender<Intent>,
    /// How many sessions have begun, of all peers together.
    begun: Arc<watch::Sender<u64>>,
    paths: watch::Sender<Paths>,
    pub peers: PeerTable,
    pub learned: Learned,
    stations: Stations,
    /// What listens, and what looks after members.
    listeners: Mutex<Vec<JoinHandle<()>>>,
    /// Seen by all that sends something to a peer.
    alive: watch::Sender<()>,
    left: Left,
    /// The listeners' sockets, for the passwords of peers that connect.
    sockets: Mutex<Vec<Arc<TcpListener>>>,
}

/// What the caller said.
#[derive(Debug, Default)]
struct Announcing {
    routes: Arc<BTreeMap<IpNetwork, RouteAttributes>>,
    own: Arc<BTreeSet<IpNetwork>>,
    initial_complete: bool,
    verified: u64,
}

impl Announcing {
    fn intent(&self) -> Intent {
        let Self { routes, own, initial_complete, verified } = self;
        let (routes, own) = (routes.clone(), own.clone());
        Intent { routes, own, initial_complete: *initial_complete, verified: *verified }
    }
}

impl Speaker {
    /// Listens, with no peers yet. An IP version that this host does not have is passed over.
    pub async fn start(config: SpeakerConfig) -> Result<Speaker, SpeakerError> {
        let sockets: Vec<Arc<TcpListener>> = bind_all(&config.listen)?.into_iter().map(Arc::new).collect();
        let peers = PeerTable::default();
        peers.lock().restart_time = Duration::from_secs(config.restart_time.into());
        peers.lock().begins = true;
        let (strangers, unknown) = mpsc::channel(STRANGERS);
        let accept = |socket: &Arc<TcpListener>| {
            tokio::spawn(listener::run(socket.clone(), peers.clone(), strangers.clone()))
        };
        let listeners = Mutex::new(sockets.iter().map(accept).collect());
        let inner = Inner {
            config,
            started: Instant::now(),
            runtime: Handle::current(),
            announcing: Mutex::default(),
            intent: watch::Sender::default(),
            begun: Arc::default(),
            paths: watch::Sender::default(),
            peers,
            learned: Learned::default(),
            stations: Stations::default(),
            listeners,
            alive: watch::Sender::new(()),
            left: Left::default(),
            sockets: Mutex::new(sockets),
        };
        let inner = Arc::new(inner);
        let begun = inner.begun.subscribe();
        unpoisoned(&inner.listeners).extend([
            tokio::spawn(members::welcome(Arc::downgrade(&inner), unknown)),
            tokio::spawn(members::look_after(Arc::downgrade(&inner), begun)),
        ]);
        Ok(Speaker { inner })
    }

    /// The whole set of peers. Those that are unchanged keep their session, and so do those of which only
    /// what a session can go on under has changed; others start anew, without NOTIFICATION; those that are
    /// gone are told so and drop our routes, if they hear it.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        let mut wanted: BTreeMap<String, PeerConfig> = BTreeMap::new();
        for config in peers {
            wanted.insert(config.name.clone(), config);
        }
        let (ranges, wanted): (BTreeMap<_, _>, BTreeMap<_, _>) =
            wanted.into_iter().partition(|(_, config)| matches!(config.remote, Remote::Range(_)));
        let ranges: Vec<PeerConfig> = ranges.into_values().collect();
        let mut table = self.inner.peers.lock();
        self.inner.set_passwords(&mut table, &wanted.values().chain(&ranges).cloned().collect::<Vec<_>>());
        let differs = |name: &String, peer: &mut PeerHandle| {
            let member = || {
                let range = ranges.iter().find(|range| holds(range, peer.config.address()))?;
                Some(range.member(peer.config.address())).filter(|member| member.name == *name)
            };
            let keeps = match wanted.get(name).cloned().or_else(member) {
                Some(config) => peer.keep(config),
                None => {
                    peer.mailbox.decide(Decision::Deconfigure);
                    false
                }
            };
            !keeps
        };
        let gone: Vec<(String, PeerHandle)> = table.peers.extract_if(.., differs).collect();
        table.leaving.retain(|task| !task.is_finished());
        table.ranges = ranges;
        for (name, peer) in gone {
            self.inner.learned.forget(&name);
            table.goes(&peer, Instant::now());
            table.leaving.push(peer.task);
        }
        let Table { expected, ranges, .. } = &mut *table;
        let is_there = |former: &Former| {
            let of_name = wanted.get(&former.name).or(ranges.iter().find(|range| range.name == former.name));
            of_name.is_some_and(|config| config.remote.to_string() == former.remote)
        };
        expected.retain(|former| !is_there(former));
        for (name, config) in wanted {
            table.peers.entry(name).or_insert_with(|| Inner::spawn(&self.inner, config, false));
        }
        self.inner.tell_paths(&table);
    }

    /// The whole set that is to be announced; peers get the difference to what they were sent.
    pub fn announce(&self, routes: BTreeMap<IpNetwork, RouteAttributes>) {
        let network = |(prefix, attributes): (IpNetwork, RouteAttributes)| {
            let prefix = IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(prefix);
            (prefix, attributes)
        };
        let routes = Arc::new(routes.into_iter().map(network).collect());
        self.change(|announcing| announcing.routes = routes);
    }

    /// What is this node's, announced or not: neither it nor a part of it is learned, which would lead away from our own.
    pub fn protect(&self, own: BTreeSet<IpNetwork>) {
        self.change(|announcing| announcing.own = Arc::new(own));
    }

    /// How many sessions have begun so far, of all peers together. In a new one, exclusive routes wait for
    /// [`Self::verified`].
    pub fn sessions_begun(&self) -> watch::Receiver<u64> {
        self.inner.begun.subscribe()
    }

    /// When so many sessions had begun, all exclusive routes that are announced were found to be ours.
    pub fn verified(&self, begun: u64) {
        self.change(|announcing| announcing.verified = begun);
    }

    /// What was announced so far holds all that an earlier process announced and that shall stay: after a
    /// restart, peers may drop the rest.
    pub fn initial_routes_complete(&self) {
        self.change(|announcing| announcing.initial_complete = true);
    }

    /// Returns when all that was to be announced or withdrawn went out, or after 5 s without a peer that reads it.
    pub async fn flush(&self) {
        // Who has not answered by then does not read.
        let _ = timeout(FLUSH_LIMIT, self.ask(Command::Flush)).await;
    }

    /// The collectors of BMP, all of them. Those that stay keep their session. To be called inside the runtime.
    pub fn set_stations(&self, stations: Vec<Station>) {
        self.inner.stations.set(stations);
    }

    pub fn stations(&self) -> Vec<StationStatus> {
        self.inner.stations.status()
    }

    /// What is wanted of BFD; changes when the router of an interface is found, or a session with somebody of a range begins.
    pub fn paths(&self) -> watch::Receiver<Paths> {
        self.inner.paths.subscribe()
    }

    /// BFD has found the path to these peers dead; `silent`: nothing was heard of the neighbour; `independent`: the neighbour had said that its BFD does not end with
    /// its control plane (C bit). An established session ends with Cease, BFD down (RFC 9384).
    pub fn path_down(&self, session: &bfd::Key, independent: bool, silent: bool) {
        let table = self.inner.peers.lock();
        let of = |peer: &&PeerHandle| {
            peer.config.bfd_session_at(peer.located).is_some_and(|(key, _)| key == *session)
        };
        for peer in table.peers.values().filter(of) {
            peer.mailbox.decide(Decision::PathDown { independent, silent });
        }
    }

    fn change(&self, change: impl FnOnce(&mut Announcing)) {
        let mut announcing = unpoisoned(&self.inner.announcing);
        change(&mut announcing);
        self.inner.intent.send_replace(announcing.intent());
    }

    /// By name.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        self.ask(Command::Status).await
    }

    /// Whether more may be learned without anything having changed at a peer: one has not said everything yet, of a range that
    /// is learned from nobody has come yet or somebody who was there before, or there is no peer at all.
    pub async fn is_learning(&self) -> bool {
        let waits = self.inner.peers.lock().waits_for_somebody();
        waits || self.peers().await.iter().any(|peer| peer.learning)
    }

    /// Who may keep routes of an earlier session with this node, or an earlier process: those cannot be withdrawn now.
    pub async fn kept_by(&self) -> BTreeSet<String> {
        let leaving = std::mem::take(&mut self.inner.peers.lock().leaving);
        for task in leaving {
            // One that was aborted has its peer's next one to tell.
            let _ = task.await;
        }
        let now = Instant::now();
        let peers = self.peers().await.into_iter().filter(|peer| peer.may_be_kept);
        let mut names: BTreeSet<String> = peers.map(|peer| peer.name).collect();
        names.extend(self.inner.peers.lock().kept_by(self.inner.started, self.inner.succeeds_for(), now));
        let mut left = unpoisoned(&self.inner.left);
        left.retain(|_, until| now < *until);
        names.extend(left.keys().cloned());
        names
    }

    /// The peers of an earlier process: what one of them may keep that is none now, nobody else can tell.
    pub fn expect_peers(&self, formers: Vec<Former>) {
        self.inner.peers.lock().expected = formers;
    }

    /// What the peers were sent and hold, or what they sent us, under no policy; of one peer, or of all. By prefix, and at
    /// most `limit`.
    pub async fn routes(&self, direction: Direction, peer: Option<&str>, limit: usize) -> Routes {
        let question = |reply| Command::Routes(direction, limit, reply);
        let mut all = Routes::default();
        for of_peer in self.ask_of(|name| peer.is_none_or(|peer| peer == name), question).await {
            all.total += of_peer.total;
            all.shown.extend(of_peer.shown);
        }
        // Stable: of one prefix by the peers' names.
        all.shown.sort_by_key(|route| route.prefix);
        all.shown.truncate(limit);
        all
    }

    /// What is to become of this prefix at each peer, by the peers' names.
    pub async fn prefix(&self, prefix: IpNetwork) -> Vec<PrefixAtPeer> {
        self.ask(|reply| Command::Prefix(prefix, reply)).await
    }

    /// The best next hops of what passed the peers' import filters.
    pub fn learned(&self) -> LearnedRoutes {
        self.inner.learned.best()
    }

    /// The same by its changes, beginning with everything.
    pub fn follow_learned(&self) -> LearnedFeed {
        self.inner.learned.follow()
    }

    /// Asks every peer's task at once and gathers the answers, in the order of names.
    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        self.ask_of(|_| true, question).await
    }

    async fn ask_of<T>(
        &self,
        whom: impl Fn(&str) -> bool,
        question: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> Vec<T> {
        let asked = |(name, peer): (&String, &PeerHandle)| whom(name).then(|| peer.mailbox.commands.clone());
        let queues: Vec<_> = self.inner.peers.lock().peers.iter().filter_map(asked).collect();
        let mut answers = Vec::new();
        for queue in queues {
            let (reply, answer) = oneshot::channel();
            if queue.send(question(reply)).await.is_ok() {
                answers.push(answer);
            }
        }
        let mut gathered = Vec::new();
        for answer in answers {
            // A task that ended meanwhile has nothing to say.
            gathered.extend(answer.await.ok());
        }
        gathered
    }

    /// Closes every connection without NOTIFICATION: peers keep the routes for the restart time. Who was told before that its session
    /// ends hears it, if it reads. The other handles of this speaker are of no use afterwards, but for what was wanted of BFD:
    /// that stays as it was, for its end would be a dead path to some routers.
    pub async fn stop(self) {
        let listeners = std::mem::take(&mut *unpoisoned(&self.inner.listeners));
        // Other handles may live on: they must not keep the ports.
        unpoisoned(&self.inner.sockets).clear();
        // First who looks after the peers: it must not see that there are none.
        end(listeners).await;
        let peers = std::mem::take(&mut self.inner.peers.lock().peers);
        end(peers.into_values().map(|peer| peer.task)).await;
        // Who tells somebody its end gives up by itself, after a second.
        self.inner.alive.closed().await;
        self.inner.stations.stop().await;
    }
}

impl Inner {
    /// For so long this process has succeeded an earlier one.
    pub fn succeeds_for(&self) -> Option<Duration> {
        self.config.restarting.then(|| self.started.elapsed())
    }

    pub fn spawn(this: &Arc<Inner>, config: PeerConfig, is_a_stranger: bool) -> PeerHandle {
        let (mailbox, inbox) = Mailbox::new();
        let _inside = this.runtime.enter();
        let search = config.interface().map(|interface| {
            let (speaker, peer) = (Arc::downgrade(this), config.name.clone());
            let commands = mailbox.commands.clone();
            Search::start(interface.to_owned(), move |located| {
                if let Some(speaker) = speaker.upgrade() {
                    speaker.located(&peer, &commands, located);
                }
            })
        });
        let orders = Orders {
            intent: this.intent.subscribe(),
            begun: this.begun.clone(),
            alive: this.alive.subscribe(),
            left: this.left.clone(),
            is_a_stranger,
        };
        let learned = this.learned.admit(&config.name);
        // A peer that begins anew because its parameters changed finds the routes that were announced in force.
        let preserved = this.config.forwarding_preserved || *this.begun.borrow() > 0;
        let speaker = SpeakerConfig { forwarding_preserved: preserved, ..this.config.clone() };
        let task = Task::new(&speaker, config.clone(), inbox, orders, learned, search, &this.stations);
        PeerHandle { config, mailbox, located: None, task: this.runtime.spawn(task.run()) }
    }

    /// From there connections are the peer's from now on, and its password is theirs.
    fn located(&self, peer: &str, commands: &mpsc::Sender<Command>, located: &Located) {
        let mut table = self.peers.lock();
        let Some(handle) =
            table.peers.get_mut(peer).filter(|peer| peer.mailbox.commands.same_channel(commands))
        else {
            return;
        };
        if handle.locate(located.socket_address(handle.config.port)) {
            handle.mailbox.decide(Decision::PathDown { independent: true, silent: false });
        }
        let all = table.peers.values().map(|peer| &peer.config).chain(&table.ranges).cloned();
        let all: Vec<PeerConfig> = all.collect();
        self.set_passwords(&mut table, &all);
        self.tell_paths(&table);
    }

    pub fn tell_paths(&self, table: &Table) {
        let paths = table.paths();
        self.paths.send_if_modified(|told| {
            let differs = *told != paths;
            *told = paths;
            differs
        });
    }

    /// Listening sockets must know the key before a connection begins.
    fn set_passwords(&self, table: &mut Table, peers: &[PeerConfig]) {
        let of = |config: &PeerConfig| match config.remote {
            Remote::Address(address) => Some((address, socket::host_length(address))),
            Remote::Range(range) => Some((range.network(), range.prefix())),
            Remote::Interface(_) => {
                let address = IpAddr::V6(*table.peers.get(&config.name)?.located?.ip());
                Some((address, socket::host_length(address)))
            }
        };
        let wanted: BTreeMap<(IpAddr, u8), &Password> =
            peers.iter().filter_map(|config| Some((of(config)?, config.password.as_ref()?))).collect();
        let gone: Vec<_> = table.passwords.iter().filter(|key| !wanted.contains_key(key)).copied().collect();
        let changes = gone.into_iter().map(|key| (key, None));
        let changes = changes.chain(wanted.iter().map(|(key, password)| (*key, Some(*password))));
        for ((address, length), password) in changes {
            for socket in &*unpoisoned(&self.sockets) {
                let other = |local: SocketAddr| local.is_ipv4() != address.is_ipv4();
                if socket.local_addr().is_ok_and(other) {
                    continue;
                }
                if let Err(error) = socket::set_password(socket.as_ref(), address, length, password) {
                    tracing::error!(%address, %error, "cannot set the password of a peer that connects");
                }
            }
        }
        table.passwords = wanted.into_keys().collect();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        unpoisoned(&self.listeners).drain(..).for_each(|listener| listener.abort());
        self.peers.lock().peers.values().for_each(|peer| peer.task.abort());
        self.stations.abort();
    }
}

async fn end(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    let tasks: Vec<_> = tasks.into_iter().inspect(JoinHandle::abort).collect();
    for task in tasks {
        // The answer is that it was aborted; what counts is that its sockets are closed now.
        let _ = task.await;
    }
}

fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, SpeakerError> {
    let mut listeners = Vec::new();
    for &address in addresses {
        match socket::listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(source) => match source.kind() {
                ErrorKind::AddrInUse => return Err(SpeakerError::PortTaken { address, source }),
                ErrorKind::PermissionDenied => return Err(SpeakerError::NotAllowed { address, source }),
                _ if source.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
                    tracing::warn!(%address, "this host lacks that IP version: not listening there");
                }
                _ => return Err(SpeakerError::Listen { address, source }),
            },
        }
    }
    Ok(listeners)
}

/// Nothing here is left half-changed by a panic.
pub(super) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
