//! The peers' tasks, and whose a connection is.

use super::config::{PeerConfig, Remote};
use super::mailbox::{Command, Decision, Mailbox};
use super::members::{Absent, HOLD};
use super::paths::Paths;
use super::speaker::unpoisoned;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The peers' tasks by name, shared with the listeners.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerTable(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
pub(super) struct Table {
    pub peers: BTreeMap<String, PeerHandle>,
    pub ranges: Vec<PeerConfig>,
    /// Who has had a session out of a range, also with an earlier process, and when that was last known.
    pub met: BTreeMap<IpAddr, Instant>,
    /// Whose keys the listening sockets have.
    pub passwords: BTreeSet<(IpAddr, u8)>,
    /// For how long peers keep what is announced to them.
    pub restart_time: Duration,
    /// Of the peers of an earlier process those that are none so far: nothing is known of their sessions.
    pub expected: Vec<Former>,
    /// Who was taken out of the configuration.
    pub leaving: Vec<JoinHandle<()>>,
    /// Who else had sessions out of ranges with an earlier process may not be known: what BFD watches there goes on.
    pub begins: bool,
}

/// A peer of an earlier process. One of the same name elsewhere is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub name: String,
    /// [`Remote`] in words.
    pub remote: String,
    /// For so long from the speaker's start it may keep what that process announced.
    pub keeps: Duration,
}

/// Of a peer that nothing is known of (RFC 4271 section 10).
const USUAL_HOLD_TIME: u16 = 90;

impl Table {
    /// Who is learned from may come from a range: one who was there before, or anybody where nobody has connected so far.
    pub fn waits_for_somebody(&self) -> bool {
        let is_empty = |range: &PeerConfig| !self.peers.values().any(|peer| is_of(range, peer));
        let learns = |range: &&PeerConfig| range.shutdown.is_none() && !range.import.accepts_nothing();
        let is_missing = |range: &PeerConfig| {
            self.met.keys().any(|address| holds(range, *address) && !self.is_there(*address))
        };
        let nobody = self.peers.is_empty() && self.ranges.is_empty();
        nobody || self.ranges.iter().filter(learns).any(|range| is_empty(range) || is_missing(range))
    }

    fn is_there(&self, address: IpAddr) -> bool {
        self.peers.values().any(|peer| peer.config.address() == address)
    }

    fn is_member(&self, peer: &PeerHandle) -> bool {
        self.ranges.iter().any(|range| is_of(range, peer))
    }

    /// The peer that somebody with this address is out of a range; nobody whose address is a peer's of its own.
    pub fn member(&self, address: IpAddr) -> Option<PeerConfig> {
        let member = self.ranges.iter().find(|range| holds(range, address))?.member(address);
        let another = |peer: &PeerHandle| peer.config.address() == address && peer.config.name != member.name;
        (!self.peers.values().any(another)).then_some(member)
    }

    /// Who has had a session out of ranges.
    pub fn members(&self) -> BTreeSet<IpAddr> {
        self.met.keys().copied().filter(|address| self.member(*address).is_some()).collect()
    }

    /// Who may come out of ranges, and is no peer yet: who has been met, and somebody where nobody has.
    pub fn absent(&self, started: Instant, now: Instant) -> Vec<Absent> {
        let missing = self.met.iter().filter(|(address, _)| !self.is_there(**address));
        let missing = missing.filter_map(|(address, last)| Some((self.member(*address)?, *last)));
        let empty = self.empty().map(|range| (range.clone(), started));
        let may_come = missing.chain(empty).filter(|(config, _)| config.shutdown.is_none());
        let absent = |(config, last): (PeerConfig, Instant)| Absent {
            name: config.name,
            away: now.saturating_duration_since(last),
        };
        may_come.map(absent).collect()
    }

    /// The ranges out of which nobody is known.
    fn empty(&self) -> impl Iterator<Item = &PeerConfig> {
        self.ranges.iter().filter(|range| {
            !self.peers.values().any(|peer| is_of(range, peer))
                && !self.met.keys().any(|address| holds(range, *address))
        })
    }

