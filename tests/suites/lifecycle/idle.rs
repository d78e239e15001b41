//! A daemon that has nothing to do.

use crate::support::*;
use bulkhead_lab::{Context, Lab, Result, unmet, until};
use std::{fs, time::Duration};

pub const CASES: &[Case] =
    &[("pages of the program that only its start has needed leave the daemon's memory", given_back)];

/// The start is over some seconds after it began.
const PATIENCE: Duration = Duration::from_secs(60);

fn given_back(lab: &mut Lab) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.stop_daemon()?;
    node.start_daemon()?;
    let Some(pid) = node.daemon_pid() else { return unmet("the daemon is gone") };
    let status = format!("/proc/{pid}/status");
    let mut most = 0;
    until("a third of what was resident of the daemon's files is given back", PATIENCE, || {
        let text = fs::read_to_string(&status).during(|| status.clone())?;
        let of_files =
            text.lines().find_map(|line| line.strip_prefix("RssFile:")?.trim().strip_suffix(" kB"));
        let now: u64 = of_files.and_then(|kb| kb.parse().ok()).unwrap_or_default();
        most = most.max(now);
        Ok((now < most / 3 * 2).then_some(()))
    })?;
    // It goes on as before.
    add(lab, index(lab, "shop/cart-0"))
}
