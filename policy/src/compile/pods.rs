//! The addresses that pods have, and who each of them is.
//!
//! The index follows the objects: from one set to the next only those addresses are looked at again whose pod, whose
//! namespace, whose prefix or whose selectors are others than before. What it then says depends on the objects alone.

use super::{
    CompileError, Compiled,
    identities::{Base, joined, number, partition},
    selection::{Selections, Within, named_ports},
};
use crate::{Interner, Labels, Objects, atom::NamedPort, objects::Pod, prefix::Prefix, selector};
use bulkhead_ebpf_abi::{Addr, Identity};
use imbl::{OrdMap, OrdSet, ordmap::DiffItem};
use std::{collections::BTreeSet, sync::Arc};

#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Pods {
    /// Every (address, pod): of two pods with one address the first has it, unless it is a stray's.
    owners: OrdSet<(Addr, Arc<str>)>,
    /// Of nodes, of strays, and of pods of which rules see more than their prefix.
    pub exact: OrdMap<Addr, Identity>,
    /// By identity: how many of the entries have it.
    uses: OrdMap<u32, usize>,
    /// How often a container port of this name and number is there.
    ports: OrdMap<NamedPort, usize>,
}

impl Pods {
    /// The numbers that entries have.
    pub fn identities(&self) -> impl Iterator<Item = u32> {
        self.uses.keys().copied()
    }

    pub fn ports(&self) -> impl Iterator<Item = &NamedPort> {
        self.ports.keys()
    }

    /// The pod that has the address, as `namespace/name`.
    fn owner(&self, address: Addr) -> Option<&str> {
        self.within(Prefix { address, length: 128 }).next().map(|(_, pod)| pod)
    }

    /// Pods that are told to have addresses of this prefix.
    pub fn within(&self, prefix: Prefix) -> impl Iterator<Item = (Addr, &str)> {
        let inside = self.owners.range((prefix.address, Arc::from(""))..);
        inside
            .map(|(address, pod)| (*address, &**pod))
            .take_while(move |(address, _)| prefix.spans(Prefix { address: *address, length: 128 }))
    }

    /// Counts the ports that pods have now instead of those they had.
    pub fn follow_ports(&mut self, before: Option<&Objects>, objects: &Objects) {
        each_change(before, objects, |_, old, new| {
            old.into_iter().flat_map(named_ports).for_each(|port| {
                let count = self.ports.get(&port).copied().unwrap_or_default();
                match count {
                    0 | 1 => drop(self.ports.remove(&port)),
                    more => drop(self.ports.insert(port, more - 1)),
                }
            });
            new.into_iter().flat_map(named_ports).for_each(|port| *self.ports.entry(port).or_default() += 1);
        });
    }

    /// From what was compiled before to these objects.
    pub fn follow(
        &mut self,
        objects: &Objects,
        former: Option<&Compiled>,
        base: &Base,
        asked: &Selections,
        numbers: &mut Interner,
    ) -> Result<(), CompileError> {
        let before = former.map(|f| &f.objects);
        let mut dirty = BTreeSet::new();
        each_change(before, objects, |key, old, new| {
            let key: Arc<str> = key.into();
            for address in old.into_iter().flat_map(addresses) {
                self.owners.remove(&(address, key.clone()));
                dirty.insert(address);
            }
            for address in new.into_iter().flat_map(addresses) {
                self.owners.insert((address, key.clone()));
                dirty.insert(address);
            }
        });
        match former {
            None => dirty.extend(base.addresses()),
            Some(former) => {
                self.of_changed_pods(objects, former, asked, &mut dirty);
                self.of_changed_base(&former.identities.base, base, &mut dirty);
            }
        }
        let mut facts = Facts { objects, asked, within: None };
        for address in dirty {
            let entry = self.entry(address, objects, base, &mut facts, numbers)?;
            self.set(address, entry);
        }
        Ok(())
    }

    /// Addresses of pods of which selectors see other things than before.
    fn of_changed_pods(
        &self,
        objects: &Objects,
        former: &Compiled,
        asked: &Selections,
        dirty: &mut BTreeSet<Addr>,
    ) {
        let selectors = asked.unlike(&former.asked.selections);
        let all = asked.port_names() != former.asked.selections.port_names();
        let namespaces: BTreeSet<&str> = former
            .objects
            .namespaces
            .diff(&objects.namespaces)
            .map(|item| match item {
                DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.as_str(),
                DiffItem::Update { new: (name, _), .. } => name.as_str(),
            })
            .collect();
        if selectors.is_empty() && namespaces.is_empty() && !all {
            return;
        }
        let mut within: Option<(&str, Labels, Vec<_>)> = None;
        for (key, pod) in &objects.pods {
            let namespace = namespace_of(key);
            if within.as_ref().is_none_or(|(n, ..)| *n != namespace) {
                let labels = objects.labels(namespace);
                let here = selectors.iter().filter(|s| s.matches_namespace(namespace, &labels));
                let here: Vec<_> = here.map(|s| &s.labels).collect();
                within = Some((namespace, labels, here));
            }
            let Some((_, _, here)) = &within else { continue };
            let other = all
                || namespaces.contains(namespace)
                || here.iter().any(|labels| selector::matches(labels, &pod.labels));
            if other {
                dirty.extend(addresses(pod));
            }
        }
    }

