//! Keeps the kernel's learned routes equal to what the speaker has learned under the peers' import rules.
//!
//! One task, which never waits for the node. It hears of changes and writes those; the kernel's own list is compared now and then,
//! and where something failed. What a daemon before us has installed stays until the peers that are learned
//! from have said everything again (End-of-RIB), or [`HOLD`] is over; so does what a speaker learned that had to be
//! started again. When the daemon ends, the routes stay.

use crate::net::{Hops, Kernel, Learned, NetError};
use bulkhead_bgp::{LearnedFeed, NextHop, Speaker};
use ipnetwork::IpNetwork;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tracing::warn;

/// RFC 4724 section 4.1, the selection deferral timer.
pub const HOLD: Duration = bulkhead_bgp::MEMBERS_HOLD;
/// Changes that come in such a time are one.
const GATHER: Duration = Duration::from_millis(20);
/// The kernel drops routes with their link: it is looked after.
const INTERVAL: Duration = Duration::from_secs(10);
/// While the peers have not said everything, or something could not be installed.
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
        let now = Instant::now();
        let task = Task {
            kernel,
            source: to_task,
            error: from_task,
            following: None,
            wanted: None,
            whole: false,
            compare_at: now,
            compare_not_before: now,
        };
        Self { source, error, task: tokio::spawn(task.run()) }
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
    following: Option<Following>,
    /// Absent: not known, and what is installed stays.
    wanted: Option<Learned>,
    /// What is not wanted is not about to be learned again.
    whole: bool,
    /// When the kernel's list is compared next, and how long after the last time it may be.
    compare_at: Instant,
    compare_not_before: Instant,
}

/// The speaker that is listened to.
struct Following {
    start: u64,
    speaker: Speaker,
    feed: LearnedFeed,
    since: Instant,
}

/// What is to be done in the kernel.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    set: Learned,
    remove: Vec<IpNetwork>,
}

impl Plan {
    /// From what is there to what is wanted.
    fn of(there: &Learned, wanted: &Learned, whole: bool) -> Self {
        let differs = |(prefix, hops): &(_, _)| there.get(*prefix) != Some(*hops);
        let set = wanted.iter().filter(differs).map(|(prefix, hops)| (*prefix, hops.clone())).collect();
        let gone = there.keys().filter(|prefix| whole && !wanted.contains_key(prefix));
        Self { set, remove: gone.copied().collect() }
    }

    /// Makes the changes in what is wanted, too.
    fn of_changes(wanted: &mut Learned, changes: Vec<(IpNetwork, Vec<NextHop>)>, whole: bool) -> Self {
        let mut plan = Self::default();
        // Of many routes few lead elsewhere.
        let mut shared: HashMap<Vec<NextHop>, Hops> = HashMap::new();
        for (prefix, hops) in changes {
            if hops.is_empty() {
                let gone = wanted.remove(&prefix).is_some() && whole;
                plan.remove.extend(gone.then_some(prefix));
                continue;
            }
            let hops = match shared.get(&hops) {
                Some(hops) => hops.clone(),
                None => {
                    let set: Hops = Arc::new(hops.iter().copied().collect());
                    shared.entry(hops).or_insert(set).clone()
                }
            };
            if wanted.get(&prefix) != Some(&hops) {
                wanted.insert(prefix, hops.clone());
                plan.set.insert(prefix, hops);
            }
        }
        plan
    }
}

/// What has woken the task.
enum Wake {
    Source,
    Learned,
    Time,
    /// The handle is gone.
    Ended,
}

