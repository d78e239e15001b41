//! Counts what all nodes make of an object, and writes it on the object's status: one process in the cluster.
//!
//! ```text
//! watch our kinds ────▶ stores, timelines ─┐
//! watch NodeReports ──▶ store ─────────────┴─nodes, summary (pure)─┬─▶ statuses that differ from what stands ──▶ server-side apply
//!                                                                  └─▶ events of refused NetworkPolicies, which have no status
//! ```
//! It decides nothing, and no node depends on it: without it statuses grow old, and that is all.

mod nodes;
mod refusals;
mod room;
mod store;
mod summary;
mod timeline;

use crate::source::{
    Kind,
    kubernetes::{WATCHED, Watched, is_not_found, reason, stream, version},
};
use bulkhead_api::objects::{NodeReport, NodeReportSpec};
use futures_util::{Stream, StreamExt, stream::select_all};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use nodes::Nodes;
use refusals::Refusals;
use room::Room;
use std::{collections::BTreeMap, pin::Pin, time::Duration};
use store::{Store, key};
use summary::{Summary, differs, status};
use timeline::Timeline;
use tracing::{info, warn};

const MANAGER: &str = "bulkhead-controller";
/// What comes within it is written at once.
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Kinds whose status is ours to write.
const TOLD: [Kind; 7] = [
    Kind::Partition,
    Kind::NetworkGroup,
    Kind::BandwidthClass,
    Kind::BgpPeer,
    Kind::BgpConfiguration,
    Kind::IpReservation,
    Kind::ClusterNetworkPolicy,
];

enum Told {
    Object(&'static Watched, Event<DynamicObject>),
    Report(Event<NodeReport>),
    /// The cluster has no such kind.
    Undefined(&'static Watched),
    Broken(String),
}

/// Until its future is dropped.
pub async fn run(client: Client) {
    let mut told = select_all(watches(&client));
    let mut known = Known::default();
    let mut refusals = Refusals::new(&client);
    let mut next: Option<tokio::time::Instant> = None;
    loop {
        let due = next.unwrap_or_else(tokio::time::Instant::now);
        tokio::select! {
            event = told.next() => {
                let Some(event) = event else { return };
                if known.handle(event) {
                    let now = tokio::time::Instant::now();
                    next = next.filter(|due| *due < now + RETRY).or(Some(now + PAUSE));
                }
            }
            () = tokio::time::sleep_until(due), if next.is_some() => {
                known.nodes.read(&known.reports, &known.timelines);
                let written = known.write(&client).await;
                let told = refusals.tell(&client, &known.nodes).await;
                let again = if written && told { refusals.again() } else { Some(RETRY) };
                next = again.map(|after| tokio::time::Instant::now() + after);
            }
        }
    }
}

type Watch = Pin<Box<dyn Stream<Item = Told> + Send>>;

fn watches(client: &Client) -> Vec<Watch> {
    let of_kind = |watched: &'static Watched| -> Watch {
        stream(client.clone(), watched)
            .map(move |event| match event {
                Ok(event) => Told::Object(watched, event),
                Err(e) if watched.optional && is_not_found(&e) => Told::Undefined(watched),
                Err(e) => Told::Broken(format!("{}: {e}", watched.kind)),
            })
            .boxed()
    };
    let reports = watcher::watcher(Api::<NodeReport>::all(client.clone()), watcher::Config::default());
    let reports = reports
        .default_backoff()
        .map(|event| event.map_or_else(|e| Told::Broken(format!("NodeReport: {e}")), Told::Report))
        .boxed();
    WATCHED.iter().filter(|w| TOLD.contains(&w.kind)).map(of_kind).chain([reports]).collect()
}

#[derive(Default)]
struct Known {
    objects: BTreeMap<Kind, Store<DynamicObject>>,
    timelines: BTreeMap<Kind, Timeline>,
    reports: Store<NodeReportSpec>,
    nodes: Nodes,
}

impl Known {
    /// Whether there may be something to write.
    fn handle(&mut self, told: Told) -> bool {
        match told {
            Told::Object(watched, event) => self.object(watched.kind, event),
            Told::Report(event) => self.reports.handle(event, |r| r.spec),
            Told::Undefined(watched) => {
                self.objects.entry(watched.kind).or_default().clear();
                self.timelines.entry(watched.kind).or_default().replace(std::iter::empty());
            }
            Told::Broken(reason) => {
                warn!(reason, "cannot watch; begun anew");
                return false;
            }
        }
        self.complete()
    }

    fn object(&mut self, kind: Kind, event: Event<DynamicObject>) {
        let named = |object: &DynamicObject| {
            let name = format!("{kind}/{}", key(object));
            let version = version(&name, &object.metadata);
            (name, version)
        };
        let objects = self.objects.entry(kind).or_default();
        let timeline = self.timelines.entry(kind).or_default();
        let listed = matches!(event, Event::InitDone);
        match &event {
            Event::Apply(object) => {
                let (name, version) = named(object);
                timeline.put(&name, version);
            }
            Event::Delete(object) => timeline.remove(&named(object).0),
            Event::Init | Event::InitApply(_) | Event::InitDone => {}
        }
        objects.handle(event, |o| o);
        if listed {
            timeline.replace(objects.iter().map(|(_, object)| named(object)));
        }
    }

    /// Everything was listed once: before that, counts would be too low.
    fn complete(&self) -> bool {
        self.reports.complete() && TOLD.iter().all(|kind| self.objects.get(kind).is_some_and(Store::complete))
    }

    /// Writes what differs; whether nothing failed.
    async fn write(&mut self, client: &Client) -> bool {
        let mut sound = true;
        for watched in WATCHED.iter().filter(|w| TOLD.contains(&w.kind)) {
            let Some(objects) = self.objects.get_mut(&watched.kind) else { continue };
            let Some(timeline) = self.timelines.get(&watched.kind) else { continue };
            let resource = watched.resource();
            for (name, object) in objects.iter_mut() {
                let key = format!("{}/{name}", watched.kind);
                let name = object.name_any();
                let api: Api<DynamicObject> = match object.namespace() {
                    Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
                    None => Api::all_with(client.clone(), &resource),
                };
                let generation = object.metadata.generation.unwrap_or_default();
                let summary = Summary::of(self.nodes.opinions(watched.kind, &key, generation, timeline));
                let room = (watched.kind == Kind::Partition).then(|| {
                    Room::of(&name, self.reports.iter().map(|(node, report)| (node.as_str(), report)))
                });
                let now = &object.data["status"];
                let wanted = status(&summary, generation, room.as_ref(), now, Timestamp::now());
                if !differs(&object.data["status"], &wanted) {
                    continue;
                }
                let mut patch = DynamicObject::new(&name, &resource);
                patch.data = serde_json::json!({"status": wanted});
                let (parameters, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&patch));
                let write = api.patch_status(&name, &parameters, &patch);
                match tokio::time::timeout(PATIENCE, write).await {
                    Ok(Ok(written)) => {
                        info!(object = key, verdict = ?summary.verdict(), "status written");
                        *object = written;
                    }
                    Ok(Err(kube::Error::Api(gone))) if gone.code == 404 => {}
                    Ok(Err(e)) => {
                        warn!(object = key, error = reason(&e), "cannot write a status; tried again");
                        sound = false;
                    }
                    Err(_) => sound = false,
                }
            }
        }
        sound
    }
}
