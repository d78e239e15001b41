//! What was learned from all peers together: the best next hops of every prefix, for the caller to install.

use super::config::PeerConfig;
use crate::fsm::Negotiated;
use crate::rib::{Candidate, Path, best};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Prefixes with their next hops; several are of equal cost.
pub type LearnedRoutes = BTreeMap<IpNetwork, Vec<IpAddr>>;

/// Shared by the tasks of all peers; each tells what its import filter let through.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    of_peers: Mutex<BTreeMap<String, BTreeMap<IpNetwork, Vec<Candidate>>>>,
    changes: watch::Sender<u64>,
}

impl Learned {
    pub fn tell(
        &self,
        config: &PeerConfig,
        negotiated: Option<&Negotiated>,
        routes: &BTreeMap<IpNetwork, Vec<Arc<Path>>>,
    ) {
        let mut of_peers = self.lock();
        let before = of_peers.remove(&config.name).unwrap_or_default();
        // While a peer restarts, what was agreed on in its last session is known from its routes.
        let kept = before.values().flatten().next();
        let external = negotiated.map_or(kept.is_some_and(|kept| kept.external), |n| n.external);
        let router_id = negotiated.map(|n| n.peer_router_id).or(kept.map(|kept| kept.router_id));
        let candidate = |path: &Arc<Path>| Candidate {
            path: path.clone(),
            external,
            router_id: router_id.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED),
            address: config.address(),
        };
        let candidates =
            routes.iter().map(|(prefix, paths)| (*prefix, paths.iter().map(candidate).collect())).collect();
        of_peers.insert(config.name.clone(), candidates);
        drop(of_peers);
        self.0.changes.send_modify(|count| *count += 1);
    }

    pub fn forget(&self, peer: &str) {
        if self.lock().remove(peer).is_some() {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    /// Counts changes; wakes whoever waits for the next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    pub fn best(&self) -> LearnedRoutes {
        let of_peers = self.lock();
        let mut candidates: BTreeMap<IpNetwork, Vec<&Candidate>> = BTreeMap::new();
        for (prefix, of_peer) in of_peers.values().flatten() {
            candidates.entry(*prefix).or_default().extend(of_peer);
        }
        candidates.into_iter().map(|(prefix, candidates)| (prefix, best(&candidates))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<IpNetwork, Vec<Candidate>>>> {
        // Nothing here is left half-changed by a panic.
        self.0.of_peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
