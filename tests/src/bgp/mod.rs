//! Real routers beside a speaker of ours, all configured from one description and asked in one language.
//!
//! ```text
//!   node 172.31.9.2, fd00:31:9::2 ──────── 172.31.9.1, fd00:31:9::1 router
//!   speaker, AS 65010                                  BIRD, FRR or GoBGP, AS 65020
//! ```
//! What counts is what the router says of itself: its table, its session, its reasons.

mod bird;
mod daemon;
mod frr;
mod gobgp;
pub mod guided;
pub mod leaf;
pub mod pair;
pub mod rack;
pub mod site;
mod slow_claim;

use crate::{Error, Netns, Result, until};
use site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS, Site};
use std::{collections::BTreeSet, fmt, path::Path, sync::Arc};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bird,
    Frr,
    Gobgp,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Bird, Kind::Frr, Kind::Gobgp];

    pub fn start(self, site: &Site, setup: &Setup) -> Result<Box<dyn Router>> {
        self.start_in(&site.router, &site.dir, setup)
    }

    /// `dir` takes its files.
    pub fn start_in(self, netns: &Arc<Netns>, dir: &Path, setup: &Setup) -> Result<Box<dyn Router>> {
        Ok(match self {
            Kind::Bird => Box::new(bird::BirdRouter::start(netns, dir, setup)?),
            Kind::Frr => Box::new(frr::Frr::start(netns, dir, setup)?),
            Kind::Gobgp => Box::new(gobgp::Gobgp::start(netns, dir, setup)?),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bird => "BIRD 2",
            Kind::Frr => "FRR",
            Kind::Gobgp => "GoBGP",
        })
    }
}

/// What a router is configured with. It always announces [`THEIRS`] and [`THEIRS6`] with communities of all
/// kinds and a MED, helps us to restart and restarts gracefully itself.
#[derive(Clone, Debug)]
pub struct Setup {
    pub router_as: u32,
    pub node_as: u32,
    /// Its end of the session, and ours.
    pub router: &'static str,
    pub node: &'static str,
    pub hold_time: u16,
    /// Of its own restart.
    pub restart_time: u16,
    pub password: Option<&'static str>,
    /// RFC 5082, one hop.
    pub security: bool,
    pub passive: bool,
    /// Its end of the session is on no link.
    pub multihop: bool,
    /// [`THEIRS`] comes with our own AS in its path.
    pub looped: bool,
    /// Takes us as one of a range.
    pub range: Option<&'static str>,
    /// Says two routes for one prefix.
    pub add_path: bool,
    pub extended_next_hop: bool,
    /// Takes us as a client of its reflector.
    pub reflector: bool,
    /// Seconds.
    pub long_lived: Option<u32>,
    /// Its OPEN has the form of RFC 9072 however short it is; FRR's alone can.
    pub long_open: bool,
    /// Its interface towards us: the session is over link-local addresses that router advertisements tell.
    pub unnumbered: Option<&'static str>,
    /// Milliseconds, three times; not GoBGP, which lacks it.
    pub bfd: Option<u32>,
    /// Milliseconds for which FRR's zebra gathers what changes before it tells the kernel; 10 if it is not said.
    pub gathering: Option<u32>,
    /// For measurements: nothing goes to the kernel, and no line of log for each route or message.
    pub speaker_alone: bool,
}

pub const THEIRS: &str = "10.99.0.0/16";
pub const THEIRS6: &str = "fd00:99::/32";

impl Setup {
    pub const DEFAULT: Setup = Setup {
        router_as: ROUTER_AS,
        node_as: NODE_AS,
        router: ROUTER,
        node: NODE,
        hold_time: 30,
        restart_time: 60,
        password: None,
        security: false,
        passive: false,
        multihop: false,
        looped: false,
        range: None,
        add_path: false,
        extended_next_hop: false,
        reflector: false,
        long_lived: None,
        long_open: false,
        unnumbered: None,
        bfd: None,
        gathering: None,
        speaker_alone: false,
    };
}

impl Default for Setup {
    fn default() -> Self {
        Setup::DEFAULT
    }
}