    /// For how long after a session somebody who is no peer now may keep what was announced: it notices that the session is over
    /// when its hold time is.
    fn keeping(&self) -> Duration {
        let hold = self.ranges.iter().map(|range| range.hold_time).fold(USUAL_HOLD_TIME, u16::max);
        Duration::from_secs(hold.into()) + self.restart_time
    }

    /// Who connects from this address out of a range may have had a session, if only with an earlier process, which this one
    /// has succeeded for so long.
    pub fn may_know(&self, address: IpAddr, succeeds_for: Option<Duration>) -> bool {
        self.met.contains_key(&address) || succeeds_for.is_some_and(|age| age < self.keeping())
    }

    /// Who is no peer now and may keep what was announced, also by an earlier process. What becomes of a range changes nothing of
    /// what somebody keeps.
    pub fn kept_by(
        &self,
        started: Instant,
        succeeds_for: Option<Duration>,
        now: Instant,
    ) -> BTreeSet<String> {
        let keeping = self.keeping();
        let keeps = |last: Instant| {
            let heard = last > started || succeeds_for.is_some();
            heard && now.saturating_duration_since(last) < keeping
        };
        let missing = self.met.iter().filter(|(address, last)| !self.is_there(**address) && keeps(**last));
        let named = |address| self.member(address).map_or_else(|| address.to_string(), |member| member.name);
        let mut names: BTreeSet<String> = missing.map(|(address, _)| named(*address)).collect();
        if succeeds_for.is_some() {
            let age = now.saturating_duration_since(started);
            let may_come = self.empty().filter(|range| range.shutdown.is_none() && age < keeping);
            let formers = self.expected.iter().filter(|former| age < former.keeps);
            names
                .extend(may_come.map(|range| &range.name).chain(formers.map(|former| &former.name)).cloned());
        }
        names
    }

    /// A peer is none any more, under the ranges as they are now. Who stays a member by its name was cut and not told: until it is
    /// back, what it may keep is known here. Others say it themselves.
    pub fn goes(&mut self, peer: &PeerHandle, now: Instant) {
        let address = peer.config.address();
        if self.is_member(peer) {
            self.met.entry(address).and_modify(|last| *last = now);
        } else {
            self.met.remove(&address);
        }
    }

    /// Notes who has a session out of a range, and forgets who has had none for [`HOLD`] and keeps nothing. Who is no peer any more.
    pub fn look_over(&mut self, started: Instant, now: Instant, seen: &[Seen]) -> Vec<PeerHandle> {
        self.begins &= now.saturating_duration_since(started) < HOLD;
        let of = |table: &Table, peer: &Seen| {
            let handle = table.peers.get(&peer.name).filter(|handle| table.is_member(handle))?;
            Some(handle.config.address())
        };
        for peer in seen.iter().filter(|peer| peer.met) {
            if let (Some(address), Some(last)) = (of(self, peer), now.checked_sub(peer.away)) {
                let known = self.met.entry(address).or_insert(last);
                *known = last.max(*known);
            }
        }
        let hold = self.keeping().max(HOLD);
        self.met.retain(|_, last| now.saturating_duration_since(*last) < hold);
        let hold = |peer: &Seen| if peer.met || peer.keeps { hold } else { HOLD };
        let gone = seen.iter().filter(|peer| peer.away >= hold(peer) && of(self, peer).is_some());
        let gone: Vec<&String> = gone.map(|peer| &peer.name).collect();
        gone.into_iter().filter_map(|name| self.peers.remove(name)).collect()
    }

    /// What is wanted of BFD. Who has only opened a connection is not watched.
    pub fn paths(&self) -> Paths {
        let mut paths = Paths::default();
        let configured = self.peers.values().filter(|peer| !self.is_member(peer));
        configured.for_each(|peer| paths.add(&peer.config, peer.located));
        self.met
            .keys()
            .filter_map(|address| self.member(*address))
            .for_each(|member| paths.add(&member, None));
        self.ranges.iter().filter(|_| self.begins).for_each(|range| paths.add(range, None));
        paths
    }
}

