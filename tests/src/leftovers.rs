//! What a lab could have left on the machine, looked for from outside when it is over.

use crate::{
    Context, Result,
    enter::{BPFFS, Ended},
    unmet, until,
};
use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{ProgramInfo, loaded_programs},
};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

/// Namespaces and programs are freed in the background.
const DEADLINE: Duration = Duration::from_secs(10);

/// The machine's interfaces, mounts and named namespaces.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    things: BTreeSet<String>,
}

impl Machine {
    pub fn now() -> Result<Self> {
        let mut things = BTreeSet::new();
        let read = |path: &str| fs::read_to_string(path).during(|| path.into());
        for line in read("/proc/self/net/dev")?.lines().skip(2) {
            things.insert(format!("interface {}", line.split(':').next().unwrap_or(line).trim()));
        }
        for line in read("/proc/self/mountinfo")?.lines() {
            things.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or(line)));
        }
        for dir in ["/run/netns", BPFFS] {
            // Where the directory is not there, nothing is in it.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                things.insert(format!("file {}", entry.path().display()));
            }
        }
        Ok(Self { things })
    }

    /// Fails by naming the first thing that a lab has left.
    pub fn nothing_left(&self, ended: &Ended) -> Result<()> {
        until("the lab is gone", DEADLINE, || self.nothing_left_now(ended).map(Some))
    }

    /// As [`Machine::nothing_left`], at this moment.
    pub fn nothing_left_now(&self, ended: &Ended) -> Result<()> {
        if let Some(process) = process_in(&ended.pid_namespace)? {
            return unmet(format!("process {process}"));
        }
        if let Some(thing) = Self::now()?.things.difference(&self.things).next() {
            return unmet(thing);
        }
        match ended.told.iter().find(|told| is_loaded(told)) {
            Some(object) => unmet(object),
            None => Ok(()),
        }
    }
}

/// A process of this pid namespace (the target of `/proc/PID/ns/pid`).
fn process_in(namespace: &str) -> Result<Option<String>> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let link = fs::read_link(entry.path().join("ns/pid"));
        if link.is_ok_and(|l| l.display().to_string() == namespace) {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Every eBPF object that is pinned under `dir`, in the words that [`Machine::nothing_left`] understands.
pub fn pinned(dir: &Path) -> Vec<String> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            objects.extend(pinned(&path));
        } else if let Ok(info) = MapInfo::from_pin(&path) {
            objects.push(format!("eBPF map {}", info.id()));
        } else if let Ok(info) = ProgramInfo::from_pin(&path) {
            objects.push(format!("eBPF program {}", info.id()));
        }
    }
    objects
}

/// Whether the kernel still has it; in the words of [`pinned`].
pub fn is_loaded(object: &str) -> bool {
    let id = |kind: &str| object.strip_prefix(kind).and_then(|id| id.parse::<u32>().ok());
    if let Some(id) = id("eBPF map ") {
        return loaded_maps().flatten().any(|m| m.id() == id);
    }
    id("eBPF program ").is_some_and(|id| loaded_programs().flatten().any(|p| p.id() == id))
}
