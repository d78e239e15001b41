//! The file of generations: a line each, the first with all its rules, the others with what differs from the line before.
//!
//! Lines are appended. Where there is no file that can be gone on with, or its lines have become many, it is made anew: another
//! file beside it, renamed over it.

use super::KEPT;
use crate::store::{self, StoreError};
use bulkhead_api::{
    messages::GenerationInfo,
    objects::{
        BandwidthClassSpec, ClusterNetworkPolicySpec, IpNetwork, NetworkGroupSpec, NetworkPolicySpec,
        PartitionSpec,
    },
};
use bulkhead_policy::{Named, Objects, Sourced, names};
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

const FILE: &str = "log.jsonl";
/// Lines of which only the last [`KEPT`] are wanted.
const MOST_LINES: usize = 200;

#[derive(Serialize, Deserialize)]
struct Line {
    info: GenerationInfo,
    /// In place of the generation of the line before.
    #[serde(default)]
    instead: bool,
    rules: Difference,
}

/// By name; None: gone.
type Differences<T> = BTreeMap<String, Option<Arc<Sourced<T>>>>;

#[derive(Default, Serialize, Deserialize)]
#[serde(default, bound = "")]
struct Difference {
    partitions: Differences<PartitionSpec>,
    network_groups: Differences<NetworkGroupSpec>,
    bandwidth_classes: Differences<BandwidthClassSpec>,
    network_policies: Differences<NetworkPolicySpec>,
    cluster_network_policies: Differences<ClusterNetworkPolicySpec>,
    default_pod_cidrs: Vec<IpNetwork>,
    cluster_dns: Vec<IpAddr>,
    cluster_dns_ports: Vec<u16>,
}

impl Difference {
    fn between(before: &Objects, after: &Objects) -> Self {
        Self {
            partitions: differences(&before.partitions, &after.partitions),
            network_groups: differences(&before.network_groups, &after.network_groups),
            bandwidth_classes: differences(&before.bandwidth_classes, &after.bandwidth_classes),
            network_policies: differences(&before.network_policies, &after.network_policies),
            cluster_network_policies: differences(
                &before.cluster_network_policies,
                &after.cluster_network_policies,
            ),
            default_pod_cidrs: after.default_pod_cidrs.clone(),
            cluster_dns: after.cluster_dns.clone(),
            cluster_dns_ports: after.cluster_dns_ports.clone(),
        }
    }

    fn apply(self, objects: &mut Objects) {
        let Self {
            partitions,
            network_groups,
            bandwidth_classes,
            network_policies,
            cluster_network_policies,
            default_pod_cidrs,
            cluster_dns,
            cluster_dns_ports,
        } = self;
        follow(&mut objects.partitions, partitions);
        follow(&mut objects.network_groups, network_groups);
        follow(&mut objects.bandwidth_classes, bandwidth_classes);
        follow(&mut objects.network_policies, network_policies);
        follow(&mut objects.cluster_network_policies, cluster_network_policies);
        (objects.default_pod_cidrs, objects.cluster_dns) = (default_pod_cidrs, cluster_dns);
        objects.cluster_dns_ports = cluster_dns_ports;
    }
}

fn differences<T: PartialEq>(before: &Named<Sourced<T>>, after: &Named<Sourced<T>>) -> Differences<T> {
    let difference = |item: DiffItem<'_, '_, String, Arc<Sourced<T>>>| match item {
        DiffItem::Add(name, new) | DiffItem::Update { new: (name, new), .. } => {
            (name.clone(), Some(new.clone()))
        }
        DiffItem::Remove(name, _) => (name.clone(), None),
    };
    before.diff(after).map(difference).collect()
}

fn follow<T>(objects: &mut Named<Sourced<T>>, differences: Differences<T>) {
    for (name, object) in differences {
        match object {
            Some(object) => drop(objects.insert(name, object)),
            None => drop(objects.remove(&name)),
        }
    }
}

/// The generations that can be brought back, oldest first.
///
/// # Errors
/// When there is a file that cannot be read; a last line that was cut off is none.
pub fn read(dir: &Path) -> Result<Vec<(GenerationInfo, Objects)>, StoreError> {
    let path = dir.join(FILE);
    // Not as text: what was cut off may end within a character.
    let written = match fs::read(&path) {
        Ok(written) => written,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return read_files(dir),
        Err(source) => return Err(StoreError::Io { path, source }),
    };
    let mut kept: Vec<(GenerationInfo, Objects)> = Vec::new();
    let mut objects = Objects::default();
    for line in written.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n")) {
        let Line { mut info, instead, rules } = serde_json::from_slice(line)
            .map_err(|source| StoreError::Forgotten { path: path.clone(), source })?;
        rules.apply(&mut objects);
        if instead {
            kept.pop();
        }
        info.objects = Vec::new();
        kept.retain(|(other, _)| other.generation != info.generation);
        kept.push((info, objects.clone()));
    }
    for (info, objects) in &mut kept {
        info.objects = names(objects);
    }
    kept.drain(..kept.len().saturating_sub(KEPT));
    Ok(kept)
}

