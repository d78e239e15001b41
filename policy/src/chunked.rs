//! A table in chunks that its clones share: what is changed in one afterwards is all that it does not share with the others.
//!
//! Three versions of the decision tables are there at a time: what each half of the kernel's maps holds, and what is compiled.

use std::{iter::repeat_n, ops::Index, sync::Arc};

/// Of a chunk, its two counts in front included: what an allocator has a size for.
const OCTETS: usize = 16 * 1024;

#[derive(Clone, Debug)]
pub struct Chunked<T> {
    /// All but the last are full.
    chunks: Vec<Arc<[T]>>,
}

impl<T> Chunked<T> {
    /// Of a full chunk.
    const ENTRIES: usize = (OCTETS - 2 * size_of::<usize>()) / size_of::<T>();

    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * Self::ENTRIES + last.len())
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn get(&self, at: usize) -> Option<&T> {
        self.chunks.get(at / Self::ENTRIES)?.get(at % Self::ENTRIES)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// What stands in both from an entry on, for every chunk that is not the very same; nothing behind the end of either.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (usize, &'a [T], &'a [T])> {
        let chunk = |of: &'a Self, n: usize| of.chunks.get(n).map_or(&[][..], |chunk| chunk);
        (0..self.chunks.len().max(other.chunks.len()))
            .map(move |n| (n * Self::ENTRIES, chunk(self, n), chunk(other, n)))
            .filter(|(_, own, others)| !std::ptr::eq(*own, *others))
    }
}

impl<T: Copy + PartialEq> Chunked<T> {
    pub fn to_vec(&self) -> Vec<T> {
        self.iter().copied().collect()
    }

    /// Cut off at the length, or with this value up to there.
    pub fn resize(&mut self, length: usize, value: T) {
        self.chunks.truncate(length.div_ceil(Self::ENTRIES));
        let full = self.chunks.len().saturating_sub(1) * Self::ENTRIES;
        if let Some(last) = self.chunks.last_mut() {
            let wanted = (length - full).min(Self::ENTRIES);
            if wanted != last.len() {
                let more = repeat_n(value, wanted.saturating_sub(last.len()));
                *last = last.iter().copied().take(wanted).chain(more).collect();
            }
        }
        while self.len() < length {
            let missing = length - self.len();
            self.chunks.push(repeat_n(value, missing.min(Self::ENTRIES)).collect());
        }
    }

    /// In place of as many entries, all of which are there: it neither grows the table nor cuts values off.
    pub fn write(&mut self, mut at: usize, mut values: &[T]) {
        debug_assert!(at + values.len() <= self.len(), "{at} + {} of {}", values.len(), self.len());
        while let Some(chunk) = self.chunks.get_mut(at / Self::ENTRIES) {
            let first = at % Self::ENTRIES;
            let (now, later) = values.split_at(values.len().min(chunk.len().saturating_sub(first)));
            if now.is_empty() {
                return;
            }
            if chunk[first..first + now.len()] != *now {
                Arc::make_mut(chunk)[first..first + now.len()].copy_from_slice(now);
            }
            (at, values) = (at + now.len(), later);
        }
    }
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T: PartialEq> PartialEq for Chunked<T> {
    fn eq(&self, other: &Self) -> bool {
        self.chunks.len() == other.chunks.len() && self.differing(other).all(|(_, own, others)| own == others)
    }
}

impl<T> Index<usize> for Chunked<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.chunks[at / Self::ENTRIES][at % Self::ENTRIES]
    }
}

impl<T: Copy> From<Vec<T>> for Chunked<T> {
    fn from(entries: Vec<T>) -> Self {
        Self { chunks: entries.chunks(Self::ENTRIES).map(Arc::from).collect() }
    }
}

impl<T: Copy> FromIterator<T> for Chunked<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        Vec::from_iter(entries).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: usize = Chunked::<u32>::ENTRIES;

    #[test]
    fn it_is_what_a_list_would_be() {
        let (mut chunked, mut list) = (Chunked::default(), Vec::new());
        for length in
            [3, ENTRIES, ENTRIES + 1, 3 * ENTRIES - 1, 2 * ENTRIES, 2 * ENTRIES - 5, 5, 0, 2 * ENTRIES]
        {
            let value = length as u32 + 7;
            chunked.resize(length, value);
            list.resize(length, value);
            let at = length / 3;
            let values: Vec<u32> = (0..(length - at) as u32).collect();
            chunked.write(at, &values);
            list[at..].copy_from_slice(&values);
            assert_eq!((chunked.to_vec(), chunked.len()), (list.clone(), length));
            assert_eq!(chunked, list.clone().into());
            assert_eq!((chunked.get(length), chunked.get(at)), (None, list.get(at)));
        }
    }

    #[test]
    fn a_clone_shares_all_but_what_is_changed_afterwards() {
        let before: Chunked<u32> = (0..4 * ENTRIES as u32).collect();
        let mut after = before.clone();
        after.write(ENTRIES - 1, &[ENTRIES as u32 - 1]);
        assert_eq!(before.differing(&after).count(), 0, "what is there already changes nothing");
        after.write(2 * ENTRIES - 1, &[0, 0]);
        let firsts = |a: &Chunked<u32>, b: &Chunked<u32>| {
            a.differing(b).map(|(first, ..)| first).collect::<Vec<usize>>()
        };
        assert_eq!(firsts(&before, &after), [ENTRIES, 2 * ENTRIES]);
        assert!(before != after && before[2 * ENTRIES] != 0 && after[2 * ENTRIES] == 0);
        after.resize(3 * ENTRIES, 0);
        assert_eq!(firsts(&before, &after), [ENTRIES, 2 * ENTRIES, 3 * ENTRIES]);
    }
}
