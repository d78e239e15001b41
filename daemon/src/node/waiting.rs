//! Pods of this node that found no free address in their partition, for the partitions' status. Pure.

use bulkhead_api::objects::{Exhausted, LONGEST_MESSAGE, MOST_EXHAUSTED};
use std::{cmp::Reverse, collections::BTreeMap};

/// Of all messages of a report, in characters: an object may have but so many octets.
const ALL_MESSAGES: usize = 100 * LONGEST_MESSAGE;

/// By partition and pod (`namespace/name`): why.
#[derive(Debug, Default)]
pub struct Waiting(BTreeMap<String, BTreeMap<String, String>>);

impl Waiting {
    pub fn failed(&mut self, partition: &str, pod: String, why: &str) {
        self.0.entry(partition.into()).or_default().insert(pod, why.into());
    }

    /// A pod of the partition found an address: who has none will say so again.
    pub fn connected(&mut self, partition: &str) {
        self.0.remove(partition);
    }

    /// Pods that are not there any more wait for nothing.
    pub fn keep(&mut self, there: impl Fn(&str) -> bool) {
        self.0.values_mut().for_each(|pods| pods.retain(|pod, _| there(pod)));
        self.0.retain(|_, pods| !pods.is_empty());
    }

    /// All of them; where they are very many, with shorter messages.
    pub fn told(&self) -> Vec<Exhausted> {
        let longest = LONGEST_MESSAGE.min(ALL_MESSAGES / self.0.len().max(1));
        let cut = |why: &String| why.chars().take(longest).collect();
        let of = |(partition, pods): (&String, &BTreeMap<String, String>)| Exhausted {
            partition: partition.clone(),
            pods: u32::try_from(pods.len()).unwrap_or(u32::MAX),
            message: pods.values().next().map(cut).unwrap_or_default(),
        };
        let mut told: Vec<_> = self.0.iter().map(of).collect();
        if told.len() > MOST_EXHAUSTED {
            told.sort_by_key(|exhausted| Reverse(exhausted.pods));
            told.truncate(MOST_EXHAUSTED);
            told.sort();
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_exhausted_until_a_pod_of_it_is_connected_or_none_waits_any_more() {
        let mut waiting = Waiting::default();
        for (partition, pod) in [("web", "shop/a"), ("web", "shop/b"), ("web", "shop/a"), ("pay", "till/c")] {
            waiting.failed(partition, pod.into(), "full");
        }
        let told = waiting.told();
        let counts: Vec<_> =
            told.iter().map(|e| (e.partition.as_str(), e.pods, e.message.as_str())).collect();
        assert_eq!(counts, [("pay", 1, "full"), ("web", 2, "full")]);
        waiting.connected("web");
        waiting.failed("web", "shop/b".into(), "full");
        waiting.keep(|pod| pod == "shop/b");
        assert_eq!(
            waiting.told().iter().map(|e| (e.partition.as_str(), e.pods)).collect::<Vec<_>>(),
            [("web", 1)]
        );
        waiting.keep(|_| false);
        assert_eq!(waiting.told(), []);
    }

    #[test]
    fn what_is_told_has_room_in_a_report() {
        let mut waiting = Waiting::default();
        for (partitions, longest) in [(100, LONGEST_MESSAGE), (400, LONGEST_MESSAGE / 4)] {
            for i in 0..partitions {
                waiting.failed(&format!("p{i:03}"), "shop/a".into(), &"é".repeat(LONGEST_MESSAGE + 1));
            }
            let told = waiting.told();
            assert_eq!(told.len(), partitions);
            assert!(told.iter().all(|e| e.message.chars().count() == longest));
        }
        // More than a node has pods: those with the fewest give way.
        for i in 0..=MOST_EXHAUSTED {
            waiting.failed(&format!("p{i:04}"), "shop/a".into(), "full");
        }
        waiting.failed("p1000", "shop/b".into(), "full");
        let told = waiting.told();
        assert_eq!(told.len(), MOST_EXHAUSTED);
        assert!(told.iter().any(|e| (e.partition.as_str(), e.pods) == ("p1000", 2)));
    }
}
