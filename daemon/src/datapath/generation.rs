//! A generation on its way into the kernel: idle half, identities, one store.

use super::{
    Datapath, DatapathError, Exact, MapTables, Prefix, Prefixes, identities,
    transition::{Classes, Entries, Transition, Wanted},
    values::Raw,
};
use aya::maps::{MapError, lpm_trie::Key};
use bulkhead_ebpf_abi::{Addr, Cell, Identity, PolicyDir, PortDirectory, PortPage};
use bulkhead_policy::Tables;
use std::{collections::BTreeMap, io, sync::Arc};
use tracing::warn;

/// All that a generation says: its tables, and who addresses are.
#[derive(Clone, Copy)]
pub struct Generation<'a> {
    pub tables: &'a Tables,
    /// Prefix lengths are of the mapped address (IPv4: plus 96).
    pub prefixes: &'a Prefixes,
    /// Node addresses and pods. Local pods' entries are set by wiring, which wins.
    pub exact: &'a Exact,
}

/// What one half holds, without the zeros behind; shared with the generation that was written to it.
#[derive(Clone, Default)]
pub(super) struct Half {
    classes: Arc<Vec<u32>>,
    policies: Vec<PolicyDir>,
    port_directories: Arc<Vec<PortDirectory>>,
    port_pages: Arc<Vec<PortPage>>,
    rows: Arc<Vec<u32>>,
    cells: Arc<Vec<Cell>>,
}

impl Half {
    fn of(tables: &Tables) -> Self {
        Self {
            classes: tables.classes.clone(),
            policies: tables.policies.as_flattened().to_vec(),
            port_directories: tables.port_directories.clone(),
            port_pages: tables.port_pages.clone(),
            rows: tables.rows.clone(),
            cells: tables.cells.clone(),
        }
    }
}

impl MapTables {
    fn check_room(&self, tables: &Tables) -> Result<(), DatapathError> {
        self.classes.check_room(tables.classes.len())?;
        self.policies.check_room(tables.policies.len() * 2)?;
        self.port_directories.check_room(tables.port_directories.len())?;
        self.port_pages.check_room(tables.port_pages.len())?;
        self.rows.check_room(tables.rows.len())?;
        self.cells.check_room(tables.cells.len())
    }

    fn read(&self, half: usize) -> Result<Half, DatapathError> {
        Ok(Half {
            classes: self.classes.read(half)?.into(),
            policies: self.policies.read(half)?,
            port_directories: self.port_directories.read(half)?.into(),
            port_pages: self.port_pages.read(half)?.into(),
            rows: self.rows.read(half)?.into(),
            cells: self.cells.read(half)?.into(),
        })
    }

    fn write(&self, half: usize, old: &Half, new: &Half) -> Result<(), DatapathError> {
        self.classes.write(half, &old.classes, &new.classes)?;
        self.policies.write(half, &old.policies, &new.policies)?;
        self.port_directories.write(half, &old.port_directories, &new.port_directories)?;
        self.port_pages.write(half, &old.port_pages, &new.port_pages)?;
        self.rows.write(half, &old.rows, &new.rows)?;
        self.cells.write(half, &old.cells, &new.cells)
    }
}

impl Datapath {
    /// The generation in force; 0: none yet, and every decision is a no.
    pub fn running_generation(&self) -> Result<u32, DatapathError> {
        self.generation
            .get(&0, 0)
            .map_err(|source| DatapathError::Map { what: "reading the generation".into(), source })
    }

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

    /// As [`Datapath::apply`]; `pods`: who addresses of local pods are to the new generation. Wiring need not set what is
    /// named here, and does not until [`Datapath::settle`] has.
    ///
    /// # Errors
    /// As [`Datapath::apply`].
    pub fn apply_with(
        &mut self,
        new: &Generation<'_>,
        pods: &BTreeMap<Addr, Identity>,
    ) -> Result<u32, DatapathError> {
        self.settle()?;
        self.check_room(new)?;
        let running = self.running_generation()?;
        let next = following(running);
        let [live, idle] = [running, next].map(|generation| (generation & 1) as usize);
        self.write_half(idle, new.tables)?;
        let classes = self.half(live)?.classes.clone();
        let wanted = Wanted { prefixes: new.prefixes, exact: new.exact, pods };
        let room = self.sizes.identities;
        let classes = Classes { running: &classes, next: &new.tables.classes, room, turn: next };
        let transition = Transition::of(&self.identities, &wanted, &classes);
        if transition.unmatched > 0 {
            warn!(
                addresses = transition.unmatched,
                "more addresses change their meaning than there are numbers for: they change before the rules do"
            );
        }
        self.classify(live, &transition.running)?;
        self.classify(idle, &transition.next)?;
        self.enter(&transition.before)?;
        self.generation
            .set(0, next, 0)
            .map_err(|source| DatapathError::Map { what: "switching the generation".into(), source })?;
        self.identities.share(new.prefixes, new.exact, &transition.after);
        self.pending = Some(transition.after);
        Ok(next)
    }

