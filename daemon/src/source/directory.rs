//! A directory of YAML files as source: the same kinds as the API server's, without Kubernetes.
//!
//! A file that cannot be read as objects leaves what it held before in force; its error is told once. Files are read
//! when their writer closes or renames them, so that a half-written one is not seen. The last readable version of every
//! file is on disk, so that a new daemon knows it too. Names that begin with a dot or do not end in `.yaml`, `.yml` or
//! `.json` are passed over. What a change costs grows with the files that it touches, not with those that are there.

mod follow;

pub(super) use follow::is_finished_change;
pub use follow::watch;

use super::{Object, Snapshot, parse};
use crate::store::{self, StoreError};
use bulkhead_api::messages::ObjectError;
use bulkhead_policy::files::{self, Kind, is_object_file};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::warn;

/// Looks at the directory also without an event: a network file system has none.
const RESCAN: Duration = Duration::from_secs(10);

/// What a file looked like when it was read.
type Stamp = (i64, i64, u64, u64);

#[derive(Debug)]
struct File {
    stamp: Stamp,
    /// Of its last readable version.
    objects: Vec<Object>,
    error: Option<ObjectError>,
}

/// The directory as last seen. No watching in here: [`Directory::scan`] is called by whoever knows when.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Where the last readable version of each file is kept, in a file of its name.
    memory: PathBuf,
    files: BTreeMap<String, File>,
    /// Files whose last readable version is not written down yet.
    unwritten: BTreeSet<String>,
    /// Of all files, but for what stands twice.
    snapshot: Snapshot,
    twice: Vec<ObjectError>,
}

impl Directory {
    /// Knows what `memory` holds of files that are still there; [`Self::scan`] must follow.
    ///
    /// # Errors
    /// When `memory` is there and cannot be read: to go on without it could loosen what is in force.
    pub fn open(path: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let (path, memory) = (path.into(), memory.into());
        let never = Stamp::default();
        let known = store::read_all_json::<Vec<Object>>(&memory)?.into_iter();
        let files = known.map(|(n, objects)| (n, File { stamp: never, objects, error: None })).collect();
        let (unwritten, snapshot, twice) = Default::default();
        let mut directory = Self { path, memory, files, unwritten, snapshot, twice };
        directory.rebuild();
        Ok(directory)
    }

