//! The objects are gone that say whom to peer with: a file that was lost, a `kubectl delete` too many, on every node at once.
//!
//! ```text
//!   sessions ──object gone──▶ closed as for a restart ──restart time──▶ given up: routers have dropped the routes by themselves
//!      ▲                              │
//!      └──── object put back ─────────┘ restarting, forwarding preserved: nothing was lost
//! ```
//! Until it is given up, all stays as while a daemon restarts: the routers' stale routes, the set that is announced again, BFD (whose
//! end would be a dead path to them) and what was learned.

use super::{Bgp, unix_seconds};
use bulkhead_api::messages::ObjectError;
use ipnetwork::IpNetwork;
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tracing::warn;

/// Of a daemon before this one the restart time is not known any more: that of a configuration which says none.
const USUAL: u16 = 60;

#[derive(Debug)]
pub(super) struct Interruption {
    until: Instant,
    restart_time: u16,
    /// The same on people's clock.
    told: Option<Timestamp>,
}

impl Interruption {
    fn begin(restart_time: u16) -> Self {
        let seconds = u64::from(restart_time);
        let told =
            i64::try_from(unix_seconds() + seconds).ok().and_then(|at| Timestamp::from_second(at).ok());
        Self { until: Instant::now() + Duration::from_secs(seconds), restart_time, told }
    }

    /// A daemon that begins without the objects: routers may keep what the one before it announced.
    pub(super) fn of_before(announced: &[IpNetwork]) -> Option<Self> {
        (!announced.is_empty()).then(|| Self::begin(USUAL))
    }

    fn error(&self, what: &str) -> ObjectError {
        let until = self.told.map(|at| at.to_string()).unwrap_or_default();
        let message = format!(
            "{what}: the sessions are closed as for a restart, and nothing was withdrawn. Routers keep what this node announced \
             until {until} ({} s): put back before, it is announced as if nothing had been. To take it off on purpose, \
             `bulkhead node drain-routes --all` comes first",
            self.restart_time
        );
        ObjectError { file: None, object: None, field: None, message }
    }
}

impl Bgp {
    /// `what` is gone.
    pub(super) async fn interrupt(&mut self, what: &str) {
        if let Some(fixed) = self.end_sessions().await {
            warn!("{what}: sessions are closed, and nothing is withdrawn");
            // What was withdrawn before is kept by nobody.
            let kept = self.told && !self.routes.is_empty();
            self.interruption = kept.then(|| Interruption::begin(fixed.restart_time));
        }
        match &self.interruption {
            Some(interruption) if Instant::now() < interruption.until => {
                self.errors.push(interruption.error(what));
            }
            _ => self.give_up(),
        }
    }

    fn give_up(&mut self) {
        self.routes.clear();
        self.peers.clear();
        if self.interruption.take().is_some() {
            self.remember();
        }
        self.bfd.nobody();
        self.learning.nobody();
        self.secrets.follow(&BTreeSet::new());
    }
}