    /// Puts in force who addresses are, where the generation's tables are those that are in force: no switch, and no
    /// packet can tell the order of the changes.
    ///
    /// # Errors
    /// What was changed stays changed; the next call does the rest.
    pub fn follow(&mut self, new: &Generation<'_>) -> Result<(), DatapathError> {
        self.settle()?;
        self.check_room(new)?;
        let entries = Entries::of(&self.identities, new.prefixes, new.exact);
        self.enter(&entries)?;
        self.identities.share(new.prefixes, new.exact, &Entries::default());
        Ok(())
    }

    /// Asks about every connection once more, by the same tables under another number: behind a change of pods' policies,
    /// which packets since the switch may have been admitted without. Says the number.
    ///
    /// # Errors
    /// The number stays; call it again.
    pub fn ask_again(&mut self) -> Result<u32, DatapathError> {
        // Nobody decides by a policy of before under the number to come.
        self.grace_period()?;
        let number = of_the_same_half(self.running_generation()?);
        self.generation
            .set(0, number, 0)
            .map_err(|source| DatapathError::Map { what: "renumbering the generation".into(), source })?;
        Ok(number)
    }

    /// Ends what [`Datapath::apply`] began; takes a grace period (about 10 ms) the first time after a switch.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        let Some(left) = &self.pending else { return Ok(()) };
        self.grace_period()?;
        let left = left.clone();
        self.enter(&left)?;
        self.pending = None;
        Ok(())
    }

    pub(super) fn grace_period(&self) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Kernel { what: "waiting for packets in flight".into(), source };
        self.barrier.wait().map_err(failed)
    }

    /// Whether [`Datapath::settle`] will see to it that the address has this identity.
    pub(super) fn will_have(&self, addr: Addr, identity: Identity) -> bool {
        self.pending.iter().any(|left| left.exact.contains(&(addr, Some(identity))))
    }

    /// Wiring has its own word on this address now.
    pub(super) fn leave_to_wiring(&mut self, addr: Addr) {
        if let Some(left) = &mut self.pending {
            left.exact.retain(|(other, _)| *other != addr);
        }
    }

    /// Whether [`Self::apply`] has room for it; nothing is touched.
    pub fn check_room(&self, new: &Generation<'_>) -> Result<(), DatapathError> {
        self.tables.check_room(new.tables)?;
        let room = self.sizes.identities.saturating_mul(2);
        // Old and new entries stand side by side until the switch.
        let old = &self.identities;
        let prefixes = old.prefixes.len() + identities::added(&old.prefixes, new.prefixes);
        let exact = old.exact.len() + identities::added(&old.exact, new.exact);
        for (table, needed) in [("IDENTITY_PREFIX", prefixes), ("IDENTITY_EXACT", exact)] {
            if needed > room as usize {
                return Err(DatapathError::TooLarge { table, needed, room });
            }
        }
        let used = new.prefixes.values().chain(new.exact.values()).map(|i| i.id as usize + 1).max();
        match used {
            Some(needed) if needed > self.sizes.identities as usize => {
                Err(DatapathError::TooLarge { table: "CLASS", needed, room: self.sizes.identities })
            }
            _ => Ok(()),
        }
    }

    fn half(&mut self, half: usize) -> Result<&mut Half, DatapathError> {
        if self.shadow[half].is_none() {
            self.shadow[half] = Some(self.tables.read(half)?);
        }
        Ok(self.shadow[half].get_or_insert_default())
    }

    fn write_half(&mut self, half: usize, tables: &Tables) -> Result<(), DatapathError> {
        self.half(half)?;
        // Unknown until the write has succeeded.
        let old = self.shadow[half].take().unwrap_or_default();
        let new = Half::of(tables);
        self.tables.write(half, &old, &new)?;
        self.shadow[half] = Some(new);
        Ok(())
    }

    /// Gives numbers their class in a half.
    fn classify(&mut self, half: usize, classes: &BTreeMap<u32, u32>) -> Result<(), DatapathError> {
        for (identity, class) in classes {
            let at = *identity as usize;
            self.tables.classes.write_run(half, at, &[*class])?;
            let shadow = Arc::make_mut(&mut self.half(half)?.classes);
            if shadow.len() <= at {
                shadow.resize(at + 1, 0);
            }
            shadow[at] = *class;
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

/// The next number: never 0, which stands for "not decided", and always of the other half.
fn following(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(2)
}

/// The next number of the same half, and never 0.
fn of_the_same_half(generation: u32) -> u32 {
    generation.checked_add(2).unwrap_or(2 + (generation & 1))
}

/// Removing what is not there has succeeded.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_alternate_halves_and_are_never_zero() {
        for running in [0, 1, 2, u32::MAX - 1, u32::MAX] {
            assert_ne!(following(running), 0);
            assert_ne!(following(running) & 1, running & 1);
        }
    }

    #[test]
    fn another_number_of_the_same_half_is_never_zero() {
        for running in [1, 2, u32::MAX - 2, u32::MAX - 1, u32::MAX] {
            let number = of_the_same_half(running);
            assert!(number != 0 && number != running);
            assert_eq!(number & 1, running & 1);
        }
    }
}
