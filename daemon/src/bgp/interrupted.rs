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

/// Of a daemon before this one neither the restart time is known any more nor since when it runs: that of a configuration which says
/// none, from now on.
const USUAL: u16 = 60;

#[derive(Debug)]
pub(super) struct Interruption {
    until: Instant,
    /// As people are told.
    told: String,
    /// What is gone, in words; absent: nothing, though the sessions have not begun again.
    words: Option<String>,
}

impl Interruption {
    fn begin(restart_time: u16) -> Self {
        let seconds = u64::from(restart_time);
        let at = i64::try_from(unix_seconds() + seconds).ok().and_then(|at| Timestamp::from_second(at).ok());
        let told = at.map_or_else(String::new, |at| format!("until {at} "));
        let until = Instant::now() + Duration::from_secs(seconds);
        Self { until, told: format!("{told}({seconds} s)"), words: None }
    }

    /// A daemon that begins without the objects: routers may keep what the one before it announced.
    pub(super) fn of_before(announced: &[IpNetwork]) -> Option<Self> {
        let told = "for the restart time that the daemon before this one told them".into();
        let until = Instant::now() + Duration::from_secs(USUAL.into());
        (!announced.is_empty()).then_some(Self { until, told, words: None })
    }

    fn lasts(&self) -> bool {
        Instant::now() < self.until
    }

    /// `what` is gone.
    fn because(&mut self, what: &str) -> ObjectError {
        let message = format!(
            "{what}: the sessions are closed as for a restart, and nothing was withdrawn. Routers keep what this node announced \
             {}: put back before, it is announced as if nothing had been. To take it off on purpose, \
             `bulkhead node drain-routes --all` comes first",
            self.told
        );
        self.words = Some(message.clone());
        ObjectError { file: None, object: None, field: None, message }
    }

    /// The objects are there again, and something else may be in the way.
    pub(super) fn nothing_is_gone(&mut self) {
        self.words = None;
    }
}

impl Bgp {
    /// `what` is gone.
    pub(super) async fn interrupt(&mut self, what: &str) {
        if self.close().await {
            warn!("{what}: sessions are closed, and nothing is withdrawn");
        }
        match &mut self.interruption {
            Some(interruption) if interruption.lasts() => self.errors.push(interruption.because(what)),
            _ => self.give_up(),
        }
    }

    /// Ends the sessions, if there is a speaker, as for a restart: whatever comes of it, routers keep what they heard.
    pub(super) async fn close(&mut self) -> bool {
        let Some(fixed) = self.end_sessions().await else { return false };
        // What was withdrawn before is kept by nobody.
        let kept = self.told && !self.routes.is_empty();
        self.interruption = kept.then(|| Interruption::begin(fixed.restart_time));
        true
    }

    /// Routers lead here whatever is said: nothing can be withdrawn.
    pub fn is_interrupted(&self) -> bool {
        self.interruption.as_ref().is_some_and(Interruption::lasts)
    }

    /// What people are told of it: what is gone, or why sessions cannot begin again.
    pub fn interrupted(&self) -> Option<&str> {
        let interruption = self.interruption.as_ref().filter(|interruption| interruption.lasts())?;
        let in_the_way = || self.errors.first().map(|error| error.message.as_str());
        interruption.words.as_deref().or_else(in_the_way)
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
        self.key_files.follow(BTreeSet::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_says_what_is_gone_until_it_is_there_again() {
        let announced = ["10.64.0.0/26".parse().unwrap()];
        assert!(Interruption::of_before(&[]).is_none(), "routers keep nothing");
        let mut interruption = Interruption::of_before(&announced).unwrap();
        assert!(interruption.lasts() && interruption.words.is_none());
        let error = interruption.because("BGPConfiguration/default is gone");
        assert!(error.message.starts_with("BGPConfiguration/default is gone: the sessions are closed"));
        assert_eq!(interruption.words, Some(error.message));
        interruption.nothing_is_gone();
        assert_eq!(interruption.words, None, "what is in the way then, errors say");
    }
}
