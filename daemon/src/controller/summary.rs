//! From what all nodes say to the status of one object. Pure.
//!
//! A node speaks for itself alone: no single one turns what the others say (see [`Summary::verdict`]), and words that are not
//! the majority's are told as whose they are.

use super::room::Room;
use bulkhead_api::objects::{ACCEPTED, ADDRESSES_AVAILABLE, Refusal};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What one node says of one version of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Opinion<'a> {
    InForce,
    Refused(&'a Refusal),
    /// It has not looked at it yet, or does not say.
    None,
}

/// What nodes make of one version of an object.
#[derive(Debug, PartialEq, Default)]
pub struct Summary<'a> {
    in_force: usize,
    /// That report at all.
    nodes: usize,
    /// Who refused it.
    refused: Vec<(&'a str, &'a Refusal)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Refused,
    /// Too few have looked at it.
    Pending,
    /// As many refuse it as go by it.
    Disputed,
}

impl Verdict {
    fn status(self) -> &'static str {
        match self {
            Self::Accepted => "True",
            Self::Refused => "False",
            Self::Pending | Self::Disputed => "Unknown",
        }
    }
}

impl<'a> Summary<'a> {
    /// Of the nodes by name.
    pub fn of(opinions: impl Iterator<Item = (&'a str, Opinion<'a>)>) -> Self {
        let mut summary = Self::default();
        for (node, opinion) in opinions {
            summary.nodes += 1;
            match opinion {
                Opinion::InForce => summary.in_force += 1,
                Opinion::Refused(refusal) => summary.refused.push((node, refusal)),
                Opinion::None => {}
            }
        }
        summary
    }

    /// What most of those say that have looked at it, once they are half of all nodes. So with three nodes or more one alone turns
    /// nothing, whatever it reports and however early; and with half of them away, what the others say still counts.
    pub fn verdict(&self) -> Verdict {
        let (yes, no) = (self.in_force, self.refused.len());
        match yes.cmp(&no) {
            _ if yes + no == 0 || (yes + no) * 2 < self.nodes => Verdict::Pending,
            std::cmp::Ordering::Greater => Verdict::Accepted,
            std::cmp::Ordering::Less => Verdict::Refused,
            std::cmp::Ordering::Equal => Verdict::Disputed,
        }
    }

    /// Why it is refused, in the words of most; and of whom, unless that is all nodes.
    pub fn refusal(&self) -> Option<String> {
        let mut said: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for (node, Refusal { field, message, .. }) in &self.refused {
            said.entry((field, message)).or_default().push(node);
        }
        // The first of those that are said most often.
        let ((field, message), _) = said.into_iter().rev().max_by_key(|(_, nodes)| nodes.len())?;
        let mut text = match field {
            Some(field) => format!("{field}: {message}"),
            None => message.clone(),
        };
        let (refused, nodes) = (self.refused.len(), self.nodes);
        if refused < nodes {
            let names: Vec<&str> = self.refused.iter().map(|(node, _)| *node).collect();
            text += &format!(" (on {refused} of {nodes} nodes: {})", named(&names));
        }
        Some(text)
    }

    fn message(&self) -> String {
        match (self.verdict(), self.refusal()) {
            (Verdict::Refused, Some(text)) => text,
            (_, Some(text)) => format!("refused: {text}"),
            (Verdict::Pending, None) if self.in_force == 0 => "no node has looked at this version yet".into(),
            (Verdict::Pending, None) => {
                format!("{} of {} nodes have looked at this version", self.in_force, self.nodes)
            }
            (_, None) => String::new(),
        }
    }
}

/// The first of these nodes.
pub fn named(nodes: &[&str]) -> String {
    let more = if nodes.len() > 3 { ", ..." } else { "" };
    nodes.iter().take(3).copied().collect::<Vec<_>>().join(", ") + more
}

/// The status to stand in the place of `now`. `room`, of a partition: then with the numbers of nodes too.
pub fn status(
    summary: &Summary<'_>,
    generation: i64,
    room: Option<&Room<'_>>,
    now: &Value,
    at: Timestamp,
) -> Value {
    let condition = |type_: &str, status: &str, reason: String, message: String| {
        let before = found(now, type_).filter(|c| c.status == status);
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason,
            message,
            observed_generation: Some(generation),
            last_transition_time: before.map_or(Time(at), |c| c.last_transition_time),
        }
    };
    let verdict = summary.verdict();
    let accepted = condition(ACCEPTED, verdict.status(), format!("{verdict:?}"), summary.message());
    let Some(room) = room else { return json!({"conditions": [accepted]}) };
    let (status, reason, message) = room.told();
    json!({
        "conditions": [accepted, condition(ADDRESSES_AVAILABLE, status, reason.into(), message)],
        "observedGeneration": generation,
        "nodesInForce": summary.in_force,
        "nodes": summary.nodes,
    })
}

