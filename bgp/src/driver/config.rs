//! What the caller configures.

use crate::Family;
use crate::export::NextHops;
use crate::fsm::{Restart, Settings};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// A peer is known by its name; where anything else about it changes, its session starts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub asn: u32,
    /// Seconds; 0 is without keepalives; 1 and 2, which RFC 4271 forbids, count as 3.
    pub hold_time: u16,
    /// Seconds: the longest wait between two attempts to connect, and the longest attempt.
    pub connect_retry: u16,
    pub families: Vec<Family>,
    /// Where we connect from.
    pub local_address: Option<IpAddr>,
    /// Next hops of what we announce. Absent: our end of the session, if it is of that IP version; else
    /// routes of that family are not announced, and [`PeerStatus`](super::PeerStatus) says so.
    pub next_hop_ipv4: Option<Ipv4Addr>,
    pub next_hop_ipv6: Option<Ipv6Addr>,
}

impl PeerConfig {
    pub(super) fn settings(&self, speaker: &SpeakerConfig) -> Settings {
        let mut families = self.families.clone();
        families.sort_unstable();
        families.dedup();
        Settings {
            local_asn: speaker.asn,
            router_id: speaker.router_id,
            peer_asn: self.asn,
            hold_time: if self.hold_time == 0 { 0 } else { self.hold_time.max(3) },
            connect_retry: self.connect_retry,
            families,
            restart: Restart {
                time: speaker.restart_time,
                restarting: speaker.restarting,
                forwarding_preserved: speaker.forwarding_preserved,
            },
            seed: RandomState::new().build_hasher().finish(),
        }
    }

    pub(super) fn next_hops(&self) -> NextHops {
        NextHops { ipv4: self.next_hop_ipv4, ipv6: self.next_hop_ipv6 }
    }
}