/// As daemons before wrote them: a file a generation, `12.json`.
fn read_files(dir: &Path) -> Result<Vec<(GenerationInfo, Objects)>, StoreError> {
    #[derive(Deserialize)]
    struct Whole {
        info: GenerationInfo,
        objects: Objects,
    }
    let mut kept = Vec::new();
    for path in files(dir)? {
        let whole: Option<Whole> = store::read_json(&path)?;
        kept.extend(whole.map(|w| (w.info, w.objects)));
    }
    kept.sort_by_key(|(info, _)| (info.since, info.generation));
    Ok(kept)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let at = |source| StoreError::Io { path: dir.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at)? {
        let path = entry.map_err(at)?.path();
        let number = path.file_stem().and_then(|s| s.to_str()).is_some_and(|s| s.parse::<u32>().is_ok());
        if number && path.extension().is_some_and(|e| e == "json") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The file, and what of it is not written yet.
pub struct Log {
    dir: PathBuf,
    /// Rules of the last line, and how many there are; None: nobody has gone on with the file yet, or its end is unknown.
    end: Option<(Objects, usize)>,
    /// The newest generations of this process, the unwritten among them.
    kept: Vec<(GenerationInfo, Objects)>,
    unwritten: Vec<(GenerationInfo, Objects, bool)>,
}

impl Log {
    pub fn of(dir: PathBuf) -> Self {
        Self { dir, end: None, kept: Vec::new(), unwritten: Vec::new() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    pub fn push(&mut self, info: GenerationInfo, rules: Objects, instead: bool) {
        if instead {
            self.kept.pop();
        }
        self.kept.push((info.clone(), rules.clone()));
        self.kept.drain(..self.kept.len().saturating_sub(KEPT));
        self.unwritten.push((info, rules, instead));
    }

    /// On disk when this returns.
    ///
    /// # Errors
    /// What is not written is written with the next.
    pub fn write(&mut self) -> Result<(), StoreError> {
        match self.end.take() {
            Some((last, lines)) if lines + self.unwritten.len() <= MOST_LINES => self.append(last, lines),
            _ => self.make_anew(),
        }
    }

    fn append(&mut self, mut last: Objects, lines: usize) -> Result<(), StoreError> {
        let path = self.path();
        let mut text = Vec::new();
        for (info, rules, instead) in &self.unwritten {
            write_line(&mut text, &path, info, *instead, &last, rules)?;
            last.clone_from(rules);
        }
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_data()))
            .map_err(|source| StoreError::Io { path, source })?;
        self.end = Some((last, lines + self.unwritten.len()));
        self.unwritten.clear();
        Ok(())
    }

    fn make_anew(&mut self) -> Result<(), StoreError> {
        let path = self.path();
        let all = if self.kept.len() == KEPT { self.kept.clone() } else { self.with_those_before() };
        let (mut text, mut last) = (Vec::new(), Objects::default());
        for (info, rules) in &all {
            write_line(&mut text, &path, info, false, &last, rules)?;
            last.clone_from(rules);
        }
        store::write_whole(&path, &text)?;
        self.end = Some((last, all.len()));
        self.unwritten.clear();
        for file in files(&self.dir)? {
            let _ = fs::remove_file(file);
        }
        Ok(())
    }
}

impl Log {
    /// What is on disk and is to stay, and what is to come behind it.
    fn with_those_before(&self) -> Vec<(GenerationInfo, Objects)> {
        // What cannot be read is no reason to remember nothing from now on.
        let mut all = read(&self.dir).unwrap_or_default();
        for (info, rules, instead) in &self.unwritten {
            if *instead {
                all.pop();
            }
            // A write that failed half way may have got through; and numbers begin anew with the kernel.
            all.retain(|(on_disk, _)| on_disk.generation != info.generation);
            all.push((info.clone(), rules.clone()));
        }
        all.drain(..all.len().saturating_sub(KEPT));
        all
    }
}

fn write_line(
    text: &mut Vec<u8>,
    path: &Path,
    info: &GenerationInfo,
    instead: bool,
    before: &Objects,
    rules: &Objects,
) -> Result<(), StoreError> {
    let info = GenerationInfo { objects: Vec::new(), ..info.clone() };
    let line = Line { info, instead, rules: Difference::between(before, rules) };
    serde_json::to_writer(&mut *text, &line).map_err(|source| StoreError::Corrupt {
        path: path.into(),
        what: "a generation",
        source,
    })?;
    text.push(b'\n');
    Ok(())
}
