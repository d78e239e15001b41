//! The daemon against a real API server: etcd and kube-apiserver of the release that `tests/kubernetes` names, no kubelet.
//!
//! ```text
//!  control 172.30.1.1              node1 172.30.1.2
//!    etcd, kube-apiserver ──veth── bulkheadd
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "kube_api/absent.rs"]
mod absent;
#[path = "kube_api/backoff.rs"]
mod backoff;
#[path = "kube_api/blocks.rs"]
mod blocks;
#[path = "kube_api/chart.rs"]
mod chart;
#[path = "kube_api/claims.rs"]
mod claims;
#[path = "kube_api/crowd.rs"]
mod crowd;
#[path = "kube_api/definitions.rs"]
mod definitions;
#[path = "kube_api/fixed.rs"]
mod fixed;
#[path = "kube_api/outage.rs"]
mod outage;
#[path = "kube_api/passwords.rs"]
mod passwords;
#[path = "kube_api/rights.rs"]
mod rights;
#[path = "kube_api/site.rs"]
mod site;
#[path = "kube_api/source.rs"]
mod source;
#[path = "kube_api/status.rs"]
mod status;
#[path = "kube_api/webhook.rs"]
mod webhook;

use bulkhead_lab::{Result, enter};
use libtest_mimic::{Arguments, Failed, Trial};
use site::{Case, Site};
use std::sync::{Arc, Mutex};

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // One API server: the cases take turns.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(None)).exit();
    }
    let _inside = enter()?;
    let site = Arc::new(Mutex::new(Site::start()?));
    let conclusion = libtest_mimic::run(&arguments, trials(Some(&site)));
    if conclusion.has_failed()
        && let Ok(site) = site.lock()
    {
        eprintln!("{}", site.logs());
    }
    conclusion.exit()
}

fn trials(site: Option<&Arc<Mutex<Site>>>) -> Vec<Trial> {
    let cases = [
        chart::CASES,
        definitions::CASES,
        rights::CASES,
        source::CASES,
        status::CASES,
        blocks::CASES,
        claims::CASES,
        fixed::CASES,
        webhook::CASES,
        passwords::CASES,
        absent::CASES,
        backoff::CASES,
        outage::CASES,
        crowd::CASES,
    ]
    .into_iter()
    .flatten();
    cases.map(|(name, case)| trial(name, *case, site.cloned())).collect()
}

fn trial(name: &str, case: Case, site: Option<Arc<Mutex<Site>>>) -> Trial {
    Trial::test(name, move || {
        let site = site.ok_or("there is no site")?;
        let mut site = site.lock().map_err(|_| "a case before this one panicked")?;
        case(&mut site).map_err(Failed::from)
    })
}
