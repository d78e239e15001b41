//! From the reports of all nodes to the status of one object. Pure.

use bulkhead_api::objects::{ACCEPTED, ADDRESSES_AVAILABLE, NodeReportSpec, Refusal};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};

/// What nodes make of one version of an object.
#[derive(Debug, PartialEq)]
pub struct Summary<'a> {
    /// That have it in force.
    in_force: usize,
    /// That report at all.
    nodes: usize,
    /// That refused it, and what the first of them says.
    refused: usize,
    refusal: Option<&'a Refusal>,
    without_address: WithoutAddress<'a>,
}

/// Pods that wait for an address of a partition.
#[derive(Debug, Default, PartialEq)]
struct WithoutAddress<'a> {
    pods: i32,
    nodes: usize,
    /// Of the first of these nodes.
    why: &'a str,
}

impl<'a> Summary<'a> {
    /// `object` as in `Partition/web`.
    pub fn of(object: &str, generation: i64, reports: impl Iterator<Item = &'a NodeReportSpec>) -> Self {
        let without_address = WithoutAddress::default();
        let mut summary = Self { in_force: 0, nodes: 0, refused: 0, refusal: None, without_address };
        let partition = object.strip_prefix("Partition/");
        for report in reports {
            summary.nodes += 1;
            summary.in_force += usize::from(report.in_force.get(object) == Some(&generation));
            let refusal = report.refused.iter().find(|r| r.object == object && r.generation == generation);
            summary.refused += usize::from(refusal.is_some());
            summary.refusal = summary.refusal.or(refusal);
            if let Some(one) = report.exhausted.iter().find(|e| Some(e.partition.as_str()) == partition) {
                let of = &mut summary.without_address;
                (of.pods, of.nodes) = (of.pods.saturating_add(one.pods), of.nodes + 1);
                of.why = if of.why.is_empty() { &one.message } else { of.why };
            }
        }
        summary
    }

    /// The condition's status, reason and message.
    fn verdict(&self) -> (&'static str, &'static str, String) {
        match self.refusal {
            Some(Refusal { field, message, .. }) => {
                let mut text = match field {
                    Some(field) => format!("{field}: {message}"),
                    None => message.clone(),
                };
                if self.refused < self.nodes {
                    text += &format!(" (on {} of {} nodes)", self.refused, self.nodes);
                }
                ("False", "Refused", text)
            }
            None if self.in_force > 0 => ("True", "Accepted", String::new()),
            None => ("Unknown", "Pending", "no node has looked at this version yet".into()),
        }
    }

    /// As [`Self::verdict`], of the partition's addresses.
    fn room(&self) -> (&'static str, &'static str, String) {
        let WithoutAddress { pods, nodes, why } = self.without_address;
        if nodes == 0 {
            return ("True", "Available", String::new());
        }
        let (pods, nodes) = (counted(pods, "pod"), counted(nodes as u64, "node"));
        ("False", "Exhausted", format!("{pods} on {nodes} without an address: {why}"))
    }

    pub fn accepted(&self) -> &'static str {
        self.verdict().0
    }
}

/// The status to stand in the place of `now`. `of_partition`: with the numbers of nodes, and whether there are addresses.
pub fn status(
    summary: &Summary<'_>,
    generation: i64,
    of_partition: bool,
    now: &Value,
    at: Timestamp,
) -> Value {
    let condition = |type_: &str, (status, reason, message): (&str, &str, String)| {
        let before = found(now, type_).filter(|c| c.status == status);
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: Some(generation),
            last_transition_time: before.map_or(Time(at), |c| c.last_transition_time),
        }
    };
    let mut wanted = json!({"conditions": [condition(ACCEPTED, summary.verdict())]});
    if of_partition {
        wanted["conditions"] =
            json!([condition(ACCEPTED, summary.verdict()), condition(ADDRESSES_AVAILABLE, summary.room())]);
        wanted["observedGeneration"] = generation.into();
        wanted["nodesInForce"] = summary.in_force.into();
        wanted["nodes"] = summary.nodes.into();
    }
    wanted
}

