//! One neighbour whole: its state machine, its routes in and out, and what is announced when.
//!
//! Still no socket and no clock: the driver feeds inputs, asks for UPDATEs when the connection has room
//! ([`Neighbour::advertise`]) and does what the effects say. End-of-RIB (RFC 4724) is sent once per family
//! and session, after everything that was to be announced then; while this process takes over from an
//! earlier one, only after the caller has said that its set is whole.

use crate::Family;
use crate::export::{Export, ExportPolicy, NextHops, RouteAttributes, Withheld};
use crate::fsm::{ConnId, Down, Event, Input, Negotiated, Output, Peer, Settings, Up};
use crate::rib::{AdjRibIn, AdjRibOut, Batch};
use crate::wire::{MAX_LEN, Message, Notification, Reach, Update};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What is to be announced to everyone.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    pub routes: Arc<BTreeMap<IpNetwork, RouteAttributes>>,
    /// `routes` holds all that an earlier process announced and that shall stay.
    pub initial_complete: bool,
}

/// What the driver is to do. The first three are those of [`Output`].
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Connect,
    Send(ConnId, Vec<u8>),
    Close(ConnId),
    /// Worth a line in the log.
    Note(Note),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    Up(Negotiated),
    Down(Down),
    /// An UPDATE whose routes were taken for withdrawn (RFC 7606).
    Malformed(Notification),
    Withheld(Withheld),
}

/// RFC 4724 section 4.2: how long routes from before a peer's restart are kept at most once its session is
/// up again, should End-of-RIB not come.
const STALE_LIMIT: Duration = Duration::from_secs(360);

#[derive(Debug)]
pub struct Neighbour {
    peer: Peer,
    local_asn: u32,
    restarting: bool,
    next_hops: NextHops,
    intent: Intent,
    outbound: Option<Outbound>,
    received: AdjRibIn,
    /// Stale routes go then.
    stale_until: Option<Duration>,
}

/// What only an established session has.
#[derive(Debug)]
struct Outbound {
    policy: ExportPolicy,
    negotiated: Negotiated,
    rib: AdjRibOut<Arc<Export>>,
    withheld: BTreeSet<Withheld>,
    end_of_rib_due: BTreeSet<Family>,
}