/// What a peer's task says of its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub name: String,
    /// For so long there has been no session, and nothing is kept of one.
    pub away: Duration,
    /// There has been one.
    pub met: bool,
    /// It may keep what was announced to it, if only by an earlier process.
    pub keeps: bool,
}

#[derive(Debug)]
pub(super) struct PeerHandle {
    pub config: PeerConfig,
    pub mailbox: Mailbox,
    /// The router of an interface, once it is found.
    pub located: Option<SocketAddrV6>,
    pub task: JoinHandle<()>,
}

impl PeerHandle {
    /// Whether the session can go on under `config`; it then does.
    pub fn keep(&mut self, config: PeerConfig) -> bool {
        if config == self.config {
            return true;
        }
        if !self.config.may_become(&config) {
            if self.config.remote == config.remote {
                self.task.abort();
            } else {
                // Who was the peer is none any more.
                self.mailbox.decide(Decision::Deconfigure);
            }
            return false;
        }
        self.config = config.clone();
        self.mailbox.decide(Decision::Reconfigure(Box::new(config)));
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

    /// Whether a path that BFD watched is gone with its interface; BFD itself cannot tell of it.
    pub fn locate(&mut self, located: Option<SocketAddrV6>) -> bool {
        let before = std::mem::replace(&mut self.located, located);
        let watched = before.and_then(|before| self.config.bfd_session_at(Some(before))).is_some();
        watched && self.located.is_none()
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
            Some(peer) => Caller::Peer(peer.mailbox.commands.clone()),
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
        let (mailbox, _) = Mailbox::new();
        PeerHandle { config, mailbox, located: None, task: tokio::spawn(async {}) }
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
        let now = Instant::now();
        table.met = [one, two, elsewhere].map(|address| (address, now)).into();
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

    fn bfd_range() -> PeerConfig {
        let bfd = Some(crate::bfd::Settings::DEFAULT);
        PeerConfig { bfd, ..PeerConfig::new("racks", Remote::Range("192.0.2.0/28".parse().unwrap()), 1) }
    }

    fn watched(table: &Table) -> Vec<String> {
        table.paths().sessions.keys().map(|key| key.peer.to_string()).collect()
    }

    #[tokio::test]
    async fn with_the_interface_of_a_router_the_path_is_gone_that_bfd_watched() {
        let at = Some(SocketAddrV6::new("fe80::1".parse().unwrap(), 179, 0, 7));
        for bfd in [None, Some(crate::bfd::Settings::DEFAULT)] {
            let config = PeerConfig { bfd, ..PeerConfig::new("leaf", Remote::Interface("eth0".into()), 1) };
            let mut router = peer(config);
            assert_eq!([None, at, at].map(|located| router.locate(located)), [false; 3]);
            assert_eq!((router.locate(None), router.locate(None)), (bfd.is_some(), false));
        }
    }

    #[tokio::test]
    async fn who_may_come_out_of_a_range_is_absent_until_it_is_a_peer() {
        let (range, started) = (bfd_range(), Instant::now());
        let [one, two]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let now = started + Duration::from_secs(3);
        let mut table = Table { ranges: vec![range.clone()], ..Table::default() };
        let absent = |table: &Table| {
            let all = table.absent(started, now).into_iter();
            all.map(|absent| (absent.name, absent.away.as_secs())).collect::<Vec<_>>()
        };
        assert_eq!(absent(&table), [("racks".to_owned(), 3)], "somebody");
        table.met = [(one, started), (two, started + Duration::from_secs(1))].into();
        table.peers.insert(range.member(one).name, peer(range.member(one)));
        assert_eq!(absent(&table), [("racks[192.0.2.2]".to_owned(), 2)]);
        table.ranges[0].shutdown = Some("moving".into());
        assert_eq!(absent(&table), []);
    }

    #[tokio::test]
    async fn a_member_is_who_has_had_a_session_and_not_been_without_for_long() {
        let (range, started) = (bfd_range(), Instant::now());
        let mut now = started;
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let name = range.member(address).name;
        let mut table = Table { ranges: vec![range.clone()], ..Table::default() };
        table.peers.insert(name.clone(), peer(range.member(address)));
        let mut look = |table: &mut Table, after: Duration, away: Duration, met| {
            now += after;
            let gone = table.look_over(started, now, &[Seen { name: name.clone(), away, met, keeps: false }]);
            (gone.len(), table.members().len(), watched(table).len())
        };
        let (second, none) = (Duration::from_secs(1), Duration::ZERO);
        assert_eq!(look(&mut table, none, second, false), (0, 0, 0), "a connection is no session");
        assert_eq!(look(&mut table, none, none, true), (0, 1, 1));
        assert_eq!(look(&mut table, HOLD - second, HOLD - second, true), (0, 1, 1));
        assert_eq!(look(&mut table, second, HOLD, true), (1, 0, 0));
        table.peers.insert(name.clone(), peer(range.member(address)));
        table.restart_time = 10 * HOLD;
        assert_eq!(look(&mut table, none, HOLD - second, false), (0, 0, 0));
        assert_eq!(look(&mut table, none, HOLD, false), (1, 0, 0), "who never got a session keeps nothing");
    }

    #[tokio::test]
    async fn a_member_is_known_for_as_long_as_it_may_keep_what_it_was_told() {
        let range = PeerConfig { hold_time: 180, ..bfd_range() };
        let (started, address) = (Instant::now(), "192.0.2.1".parse().unwrap());
        let mut table = Table {
            ranges: vec![range.clone()],
            restart_time: Duration::from_secs(300),
            met: [(address, started)].into(),
            ..Table::default()
        };
        // Not back since the process before this one ended, and somebody else has come.
        let other = range.member("192.0.2.2".parse().unwrap());
        table.peers.insert(other.name.clone(), peer(other));
        let mut look = |after: u64, away: u64| {
            let now = started + Duration::from_secs(after);
            let away = Duration::from_secs(away);
            let seen = Seen { name: range.member(address).name, away, met: true, keeps: false };
            let gone = table.look_over(started, now, &[seen]).len();
            let kept_by = table.kept_by(started, Some(now - started), now);
            (gone, table.members().contains(&address), !kept_by.is_empty())
        };
        assert_eq!(look(479, 0), (0, true, true));
        assert_eq!(look(480, 0), (0, false, false));
        table.peers.insert(range.member(address).name, peer(range.member(address)));
        let mut look = |after: u64, away: u64| {
            let now = started + Duration::from_secs(after);
            let away = Duration::from_secs(away);
            let seen = Seen { name: range.member(address).name, away, met: true, keeps: false };
            (table.look_over(started, now, &[seen]).len(), table.members().contains(&address))
        };
        assert_eq!(look(1000, 479), (0, true), "it is a peer, which says itself what it may keep");
        assert_eq!(look(1001, 480), (1, false));
    }

    #[tokio::test]
    async fn a_peer_of_before_that_cannot_be_made_may_keep_what_it_was_told() {
        let started = Instant::now();
        let after = |seconds| started + Duration::from_secs(seconds);
        let mut table = Table { restart_time: Duration::from_secs(60), ..Table::default() };
        let kept_by = |table: &Table, seconds| {
            let names = table.kept_by(started, Some(Duration::from_secs(seconds)), after(seconds));
            names.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(kept_by(&table, 0), [""; 0]);
        let former = |name: &str, keeps| Former {
            name: name.into(),
            remote: "192.0.2.1".into(),
            keeps: Duration::from_secs(keeps),
        };
        table.expected = vec![former("leaf", 150), former("spine", 20)];
        assert_eq!(
            (kept_by(&table, 19), kept_by(&table, 149)),
            (vec!["leaf".to_owned(), "spine".to_owned()], vec!["leaf".to_owned()],)
        );
        assert_eq!(kept_by(&table, 150), [""; 0]);
        assert!(table.kept_by(started, None, after(1)).is_empty(), "nothing was announced before");
    }

    #[tokio::test]
    async fn who_was_met_may_keep_what_it_was_told_whatever_becomes_of_its_range() {
        let (range, started) = (bfd_range(), Instant::now());
        let after = |seconds| started + Duration::from_secs(seconds);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let met =
            || Table { ranges: vec![range.clone()], met: [(address, after(1))].into(), ..Table::default() };
        let kept_by = |table: &Table, now| Vec::from_iter(table.kept_by(started, None, now));
        assert_eq!(
            (kept_by(&met(), after(90)), kept_by(&met(), after(91))),
            (vec!["racks[192.0.2.1]".to_owned()], vec![],)
        );
        let mut down = met();
        down.ranges[0].shutdown = Some("moving".into());
        assert_eq!(kept_by(&down, after(90)).len(), 1);
        let gone = Table { ranges: Vec::new(), ..met() };
        assert_eq!(kept_by(&gone, after(90)), ["192.0.2.1"]);
        let mut there = met();
        there.peers.insert("racks[192.0.2.1]".into(), peer(range.member(address)));
        assert_eq!(kept_by(&there, after(2)), [""; 0], "it says it itself");
        let cut = there.peers.remove("racks[192.0.2.1]").unwrap();
        there.goes(&cut, after(50));
        assert_eq!(kept_by(&there, after(139)).len(), 1, "it had a session until it was cut");
        there.ranges.clear();
        there.goes(&cut, after(50));
        assert_eq!(kept_by(&there, after(51)), [""; 0], "who is told, or was not, says so itself");
    }

    #[test]
    fn who_connects_out_of_a_range_is_a_stranger_unless_it_may_have_had_a_session() {
        let [one, two]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let table = Table { met: [(one, Instant::now())].into(), ..Table::default() };
        assert_eq!([one, two].map(|address| table.may_know(address, None)), [true, false]);
        let succeeds_for = |seconds| table.may_know(two, Some(Duration::from_secs(seconds)));
        assert_eq!([89, 90].map(succeeds_for), [true, false], "its hold time is over by then");
    }

    #[tokio::test]
    async fn who_was_met_is_watched_while_it_is_waited_for_and_its_range_wants_it() {
        let (range, now) = (bfd_range(), Instant::now());
        let [one, two]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let mut table = Table { ranges: vec![range.clone()], met: [(one, now)].into(), ..Table::default() };
        assert_eq!(watched(&table), ["192.0.2.1"]);
        // A peer of its own that is shut down, or has no BFD, is not watched for a range's sake.
        table.met.insert(two, now);
        let alone = PeerConfig { bfd: None, ..PeerConfig::new("leaf", Remote::Address(two), 1) };
        table.peers.insert("leaf".into(), peer(alone));
        assert_eq!((watched(&table), table.members()), (vec!["192.0.2.1".to_owned()], [one].into()));
        assert_eq!(table.look_over(now, now + HOLD, &[]).len(), 0);
        assert_eq!(watched(&table), [""; 0], "it is waited for no longer");
        table.met.insert(one, now);
        table.ranges[0].bfd = None;
        assert_eq!(watched(&table), [""; 0]);
    }

    /// A daemon that was killed may not have remembered who has come at last.
    #[tokio::test]
    async fn at_first_whoever_is_watched_out_of_a_range_stays_so() {
        let mut table = Table { ranges: vec![bfd_range()], begins: true, ..Table::default() };
        let key = |peer: &str| crate::bfd::Key {
            peer: peer.parse().unwrap(),
            local: None,
            ifindex: None,
            multihop: None,
        };
        let there = [key("192.0.2.1"), key("192.0.2.99")];
        let wanted = |table: &Table| table.paths().wanted(there).into_keys().collect::<Vec<_>>();
        assert_eq!(wanted(&table), [there[0]]);
        table.ranges[0].shutdown = Some("moving".into());
        assert_eq!(wanted(&table), []);
        table.ranges[0].shutdown = None;
        let started = Instant::now();
        table.look_over(started, started + HOLD - Duration::from_secs(1), &[]);
        assert_eq!(wanted(&table), [there[0]]);
        table.look_over(started, started + HOLD, &[]);
        assert_eq!(wanted(&table), []);
    }
}
