//! Address classes: identities that no rule of this generation can tell apart.

use super::policy::Policy;
use crate::{Interner, atom::Atom};
use bulkhead_ebpf_abi::ID_WORLD;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Class 0 has no atom that any rule asks for: the world.
#[derive(Debug)]
pub(crate) struct Classes {
    /// By identity.
    pub by_identity: Vec<u32>,
    /// By class: what rules can see of it.
    pub atoms: Vec<Vec<Atom>>,
    /// Which classes have an atom.
    having: HashMap<Atom, Vec<usize>>,
}

impl Classes {
    /// Classes are numbered by what they are, never by the identities' numbers: those depend on history.
    pub fn of(policies: &[&Policy], numbers: &Interner) -> Self {
        let rules = policies.iter().flat_map(|p| &p.rules);
        let asked: BTreeSet<&Atom> =
            rules.flat_map(|r| r.peers.iter().flatten().chain(&r.requires)).collect();
        // An identity that is out of use is still in the maps for a while, and still means what it says.
        let seen: Vec<(Vec<Atom>, u32)> = numbers
            .identities()
            .map(|(atoms, id)| (atoms.iter().filter(|a| asked.contains(a)).cloned().collect(), id))
            .collect();
        let mut class_of: BTreeMap<&[Atom], u32> = BTreeMap::from([(&[][..], 0)]);
        class_of.extend(seen.iter().map(|(atoms, _)| (atoms.as_slice(), 0)));
        for (class, number) in class_of.values_mut().zip(0..) {
            *class = number;
        }
        let last = seen.iter().map(|(_, id)| *id).max().unwrap_or(ID_WORLD).max(ID_WORLD);
        let mut by_identity = vec![0; last as usize + 1];
        for (atoms, id) in &seen {
            by_identity[*id as usize] = class_of[atoms.as_slice()];
        }
        let atoms: Vec<Vec<Atom>> = class_of.keys().map(|atoms| atoms.to_vec()).collect();
        let mut having: HashMap<Atom, Vec<usize>> = HashMap::new();
        for (class, atoms) in atoms.iter().enumerate() {
            for atom in atoms {
                having.entry(atom.clone()).or_default().push(class);
            }
        }
        Self { by_identity, atoms, having }
    }

    pub fn having(&self, atom: &Atom) -> &[usize] {
        self.having.get(atom).map(Vec::as_slice).unwrap_or_default()
    }
}
