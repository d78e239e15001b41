//! A router that two nodes peer with, and who of them has had a way to an address in its table, after each change.
//!
//! BIRD writes every change of its table to its log, and nothing is missed. FRR and GoBGP are asked again and again: what they have
//! for less than some hundredths of a second may be missed.

use super::{bird, frr::Frr, gobgp::Gobgp, site::DEADLINE};
use crate::{Bird, Error, Netns, Result, until};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The nodes' names, as the router's sessions are called, and their addresses.
pub const NODES: [(&str, &str); 2] = [("node1", super::site::NODE), ("node2", "172.31.9.3")];

/// Who has a way, since when (seconds).
pub type Owners = (f64, BTreeSet<String>);

pub enum Leaf {
    Bird { bird: Bird, log: PathBuf },
    Frr(Frr, Watch),
    Gobgp(Gobgp, Watch),
}

impl Leaf {
    pub fn bird(netns: &Netns, dir: &Path, configuration: &str) -> Result<Self> {
        let bird = Bird::start(netns, dir, configuration)?;
        for (node, _) in NODES {
            // What the guide's file does not ask for.
            bird.birdc(&format!("debug {node} {{ routes }}"))?;
        }
        Ok(Self::Bird { bird, log: dir.join("bird.log") })
    }

    pub fn frr(netns: &Arc<Netns>, dir: &Path, configuration: &str, watched: &'static str) -> Result<Self> {
        let frr = Frr::boot(netns, dir, configuration, NODES[0].1)?;
        let watch = Watch::start(frr.next_hops(watched));
        Ok(Self::Frr(frr, watch))
    }

    pub fn gobgp(netns: &Arc<Netns>, dir: &Path, configuration: &str, watched: &'static str) -> Result<Self> {
        let gobgp = Gobgp::boot(netns, dir, configuration, NODES[0].1, "debug")?;
        let watch = Watch::start(gobgp.next_hops(watched));
        Ok(Self::Gobgp(gobgp, watch))
    }

    pub fn established(&self, node: usize) -> Result<bool> {
        let (name, address) = NODES[node];
        match self {
            Self::Bird { bird, .. } => bird.established(name),
            Self::Frr(frr, _) => frr.established_with(address),
            Self::Gobgp(gobgp, _) => gobgp.established_with(address),
        }
    }

    pub fn wait_established(&self, node: usize) -> Result<()> {
        let what = format!("the router has a session with {}", NODES[node].0);
        until(&what, DEADLINE, || Ok(self.established(node)?.then_some(())))
    }

    /// What a node that comes back does not tell again is gone.
    pub fn wait_restarts_over(&self) -> Result<()> {
        let Self::Bird { bird, .. } = self else { return Ok(()) };
        until("the router waits for no node's return", DEADLINE, || {
            Ok(bird.restarts_over(&NODES.map(|(name, _)| name))?.then_some(()))
        })
    }

    /// Who has had a way to `prefix`, the one that is watched, after each change.
    pub fn history(&self, prefix: &str) -> Result<Vec<Owners>> {
        match self {
            Self::Bird { log, .. } => Ok(bird::owners(&fs::read_to_string(log)?, prefix)),
            Self::Frr(_, watch) | Self::Gobgp(_, watch) => watch.history(),
        }
    }
}

const EVERY: Duration = Duration::from_millis(20);
/// Without an answer for longer, nobody knows who had a way meanwhile.
const BLIND: Duration = Duration::from_secs(5);

/// Asks a router again and again, until it is dropped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

pub type NextHops = Box<dyn Fn() -> Result<BTreeSet<String>> + Send>;

