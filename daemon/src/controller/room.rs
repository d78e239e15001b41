//! Whether a partition has addresses for the pods that ask for one, from all nodes' reports. Pure.

use bulkhead_api::objects::NodeReportSpec;

/// Pods that wait for an address of a partition.
#[derive(Debug, Default, PartialEq)]
pub struct Room<'a> {
    pods: i32,
    nodes: i32,
    /// Of the first of these nodes.
    why: &'a str,
}

impl<'a> Room<'a> {
    pub fn of(partition: &str, reports: impl Iterator<Item = &'a NodeReportSpec>) -> Self {
        let mut room = Self::default();
        for one in reports.flat_map(|r| &r.exhausted).filter(|e| e.partition == partition) {
            (room.pods, room.nodes) = (room.pods.saturating_add(one.pods), room.nodes + 1);
            room.why = if room.why.is_empty() { &one.message } else { room.why };
        }
        room
    }

    /// As a condition has it: status, reason and message.
    pub fn told(&self) -> (&'static str, &'static str, String) {
        if self.nodes == 0 {
            return ("True", "Available", String::new());
        }
        let (pods, nodes) = (counted(self.pods, "pod"), counted(self.nodes, "node"));
        ("False", "Exhausted", format!("{pods} on {nodes} without an address: {}", self.why))
    }
}

/// `1 pod`, `3 pods`.
fn counted(number: i32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::Exhausted;

    #[test]
    fn pods_without_an_address_are_counted_until_there_are_none() {
        let short = |pods: i32| NodeReportSpec {
            exhausted: vec![Exhausted { partition: "web".into(), pods, message: "full".into() }],
            ..NodeReportSpec::default()
        };
        let none = NodeReportSpec::default();
        let told = |partition: &str, reports: &[&NodeReportSpec]| {
            Room::of(partition, reports.iter().copied()).told()
        };
        assert_eq!(told("web", &[&none]), ("True", "Available", String::new()));
        let some = told("web", &[&short(2), &none, &short(1)]);
        assert_eq!(some, ("False", "Exhausted", "3 pods on 2 nodes without an address: full".into()));
        assert_eq!(told("web", &[&short(1)]).2, "1 pod on 1 node without an address: full");
        assert_eq!(told("pay", &[&short(2)]).0, "True");
    }
}
