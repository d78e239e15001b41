//! One neighbour whole: its state machine, its routes in and out, and what is announced when.
//!
//! Still no socket and no clock: the driver feeds inputs, asks for UPDATEs when the connection has room
//! ([`Neighbour::advertise`]) and does what the effects say. End-of-RIB (RFC 4724) is sent once per family
//! and session, after everything that was to be announced then; while this process takes over from an
//! earlier one, only after the caller has said that its set is whole.

use crate::Family;
use crate::export::{Export, NextHops, RouteAttributes, Withheld};
use crate::filter::Filter;
use crate::fsm::{ConnId, Down, Event, Input, Negotiated, Output, Peer, Settings, Stop, Timers, Up};
use crate::rib::{AdjRibIn, Loops, Path};
use crate::wire::{Notification, Refresh};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

mod cover;
mod inbound;
mod kept;
mod outbound;

use inbound::Inbound;
use kept::Kept;
use outbound::Outbound;

/// What is to be announced to everyone.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    pub routes: Arc<BTreeMap<IpNetwork, RouteAttributes>>,
    /// What is ours beside `routes`, announced or not: nothing of it is learned from others.
    pub own: Arc<BTreeSet<IpNetwork>>,
    /// `routes` holds all that an earlier process announced and that shall stay.
    pub initial_complete: bool,
    /// After so many sessions had begun ([`Neighbour::began`]), the exclusive ones among `routes` were found to be ours.
    pub verified: u64,
}

/// What is configured about a neighbour's routes. It may change while the session goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The AS number of this speaker, whatever the session's is.
    pub asn: u32,
    pub remove_private_as: bool,
    pub next_hops: NextHops,
    pub export: Filter,
    /// What passes is learned; the rest is only shown.
    pub import: Filter,
    /// How often our own AS number may stand in the path of what we receive.
    pub allow_own_as: u8,
    pub prefix_limit: Option<PrefixLimit>,
    pub leaving: Leaving,
}

/// Whether what goes by this neighbour is to go another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Leaving {
    #[default]
    No,
    /// Every route is announced with the community of RFC 8326.
    Marked,
    /// Nothing is announced.
    Withdrawn,
}

/// How many routes a neighbour may announce in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimit {
    pub max: u32,
    /// Percent of `max` from which on it is worth a warning.
    pub warn_at: u8,
    /// The session begins anew after that time; `None`: not before its configuration changes.
    pub retry: Option<Duration>,
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
    ManyPrefixes(ManyPrefixes),
}

/// More than [`PrefixLimit::warn_at`] says of what a neighbour may announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManyPrefixes {
    pub family: Family,
    pub count: usize,
    pub max: u32,
}

impl fmt::Display for ManyPrefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, count, max } = self;
        write!(
            f,
            "the peer announces {count} of the {max} routes of {family} that are allowed it: beyond them the session ends"
        )
    }
}

/// Whether a prefix is announced to a neighbour, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of ours.
    NotOurs,
    NoSession,
    /// The peer does not speak that family, or it is not configured.
    FamilyNotAgreed,
    Withheld(Withheld),
    /// The export filter's rule with that number, from 0; or its default.
    Filtered(Option<usize>),
    /// This neighbour is being left ([`Leaving::Withdrawn`]).
    Left,
    /// The session is new, and the route exclusive: see [`Neighbour::began`].
    Unverified,
    Announced {
        export: Arc<Export>,
        rule: Option<usize>,
    },
}

#[derive(Debug)]
pub struct Neighbour {
    peer: Peer,
    session_asn: u32,
    restarting: bool,
    restart_time: u16,
    policy: Policy,
    intent: Intent,
    outbound: Option<Outbound>,
    inbound: Inbound,
    kept: Kept,
    refreshes: u64,
}

