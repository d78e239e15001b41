//! What a neighbour announces: held while it restarts, filtered, counted.
//!
//! What is learned is not held a second time: it is the table seen through the import filter, and told by its changes.

use super::cover::Cover;
use super::{Intent, ManyPrefixes, PrefixLimit};
use crate::Family;
use crate::export::GRACEFUL_SHUTDOWN;
use crate::filter::Filter;
use crate::fsm::Negotiated;
use crate::rib::{AdjRibIn, Changed, Loops, Path};
use crate::wire::{LongLived, Update};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// RFC 4724 section 4.2: how long routes from before a peer's restart are kept at most once its session is
/// up again, should End-of-RIB not come. RFC 7313 wants the same for the end of an answer to a refresh.
const STALE_LIMIT: Duration = Duration::from_secs(360);

/// How long routes of before a restart are kept after an End-of-RIB that came before any route. RFC 4724 section 4.2 wants them
/// gone at once, but FRR 8.4 that begins to run says End-of-RIB first and its own routes a moment later.
const EARLY_END: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Inbound {
    rib: AdjRibIn,
    import: Filter,
    /// What is our own: it is not learned from others.
    own: Cover,
    /// Of which something else may be learned now; may name one twice.
    changed: Vec<IpNetwork>,
    /// Stale routes of a family go then, or are long-lived from then on.
    stale_until: BTreeMap<Family, Duration>,
    /// What the peer asked for beyond its restart time, as far as that has not begun.
    long_lived: Vec<LongLived>,
    warned: BTreeSet<Family>,
    /// Whose End-of-RIB came in this session.
    ended: BTreeSet<Family>,
    /// Of which a route came in this session.
    announced: BTreeSet<Family>,
    /// There was a session, and there is none.
    lost: bool,
}

impl Inbound {
    pub fn new(loops: Loops, import: Filter) -> Inbound {
        Inbound {
            rib: AdjRibIn::new(loops),
            import,
            own: Cover::default(),
            changed: Vec::new(),
            stale_until: BTreeMap::new(),
            long_lived: Vec::new(),
            warned: BTreeSet::new(),
            ended: BTreeSet::new(),
            announced: BTreeSet::new(),
            lost: false,
        }
    }

    pub fn rib(&self) -> &AdjRibIn {
        &self.rib
    }

    /// What is learned of a prefix, as the import filter leaves it.
    pub fn learned(&self, prefix: &IpNetwork) -> Vec<Arc<Path>> {
        if self.learns_nothing() || self.own.holds(prefix) {
            return Vec::new();
        }
        let paths = self.rib.paths(prefix).into_iter();
        paths.filter_map(|route| self.passed(prefix, route.path)).collect()
    }

    pub fn take_changed(&mut self) -> Vec<IpNetwork> {
        std::mem::take(&mut self.changed)
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.stale_until.values().min().copied()
    }

    pub fn set_import(&mut self, import: Filter) {
        if import == self.import {
            return;
        }
        let learned_nothing = self.learns_nothing();
        self.import = import;
        if !(learned_nothing && self.learns_nothing()) {
            self.changed.extend(self.rib.iter().map(|route| route.prefix));
        }
    }

    pub fn allow_own_as(&mut self, times: u8) {
        self.rib.allow_own_as(times);
    }

    pub fn set_own(&mut self, intent: &Intent) {
        // Of an aggregate only what is more specific is anybody's own.
        let announced = intent.routes.iter().filter(|(_, route)| !route.aggregate);
        let announced = announced.map(|(prefix, _)| *prefix);
        let own = Cover::new(announced.chain(intent.own.iter().copied()));
        let difference = own.difference(&self.own);
        self.own = own;
        if !difference.is_empty() && !self.learns_nothing() {
            let prefixes = self.rib.iter().map(|route| route.prefix);
            self.changed.extend(prefixes.filter(|prefix| difference.holds(prefix)));
        }
    }

    pub fn update(&mut self, update: Update, families: &[Family]) {
        let reach = update.announced.iter().flat_map(|announced| &announced.reach);
        self.announced.extend(reach.map(|reach| reach.family));
        self.change(|rib, changed| rib.apply(update, families, changed));
    }

    pub fn sweep(&mut self, family: Family) {
        self.change(|rib, changed| rib.sweep(family, changed));
        self.stale_until.remove(&family);
    }

    pub fn end_of_rib(&mut self, now: Duration, family: Family) {
        self.ended.insert(family);
        if self.announced.contains(&family) || !self.rib.has_stale() {
            self.sweep(family);
        } else {
            self.stale_until.insert(family, now + EARLY_END);
        }
    }

    pub fn has_ended(&self, family: &Family) -> bool {
        self.ended.contains(family)
    }

