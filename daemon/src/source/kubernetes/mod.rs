//! The API server as source. It never loosens what is in force because the API server is away.
//!
//! ```text
//! watch Partition ─┐
//! watch Pod ───────┼─▶ Collector ──▶ Observed, once every kind was listed to its end ──watch channel──▶ node
//! watch … ─────────┘    (pure)
//! ```
//! A watch that breaks leaves what it told in the snapshot and is begun anew with growing pauses; a list takes the place
//! of what was known when it is complete, not before. What rules cannot see of an object is dropped as it comes in.

mod client;
mod collector;
mod kinds;

pub use client::{ClientError, connect, reason};
pub(crate) use collector::version;
pub(crate) use kinds::{WATCHED, Watched};

use super::{Kind, Observed};
use collector::{Change, Collector};
use futures_util::{Stream, StreamExt};
use kube::{
    Api, Client,
    api::DynamicObject,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// For logs: each attempt to reach an API server that is away is an error to the client's crate; whoever attempts it tells it once. Who
/// wants to see it says so.
pub const QUIET: &str = "kube_client=off";

/// Events on their way to the collector. A watch that is faster waits, and its list with it.
const QUEUE: usize = 256;

/// Before the list, where the API server has forgotten what happened since.
const RELIST: Duration = Duration::from_secs(1);

/// An API server that forgets again so soon is broken.
const FORGETS: Duration = Duration::from_secs(60);

/// A watch that goes on where it broke says so with the next change only, and of some kinds none comes for days: one that does not
/// break again for so long is whole. Attempts are half a minute apart at most, and take no longer.
const MENDED: Duration = Duration::from_secs(65);

/// Watches until the receiver is gone. The snapshot is absent until every kind was listed.
pub fn watch(client: &Client) -> watch::Receiver<Observed> {
    let (events, mut received) = mpsc::channel(QUEUE);
    for watched in &WATCHED {
        tokio::spawn(follow(client.clone(), watched, events.clone()));
    }
    let mut collector = Collector::new(WATCHED.iter().map(|w| w.kind));
    let (sender, receiver) = watch::channel(collector.observe());
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = received.recv() => event,
                () = sender.closed() => None,
            };
            let Some((kind, change)) = event else { return };
            collector.handle(kind, change);
            // A burst is one change.
            for _ in 0..QUEUE {
                let Ok((kind, change)) = received.try_recv() else { break };
                collector.handle(kind, change);
            }
            if collector.has_news() {
                sender.send_replace(collector.observe());
            }
        }
    });
    receiver
}

async fn follow(client: Client, watched: &'static Watched, events: mpsc::Sender<(Kind, Change)>) {
    let mut stream = Box::pin(stream(client, watched));
    let mut failing = false;
    loop {
        let next = stream.next();
        let event = if failing { tokio::time::timeout(MENDED, next).await } else { Ok(next.await) };
        failing = matches!(event, Ok(Some(Err(_))));
        let Ok(event) = event else {
            if events.send((watched.kind, Change::Mended)).await.is_err() {
                return;
            }
            continue;
        };
        let Some(event) = event else { return };
        let change = match event {
            Ok(Event::Init) => Change::Begin,
            Ok(Event::InitApply(object)) => Change::Listed(object),
            Ok(Event::InitDone) => Change::Complete,
            Ok(Event::Apply(object)) => Change::Applied(object),
            Ok(Event::Delete(object)) => Change::Deleted(object),
            Err(error) if watched.optional && is_not_found(&error) => Change::Undefined,
            Err(error) => Change::Failed(broken(&error)),
        };
        if events.send((watched.kind, change)).await.is_err() {
            return;
        }
    }
}

pub(crate) fn stream(
    client: Client,
    watched: &Watched,
) -> impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>> + Send + use<> {
    let api: Api<DynamicObject> = Api::all_with(client, &watched.resource());
    let config = watcher::Config { field_selector: watched.fields.map(Into::into), ..Default::default() };
    let mut forgot = None;
    let told = watcher::watcher(api, config).filter(move |event| {
        let quiet = event.as_ref().is_err_and(is_expired) && is_first(&mut forgot, Instant::now());
        async move {
            if quiet {
                tokio::time::sleep(RELIST).await;
            }
            !quiet
        }
    });
    told.default_backoff()
}

/// The API server has forgotten what happened since, and is to be asked for the list: it is there, and nobody has to wait for it as for
/// one that is away, which after a long time is half a minute.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// Whether there was none for a while.
fn is_first(last: &mut Option<Instant>, now: Instant) -> bool {
    last.replace(now).is_none_or(|at| now.duration_since(at) >= FORGETS)
}

/// The API server has no such kind.
pub(crate) fn is_not_found(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// Why a watch broke.
pub(crate) fn broken(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(e)
        | watcher::Error::WatchStartFailed(e)
        | watcher::Error::WatchFailed(e) => reason(e),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_that_forgets_again_and_again_is_told_of_and_waited_for() {
        let begin = Instant::now();
        let mut last = None;
        let quiet = [0, 1, 40, 99, 159, 160].map(|s| is_first(&mut last, begin + Duration::from_secs(s)));
        assert_eq!(quiet, [true, false, false, false, true, false]);
    }
}
