//! What was learned from all peers together: the best next hops of every prefix, told by its changes for the caller to install.
//!
//! A million routes are learned at a start, and then a few at a time: nothing here is done for all of them again.

use crate::rib::{Candidate, NextHop, Path, Source, best};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// Prefixes with their next hops; several are of equal cost.
pub type LearnedRoutes = BTreeMap<IpNetwork, Vec<NextHop>>;

/// Shared by the tasks of all peers; each tells what its import filter let through.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    routes: HashMap<IpNetwork, Vec<Candidate>>,
    /// The tasks that may tell, by their peers' names: one that is about to end must not.
    members: BTreeMap<String, u64>,
    admitted: u64,
    followers: Vec<Weak<Pending>>,
}

/// What one follower has not heard of yet.
#[derive(Debug, Default)]
struct Pending {
    prefixes: Mutex<HashSet<IpNetwork>>,
    something: Notify,
}

/// One peer's end.
#[derive(Debug)]
pub(super) struct Member {
    learned: Learned,
    peer: String,
    number: u64,
}

impl Learned {
    /// Whoever told for that peer before tells no more.
    pub fn admit(&self, peer: &str) -> Member {
        let mut shared = self.lock();
        shared.admitted += 1;
        let number = shared.admitted;
        shared.members.insert(peer.to_owned(), number);
        Member { learned: self.clone(), peer: peer.to_owned(), number }
    }

    pub fn forget(&self, peer: &str) {
        let mut shared = self.lock();
        shared.members.remove(peer);
        let mut changed = Vec::new();
        shared.routes.retain(|prefix, candidates| {
            let before = candidates.len();
            candidates.retain(|candidate| candidate.source.peer != peer);
            if candidates.len() != before {
                changed.push(*prefix);
            }
            !candidates.is_empty()
        });
        shared.wake(&changed);
    }

    pub fn follow(&self) -> LearnedFeed {
        let pending = Arc::new(Pending::default());
        let mut shared = self.lock();
        unpoisoned(&pending.prefixes).extend(shared.routes.keys());
        shared.followers.push(Arc::downgrade(&pending));
        drop(shared);
        LearnedFeed { learned: self.clone(), pending }
    }

    pub fn best(&self) -> LearnedRoutes {
        let shared = self.lock();
        shared.routes.keys().map(|prefix| (*prefix, shared.best(prefix))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        unpoisoned(&self.0)
    }
}

impl Member {
    /// What of these prefixes the peer has now.
    pub fn tell(&self, source: &Arc<Source>, changes: impl IntoIterator<Item = (IpNetwork, Vec<Arc<Path>>)>) {
        let mut shared = self.learned.lock();
        if shared.members.get(&self.peer) != Some(&self.number) {
            return;
        }
        let mut changed = Vec::new();
        for (prefix, paths) in changes {
            if shared.replace(prefix, source, paths) {
                changed.push(prefix);
            }
        }
        shared.wake(&changed);
    }
}

impl Shared {
    /// Whether that is another set of paths.
    fn replace(&mut self, prefix: IpNetwork, source: &Arc<Source>, paths: Vec<Arc<Path>>) -> bool {
        let new = paths.into_iter().map(|path| Candidate { path, source: source.clone() });
        let Some(candidates) = self.routes.get_mut(&prefix) else {
            let new: Vec<Candidate> = new.collect();
            return !new.is_empty() && self.routes.insert(prefix, new).is_none();
        };
        let others = candidates.iter().filter(|candidate| candidate.source.peer != source.peer).cloned();
        let all: Vec<Candidate> = others.chain(new).collect();
        if *candidates == all {
            return false;
        }
        if all.is_empty() {
            self.routes.remove(&prefix);
        } else {
            *candidates = all;
        }
        true
    }

    fn wake(&mut self, changed: &[IpNetwork]) {
        if changed.is_empty() {
            return;
        }
        self.followers.retain(|follower| {
            let Some(pending) = follower.upgrade() else { return false };
            unpoisoned(&pending.prefixes).extend(changed);
            pending.something.notify_one();
            true
        });
    }

