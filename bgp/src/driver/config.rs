//! What the caller configures.

use crate::Family;
use crate::bfd;
use crate::export::NextHops;
use crate::filter::Filter;
use crate::fsm::{Restart, Settings, Timers};
use crate::neighbour::{Leaving, Policy, PrefixLimit};
use ipnetwork::IpNetwork;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerConfig {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    /// Where peers may connect to; usually port 179 of each IP version. May be empty.
    pub listen: Vec<SocketAddr>,
    /// Seconds for which peers keep our routes when we are gone (RFC 4724); at most 4095.
    pub restart_time: u16,
    /// This process takes over from an earlier one: the R bit is set until the first session with each
    /// peer, and End-of-RIB waits for [`Speaker::initial_routes_complete`](super::Speaker::initial_routes_complete).
    pub restarting: bool,
    /// What the earlier process announced is still forwarded: the F bit of the first session.
    pub forwarding_preserved: bool,
}

/// Whom a peer's sessions are with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    Address(IpAddr),
    /// Everybody with such an address may connect, and none is dialled; each has a session of its own.
    Range(IpNetwork),
    /// The router that advertises itself on this interface (RFC 4861), over link-local addresses.
    Interface(String),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Address(address) => write!(f, "{address}"),
            Remote::Range(range) => write!(f, "{range}"),
            Remote::Interface(interface) => write!(f, "interface {interface}"),
        }
    }
}

/// How far away a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Not looked at; packets go out with the system's value.
    System,
    /// At most so many hops away: packets that come from farther are dropped (RFC 5082).
    Security(u8),
    /// Packets go out with this value.
    Fixed(u8),
}

/// RFC 2385. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The longest key that Linux takes.
    pub const MAX_LEN: usize = 80;

    /// `None`: empty, or longer than [`Self::MAX_LEN`] octets.
    pub fn new(text: impl Into<String>) -> Option<Password> {
        let text = text.into();
        (1..=Self::MAX_LEN).contains(&text.len()).then_some(Password(text))
    }

    pub(super) fn octets(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A peer is known by its name. Where its routes' policy, its timers or its shutdown change, a session goes
/// on; where anything else does, it starts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub name: String,
    pub remote: Remote,
    pub port: u16,
    pub asn: u32,
    /// Our AS number towards this peer; `None`: the speaker's.
    pub local_asn: Option<u32>,
    /// Seconds; 0 is without keepalives; 1 and 2, which RFC 4271 forbids, count as 3.
    pub hold_time: u16,
    /// Seconds; 0: as RFC 9687 says.
    pub send_hold_time: u16,
    /// Seconds: the longest wait between two attempts to connect, and the longest attempt.
    pub connect_retry: u16,
    pub families: Vec<Family>,
    /// Where we connect from.
    pub local_address: Option<IpAddr>,
    /// Next hops of what we announce. Absent: our end of the session, if it is of that IP version; else
    /// routes of that family are not announced, and [`PeerStatus`](super::PeerStatus) says so.
    pub next_hop_ipv4: Option<Ipv4Addr>,
    pub next_hop_ipv6: Option<Ipv6Addr>,
    /// Wait for the peer to connect.
    pub passive: bool,
    pub ttl: Ttl,
    pub password: Option<Password>,
    /// RFC 7911, receive.
    pub add_path: bool,
    /// RFC 8950.
    pub extended_next_hop: bool,
    pub remove_private_as: bool,
    pub export: Filter,
    pub import: Filter,
    pub allow_own_as: u8,
    pub prefix_limit: Option<PrefixLimit>,
    /// No session, and why: the peer is told (RFC 9003).
    pub shutdown: Option<String>,
    /// The caller's part: to keep what [`Speaker::paths`](super::Speaker::paths) names, and to say
    /// [`Speaker::path_down`](super::Speaker::path_down).
    pub bfd: Option<bfd::Settings>,
    pub leaving: Leaving,
}

impl PeerConfig {
    pub fn new(name: &str, remote: Remote, asn: u32) -> PeerConfig {
        PeerConfig {
            name: name.to_owned(),
            remote,
            port: 179,
            asn,
            local_asn: None,
            hold_time: 90,
            send_hold_time: 0,
            connect_retry: 5,
            families: Family::ALL.to_vec(),
            local_address: None,
            next_hop_ipv4: None,
            next_hop_ipv6: None,
            passive: false,
            ttl: Ttl::System,
            password: None,
            add_path: false,
            extended_next_hop: false,
            remove_private_as: false,
            export: Filter::ACCEPT,
            import: Filter::REJECT,
            allow_own_as: 0,
            prefix_limit: None,
            shutdown: None,
            bfd: None,
            leaving: Leaving::No,
        }
    }