impl Task {
    async fn run(mut self) {
        loop {
            match self.wait().await {
                Wake::Ended => return,
                Wake::Source => self.follow(),
                Wake::Learned => {
                    sleep(GATHER).await;
                    let plan = self.take();
                    if self.write(&plan).await.is_err() {
                        // Which of them, and whether it matters still: the comparison tells.
                        self.compare_at = self.compare_not_before;
                    }
                }
                Wake::Time => self.look_after().await,
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        let look = Instant::now() + SHORT;
        let at = if self.whole { self.compare_at } else { self.compare_at.min(look) };
        let learned = async {
            match &self.following {
                Some(following) => following.feed.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.source.changed() => changed.map_or(Wake::Ended, |()| Wake::Source),
            () = learned => Wake::Learned,
            () = sleep_until(at) => Wake::Time,
        }
    }

    fn follow(&mut self) {
        let source = self.source.borrow_and_update().clone();
        match source {
            Source::Unknown => return,
            Source::Nobody => (self.following, self.whole) = (None, true),
            Source::Speaker(start, speaker) => {
                if self.following.as_ref().is_some_and(|following| following.start == start) {
                    return;
                }
                let (feed, since) = (speaker.follow_learned(), Instant::now());
                (self.following, self.whole) = (Some(Following { start, speaker, feed, since }), false);
            }
        }
        self.wanted = Some(Learned::new());
        self.compare_at = Instant::now();
    }

    /// Takes in what was learned since.
    fn take(&mut self) -> Plan {
        let (Some(following), Some(wanted)) = (&mut self.following, &mut self.wanted) else {
            return Plan::default();
        };
        Plan::of_changes(wanted, following.feed.take(), self.whole)
    }

    async fn look_after(&mut self) {
        let reached = !self.whole && self.everything_was_said().await;
        if !reached && Instant::now() < self.compare_at {
            return;
        }
        self.whole |= reached;
        // What was said before that: it goes with the rest.
        self.take();
        let begin = Instant::now();
        let done = self.compare().await;
        // A long list is read at most a tenth of the time.
        let pause = 10 * begin.elapsed();
        let next = if done.is_ok() { INTERVAL } else { SHORT };
        self.compare_not_before = begin + pause.max(SHORT);
        self.compare_at = begin + pause.max(next);
        self.tell(done);
    }

    async fn everything_was_said(&self) -> bool {
        let Some(following) = &self.following else { return false };
        following.since.elapsed() >= HOLD || !following.speaker.is_learning().await
    }

    /// Makes what the kernel has what is wanted.
    async fn compare(&self) -> Result<(), String> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let failed = |e: NetError| e.to_string();
        let plan = Plan::of(&self.kernel.learned().await.map_err(failed)?, wanted, self.whole);
        let Err(error) = self.write(&plan).await else { return Ok(()) };
        let there = self.kernel.learned().await.map_err(failed)?;
        let missing = Plan::of(&there, wanted, self.whole);
        let Some((prefix, hops)) = missing.set.first_key_value() else {
            return if missing.remove.is_empty() { Ok(()) } else { Err(error.to_string()) };
        };
        let hops: Vec<String> = hops.iter().map(ToString::to_string).collect();
        Err(format!(
            "{} learned routes cannot be installed, as {prefix} via {}: {error}; is the next hop on one of this node's links?",
            missing.set.len(),
            hops.join(", ")
        ))
    }

    async fn write(&self, plan: &Plan) -> Result<(), NetError> {
        // New ways first: nothing is without one in between.
        let set = self.kernel.set_learned(&plan.set).await;
        self.kernel.remove_learned(&plan.remove).await.and(set)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hop_of(text: &str) -> NextHop {
        NextHop::from(text.parse::<std::net::IpAddr>().unwrap())
    }

    fn routes(all: &[(&str, &[&str])]) -> Learned {
        let one = |(prefix, hops): &(&str, &[&str])| {
            (prefix.parse().unwrap(), Arc::new(hops.iter().map(|hop| hop_of(hop)).collect()))
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

    #[test]
    fn a_change_touches_its_own_routes_and_takes_none_away_before_all_is_known() {
        let change = |prefix: &str, hops: &[&str]| {
            (prefix.parse().unwrap(), hops.iter().map(|hop| hop_of(hop)).collect::<Vec<_>>())
        };
        let mut wanted = Learned::new();
        let new = vec![change("10.1.0.0/16", &["192.0.2.1"]), change("10.2.0.0/16", &["192.0.2.1"])];
        let both = routes(&[("10.1.0.0/16", &["192.0.2.1"]), ("10.2.0.0/16", &["192.0.2.1"])]);
        let plan = Plan::of_changes(&mut wanted, new.clone(), false);
        assert_eq!((&wanted, plan), (&both, Plan { set: both.clone(), remove: vec![] }));
        assert_eq!(Plan::of_changes(&mut wanted, new, false), Plan::default(), "it is so already");
        let gone = vec![change("10.1.0.0/16", &[]), change("10.9.0.0/16", &[])];
        assert_eq!(Plan::of_changes(&mut wanted, gone, false), Plan::default());
        assert_eq!(wanted.len(), 1, "it goes once all is known");
        let plan = Plan::of_changes(&mut wanted, vec![change("10.2.0.0/16", &[])], true);
        assert_eq!(plan, Plan { set: Learned::new(), remove: vec!["10.2.0.0/16".parse().unwrap()] });
    }
}
