//! A generation on its way into force.
//!
//! ```text
//! prepare: idle half ─▶ classes ─▶ entries ─▶ endpoints ─▶ grace period ─┬▶ switch: one store ─▶ settle
//!                                                                        └▶ taken back, should a write fail
//! ```
//! What is prepared says to the running generation what was said before, after every single write: see [`super::transition`]
//! and [`super::endpoints`]. Yet it does not stay without its switch: the next compile knows nothing of it.

use super::{
    Datapath, DatapathError, Generation, Placed, Prefix,
    endpoints::{self, Moves},
    generation::{absent_is_fine, following},
    transition::{Classes, Entries, Transition, Wanted, class},
    values::Raw,
};
use aya::maps::lpm_trie::Key;
use bulkhead_ebpf_abi::{Addr, Endpoint, ID_WORLD, Identity};
use std::collections::{BTreeMap, BTreeSet};
use tracing::warn;

/// Whether every processor sees stores, and makes its reads, in the order in which they stand (x86). Elsewhere a program could
/// see a switch and not what was written before it. One that sees a store made behind a grace period has begun after that
/// period did, and sees all that lies before it: so there a grace period lies before each switch, and no packet pays.
const IN_ORDER: bool = cfg!(target_arch = "x86_64");

/// All that follows a switch, once no packet is left in the generation before.
#[derive(Default)]
pub(super) struct After {
    entries: Entries,
    endpoints: Vec<(u32, Endpoint)>,
}

/// How it was before a switch was prepared.
pub(super) struct Before {
    half: usize,
    classes: BTreeMap<u32, u32>,
    entries: Entries,
    endpoints: Vec<(u32, Endpoint)>,
}

/// A generation that waits for its switch.
pub struct Prepared {
    number: u32,
    after: After,
}

impl Datapath {
    /// Puts a generation in force and says its number. On return every new packet is decided by it.
    ///
    /// Call [`Datapath::settle`] when there is time: it waits for the last packets of the generation before, and removes
    /// what only that one needed. The next call does it otherwise.
    ///
    /// # Errors
    /// The running generation stays in force. [`DatapathError::TooLarge`]: nothing was written.
    pub fn apply(&mut self, new: &Generation<'_>) -> Result<u32, DatapathError> {
        self.apply_with(new, &BTreeMap::new())
    }

    /// As [`Datapath::apply`]; `pods`: where addresses of local pods stand in the new generation.
    ///
    /// # Errors
    /// As [`Datapath::apply`].
    pub fn apply_with(
        &mut self,
        new: &Generation<'_>,
        pods: &BTreeMap<Addr, Placed>,
    ) -> Result<u32, DatapathError> {
        let prepared = self.prepare(new, pods)?;
        self.switch(new, prepared)
    }

    /// All of [`Datapath::apply_with`] but the switch. What is prepared and not switched to is taken back by the next call.
    ///
    /// # Errors
    /// As [`Datapath::apply`].
    pub fn prepare(
        &mut self,
        new: &Generation<'_>,
        pods: &BTreeMap<Addr, Placed>,
    ) -> Result<Prepared, DatapathError> {
        self.come_to_rest()?;
        self.check_room(new)?;
        let running = self.running_generation()?;
        let number = following(running);
        let [live, idle] = [running, number].map(|generation| (generation & 1) as usize);
        self.write_half(idle, new.tables)?;
        let endpoints = if pods.is_empty() { BTreeMap::new() } else { self.read_endpoints()? };
        let marks: Vec<u32> = endpoints.values().flat_map(|e| [e.identity_v4, e.identity_v6]).collect();
        let classes = self.half(live)?.classes.clone();
        let identities = pods.iter().map(|(addr, placed)| (*addr, placed.entry())).collect();
        let wanted = Wanted { prefixes: new.prefixes, exact: new.exact, pods: &identities };
        let room = self.sizes.identities;
        let known =
            Classes { running: &classes, next: &new.tables.classes, room, turn: number, marks: &marks };
        let transition = Transition::of(&self.identities, &wanted, &known);
        if transition.unmatched > 0 {
            warn!(
                addresses = transition.unmatched,
                "more addresses change their meaning than there are numbers for: they change before the rules do"
            );
        }
        let moves = Moves::of(&endpoints, pods, &self.identities, &transition, idle);
        self.before = Some(Before {
            half: live,
            classes: transition.running.keys().map(|id| (*id, class(&classes, *id))).collect(),
            entries: transition.before.inverse(&self.identities),
            endpoints: moves.before.iter().filter_map(|(i, _)| Some((*i, *endpoints.get(i)?))).collect(),
        });
        if let Err(error) = self.write_before([live, idle], &transition, &moves) {
            return Err(self.unprepared(error));
        }
        Ok(Prepared { number, after: After { entries: transition.after, endpoints: moves.after } })
    }

