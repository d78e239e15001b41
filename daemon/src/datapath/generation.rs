//! What a generation says, and what each half of the tables holds of it. How it comes into force is [`super::apply`]'s.

use super::{Datapath, DatapathError, Exact, MapTables, Prefixes, identities};
use aya::maps::{Array, MapData, MapError};
use bulkhead_ebpf_abi::{Cell, PolicyDir, PortDirectory, PortPage};
use bulkhead_policy::{Chunked, Tables};
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
    pub(super) classes: Arc<Vec<u32>>,
    policies: Vec<PolicyDir>,
    port_directories: Chunked<PortDirectory>,
    port_pages: Chunked<PortPage>,
    rows: Chunked<u32>,
    cells: Chunked<Cell>,
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
        self.port_directories.write_chunks(half, &old.port_directories, &new.port_directories)?;
        self.port_pages.write_chunks(half, &old.port_pages, &new.port_pages)?;
        self.rows.write_chunks(half, &old.rows, &new.rows)?;
        self.cells.write_chunks(half, &old.cells, &new.cells)
    }
}

impl Datapath {
    /// The generation in force; 0: none yet, and every decision is a no.
    pub fn running_generation(&self) -> Result<u32, DatapathError> {
        running(&self.generation)
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

    pub(super) fn half(&mut self, half: usize) -> Result<&mut Half, DatapathError> {
        if self.shadow[half].is_none() {
            self.shadow[half] = Some(self.tables.read(half)?);
        }
        Ok(self.shadow[half].get_or_insert_default())
    }

    pub(super) fn write_half(&mut self, half: usize, tables: &Tables) -> Result<(), DatapathError> {
        self.half(half)?;
        // Unknown until the write has succeeded.
        let old = self.shadow[half].take().unwrap_or_default();
        let new = Half::of(tables);
        self.tables.write(half, &old, &new)?;
        self.shadow[half] = Some(new);
        Ok(())
    }

    /// Gives numbers their class in a half.
    pub(super) fn classify(
        &mut self,
        half: usize,
        classes: &BTreeMap<u32, u32>,
    ) -> Result<(), DatapathError> {
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
}

/// The next number: never 0, which stands for "not decided", and always of the other half.
pub(super) fn running(map: &Array<MapData, u32>) -> Result<u32, DatapathError> {
    map.get(&0, 0).map_err(|source| DatapathError::Map { what: "reading the generation".into(), source })
}

pub(super) fn following(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(2)
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
}
