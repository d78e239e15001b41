//! The peers' tasks, and whose a connection is.

use super::config::{PeerConfig, Remote};
use super::speaker::unpoisoned;
use super::task::Command;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The peers' tasks by name, shared with the listeners.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerTable(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
pub(super) struct Table {
    pub peers: BTreeMap<String, PeerHandle>,
    pub ranges: Vec<PeerConfig>,
    /// Who had connected out of ranges to an earlier process.
    pub expected: BTreeSet<IpAddr>,
    /// Whose keys the listening sockets have.
    pub passwords: BTreeSet<(IpAddr, u8)>,
}

impl Table {
    /// Who is learned from may come from a range: one who was there before, or anybody where nobody has connected so far.
    pub fn waits_for_somebody(&self) -> bool {
        let is_empty = |range: &PeerConfig| !self.peers.values().any(|peer| is_of(range, peer));
        let learns = |range: &&PeerConfig| range.shutdown.is_none() && !range.import.accepts_nothing();
        let is_there = |address: IpAddr| self.peers.values().any(|peer| peer.config.address() == address);
        let is_missing = |range: &PeerConfig| {
            self.expected.iter().any(|address| holds(range, *address) && !is_there(*address))
        };
        let nobody = self.peers.is_empty() && self.ranges.is_empty();
        nobody || self.ranges.iter().filter(learns).any(|range| is_empty(range) || is_missing(range))
    }

    /// Who has connected out of ranges.
    pub fn members(&self) -> BTreeSet<IpAddr> {
        let is_member = |peer: &&PeerHandle| self.ranges.iter().any(|range| is_of(range, peer));
        self.peers.values().filter(is_member).map(|peer| peer.config.address()).collect()
    }
}

#[derive(Debug)]
pub(super) struct PeerHandle {
    pub config: PeerConfig,
    pub commands: mpsc::Sender<Command>,
    /// The router of an interface, once it is found.
    pub located: Option<SocketAddrV6>,
    pub task: JoinHandle<()>,
}

impl PeerHandle {
    /// Whether the session can go on under `config`; it then does.
    pub fn keep(&mut self, config: PeerConfig, runtime: &Handle) -> bool {
        if config == self.config {
            return true;
        }
        if !self.config.may_become(&config) {
            self.task.abort();
            return false;
        }
        self.config = config.clone();
        self.command(Command::Reconfigure(Box::new(config)), runtime);
        true
    }

    fn is(&self, address: SocketAddr) -> bool {
        match (&self.config.remote, self.located, address) {
            (Remote::Interface(_), Some(router), SocketAddr::V6(from)) => {
                (router.ip(), router.scope_id()) == (from.ip(), from.scope_id())
            }
            (Remote::Interface(_), ..) => false,
            (_, _, from) => self.config.address().to_canonical() == from.ip().to_canonical(),
        }
    }

    pub fn command(&self, command: Command, runtime: &Handle) {
        let commands = self.commands.clone();
        runtime.spawn(async move { commands.send(command).await });
    }
}

/// Who connected.
pub(super) enum Caller {
    Peer(mpsc::Sender<Command>),
    /// It shall have no session.
    Down,
    /// No peer yet, but one out of a range.
    Member,
    Nobody,
}

impl PeerTable {
    pub fn lock(&self) -> MutexGuard<'_, Table> {
        unpoisoned(&self.0)
    }

    pub fn caller(&self, from: SocketAddr) -> Caller {
        let address = from.ip().to_canonical();
        let table = self.lock();
        match table.peers.values().find(|peer| peer.is(from)) {
            Some(peer) if peer.config.shutdown.is_some() => Caller::Down,
            Some(peer) => Caller::Peer(peer.commands.clone()),
            None => match table.ranges.iter().find(|range| holds(range, address)) {
                Some(range) if range.shutdown.is_some() => Caller::Down,
                Some(_) => Caller::Member,
                None => Caller::Nobody,
            },
        }
    }
}

/// The range's addresses hold this one.
pub(super) fn holds(range: &PeerConfig, address: IpAddr) -> bool {
    matches!(range.remote, Remote::Range(range) if range.contains(address))
}

fn is_of(range: &PeerConfig, peer: &PeerHandle) -> bool {
    range.member(peer.config.address()).name == peer.config.name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;

    fn peer(config: PeerConfig) -> PeerHandle {
        let (commands, _) = mpsc::channel(1);
        PeerHandle { config, commands, located: None, task: tokio::spawn(async {}) }
    }

    #[tokio::test]
    async fn of_a_range_all_are_waited_for_who_had_connected_before() {
        let range = PeerConfig {
            import: Filter::ACCEPT,
            ..PeerConfig::new("racks", Remote::Range("192.0.2.0/28".parse().unwrap()), 1)
        };
        let [one, two, elsewhere]: [IpAddr; 3] =
            ["192.0.2.1", "192.0.2.2", "192.0.2.99"].map(|address| address.parse().unwrap());
        let mut table = Table { ranges: vec![range.clone()], ..Table::default() };
        assert!(table.waits_for_somebody(), "nobody has connected");
        table.expected = [one, two, elsewhere].into();
        let member = |address| (range.member(address).name, peer(range.member(address)));
        table.peers.extend([member(one)]);
        assert!(table.waits_for_somebody(), "the second has not come back");
        table.ranges[0].import = Filter::REJECT;
        assert!(!table.waits_for_somebody(), "nothing is learned from there");
        table.ranges[0].import = Filter::ACCEPT;
        table.peers.extend([member(two)]);
        assert!(!table.waits_for_somebody());
        assert_eq!(table.members(), [one, two].into());
    }
}
