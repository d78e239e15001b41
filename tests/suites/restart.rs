//! A daemon that starts while the objects are broken: what was in force goes on, as if it had never stopped.

use bulkhead_api::messages::{BgpPeerInfo, PartitionInfo, Status};
use bulkhead_lab::{Result, Single, enter, unmet, until};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const PARTITION: &str = "payments.yaml";
const BGP: &str = "bgp.yaml";
const DEADLINE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let site = Arc::new(Mutex::new(None));
    let trial = |name: &str, file: &'static str, breaks: fn(&str) -> String| {
        let site = site.clone();
        Trial::test(name, move || {
            let mut site = site.lock().unwrap_or_else(PoisonError::into_inner);
            if site.is_none() {
                *site = Some(Single::start(1500)?);
            }
            let site = site.as_mut().ok_or("no site")?;
            broken_while_away(site, file, breaks).map_err(Failed::from)
        })
    };
    let trials = vec![
        // The first one: nothing has changed since the daemon's first start.
        trial("a file that became unreadable keeps its routers", BGP, |text| {
            text.replace("spec:", "spec: [")
        }),
        trial("a file that became unreadable keeps its partition", PARTITION, |text| {
            text.replace("ingress:", "ingress: [")
        }),
        trial("an object that became invalid keeps its former version", PARTITION, |text| {
            text.replace("endPort: 8090", "endPort: 80")
        }),
    ];
    if arguments.list {
        libtest_mimic::run(&arguments, trials).exit();
    }
    let _inside = enter()?;
    let conclusion = libtest_mimic::run(&arguments, trials);
    let ended = site.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (true, Some(site)) = (conclusion.has_failed(), &ended) {
        eprintln!("{}", site.node.log_tail(30));
    }
    // The daemon ends before the process does.
    drop(ended);
    conclusion.exit()
}

fn broken_while_away(site: &mut Single, file: &str, breaks: fn(&str) -> String) -> Result<()> {
    until("the site is in order", DEADLINE, || all_stands(site).map(Some))?;
    let good = site.objects.read(file)?;
    site.node.kill_daemon()?;
    site.objects.write(file, &breaks(&good))?;
    site.node.start_daemon()?;
    let outcome = refused(site, file).and_then(|()| all_stands(site));
    site.objects.write(file, &good)?;
    outcome?;
    until("nothing is refused any more", DEADLINE, || {
        Ok(site.node.get::<Status>("/v1/status")?.errors.is_empty().then_some(()))
    })
}

fn refused(site: &Single, file: &str) -> Result<()> {
    until("the new daemon refuses the file", DEADLINE, || {
        let errors = site.node.get::<Status>("/v1/status")?.errors;
        Ok(errors.iter().any(|e| e.file.as_deref().is_some_and(|f| f.starts_with(file))).then_some(()))
    })
}

fn all_stands(site: &Single) -> Result<()> {
    let partitions: Vec<PartitionInfo> = site.node.get("/v1/partitions")?;
    if !partitions.iter().any(|p| p.name == "payments") {
        return unmet(
            "partition payments is gone: its pods' namespace would be of the open default partition",
        );
    }
    let peers: Vec<BgpPeerInfo> = site.node.get("/v1/bgp/peers")?;
    if peers.len() != 2 {
        return unmet(format!("{} routers instead of 2", peers.len()));
    }
    Ok(())
}
