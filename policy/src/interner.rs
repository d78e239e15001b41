//! Stable numbers for identities, policies and rules.
//!
//! The daemon keeps the interner on disk: the kernel's maps hold these numbers over restarts. It compiles, puts the
//! tables into force, and then says [`Interner::switched`]. A preview compiles with a clone and throws it away: a clone
//! shares everything and costs nothing.
//!
//! When a number is freed: what the tables in force do not ask for keeps its number for [`KEPT_GENERATIONS`] further
//! switches, so that entries of the generation before still mean what they meant. A compile or write that fails frees
//! nothing. After that, numbers of identities and policies (indices of bounded tables) are given out again, lowest first;
//! numbers of rules never are, because counters and connections may hold them for as long as they live.

use crate::{atom::Atom, compile::Map};
use bulkhead_ebpf_abi::{ID_FIRST_DYNAMIC, RULE_FIRST_DYNAMIC};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};
use std::{collections::BTreeSet, sync::Arc};

/// Switches that an unused number outlives.
pub const KEPT_GENERATIONS: u64 = 2;

/// What an identity stands for: atoms, sorted.
pub(crate) type Meaning = Arc<[Atom]>;

/// On disk every atom stands once: identities name them by their place in the list.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Interner {
    switches: u64,
    identities: Numbers<Meaning>,
    policies: Numbers<Arc<str>>,
    rules: Numbers<Arc<str>>,
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

/// The numbers that a generation is made of, each kind ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Asked {
    pub identities: Arc<[u32]>,
    pub policies: Arc<[u32]>,
    pub rules: Arc<[u32]>,
}

impl Interner {
    /// What was compiled last is in force: forgets what has been unused for long enough. Whether a rule was among it:
    /// nobody can name it any more.
    pub fn switched(&mut self) -> bool {
        self.switches += 1;
        let released = self.identities.release(self.switches);
        self.identities.free.extend(released);
        let released = self.policies.release(self.switches);
        self.policies.free.extend(released);
        !self.rules.release(self.switches).is_empty()
    }

    /// Numbers of rules that have a name, built-in ones apart.
    pub fn rule_numbers(&self) -> BTreeSet<u32> {
        self.rules.by_number.keys().copied().collect()
    }