    /// Addresses whose prefix says other things than before, or that nodes have or had.
    fn of_changed_base(&self, before: &Arc<Base>, base: &Base, dirty: &mut BTreeSet<Addr>) {
        if std::ptr::eq(&**before, base) {
            return;
        }
        let (old, new) = (&before.addresses.prefixes, &base.addresses.prefixes);
        let keys: BTreeSet<&Prefix> = old.keys().chain(new.keys()).collect();
        for prefix in keys.into_iter().filter(|p| old.get(p) != new.get(p)) {
            dirty.extend(self.within(*prefix).map(|(address, _)| address));
        }
        dirty.extend(before.addresses().chain(base.addresses()));
    }

    fn entry(
        &self,
        address: Addr,
        objects: &Objects,
        base: &Base,
        facts: &mut Facts<'_>,
        numbers: &mut Interner,
    ) -> Result<Option<Identity>, CompileError> {
        if let Some(node) = base.nodes.get(&address) {
            return Ok(Some(*node));
        }
        let stray = base.strays.get(&address).copied();
        let of_stray = stray.and_then(|_| objects.pod_of_stray(address));
        let Some(pod) =
            of_stray.or_else(|| self.owner(address)).and_then(|key| Some((key, objects.pod(key)?)))
        else {
            return Ok(stray);
        };
        let (key, pod) = pod;
        let facts = facts.of(namespace_of(key), pod);
        let of_prefix = base.known(address);
        // No pod's word makes one of an address that is nobody's in the cluster.
        if partition(of_prefix).is_none() || facts.is_empty() {
            return Ok(stray);
        }
        let id = number(numbers, &joined(of_prefix, &facts))?;
        Ok(Some(Identity { id, flags: 0 }))
    }

    fn set(&mut self, address: Addr, entry: Option<Identity>) {
        let old = self.exact.get(&address).copied();
        if old == entry {
            return;
        }
        if let Some(Identity { id, .. }) = old {
            match self.uses.get(&id).copied().unwrap_or_default() {
                0 | 1 => drop(self.uses.remove(&id)),
                more => drop(self.uses.insert(id, more - 1)),
            }
        }
        match entry {
            Some(new) => {
                self.exact.insert(address, new);
                *self.uses.entry(new.id).or_default() += 1;
            }
            None => drop(self.exact.remove(&address)),
        }
    }
}

/// What selectors see of pods, asked namespace by namespace.
struct Facts<'a> {
    objects: &'a Objects,
    asked: &'a Selections,
    within: Option<(String, Within<'a>)>,
}

impl Facts<'_> {
    fn of(&mut self, namespace: &str, pod: &Pod) -> Vec<crate::atom::Atom> {
        if self.within.as_ref().is_none_or(|(n, _)| n != namespace) {
            self.within = Some((namespace.into(), self.asked.within(self.objects, namespace)));
        }
        self.within.as_ref().map(|(_, within)| within.facts(Some(pod))).unwrap_or_default()
    }
}

/// Pods that are others than before, without those that have their node's network.
fn each_change(
    before: Option<&Objects>,
    objects: &Objects,
    mut change: impl FnMut(&str, Option<&Pod>, Option<&Pod>),
) {
    fn own(pod: &Arc<Pod>) -> Option<&Pod> {
        Some(&**pod).filter(|p| !p.host_network)
    }
    let Some(before) = before else {
        objects.pods.iter().for_each(|(key, pod)| change(key, None, own(pod)));
        return;
    };
    for item in before.pods.diff(&objects.pods) {
        match item {
            DiffItem::Add(key, pod) => change(key, None, own(pod)),
            DiffItem::Remove(key, pod) => change(key, own(pod), None),
            DiffItem::Update { old: (key, old), new: (_, new) } => change(key, own(old), own(new)),
        }
    }
}

fn addresses(pod: &Pod) -> impl Iterator<Item = Addr> {
    pod.addresses.iter().map(|a| Addr::from_ip(*a))
}

fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or("", |(namespace, _)| namespace)
}
