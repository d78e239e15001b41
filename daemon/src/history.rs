//! What was in force on this node, since when, and from which objects; and whether the source is held.
//!
//! One file a generation under `<state>/generations`, the newest [`KEPT`]. The newest is what is in force: a refused
//! change leaves it so, also over a restart. A generation is its rules; which pods, namespaces and nodes there are is no
//! matter of going back.
//!
//! A thread of its own writes: nobody waits for the disk, and what is superseded before its turn is not written. A daemon
//! that is killed in that moment comes back with the rules of the generation before for what is refused.

use crate::store::{self, StoreError};
use bulkhead_api::messages::{GenerationInfo, ObjectError};
use bulkhead_policy::{Named, Objects, changes, names};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};
use tracing::error;

/// Generations that can be brought back.
const KEPT: usize = 10;
const HELD_FILE: &str = "held.json";

#[derive(Debug)]
pub struct History {
    dir: PathBuf,
    /// Oldest first.
    generations: Vec<Kept>,
    held: Option<u32>,
    writer: Writer,
}

#[derive(Debug)]
struct Kept {
    info: GenerationInfo,
    /// None: of a daemon before us, and on disk only.
    rules: Option<Objects>,
}

impl Kept {
    fn told(&self) -> GenerationInfo {
        let objects = self.rules.as_ref().map_or_else(|| self.info.objects.clone(), names);
        GenerationInfo { objects, ..self.info.clone() }
    }
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
            generations.extend(head.map(|h| Kept { info: h.info, rules: None }));
        }
        generations.sort_by_key(|g| (g.info.since, g.info.generation));
        let held = store::read_json(&dir.join(HELD_FILE))?.unwrap_or_default();
        let history = Self { dir, generations, held, writer: Writer::start() };
        let objects = match history.generations.last() {
            Some(last) => history.objects(last.info.generation)?,
            None => None,
        };
        Ok((history, objects))
    }

    /// Remembers a generation. The same rules again (a restart) take the place of their last record.
    pub fn record(&mut self, switched: Switched, before: &Objects, objects: &Objects) {
        let Switched { generation, since, rollback_of } = switched;
        let mut info = GenerationInfo {
            generation,
            since,
            rollback_of,
            objects: Vec::new(),
            changed: changes(&rules(before), &rules(objects)),
        };
        let again = info.changed.is_empty().then(|| self.generations.pop()).flatten();
        if let Some(Kept { info: last, .. }) = &again {
            (info.since, info.rollback_of) = (last.since, last.rollback_of.or(info.rollback_of));
            info.changed.clone_from(&last.changed);
        }
        let kept = Kept { info, rules: Some(rules(objects)) };
        self.writer.write(self.path(generation), &kept);
        if let Some(last) = again.filter(|last| last.info.generation != generation) {
            self.writer.remove(self.path(last.info.generation));
        }
        self.generations.push(kept);
        while self.generations.len() > KEPT {
            let oldest = self.generations.remove(0);
            self.writer.remove(self.path(oldest.info.generation));
        }
    }

    /// The objects of a generation; `None`: there is none of that number any more.
    pub fn objects(&self, generation: u32) -> Result<Option<Objects>, StoreError> {
        let kept = self.generations.iter().find(|g| g.info.generation == generation);
        if let Some(rules) = kept.and_then(|k| k.rules.clone()) {
            return Ok(Some(rules));
        }
        let body: Option<Body> = store::read_json(&self.path(generation))?;
        Ok(body.map(|b| b.objects))
    }

    /// Newest first; the first is in force.
    pub fn list(&self) -> Vec<GenerationInfo> {
        self.generations.iter().rev().map(Kept::told).collect()
    }

    /// One of [`Self::list`].
    pub fn told(&self, generation: u32) -> Option<GenerationInfo> {
        self.generations.iter().find(|g| g.info.generation == generation).map(Kept::told)
    }

    /// The generation before the one in force.
    pub fn previous(&self) -> Option<u32> {
        self.generations.iter().rev().nth(1).map(|g| g.info.generation)
    }

    /// What a restart would not know.
    pub fn failure(&self) -> Option<ObjectError> {
        self.writer.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
}

/// Writes and removes files in order, aside. What was asked for is done when it is dropped.
#[derive(Debug)]
struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Of the last round of writing.
    failure: Failure,
}

