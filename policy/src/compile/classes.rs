//! Address classes: identities that no rule of this generation can tell apart.

use super::policy::Policy;
use crate::{atom::Atom, interner::Meaning};
use bulkhead_ebpf_abi::ID_WORLD;
use imbl::OrdMap;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Class 0 has no atom that any rule asks for: the world.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Classes {
    /// By identity.
    pub by_identity: Arc<Vec<u32>>,
    /// By class: what rules can see of it; None: no identity has it.
    pub atoms: Vec<Option<Meaning>>,
    /// Which classes have an atom.
    having: HashMap<Atom, Vec<usize>>,
    /// What it was made of.
    asked: BTreeSet<Atom>,
    identities: OrdMap<u32, Meaning>,
}

impl Classes {
    /// What is still told apart keeps its class of before; without one, classes are numbered by what they are.
    pub fn of(
        policies: &[Arc<Policy>],
        identities: &OrdMap<u32, Meaning>,
        former: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let rules = policies.iter().flat_map(|p| &p.rules);
        let asked: BTreeSet<&Atom> =
            rules.flat_map(|r| r.peers.iter().flatten().chain(&r.requires)).collect();
        let same = |f: &&Arc<Self>| f.identities == *identities && f.asked.iter().eq(asked.iter().copied());
        if let Some(former) = former.filter(same) {
            return former.clone();
        }
        // An identity that is out of use is still in the maps for a while, and still means what it says.
        let seen: Vec<(Meaning, u32)> = identities
            .iter()
            .map(|(id, atoms)| (atoms.iter().filter(|a| asked.contains(a)).cloned().collect(), *id))
            .collect();
        let class_of = numbered(seen.iter().map(|(atoms, _)| atoms), former);
        let last = seen.iter().map(|(_, id)| *id).max().unwrap_or(ID_WORLD).max(ID_WORLD);
        let mut by_identity = vec![0; last as usize + 1];
        for (atoms, id) in &seen {
            by_identity[*id as usize] = class_of[atoms] as u32;
        }
        let classes = class_of.values().max().map_or(1, |last| last + 1);
        let mut atoms: Vec<Option<Meaning>> = vec![None; classes];
        let mut having: HashMap<Atom, Vec<usize>> = HashMap::new();
        for (meaning, class) in class_of {
            for atom in meaning.iter() {
                having.entry(atom.clone()).or_default().push(class);
            }
            atoms[class] = Some(meaning);
        }
        let asked = asked.into_iter().cloned().collect();
        Arc::new(Self {
            by_identity: Arc::new(by_identity),
            atoms,
            having,
            asked,
            identities: identities.clone(),
        })
    }

    pub fn having(&self, atom: &Atom) -> &[usize] {
        self.having.get(atom).map(Vec::as_slice).unwrap_or_default()
    }
}

/// A number for each: its former one, else the lowest that is free. Never by the identities' numbers: those depend on
/// history. Where a fifth of the numbers would be nobody's, all begin anew: rows are policies times classes.
fn numbered<'a>(
    seen: impl Iterator<Item = &'a Meaning>,
    former: Option<&Arc<Classes>>,
) -> BTreeMap<Meaning, usize> {
    let world: Meaning = Arc::from([]);
    let mut class_of = BTreeMap::from([(world, 0)]);
    class_of.extend(seen.map(|atoms| (atoms.clone(), 0)));
    let former = former.map_or(&[][..], |f| &f.atoms).iter().enumerate();
    let kept: BTreeMap<&Meaning, usize> =
        former.filter_map(|(class, atoms)| Some((atoms.as_ref()?, class))).collect();
    let compact = kept.values().max().is_some_and(|last| *last > class_of.len() + class_of.len() / 4 + 64);
    let kept = if compact { BTreeMap::new() } else { kept };
    let taken: BTreeSet<usize> = class_of.keys().filter_map(|atoms| kept.get(atoms).copied()).collect();
    let mut free = (1..).filter(|n| !taken.contains(n));
    for (atoms, class) in class_of.iter_mut().filter(|(atoms, _)| !atoms.is_empty()) {
        *class = kept.get(atoms).copied().or_else(|| free.next()).unwrap_or_default();
    }
    class_of
}