    fn write_before(
        &mut self,
        [live, idle]: [usize; 2],
        transition: &Transition,
        moves: &Moves,
    ) -> Result<(), DatapathError> {
        self.classify(live, &transition.running)?;
        self.classify(idle, &transition.next)?;
        self.give_out(transition.ids())?;
        self.enter(&transition.before)?;
        if moves.before.is_empty() && IN_ORDER {
            return Ok(());
        }
        self.write_endpoints(&moves.before)?;
        // No packet brings what it has read of an endpoint, or its mark of before, into the next generation.
        self.grace_period()
    }

    /// Switches to what was prepared of the same generation.
    ///
    /// # Errors
    /// As [`Datapath::apply`].
    pub fn switch(&mut self, new: &Generation<'_>, prepared: Prepared) -> Result<u32, DatapathError> {
        let Prepared { number, after } = prepared;
        if let Err(source) = self.generation.set(0, number, 0) {
            let what = "switching the generation".into();
            return Err(self.unprepared(DatapathError::Map { what, source }));
        }
        self.before = None;
        self.identities.share(new.prefixes, new.exact, &after.entries);
        self.pending = Some(after);
        Ok(number)
    }

    /// Puts in force who addresses are, where the generation's tables are those that are in force: no switch, and no
    /// packet can tell the order of the changes.
    ///
    /// # Errors
    /// What was changed stays changed; the next call does the rest.
    pub fn follow(&mut self, new: &Generation<'_>) -> Result<(), DatapathError> {
        self.come_to_rest()?;
        self.check_room(new)?;
        let entries = Entries::of(&self.identities, new.prefixes, new.exact);
        self.give_out(entries.ids().collect())?;
        self.enter(&entries)?;
        self.identities.share(new.prefixes, new.exact, &Entries::default());
        Ok(())
    }

    /// Whether pods are judged by these policies already, whatever generation comes.
    ///
    /// # Errors
    /// The endpoints cannot be read, or the former generation cannot be ended.
    pub fn have_policies(&mut self, pods: &BTreeMap<Addr, Placed>) -> Result<bool, DatapathError> {
        self.come_to_rest()?;
        Ok(endpoints::have_policies(&self.read_endpoints()?, pods))
    }

