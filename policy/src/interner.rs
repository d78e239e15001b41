//! Stable numbers for identities, policies and rules.
//!
//! The daemon keeps the interner on disk: the kernel's maps hold these numbers over restarts. It compiles, puts the
//! tables into force, and then says [`Interner::switched`]. A preview compiles with a clone and throws it away.
//!
//! When a number is freed: what no compile has asked for keeps its number for [`KEPT_GENERATIONS`] further switches, so
//! that entries of the generation before still mean what they meant. A compile or write that fails frees nothing. After
//! that, numbers of identities and policies (indices of bounded tables) are given out again, lowest first; numbers of
//! rules never are, because counters and connections may hold them for as long as they live.

use crate::atom::Atom;
use bulkhead_ebpf_abi::{ID_FIRST_DYNAMIC, RULE_FIRST_DYNAMIC};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Switches that an unused number outlives.
pub const KEPT_GENERATIONS: u64 = 2;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interner {
    switches: u64,
    identities: Numbers<Vec<Atom>>,
    policies: Numbers<String>,
    rules: Numbers<String>,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            switches: 0,
            identities: Numbers::from(ID_FIRST_DYNAMIC),
            policies: Numbers::from(0),
            rules: Numbers::from(RULE_FIRST_DYNAMIC),
        }
    }
}

/// All 2³² numbers of a kind are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Interner {
    /// What was compiled last is in force: forgets what has been unused for long enough. Whether a rule was among it:
    /// nobody can name it any more.
    pub fn switched(&mut self) -> bool {
        self.switches += 1;
        let oldest = self.switches.saturating_sub(KEPT_GENERATIONS);
        let released = self.identities.release(oldest);
        self.identities.free.extend(released);
        let released = self.policies.release(oldest);
        self.policies.free.extend(released);
        !self.rules.release(oldest).is_empty()
    }

    /// Numbers of rules that have a name, built-in ones apart.
    pub fn rule_numbers(&self) -> BTreeSet<u32> {
        self.rules().map(|(_, number)| number).collect()
    }

    pub(crate) fn identity(&mut self, atoms: &Vec<Atom>) -> Result<u32, Exhausted> {
        self.identities.number(atoms, self.switches)
    }

    pub(crate) fn policy(&mut self, partition: &str) -> Result<u32, Exhausted> {
        self.policies.number(&partition.to_string(), self.switches)
    }

    pub(crate) fn rule(&mut self, name: &str) -> Result<u32, Exhausted> {
        self.rules.number(&name.to_string(), self.switches)
    }

    /// Identities with a number, those kept from earlier generations among them.
    pub(crate) fn identities(&self) -> impl Iterator<Item = (&[Atom], u32)> {
        self.identities.iter().map(|(atoms, number)| (atoms.as_slice(), number))
    }

    /// Rules with a number, those kept from earlier generations among them.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (&str, u32)> {
        self.rules.iter().map(|(name, number)| (name.as_str(), number))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "K: Serialize", deserialize = "K: Ord + Deserialize<'de>"))]
struct Numbers<K> {
    /// The lowest number never given out.
    next: u32,
    /// Given out before, and nobody's now.
    free: BTreeSet<u32>,
    #[serde(with = "pairs")]
    taken: BTreeMap<K, Taken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Taken {
    number: u32,
    last_used: u64,
}

impl<K: Ord + Clone> Numbers<K> {
    fn from(first: u32) -> Self {
        Self { next: first, free: BTreeSet::new(), taken: BTreeMap::new() }
    }

    fn number(&mut self, key: &K, now: u64) -> Result<u32, Exhausted> {
        if let Some(taken) = self.taken.get_mut(key) {
            taken.last_used = now;
            return Ok(taken.number);
        }
        let number = match self.free.pop_first() {
            Some(number) => number,
            None => {
                let number = self.next;
                self.next = number.checked_add(1).ok_or(Exhausted)?;
                number
            }
        };
        self.taken.insert(key.clone(), Taken { number, last_used: now });
        Ok(number)
    }

    fn release(&mut self, oldest: u64) -> Vec<u32> {
        let released = self.taken.values().filter(|t| t.last_used < oldest).map(|t| t.number).collect();
        self.taken.retain(|_, t| t.last_used >= oldest);
        released
    }

    fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.taken.iter().map(|(key, taken)| (key, taken.number))
    }
}

/// A map as a list of pairs: JSON has no keys but strings.
mod pairs {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Ord + Deserialize<'de>,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One generation that asks for these partitions.
    fn generation(interner: &mut Interner, names: &[&str]) -> Vec<u32> {
        let numbers = names.iter().map(|n| interner.policy(n).unwrap()).collect();
        interner.switched();
        numbers
    }

    #[test]
    fn a_number_stays_with_its_meaning() {
        let mut interner = Interner::default();
        assert_eq!(generation(&mut interner, &["default", "web"]), [0, 1]);
        assert_eq!(generation(&mut interner, &["default", "db", "web"]), [0, 2, 1]);
    }

    #[test]
    fn a_number_is_given_out_again_after_two_further_generations() {
        let mut interner = Interner::default();
        generation(&mut interner, &["default", "web"]);
        assert_eq!(generation(&mut interner, &["default", "a"]), [0, 2]);
        assert_eq!(generation(&mut interner, &["default", "b"]), [0, 3]);
        assert_eq!(generation(&mut interner, &["default", "c"]), [0, 1]);
    }

    #[test]
    fn what_comes_back_in_time_has_its_number_again() {
        let mut interner = Interner::default();
        generation(&mut interner, &["default", "web"]);
        generation(&mut interner, &["default"]);
        generation(&mut interner, &["default"]);
        assert_eq!(generation(&mut interner, &["default", "web"]), [0, 1]);
    }

    #[test]
    fn a_rule_number_is_never_given_out_again() {
        let mut interner = Interner::default();
        let mut seen = BTreeSet::new();
        for i in 0..10 {
            assert!(seen.insert(interner.rule(&format!("rule {i}")).unwrap()));
            interner.switched();
        }
        assert_eq!(interner.rules().count(), KEPT_GENERATIONS as usize);
    }

    #[test]
    fn what_never_came_into_force_frees_nothing() {
        let mut interner = Interner::default();
        generation(&mut interner, &["default", "web"]);
        for name in ["a", "b", "c", "d", "e"] {
            interner.policy(name).unwrap();
        }
        assert_eq!(generation(&mut interner, &["default", "web", "f"]), [0, 1, 7]);
    }
}
