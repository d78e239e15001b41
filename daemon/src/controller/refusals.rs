//! Refused NetworkPolicies: upstream gave the kind no status, so each has an event, which `kubectl describe` shows.

use super::{
    nodes::Nodes,
    summary::{Opinion, Summary, Verdict},
};
use crate::source::{Kind, kubernetes::reason};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// The API server forgets events, after an hour if it is not told otherwise.
const AGAIN: Duration = Duration::from_secs(30 * 60);
/// The API server takes no longer note.
const NOTE: usize = 1000;

pub struct Refusals {
    recorder: Recorder,
    told: BTreeMap<Told, Instant>,
}

/// Object, version, and why.
type Told = (String, i64, String);

impl Refusals {
    pub fn new(client: &Client) -> Self {
        let reporter = Reporter { controller: super::MANAGER.into(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), told: BTreeMap::new() }
    }

    /// When to tell again what is told.
    pub fn again(&self) -> Option<Duration> {
        (!self.told.is_empty()).then_some(AGAIN)
    }

    /// Whether nothing failed.
    pub async fn tell(&mut self, client: &Client, nodes: &Nodes) -> bool {
        let mut sound = true;
        let now = Instant::now();
        self.told.retain(|_, at| now.duration_since(*at) < AGAIN);
        for refusal in refused(nodes) {
            if self.told.contains_key(&refusal) {
                continue;
            }
            match self.publish(client, &refusal).await {
                Ok(()) => drop(self.told.insert(refusal, now)),
                Err(e) => {
                    warn!(object = refusal.0, error = reason(&e), "cannot tell of a refusal; tried again");
                    sound = false;
                }
            }
        }
        sound
    }

    async fn publish(&self, client: &Client, (object, generation, why): &Told) -> kube::Result<()> {
        let mut names = object.splitn(3, '/').skip(1);
        let (Some(namespace), Some(name)) = (names.next(), names.next()) else { return Ok(()) };
        let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
        // Gone, or another version than the one that was spoken of: there is nothing to tell.
        let Some(policy) = policies.get_opt(name).await? else { return Ok(()) };
        if policy.meta().generation != Some(*generation) {
            return Ok(());
        }
        let event = Event {
            type_: EventType::Warning,
            reason: "Refused".into(),
            note: Some(format!("{why}; what was in force stays").chars().take(NOTE).collect()),
            action: "Enforce".into(),
            secondary: None,
        };
        info!(object = policy.name_any(), namespace, "refused");
        self.recorder.publish(&event, &policy.object_ref(&())).await
    }
}

/// What most of the nodes refuse. That the others have it in force no report says of this kind, so all of the rest count as such.
fn refused(nodes: &Nodes) -> Vec<Told> {
    let mut all: Vec<_> = nodes.refused_of(Kind::NetworkPolicy).collect();
    all.sort_unstable();
    all.dedup();
    let told = all.into_iter().filter_map(|(object, generation)| {
        let opinions = nodes
            .refusals(object, generation)
            .map(|(node, refusal)| (node, refusal.map_or(Opinion::InForce, Opinion::Refused)));
        let summary = Summary::of(opinions);
        let why = summary.refusal().filter(|_| summary.verdict() == Verdict::Refused)?;
        Some((object.to_string(), generation, why))
    });
    told.collect()
}
