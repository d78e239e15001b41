//! The peers that there are, on disk: of one that a later daemon cannot make, or that is none any more by then, it is known that it may
//! keep what was announced to it, and for how long. One of the same name elsewhere is another.

use crate::store;
use bulkhead_bgp::{Former, PeerConfig};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use tracing::warn;

/// Of a peer that nothing is known of (RFC 4271 section 10); and what is offered is no more than what was once.
const USUAL_HOLD_TIME: u16 = 90;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    name: String,
    remote: String,
    hold_seconds: u16,
    restart_seconds: u16,
    /// Unix time, of one that there was: by then it has dropped everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

impl Peer {
    fn new(config: &PeerConfig, restart_seconds: u16) -> Self {
        let hold_seconds = config.hold_time.max(USUAL_HOLD_TIME);
        let (name, remote) = (config.name.clone(), config.remote.to_string());
        Self { name, remote, hold_seconds, restart_seconds, until: None }
    }

    /// Anybody, from a daemon that told another restart time perhaps.
    fn unknown() -> Self {
        let (name, remote) = ("a peer of before".into(), "unknown".into());
        Self { name, remote, hold_seconds: USUAL_HOLD_TIME, restart_seconds: 0, until: None }
    }

    fn is(&self, other: &Self) -> bool {
        (&self.name, &self.remote) == (&other.name, &other.remote)
    }

    /// From `now` on, should its session end now; or since it has.
    fn until(&self, restart_seconds: u16, now: u64) -> u64 {
        let keeps = u64::from(self.hold_seconds) + u64::from(self.restart_seconds.max(restart_seconds));
        self.until.unwrap_or(now + keeps)
    }
}

#[derive(Debug)]
pub struct Named {
    file: PathBuf,
    known: Vec<Peer>,
    is_written: bool,
}

impl Named {
    pub fn open(file: PathBuf) -> Self {
        match store::read_json(&file) {
            Ok(known) => Self { file, known: known.unwrap_or_default(), is_written: true },
            Err(e) => {
                warn!(error = %e, "who was peered with before is not known: blocks without pods are held for a while");
                Self { file, known: vec![Peer::unknown()], is_written: false }
            }
        }
    }

    /// `now`: in Unix time.
    pub fn known(&self, restart_seconds: u16, now: u64) -> Vec<Former> {
        let former = |peer: &Peer| Former {
            name: peer.name.clone(),
            remote: peer.remote.clone(),
            keeps: Duration::from_secs(peer.until(restart_seconds, now).saturating_sub(now)),
        };
        self.known.iter().map(former).collect()
    }

    /// Before any of them has a session. Those of before stay known for as long as they may keep something.
    pub fn follow<'a>(
        &mut self,
        peers: impl IntoIterator<Item = &'a PeerConfig>,
        restart_seconds: u16,
        now: u64,
    ) {
        let mut all: Vec<Peer> = peers.into_iter().map(|peer| Peer::new(peer, restart_seconds)).collect();
        let mut gone = self.known.clone();
        gone.retain(|peer| !all.iter().any(|there| there.is(peer)));
        for peer in &mut gone {
            peer.until = Some(peer.until(restart_seconds, now));
        }
        all.extend(gone.into_iter().filter(|peer| peer.until.is_some_and(|until| now < until)));
        self.is_written &= all == self.known;
        self.known = all;
        if self.is_written {
            return;
        }
        match store::write_json(&self.file, &self.known) {
            Ok(()) => self.is_written = true,
            Err(e) => {
                warn!(error = %e, "cannot remember the peers; a restart may give a block back to which one of them still leads");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bgp::Remote;
    use std::{fs, net::IpAddr};

    const RESTART: u16 = 60;
    const BEGAN: u64 = 1_800_000_000;

    fn peer(name: &str, last: u8) -> PeerConfig {
        PeerConfig::new(name, Remote::Address(IpAddr::from([192, 0, 2, last])), 65020)
    }

    /// As a daemon finds them so many seconds after the beginning.
    fn found(named: &Named, after: u64) -> Vec<(String, String, u64)> {
        let known = named.known(RESTART, BEGAN + after).into_iter();
        known
            .filter(|former| !former.keeps.is_zero())
            .map(|former| (former.name, former.remote, former.keeps.as_secs()))
            .collect()
    }

    fn leaf(last: u8, keeps: u64) -> (String, String, u64) {
        ("leaf".into(), format!("192.0.2.{last}"), keeps)
    }

    #[test]
    fn restarts_that_follow_each_other_lose_nobody_who_may_keep_something() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Named::open(dir.path().join("peers.json"));
        let slow = PeerConfig { hold_time: 180, ..peer("leaf", 1) };
        open().follow([&slow], RESTART, BEGAN);
        // None of these can make it, and the last one has another of its name.
        for after in [100, 200] {
            let mut named = open();
            assert_eq!(found(&named, after), [leaf(1, if after == 100 { 240 } else { 140 })]);
            named.follow([], RESTART, BEGAN + after);
        }
        let mut named = open();
        named.follow([&peer("leaf", 2)], RESTART, BEGAN + 300);
        assert_eq!(found(&open(), 300), [leaf(2, 150), leaf(1, 40)]);
        assert_eq!(found(&open(), 340), [leaf(2, 150)]);
        named.follow([&peer("leaf", 2)], RESTART, BEGAN + 340);
        assert_eq!(open().known.len(), 1);
        // Who comes back has no end.
        named.follow([], RESTART, BEGAN + 400);
        named.follow([&peer("leaf", 2)], RESTART, BEGAN + 500);
        assert_eq!(found(&open(), 9000), [leaf(2, 150)]);
        assert_eq!(open().known(600, BEGAN + 9000)[0].keeps, Duration::from_secs(690), "asked for by now");
    }

    #[test]
    fn a_file_that_cannot_be_read_stands_for_somebody_also_after_another_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peers.json");
        assert_eq!(found(&Named::open(file.clone()), 0), [], "a first start");
        for text in ["[{\"name\":", "[\"leaf\"]"] {
            fs::write(&file, text).unwrap();
            let mut named = Named::open(file.clone());
            assert_eq!(found(&named, 0)[0].2, 150, "{text}");
            named.follow([&peer("leaf", 1)], RESTART, BEGAN);
            let next = found(&Named::open(file.clone()), 50);
            assert_eq!((next.len(), next[1].2), (2, 100), "{text}");
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        let file = folder.join("peers.json");
        let mut named = Named::open(file.clone());
        named.follow([&peer("leaf", 1)], RESTART, BEGAN);
        assert!(!file.exists());
        fs::create_dir(&folder).unwrap();
        named.follow([&peer("leaf", 1)], RESTART, BEGAN);
        assert_eq!(found(&Named::open(file), 0), [leaf(1, 150)]);
    }
}