    /// Whether both give every number the same meaning: what is on disk of the one serves for the other.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.identities.by_number == other.identities.by_number
            && self.policies.by_number == other.policies.by_number
            && self.rules.by_number == other.rules.by_number
            && self.rules.next == other.rules.next
    }

    /// A compile succeeded, and this is what it asks for.
    pub(crate) fn asked(&mut self, asked: Asked) {
        self.identities.asked = asked.identities;
        self.policies.asked = asked.policies;
        self.rules.asked = asked.rules;
    }

    /// What the last compile that succeeded asks for.
    pub(crate) fn asks(&self) -> Asked {
        Asked {
            identities: self.identities.asked.clone(),
            policies: self.policies.asked.clone(),
            rules: self.rules.asked.clone(),
        }
    }

    pub(crate) fn identity(
        &mut self,
        atoms: &(impl AsRef<[Atom]> + Clone + Into<Meaning>),
    ) -> Result<u32, Exhausted> {
        match self.identities.by_key.get(atoms.as_ref()) {
            Some(number) => Ok(*number),
            None => self.identities.take(atoms.clone().into()),
        }
    }

    pub(crate) fn policy(&mut self, key: &str) -> Result<u32, Exhausted> {
        self.policies.number(key)
    }

    pub(crate) fn rule(&mut self, name: &str) -> Result<u32, Exhausted> {
        self.rules.number(name)
    }

    /// Identities with a number, those kept from earlier generations among them.
    pub(crate) fn identities(&self) -> &OrdMap<u32, Meaning> {
        &self.identities.by_number
    }

    /// The number of an identity that the last compile asked for.
    pub(crate) fn asked_identity(&self, atoms: &[Atom]) -> Option<u32> {
        let number = self.identities.by_key.get(atoms).copied()?;
        self.identities.asked.binary_search(&number).is_ok().then_some(number)
    }

    /// Rules with a number, those kept from earlier generations among them.
    pub(crate) fn rules(&self) -> &OrdMap<u32, Arc<str>> {
        &self.rules.by_number
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Numbers<K: Ord + Clone> {
    /// The lowest number never given out.
    next: u32,
    /// Given out before, and nobody's now.
    free: OrdSet<u32>,
    by_key: OrdMap<K, u32>,
    by_number: OrdMap<u32, K>,
    /// By the tables in force, or about to be; ascending.
    asked: Arc<[u32]>,
    /// Of those that nobody asks for: the first switch that found it so.
    idle: OrdMap<u32, u64>,
}

impl Numbers<Arc<str>> {
    fn number(&mut self, key: &str) -> Result<u32, Exhausted> {
        match self.by_key.get(key) {
            Some(number) => Ok(*number),
            None => self.take(key.into()),
        }
    }
}

impl<K: Ord + Clone> Numbers<K> {
    /// The same numbers for other keys; who asks for them is not taken along.
    fn with_keys<L: Ord + Clone>(&self, mut key: impl FnMut(&K) -> L) -> Numbers<L> {
        let by_number: Vec<(u32, L)> = self.by_number.iter().map(|(n, k)| (*n, key(k))).collect();
        Numbers { free: self.free.clone(), ..Numbers::of(self.next, by_number) }
    }

    fn of(next: u32, taken: Vec<(u32, K)>) -> Self {
        Self {
            by_key: taken.iter().map(|(number, key)| (key.clone(), *number)).collect(),
            by_number: taken.into_iter().collect(),
            ..Self::from(next)
        }
    }

    fn from(first: u32) -> Self {
        Self {
            next: first,
            free: OrdSet::new(),
            by_key: OrdMap::new(),
            by_number: OrdMap::new(),
            asked: Arc::default(),
            idle: OrdMap::new(),
        }
    }

    fn take(&mut self, key: K) -> Result<u32, Exhausted> {
        let number = match self.free.remove_min() {
            Some(number) => number,
            None => {
                let number = self.next;
                self.next = number.checked_add(1).ok_or(Exhausted)?;
                number
            }
        };
        self.by_key.insert(key.clone(), number);
        self.by_number.insert(number, key);
        Ok(number)
    }

    fn release(&mut self, now: u64) -> Vec<u32> {
        let asked = self.asked.clone();
        let is_asked = |number: &u32| asked.binary_search(number).is_ok();
        let back: Vec<u32> = self.idle.keys().copied().filter(is_asked).collect();
        for number in back {
            self.idle.remove(&number);
        }
        for number in self.by_number.keys().filter(|number| !is_asked(number)) {
            self.idle.entry(*number).or_insert(now);
        }
        let long_ago = |since: u64| now + 1 >= since + KEPT_GENERATIONS;
        let released: Vec<u32> = self.idle.iter().filter(|(_, s)| long_ago(**s)).map(|(n, _)| *n).collect();
        for number in &released {
            self.idle.remove(number);
            self.by_number.remove(number).map(|key| self.by_key.remove(&key));
        }
        released
    }
}

#[derive(Deserialize)]
struct Written {
    /// None of them: of a daemon that wrote them out with each identity.
    #[serde(default)]
    atoms: Vec<Atom>,
    identities: Numbers<Arc<[AtomOrPlace]>>,
    policies: Numbers<Arc<str>>,
    rules: Numbers<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
enum AtomOrPlace {
    Place(u32),
    Atom(Atom),
}

/// As [`Written`]; of what is there already nothing is copied.
impl Serialize for Interner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut atoms, mut places) = (Vec::new(), Map::default());
        let mut place = |atom| {
            *places.entry(Atom::glance(atom)).or_insert_with(|| {
                atoms.push(atom);
                // Beyond 2³² there is no memory for them.
                atoms.len() as u32 - 1
            })
        };
        let taken = self.identities.by_number.iter();
        let taken: Vec<(u32, Vec<u32>)> =
            taken.map(|(number, meaning)| (*number, meaning.iter().map(&mut place).collect())).collect();
        let identities = WrittenNumbers { next: self.identities.next, free: &self.identities.free, taken };
        let mut written = serializer.serialize_struct("Interner", 4)?;
        written.serialize_field("atoms", &atoms)?;
        written.serialize_field("identities", &identities)?;
        written.serialize_field("policies", &self.policies.written())?;
        written.serialize_field("rules", &self.rules.written())?;
        written.end()
    }
}