impl Neighbour {
    pub fn new(settings: Settings, policy: Policy, now: Duration) -> Neighbour {
        let loops = Loops {
            asns: vec![settings.local_asn, policy.asn],
            allowed: policy.allow_own_as,
            router_id: settings.router_id,
        };
        Neighbour {
            session_asn: settings.local_asn,
            restarting: settings.restart.restarting,
            restart_time: settings.restart.time,
            inbound: Inbound::new(loops, policy.import.clone()),
            kept: Kept::new(now, &settings),
            peer: Peer::new(settings, now),
            policy,
            intent: Intent::default(),
            outbound: None,
            refreshes: 0,
        }
    }

    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(input, Input::PathDown { independent: true }) && self.outbound.is_none() {
            // RFC 5882 section 4.3.1: a restart that goes on is over, for nothing can be forwarded there.
            self.inbound.abandon();
        }
        self.feed(now, input, &mut effects);
        self.keep_limit(now, &mut effects);
        self.inbound.tick(now, self.outbound.is_some());
        effects
    }

    fn feed(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) {
        for output in self.peer.handle(now, input) {
            match output {
                Output::Connect => effects.push(Effect::Connect),
                Output::Send(id, bytes) => effects.push(Effect::Send(id, bytes)),
                Output::Close(id) => effects.push(Effect::Close(id)),
                Output::Event(event) => self.take_in(now, event, effects),
            }
        }
    }

    /// When [`Input::TimerTick`] is due next.
    pub fn deadline(&self) -> Option<Duration> {
        self.peer.deadline().into_iter().chain(self.inbound.deadline()).min()
    }

    pub fn set_intent(&mut self, intent: Intent) -> Vec<Effect> {
        self.intent = intent;
        self.inbound.set_own(&self.intent);
        self.recompute()
    }

    /// Filters, limits and next hops of a running session.
    pub fn set_policy(&mut self, now: Duration, policy: Policy) -> Vec<Effect> {
        let other_loops = policy.allow_own_as != self.policy.allow_own_as;
        if policy.prefix_limit != self.policy.prefix_limit {
            self.inbound.warn_anew();
        }
        self.policy = policy;
        self.inbound.set_import(self.policy.import.clone());
        self.inbound.allow_own_as(self.policy.allow_own_as);
        if let Some(outbound) = &mut self.outbound {
            outbound.set_policy(self.session_asn, &self.policy);
        }
        let mut effects = self.recompute();
        if other_loops {
            effects.extend(self.ask_again(now));
        }
        self.keep_limit(now, &mut effects);
        effects
    }

    /// Loops were not kept, so that only the peer can say them again (RFC 2918).
    fn ask_again(&mut self, now: Duration) -> Vec<Effect> {
        let negotiated = self.outbound.as_ref().map(Outbound::negotiated);
        let families = negotiated.filter(|negotiated| negotiated.route_refresh).map(|n| n.families.clone());
        let ask = |family| self.handle(now, Input::Refresh(family, Refresh::Request));
        families.into_iter().flatten().flat_map(ask).collect()
    }

    /// The session that has just come up is the speaker's `number`th: exclusive routes wait for [`Intent::verified`], and
    /// End-of-RIB for them, so that a neighbour that keeps what we announced before keeps it until then.
    pub fn began(&mut self, number: u64) {
        if let Some(outbound) = &mut self.outbound {
            outbound.began(number);
        }
    }

    pub fn set_timers(&mut self, timers: Timers) {
        self.peer.set_timers(timers);
    }

    fn recompute(&mut self) -> Vec<Effect> {
        let newly_withheld = self.outbound.as_mut().map(|outbound| outbound.set_routes(&self.intent));
        newly_withheld.into_iter().flatten().map(|why| Effect::Note(Note::Withheld(why))).collect()
    }

    /// UPDATEs that are due, at most some `room` octets of them (but whole messages).
    pub fn advertise(&mut self, now: Duration, room: usize) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut used = 0;
        let may_end = self.may_end_rib();
        while used < room {
            let Some(input) = self.outbound.as_mut().and_then(|outbound| outbound.next(may_end)) else {
                break;
            };
            for effect in self.handle(now, input) {
                if let Effect::Send(_, bytes) = &effect {
                    used += bytes.len();
                }
                effects.push(effect);
            }
        }
        if self.outbound.as_ref().is_some_and(Outbound::has_ended) {
            self.kept.ended();
        }
        effects
    }

    /// Nobody has announced anything to it so far.
    pub fn is_a_stranger(&mut self) {
        self.kept = Kept::No;
    }

    /// It has heard what it was told at the end of its last session.
    pub fn told(&mut self) {
        self.kept.told();
    }

    /// The peer may keep routes of an earlier session of ours, which cannot be withdrawn now.
    pub fn may_be_kept(&self, now: Duration) -> bool {
        self.kept.is_possible(now)
    }

    /// Until when it may, should there be no session with it any more.
    pub fn kept_until(&self, now: Duration) -> Option<Duration> {
        self.kept.until(now, self.restart_time)
    }

    /// Everything that was to be announced or withdrawn was handed out.
    pub fn is_settled(&self) -> bool {
        let may_end = self.may_end_rib();
        self.outbound.as_ref().is_none_or(|outbound| outbound.is_settled(may_end))
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// How often the peer asked for a family again.
    pub fn refreshes(&self) -> u64 {
        self.refreshes
    }

    /// Everything that was received, whatever the import filter says of it.
    pub fn received(&self) -> &AdjRibIn {
        self.inbound.rib()
    }

    /// What of a prefix passes the import filter, as that leaves it; nothing of what is our own, or a part of it: learned
    /// back, it would lead away from our own pods.
    pub fn learned(&self, prefix: &IpNetwork) -> Vec<Arc<Path>> {
        self.inbound.learned(prefix)
    }

    /// Of which prefixes [`Self::learned`] may have changed since this was asked last; may name one twice.
    pub fn take_learned_changes(&mut self) -> Vec<IpNetwork> {
        self.inbound.take_changed()
    }

    /// Something may be learned, and the peer has not said everything in this session yet, or there was none so far. Of one
    /// that is lost and of which nothing is kept, or no longer, nothing is expected.
    pub fn is_learning(&self) -> bool {
        let families = self.outbound.as_ref().map(Outbound::families);
        let all = families.is_some_and(|all| all.iter().all(|family| self.inbound.has_ended(family)));
        !all && !self.inbound.learns_nothing() && !self.inbound.is_given_up()
    }

    pub fn advertised(&self) -> impl Iterator<Item = (&IpNetwork, &Export)> {
        self.outbound.iter().flat_map(Outbound::sent)
    }

    /// Why routes are kept from this neighbour; empty without a session.
    pub fn withheld(&self) -> impl Iterator<Item = Withheld> + '_ {
        self.outbound.iter().flat_map(Outbound::withheld)
    }

    pub fn fate(&self, prefix: &IpNetwork) -> Fate {
        let Some(route) = self.intent.routes.get(prefix) else {
            return Fate::NotOurs;
        };
        self.outbound.as_ref().map_or(Fate::NoSession, |outbound| outbound.fate(prefix, route))
    }

    /// There is a session, and in it the neighbour has said all that it has of this family; also where it never will.
    pub fn has_heard(&self, family: Family) -> bool {
        let said = |out: &Outbound| !out.families().contains(&family) || self.inbound.has_ended(&family);
        self.outbound.as_ref().is_some_and(said)
    }

    fn may_end_rib(&self) -> bool {
        let complete = !self.restarting || self.intent.initial_complete;
        complete && self.outbound.as_ref().is_none_or(|outbound| !outbound.holds_back())
    }

    fn take_in(&mut self, now: Duration, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Up(up) => self.up(now, up, effects),
            Event::Update(update) => {
                effects.extend(update.malformed.clone().map(|why| Effect::Note(Note::Malformed(why))));
                if let Some(outbound) = &self.outbound {
                    self.inbound.update(update, outbound.families());
                }
            }
            Event::EndOfRib(family) => self.inbound.end_of_rib(now, family),
            Event::RefreshEnds(family) => self.inbound.sweep(family),
            Event::RefreshBegins(family) => self.inbound.begin_refresh(now, family),
            Event::RefreshRequested(family) => {
                self.refreshes += 1;
                if let Some(outbound) = &mut self.outbound {
                    outbound.refresh(family);
                }
            }
            Event::Down(down) => {
                self.down(now, &down);
                effects.push(Effect::Note(Note::Down(down)));
            }
        }
    }

    /// RFC 4486: only an established session is ended by it.
    fn keep_limit(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let Some(limit) = self.policy.prefix_limit.filter(|_| self.outbound.is_some()) else { return };
        if let Some(family) = self.inbound.over(limit.max) {
            let stop = Stop::TooManyPrefixes { family, limit: limit.max, retry: limit.retry };
            return self.feed(now, Input::Stop(stop), effects);
        }
        let warnings = self.inbound.warnings(limit).into_iter();
        effects.extend(warnings.map(|many| Effect::Note(Note::ManyPrefixes(many))));
    }

    /// Of which families the neighbour announces nearly as many routes as it may now; empty without a session.
    pub fn many_prefixes(&self) -> Vec<ManyPrefixes> {
        let limit = self.policy.prefix_limit.filter(|_| self.outbound.is_some());
        limit.map(|limit| self.inbound.many(limit).collect()).unwrap_or_default()
    }

    fn up(&mut self, now: Duration, up: Up, effects: &mut Vec<Effect>) {
        effects.push(Effect::Note(Note::Up(up.negotiated.clone())));
        self.inbound.up(now, &up.negotiated);
        self.kept.up();
        self.outbound = Some(Outbound::new(self.session_asn, &self.policy, up));
        effects.extend(self.recompute());
    }

    fn down(&mut self, now: Duration, down: &Down) {
        if let Some(outbound) = self.outbound.take() {
            self.inbound.down(now, outbound.negotiated(), down.keep_stale);
            self.kept.down(now, outbound.negotiated(), &down.reason, self.restart_time);
        }
    }
}

#[cfg(test)]
mod tests;
