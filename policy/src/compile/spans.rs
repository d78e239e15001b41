//! Places in a table: a span for each thing that stands in it.
//!
//! What has a place keeps it, what is new takes the first gap that is large enough, and where gaps would be most of the
//! table, all are placed anew.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    length: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spans<K: Hash + Eq> {
    spans: HashMap<K, Span>,
    end: u32,
}

/// Entries that gaps may take beyond as many as are in use.
const SLACK: u64 = 1024;

impl<K: Hash + Eq> Default for Spans<K> {
    fn default() -> Self {
        Self { spans: HashMap::new(), end: 0 }
    }
}

impl<K: Hash + Eq + Clone> Spans<K> {
    /// A span for each of these, which may come more than once. None: beyond 32 bits.
    pub fn of(former: Option<&Self>, wanted: impl Iterator<Item = (K, u32)>) -> Option<Self> {
        let mut lengths: HashMap<K, u32> = HashMap::new();
        let mut order = Vec::new();
        for (key, length) in wanted {
            if lengths.insert(key.clone(), length).is_none() {
                order.push((key, length));
            }
        }
        let used: u64 = order.iter().map(|(_, length)| u64::from(*length)).sum();
        let placed = Self::place(former, &order)?;
        if former.is_some() && u64::from(placed.end) > 2 * used + SLACK {
            return Self::place(None, &order);
        }
        Some(placed)
    }

    fn place(former: Option<&Self>, wanted: &[(K, u32)]) -> Option<Self> {
        let mut spans = HashMap::with_capacity(wanted.len());
        let mut new = Vec::new();
        for (key, length) in wanted {
            match former.and_then(|f| f.spans.get(key)).filter(|s| s.length >= *length) {
                Some(span) => drop(spans.insert(key.clone(), *span)),
                None => new.push((key, *length)),
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
    former: Option<&Arc<Vec<T>>>,
    zero: T,
    spans: &Spans<K>,
    there: impl Fn(&K) -> bool,
    contents: impl Fn(&K) -> Vec<T>,
) -> Arc<Vec<T>>
where
    K: Hash + Eq + Clone,
    T: Copy + PartialEq,
{
    let mut table = former.cloned().unwrap_or_default();
    if table.len() != spans.end() {
        Arc::make_mut(&mut table).resize(spans.end(), zero);
    }
    for (key, span) in spans.spans.iter().filter(|(key, _)| !there(key)) {
        let contents = contents(key);
        let at = span.first as usize..span.first as usize + contents.len();
        if table[at.clone()] != contents[..] {
            Arc::make_mut(&mut table)[at].copy_from_slice(&contents);
        }
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
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self { hash: hasher.finish(), value: Arc::new(value) }
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
