//! What was in force on this node, since when, and from which objects; and whether the source is held.
//!
//! One file, `<state>/generations/log.jsonl`: the oldest generation that can be brought back with all its rules, and behind it
//! of each what differs from the one before. The last line is what is in force: a refused change leaves it so, also over a
//! restart. A generation is its rules; which pods, namespaces and nodes there are is no matter of going back.
//!
//! A thread of its own writes: nobody waits for the disk. A daemon that is killed in that moment comes back with the rules of
//! the generation before for what is refused.

mod log;

use crate::store::{self, StoreError};
use bulkhead_api::messages::{GenerationInfo, ObjectError};
use bulkhead_policy::{Objects, changes, names};
use std::{
    fs,
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

/// A generation that was switched to.
#[derive(Clone, Copy, Debug)]
pub struct Switched {
    pub generation: u32,
    /// Unix time, seconds.
    pub since: u64,
    /// The generation whose objects these are, when they were brought back.
    pub rollback_of: Option<u32>,
}

/// The generations, oldest first, and which of them is held.
type OnDisk = (Vec<(GenerationInfo, Objects)>, Option<u32>);

fn read(dir: &Path) -> Result<OnDisk, StoreError> {
    Ok((log::read(dir)?, store::read_json(&dir.join(HELD_FILE))?.unwrap_or_default()))
}

impl History {
    /// The history on disk, and the objects that were in force last.
    pub fn open(state: &Path) -> Result<(Self, Option<Objects>), StoreError> {
        let dir = state.join(store::GENERATIONS);
        fs::create_dir_all(&dir).map_err(|source| StoreError::Io { path: dir.clone(), source })?;
        let (on_disk, held) = read(&dir)?;
        let objects = on_disk.last().map(|(_, objects)| objects.clone());
        let kept = |(info, _)| Kept { info, rules: None };
        let generations = on_disk.into_iter().map(kept).collect();
        let writer = Writer::start(dir.clone());
        Ok((Self { dir, generations, held, writer }, objects))
    }

    /// Whether [`Self::open`] could read what is on disk; nothing is made.
    pub fn check(state: &Path) -> Result<(), StoreError> {
        let dir = state.join(store::GENERATIONS);
        match dir.try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => read(&dir).map(drop),
            Err(source) => Err(StoreError::Io { path: dir, source }),
        }
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
        // Where the pins were lost, numbers begin again: what bore this one before cannot be named any more.
        self.generations.retain(|g| g.info.generation != generation);
        let kept = Kept { info, rules: Some(rules(objects)) };
        self.writer.write(&kept, again.is_some());
        self.generations.push(kept);
        let gone = self.generations.len().saturating_sub(KEPT);
        self.generations.drain(..gone);
    }

    /// The objects of a generation; `None`: there is none of that number any more.
    pub fn objects(&self, generation: u32) -> Result<Option<Objects>, StoreError> {
        let kept = self.generations.iter().find(|g| g.info.generation == generation);
        if let Some(rules) = kept.and_then(|k| k.rules.clone()) {
            return Ok(Some(rules));
        }
        if kept.is_none() {
            return Ok(None);
        }
        let on_disk = log::read(&self.dir)?;
        Ok(on_disk.into_iter().find(|(info, _)| info.generation == generation).map(|(_, objects)| objects))
    }

    /// Newest first; the first is in force.
    pub fn list(&self) -> Vec<GenerationInfo> {
        self.generations.iter().rev().map(Kept::told).collect()
    }

    /// Whether nothing has ever been in force.
    pub fn is_empty(&self) -> bool {
        self.generations.is_empty()
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
}

/// Writes in order, aside. What was asked for is done when it is dropped.
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
    info: GenerationInfo,
    rules: Objects,
    /// In place of the generation before.
    instead: bool,
}

impl Writer {
    fn start(dir: PathBuf) -> Self {
        let (jobs, asked) = mpsc::channel();
        let failure = Failure::default();
        let told = failure.clone();
        let thread =
            thread::Builder::new().name("history".into()).spawn(move || write_all(dir, &asked, &told)).ok();
        Self { jobs: Some(jobs), thread, failure }
    }

