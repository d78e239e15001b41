//! What one neighbour's task tells the collectors, and the octets that it must have kept for it.

use super::{Session, Sessions, Stations};
use crate::Family;
use crate::bmp::{Message, PeerHeader, Reason, Statistics, Tap, is_update};
use crate::driver::record::Messages;
use crate::fsm::{ConnId, Down, Negotiated, PeerError};
use crate::neighbour::{Effect, Neighbour, Note};
use crate::rib::{AdjRibIn, Path};
use crate::wire::{Framer, MAX_LEN, Message as Bgp, Reach, Update, encoded_len};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// What went over a connection, and its two ends.
struct Wire {
    tap: Tap,
    local: SocketAddr,
    remote: SocketAddr,
}

/// A session that collectors know of.
#[derive(Clone)]
struct Established {
    id: ConnId,
    negotiated: Negotiated,
    peer: PeerHeader,
    up: Message,
}

pub(in crate::driver) struct Monitored {
    watching: watch::Receiver<Sessions>,
    /// The collectors that were told of this peer, and how many reports they got.
    known: BTreeMap<u64, (Arc<Session>, u64)>,
    wires: BTreeMap<ConnId, Wire>,
    session: Option<Established>,
    treated_as_withdraw: u32,
    pub sent: Messages,
    pub received: Messages,
}

impl Monitored {
    pub fn new(stations: &Stations) -> Monitored {
        let mut watching = stations.watch();
        watching.mark_changed();
        Monitored {
            watching,
            known: BTreeMap::new(),
            wires: BTreeMap::new(),
            session: None,
            treated_as_withdraw: 0,
            sent: Messages::default(),
            received: Messages::default(),
        }
    }

    /// Waits until collectors came, went or ask for a report: then [`Self::attend`]. For ever, when there can be none.
    pub async fn changed(&mut self) {
        if self.watching.changed().await.is_err() {
            std::future::pending().await
        }
        self.watching.mark_changed();
    }

    pub fn open(&mut self, id: ConnId, local: SocketAddr, remote: SocketAddr) {
        self.wires.insert(id, Wire { tap: Tap::default(), local, remote });
    }

    pub fn close(&mut self, id: ConnId) {
        self.wires.remove(&id);
    }

    /// Counts what came, and answers its whole UPDATEs where somebody wants them.
    pub fn received(&mut self, id: ConnId, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut updates = Vec::new();
        let Some(wire) = self.wires.get_mut(&id) else { return updates };
        wire.tap.received(bytes, |message| {
            self.received.count(message);
            if !self.known.is_empty() && is_update(message) {
                updates.push(message.to_vec());
            }
        });
        updates
    }

    /// What became of an input: `updates` came by it, on the connection `id`.
    pub fn tell(&mut self, id: Option<ConnId>, updates: Vec<Vec<u8>>, effects: &[Effect]) {
        let faults = effects.iter().filter(|e| matches!(e, Effect::Note(Note::Malformed(_)))).count() as u32;
        self.treated_as_withdraw = self.treated_as_withdraw.wrapping_add(faults);
        let mut updates = Some(updates);
        let mut monitor = |this: &Monitored| {
            let of_session = this.session.as_ref().filter(|session| Some(session.id) == id);
            if let Some(session) = of_session {
                updates
                    .take()
                    .into_iter()
                    .flatten()
                    .for_each(|u| this.route_monitoring(session, u, faults > 0));
            }
        };
        for effect in effects {
            match effect {
                Effect::Send(id, message) => {
                    self.sent.count(message);
                    if let Some(wire) = self.wires.get_mut(id) {
                        wire.tap.sent(message);
                    }
                }
                Effect::Note(Note::Up(negotiated)) => {
                    if let Some(id) = id {
                        self.up(id, negotiated);
                    }
                }
                Effect::Note(Note::Down(down)) => {
                    monitor(self);
                    self.down(down);
                }
                _ => {}
            }
        }
        monitor(self);
        // Only now: the last NOTIFICATION stands before the close.
        effects.iter().for_each(|effect| {
            if let Effect::Close(id) = effect {
                self.close(*id);
            }
        });
    }

    fn up(&mut self, id: ConnId, negotiated: &Negotiated) {
        let Some(wire) = self.wires.get(&id) else { return };
        let peer = PeerHeader {
            address: wire.remote.ip().to_canonical(),
            asn: negotiated.peer_asn,
            router_id: negotiated.peer_router_id,
            two_octet_as: !negotiated.four_octet_as,
            time: now(),
        };
        let up = Message::PeerUp {
            peer,
            local: wire.local.ip().to_canonical(),
            local_port: wire.local.port(),
            remote_port: wire.remote.port(),
            sent: wire.tap.sent_open.clone(),
            received: wire.tap.received_open.clone(),
        };
        self.to_all(&up);
        self.session = Some(Established { id, negotiated: negotiated.clone(), peer, up });
    }