/// A place in the list of atoms that is beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identity has atom {0}, and there is no such")]
pub struct NoAtom(u32);

impl TryFrom<Written> for Interner {
    type Error = NoAtom;

    fn try_from(written: Written) -> Result<Self, NoAtom> {
        let Written { atoms, identities, policies, rules } = written;
        let mut missing = None;
        let identities = identities.with_keys(|meaning| {
            let atom = |one: &AtomOrPlace| match one {
                AtomOrPlace::Atom(atom) => Some(atom.clone()),
                AtomOrPlace::Place(place) => {
                    let found = atoms.get(*place as usize).cloned();
                    missing = missing.or(found.is_none().then_some(*place));
                    found
                }
            };
            meaning.iter().filter_map(atom).collect()
        });
        match missing {
            Some(place) => Err(NoAtom(place)),
            None => Ok(Self { switches: 0, identities, policies, rules }),
        }
    }
}

/// `next` and the pairs: JSON has no keys but strings. Who asks for what is not of the disk: after a restart all that is
/// known counts as in use until the first switch.
#[derive(Serialize)]
struct WrittenNumbers<'a, T> {
    next: u32,
    free: &'a OrdSet<u32>,
    taken: Vec<T>,
}

impl<K: Ord + Clone> Numbers<K> {
    fn written(&self) -> WrittenNumbers<'_, (&u32, &K)> {
        WrittenNumbers { next: self.next, free: &self.free, taken: self.by_number.iter().collect() }
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>> Deserialize<'de> for Numbers<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written<K> {
            next: u32,
            free: Vec<u32>,
            taken: Vec<(u32, K)>,
        }
        let Written { next, free, taken } = Written::<K>::deserialize(deserializer)?;
        Ok(Self { free: free.into_iter().collect(), ..Self::of(next, taken) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One generation that asks for these partitions.
    fn generation(interner: &mut Interner, names: &[&str]) -> Vec<u32> {
        let numbers: Vec<u32> = names.iter().map(|n| interner.policy(n).unwrap()).collect();
        let mut asked = numbers.clone();
        asked.sort_unstable();
        interner.asked(Asked { policies: asked.into(), ..Asked::default() });
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
            let number = interner.rule(&format!("rule {i}")).unwrap();
            assert!(seen.insert(number));
            interner.asked(Asked { rules: [number].into(), ..Asked::default() });
            interner.switched();
        }
        assert_eq!(interner.rules().len(), KEPT_GENERATIONS as usize);
    }

    #[test]
    fn an_atom_is_written_once_and_read_once_however_many_identities_have_it() {
        let partition = |name: &str| Atom::Partition(name.into());
        let mut interner = Interner::default();
        let pod = [Atom::Pod, partition("web")];
        let selected = [Atom::Selected("pods a=b in namespace web".into()), pod[0].clone(), pod[1].clone()];
        let numbers = [&pod[..], &selected[..]].map(|atoms| interner.identity(&atoms).unwrap());
        let text = serde_json::to_string(&interner).unwrap();
        assert_eq!(text.matches("\"web\"").count(), 1, "{text}");
        let mut read: Interner = serde_json::from_str(&text).unwrap();
        assert!(read.says_the_same(&interner));
        assert_eq!([&pod[..], &selected[..]].map(|atoms| read.identity(&atoms).unwrap()), numbers);
        serde_json::from_str::<Interner>(&text.replace("[0,1]", "[0,7]")).unwrap_err();
    }

    #[test]
    fn numbers_of_a_daemon_that_wrote_atoms_with_each_identity_can_be_read() {
        let text = r#"{"identities":{"next":18,"free":[17],"taken":[[16,["pod",{"partition":"web"}]]]},
            "policies":{"next":1,"free":[],"taken":[[0,"web"]]},"rules":{"next":64,"free":[],"taken":[]}}"#;
        let mut read: Interner = serde_json::from_str(text).unwrap();
        assert_eq!(read.identity(&[Atom::Pod, Atom::Partition("web".into())]), Ok(16));
        assert_eq!((read.policy("web"), read.identity(&[Atom::Pod])), (Ok(0), Ok(17)));
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
