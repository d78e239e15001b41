//! What an established session sends: routes, their ends, and answers to refreshes.

use super::{Fate, Intent, Leaving, Policy};
use crate::Family;
use crate::export::{Export, ExportPolicy, LocalAs, RouteAttributes, Withheld};
use crate::filter::Filter;
use crate::fsm::{Input, Negotiated, Up};
use crate::rib::{AdjRibOut, Batch};
use crate::wire::{Message, Reach, Refresh, Update};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Outbound {
    up: Up,
    policy: ExportPolicy,
    filter: Filter,
    leaving: Leaving,
    rib: AdjRibOut<Arc<Export>>,
    withheld: BTreeSet<Withheld>,
    end_of_rib_due: BTreeSet<Family>,
    /// RFC 7313: answers that are to begin, and such that are to end.
    refresh_begins: BTreeSet<Family>,
    refresh_ends: BTreeSet<Family>,
    /// Of the session, among all of the speaker's.
    number: u64,
    /// After so many sessions exclusive routes were found to be ours.
    verified: u64,
    /// There are such, and they wait.
    holds_back: bool,
}

/// Attributes of one kind, or why they are not sent, with the rule that decided.
type Decided = (Result<Arc<Export>, Refused>, Option<usize>);

#[derive(Clone, Copy, Debug)]
enum Refused {
    Withheld(Withheld),
    Filtered,
    Left,
}

fn export_policy(session_asn: u32, policy: &Policy, up: &Up) -> ExportPolicy {
    let local = LocalAs { session: session_asn, own: policy.asn, remove_private: policy.remove_private_as };
    ExportPolicy::new(local, policy.next_hops, up).leaving(policy.leaving == Leaving::Marked)
}

impl Outbound {
    pub fn new(session_asn: u32, policy: &Policy, up: Up) -> Outbound {
        Outbound {
            policy: export_policy(session_asn, policy, &up),
            filter: policy.export.clone(),
            leaving: policy.leaving,
            end_of_rib_due: up.negotiated.families.iter().copied().collect(),
            up,
            rib: AdjRibOut::default(),
            withheld: BTreeSet::new(),
            refresh_begins: BTreeSet::new(),
            refresh_ends: BTreeSet::new(),
            number: u64::MAX,
            verified: 0,
            holds_back: false,
        }
    }

    pub fn began(&mut self, number: u64) {
        self.number = number;
    }

    /// Routes wait until it is known that they are ours.
    pub fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// End-of-RIB of every family was handed out.
    pub fn has_ended(&self) -> bool {
        self.end_of_rib_due.is_empty()
    }

    fn waits(&self, route: &RouteAttributes) -> bool {
        route.exclusive && self.verified < self.number
    }

    pub fn set_policy(&mut self, session_asn: u32, policy: &Policy) {
        self.policy = export_policy(session_asn, policy, &self.up);
        self.filter = policy.export.clone();
        self.leaving = policy.leaving;
    }

    pub fn negotiated(&self) -> &Negotiated {
        &self.up.negotiated
    }

    pub fn families(&self) -> &[Family] {
        &self.up.negotiated.families
    }

    pub fn sent(&self) -> impl Iterator<Item = (&IpNetwork, &Export)> {
        self.rib.sent().map(|(prefix, export)| (prefix, export.as_ref()))
    }