/// Whether this must be written; conditions of others are none of ours.
pub fn differs(now: &Value, wanted: &Value) -> bool {
    let number = |field: &str| now[field].as_i64() != wanted[field].as_i64();
    let mut numbers =
        ["observedGeneration", "nodesInForce", "nodes"].into_iter().filter(|f| !wanted[*f].is_null());
    let condition = |type_: &str| found(now, type_) != found(wanted, type_);
    let mut types = [ACCEPTED, ADDRESSES_AVAILABLE].into_iter().filter(|t| found(wanted, t).is_some());
    types.any(condition) || numbers.any(number)
}

/// The condition of this type.
fn found(status: &Value, type_: &str) -> Option<Condition> {
    let conditions = status["conditions"].as_array()?;
    let ours = conditions.iter().find(|c| c["type"] == type_)?;
    serde_json::from_value(ours.clone()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = ["node1", "node2", "node3", "node4", "node5", "node6"];

    fn refusal(message: &str) -> Refusal {
        Refusal {
            object: "Partition/web".into(),
            generation: 3,
            field: Some("spec.podCIDRs[0]".into()),
            message: message.into(),
        }
    }

    /// `y`: in force, `n`: refused, `l`: refused in other words, anything else: nothing.
    fn told(nodes: &str) -> (String, String) {
        let (no, lie) = (refusal("overlaps"), refusal("a lie"));
        let opinions = nodes.chars().zip(NAMES).map(|(said, name)| match said {
            'y' => (name, Opinion::InForce),
            'n' => (name, Opinion::Refused(&no)),
            'l' => (name, Opinion::Refused(&lie)),
            _ => (name, Opinion::None),
        });
        let status = status(&Summary::of(opinions), 3, Some(&Room::default()), &Value::Null, at(1));
        let condition = &status["conditions"][0];
        let text = |field: &str| condition[field].as_str().unwrap().to_string();
        let numbers = format!("{}/{}", status["nodesInForce"], status["nodes"]);
        (format!("{} {} {numbers}", text("status"), text("reason")), text("message"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_version_counts_where_it_is_in_force_and_nowhere_else() {
        assert_eq!(told("y-y"), ("True Accepted 2/3".into(), String::new()));
        assert_eq!(told("nnn"), ("False Refused 0/3".into(), "spec.podCIDRs[0]: overlaps".into()));
        assert_eq!(told("").0, "Unknown Pending 0/0");
        assert_eq!(told("--").1, "no node has looked at this version yet");
    }

    #[test]
    fn one_node_alone_turns_nothing_whatever_it_says_and_however_early() {
        let lie = |of: usize| format!("spec.podCIDRs[0]: a lie (on 1 of {of} nodes: node1)");
        // Before anybody else has looked, neither way.
        assert_eq!(told("l--"), ("Unknown Pending 0/3".into(), format!("refused: {}", lie(3))));
        assert_eq!(
            told("y--"),
            ("Unknown Pending 1/3".into(), "1 of 3 nodes have looked at this version".into())
        );
        // Against another one, and against all others.
        assert_eq!(told("ly-").0, "Unknown Disputed 1/3");
        assert_eq!(told("lyy"), ("True Accepted 2/3".into(), format!("refused: {}", lie(3))));
        assert_eq!(told("ynn").0, "False Refused 1/3");
        // Nor does it choose the words.
        assert_eq!(told("lnn").1, "spec.podCIDRs[0]: overlaps");
        for honest in 2..6 {
            for (truth, verdict) in [("y", "True"), ("n", "False")] {
                for liar in ["y", "l"] {
                    let told = told(&format!("{liar}{}", truth.repeat(honest)));
                    assert!(told.0.starts_with(verdict), "{liar} against {honest} {truth}: {told:?}");
                }
            }
        }
    }

    #[test]
    fn what_those_say_that_are_there_counts_while_half_of_the_nodes_are_away() {
        assert_eq!(told("y-").0, "True Accepted 1/2");
        assert_eq!(told("n-").0, "False Refused 0/2");
        assert_eq!(told("nn--").1, "spec.podCIDRs[0]: overlaps (on 2 of 4 nodes: node1, node2)");
        assert_eq!(
            told("nnnny-").1,
            "spec.podCIDRs[0]: overlaps (on 4 of 6 nodes: node1, node2, node3, ...)"
        );
    }

    #[test]
    fn the_time_of_a_transition_stays_while_the_status_does_and_nothing_is_written_twice() {
        let nodes = |said: &[Opinion<'static>]| {
            Summary::of(NAMES.into_iter().zip(said.to_vec()).collect::<Vec<_>>().into_iter())
        };
        let room = Some(&Room::default());
        let summary = nodes(&[Opinion::InForce]);
        let first = status(&summary, 3, room, &Value::Null, at(1));
        assert!(differs(&Value::Null, &first));
        let second = status(&summary, 3, room, &first, at(2));
        assert!(!differs(&first, &second));
        let third = status(&nodes(&[Opinion::InForce, Opinion::None]), 3, room, &first, at(3));
        assert!(differs(&first, &third));
        assert_eq!(found(&third, ACCEPTED).unwrap().last_transition_time, Time(at(1)));
    }
}
