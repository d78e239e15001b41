//! What was in force on this node, since when, and from which objects; and whether the source is held.
//!
//! One file a generation under `<state>/generations`, the newest [`KEPT`]. The newest is what is in force: a refused
//! change leaves it so, also over a restart.

use crate::store::{self, StoreError};
use bulkhead_api::messages::GenerationInfo;
use bulkhead_policy::{Named, Objects};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Generations that can be brought back.
const KEPT: usize = 10;
const HELD_FILE: &str = "held.json";

#[derive(Debug)]
pub struct History {
    dir: PathBuf,
    /// Oldest first; objects stay on disk.
    generations: Vec<GenerationInfo>,
    held: Option<u32>,
}

/// A file; read in halves, since only one is wanted at a time.
#[derive(Serialize)]
struct Record<'a> {
    info: &'a GenerationInfo,
    objects: &'a Objects,
}

#[derive(Deserialize)]
struct Head {
    info: GenerationInfo,
}

#[derive(Deserialize)]
struct Body {
    objects: Objects,
}

/// A generation that was switched to.
#[derive(Clone, Copy, Debug)]
pub struct Switched {
    pub generation: u32,
    /// Unix time, seconds.
    pub since: u64,
    /// The generation whose objects these are, when they were brought back.
    pub rollback_of: Option<u32>,
}

impl History {
    /// The history on disk, and the objects that were in force last.
    pub fn open(state: &Path) -> Result<(Self, Option<Objects>), StoreError> {
        let dir = state.join(store::GENERATIONS);
        fs::create_dir_all(&dir).map_err(|source| StoreError::Io { path: dir.clone(), source })?;
        let mut generations = Vec::new();
        for path in files(&dir)? {
            let head: Option<Head> = store::read_json(&path)?;
            generations.extend(head.map(|h| h.info));
        }
        generations.sort_by_key(|g| (g.since, g.generation));
        let held = store::read_json(&dir.join(HELD_FILE))?.unwrap_or_default();
        let history = Self { dir, generations, held };
        let objects = match history.generations.last() {
            Some(last) => history.objects(last.generation)?,
            None => None,
        };
        Ok((history, objects))
    }

    /// Remembers a generation. The same objects again (a restart) take the place of their last record.
    pub fn record(
        &mut self,
        switched: Switched,
        before: &Objects,
        objects: &Objects,
    ) -> Result<(), StoreError> {
        let changed = changes(before, objects);
        let mut info = GenerationInfo {
            generation: switched.generation,
            since: switched.since,
            rollback_of: switched.rollback_of,
            objects: named(objects).into_keys().collect(),
            changed,
        };
        let again = info.changed.is_empty().then(|| self.generations.pop()).flatten();
        if let Some(last) = &again {
            (info.since, info.rollback_of) = (last.since, last.rollback_of.or(info.rollback_of));
            info.changed.clone_from(&last.changed);
        }
        let record = Record { info: &info, objects };
        store::write_json(&self.path(info.generation), &record)?;
        if let Some(last) = again.filter(|last| last.generation != info.generation) {
            self.remove(last.generation)?;
        }
        self.generations.push(info);
        while self.generations.len() > KEPT {
            let oldest = self.generations.remove(0);
            self.remove(oldest.generation)?;
        }
        Ok(())
    }

    /// The objects of a generation; `None`: there is none of that number any more.
    pub fn objects(&self, generation: u32) -> Result<Option<Objects>, StoreError> {
        let body: Option<Body> = store::read_json(&self.path(generation))?;
        Ok(body.map(|b| b.objects))
    }

    /// Newest first; the first is in force.
    pub fn list(&self) -> Vec<GenerationInfo> {
        self.generations.iter().rev().cloned().collect()
    }

    /// The generation before the one in force.
    pub fn previous(&self) -> Option<u32> {
        self.generations.iter().rev().nth(1).map(|g| g.generation)
    }

    /// The generation whose objects are held against the source.
    pub fn held(&self) -> Option<u32> {
        self.held
    }

    pub fn hold(&mut self, generation: Option<u32>) -> Result<(), StoreError> {
        store::write_json(&self.dir.join(HELD_FILE), &generation)?;
        self.held = generation;
        Ok(())
    }

    fn path(&self, generation: u32) -> PathBuf {
        self.dir.join(format!("{generation}.json"))
    }

    fn remove(&self, generation: u32) -> Result<(), StoreError> {
        let path = self.path(generation);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source: e }),
            _ => Ok(()),
        }
    }
}