    fn write(&self, kept: &Kept, instead: bool) {
        let Some(rules) = kept.rules.clone() else { return };
        let job = Job { info: kept.info.clone(), rules, instead };
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

fn write_all(dir: PathBuf, asked: &mpsc::Receiver<Job>, told: &Failure) {
    let mut log = log::Log::of(dir);
    while let Ok(first) = asked.recv() {
        for Job { info, rules, instead } in [first].into_iter().chain(asked.try_iter()) {
            log.push(info, rules, instead);
        }
        let failure = log.write().err().map(|e| {
            error!(error = %e, "{UNWRITTEN}");
            ObjectError {
                file: Some(log.path().display().to_string()),
                object: None,
                field: None,
                message: format!("{UNWRITTEN}: {e}"),
            }
        });
        *told.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

const UNWRITTEN: &str =
    "cannot remember what is in force; a restart would not keep refused objects' last versions";

/// What going back brings back; and of facts those that the node's configuration says, by which a daemon that starts knows its
/// ranges before anybody tells it anything.
fn rules(objects: &Objects) -> Objects {
    let Objects { default_pod_cidrs, cluster_dns, cluster_dns_ports, .. } = objects.clone();
    let facts = Objects { default_pod_cidrs, cluster_dns, cluster_dns_ports, ..Objects::default() };
    facts.ruled_by(objects.clone())
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
    fn a_number_that_is_given_out_again_names_the_newer_generation() {
        let dir = tempfile::tempdir().unwrap();
        let of = |cidr: &str| objects(&[("vms", cidr)]);
        let [a, b, c, d] = ["10.0.0.0/8", "10.0.0.0/9", "10.0.0.0/10", "10.0.0.0/11"].map(of);
        let (mut history, _) = History::open(dir.path()).unwrap();
        history.record(switched(1), &Objects::default(), &a);
        history.record(switched(2), &a, &b);
        history.record(switched(3), &b, &c);
        drop(history);
        // The pins were lost: numbers begin again.
        let (mut history, _) = History::open(dir.path()).unwrap();
        history.record(switched(1), &c, &c);
        history.record(switched(2), &c, &d);
        history.record(switched(3), &d, &a);
        let held = |history: &History| {
            assert_eq!(history.previous(), Some(2));
            assert_eq!(history.objects(2).unwrap().as_ref(), Some(&d));
            assert_eq!(history.list().iter().map(|g| g.generation).collect::<Vec<_>>(), [3, 2, 1]);
        };
        held(&history);
        drop(history);
        held(&History::open(dir.path()).unwrap().0);
    }

    #[test]
    fn what_cannot_be_written_is_told_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let (a, b) = (objects(&[("vms", "10.0.0.0/8")]), objects(&[("vms", "10.0.0.0/9")]));
        let blocked = history.dir.join("log.jsonl");
        fs::create_dir(&blocked).unwrap();
        history.record(switched(1), &Objects::default(), &a);
        while history.failure().is_none() {
            thread::yield_now();
        }
        assert_eq!(history.failure().unwrap().file.as_deref(), blocked.to_str());
        fs::remove_dir(&blocked).unwrap();
        history.record(switched(2), &a, &b);
        while history.failure().is_some() {
            thread::yield_now();
        }
        drop(history);
        // And with it what could not be written before.
        let (history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!((in_force, history.objects(1).unwrap()), (Some(b), Some(a)));
    }

    #[test]
    fn a_change_is_written_as_what_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let groups: Vec<(String, String)> =
            (0..200).map(|n| (format!("group-{n}"), format!("10.{n}.0.0/16"))).collect();
        let with = |edited: &str| {
            let groups =
                groups.iter().map(|(n, c)| (n.as_str(), if n == "group-7" { edited } else { c.as_str() }));
            objects(&groups.collect::<Vec<_>>())
        };
        let mut before = Objects::default();
        let mut states = Vec::new();
        for n in 1..=40u32 {
            let after = with(&format!("11.{n}.0.0/16"));
            history.record(switched(n), &before, &after);
            states.push(after.clone());
            before = after;
        }
        drop(history);
        let log = fs::read_to_string(dir.path().join("generations/log.jsonl")).unwrap();
        let lengths: Vec<usize> = log.lines().map(str::len).collect();
        assert!(lengths[1..].iter().all(|length| *length < lengths[0] / 10), "{lengths:?}");
        let (history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!(in_force.as_ref(), states.last());
        assert_eq!(history.list().len(), KEPT);
        assert_eq!(history.objects(35).unwrap().as_ref(), Some(&states[34]));
    }

    #[test]
    fn a_line_that_was_cut_off_is_no_generation_and_the_next_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        let (a, b) = (objects(&[("vms", "10.0.0.0/8")]), objects(&[("vms", "10.0.0.0/9")]));
        history.record(switched(1), &Objects::default(), &a);
        history.record(switched(2), &a, &b);
        drop(history);
        let path = dir.path().join("generations/log.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        let (mut history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!(in_force.as_ref(), Some(&a));
        history.record(switched(3), &a, &b);
        drop(history);
        let (history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!((in_force, history.objects(1).unwrap()), (Some(b), Some(a)));
    }

    /// What is in force and can be brought back, as a daemon that starts with these files knows it; and whether it goes on.
    fn as_read(files: &[(&str, &[u8])], goes_on: bool) -> Vec<(u32, Objects)> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("generations")).unwrap();
        for (name, content) in files {
            fs::write(dir.path().join("generations").join(name), content).unwrap();
        }
        let (mut history, in_force) = History::open(dir.path()).unwrap();
        let numbers: Vec<_> = history.list().iter().map(|g| g.generation).collect();
        let of = |history: &History, n: u32| (n, history.objects(n).unwrap().unwrap());
        let read: Vec<_> = numbers.iter().map(|n| of(&history, *n)).collect();
        assert_eq!(in_force.as_ref(), read.first().map(|(_, objects)| objects));
        if !goes_on {
            return read;
        }
        let next = objects(&[("next", "10.9.0.0/16")]);
        history.record(switched(99), &in_force.unwrap_or_default(), &next);
        drop(history);
        let (history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!(in_force, Some(next));
        for (number, objects) in &read {
            assert_eq!(history.objects(*number).unwrap().as_ref(), Some(objects));
        }
        read
    }

    #[test]
    fn a_daemon_that_dies_anywhere_in_a_write_leaves_the_generation_before_it_or_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generations/log.jsonl");
        let file = |name: &str, cidr: &str| {
            let spec = NetworkGroupSpec { cidrs: vec![cidr.parse().unwrap()] };
            let group = Arc::new(Sourced::new(spec, Some(format!("{name}.yaml:1"))));
            Objects {
                network_groups: [("vms".to_string(), group)].into_iter().collect(),
                ..Objects::default()
            }
        };
        let states = [file("grün", "10.0.0.0/8"), file("größer", "10.0.0.0/9"), file("weiß", "10.0.0.0/10")];
        let (mut log, mut written) = (log::Log::of(dir.path().join("generations")), vec![Vec::new()]);
        fs::create_dir(dir.path().join("generations")).unwrap();
        for (n, state) in states.iter().enumerate() {
            let info = serde_json::json!({"generation": n + 1, "since": n, "rollbackOf": null, "objects": [], "changed": []});
            // The last one in place of the one before it.
            log.push(serde_json::from_value(info).unwrap(), state.clone(), n == 2);
            log.write().unwrap();
            written.push(fs::read(&path).unwrap());
        }
        let expected = |lines: usize| match lines {
            0 => vec![],
            1 => vec![(1, states[0].clone())],
            2 => vec![(2, states[1].clone()), (1, states[0].clone())],
            _ => vec![(3, states[2].clone()), (1, states[0].clone())],
        };
        for lines in 1..written.len() {
            let (before, after) = (&written[lines - 1], &written[lines]);
            assert!(after.starts_with(before), "the others are appended");
            for cut in before.len()..after.len() {
                let found = as_read(&[("log.jsonl", &after[..cut])], cut % 32 == 0);
                assert_eq!(found, expected(lines - 1), "line {lines}, cut off at octet {cut}");
            }
            assert_eq!(as_read(&[("log.jsonl", after)], true), expected(lines));
            // The file system had given it its length, and not its content.
            let mut hole = before.clone();
            hole.resize(after.len(), 0);
            assert_eq!(as_read(&[("log.jsonl", &hole)], true), expected(lines - 1));
            // Made anew: the other file is half there, or has taken the name and those before it are not removed.
            for cut in (0..after.len()).step_by(7) {
                let found = as_read(&[("log.jsonl", before), ("log.json.tmp", &after[..cut])], false);
                assert_eq!(found, expected(lines - 1));
            }
            let old = serde_json::json!({"info": {"generation": 7, "since": 7, "rollbackOf": null, "objects": [], "changed": []}, "objects": {}});
            assert_eq!(
                as_read(&[("log.jsonl", after), ("7.json", old.to_string().as_bytes())], true),
                expected(lines)
            );
        }
    }

    #[test]
    fn what_an_older_daemon_wrote_a_file_a_generation_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("generations");
        fs::create_dir(&files).unwrap();
        let (a, b) = (objects(&[("vms", "10.0.0.0/8")]), objects(&[("vms", "10.0.0.0/9")]));
        for (generation, objects) in [(9, &a), (12, &b)] {
            let info = serde_json::json!({"generation": generation, "since": generation, "rollbackOf": null, "objects": [], "changed": []});
            let text = serde_json::json!({"info": info, "objects": objects}).to_string();
            fs::write(files.join(format!("{generation}.json")), text).unwrap();
        }
        let (mut history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!((in_force.as_ref(), history.objects(9).unwrap().as_ref()), (Some(&b), Some(&a)));
        history.record(switched(13), &b, &a);
        drop(history);
        let (history, in_force) = History::open(dir.path()).unwrap();
        assert_eq!(in_force, Some(a.clone()));
        assert_eq!(history.list().iter().map(|g| g.generation).collect::<Vec<_>>(), [13, 12, 9]);
        assert_eq!(fs::read_dir(&files).unwrap().count(), 1);
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