    fn best(&self, prefix: &IpNetwork) -> Vec<NextHop> {
        match self.routes.get(prefix).map(Vec::as_slice) {
            None => Vec::new(),
            Some(candidates) => best(&candidates.iter().collect::<Vec<_>>()),
        }
    }
}

/// Tells one listener what was learned: at first everything, then what has changed since it asked last.
#[derive(Debug)]
pub struct LearnedFeed {
    learned: Learned,
    pending: Arc<Pending>,
}

/// Prefixes that are looked up under one lock: the peers' tasks wait for it.
const CHUNK: usize = 4096;

impl LearnedFeed {
    /// Waits until [`Self::take`] has something to say. May be dropped and called again.
    pub async fn changed(&self) {
        while unpoisoned(&self.pending.prefixes).is_empty() {
            self.pending.something.notified().await;
        }
    }

    /// The next hops of what has changed; none: the prefix is not learned any more.
    pub fn take(&mut self) -> Vec<(IpNetwork, Vec<NextHop>)> {
        let prefixes = std::mem::take(&mut *unpoisoned(&self.pending.prefixes));
        let prefixes: Vec<IpNetwork> = prefixes.into_iter().collect();
        let mut changes = Vec::with_capacity(prefixes.len());
        for chunk in prefixes.chunks(CHUNK) {
            let shared = self.learned.lock();
            changes.extend(chunk.iter().map(|prefix| (*prefix, shared.best(prefix))));
        }
        changes
    }
}

/// Nothing here is left half-changed by a panic.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Attributes;
    use std::net::Ipv4Addr;

    fn source(peer: &str) -> Arc<Source> {
        let [router_id, address] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 1)];
        let address = address.into();
        Arc::new(Source { peer: peer.to_owned(), external: true, router_id, address, interface: None })
    }

    fn told(prefix: &str, hops: &[u8]) -> (IpNetwork, Vec<Arc<Path>>) {
        let path = |hop: &u8| {
            Arc::new(Path { attributes: Attributes::default(), next_hop: [192, 0, 2, *hop].into() })
        };
        (prefix.parse().unwrap(), hops.iter().map(path).collect())
    }

    fn taken(feed: &mut LearnedFeed) -> Vec<String> {
        let mut all: Vec<String> = feed
            .take()
            .into_iter()
            .map(|(prefix, hops)| {
                let hops: Vec<String> = hops.iter().map(ToString::to_string).collect();
                format!("{prefix} {}", hops.join(" "))
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_follower_hears_everything_once_and_then_what_differs() {
        let learned = Learned::default();
        let leaf = learned.admit("leaf");
        leaf.tell(&source("leaf"), [told("10.1.0.0/16", &[1]), told("10.2.0.0/16", &[1])]);
        let mut feed = learned.follow();
        assert_eq!(taken(&mut feed), ["10.1.0.0/16 192.0.2.1", "10.2.0.0/16 192.0.2.1"]);
        leaf.tell(&source("leaf"), [told("10.1.0.0/16", &[1]), told("10.2.0.0/16", &[])]);
        assert_eq!(taken(&mut feed), ["10.2.0.0/16 "], "what was said again is no change");
        assert_eq!(taken(&mut feed), [""; 0]);
        assert_eq!(learned.best().len(), 1);
    }

    #[test]
    fn a_peer_that_is_forgotten_leaves_what_others_have_and_tells_nothing_any_more() {
        let learned = Learned::default();
        let (leaf, spine) = (learned.admit("leaf"), learned.admit("spine"));
        let both = [told("10.1.0.0/16", &[1]), told("10.2.0.0/16", &[1])];
        leaf.tell(&source("leaf"), both);
        spine.tell(&source("spine"), [told("10.1.0.0/16", &[2])]);
        let mut feed = learned.follow();
        assert_eq!(taken(&mut feed), ["10.1.0.0/16 192.0.2.1 192.0.2.2", "10.2.0.0/16 192.0.2.1"]);
        learned.forget("leaf");
        leaf.tell(&source("leaf"), [told("10.3.0.0/16", &[1])]);
        assert_eq!(taken(&mut feed), ["10.1.0.0/16 192.0.2.2", "10.2.0.0/16 "]);
        let anew = learned.admit("leaf");
        leaf.tell(&source("leaf"), [told("10.3.0.0/16", &[1])]);
        anew.tell(&source("leaf"), [told("10.4.0.0/16", &[1])]);
        assert_eq!(taken(&mut feed), ["10.4.0.0/16 192.0.2.1"], "the former task of that name is not heard");
    }
}