    pub fn withheld(&self) -> impl Iterator<Item = Withheld> + '_ {
        self.withheld.iter().copied()
    }

    /// Answers what is withheld now and was not before.
    pub fn set_routes(&mut self, intent: &Intent) -> Vec<Withheld> {
        (self.verified, self.holds_back) = (intent.verified, false);
        let mut shared: BTreeMap<Arc<Export>, Arc<Export>> = BTreeMap::new();
        let mut exports: BTreeMap<(Family, &RouteAttributes), Result<Export, Withheld>> = BTreeMap::new();
        let mut desired = BTreeMap::new();
        let mut withheld = BTreeSet::new();
        for (prefix, attributes) in &*intent.routes {
            let family = Family::of(prefix);
            if !self.families().contains(&family) {
                continue;
            }
            if self.waits(attributes) {
                self.holds_back = true;
                continue;
            }
            let export =
                exports.entry((family, attributes)).or_insert_with(|| self.policy.export(family, attributes));
            match self.decide(prefix, export.clone()).0 {
                Ok(export) => {
                    let export = shared.entry(export.clone()).or_insert(export);
                    desired.insert(*prefix, export.clone());
                }
                Err(Refused::Withheld(why)) => drop(withheld.insert(why)),
                Err(Refused::Filtered | Refused::Left) => {}
            }
        }
        self.rib.set_desired(desired);
        let before = std::mem::replace(&mut self.withheld, withheld);
        self.withheld.difference(&before).copied().collect()
    }

    /// What the export filter makes of a route.
    fn decide(&self, prefix: &IpNetwork, export: Result<Export, Withheld>) -> Decided {
        if self.leaving == Leaving::Withdrawn {
            return (Err(Refused::Left), None);
        }
        let mut export = match export {
            Ok(export) => export,
            Err(why) => return (Err(Refused::Withheld(why)), None),
        };
        let rule = self.filter.matching(prefix, &export.attributes);
        if !self.filter.accepts(rule) {
            return (Err(Refused::Filtered), rule);
        }
        self.filter.change(rule, &mut export.attributes);
        if self.policy.is_external() {
            export.attributes.local_pref = None;
        }
        (Ok(Arc::new(export)), rule)
    }

    pub fn fate(&self, prefix: &IpNetwork, route: &RouteAttributes) -> Fate {
        let family = Family::of(prefix);
        if !self.families().contains(&family) {
            return Fate::FamilyNotAgreed;
        }
        if self.waits(route) {
            return Fate::Unverified;
        }
        match self.decide(prefix, self.policy.export(family, route)) {
            (Ok(export), rule) => Fate::Announced { export, rule },
            (Err(Refused::Withheld(why)), _) => Fate::Withheld(why),
            (Err(Refused::Filtered), rule) => Fate::Filtered(rule),
            (Err(Refused::Left), _) => Fate::Left,
        }
    }

    /// The peer wants everything of `family` again.
    pub fn refresh(&mut self, family: Family) {
        // Before End-of-RIB nothing has to be marked: what is sent is everything.
        if self.up.negotiated.enhanced_refresh && !self.end_of_rib_due.contains(&family) {
            self.refresh_begins.insert(family);
        } else {
            self.rib.resend(family);
        }
    }

    pub fn is_settled(&self, may_end_rib: bool) -> bool {
        let marks = self.refresh_begins.is_empty() && self.refresh_ends.is_empty();
        self.rib.is_settled() && marks && (!may_end_rib || self.end_of_rib_due.is_empty())
    }

    /// The next message that is due.
    pub fn next(&mut self, may_end_rib: bool) -> Option<Input> {
        if let Some(family) = self.refresh_begins.pop_first() {
            self.rib.resend(family);
            self.refresh_ends.insert(family);
            return Some(Input::Refresh(family, Refresh::Begin));
        }
        let settled = |family: &&Family| self.rib.is_settled_in(**family);
        if let Some(family) = self.refresh_ends.iter().find(settled).copied() {
            self.refresh_ends.remove(&family);
            return Some(Input::Refresh(family, Refresh::End));
        }
        if let Some(family) = self.end_of_rib_due.iter().filter(|_| may_end_rib).find(settled).copied() {
            self.end_of_rib_due.remove(&family);
            return Some(Input::Advertise(Update::end_of_rib(family)));
        }
        self.next_update().map(Input::Advertise)
    }

    fn next_update(&mut self) -> Option<Update> {
        let context = self.up.negotiated.context();
        let batch = self.rib.next(|family, export| {
            let empty = match export {
                Some(export) => announcement(family, export, Vec::new()),
                None => Update::withdraw(family, Vec::new()),
            };
            context.longest() - Message::Update(empty).encode(context).len()
        })?;
        Some(match batch {
            Batch::Withdraw { family, prefixes } => Update::withdraw(family, prefixes),
            Batch::Announce { family, attributes, prefixes } => announcement(family, &attributes, prefixes),
        })
    }
}

fn announcement(family: Family, export: &Export, prefixes: Vec<IpNetwork>) -> Update {
    Update::announce(export.attributes.clone(), Reach::new(family, export.next_hop, prefixes))
}
