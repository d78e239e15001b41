//! All sessions of a node: which of them a packet is for, and whether it may be believed.
//!
//! Single hop (RFC 5881): the TTL is 255, so nobody beyond the link can have sent it. Multihop (RFC 5883): the TTL is at
//! least what is configured. A packet that does not know our discriminator yet is told by where it comes from and to.

use super::packet::{Malformed, Packet, State};
use super::session::{Change, Output, Session, Settings};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

pub const PORT_SINGLE_HOP: u16 = 3784;
pub const PORT_MULTIHOP: u16 = 4784;
/// What is sent, and what a packet over a single hop arrives with (RFC 5881 section 5).
pub const TTL: u8 = 255;

/// Whom a session is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bfd", derive(serde::Serialize, serde::Deserialize))]
pub struct Key {
    pub peer: IpAddr,
    /// Our end; absent: any of ours, which the kernel chooses. A multihop session needs it.
    pub local: Option<IpAddr>,
    /// Of a link-local neighbour.
    pub ifindex: Option<u32>,
    /// Absent: the neighbour is on the link. Else the lowest TTL that is believed.
    pub multihop: Option<u8>,
}

/// A packet as the kernel handed it over.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub bytes: &'a [u8],
    pub from: IpAddr,
    pub to: IpAddr,
    pub ifindex: u32,
    pub ttl: u8,
    pub multihop: bool,
}

/// Why a packet was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discarded {
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("there is no such session")]
    Unknown,
    #[error("its TTL is {0}: it came from too far away")]
    Ttl(u8),
}

/// What is to be done for the session of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Send(Key, Packet),
    Changed(Key, Change),
    /// It is over: its socket may be closed.
    Ended(Key),
}

#[derive(Debug, Default)]
pub struct Sessions {
    by_key: BTreeMap<Key, Session>,
    discriminators: BTreeMap<NonZeroU32, Key>,
}

impl Sessions {
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Session)> {
        self.by_key.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The whole set that is wanted. Those that are there go on, with new intervals if those changed; those that are wanted no
    /// more are told down on purpose. `chance` gives numbers that nobody can guess.
    pub fn configure(
        &mut self,
        now: Duration,
        wanted: &BTreeMap<Key, Settings>,
        mut chance: impl FnMut() -> u64,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (key, session) in &mut self.by_key {
            let outputs = match wanted.get(key) {
                Some(settings) => session.configure(now, *settings),
                None => session.admin_down(now),
            };
            effects.extend(outputs.into_iter().map(|o| effect(*key, o)));
        }
        for (key, settings) in wanted {
            // One that is just leaving begins anew.
            if self.by_key.get(key).is_some_and(|s| s.state() != State::AdminDown) {
                continue;
            }
            let discriminator = self.free_discriminator(&mut chance);
            let session = Session::new(*settings, discriminator, chance());
            if let Some(former) = self.by_key.insert(*key, session) {
                self.discriminators.remove(&former.discriminator());
            }
            self.discriminators.insert(discriminator, *key);
        }
        effects
    }

    fn free_discriminator(&self, chance: &mut impl FnMut() -> u64) -> NonZeroU32 {
        loop {
            if let Some(number) = NonZeroU32::new(chance() as u32)
                && !self.discriminators.contains_key(&number)
            {
                return number;
            }
        }
    }

    /// # Errors
    /// Why the packet was discarded.
    pub fn received(&mut self, now: Duration, arrival: &Arrival<'_>) -> Result<Vec<Effect>, Discarded> {
        let packet = Packet::decode(arrival.bytes)?;
        let key = match NonZeroU32::new(packet.your_discriminator) {
            Some(ours) => self.discriminators.get(&ours).copied(),
            None => self.by_key.keys().find(|key| key.is_of(arrival)).copied(),
        };
        let key = key.filter(|key| key.is_of(arrival)).ok_or(Discarded::Unknown)?;
        if arrival.ttl < key.multihop.unwrap_or(TTL) {
            return Err(Discarded::Ttl(arrival.ttl));
        }
        let session = self.by_key.get_mut(&key).ok_or(Discarded::Unknown)?;
        Ok(session.received(now, &packet).into_iter().map(|o| effect(key, o)).collect())
    }

    /// [`Session::held_up`], for all.
    pub fn held_up(&mut self, now: Duration, by: Duration) {
        self.by_key.values_mut().for_each(|session| session.held_up(now, by));
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.by_key.values().filter_map(Session::deadline).min()
    }

    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (key, session) in &mut self.by_key {
            effects.extend(session.tick(now).into_iter().map(|o| effect(*key, o)));
        }
        let over: Vec<_> = self.by_key.iter().filter(|(_, s)| s.is_over(now)).map(|(k, _)| *k).collect();
        for key in over {
            if let Some(session) = self.by_key.remove(&key) {
                self.discriminators.remove(&session.discriminator());
            }
            effects.push(Effect::Ended(key));
        }
        effects
    }
}

impl Key {
    fn is_of(&self, arrival: &Arrival<'_>) -> bool {
        self.peer == arrival.from
            && self.multihop.is_some() == arrival.multihop
            && self.local.is_none_or(|local| local == arrival.to)
            && self.ifindex.is_none_or(|ifindex| ifindex == arrival.ifindex)
    }
}

