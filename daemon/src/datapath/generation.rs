//! A generation on its way into the kernel: idle half, identities, one store.

use super::{
    Datapath, DatapathError, Exact, MapTables, Prefixes,
    identities::{self, Change, Removals},
    sys,
    values::Raw,
};
use aya::maps::{MapError, lpm_trie::Key};
use bulkhead_ebpf_abi::{Addr, Cell, Identity, PolicyDir, PortDirectory, PortPage};
use bulkhead_policy::Tables;
use std::{collections::BTreeMap, io, sync::Arc};

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
        self.settle()?;
        self.check_room(new)?;
        let running = self.running_generation()?;
        let next = following(running);
        self.write_half((next & 1) as usize, new.tables)?;
        let live = (running & 1) as usize;
        self.half(live)?;
        let classes = self.shadow[live].as_ref().map_or(&[][..], |half| &half.classes[..]);
        let change = self.identities.plan(new, classes);
        self.classify(live, &change.classes)?;
        self.add(&change)?;
        self.generation
            .set(0, next, 0)
            .map_err(|source| DatapathError::Map { what: "switching the generation".into(), source })?;
        self.identities.share(new, &change.removals);
        self.pending = Some(change.removals);
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
        let change = self.identities.plan(new, &[]);
        self.add(&change)?;
        self.remove(&change.removals)?;
        self.identities.share(new, &Removals::default());
        Ok(())
    }

    /// Asks about every connection once more, by the same tables under another number: behind a change of pods' policies,
    /// which packets since the switch may have been admitted without. Says the number.
    ///
    /// # Errors
    /// The number stays; call it again.
    pub fn ask_again(&mut self) -> Result<u32, DatapathError> {
        // Nobody decides by a policy of before under the number to come.
        grace_period()?;
        let number = of_the_same_half(self.running_generation()?);
        self.generation
            .set(0, number, 0)
            .map_err(|source| DatapathError::Map { what: "renumbering the generation".into(), source })?;
        Ok(number)
    }

    /// Ends what [`Datapath::apply`] began; takes a grace period (about 10 ms) the first time after a switch.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        let Some(removals) = &self.pending else { return Ok(()) };
        grace_period()?;
        let removals = removals.clone();
        self.remove(&removals)?;
        self.pending = None;
        Ok(())
    }

    fn check_room(&self, new: &Generation<'_>) -> Result<(), DatapathError> {
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

    /// Gives identities their class in a half that is in force.
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

    fn add(&mut self, change: &Change) -> Result<(), DatapathError> {
        for (addr, identity) in &change.set_exact {
            self.set_exact(*addr, *identity)?;
        }
        for ((addr, length), identity) in &change.set_prefixes {
            self.prefixes.insert(&Key::new(u32::from(*length), Raw(*addr)), Raw(*identity), 0).map_err(
                |source| DatapathError::Map { what: "adding a prefix to IDENTITY_PREFIX".into(), source },
            )?;
            self.identities.prefixes.insert((*addr, *length), *identity);
        }
        Ok(())
    }

    fn remove(&mut self, removals: &Removals) -> Result<(), DatapathError> {
        for (addr, length) in &removals.prefixes {
            absent_is_fine(self.prefixes.remove(&Key::new(u32::from(*length), Raw(*addr)))).map_err(
                |source| DatapathError::Map { what: "removing a prefix from IDENTITY_PREFIX".into(), source },
            )?;
            self.identities.prefixes.remove(&(*addr, *length));
        }
        for addr in &removals.exact {
            // A pod may have come to the address since.
            if !self.identities.is_pod(addr) {
                self.remove_exact(*addr)?;
            }
        }
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

pub(super) fn grace_period() -> Result<(), DatapathError> {
    sys::wait_for_packets_in_flight().map_err(|source| DatapathError::Kernel {
        what: "waiting for packets in flight (membarrier)".into(),
        source,
    })
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
