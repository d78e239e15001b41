//! What this node makes of the objects, told to the API server in a `NodeReport` of its own.
//!
//! ```text
//! Node::apply ──▶ Report (pure) ──watch channel──▶ task: apply at most every two seconds, again where it failed
//! ```
//! One object a node, and not an entry a node on each object: a change costs one small write a node however many objects
//! there are, and the API server can tie the object's name to the node that the daemon's token is bound to.

use crate::source::{Versions, kubernetes::reason};
use bulkhead_api::{
    messages::ObjectError,
    objects::{LONGEST_MESSAGE, MOST_REFUSALS, NodeReport, NodeReportSpec, Refusal},
};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch;
use tracing::warn;

/// Who writes, to the API server.
const MANAGER: &str = "bulkheadd";
/// A burst of changes is one write.
const PAUSE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was not refused is in force.
    Taken,
    /// What was in force before is.
    Failed,
    /// Older objects are, of this generation: whose version is which is not known any more.
    Held(u32),
}

/// What is in force after a snapshot with these versions was looked at.
pub fn report(
    before: &NodeReportSpec,
    versions: &Versions,
    errors: &[ObjectError],
    outcome: Outcome,
    generation: u32,
) -> NodeReportSpec {
    let refusal = |e: &ObjectError| {
        let object = e.object.clone()?;
        let generation = versions.get(&object)?.generation;
        let cut = |text: &String| text.chars().take(LONGEST_MESSAGE).collect();
        Some(Refusal { object, generation, field: e.field.as_ref().map(cut), message: cut(&e.message) })
    };
    let mut refused: Vec<_> = errors.iter().filter_map(refusal).collect();
    refused.sort();
    refused.dedup();
    let untold = refused.split_off(refused.len().min(MOST_REFUSALS));
    let (mut digests, held) = match outcome {
        Outcome::Taken => (of_kinds(versions), None),
        Outcome::Failed => (before.digests.clone(), None),
        Outcome::Held(generation) => (BTreeMap::new(), Some(generation)),
    };
    for Refusal { object, .. } in untold {
        digests.remove(object.split('/').next().unwrap_or_default());
    }
    let (version, exhausted) = (env!("CARGO_PKG_VERSION").into(), before.exhausted.clone());
    NodeReportSpec { version, generation, held, digests, refused, exhausted }
}

fn of_kinds(versions: &Versions) -> BTreeMap<String, String> {
    versions.digests().map(|(kind, digest)| (kind.to_string(), digest.text())).collect()
}

/// Keeps the object as the node says, until the node is gone.
pub async fn publish(client: Client, node: String, mut reports: watch::Receiver<NodeReportSpec>) {
    let mut told = None;
    while reports.changed().await.is_ok() {
        loop {
            let report = reports.borrow_and_update().clone();
            match tokio::time::timeout(PATIENCE, apply(&client, &node, &report)).await {
                Ok(Ok(())) => break,
                Ok(Err(e)) => warn_once(&mut told, reason(&e)),
                Err(_) => warn_once(&mut told, format!("no answer within {PATIENCE:?}")),
            }
            tokio::time::sleep(RETRY).await;
        }
        told = None;
        tokio::time::sleep(PAUSE).await;
    }
}

fn warn_once(told: &mut Option<String>, message: String) {
    if told.as_ref() != Some(&message) {
        warn!(error = message, "cannot report what is in force; tried again");
    }
    *told = Some(message);
}

async fn apply(client: &Client, node: &str, report: &NodeReportSpec) -> kube::Result<()> {
    let owner = Api::<Node>::all(client.clone()).get(node).await?;
    let mut object = NodeReport::new(node, report.clone());
    // Goes with its node.
    object.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: owner.uid().unwrap_or_default(),
        ..OwnerReference::default()
    }]);
    let reports: Api<NodeReport> = Api::all(client.clone());
    reports.patch(node, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Kind, Version, versions};

    fn refused(object: &str) -> ObjectError {
        ObjectError {
            file: None,
            object: Some(object.into()),
            field: Some("spec.podCIDRs[0]".into()),
            message: "overlaps".into(),
        }
    }

    #[test]
    fn a_report_tells_all_versions_in_a_digest_and_refused_ones_by_name() {
        let seen = versions(&[("Partition/a", 2), ("Partition/b", 5), ("Partition/new", 1)]);
        let errors = [refused("Partition/a"), refused("Partition/new"), refused("Partition/gone")];
        let now = report(&NodeReportSpec::default(), &seen, &errors, Outcome::Taken, 8);
        assert_eq!((now.generation, &now.digests), (8, &of_kinds(&seen)));
        let told: Vec<_> = now.refused.iter().map(|r| (r.object.as_str(), r.generation)).collect();
        assert_eq!(told, [("Partition/a", 2), ("Partition/new", 1)]);
    }

    #[test]
    fn a_node_that_is_held_claims_no_version() {
        let seen = versions(&[("Partition/a", 2)]);
        let before = report(&NodeReportSpec::default(), &seen, &[], Outcome::Taken, 7);
        let held = report(&before, &seen, &[], Outcome::Held(5), 8);
        assert_eq!((held.held, held.digests.len()), (Some(5), 0));
        assert_eq!(report(&held, &seen, &[], Outcome::Taken, 9).digests, before.digests);
    }

    #[test]
    fn a_change_that_failed_puts_nothing_into_force() {
        let first = versions(&[("Partition/a", 1), ("Partition/b", 1)]);
        let before = report(&NodeReportSpec::default(), &first, &[], Outcome::Taken, 7);
        let now =
            report(&before, &versions(&[("Partition/a", 2)]), &[refused("Partition/a")], Outcome::Failed, 7);
        assert_eq!((now.digests, now.refused.len()), (of_kinds(&first), 1));
    }

    #[test]
    fn a_report_of_ten_thousand_objects_is_small_and_says_nothing_of_what_it_has_no_room_for() {
        let mut seen = Versions::default();
        let names: Vec<_> =
            (0..10_000).map(|i| format!("Partition/partition-with-a-long-name-{i:05}")).collect();
        for name in &names {
            seen.insert(Kind::Partition, name.clone(), Version::new(name, "u", 1));
        }
        seen.insert(Kind::NetworkGroup, "NetworkGroup/vms".into(), Version::new("NetworkGroup/vms", "u", 1));
        let size = |report: &NodeReportSpec| serde_json::to_string(report).unwrap().len();
        let sound = report(&NodeReportSpec::default(), &seen, &[], Outcome::Taken, 1);
        assert!(size(&sound) < 300, "{} bytes", size(&sound));
        let long = |name: &String| ObjectError { message: "é".repeat(5000), ..refused(name) };
        let errors: Vec<_> = names.iter().map(long).collect();
        let broken = report(&NodeReportSpec::default(), &seen, &errors, Outcome::Taken, 1);
        assert!(size(&broken) < 300_000, "{} bytes", size(&broken));
        assert_eq!(broken.digests.keys().collect::<Vec<_>>(), ["NetworkGroup"]);
    }
}