/// The file that could not be written, and why.
type Failure = Arc<Mutex<Option<ObjectError>>>;

#[derive(Debug)]
struct Job {
    path: PathBuf,
    /// None: the file is to go.
    record: Option<(GenerationInfo, Objects)>,
}

impl Writer {
    fn start() -> Self {
        let (jobs, asked) = mpsc::channel();
        let failure = Failure::default();
        let told = failure.clone();
        let thread =
            thread::Builder::new().name("history".into()).spawn(move || write_all(&asked, &told)).ok();
        Self { jobs: Some(jobs), thread, failure }
    }

    fn write(&self, path: PathBuf, kept: &Kept) {
        let record = kept.rules.clone().map(|rules| (kept.info.clone(), rules));
        self.ask(Job { path, record });
    }

    fn remove(&self, path: PathBuf) {
        self.ask(Job { path, record: None });
    }

    fn ask(&self, job: Job) {
        // Without its thread there is nobody to remember anything.
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            error!("cannot remember what is in force: the thread that writes it is gone");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(asked: &mpsc::Receiver<Job>, told: &Failure) {
    while let Ok(first) = asked.recv() {
        let mut last: Vec<Job> = Vec::new();
        for job in [first].into_iter().chain(asked.try_iter()) {
            last.retain(|j| j.path != job.path);
            last.push(job);
        }
        let mut failure = None;
        for job in last {
            if let Err(e) = write_one(&job) {
                error!(error = %e, "{UNWRITTEN}");
                failure = Some(ObjectError {
                    file: Some(job.path.display().to_string()),
                    object: None,
                    field: None,
                    message: format!("{UNWRITTEN}: {e}"),
                });
            }
        }
        *told.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

const UNWRITTEN: &str =
    "cannot remember what is in force; a restart would not keep refused objects' last versions";

fn write_one(Job { path, record }: &Job) -> Result<(), StoreError> {
    let Some((info, objects)) = record else {
        return match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { path: path.clone(), source: e })
            }
            _ => Ok(()),
        };
    };
    let info = GenerationInfo { objects: names(objects), ..info.clone() };
    store::write_json(path, &Record { info: &info, objects })
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

/// What going back brings back.
fn rules(objects: &Objects) -> Objects {
    Objects { pods: Named::new(), namespaces: Named::new(), nodes: Named::new(), ..objects.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::NetworkGroupSpec;
    use bulkhead_policy::Sourced;

    fn objects(groups: &[(&str, &str)]) -> Objects {
        let group = |cidr: &str| {
            let spec = NetworkGroupSpec { cidrs: vec![cidr.parse().unwrap()] };
            Arc::new(Sourced::new(spec, Some("groups.yaml:1".into())))
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
        history.record(switched(1), &Objects::default(), &a);
        history.record(switched(2), &a, &b);
        drop(history);
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
        history.record(switched(1), &Objects::default(), &a);
        history.record(switched(2), &a, &a);
        drop(history);
        let list = History::open(dir.path()).unwrap().0.list();
        assert_eq!(list.iter().map(|g| (g.generation, g.since)).collect::<Vec<_>>(), [(2, 10)]);
        assert_eq!(list[0].changed, ["+NetworkGroup/vms"]);
    }

    #[test]
    fn what_cannot_be_written_is_told_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let (a, b) = (objects(&[("vms", "10.0.0.0/8")]), objects(&[("vms", "10.0.0.0/9")]));
        let blocked = history.path(1);
        fs::create_dir(&blocked).unwrap();
        history.record(switched(1), &Objects::default(), &a);
        while history.failure().is_none() {
            thread::yield_now();
        }
        assert_eq!(history.failure().unwrap().file.as_deref(), blocked.to_str());
        history.record(switched(2), &a, &b);
        while history.failure().is_some() {
            thread::yield_now();
        }
    }

    #[test]
    fn the_oldest_generations_are_forgotten_and_a_hold_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let mut before = Objects::default();
        for n in 1..=12u32 {
            let after = objects(&[("vms", &format!("10.{n}.0.0/16"))]);
            history.record(switched(n), &before, &after);
            before = after;
        }
        history.hold(Some(11)).unwrap();
        drop(history);
        let (history, _) = History::open(dir.path()).unwrap();
        assert_eq!(history.list().len(), KEPT);
        assert_eq!(history.objects(2).unwrap(), None);
        assert_eq!(history.held(), Some(11));
    }
}