    /// Ends what [`Datapath::apply`] began; takes a grace period (about 10 ms) the first time after a switch.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        if self.pending.is_none() {
            return Ok(());
        }
        self.grace_period()?;
        let After { entries, endpoints } = self.pending.take().unwrap_or_default();
        let done = self.enter(&entries).and_then(|()| self.write_endpoints(&endpoints));
        if done.is_err() {
            self.pending = Some(After { entries, endpoints });
        }
        done
    }

    /// Neither is a switch behind that is not settled, nor one prepared that does not come.
    pub(super) fn come_to_rest(&mut self) -> Result<(), DatapathError> {
        self.take_back()?;
        self.settle()
    }

    /// Undoes what was prepared, in reverse.
    fn take_back(&mut self) -> Result<(), DatapathError> {
        let Some(before) = self.before.take() else { return Ok(()) };
        let undone = self.write_back(&before);
        if undone.is_err() {
            self.before = Some(before);
        }
        undone
    }

    fn write_back(&mut self, before: &Before) -> Result<(), DatapathError> {
        if !before.endpoints.is_empty() {
            self.write_endpoints(&before.endpoints)?;
            // Marks that nobody has may be given another class at once.
            self.grace_period()?;
        }
        self.enter(&before.entries)?;
        self.classify(before.half, &before.classes)
    }

    fn unprepared(&mut self, error: DatapathError) -> DatapathError {
        if let Err(again) = self.take_back() {
            warn!(error = %again, "cannot take back what was written for a generation that is refused; tried again");
        }
        error
    }

    pub(super) fn grace_period(&self) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Kernel { what: "waiting for packets in flight".into(), source };
        self.barrier.wait().map_err(failed)
    }

    /// An address that is no pod's any more is left alone.
    pub(super) fn leave_address(&mut self, addr: Addr) {
        let plans =
            [self.pending.as_mut().map(|p| &mut p.entries), self.before.as_mut().map(|b| &mut b.entries)];
        plans.into_iter().flatten().for_each(|entries| entries.exact.retain(|(other, _)| *other != addr));
    }

    /// The same of an interface.
    pub(super) fn leave_endpoint(&mut self, ifindex: u32) {
        let plans =
            [self.pending.as_mut().map(|p| &mut p.endpoints), self.before.as_mut().map(|b| &mut b.endpoints)];
        plans.into_iter().flatten().for_each(|endpoints| endpoints.retain(|(other, _)| *other != ifindex));
    }

    /// Before any address has one of these numbers that none has now: a connection that holds it from before is not the new
    /// one's.
    pub(super) fn give_out(&mut self, mut ids: BTreeSet<u32>) -> Result<(), DatapathError> {
        let held = self.identities.prefixes.values().chain(self.identities.exact.values());
        for identity in held {
            ids.remove(&identity.id);
        }
        // Whoever has no entry.
        ids.remove(&ID_WORLD);
        for id in ids {
            let failed = |source| DatapathError::Map { what: format!("giving out identity {id}"), source };
            let turn = self.origin_turns.get(&id, 0).map_err(failed)?;
            self.origin_turns.set(id, turn.wrapping_add(1), 0).map_err(failed)?;
        }
        Ok(())
    }

    fn enter(&mut self, entries: &Entries) -> Result<(), DatapathError> {
        for (prefix, identity) in &entries.prefixes {
            self.set_prefix(*prefix, *identity)?;
        }
        for (addr, identity) in &entries.exact {
            match identity {
                Some(identity) => self.set_exact(*addr, *identity)?,
                None => self.remove_exact(*addr)?,
            }
        }
        Ok(())
    }

    fn set_prefix(&mut self, prefix: Prefix, identity: Option<Identity>) -> Result<(), DatapathError> {
        let (addr, length) = prefix;
        let key = Key::new(u32::from(length), Raw(addr));
        let done = match identity {
            Some(identity) => self.prefixes.insert(&key, Raw(identity), 0),
            None => absent_is_fine(self.prefixes.remove(&key)),
        };
        done.map_err(|source| DatapathError::Map {
            what: format!("identity of {}/{length} (mapped) in IDENTITY_PREFIX", addr.to_ip()),
            source,
        })?;
        self.identities.set_prefix(prefix, identity);
        Ok(())
    }

    pub(super) fn set_exact(&mut self, addr: Addr, identity: Identity) -> Result<(), DatapathError> {
        self.exact.insert(Raw(addr), Raw(identity), 0).map_err(|source| DatapathError::Map {
            what: format!("identity of {} in IDENTITY_EXACT", addr.to_ip()),
            source,
        })?;
        self.identities.set_exact(addr, identity);
        Ok(())
    }

    pub(super) fn remove_exact(&mut self, addr: Addr) -> Result<(), DatapathError> {
        absent_is_fine(self.exact.remove(&Raw(addr))).map_err(|source| DatapathError::Map {
            what: format!("identity of {} in IDENTITY_EXACT", addr.to_ip()),
            source,
        })?;
        self.identities.remove_exact(&addr);
        Ok(())
    }
}
