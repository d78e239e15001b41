//! Cases that run one after the other in one cluster, until one fails.

use crate::site::{Case, Site};
use bulkhead_lab::{
    Result,
    cluster::cgroups,
    enter::{Ended, die_after, enter_then},
    leftovers::Machine,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// `limit`: of everything.
pub fn run(limit: Duration, cases: &[(&'static str, Case)]) -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(cases, None)).exit();
    }
    let before = Machine::now()?;
    let _inside = enter_then(|ended| afterwards(&before, ended))?;
    die_after(limit);
    let site = Arc::new(Mutex::new(Site::start()?));
    let conclusion = libtest_mimic::run(&arguments, trials(cases, Some(&site)));
    if conclusion.has_failed()
        && let Ok(site) = site.lock()
    {
        eprintln!("{}", site.cluster.logs(25));
    }
    conclusion.exit()
}

/// Outside, when all is over: the exit code.
fn afterwards(before: &Machine, ended: &Ended) -> i32 {
    let cgroups = cgroups::remove(&cgroups::name(&ended.pid_namespace));
    match cgroups.and_then(|()| before.nothing_left(ended)) {
        Ok(()) => ended.code,
        Err(e) => {
            eprintln!("left on the machine: {e}");
            1
        }
    }
}

fn trials(cases: &[(&'static str, Case)], site: Option<&Arc<Mutex<Site>>>) -> Vec<Trial> {
    cases.iter().map(|(name, case)| trial(name, *case, site.cloned())).collect()
}

fn trial(name: &str, case: Case, site: Option<Arc<Mutex<Site>>>) -> Trial {
    Trial::test(name, move || {
        let site = site.ok_or("there is no site")?;
        let mut site = site.lock().map_err(|_| "a case before this one panicked")?;
        if site.failed {
            return Err("a case before this one failed: see there".into());
        }
        let held = case(&mut site);
        site.failed = held.is_err();
        held.map_err(Failed::from)
    })
}