    /// Unspecified for a range, and for the router of an interface.
    pub fn address(&self) -> IpAddr {
        match self.remote {
            Remote::Address(address) => address,
            Remote::Range(IpNetwork::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            Remote::Range(IpNetwork::V6(_)) | Remote::Interface(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    pub(super) fn interface(&self) -> Option<&str> {
        match &self.remote {
            Remote::Interface(name) => Some(name),
            Remote::Address(_) | Remote::Range(_) => None,
        }
    }

    /// The BFD session that is wanted; none while there shall be no session of BGP, and with the router of an interface or those of
    /// a range, who are not known here.
    pub fn bfd_session(&self) -> Option<(bfd::Key, bfd::Settings)> {
        self.bfd_session_at(None)
    }

    /// `located`: where the router of an interface was found.
    pub(super) fn bfd_session_at(&self, located: Option<SocketAddrV6>) -> Option<(bfd::Key, bfd::Settings)> {
        let settings = self.bfd.filter(|_| self.shutdown.is_none())?;
        let (peer, ifindex) = match self.remote {
            Remote::Address(peer) => (peer, None),
            Remote::Interface(_) => located.map(|at| (IpAddr::V6(*at.ip()), Some(at.scope_id())))?,
            Remote::Range(_) => return None,
        };
        Some((bfd::Key { peer, local: self.local_address, ifindex, multihop: self.least_ttl() }, settings))
    }

    /// The peer may be several hops away.
    pub fn is_far(&self) -> bool {
        self.least_ttl().is_some()
    }

    /// What packets of a peer that may be several hops away must arrive with.
    pub(super) fn least_ttl(&self) -> Option<u8> {
        match self.ttl {
            Ttl::System | Ttl::Security(..=1) | Ttl::Fixed(..=1) => None,
            Ttl::Security(hops) => Some(u8::MAX - (hops - 1)),
            // How far away it is was not said.
            Ttl::Fixed(_) => Some(1),
        }
    }

    pub(super) fn settings(&self, speaker: &SpeakerConfig) -> Settings {
        let mut families = self.families.clone();
        families.sort_unstable();
        families.dedup();
        Settings {
            local_asn: self.local_asn.unwrap_or(speaker.asn),
            router_id: speaker.router_id,
            peer_asn: self.asn,
            timers: self.timers(),
            families,
            restart: Restart {
                time: speaker.restart_time,
                restarting: speaker.restarting,
                forwarding_preserved: speaker.forwarding_preserved,
            },
            passive: self.passive,
            add_path: self.add_path,
            // There are no other next hops.
            extended_next_hop: self.extended_next_hop || self.interface().is_some(),
            link_local: self.interface().is_some(),
            seed: RandomState::new().build_hasher().finish(),
        }
    }

    pub(super) fn timers(&self) -> Timers {
        Timers {
            hold: if self.hold_time == 0 { 0 } else { self.hold_time.max(3) },
            connect_retry: self.connect_retry,
            send_hold: self.send_hold_time,
        }
    }

    pub(super) fn policy(&self, speaker: &SpeakerConfig) -> Policy {
        Policy {
            asn: speaker.asn,
            remove_private_as: self.remove_private_as,
            next_hops: NextHops { ipv4: self.next_hop_ipv4, ipv6: self.next_hop_ipv6 },
            export: self.export.clone(),
            import: self.import.clone(),
            allow_own_as: self.allow_own_as,
            prefix_limit: self.prefix_limit,
            leaving: self.leaving,
        }
    }

    /// The running session can go on under `new`.
    pub(super) fn may_become(&self, new: &PeerConfig) -> bool {
        let live = PeerConfig {
            hold_time: self.hold_time,
            send_hold_time: self.send_hold_time,
            connect_retry: self.connect_retry,
            next_hop_ipv4: self.next_hop_ipv4,
            next_hop_ipv6: self.next_hop_ipv6,
            remove_private_as: self.remove_private_as,
            export: self.export.clone(),
            import: self.import.clone(),
            allow_own_as: self.allow_own_as,
            prefix_limit: self.prefix_limit,
            shutdown: self.shutdown.clone(),
            bfd: self.bfd,
            leaving: self.leaving,
            ..new.clone()
        };
        live == *self
    }

    /// The peer with that address out of a range.
    pub(super) fn member(&self, address: IpAddr) -> PeerConfig {
        let name = format!("{}[{address}]", self.name);
        PeerConfig { name, remote: Remote::Address(address), passive: true, ..self.clone() }
    }
}
