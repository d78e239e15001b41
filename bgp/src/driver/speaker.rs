//! [`Speaker`]: the handle that the daemon holds.

use super::config::{PeerConfig, SpeakerConfig};
use super::status::{PeerStatus, RouteView};
use super::task::{Command, Task};
use super::{listener, socket};
use crate::export::RouteAttributes;
use crate::neighbour::Intent;
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
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

/// How long [`Speaker::withdraw_all`] waits for peers that do not read.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

const COMMAND_QUEUE: usize = 16;

/// A running speaker; clones are handles of the same one. It stops when told to or with its last handle,
/// both times without NOTIFICATION.
#[derive(Clone, Debug)]
pub struct Speaker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SpeakerConfig,
    runtime: Handle,
    announcing: Mutex<Announcing>,
    intent: watch::Sender<Intent>,
    peers: PeerTable,
    listeners: Mutex<Vec<JoinHandle<()>>>,
}

/// What the caller said.
#[derive(Debug, Default)]
struct Announcing {
    routes: Arc<BTreeMap<IpNetwork, RouteAttributes>>,
    initial_complete: bool,
    /// Everything was withdrawn on purpose: nothing is announced any more.
    drained: bool,
}

impl Announcing {
    fn intent(&self) -> Intent {
        let routes = if self.drained { Arc::default() } else { self.routes.clone() };
        Intent { routes, initial_complete: self.initial_complete }
    }
}

impl Speaker {
    /// Listens, with no peers yet. An IP version that this host does not have is passed over.
    pub async fn start(config: SpeakerConfig) -> Result<Speaker, SpeakerError> {
        let listeners = bind_all(&config.listen)?;
        let peers = PeerTable::default();
        let accept = |listener| tokio::spawn(listener::run(listener, peers.clone()));
        let listeners = Mutex::new(listeners.into_iter().map(accept).collect());
        let inner = Inner {
            config,
            runtime: Handle::current(),
            announcing: Mutex::default(),
            intent: watch::Sender::default(),
            peers,
            listeners,
        };
        Ok(Speaker { inner: Arc::new(inner) })
    }

    /// The whole set of peers. Those that are unchanged keep their session; changed ones start anew, without
    /// NOTIFICATION; those that are gone are told so and drop our routes.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        let mut wanted: BTreeMap<String, PeerConfig> = BTreeMap::new();
        for config in peers {
            wanted.insert(config.name.clone(), config);
        }
        let mut table = self.inner.peers.lock();
        table.retain(|name, peer| match wanted.get(name) {
            Some(config) if *config == peer.config => true,
            Some(_) => {
                peer.task.abort();
                false
            }
            None => {
                let commands = peer.commands.clone();
                self.inner.runtime.spawn(async move { commands.send(Command::Deconfigure).await });
                false
            }
        });
        for (name, config) in wanted {
            table.entry(name).or_insert_with(|| self.spawn(config));
        }
    }

    fn spawn(&self, config: PeerConfig) -> PeerHandle {
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let task = Task::new(&self.inner.config, config.clone(), queue, self.inner.intent.subscribe());
        PeerHandle { config, commands, task: self.inner.runtime.spawn(task.run()) }
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

    /// What was announced so far holds all that an earlier process announced and that shall stay: after a
    /// restart, peers may drop the rest.
    pub fn initial_routes_complete(&self) {
        self.change(|announcing| announcing.initial_complete = true);
    }

    /// Takes every route back from every peer, for good: what is announced afterwards is not sent until
    /// the process starts again. Returns when it went out, or after 5 s without a peer that reads it.
    pub async fn withdraw_all(&self) {
        self.change(|announcing| announcing.drained = true);
        // Who has not answered by then does not read.
        let _ = timeout(FLUSH_LIMIT, self.ask(Command::Flush)).await;
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

    /// What each peer was sent and holds.
    pub async fn advertised(&self) -> Vec<RouteView> {
        self.ask(Command::Advertised).await.into_iter().flatten().collect()
    }

    /// What each peer sent us, under no policy.
    pub async fn received(&self) -> Vec<RouteView> {
        self.ask(Command::Received).await.into_iter().flatten().collect()
    }

    /// Asks every peer's task at once and gathers the answers, in the order of names.
    async fn ask<T>(&self, question: fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let queues: Vec<_> = self.inner.peers.lock().values().map(|peer| peer.commands.clone()).collect();
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

    /// Closes every connection without NOTIFICATION: peers keep the routes for the restart time. The other
    /// handles of this speaker are of no use afterwards.
    pub async fn stop(self) {
        let listeners = std::mem::take(&mut *unpoisoned(&self.inner.listeners));
        let peers = std::mem::take(&mut *self.inner.peers.lock());
        for task in listeners.into_iter().chain(peers.into_values().map(|peer| peer.task)) {
            task.abort();
            // The answer is that it was aborted; what counts is that its sockets are closed now.
            let _ = task.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        unpoisoned(&self.listeners).drain(..).for_each(|listener| listener.abort());
        self.peers.lock().values().for_each(|peer| peer.task.abort());
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

/// The peers' tasks by name, shared with the listeners.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerTable(Arc<Mutex<BTreeMap<String, PeerHandle>>>);

#[derive(Debug)]
pub(super) struct PeerHandle {
    config: PeerConfig,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl PeerTable {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PeerHandle>> {
        unpoisoned(&self.0)
    }

    pub fn by_address(&self, address: IpAddr) -> Option<mpsc::Sender<Command>> {
        let address = address.to_canonical();
        let peers = self.lock();
        let peer = peers.values().find(|peer| peer.config.address.to_canonical() == address)?;
        Some(peer.commands.clone())
    }
}

/// Nothing here is left half-changed by a panic.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
