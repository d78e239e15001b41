//! A whole daemon with the promised set in its directory and 110 pods wired: what it keeps in memory, and how long a change
//! of one file takes until the kernel has it.
//!
//! The set is read from files, so a change's time is from the rename of its file to the switched generation: noticing it,
//! reading it, and remembering it for a restart included.

use super::compile::{quantile, set};
use crate::{Context, Error, Node, Pod, Result, Single, figure::Figure, unmet, until};
use aya::maps::{Array, Map, MapData};
use std::{collections::BTreeSet, fs, thread, time::Duration};

const CHANGES: usize = 100;
/// Between two: the grace period and what is written aside are over.
const REST: Duration = Duration::from_millis(200);
/// What only it has needed is given back then, and the daemon has looked after its node once more.
const START: Duration = Duration::from_secs(12);
/// The first look at all files.
const LOAD: Duration = Duration::from_secs(120);
const SWITCH: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_micros(200);

pub fn run() -> Result<Vec<Figure>> {
    let single = Single::start(1500)?;
    for entry in fs::read_dir(single.objects.dir())? {
        fs::remove_file(entry?.path())?;
    }
    thread::sleep(START);
    let mut figures = vec![Figure::new("daemon_idle", resident(&single.node)?, "MB").at_most(20.0)];
    for (name, text) in set::files() {
        single.objects.write(&name, &text)?;
    }
    until("the whole set is in force", LOAD, || {
        let partitions: Vec<serde_json::Value> = single.node.get("/v1/partitions")?;
        Ok((partitions.len() > set::PARTITIONS).then_some(()))
    })?;
    eprintln!("    the set is in force; wiring {} pods", set::local_pods().count());
    let _pods = wire(&single.node)?;
    figures.extend(changes(&single)?);
    figures.push(Figure::new("daemon_in_set", resident(&single.node)?, "MB").at_most(100.0));
    figures.push(Figure::new("daemon_maps", maps(&single.node)?, "MB"));
    Ok(figures)
}

fn wire(node: &Node) -> Result<Vec<Pod>> {
    set::local_pods()
        .map(|(partition, pod)| {
            let (namespace, name) = set::pod_name(partition, pod);
            let mut pod = Pod::create(0, &namespace, &name)?;
            pod.add(node)?;
            Ok(pod)
        })
        .collect()
}

/// One rule of one partition that has a pod here, again and again.
fn changes(single: &Single) -> Result<Vec<Figure>> {
    let told = |e: &dyn std::fmt::Display| Error::Unmet(format!("the map of the generation: {e}"));
    let data = MapData::from_pin(single.node.pins().join("maps/GENERATION")).map_err(|e| told(&e))?;
    let generation: Array<_, u32> =
        Map::from_map_data(data).and_then(Array::try_from).map_err(|e| told(&e))?;
    let running = || generation.get(&0, 0).map_err(|e| told(&e));
    let partitions: Vec<usize> = set::local_pods().map(|(partition, _)| partition).collect();
    let mut times = Vec::with_capacity(CHANGES);
    for edit in 1..=CHANGES {
        let (partition, before) = (partitions[edit % partitions.len()], running()?);
        let start = single
            .objects
            .write(&format!("partition-{partition:04}.yaml"), &set::partition(partition, edit))?;
        while running()? == before {
            if start.elapsed() > SWITCH {
                return unmet(format!("change {edit} is not in force"));
            }
            thread::sleep(LOOK);
        }
        times.push(start.elapsed());
        thread::sleep(REST);
    }
    Ok(vec![
        Figure::new("file_changed_p50", quantile(&mut times, 50), "ms").at_most(10.0),
        Figure::new("file_changed_p99", quantile(&mut times, 99), "ms").at_most(50.0),
    ])
}

fn proc_of(node: &Node) -> Result<String> {
    let Some(pid) = node.daemon_pid() else { return unmet("the daemon is gone") };
    Ok(format!("/proc/{pid}"))
}

/// What the daemon itself keeps; maps are the kernel's.
fn resident(node: &Node) -> Result<f64> {
    let path = format!("{}/status", proc_of(node)?);
    let text = fs::read_to_string(&path).during(|| path.clone())?;
    kilobytes(&text, "VmRSS:").map_or_else(|| unmet(format!("{path} has no VmRSS")), |kb| Ok(kb / 1e3))
}

/// Of every map that the daemon has open, what the kernel charges for it.
fn maps(node: &Node) -> Result<f64> {
    let folder = format!("{}/fdinfo", proc_of(node)?);
    let (mut seen, mut bytes) = (BTreeSet::new(), 0.0);
    for entry in fs::read_dir(&folder).during(|| folder.clone())? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(size)) = (field("map_id:"), field("memlock:"))
            && seen.insert(id)
        {
            bytes += size as f64;
        }
    }
    if seen.is_empty() { unmet("the daemon has no map open") } else { Ok(bytes / 1e6) }
}

fn kilobytes(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()
}
