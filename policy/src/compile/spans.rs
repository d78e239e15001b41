//! Places in a table: a span for each thing that stands in it.
//!
//! What has a place keeps it, what is new takes the first gap that is large enough, and where gaps would be most of the
//! table, all are placed anew.

use crate::Chunked;
use foldhash::fast::FixedState;
use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

/// Quick: keys are made of what this compiler itself puts together, a few thousand in each change.
pub(crate) type Map<K, V> = HashMap<K, V, FixedState>;
type Set<K> = HashSet<K, FixedState>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    length: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spans<K: Hash + Eq> {
    spans: Map<K, Span>,
    end: u32,
}

/// Entries that gaps may take beyond as many as are in use.
const SLACK: u64 = 1024;

impl<K: Hash + Eq> Default for Spans<K> {
    fn default() -> Self {
        Self { spans: Map::default(), end: 0 }
    }
}

impl<K: Hash + Eq + Clone> Spans<K> {
    /// A span for each of these, which may come more than once. None: beyond 32 bits.
    pub fn of(former: Option<&Self>, wanted: impl Iterator<Item = (K, u32)>) -> Option<Self> {
        Self::with_room(former, wanted, |length| length)
    }

    /// As [`Self::of`], for what grows: a span that is new, or has become too short, is `roomy(length)` long.
    pub fn with_room(
        former: Option<&Self>,
        wanted: impl Iterator<Item = (K, u32)>,
        roomy: impl Fn(u32) -> u32,
    ) -> Option<Self> {
        let mut seen: Set<K> = Set::default();
        let order: Vec<(K, u32)> = wanted.filter(|(key, _)| seen.insert(key.clone())).collect();
        let used: u64 = order.iter().map(|(_, length)| u64::from(*length)).sum();
        let placed = Self::place(former, &order, &roomy)?;
        if former.is_some() && u64::from(placed.end) > 2 * used + SLACK {
            return Self::place(None, &order, &roomy);
        }
        Some(placed)
    }

    fn place(former: Option<&Self>, wanted: &[(K, u32)], roomy: impl Fn(u32) -> u32) -> Option<Self> {
        let mut spans = Map::with_capacity_and_hasher(wanted.len(), Default::default());
        let mut new = Vec::new();
        for (key, length) in wanted {
            match former.and_then(|f| f.spans.get(key)).filter(|s| s.length >= *length) {
                Some(span) => drop(spans.insert(key.clone(), *span)),
                None => new.push((key, roomy(*length))),
            }
        }
        let (mut gaps, mut end) = gaps(spans.values().copied());
        for (key, length) in new {
            let span = match gaps.iter_mut().find(|gap| gap.length >= length) {
                Some(gap) => {
                    let span = Span { first: gap.first, length };
                    *gap = Span { first: gap.first + length, length: gap.length - length };
                    span
                }
                None => {
                    let span = Span { first: end, length };
                    end = end.checked_add(length)?;
                    span
                }
            };
            spans.insert(key.clone(), span);
        }
        Some(Self { spans, end })
    }

    /// Where it begins. Everything that is asked for was placed.
    pub fn at(&self, key: &K) -> u32 {
        self.spans.get(key).map_or(u32::MAX, |span| span.first)
    }

    /// Whether it stands where it stood in the former table.
    pub fn kept(&self, former: Option<&Self>, key: &K) -> bool {
        former.and_then(|f| f.spans.get(key)).is_some_and(|was| self.spans.get(key) == Some(was))
    }

    pub fn end(&self) -> usize {
        self.end as usize
    }
}

/// What lies between, in order, and the end of all.
fn gaps(spans: impl Iterator<Item = Span>) -> (Vec<Span>, u32) {
    let mut spans: Vec<Span> = spans.filter(|s| s.length > 0).collect();
    spans.sort_unstable_by_key(|span| span.first);
    let (mut gaps, mut end) = (Vec::new(), 0);
    for span in spans {
        if span.first > end {
            gaps.push(Span { first: end, length: span.first - end });
        }
        end = span.first + span.length;
    }
    (gaps, end)
}

/// The table that these spans make, from the former one. `there`: what is in the place that it had.
pub(crate) fn write<K, T>(
    former: Option<&Chunked<T>>,
    zero: T,
    spans: &Spans<K>,
    there: impl Fn(&K) -> bool,
    contents: impl Fn(&K) -> Vec<T>,
) -> Chunked<T>
where
    K: Hash + Eq + Clone,
    T: Copy + PartialEq,
{
    let mut table = former.cloned().unwrap_or_default();
    table.resize(spans.end(), zero);
    for (key, span) in spans.spans.iter().filter(|(key, _)| !there(key)) {
        table.write(span.first as usize, &contents(key));
    }
    table
}

/// A value with its hash: looked up at the cost of a number, however large it is.
#[derive(Debug)]
pub(crate) struct Hashed<T> {
    hash: u64,
    value: Arc<T>,
}

impl<T: Hash> Hashed<T> {
    pub fn new(value: T) -> Self {
        Self { hash: FixedState::default().hash_one(&value), value: Arc::new(value) }
    }
}

impl<T> std::ops::Deref for Hashed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Clone for Hashed<T> {
    fn clone(&self) -> Self {
        Self { hash: self.hash, value: self.value.clone() }
    }
}

impl<T: PartialEq> PartialEq for Hashed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.value, &other.value) || self.value == other.value)
    }
}

impl<T: Eq> Eq for Hashed<T> {}

impl<T> Hash for Hashed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_keeps_its_place_as_long_as_its_room_lasts() {
        let of = |former: Option<&Spans<u32>>, lengths: [u32; 2]| {
            Spans::with_room(former, (0..).zip(lengths), |length| length + 4).unwrap()
        };
        let first = of(None, [10, 10]);
        assert_eq!((first.at(&0), first.at(&1), first.end()), (0, 14, 28));
        let grown = of(Some(&first), [14, 11]);
        assert!(grown.kept(Some(&first), &0) && grown.kept(Some(&first), &1));
        let moved = of(Some(&grown), [15, 11]);
        assert_eq!((moved.at(&0), moved.at(&1), moved.end()), (28, 14, 47));
    }
}
