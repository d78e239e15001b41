//! Keeps the kernel's learned routes equal to what the speaker has learned under the peers' import rules.
//!
//! One task, which never waits for the node. What a daemon before us has installed stays until the peers that are learned
//! from have said everything again (End-of-RIB), or [`HOLD`] is over; so does what a speaker learned that had to be
//! started again. When the daemon ends, the routes stay.

use crate::net::{Kernel, Learned, NetError};
use bulkhead_bgp::Speaker;
use std::time::Duration;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::warn;

/// RFC 4724 section 4.1, the selection deferral timer.
const HOLD: Duration = Duration::from_secs(120);
/// Changes that come in such a time are one.
const GATHER: Duration = Duration::from_millis(20);
/// The kernel drops routes with their link: it is looked after.
const INTERVAL: Duration = Duration::from_secs(10);
/// While the peers have not said everything.
const SHORT: Duration = Duration::from_millis(500);

/// Whom routes are learned from.
#[derive(Clone, Default)]
enum Source {
    /// Not known yet: what is installed stays.
    #[default]
    Unknown,
    Nobody,
    /// With the number of its start.
    Speaker(u64, Speaker),
}

pub struct Learning {
    source: watch::Sender<Source>,
    error: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

impl Learning {
    pub fn start(kernel: Kernel) -> Self {
        let (source, to_task) = watch::channel(Source::Unknown);
        let (from_task, error) = watch::channel(None);
        let task = tokio::spawn(Task { kernel, source: to_task, error: from_task }.run());
        Self { source, error, task }
    }

    /// `start`: another number for another speaker. Its peers are set.
    pub fn from(&self, start: u64, speaker: &Speaker) {
        self.source.send_replace(Source::Speaker(start, speaker.clone()));
    }

    pub fn nobody(&self) {
        self.source.send_replace(Source::Nobody);
    }

    pub fn error(&self) -> Option<String> {
        self.error.borrow().clone()
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    kernel: Kernel,
    source: watch::Receiver<Source>,
    error: watch::Sender<Option<String>>,
}

/// What is to be done in the kernel.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    set: Learned,
    remove: Vec<ipnetwork::IpNetwork>,
}

impl Plan {
    /// `whole`: what is not wanted is not about to be learned again.
    fn of(there: &Learned, wanted: &Learned, whole: bool) -> Self {
        let differs = |(prefix, hops): &(_, _)| there.get(*prefix) != Some(*hops);
        let set = wanted.iter().filter(differs).map(|(prefix, hops)| (*prefix, hops.clone())).collect();
        let gone = there.keys().filter(|prefix| whole && !wanted.contains_key(prefix));
        Self { set, remove: gone.copied().collect() }
    }
}

impl Task {
    /// Ends with the handle.
    async fn run(mut self) {
        let mut whole = Whole { start: None, since: Instant::now(), reached: false };
        loop {
            let source = self.source.borrow_and_update().clone();
            let (wanted, is_whole, changes) = match source {
                Source::Unknown => (None, false, None),
                Source::Nobody => (Some(Learned::new()), true, None),
                Source::Speaker(start, speaker) => {
                    // Before it is asked: a change in between is seen as one.
                    let changes = speaker.learned_changes();
                    let is_whole = whole.is_reached(start, &speaker).await;
                    (Some(learned(&speaker)), is_whole, Some(changes))
                }
            };
            if let Some(wanted) = &wanted {
                let done = self.install(wanted, is_whole).await;
                self.tell(done);
            }
            let pause = if is_whole { INTERVAL } else { SHORT };
            let change = async {
                match changes {
                    Some(mut changes) => drop(changes.changed().await),
                    None => std::future::pending().await,
                }
            };
            let woken = async {
                tokio::select! {
                    changed = self.source.changed() => changed.is_ok(),
                    () = change => true,
                }
            };
            if timeout(pause, woken).await == Ok(false) {
                return;
            }
            sleep(GATHER).await;
        }
    }

    async fn install(&self, wanted: &Learned, whole: bool) -> Result<(), String> {
        let failed = |e: NetError| e.to_string();
        let plan = Plan::of(&self.kernel.learned().await.map_err(failed)?, wanted, whole);
        if plan == Plan::default() {
            return Ok(());
        }
        // New ways first: nothing is without one in between.
        let set = self.kernel.set_learned(&plan.set).await;
        self.kernel.remove_learned(&plan.remove).await.map_err(failed)?;
        let Err(error) = set else { return Ok(()) };
        let there = self.kernel.learned().await.map_err(failed)?;
        let missing = Plan::of(&there, wanted, false).set;
        let Some((prefix, hops)) = missing.first_key_value() else { return Ok(()) };
        let hops: Vec<String> = hops.iter().map(ToString::to_string).collect();
        Err(format!(
            "{} learned routes cannot be installed, as {prefix} via {}: {error}; is the next hop on one of this node's links?",
            missing.len(),
            hops.join(", ")
        ))
    }

    fn tell(&self, done: Result<(), String>) {
        let error = done.err();
        self.error.send_if_modified(|told| {
            let differs = *told != error;
            if let Some(error) = error.as_ref().filter(|_| differs) {
                warn!("{error}");
            }
            *told = error;
            differs
        });
    }
}

fn learned(speaker: &Speaker) -> Learned {
    let all = speaker.learned().into_iter();
    all.map(|(prefix, hops)| (prefix, hops.into_iter().collect())).collect()
}

/// Whether all that a speaker will learn at its start was learned.
struct Whole {
    start: Option<u64>,
    since: Instant,
    reached: bool,
}

impl Whole {
    async fn is_reached(&mut self, start: u64, speaker: &Speaker) -> bool {
        if self.start != Some(start) {
            *self = Whole { start: Some(start), since: Instant::now(), reached: false };
        }
        if !self.reached {
            let learning = speaker.peers().await.iter().any(|peer| peer.learning);
            self.reached = !learning || self.since.elapsed() >= HOLD;
        }
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(all: &[(&str, &[&str])]) -> Learned {
        let one = |(prefix, hops): &(&str, &[&str])| {
            (prefix.parse().unwrap(), hops.iter().map(|hop| hop.parse().unwrap()).collect())
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn only_what_differs_is_touched_and_nothing_is_removed_before_all_is_known() {
        let there = routes(&[
            ("10.1.0.0/16", &["192.0.2.1"]),
            ("10.2.0.0/16", &["192.0.2.1"]),
            ("10.3.0.0/16", &["192.0.2.1"]),
        ]);
        let both: &[&str] = &["192.0.2.2", "192.0.2.1"];
        let wanted = routes(&[("10.1.0.0/16", &["192.0.2.1"]), ("10.2.0.0/16", both)]);
        let set = routes(&[("10.2.0.0/16", both)]);
        assert_eq!(Plan::of(&there, &wanted, false), Plan { set: set.clone(), remove: vec![] });
        let remove = vec!["10.3.0.0/16".parse().unwrap()];
        assert_eq!(Plan::of(&there, &wanted, true), Plan { set, remove });
    }
}
