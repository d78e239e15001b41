//! Address classes: identities that no rule of this generation can tell apart.

use super::policy::Policy;
use crate::{atom::Atom, interner::Meaning};
use bulkhead_ebpf_abi::ID_WORLD;
use imbl::{OrdMap, ordmap::DiffItem};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

/// Class 0 has no atom that any rule asks for: the world.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Classes {
    /// By identity.
    pub by_identity: Arc<Vec<u32>>,
    /// By class: what rules can see of it; None: no identity has it.
    pub atoms: Vec<Option<Meaning>>,
    /// By class, how many identities have it.
    uses: Vec<u32>,
    class_of: OrdMap<Meaning, usize>,
    /// Which classes have an atom.
    having: OrdMap<Atom, Arc<Vec<usize>>>,
    /// What it was made of.
    policies: Vec<Arc<Policy>>,
    asked: Asked,
    identities: OrdMap<u32, Meaning>,
}

/// How many times rules ask for each atom.
type Asked = OrdMap<Atom, usize>;

impl Classes {
    /// What is still told apart keeps its class of before; without one, classes are numbered by what they are.
    pub fn of(
        policies: &[Arc<Policy>],
        identities: &OrdMap<u32, Meaning>,
        former: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let same = |f: &&Arc<Self>| f.identities == *identities && is_same(&f.policies, policies);
        if let Some(former) = former.filter(same) {
            return former.clone();
        }
        let (asked, same_atoms) = asked(policies, former.map_or(&Self::default(), |f| f));
        let followed = former.filter(|_| same_atoms).and_then(|f| f.followed(&asked, identities));
        let mut classes = followed.unwrap_or_else(|| Self::anew(asked, identities, former));
        classes.policies = policies.to_vec();
        Arc::new(classes)
    }

    fn anew(asked: Asked, identities: &OrdMap<u32, Meaning>, former: Option<&Arc<Self>>) -> Self {
        // An identity that is out of use is still in the maps for a while, and still means what it says.
        let seen: Vec<(Meaning, u32)> =
            identities.iter().map(|(id, atoms)| (seen(&asked, atoms), *id)).collect();
        let class_of = numbered(seen.iter().map(|(atoms, _)| atoms), former);
        let last = seen.iter().map(|(_, id)| *id).max().unwrap_or(ID_WORLD).max(ID_WORLD);
        let classes = class_of.values().max().map_or(1, |last| last + 1);
        let (mut by_identity, mut uses) = (vec![0; last as usize + 1], vec![0; classes]);
        for (atoms, id) in &seen {
            let class = class_of[atoms];
            by_identity[*id as usize] = class as u32;
            uses[class] += 1;
        }
        let mut atoms: Vec<Option<Meaning>> = vec![None; classes];
        let mut having: BTreeMap<&Atom, Vec<usize>> = BTreeMap::new();
        for (meaning, class) in &class_of {
            for atom in meaning.iter() {
                having.entry(atom).or_default().push(*class);
            }
            atoms[*class] = Some(meaning.clone());
        }
        let having = having.into_iter().map(|(atom, classes)| (atom.clone(), Arc::new(classes))).collect();
        Self {
            by_identity: Arc::new(by_identity),
            atoms,
            uses,
            having,
            class_of: class_of.into_iter().collect(),
            policies: Vec::new(),
            asked,
            identities: identities.clone(),
        }
    }

    /// From the identities before to these, where rules ask for the same. None: too many classes would be nobody's.
    fn followed(&self, asked: &Asked, identities: &OrdMap<u32, Meaning>) -> Option<Self> {
        let mut classes = Self { asked: asked.clone(), ..self.clone() };
        for item in self.identities.diff(identities) {
            let (id, gone, come) = match item {
                DiffItem::Add(id, come) => (*id, false, Some(come)),
                DiffItem::Remove(id, _) => (*id, true, None),
                DiffItem::Update { old: (id, _), new: (_, come) } => (*id, true, Some(come)),
            };
            if gone {
                classes.leave(id);
            }
            if let Some(come) = come {
                classes.enter(id, seen(&self.asked, come));
            }
        }
        classes.identities = identities.clone();
        (!is_sparse(classes.atoms.len(), classes.class_of.len())).then_some(classes)
    }

