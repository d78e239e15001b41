//! Something listens where the API server was, and is none: whoever watches asks again and again, and slower each time.

use crate::site::{Case, Site};
use bulkhead_lab::{Result, unmet};
use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

pub const CASES: &[(&str, Case)] =
    &[("what asks an API server that is away for its objects does not do so as fast as it can", counted)];

const COUNTED: Duration = Duration::from_secs(8);
/// Of one program. Each of some fifteen watches tries 4 or 5 times meanwhile; without a pause it is thousands.
const MOST: usize = 250;

fn counted(site: &mut Site) -> Result<()> {
    site.control.kill_apiserver()?;
    let calls = calls(site);
    site.control.start_apiserver()?;
    site.wait_sound()?;
    let calls = calls?;
    let [daemon, controller] =
        [IpAddr::V4(site.node.v4), site.control.endpoint().ip()].map(|from| calls.get(&from).copied());
    for (who, count) in [("daemon", daemon), ("controller", controller)] {
        if !count.is_some_and(|count| (1..=MOST).contains(&count)) {
            return unmet(format!("the {who} called {count:?} times in {COUNTED:?}"));
        }
    }
    Ok(())
}

/// By who calls.
fn calls(site: &Site) -> Result<BTreeMap<IpAddr, usize>> {
    let listener = site.control.netns.run(|| Ok(TcpListener::bind(site.control.endpoint())?))?;
    listener.set_nonblocking(true)?;
    let (end, mut calls) = (Instant::now() + COUNTED, BTreeMap::new());
    while Instant::now() < end {
        match listener.accept() {
            Ok((_, from)) => *calls.entry(from.ip()).or_default() += 1,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(calls)
}