/// The records of a directory: `12.json`, and nothing else.
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

/// What rules are made of, by name, in a form that can be compared.
fn named(objects: &Objects) -> BTreeMap<String, serde_json::Value> {
    fn all<'a, T: Serialize>(
        kind: &'a str,
        of: &'a Named<T>,
    ) -> impl Iterator<Item = (String, serde_json::Value)> + 'a {
        of.iter().map(move |(n, o)| (format!("{kind}/{n}"), serde_json::to_value(&**o).unwrap_or_default()))
    }
    all("Partition", &objects.partitions)
        .chain(all("NetworkGroup", &objects.network_groups))
        .chain(all("BandwidthClass", &objects.bandwidth_classes))
        .chain(all("NetworkPolicy", &objects.network_policies))
        .chain(all("ClusterNetworkPolicy", &objects.cluster_network_policies))
        .chain(all("Namespace", &objects.namespaces))
        .chain(all("Pod", &objects.pods))
        .chain(all("Node", &objects.nodes))
        .collect()
}

/// `+Partition/new`, `~Partition/edited`, `-NetworkGroup/gone`.
pub fn changes(before: &Objects, after: &Objects) -> Vec<String> {
    let (before, after) = (named(before), named(after));
    let gone = before.keys().filter(|k| !after.contains_key(*k)).map(|k| format!("-{k}"));
    let new_or_edited = after.iter().filter_map(|(name, object)| match before.get(name) {
        None => Some(format!("+{name}")),
        Some(old) if old != object => Some(format!("~{name}")),
        Some(_) => None,
    });
    new_or_edited.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::NetworkGroupSpec;
    use bulkhead_policy::Sourced;
    use std::sync::Arc;

    fn objects(groups: &[(&str, &str)]) -> Objects {
        let group = |cidr: &str| {
            let spec = NetworkGroupSpec { cidrs: vec![cidr.parse().unwrap()] };
            Arc::new(Sourced { spec, file: Some("groups.yaml:1".into()) })
        };
        let network_groups = groups.iter().map(|(name, cidr)| (name.to_string(), group(cidr))).collect();
        Objects { network_groups, ..Objects::default() }
    }

    fn switched(generation: u32) -> Switched {
        Switched { generation, since: u64::from(generation) * 10, rollback_of: None }
    }

    #[test]
    fn a_generation_says_what_changed_and_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, none) = History::open(dir.path()).unwrap();
        assert_eq!(none, None);
        let (a, b) =
            (objects(&[("vms", "10.0.0.0/8")]), objects(&[("vms", "10.0.0.0/9"), ("dbs", "11.0.0.0/8")]));
        history.record(switched(1), &Objects::default(), &a).unwrap();
        history.record(switched(2), &a, &b).unwrap();
        let (history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!(in_force, Some(b));
        assert_eq!(history.objects(1).unwrap(), Some(a));
        assert_eq!(history.previous(), Some(1));
        let changed: Vec<_> = history.list().into_iter().map(|g| (g.generation, g.changed)).collect();
        let texts = |t: &[&str]| t.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected =
            [(2, texts(&["+NetworkGroup/dbs", "~NetworkGroup/vms"])), (1, texts(&["+NetworkGroup/vms"]))];
        assert_eq!(changed, expected);
    }

    #[test]
    fn a_restart_with_the_same_objects_is_no_new_entry() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let a = objects(&[("vms", "10.0.0.0/8")]);
        history.record(switched(1), &Objects::default(), &a).unwrap();
        history.record(switched(2), &a, &a).unwrap();
        let list = History::open(dir.path()).unwrap().0.list();
        assert_eq!(list.iter().map(|g| (g.generation, g.since)).collect::<Vec<_>>(), [(2, 10)]);
        assert_eq!(list[0].changed, ["+NetworkGroup/vms"]);
    }

    #[test]
    fn the_oldest_generations_are_forgotten_and_a_hold_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let mut before = Objects::default();
        for n in 1..=12u32 {
            let after = objects(&[("vms", &format!("10.{n}.0.0/16"))]);
            history.record(switched(n), &before, &after).unwrap();
            before = after;
        }
        history.hold(Some(11)).unwrap();
        let (history, _) = History::open(dir.path()).unwrap();
        assert_eq!(history.list().len(), KEPT);
        assert_eq!(history.objects(2).unwrap(), None);
        assert_eq!(history.held(), Some(11));
    }
}