    fn enter(&mut self, id: u32, meaning: Meaning) {
        let class = self.class_of.get(&meaning).copied().unwrap_or_else(|| self.take(meaning));
        self.uses[class] += 1;
        let by_identity = Arc::make_mut(&mut self.by_identity);
        if by_identity.len() <= id as usize {
            by_identity.resize(id as usize + 1, 0);
        }
        by_identity[id as usize] = class as u32;
    }

    /// The lowest class that is nobody's.
    fn take(&mut self, meaning: Meaning) -> usize {
        let class = self.atoms.iter().position(Option::is_none).unwrap_or(self.atoms.len());
        if class == self.atoms.len() {
            self.atoms.push(None);
            self.uses.push(0);
        }
        for atom in meaning.iter() {
            Arc::make_mut(self.having.entry(atom.clone()).or_default()).push(class);
        }
        self.class_of.insert(meaning.clone(), class);
        self.atoms[class] = Some(meaning);
        class
    }

    fn leave(&mut self, id: u32) {
        let by_identity = Arc::make_mut(&mut self.by_identity);
        let Some(class) = by_identity.get_mut(id as usize).map(std::mem::take) else { return };
        let class = class as usize;
        self.uses[class] = self.uses[class].saturating_sub(1);
        // The world needs nobody.
        if self.uses[class] > 0 || class == 0 {
            return;
        }
        let Some(meaning) = self.atoms[class].take() else { return };
        for atom in meaning.iter() {
            if let Some(classes) = self.having.get_mut(atom) {
                Arc::make_mut(classes).retain(|c| *c != class);
            }
        }
        self.class_of.remove(&meaning);
    }

    pub fn having(&self, atom: &Atom) -> &[usize] {
        self.having.get(atom).map(|classes| classes.as_slice()).unwrap_or_default()
    }
}

/// What these policies ask, from what those of `former` do; and whether it is for the same atoms.
fn asked(policies: &[Arc<Policy>], former: &Classes) -> (Asked, bool) {
    let all = |policies: &[Arc<Policy>]| policies.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
    let (old, new) = (all(&former.policies), all(policies));
    let (mut asked, mut same) = (former.asked.clone(), true);
    // Come first: what goes and comes is the same.
    for policy in policies.iter().filter(|p| !old.contains(&Arc::as_ptr(p))) {
        for atom in policy.asks() {
            let count = asked.entry(atom.clone()).or_default();
            *count += 1;
            same &= *count > 1;
        }
    }
    for policy in former.policies.iter().filter(|p| !new.contains(&Arc::as_ptr(p))) {
        for atom in policy.asks() {
            match asked.get_mut(atom) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    asked.remove(atom);
                    same = false;
                }
            }
        }
    }
    (asked, same)
}

/// What rules see of an identity.
fn seen(asked: &Asked, atoms: &Meaning) -> Meaning {
    if atoms.iter().all(|a| asked.contains_key(a)) {
        return atoms.clone();
    }
    atoms.iter().filter(|a| asked.contains_key(*a)).cloned().collect()
}

/// Whether a fifth of the classes, up to the last, are nobody's: rows are policies times classes.
fn is_sparse(last: usize, classes: usize) -> bool {
    last > classes + classes / 4 + 64
}

/// Whether these are the very same policies.
pub(super) fn is_same(a: &[Arc<Policy>], b: &[Arc<Policy>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
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
    let compact = kept.values().max().is_some_and(|last| is_sparse(*last, class_of.len()));
    let kept = if compact { BTreeMap::new() } else { kept };
    let taken: BTreeSet<usize> = class_of.keys().filter_map(|atoms| kept.get(atoms).copied()).collect();
    let mut free = (1..).filter(|n| !taken.contains(n));
    for (atoms, class) in class_of.iter_mut().filter(|(atoms, _)| !atoms.is_empty()) {
        *class = kept.get(atoms).copied().or_else(|| free.next()).unwrap_or_default();
    }
    class_of
}