/// A route of ours as it stands in a router's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub next_hop: String,
    pub as_path: Vec<u32>,
    /// `65010:100`
    pub communities: BTreeSet<String>,
    /// `65010:1:2`
    pub large: BTreeSet<String>,
    /// Route targets only, `65010:7`.
    pub targets: BTreeSet<String>,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    /// Kept while we restart.
    pub stale: bool,
}

/// Its BFD session with us.
#[derive(Clone, Debug)]
pub struct Watched {
    pub up: bool,
    /// Another one once the session has changed its state.
    pub history: String,
    /// In milliseconds: after such a silence of ours the path counts as dead.
    pub detection: u64,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        let same = match (since(&self.history), since(&other.history)) {
            // BIRD reckons it back from now at each look: it may be another millisecond.
            (Some(one), Some(other)) => (one - other).abs() < 0.02,
            _ => self.history == other.history,
        };
        same && (self.up, self.detection) == (other.up, other.detection)
    }
}

/// Seconds of `12:34:56.789`.
fn since(clock: &str) -> Option<f64> {
    let parts = clock.split(':').map(str::parse::<f64>).collect::<std::result::Result<Vec<_>, _>>().ok()?;
    match parts[..] {
        [hours, minutes, seconds] => Some((hours * 60.0 + minutes) * 60.0 + seconds),
        _ => None,
    }
}

pub trait Router {
    fn established(&self) -> Result<bool>;
    /// Everything that it says about the session, in its own words.
    fn session(&self) -> Result<String>;
    fn seen(&self, prefix: &str) -> Result<Option<Seen>>;
    /// `None`: there is none.
    fn watched(&self) -> Result<Option<Watched>>;
    /// Its BGP alone is killed and begins anew; what it has put into the kernel, and its BFD, stay.
    fn restart(&mut self) -> Result<()> {
        Err(Error::Unmet("of this router BGP alone cannot be restarted".into()))
    }
    /// Ends the session with Cease, administrative reset, and takes it up again.
    fn reset(&self) -> Result<()>;
    /// Asks us for all routes again (RFC 2918).
    fn refresh(&self) -> Result<()>;
    /// Of the process that speaks BGP.
    fn pid(&self) -> u32;
    /// What it wrote to its log.
    fn log(&self) -> Result<String>;

    fn wait_established(&self) -> Result<()> {
        until("the router's session is established", DEADLINE, || {
            if self.established()? { Ok(Some(())) } else { Err(Error::Unmet(self.session()?)) }
        })
    }

    fn wait_lost(&self) -> Result<()> {
        until("the router's session is over", DEADLINE, || Ok((!self.established()?).then_some(())))
    }

    fn wait_watched(&self, what: &str, wanted: &dyn Fn(&Watched) -> bool) -> Result<Watched> {
        until(what, DEADLINE, || {
            let watched = self.watched()?;
            match &watched {
                Some(session) if wanted(session) => Ok(watched),
                other => Err(Error::Unmet(format!("{other:?}"))),
            }
        })
    }

    fn wait_seen(&self, prefix: &str) -> Result<Seen> {
        until(&format!("the router has {prefix}"), DEADLINE, || self.seen(prefix))
    }

    fn wait_gone(&self, prefix: &str) -> Result<()> {
        until(&format!("the router has lost {prefix}"), DEADLINE, || match self.seen(prefix)? {
            None => Ok(Some(())),
            Some(seen) => Err(Error::Unmet(format!("{seen:?}"))),
        })
    }

    fn wait_words(&self, words: &[&str]) -> Result<()> {
        until(&format!("the router says {words:?}"), DEADLINE, || {
            let said = self.session()? + &self.log()?;
            let missing = words.iter().find(|word| !said.contains(**word));
            match missing {
                None => Ok(Some(())),
                Some(word) => Err(Error::Unmet(format!("no {word:?} in {said}"))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_birds_is_the_same_to_the_millisecond_and_another_later() {
        let watched = |history: &str| Watched { up: true, history: history.into(), detection: 900 };
        assert_eq!(watched("13:01:45.475"), watched("13:01:45.476"));
        assert_eq!(watched("13:01:45.999"), watched("13:01:46.000"));
        assert_ne!(watched("13:01:45.475"), watched("13:01:46.224"));
        assert_eq!(watched("2 1"), watched("2 1"));
        assert_ne!(watched("2 1"), watched("3 2"));
    }
}
