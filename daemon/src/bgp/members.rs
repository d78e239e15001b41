//! Who has had sessions out of ranges, on disk: a daemon that comes later waits for all of them before it sweeps what they announced.

use crate::{learning::HOLD, store};
use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Instant};
use tracing::warn;

#[derive(Debug)]
pub struct Members {
    file: PathBuf,
    opened: Instant,
    known: BTreeSet<IpAddr>,
}

impl Members {
    pub fn open(file: PathBuf) -> Self {
        let known = store::read_json(&file).ok().flatten().unwrap_or_default();
        Self { file, opened: Instant::now(), known }
    }

    pub fn known(&self) -> &BTreeSet<IpAddr> {
        &self.known
    }

    /// Those of before are kept for as long as they are waited for.
    pub fn follow(&mut self, now: Instant, mut members: BTreeSet<IpAddr>) {
        if now.saturating_duration_since(self.opened) < HOLD {
            members.extend(&self.known);
        }
        if members == self.known {
            return;
        }
        self.known = members;
        if let Err(e) = store::write_json(&self.file, &self.known) {
            warn!(error = %e, "cannot remember who has had sessions out of ranges; a restart would sweep what they announced");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_come_back_is_forgotten_when_it_is_waited_for_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Members::open(dir.path().join("members.json"));
        let [one, two]: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let mut first = open();
        first.follow(Instant::now(), [one, two].into());
        let mut second = open();
        second.follow(Instant::now(), [one].into());
        assert_eq!((second.known(), open().known()), (&[one, two].into(), &[one, two].into()));
        second.follow(second.opened + HOLD, [one].into());
        assert_eq!(open().known(), &[one].into());
    }
}
