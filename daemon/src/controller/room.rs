//! Whether a partition has addresses for the pods that ask for one, from all nodes' reports. Pure.
//!
//! A node may well be the only one that has none left, so one report is enough: what it says is told with its name.

use super::summary::named;
use bulkhead_api::objects::NodeReportSpec;
use std::collections::BTreeMap;

/// Pods that wait for an address of a partition.
#[derive(Debug, Default, PartialEq)]
pub struct Room<'a> {
    pods: u32,
    nodes: Vec<&'a str>,
    /// In the words of most of these nodes.
    why: &'a str,
}

impl<'a> Room<'a> {
    /// From the reports by node.
    pub fn of(partition: &str, reports: impl Iterator<Item = (&'a str, &'a NodeReportSpec)>) -> Self {
        let mut room = Self::default();
        let mut said: BTreeMap<&str, usize> = BTreeMap::new();
        for (node, report) in reports {
            let Some(one) = report.exhausted.iter().find(|e| e.partition == partition) else { continue };
            room.pods = room.pods.saturating_add(one.pods);
            room.nodes.push(node);
            *said.entry(&one.message).or_default() += 1;
        }
        // The first of those that are said most often.
        room.why = said.into_iter().rev().max_by_key(|(_, nodes)| *nodes).map_or("", |(why, _)| why);
        room
    }

    /// As a condition has it: status, reason and message.
    pub fn told(&self) -> (&'static str, &'static str, String) {
        if self.nodes.is_empty() {
            return ("True", "Available", String::new());
        }
        let (pods, nodes) = (counted(self.pods.into(), "pod"), counted(self.nodes.len() as u64, "node"));
        let names = named(&self.nodes);
        ("False", "Exhausted", format!("{pods} on {nodes} ({names}) without an address: {}", self.why))
    }
}

/// `1 pod`, `3 pods`.
fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::Exhausted;

    fn short(pods: u32, message: &str) -> NodeReportSpec {
        NodeReportSpec {
            exhausted: vec![Exhausted { partition: "web".into(), pods, message: message.into() }],
            ..NodeReportSpec::default()
        }
    }

    fn told(partition: &str, reports: &[NodeReportSpec]) -> (&'static str, &'static str, String) {
        let names = ["node1", "node2", "node3", "node4", "node5"];
        Room::of(partition, names.into_iter().zip(reports)).told()
    }

    #[test]
    fn pods_without_an_address_are_counted_until_there_are_none() {
        let none = NodeReportSpec::default;
        assert_eq!(told("web", &[none()]), ("True", "Available", String::new()));
        let some = told("web", &[short(2, "full"), none(), short(1, "full")]);
        let words = "3 pods on 2 nodes (node1, node3) without an address: full";
        assert_eq!(some, ("False", "Exhausted", words.into()));
        assert_eq!(told("web", &[short(1, "full")]).2, "1 pod on 1 node (node1) without an address: full");
        assert_eq!(told("pay", &[short(2, "full")]).0, "True");
    }

    #[test]
    fn one_node_speaks_with_its_name_and_does_not_choose_the_words_of_others() {
        let lie = short(u32::MAX, "a lie");
        let alone = told("web", &[NodeReportSpec::default(), lie.clone()]).2;
        assert_eq!(alone, "4294967295 pods on 1 node (node2) without an address: a lie");
        let others = [short(1, "full"), short(1, "full"), short(1, "full")];
        let among = told("web", &[&[lie][..], &others].concat()).2;
        let words = "4294967295 pods on 4 nodes (node1, node2, node3, ...) without an address: full";
        assert_eq!(among, words);
    }

    #[test]
    fn a_node_that_names_a_partition_twice_counts_once() {
        let mut twice = short(1, "full");
        twice.exhausted.extend(short(7, "full").exhausted);
        assert_eq!(told("web", &[twice]).2, "1 pod on 1 node (node1) without an address: full");
    }
}
