//! What is wanted of BFD: sessions with the peers that are known, and with routers of interfaces and members of ranges that are not
//! known yet.

use super::config::{PeerConfig, Remote};
use crate::bfd;
use ipnetwork::IpNetwork;
use nix::net::if_::if_nametoindex;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV6};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    pub sessions: BTreeMap<bfd::Key, bfd::Settings>,
    /// Sessions with such neighbours go on, where there are any: after a restart nobody has been heard yet.
    pub awaited: Vec<Awaited>,
}

/// What is known of a session before its neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    pub with: Somebody,
    pub local: Option<IpAddr>,
    pub multihop: Option<u8>,
    pub settings: bfd::Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Somebody {
    /// The router of the interface with this index.
    On(u32),
    OutOf(IpNetwork),
}

impl Paths {
    /// Those that are wanted, and of those that there are the ones that may be.
    pub fn wanted(&self, there: impl IntoIterator<Item = bfd::Key>) -> BTreeMap<bfd::Key, bfd::Settings> {
        let kept = there.into_iter().filter_map(|key| {
            let awaited = self.awaited.iter().find(|awaited| awaited.may_be(&key))?;
            Some((key, awaited.settings))
        });
        kept.chain(self.sessions.iter().map(|(key, settings)| (*key, *settings))).collect()
    }

    /// `located`: where the router of an interface was found.
    pub(super) fn add(&mut self, peer: &PeerConfig, located: Option<SocketAddrV6>) {
        self.sessions.extend(peer.bfd_session_at(located));
        let Some(settings) = peer.bfd.filter(|_| peer.shutdown.is_none()) else { return };
        let with = match &peer.remote {
            Remote::Interface(name) if located.is_none() => {
                if_nametoindex(name.as_str()).ok().map(Somebody::On)
            }
            Remote::Range(range) => Some(Somebody::OutOf(*range)),
            Remote::Interface(_) | Remote::Address(_) => None,
        };
        let (local, multihop) = (peer.local_address, peer.least_ttl());
        self.awaited.extend(with.map(|with| Awaited { with, local, multihop, settings }));
    }
}

impl Awaited {
    /// Another session with the same neighbour is none of the peer's.
    fn may_be(&self, key: &bfd::Key) -> bool {
        let is_there = match self.with {
            Somebody::On(ifindex) => key.ifindex == Some(ifindex),
            Somebody::OutOf(range) => key.ifindex.is_none() && range.contains(key.peer),
        };
        is_there && (self.local, self.multihop) == (key.local, key.multihop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Remote;
    use super::*;
    use bfd::{Key, Settings};

    const FAST: Settings = Settings { detect_mult: 9, ..Settings::DEFAULT };

    fn key(peer: &str, ifindex: Option<u32>) -> Key {
        Key { peer: peer.parse().unwrap(), local: None, ifindex, multihop: None }
    }

    fn peer(remote: Remote) -> PeerConfig {
        PeerConfig { bfd: Some(FAST), ..PeerConfig::new("leaf", remote, 1) }
    }

    #[test]
    fn the_router_of_an_interface_is_watched_where_it_was_found_and_until_then_as_it_was() {
        let unnumbered = peer(Remote::Interface("lo".into()));
        let index = if_nametoindex("lo").unwrap();
        let mut before = Paths::default();
        before.add(&unnumbered, None);
        let (found, other) = (key("fe80::1", Some(index)), key("fe80::1", Some(index + 1)));
        assert_eq!(before.wanted([found, other]), BTreeMap::from([(found, FAST)]), "after a restart");
        assert_eq!(before.wanted([]), BTreeMap::new());
        let mut then = Paths::default();
        then.add(&unnumbered, Some(SocketAddrV6::new("fe80::2".parse().unwrap(), 179, 0, index)));
        assert_eq!(then.wanted([found]), BTreeMap::from([(key("fe80::2", Some(index)), FAST)]));
    }

    #[test]
    fn what_is_shut_down_or_asks_for_none_is_not_watched() {
        for remote in [Remote::Interface("lo".into()), Remote::Address("192.0.2.1".parse().unwrap())] {
            let mut paths = Paths::default();
            let at = Some(SocketAddrV6::new("fe80::2".parse().unwrap(), 179, 0, 1));
            paths.add(&PeerConfig { shutdown: Some("moving".into()), ..peer(remote.clone()) }, at);
            paths.add(&PeerConfig { bfd: None, ..peer(remote) }, at);
            assert_eq!(paths, Paths::default());
        }
    }
}