impl Watch {
    fn start(next_hops: NextHops) -> Self {
        let (seen, over) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (told, ends) = (seen.clone(), over.clone());
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // It may be busy for a moment.
                let answer = next_hops();
                told.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now(), answer);
                thread::sleep(EVERY);
            }
        });
        Self { seen, over, thread: Some(thread) }
    }

    fn history(&self) -> Result<Vec<Owners>> {
        let running = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if !running {
            return Err(Error::Unmet("the router is watched no more".into()));
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).history(Instant::now())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// What a router has answered.
#[derive(Debug, Default)]
struct Seen {
    owners: Vec<Owners>,
    answered: Option<Instant>,
    /// The longest time without an answer, and what it said instead.
    blind: (Duration, String),
    failed: String,
}

impl Seen {
    fn note(&mut self, now: Instant, answer: Result<BTreeSet<String>>) {
        match answer {
            Ok(hops) => {
                let before = self.answered.replace(now).unwrap_or(now);
                if now - before > self.blind.0 {
                    self.blind = (now - before, std::mem::take(&mut self.failed));
                }
                self.add(&hops);
            }
            Err(error) => self.failed = error.to_string(),
        }
    }

    fn add(&mut self, hops: &BTreeSet<String>) {
        let owners = NODES.iter().filter(|(_, address)| hops.contains(*address));
        let owners: BTreeSet<String> = owners.map(|(name, _)| (*name).to_owned()).collect();
        if self.owners.last().is_none_or(|(_, last)| *last != owners) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.owners.push((now.as_secs_f64(), owners));
        }
    }

    fn history(&self, now: Instant) -> Result<Vec<Owners>> {
        let lasts = self.answered.map_or(Duration::ZERO, |answered| now - answered);
        let (blind, failed) =
            if lasts > self.blind.0 { (lasts, &self.failed) } else { (self.blind.0, &self.blind.1) };
        if blind > BLIND {
            let seconds = blind.as_secs_f64();
            let words = format!("for {seconds:.1} s the router did not say who has a way: {failed}");
            return Err(Error::Unmet(words));
        }
        Ok(self.owners.clone())
    }
}

/// Of several routers' tables: who has a way in any, after each change. What happens in one moment is taken in the order that
/// leaves fewer.
pub fn together(tables: Vec<Vec<Owners>>) -> Vec<BTreeSet<String>> {
    let mut now = vec![BTreeSet::new(); tables.len()];
    let mut changes: Vec<(usize, Owners)> = Vec::new();
    for (table, history) in tables.into_iter().enumerate() {
        changes.extend(history.into_iter().map(|owners| (table, owners)));
    }
    changes.sort_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(a.1.len().cmp(&b.1.len())));
    let mut history: Vec<BTreeSet<String>> = Vec::new();
    for (table, (_, owners)) in changes {
        now[table] = owners;
        history.push(now.iter().flatten().cloned().collect());
    }
    history
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tables_of_several_routers_are_one_history() {
        let one = vec![(1.0, set(&["node1"])), (3.0, set(&[])), (4.0, set(&["node2"]))];
        let two = vec![(1.5, set(&["node1"])), (4.0, set(&[])), (5.0, set(&["node2"]))];
        let told: Vec<Vec<String>> =
            together(vec![one, two]).into_iter().map(|owners| owners.into_iter().collect()).collect();
        let (one, two) = (vec!["node1".to_owned()], vec!["node2".to_owned()]);
        assert_eq!(told, [one.clone(), one.clone(), one, vec![], two.clone(), two]);
    }

    #[test]
    fn two_owners_in_two_tables_are_two() {
        let tables = vec![vec![(1.0, set(&["node1"]))], vec![(2.0, set(&["node2"]))]];
        assert_eq!(together(tables).pop(), Some(set(&["node1", "node2"])));
    }

    #[test]
    fn a_router_that_does_not_answer_for_long_has_not_been_watched() {
        let (start, answer) = (Instant::now(), || Ok(BTreeSet::from([NODES[0].1.to_owned()])));
        let mut seen = Seen::default();
        let busy = || Err(Error::Unmet("busy".into()));
        for (after, answer) in [(0, busy()), (10, answer()), (12, busy()), (14, answer())] {
            seen.note(start + Duration::from_secs(after), answer);
        }
        assert_eq!(seen.history(start + Duration::from_secs(15)).unwrap().len(), 1);
        assert!(seen.history(start + Duration::from_secs(20)).is_err(), "it is silent now");
        seen.note(start + Duration::from_secs(20), answer());
        assert!(seen.history(start + Duration::from_secs(20)).is_err(), "it was silent once");
    }
}