/// Whether this must be written; conditions of others are none of ours.
pub fn differs(now: &Value, wanted: &Value) -> bool {
    let number = |field: &str| now[field].as_i64() != wanted[field].as_i64();
    let numbers =
        ["observedGeneration", "nodesInForce", "nodes"].into_iter().filter(|f| !wanted[*f].is_null());
    let condition = |type_: &str| found(now, type_) != found(wanted, type_);
    let types = [ACCEPTED, ADDRESSES_AVAILABLE].into_iter().filter(|t| found(wanted, t).is_some());
    types.into_iter().any(condition) || numbers.into_iter().any(number)
}

/// The condition of this type.
fn found(status: &Value, type_: &str) -> Option<Condition> {
    let conditions = status["conditions"].as_array()?;
    let ours = conditions.iter().find(|c| c["type"] == type_)?;
    serde_json::from_value(ours.clone()).ok()
}

/// `1 pod`, `3 pods`.
fn counted(number: impl Copy + Into<i128>, what: &str) -> String {
    let number = number.into();
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use bulkhead_api::objects::Exhausted;

    const WEB: &str = "Partition/web";

    fn report(in_force: i64, refused: &[i64]) -> NodeReportSpec {
        let refusal = |generation: &i64| Refusal {
            object: WEB.into(),
            generation: *generation,
            field: Some("spec.podCIDRs[0]".into()),
            message: "overlaps".into(),
        };
        NodeReportSpec {
            in_force: [(WEB.to_string(), in_force)].into(),
            refused: refused.iter().map(refusal).collect(),
            ..NodeReportSpec::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn of(reports: &[NodeReportSpec], generation: i64) -> Value {
        status(&Summary::of(WEB, generation, reports.iter()), generation, true, &Value::Null, at(1))
    }

    #[test]
    fn a_version_counts_where_it_is_in_force_and_nowhere_else() {
        let told = of(&[report(3, &[]), report(2, &[]), report(3, &[])], 3);
        assert_eq!((&told["nodesInForce"], &told["nodes"]), (&json!(2), &json!(3)));
        assert_eq!(told["conditions"][0]["status"], "True");
    }

    #[test]
    fn one_node_that_refuses_is_enough_and_says_why() {
        let told = of(&[report(3, &[]), report(2, &[3])], 3);
        let condition = &told["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Refused")));
        assert_eq!(condition["message"], "spec.podCIDRs[0]: overlaps (on 1 of 2 nodes)");
    }

    #[test]
    fn a_refusal_of_an_older_version_says_nothing_of_this_one() {
        assert_eq!(of(&[report(4, &[3])], 4)["conditions"][0]["status"], "True");
        assert_eq!(of(&[report(3, &[4])], 5)["conditions"][0]["status"], "Unknown");
    }

    #[test]
    fn the_time_of_a_transition_stays_while_the_status_does_and_nothing_is_written_twice() {
        let reports = [report(3, &[])];
        let summary = Summary::of(WEB, 3, reports.iter());
        let first = status(&summary, 3, true, &Value::Null, at(1));
        assert!(differs(&Value::Null, &first));
        let second = status(&summary, 3, true, &first, at(2));
        assert!(!differs(&first, &second));
        let reports = [report(3, &[]), report(0, &[])];
        let third = status(&Summary::of(WEB, 3, reports.iter()), 3, true, &first, at(3));
        assert!(differs(&first, &third));
        assert_eq!(found(&third, ACCEPTED).unwrap().last_transition_time, Time(at(1)));
    }

    #[test]
    fn pods_without_an_address_are_counted_until_there_are_none() {
        let short = |pods: i32| NodeReportSpec {
            exhausted: vec![Exhausted { partition: "web".into(), pods, message: "full".into() }],
            ..report(3, &[])
        };
        let room = |reports: &[NodeReportSpec]| found(&of(reports, 3), ADDRESSES_AVAILABLE).unwrap();
        let (none, some) = (room(&[report(3, &[])]), room(&[short(2), report(3, &[]), short(1)]));
        assert_eq!((none.status.as_str(), none.reason.as_str()), ("True", "Available"));
        assert_eq!((some.status.as_str(), some.reason.as_str()), ("False", "Exhausted"));
        assert_eq!(some.message, "3 pods on 2 nodes without an address: full");
        assert!(differs(&of(&[short(2)], 3), &of(&[short(1)], 3)));
        let other = Summary::of("Partition/pay", 3, [short(2)].iter().map(|r| r as &NodeReportSpec)).room();
        assert_eq!(other.0, "True");
    }
}