fn effect(key: Key, output: Output) -> Effect {
    match output {
        Output::Send(packet) => Effect::Send(key, packet),
        Output::Changed(change) => Effect::Changed(key, change),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bfd::Diagnostic;

    fn key(peer: &str) -> Key {
        Key { peer: peer.parse().unwrap(), local: None, ifindex: None, multihop: None }
    }

    fn sessions(keys: &[Key]) -> Sessions {
        let mut sessions = Sessions::default();
        sessions.configure(Duration::ZERO, &wanted(keys), counter());
        sessions
    }

    fn wanted(keys: &[Key]) -> BTreeMap<Key, Settings> {
        keys.iter().map(|k| (*k, Settings::DEFAULT)).collect()
    }

    fn counter() -> impl FnMut() -> u64 {
        let mut n = 0;
        move || {
            n += 1;
            n
        }
    }

    fn packet(your_discriminator: u32, state: State) -> Packet {
        Packet {
            diagnostic: Diagnostic::NONE,
            state,
            poll: false,
            is_final: false,
            control_plane_independent: true,
            demand: false,
            detect_mult: 3,
            my_discriminator: NonZeroU32::new(99).unwrap(),
            your_discriminator,
            desired_min_tx: 300_000,
            required_min_rx: 300_000,
            required_min_echo_rx: 0,
        }
    }

    fn arrive(
        sessions: &mut Sessions,
        from: &str,
        ttl: u8,
        packet: Packet,
    ) -> Result<Vec<Effect>, Discarded> {
        let arrival = Arrival {
            bytes: &packet.encode(),
            from: from.parse().unwrap(),
            to: "192.0.2.1".parse().unwrap(),
            ifindex: 2,
            ttl,
            multihop: false,
        };
        sessions.received(Duration::ZERO, &arrival)
    }

    #[test]
    fn a_first_packet_is_told_by_its_address_and_a_later_one_by_our_discriminator() {
        let (a, b) = (key("192.0.2.2"), key("192.0.2.3"));
        let mut sessions = sessions(&[a, b]);
        arrive(&mut sessions, "192.0.2.3", 255, packet(0, State::Down)).unwrap();
        assert_eq!(sessions.by_key[&b].state(), State::Init);
        let ours = sessions.by_key[&a].discriminator().get();
        arrive(&mut sessions, "192.0.2.2", 255, packet(ours, State::Init)).unwrap();
        assert_eq!(sessions.by_key[&a].state(), State::Up);
    }

    #[test]
    fn a_packet_from_beyond_the_link_is_not_believed() {
        let mut sessions = sessions(&[key("192.0.2.2")]);
        let discarded = arrive(&mut sessions, "192.0.2.2", 254, packet(0, State::Down)).unwrap_err();
        assert_eq!(discarded, Discarded::Ttl(254));
    }

    #[test]
    fn our_discriminator_is_worth_nothing_from_a_wrong_address() {
        let a = key("192.0.2.2");
        let mut sessions = sessions(&[a]);
        let ours = sessions.by_key[&a].discriminator().get();
        let discarded = arrive(&mut sessions, "192.0.2.66", 255, packet(ours, State::Init)).unwrap_err();
        assert_eq!(discarded, Discarded::Unknown);
        assert_eq!(sessions.by_key[&a].state(), State::Down);
    }

    #[test]
    fn a_multihop_packet_is_believed_down_to_its_lowest_ttl_and_only_on_its_own_port() {
        let far =
            Key { multihop: Some(250), local: Some("192.0.2.1".parse().unwrap()), ..key("198.51.100.1") };
        let mut sessions = sessions(&[far]);
        let bytes = packet(0, State::Down).encode();
        let mut arrival = Arrival {
            bytes: &bytes,
            from: far.peer,
            to: "192.0.2.1".parse().unwrap(),
            ifindex: 2,
            ttl: 249,
            multihop: true,
        };
        assert_eq!(sessions.received(Duration::ZERO, &arrival), Err(Discarded::Ttl(249)));
        arrival.ttl = 250;
        sessions.received(Duration::ZERO, &arrival).unwrap();
        assert_eq!(sessions.by_key[&far].state(), State::Init);
        arrival.multihop = false;
        assert_eq!(sessions.received(Duration::ZERO, &arrival), Err(Discarded::Unknown));
    }

    #[test]
    fn what_is_wanted_no_more_is_told_down_on_purpose_and_then_forgotten() {
        let (a, b) = (key("192.0.2.2"), key("192.0.2.3"));
        let mut sessions = sessions(&[a, b]);
        let effects = sessions.configure(Duration::ZERO, &wanted(&[b]), counter());
        assert!(matches!(effects[..], [
            Effect::Changed(_, Change { to: State::AdminDown, .. }),
            Effect::Send(key, Packet { state: State::AdminDown, .. }),
        ] if key == a));
        let effects = sessions.tick(Duration::from_secs(4));
        assert!(effects.contains(&Effect::Ended(a)));
        assert_eq!(sessions.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [b]);
        assert_eq!(sessions.discriminators.len(), 1);
    }

    #[test]
    fn the_same_set_again_changes_nothing() {
        let a = key("192.0.2.2");
        let mut sessions = sessions(&[a]);
        let ours = sessions.by_key[&a].discriminator();
        assert!(sessions.configure(Duration::ZERO, &wanted(&[a]), counter()).is_empty());
        assert_eq!(sessions.by_key[&a].discriminator(), ours);
    }

    #[test]
    fn one_that_is_leaving_and_wanted_again_begins_anew() {
        let a = key("192.0.2.2");
        let mut sessions = sessions(&[a]);
        sessions.configure(Duration::ZERO, &wanted(&[]), counter());
        sessions.configure(Duration::ZERO, &wanted(&[a]), counter());
        assert_eq!(sessions.by_key[&a].state(), State::Down);
        assert_eq!(sessions.discriminators.len(), 1);
    }
}
