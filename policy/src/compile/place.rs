//! Where a pod of this node stands in the tables.

use super::{
    Compiled,
    identities::{joined, of_partition, partition},
    policy::PolicyKey,
};
use crate::{LocalPod, Objects, atom::Atom, interner::Meaning};
use bulkhead_api::objects::DEFAULT_PARTITION;
use bulkhead_ebpf_abi::{Addr, ID_WORLD};
use std::{net::IpAddr, sync::Arc};

/// A pod's policy, and what decides its identity besides its address.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    pub policy: u32,
    partition: String,
    facts: Arc<[Atom]>,
}

impl Compiled {
    /// Where the pod stands; None: these tables lack its policy or an identity, so a compile with the pod among the local
    /// ones must come first. `objects` are those that were compiled.
    pub fn place(&self, objects: &Objects, pod: &LocalPod) -> Option<Placement> {
        let policy = self.policy_of(objects, pod)?;
        let variants = &self.identities.base.variants;
        let there = variants.contains_key(&pod.partition);
        let partition = if there { pod.partition.as_str() } else { DEFAULT_PARTITION };
        let facts = match self.identities.facts.get(pod) {
            Some(facts) => facts.clone(),
            None => {
                self.asked.selections.within(objects, &pod.namespace).facts(objects.pod(&pod.key())).into()
            }
        };
        let known = |of_prefix: &Meaning| self.number(&joined(of_prefix, &facts)).is_some();
        let all_known = variants.get(partition)?.iter().all(known);
        all_known.then(|| Placement { policy, partition: partition.into(), facts })
    }

    /// The policy that judges the pod, if it was compiled.
    pub(crate) fn policy_of(&self, objects: &Objects, pod: &LocalPod) -> Option<u32> {
        let own = self.subjects.get(pod).cloned().unwrap_or_else(|| PolicyKey::of(objects, pod));
        self.numbers.get(&own).copied()
    }

    /// The identity of a pod's address: what rules see of the address where it lies in the partition's range, else (a
    /// stray) of the partition; and what they see of the pod.
    ///
    /// Two addresses of one pod may differ in this, where a rule's CIDR or a group holds one of them.
    pub fn pod_identity(&self, placement: &Placement, address: IpAddr) -> u32 {
        let address = Addr::from_ip(address);
        let of_prefix = self.identities.base.known(address);
        let in_range = partition(of_prefix) == Some(&placement.partition);
        let stray = of_partition(&placement.partition);
        let base = if in_range { of_prefix } else { &stray };
        // `place` has seen to it that there is one.
        self.number(&joined(base, &placement.facts)).unwrap_or(ID_WORLD)
    }

    /// The partition whose pods have this policy.
    pub fn partition_of_policy(&self, policy: u32) -> Option<&str> {
        self.numbers.iter().find(|(_, number)| **number == policy).map(|(key, _)| key.partition.as_str())
    }

    fn number(&self, atoms: &[Atom]) -> Option<u32> {
        if atoms.is_empty() { Some(ID_WORLD) } else { self.interner.asked_identity(atoms) }
    }
}