    fn down(&mut self, down: &Down) {
        let Some(session) = self.session.take() else { return };
        let tap = self.wires.get_mut(&session.id).map(|wire| &mut wire.tap);
        let (sent, received) =
            tap.map_or((None, None), |tap| (tap.sent_notification.take(), tap.received_notification.take()));
        let reason = match (&down.reason, sent, received) {
            (PeerError::Received { .. }, _, Some(message)) => Reason::RemoteNotification(message),
            (PeerError::Deconfigured, ..) => Reason::Deconfigured,
            (_, Some(message), _) => Reason::LocalNotification(message),
            (PeerError::Closed(_) | PeerError::PeerRestarted, ..) => Reason::RemoteClosed,
            _ => Reason::LocalEvent(0),
        };
        self.to_all(&Message::PeerDown { peer: session.header(), reason });
    }

    fn route_monitoring(&self, session: &Established, update: Vec<u8>, faults: bool) {
        let update = if faults { as_taken(update, &session.negotiated) } else { update };
        self.to_all(&Message::RouteMonitoring { peer: session.header(), update });
    }

    fn to_all(&self, message: &Message) {
        self.known.values().for_each(|(session, _)| session.push(message));
    }

    /// Tells new collectors what there is, and reports to those who want to know.
    pub fn attend(&mut self, neighbour: &Neighbour) {
        let sessions = self.watching.borrow_and_update().clone();
        self.known.retain(|id, _| sessions.iter().any(|(session, _)| session.id == *id));
        for (collector, asked) in sessions {
            let known = self.known.get(&collector.id).map(|(_, reports)| *reports);
            match (&self.session, known) {
                (Some(session), None) => session.state(&collector, neighbour.received()),
                (Some(session), Some(reports)) if reports != asked => {
                    let statistics = self.statistics(neighbour.received());
                    collector.push(&Message::Statistics { peer: session.header(), statistics });
                }
                _ => {}
            }
            self.known.insert(collector.id, (collector, asked));
        }
    }

    fn statistics(&self, rib: &AdjRibIn) -> Statistics {
        Statistics {
            treated_as_withdraw: self.treated_as_withdraw,
            routes: Family::ALL.map(|family| rib.len_of(family) as u64),
        }
    }
}

/// The task ends without a word to the peer.
impl Drop for Monitored {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // RFC 4271 section 8.1.2: ManualStop.
            self.to_all(&Message::PeerDown { peer: session.header(), reason: Reason::LocalEvent(2) });
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// RFC 7854 section 5: an UPDATE whose routes were taken for withdrawn is told as the withdrawal that it is.
fn as_taken(update: Vec<u8>, negotiated: &Negotiated) -> Vec<u8> {
    let mut framer = Framer::default();
    framer.push(&update);
    match framer.next(negotiated.context()) {
        Some(Ok(Bgp::Update(taken))) if taken.malformed.is_some() => {
            let taken = Update { malformed: None, ..taken };
            Bgp::Update(taken).encode(negotiated.context())
        }
        _ => update,
    }
}

impl Established {
    fn header(&self) -> PeerHeader {
        PeerHeader { time: now(), ..self.peer }
    }

    /// Peer Up, every route, and that these were all (section 5).
    fn state(&self, collector: &Session, rib: &AdjRibIn) {
        collector.push_state(&self.up);
        let monitor = |update: Update| {
            let update = Bgp::Update(update).encode(self.negotiated.context());
            collector.push_state(&Message::RouteMonitoring { peer: self.header(), update });
        };
        updates(rib, self, monitor);
        self.negotiated.families.iter().for_each(|family| monitor(Update::end_of_rib(*family)));
    }
}

type Prefixes = (Vec<IpNetwork>, Vec<u32>);

/// All routes, those of one set of attributes together.
fn updates(rib: &AdjRibIn, session: &Established, mut each: impl FnMut(Update)) {
    let mut paths: BTreeMap<(*const Path, Family), (Arc<Path>, Prefixes)> = BTreeMap::new();
    for route in rib.iter() {
        let family = Family::of(&route.prefix);
        let key = (Arc::as_ptr(&route.path), family);
        let (_, (prefixes, ids)) =
            paths.entry(key).or_insert_with(|| (route.path.clone(), Prefixes::default()));
        prefixes.push(route.prefix);
        ids.extend(session.negotiated.add_path.contains(&family).then_some(route.path_id));
    }
    for ((_, family), (path, (prefixes, ids))) in paths {
        let announce = |prefixes: &[IpNetwork], path_ids: &[u32]| {
            let reach = Reach {
                family,
                next_hop: path.next_hop,
                prefixes: prefixes.to_vec(),
                path_ids: path_ids.to_vec(),
            };
            Update::announce(path.attributes.clone(), reach)
        };
        let context = session.negotiated.context();
        let room = MAX_LEN.saturating_sub(Bgp::Update(announce(&[], &[])).encode(context).len());
        let octets = |prefix: &IpNetwork| encoded_len(prefix) + if ids.is_empty() { 0 } else { 4 };
        let mut start = 0;
        while start < prefixes.len() {
            let sums = prefixes[start..].iter().scan(0, |used, prefix| {
                *used += octets(prefix);
                Some(*used)
            });
            // One at least: what came in one message fits in one, if it may be long.
            let end = start + sums.take_while(|used| *used <= room).count().max(1);
            each(announce(&prefixes[start..end], ids.get(start..end).unwrap_or_default()));
            start = end;
        }
    }
}