    pub fn begin_refresh(&mut self, now: Duration, family: Family) {
        self.rib.begin_refresh(family);
        self.stale_until.insert(family, now + STALE_LIMIT);
    }

    /// The session is lost, and nothing of it is kept.
    pub fn is_given_up(&self) -> bool {
        self.lost && !self.rib.has_stale()
    }

    pub fn up(&mut self, now: Duration, negotiated: &Negotiated) {
        self.lost = false;
        self.long_lived.clear();
        self.warned.clear();
        self.ended.clear();
        self.announced.clear();
        for family in Family::ALL {
            if negotiated.families.contains(&family) && negotiated.peer_kept_forwarding(family) {
                self.stale_until.insert(family, now + STALE_LIMIT);
            } else {
                self.sweep(family);
            }
        }
        self.forget_needless_timers();
    }

    pub fn down(&mut self, now: Duration, negotiated: &Negotiated, keep: bool) {
        self.lost = true;
        let Some(restart) = negotiated.restart.as_ref().filter(|_| keep) else {
            self.abandon();
            return;
        };
        let kept: Vec<Family> = restart.families.iter().map(|kept| kept.family).collect();
        self.change(|rib, changed| rib.mark_stale(&kept, changed));
        let until = now + Duration::from_secs(restart.time.into());
        self.stale_until = kept.iter().map(|family| (*family, until)).collect();
        let asked = |asked: &&LongLived| asked.time > 0 && kept.contains(&asked.family);
        self.long_lived = negotiated.long_lived.iter().filter(asked).copied().collect();
        self.forget_needless_timers();
    }

    pub fn abandon(&mut self) {
        self.change(|rib, changed| rib.clear(changed));
        self.stale_until.clear();
    }

    /// `up`: there is a session, so that what is stale has been waited for long enough.
    pub fn tick(&mut self, now: Duration, up: bool) {
        let due = |(family, until): (&Family, &Duration)| (*until <= now).then_some(*family);
        let due: Vec<Family> = self.stale_until.iter().filter_map(due).collect();
        for family in due {
            let asked = self.long_lived.iter().position(|asked| asked.family == family);
            match asked.filter(|_| !up) {
                Some(index) => {
                    let asked = self.long_lived.swap_remove(index);
                    self.change(|rib, changed| rib.make_long_lived(family, changed));
                    self.stale_until.insert(family, now + Duration::from_secs(asked.time.into()));
                }
                None => self.sweep(family),
            }
        }
    }

    fn forget_needless_timers(&mut self) {
        if !self.rib.has_stale() {
            self.stale_until.clear();
        }
    }

    /// The family of which more than `max` routes are held.
    pub fn over(&self, max: u32) -> Option<Family> {
        Family::ALL.into_iter().find(|family| self.rib.len_of(*family) > max as usize)
    }

    pub fn many(&self, limit: PrefixLimit) -> impl Iterator<Item = ManyPrefixes> + '_ {
        let PrefixLimit { max, warn_at, .. } = limit;
        let from = u64::from(max) * u64::from(warn_at) / 100;
        let counts = Family::ALL.into_iter().map(|family| (family, self.rib.len_of(family)));
        let many = counts.filter(move |(_, count)| *count as u64 > from);
        many.map(move |(family, count)| ManyPrefixes { family, count, max })
    }

    /// Another limit is to be kept from now on.
    pub fn warn_anew(&mut self) {
        self.warned.clear();
    }

    /// Told once for each family, session and limit.
    pub fn warnings(&mut self, limit: PrefixLimit) -> Vec<ManyPrefixes> {
        let mut many: Vec<_> = self.many(limit).collect();
        many.retain(|many| self.warned.insert(many.family));
        many
    }

    /// Changes the table, and notes what changed if anything can be learned.
    fn change(&mut self, change: impl FnOnce(&mut AdjRibIn, &mut Changed)) {
        let mut changed = if self.learns_nothing() { Changed::default() } else { Changed::watched() };
        change(&mut self.rib, &mut changed);
        self.changed.append(&mut changed.into_prefixes());
    }

    pub fn learns_nothing(&self) -> bool {
        self.import.accepts_nothing()
    }

    /// The path as the import filter leaves it.
    fn passed(&self, prefix: &IpNetwork, path: Arc<Path>) -> Option<Arc<Path>> {
        let rule = self.import.matching(prefix, &path.attributes);
        if !self.import.accepts(rule) {
            return None;
        }
        let leaving = path.attributes.communities.contains(&GRACEFUL_SHUTDOWN);
        if rule.is_none() && !leaving {
            return Some(path);
        }
        let mut path = Arc::unwrap_or_clone(path);
        self.import.change(rule, &mut path.attributes);
        if leaving {
            // RFC 8326 section 4.
            path.attributes.local_pref = Some(0);
        }
        Some(Arc::new(path))
    }
}