    /// Reads what has changed; says whether anything had. [`Self::remember`] must follow.
    ///
    /// # Errors
    /// When the directory itself cannot be listed; what was known stays.
    pub fn scan(&mut self) -> io::Result<bool> {
        let mut names: BTreeSet<String> = self.files.keys().cloned().collect();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().to_str().map(str::to_string));
        }
        Ok(self.look_at(names))
    }

    /// As [`Self::scan`], of these files alone.
    pub fn look_at(&mut self, names: BTreeSet<String>) -> bool {
        let (mut changed, mut gone) = (BTreeMap::new(), Vec::new());
        let folder = follow::identity(&self.path);
        for name in names.into_iter().filter(|name| is_object_file(name)) {
            let path = self.path.join(&name);
            if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                gone.push(name);
            } else if let Some(before) = self.scan_file(&name, &path) {
                changed.insert(name, before);
            }
        }
        // Where another folder has come in its place meanwhile, or none, its files are not gone: the next look is at that one.
        if folder.is_some() && follow::identity(&self.path) == folder {
            for name in gone {
                changed.extend(self.files.remove(&name).map(|file| (name, file.objects)));
            }
        }
        self.unwritten.extend(changed.keys().cloned());
        let followed = changed.is_empty()
            || self.twice.is_empty() && changed.iter().all(|(name, before)| self.follow(name, before));
        if !followed {
            self.rebuild();
        }
        !changed.is_empty()
    }

    /// What the file held before makes room for what it holds now. False where that needs a look at all files: an object
    /// stands twice, or has moved from one file to another.
    fn follow(&mut self, name: &str, before: &[Object]) -> bool {
        let now = self.files.get(name).map_or(&[][..], |file| &file.objects);
        let [old, new] = [before, now].map(|objects| objects.iter().map(Object::id).collect::<BTreeSet<_>>());
        let is_elsewhere = |id: &(Kind, &str)| !old.contains(id) && self.snapshot.has(id.0, id.1);
        // Of this kind there is one, whatever its name.
        let is_single = |id: &(Kind, &str)| id.0 == Kind::BgpConfiguration;
        if new.len() != now.len() || new.iter().any(is_elsewhere) || old.union(&new).any(is_single) {
            return false;
        }
        for (kind, name) in old.difference(&new) {
            self.snapshot.remove(*kind, name);
        }
        for object in now {
            if !self.snapshot.holds(object) {
                self.snapshot.insert(object.clone());
            }
        }
        true
    }

    fn rebuild(&mut self) {
        let files = self.files.iter().map(|(name, file)| (name.as_str(), file.objects.as_slice()));
        (self.snapshot, self.twice) = files::snapshot(files);
    }

    /// Writes down what was read since, and what could not be written before. It waits for the disk: whoever is to hear of a
    /// change hears of it first. A daemon that is killed in between reads the file again; only one that has broken meanwhile
    /// has the objects of the version before.
    pub fn remember(&mut self) {
        if self.unwritten.is_empty() {
            return;
        }
        let now = |name: &String| (name.clone(), self.files.get(name).map(|file| &file.objects));
        match store::write_all_json(&self.memory, self.unwritten.iter().map(now)) {
            Ok(()) => self.unwritten.clear(),
            Err(e) => {
                warn!(error = %e, "cannot remember the objects; a restart would not know those of files that broke since");
            }
        }
    }

    /// What it held before, if it was read anew.
    fn scan_file(&mut self, name: &str, path: &Path) -> Option<Vec<Object>> {
        let stamp = match fs::metadata(path) {
            Ok(m) if m.is_file() => (m.mtime(), m.mtime_nsec(), m.ino(), m.len()),
            _ => return None,
        };
        let known = self.files.get(name);
        if known.is_some_and(|f| f.stamp == stamp) {
            return None;
        }
        // Somebody has just begun to write it anew, and another file's change woke us: it is whole when it is closed.
        if stamp.3 == 0 && known.is_some_and(|f| !f.objects.is_empty()) && is_recent(stamp.0) {
            return None;
        }
        let parsed = fs::read_to_string(path)
            .map_err(|e| ObjectError {
                file: Some(name.to_string()),
                object: None,
                field: None,
                message: format!("cannot be read: {e}"),
            })
            .and_then(|text| parse(name, &text));
        let file = self.files.entry(name.to_string()).or_insert_with(|| File {
            stamp,
            objects: Vec::new(),
            error: None,
        });
        file.stamp = stamp;
        match parsed {
            Ok(objects) => {
                file.error = None;
                let objects = shared(objects, &file.objects);
                Some(mem::replace(&mut file.objects, objects))
            }
            Err(error) => {
                file.error = Some(error);
                Some(file.objects.clone())
            }
        }
    }

    /// All objects of all files. An object that stands twice is refused where it stands second.
    pub fn snapshot(&self) -> (Snapshot, Vec<ObjectError>) {
        let unreadable = self.files.values().filter_map(|file| file.error.clone());
        (self.snapshot.clone(), unreadable.chain(self.twice.iter().cloned()).collect())
    }
}

/// The objects in the memory that those before have already, where they are the same.
fn shared(objects: Vec<Object>, before: &[Object]) -> Vec<Object> {
    let known: BTreeMap<_, _> = before.iter().map(|object| (object.id(), object)).collect();
    let same = |object: Object| match known.get(&object.id()) {
        Some(known) if **known == object => (*known).clone(),
        _ => object,
    };
    let mut objects: Vec<Object> = objects.into_iter().map(same).collect();
    objects.shrink_to_fit();
    objects
}

