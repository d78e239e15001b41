//! One table of generations: an array of two halves, and what is known of each.

use super::{
    DatapathError, sys,
    values::{Entry, Raw},
};
use aya::maps::{Map, MapData};
use bulkhead_policy::Chunked;
use std::{marker::PhantomData, ops::Range, os::fd::AsFd};

/// Entries written or read at once.
const BATCH: usize = 8192;
/// Unchanged entries that are written rather than begin another batch.
const GAP: usize = 16;
const STRETCH: usize = 64;

/// The map behind a table. It holds no contents: the shadows do.
pub struct Table<T> {
    name: &'static str,
    map: MapData,
    /// Entries of one half.
    half: u32,
    entry: PhantomData<T>,
}

impl<T: Entry> Table<T> {
    pub fn new(name: &'static str, map: Map, half: u32) -> Result<Self, DatapathError> {
        match map {
            Map::Array(map) => Ok(Self { name, map, half, entry: PhantomData }),
            _ => Err(DatapathError::Other(format!("map {name} is no array"))),
        }
    }

    pub fn check_room(&self, needed: usize) -> Result<(), DatapathError> {
        if needed <= self.half as usize {
            return Ok(());
        }
        Err(DatapathError::TooLarge { table: self.name, needed, room: self.half })
    }

    /// Makes the half hold `new` and zeros behind it, and reads back what was written.
    ///
    /// `old` is what it holds now. After an error its contents are unknown.
    pub fn write(&self, half: usize, old: &[T], new: &[T]) -> Result<(), DatapathError> {
        self.check_room(new.len())?;
        self.write_changes(half, 0, old, new)
    }

    /// As [`Table::write`]; what both share is not looked at.
    pub fn write_chunks(&self, half: usize, old: &Chunked<T>, new: &Chunked<T>) -> Result<(), DatapathError> {
        self.check_room(new.len())?;
        old.differing(new).try_for_each(|(first, old, new)| self.write_changes(half, first, old, new))
    }

    /// `first`: where both stand.
    fn write_changes(&self, half: usize, first: usize, old: &[T], new: &[T]) -> Result<(), DatapathError> {
        for run in changes(old, new) {
            for start in run.clone().step_by(BATCH) {
                let end = run.end.min(start + BATCH);
                let values: Vec<T> = (start..end).map(|i| new.get(i).copied().unwrap_or(T::ZERO)).collect();
                self.write_run(half, first + start, &values)?;
            }
        }
        Ok(())
    }

    /// One entry, as [`Table::write`].
    pub fn write_run(&self, half: usize, start: usize, values: &[T]) -> Result<(), DatapathError> {
        let first = self.index(half, start);
        let map = self.map.fd().as_fd();
        let at = |source| self.error("writing", first, source);
        sys::write_array(map, first, values).map_err(at)?;
        let read: Vec<T> = sys::read_array(map, first, values.len() as u32)
            .map_err(|source| self.error("reading back", first, source))?;
        if read == values {
            return Ok(());
        }
        Err(DatapathError::Other(format!(
            "{} from entry {first} on reads back other than written",
            self.name
        )))
    }

    /// What a half holds, without the zeros behind.
    pub fn read(&self, half: usize) -> Result<Vec<T>, DatapathError> {
        let mut entries = Vec::new();
        for start in (0..self.half as usize).step_by(BATCH) {
            let first = self.index(half, start);
            let count = BATCH.min(self.half as usize - start) as u32;
            let read: Vec<T> = sys::read_array(self.map.fd().as_fd(), first, count)
                .map_err(|source| self.error("reading", first, source))?;
            // Zeros are kept only once something stands behind them.
            if let Some(last) = read.iter().rposition(|e| *e != T::ZERO) {
                entries.resize(start, T::ZERO);
                entries.extend_from_slice(&read[..=last]);
            }
        }
        Ok(entries)
    }

    fn index(&self, half: usize, entry: usize) -> u32 {
        // Both are below the map's number of entries, which is a u32.
        half as u32 * self.half + entry as u32
    }

    fn error(&self, doing: &str, first: u32, source: std::io::Error) -> DatapathError {
        DatapathError::Kernel { what: format!("{doing} {} from entry {first} on", self.name), source }
    }
}

/// Where `new` differs from `old`, both with zeros behind their ends; runs with small gaps are joined.
fn changes<T: Entry>(old: &[T], new: &[T]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let both = old.len().min(new.len());
    // Most of a large table is as it was: whole stretches are compared at once.
    let same =
        |start: usize| start + STRETCH <= both && old[start..start + STRETCH] == new[start..start + STRETCH];
    let starts = (0..old.len().max(new.len())).step_by(STRETCH).filter(|start| !same(*start));
    for i in starts.flat_map(|start| start..(start + STRETCH).min(old.len().max(new.len()))) {
        if old.get(i).unwrap_or(&T::ZERO) == new.get(i).unwrap_or(&T::ZERO) {
            continue;
        }
        match runs.last_mut() {
            Some(last) if i - last.end <= GAP => last.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

/// A shared map taken from the loaded object.
pub fn typed<M>(name: &'static str, map: Map) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    M::try_from(map).map_err(|source| DatapathError::Map { what: format!("map {name}"), source })
}

pub type HashMap<K, V> = aya::maps::HashMap<MapData, Raw<K>, Raw<V>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let old = vec![1u32; 100];
        let mut new = old.clone();
        assert!(changes(&old, &new).is_empty());
        new[3] = 2;
        new[5] = 2;
        new[90] = 2;
        assert_eq!(changes(&old, &new), [3..6, 90..91]);
    }

    #[test]
    fn a_shorter_table_is_followed_by_zeros() {
        assert_eq!(changes(&[1u32, 2, 0, 3], &[1]).first(), Some(&(1..4)));
        assert!(changes(&[1u32], &[1, 0, 0]).is_empty());
    }
}
