//! Services at the socket: real pods, real calls, the daemon with a directory as source, and no kube-proxy anywhere.
//!
//! Backends say their name to whoever calls, so that a test knows where a call has gone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "services/backends.rs"]
mod backends;
#[path = "services/calls.rs"]
mod calls;
#[path = "services/daemon.rs"]
mod daemon;
#[path = "services/dns.rs"]
mod dns;
#[path = "services/policy.rs"]
mod policy;
#[path = "services/site.rs"]
mod site;

use bulkhead_lab::{Result, enter};
use libtest_mimic::{Arguments, Failed, Trial};
use site::{Case, Site};
use std::sync::{Arc, Mutex, PoisonError};

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // One lab: the cases take turns.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(&Arc::new(Mutex::new(Err("not started".into()))))).exit();
    }
    let _inside = enter()?;
    let site = Arc::new(Mutex::new(Site::start().map_err(|e| e.to_string())));
    let conclusion = libtest_mimic::run(&arguments, trials(&site));
    let mut site = site.lock().unwrap_or_else(PoisonError::into_inner);
    if let (true, Ok(site)) = (conclusion.has_failed(), &*site) {
        eprintln!("{}", site.lab.logs(30));
    }
    *site = Err("over".into());
    drop(site);
    conclusion.exit()
}

fn trials(site: &Arc<Mutex<std::result::Result<Site, String>>>) -> Vec<Trial> {
    // The last of `daemon` takes the pods' node away.
    let cases =
        [calls::CASES, backends::CASES, policy::CASES, dns::CASES, daemon::CASES].into_iter().flatten();
    let trial = |(name, case): &(&'static str, Case)| {
        let (site, case) = (site.clone(), *case);
        Trial::test(*name, move || match &mut *site.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(site) => case(site).map_err(Failed::from),
            Err(why) => Err(why.clone().into()),
        })
    };
    cases.map(trial).collect()
}