/// Whether this time of the file's last change (Unix time, seconds) is so near that its writer may not be done.
fn is_recent(changed: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.abs_diff(changed.unsigned_abs()) < RESCAN.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const GROUP: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\nspec: {cidrs: [10.0.0.0/8]}\n";

    /// What a daemon has read and written down.
    fn remembered(dir: &Path, memory: &Path) {
        let mut directory = Directory::open(dir, memory).unwrap();
        directory.scan().unwrap();
        directory.remember();
    }

    fn names(directory: &Directory) -> Vec<String> {
        directory.snapshot().0.policy.network_groups.keys().cloned().collect()
    }

    #[test]
    fn a_file_that_breaks_leaves_its_objects_in_force_and_one_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vms.yaml");
        fs::write(&file, GROUP).unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(dir.path(), state.path().join("objects")).unwrap();
        assert!(directory.scan().unwrap());
        fs::write(&file, &GROUP[..GROUP.len() - 8]).unwrap();
        assert!(directory.scan().unwrap());
        assert_eq!(names(&directory), ["vms"]);
        assert_eq!(directory.snapshot().1.len(), 1);
        assert!(!directory.scan().unwrap(), "the same broken file is no news");
        fs::write(&file, GROUP.replace("vms", "machines")).unwrap();
        directory.scan().unwrap();
        assert_eq!((names(&directory), directory.snapshot().1), (vec!["machines".to_string()], vec![]));
    }

    #[test]
    fn a_file_that_was_just_truncated_to_be_written_anew_keeps_its_objects() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = dir.path().join("vms.yaml");
        fs::write(&path, GROUP).unwrap();
        let mut directory = Directory::open(dir.path(), state.path().join("objects")).unwrap();
        directory.scan().unwrap();
        let file = fs::File::create(&path).unwrap();
        assert!(!directory.scan().unwrap());
        assert_eq!(names(&directory), ["vms"]);
        // Nobody goes on: it is meant to be empty.
        file.set_modified(SystemTime::now() - 2 * RESCAN).unwrap();
        assert!(directory.scan().unwrap());
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn a_removed_file_takes_its_objects_along() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vms.yaml"), GROUP).unwrap();
        fs::write(dir.path().join(".vms.yaml.swp"), "x: [").unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(dir.path(), state.path().join("objects")).unwrap();
        directory.scan().unwrap();
        fs::remove_file(dir.path().join("vms.yaml")).unwrap();
        assert!(directory.scan().unwrap());
        assert_eq!(directory.snapshot(), (Snapshot::default(), vec![]));
    }

    #[test]
    fn a_file_that_broke_before_a_restart_keeps_its_objects_after_it() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (file, memory) = (dir.path().join("vms.yaml"), state.path().join("objects"));
        fs::write(&file, GROUP).unwrap();
        remembered(dir.path(), &memory);
        fs::write(&file, "kind: [").unwrap();
        let mut restarted = Directory::open(dir.path(), &memory).unwrap();
        restarted.scan().unwrap();
        assert_eq!(names(&restarted), ["vms"]);
        assert_eq!(restarted.snapshot().1.len(), 1);
    }

    #[test]
    fn what_could_not_be_remembered_is_remembered_as_soon_as_it_can_be() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (file, memory) = (dir.path().join("vms.yaml"), state.path().join("objects"));
        fs::write(&file, GROUP).unwrap();
        // What stands in the way of a folder, as a full disk stands in the way of a file.
        fs::write(&memory, "").unwrap();
        let mut directory = Directory {
            memory: memory.clone(),
            ..Directory::open(dir.path(), state.path().join("none")).unwrap()
        };
        assert!(directory.scan().unwrap());
        directory.remember();
        fs::remove_file(&memory).unwrap();
        assert!(!directory.scan().unwrap(), "the file is as it was");
        directory.remember();
        fs::write(&file, "kind: [").unwrap();
        let mut restarted = Directory::open(dir.path(), &memory).unwrap();
        restarted.scan().unwrap();
        assert_eq!(names(&restarted), ["vms"]);
    }

    #[test]
    fn an_object_that_is_the_same_after_a_restart_is_kept_once() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let memory = state.path().join("objects");
        fs::write(dir.path().join("vms.yaml"), GROUP).unwrap();
        remembered(dir.path(), &memory);
        let mut directory = Directory::open(dir.path(), &memory).unwrap();
        directory.scan().unwrap();
        let Object::NetworkGroup(_, kept) = &directory.files["vms.yaml"].objects[0] else { panic!() };
        assert!(Arc::ptr_eq(kept, &directory.snapshot.policy.network_groups["vms"]));
    }

    #[test]
    fn while_an_object_stands_twice_a_look_that_finds_nothing_new_makes_nothing_new() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("a.yaml"), GROUP).unwrap();
        fs::write(dir.path().join("b.yaml"), GROUP).unwrap();
        let mut directory = Directory::open(dir.path(), state.path().join("objects")).unwrap();
        directory.scan().unwrap();
        let before = directory.snapshot().0;
        assert!(!directory.scan().unwrap());
        assert!(before.policy.network_groups.ptr_eq(&directory.snapshot().0.policy.network_groups));
    }

    #[test]
    fn an_object_that_stands_twice_is_refused_in_the_second_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), GROUP).unwrap();
        fs::write(dir.path().join("b.yaml"), GROUP).unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(dir.path(), state.path().join("objects")).unwrap();
        directory.scan().unwrap();
        let errors = directory.snapshot().1;
        assert_eq!(errors.len(), 1);
        assert_eq!(
            errors[0].to_string(),
            "b.yaml: NetworkGroup/vms: metadata.name: stands in a.yaml already: remove one of the two"
        );
    }

    /// Files are written, broken and removed at random, and objects move between them: what is followed is what is read anew.
    #[test]
    fn what_is_followed_is_what_a_look_at_all_files_finds() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut directory = Directory::open(dir.path(), state.path().join("objects")).unwrap();
        let mut chance = 7u64;
        let mut next = |n: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % n
        };
        let mut twice = 0;
        for step in 0..400 {
            let file = dir.path().join(format!("{}.yaml", next(4)));
            let object =
                |n: u64| GROUP.replace("vms", &format!("g{n}")).replace("10.0", &format!("10.{step}"));
            match next(6) {
                0 => drop(fs::remove_file(&file)),
                1 => fs::write(&file, "kind: [").unwrap(),
                _ => {
                    let text: Vec<String> = (0..next(4)).map(|_| object(next(9))).collect();
                    fs::write(&file, text.join("---\n")).unwrap();
                    // A change within one tick of the file system's clock would be none; an empty file may be half written.
                    let changed = SystemTime::now() - 2 * RESCAN - Duration::from_secs(step);
                    fs::File::options().write(true).open(&file).unwrap().set_modified(changed).unwrap();
                }
            }
            // Now all are looked at, now the one that an event names.
            let name = file.file_name().unwrap().to_str().unwrap().to_string();
            match next(2) {
                0 => drop(directory.scan().unwrap()),
                _ => drop(directory.look_at([name].into())),
            }
            directory.remember();
            let followed = directory.snapshot();
            directory.rebuild();
            assert_eq!(followed, directory.snapshot(), "step {step}");
            twice += usize::from(!directory.twice.is_empty());
            let known = Directory::open(dir.path(), state.path().join("objects")).unwrap();
            assert_eq!(known.snapshot, directory.snapshot, "step {step}, on disk");
        }
        assert!((50..350).contains(&twice), "{twice} steps with an object that stands twice");
    }
}