impl Neighbour {
    pub fn new(settings: Settings, next_hops: NextHops, now: Duration) -> Neighbour {
        Neighbour {
            local_asn: settings.local_asn,
            restarting: settings.restart.restarting,
            received: AdjRibIn::new(settings.local_asn),
            peer: Peer::new(settings, now),
            next_hops,
            intent: Intent::default(),
            outbound: None,
            stale_until: None,
        }
    }

    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let outputs = self.peer.handle(now, input);
        let mut effects = Vec::with_capacity(outputs.len());
        for output in outputs {
            match output {
                Output::Connect => effects.push(Effect::Connect),
                Output::Send(id, bytes) => effects.push(Effect::Send(id, bytes)),
                Output::Close(id) => effects.push(Effect::Close(id)),
                Output::Event(event) => self.take_in(now, event, &mut effects),
            }
        }
        if self.stale_until.is_some_and(|until| until <= now) {
            Family::ALL.into_iter().for_each(|family| self.received.sweep(family));
            self.stale_until = None;
        }
        effects
    }

    /// When [`Input::TimerTick`] is due next.
    pub fn deadline(&self) -> Option<Duration> {
        self.peer.deadline().into_iter().chain(self.stale_until).min()
    }

    pub fn set_intent(&mut self, intent: Intent) -> Vec<Effect> {
        self.intent = intent;
        let newly_withheld = self.outbound.as_mut().map(|outbound| outbound.set_routes(&self.intent.routes));
        newly_withheld.into_iter().flatten().map(|why| Effect::Note(Note::Withheld(why))).collect()
    }

    /// UPDATEs that are due, at most some `room` octets of them (but whole messages).
    pub fn advertise(&mut self, now: Duration, room: usize) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut used = 0;
        while used < room {
            let Some(update) = self.next_update() else {
                break;
            };
            for effect in self.handle(now, Input::Advertise(update)) {
                if let Effect::Send(_, bytes) = &effect {
                    used += bytes.len();
                }
                effects.push(effect);
            }
        }
        effects
    }

    /// Everything that was to be announced or withdrawn was handed out.
    pub fn is_settled(&self) -> bool {
        let may_end = self.may_end_rib();
        let settled = |o: &Outbound| o.rib.is_settled() && (!may_end || o.end_of_rib_due.is_empty());
        self.outbound.as_ref().is_none_or(settled)
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub fn received(&self) -> &AdjRibIn {
        &self.received
    }

    pub fn advertised(&self) -> impl Iterator<Item = (&IpNetwork, &Export)> {
        let sent = self.outbound.iter().flat_map(|outbound| outbound.rib.sent());
        sent.map(|(prefix, export)| (prefix, export.as_ref()))
    }

    /// Why routes are kept from this neighbour; empty without a session.
    pub fn withheld(&self) -> impl Iterator<Item = Withheld> + '_ {
        self.outbound.iter().flat_map(|outbound| outbound.withheld.iter().copied())
    }

    fn may_end_rib(&self) -> bool {
        !self.restarting || self.intent.initial_complete
    }

    fn next_update(&mut self) -> Option<Update> {
        let may_end = self.may_end_rib();
        self.outbound.as_mut()?.next_update(may_end)
    }

    fn take_in(&mut self, now: Duration, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Up(up) => self.up(now, up, effects),
            Event::Update(update) => {
                effects.extend(update.malformed.clone().map(|why| Effect::Note(Note::Malformed(why))));
                if let Some(outbound) = &self.outbound {
                    self.received.apply(update, &outbound.negotiated.families);
                }
            }
            Event::EndOfRib(family) => self.received.sweep(family),
            Event::RefreshRequested(family) => {
                if let Some(outbound) = &mut self.outbound {
                    outbound.rib.resend(family);
                }
            }
            Event::Down(down) => {
                self.down(now, &down);
                effects.push(Effect::Note(Note::Down(down)));
            }
        }
        if !self.received.has_stale() {
            self.stale_until = None;
        }
    }

    fn up(&mut self, now: Duration, up: Up, effects: &mut Vec<Effect>) {
        effects.push(Effect::Note(Note::Up(up.negotiated.clone())));
        for family in Family::ALL {
            if !up.negotiated.families.contains(&family) || !up.negotiated.peer_kept_forwarding(family) {
                self.received.sweep(family);
            }
        }
        self.stale_until = Some(now + STALE_LIMIT);

        let mut outbound = Outbound {
            policy: ExportPolicy::new(self.local_asn, self.next_hops, &up),
            end_of_rib_due: up.negotiated.families.iter().copied().collect(),
            negotiated: up.negotiated,
            rib: AdjRibOut::default(),
            withheld: BTreeSet::new(),
        };
        let withheld = outbound.set_routes(&self.intent.routes);
        effects.extend(withheld.into_iter().map(|why| Effect::Note(Note::Withheld(why))));
        self.outbound = Some(outbound);
    }

    fn down(&mut self, now: Duration, down: &Down) {
        let ended = self.outbound.take();
        let restart = ended.and_then(|outbound| outbound.negotiated.restart).filter(|_| down.keep_stale);
        match restart {
            Some(restart) => {
                let families: Vec<Family> = restart.families.iter().map(|kept| kept.family).collect();
                self.received.mark_stale(&families);
                self.stale_until = Some(now + Duration::from_secs(restart.time.into()));
            }
            None => self.received.clear(),
        }
    }
}

impl Outbound {
    /// Answers what is withheld now and was not before.
    fn set_routes(&mut self, routes: &BTreeMap<IpNetwork, RouteAttributes>) -> Vec<Withheld> {
        let mut exports: BTreeMap<(Family, &RouteAttributes), Result<Arc<Export>, Withheld>> =
            BTreeMap::new();
        let mut desired = BTreeMap::new();
        let mut withheld = BTreeSet::new();
        for (prefix, attributes) in routes {
            let family = Family::of(prefix);
            if !self.negotiated.families.contains(&family) {
                continue;
            }
            let export = exports
                .entry((family, attributes))
                .or_insert_with(|| self.policy.export(family, attributes).map(Arc::new));
            match export {
                Ok(export) => drop(desired.insert(*prefix, export.clone())),
                Err(why) => drop(withheld.insert(*why)),
            }
        }
        self.rib.set_desired(desired);
        let before = std::mem::replace(&mut self.withheld, withheld);
        self.withheld.difference(&before).copied().collect()
    }

    fn next_update(&mut self, may_end_rib: bool) -> Option<Update> {
        let settled = |family: &&Family| may_end_rib && self.rib.is_settled_in(**family);
        if let Some(family) = self.end_of_rib_due.iter().find(settled).copied() {
            self.end_of_rib_due.remove(&family);
            return Some(Update::end_of_rib(family));
        }
        let context = self.negotiated.context();
        let batch = self.rib.next(|family, export| {
            let empty = match export {
                Some(export) => announcement(family, export, Vec::new()),
                None => Update::withdraw(family, Vec::new()),
            };
            MAX_LEN - Message::Update(empty).encode(context).len()
        })?;
        Some(match batch {
            Batch::Withdraw { family, prefixes } => Update::withdraw(family, prefixes),
            Batch::Announce { family, attributes, prefixes } => announcement(family, &attributes, prefixes),
        })
    }
}

fn announcement(family: Family, export: &Export, prefixes: Vec<IpNetwork>) -> Update {
    Update::announce(export.attributes.clone(), Reach { family, next_hop: export.next_hop, prefixes })
}

#[cfg(test)]
mod tests;
