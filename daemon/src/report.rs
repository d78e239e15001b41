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
    objects::{NodeReport, NodeReportSpec, Refusal},
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
/// Beyond it the first ones tell enough.
const REFUSALS: usize = 100;

/// What is in force after a snapshot with these versions was looked at. `taken`: all that was not refused went into force;
/// otherwise what was in force `before` is.
pub fn report(
    before: &NodeReportSpec,
    versions: &Versions,
    errors: &[ObjectError],
    taken: bool,
    generation: u32,
) -> NodeReportSpec {
    let refusal = |e: &ObjectError| {
        let object = e.object.clone()?;
        let generation = *versions.get(&object)?;
        Some(Refusal { object, generation, field: e.field.clone(), message: e.message.clone() })
    };
    let mut refused: Vec<_> = errors.iter().filter_map(refusal).collect();
    let is_refused = |object: &String| refused.iter().any(|r| &r.object == object);
    let in_force: BTreeMap<_, _> = versions
        .iter()
        .filter_map(|(object, version)| {
            let version =
                if taken && !is_refused(object) { Some(version) } else { before.in_force.get(object) };
            Some((object.clone(), *version?))
        })
        .collect();
    refused.sort();
    refused.dedup();
    refused.truncate(REFUSALS);
    let exhausted = before.exhausted.clone();
    NodeReportSpec { version: env!("CARGO_PKG_VERSION").into(), generation, in_force, refused, exhausted }
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

    fn versions(of: &[(&str, i64)]) -> Versions {
        of.iter().map(|(object, version)| ((*object).to_string(), *version)).collect()
    }

    fn refused(object: &str) -> ObjectError {
        ObjectError {
            file: None,
            object: Some(object.into()),
            field: Some("spec.podCIDRs[0]".into()),
            message: "overlaps".into(),
        }
    }

    #[test]
    fn a_refused_version_leaves_the_one_before_it_in_force() {
        let first = versions(&[("Partition/a", 1), ("Partition/b", 4)]);
        let before = report(&NodeReportSpec::default(), &first, &[], true, 7);
        assert_eq!((before.generation, &before.in_force), (7, &first));
        let second = versions(&[("Partition/a", 2), ("Partition/b", 5), ("Partition/new", 1)]);
        let errors = [refused("Partition/a"), refused("Partition/new"), refused("Partition/gone")];
        let now = report(&before, &second, &errors, true, 8);
        assert_eq!(now.in_force, versions(&[("Partition/a", 1), ("Partition/b", 5)]));
        let told: Vec<_> = now.refused.iter().map(|r| (r.object.as_str(), r.generation)).collect();
        assert_eq!(told, [("Partition/a", 2), ("Partition/new", 1)]);
    }

    #[test]
    fn a_change_that_failed_puts_nothing_into_force_and_what_is_deleted_is_not_told_any_more() {
        let before = report(
            &NodeReportSpec::default(),
            &versions(&[("Partition/a", 1), ("Partition/b", 1)]),
            &[],
            true,
            7,
        );
        let now = report(&before, &versions(&[("Partition/a", 2)]), &[], false, 7);
        assert_eq!(now.in_force, versions(&[("Partition/a", 1)]));
    }
}
