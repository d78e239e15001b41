//! Endpoint records on disk, written so that power loss leaves the old or the new, and the DELs that the plugin queued
//! while the daemon was down.
//!
//! ```text
//! <state>/lock                                     held by the one daemon that owns the folder
//! <state>/endpoints/<containerid>-<ifname>.json    one record an attachment
//! <state>/objects/<file>.json                      the last readable version of each file of the objects' directory
//! <state>/pending-del/*.json                       messages::Detach, written by bulkhead-cni
//! ```

use bulkhead_api::messages::{AttachmentId, Detach};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: cannot be read as {what}: {source}", path.display())]
    Corrupt { path: PathBuf, what: &'static str, source: serde_json::Error },
    #[error(
        "{}: cannot be read ({source}): restore it from a backup, or drain the node and begin anew with \
         `bulkheadd --uninstall`", path.display()
    )]
    Forgotten { path: PathBuf, source: serde_json::Error },
    #[error("{}: another bulkheadd owns this state folder: stop it first", .0.display())]
    Owned(PathBuf),
    #[error("`{0}` cannot name a container or an interface")]
    Name(String),
    #[error("writing was interrupted: {0}")]
    Interrupted(String),
}

/// What an attachment is called on disk; everything else that is named after it is derived from this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// Container ids as the CNI specification has them (section "Parameters"), interface names as the kernel does.
    pub fn of(id: &AttachmentId) -> Result<Self, StoreError> {
        let container = &id.container_id;
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let starts_well = container.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !starts_well || container.len() > 200 || !container.bytes().all(fine) {
            return Err(StoreError::Name(container.clone()));
        }
        let ifname = &id.ifname;
        let bad = |b: u8| b == b'/' || b == b':' || b.is_ascii_whitespace() || b.is_ascii_control();
        if ifname.is_empty()
            || ifname.len() > 15
            || ifname == "."
            || ifname == ".."
            || ifname.bytes().any(bad)
        {
            return Err(StoreError::Name(ifname.clone()));
        }
        Ok(Self(format!("{container}-{ifname}")))
    }

    /// Of a record's file.
    pub fn of_stem(path: &Path) -> Option<Self> {
        Some(Self(path.file_stem()?.to_str()?.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a directory held.
#[derive(Debug)]
pub struct Loaded<T> {
    pub items: Vec<(PathBuf, T)>,
    /// One for each file that could not be read; it is left as it is.
    pub errors: Vec<StoreError>,
}

impl<T> Loaded<T> {
    /// The keys of unreadable records: what is wired under them is not without an owner.
    pub fn unreadable(&self) -> impl Iterator<Item = Key> {
        self.errors.iter().filter_map(|e| match e {
            StoreError::Corrupt { path, .. } | StoreError::Io { path, .. } => Key::of_stem(path),
            _ => None,
        })
    }
}

/// What two daemons must not do at once, one does: the owner of the state folder. The kernel gives it up with the process.
#[derive(Debug)]
pub struct Ownership {
    _lock: File,
}

impl Ownership {
    /// Makes the folder where it is missing.
    ///
    /// # Errors
    /// [`StoreError::Owned`] while another process is the owner.
    pub fn take(state: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(state).map_err(at(state))?;
        let path = state.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path).map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Owned(state.into())),
            Err(TryLockError::Error(e)) => Err(at(&path)(e)),
        }
    }
}

const LOCK: &str = "lock";
const ENDPOINTS: &str = "endpoints";
const PENDING: &str = "pending-del";
/// Of [`crate::history`].
pub const GENERATIONS: &str = "generations";
/// Of a directory as source.
pub const OBJECTS: &str = "objects";

/// Removes the whole state; a folder that is a mount point, or holds what is not ours, stays.
pub fn remove_all(state: &Path) -> Result<(), StoreError> {
    for dir in [ENDPOINTS, PENDING, GENERATIONS, OBJECTS].map(|d| state.join(d)) {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&dir)(e)),
            _ => {}
        }
    }
    let mut ours = files(state, "json")?;
    ours.extend(files(state, "tmp")?);
    ours.push(state.join(LOCK));
    ours.iter().try_for_each(|path| remove(path))?;
    let _ = fs::remove_dir(state);
    Ok(())
}

#[derive(Clone, Debug)]
pub struct Store {
    endpoints: PathBuf,
    pending: PathBuf,
}

impl Store {
    /// Makes the directories below `state` where they are missing.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let store = Self { endpoints: state.join(ENDPOINTS), pending: state.join(PENDING) };
        for dir in [&store.endpoints, &store.pending] {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        Ok(store)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.endpoints.join(format!("{}.json", key.0))
    }

    /// On disk when this returns.
    pub fn save<T: Serialize>(&self, key: &Key, record: &T) -> Result<(), StoreError> {
        write_json(&self.path(key), record)
    }

    /// Succeeds also where there is none.
    pub fn remove(&self, key: &Key) -> Result<(), StoreError> {
        remove(&self.path(key))
    }

    /// All records; removes what an interrupted `save` left.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Loaded<T>, StoreError> {
        for path in files(&self.endpoints, "tmp")? {
            remove(&path)?;
        }
        load(&self.endpoints, "an endpoint record")
    }

    /// Queued DELs. Files that the plugin is still writing have another extension.
    pub fn pending(&self) -> Result<Loaded<Detach>, StoreError> {
        load(&self.pending, "a queued DEL")
    }

    /// Whether a record could be written now.
    ///
    /// # Errors
    /// Why it could not.
    pub fn writable(&self) -> Result<(), StoreError> {
        let path = self.endpoints.join("probe.tmp");
        let written = File::create(&path).and_then(|mut file| file.write_all(&[0; RECORD]));
        // Not synced: should it come back, the next start removes it.
        let removed = fs::remove_file(&path);
        written.and(removed).map_err(at(&path))
    }

    /// A queued DEL was carried out.
    pub fn done(&self, pending: &Path) -> Result<(), StoreError> {
        remove(pending)
    }
}

/// Bytes that a record takes, about.
const RECORD: usize = 1024;

/// Writes a file whole: temporary file, sync, rename, sync of the directory. On disk when this returns.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), StoreError> {
    write_text(path, serde_json::to_vec_pretty(value))
}

/// Writes whole what speaks of the kernel's maps: it outlives the process, as they do, and like them not the machine. So
/// nobody waits for the disk. Dense: it is large, and nobody reads it.
pub fn write_beside_maps<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let mut staged = Staged::default();
    staged.write(path.into(), value)?;
    staged.rename()
}

fn write_text(path: &Path, text: serde_json::Result<Vec<u8>>) -> Result<(), StoreError> {
    let text = text.map_err(|source| StoreError::Corrupt { path: path.into(), what: "a record", source })?;
    write_whole(path, &text)
}

/// As [`write_json`], of what is text already.
pub fn write_whole(path: &Path, text: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("json.tmp");
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| path.parent().map_or(Ok(()), sync_dir));
    if written.is_err() {
        // On a full disk its room is wanted; where it cannot be removed it was not made.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(at(path))
}

/// Writes many files whole into one folder, which is made where it is not there, and removes those without a value. All
/// are on disk when this returns: each is the old or the new one whatever happens meanwhile.
pub fn write_all_json<T: Serialize>(
    dir: &Path,
    files: impl Iterator<Item = (String, Option<T>)>,
) -> Result<(), StoreError> {
    fs::create_dir_all(dir).map_err(at(dir))?;
    let mut staged = Staged::default();
    for (name, value) in files {
        let path = dir.join(format!("{name}.json"));
        match value {
            Some(value) => staged.write(path, &value)?,
            None => remove(&path)?,
        }
    }
    staged.commit(dir)
}

/// Temporary files and what they are to become; those that have not are removed when this goes.
#[derive(Default)]
struct Staged(Vec<(PathBuf, PathBuf)>);

impl Staged {
    fn write<T: Serialize>(&mut self, path: PathBuf, value: &T) -> Result<(), StoreError> {
        let text = serde_json::to_vec(value).map_err(|source| StoreError::Corrupt {
            path: path.clone(),
            what: "a record",
            source,
        })?;
        let temporary = path.with_extension("json.tmp");
        self.0.push((temporary.clone(), path.clone()));
        fs::write(&temporary, text).map_err(at(&path))
    }

    fn commit(mut self, dir: &Path) -> Result<(), StoreError> {
        let folder = File::open(dir).map_err(at(dir))?;
        match self.0.as_slice() {
            [] => return Ok(()),
            [(temporary, path)] => {
                File::open(temporary).and_then(|file| file.sync_all()).map_err(at(path))?;
            }
            _ => nix::unistd::syncfs(&folder).map_err(|e| at(dir)(e.into()))?,
        }
        self.rename()?;
        folder.sync_all().map_err(at(dir))
    }

    fn rename(&mut self) -> Result<(), StoreError> {
        while let Some((temporary, path)) = self.0.last() {
            fs::rename(temporary, path).map_err(at(path))?;
            self.0.pop();
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (temporary, _) in &self.0 {
            // On a full disk its room is wanted; where it cannot be removed it was not made.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// What [`write_all_json`] wrote into the folder, by name; nothing where there is no folder.
pub fn read_all_json<T: DeserializeOwned>(dir: &Path) -> Result<Vec<(String, T)>, StoreError> {
    let mut found = Vec::new();
    if !dir.try_exists().map_err(at(dir))? {
        return Ok(found);
    }
    for path in files(dir, "json")? {
        let name = path.file_stem().and_then(OsStr::to_str).map(str::to_string);
        if let (Some(name), Some(value)) = (name, read_json(&path)?) {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// `None` where there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path)(e)),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StoreError::Forgotten { path: path.into(), source }),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { path: path.into(), source }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The removal is on disk when this returns.
fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // A read-only file system refuses before it looks.
        Err(_) if path.try_exists().is_ok_and(|there| !there) => Ok(()),
        Err(e) => Err(at(path)(e)),
        Ok(()) => path.parent().map_or(Ok(()), |dir| sync_dir(dir).map_err(at(dir))),
    }
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if path.extension() == Some(OsStr::new(extension)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn load<T: DeserializeOwned>(dir: &Path, what: &'static str) -> Result<Loaded<T>, StoreError> {
    let mut loaded = Loaded { items: Vec::new(), errors: Vec::new() };
    for path in files(dir, "json")? {
        let read = fs::read(&path).map_err(at(&path)).and_then(|text| {
            serde_json::from_slice(&text).map_err(|source| StoreError::Corrupt {
                path: path.clone(),
                what,
                source,
            })
        });
        match read {
            Ok(item) => loaded.items.push((path, item)),
            Err(error) => loaded.errors.push(error),
        }
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str, ifname: &str) -> AttachmentId {
        AttachmentId { container_id: container.into(), ifname: ifname.into() }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_state_folder_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let owner = Ownership::take(&state).unwrap();
        let error = Ownership::take(&state).unwrap_err().to_string();
        assert!(error.contains("state: another bulkheadd"), "{error}");
        drop(owner);
        Ownership::take(&state).unwrap();
    }

    #[test]
    fn all_of_a_state_goes_and_what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        Store::open(&state).unwrap();
        write_json(&state.join("interner.json"), &1).unwrap();
        remove_all(&state).unwrap();
        assert!(!state.exists());
        Store::open(&state).unwrap();
        fs::write(state.join("notes.txt"), "").unwrap();
        remove_all(&state).unwrap();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::create_dir(&path).unwrap();
        write_json(&path, &1).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_many_files_of_which_one_cannot_be_written_no_temporary_is_left() {
        let dir = tempfile::tempdir().unwrap();
        // Written before it, and behind it; a folder in the way of the temporary, and of the file itself.
        for in_the_way in ["b.json.tmp", "b.json"] {
            fs::create_dir(dir.path().join(in_the_way)).unwrap();
            let files = ["a", "b", "c"].map(|name| (name.to_string(), Some(1)));
            write_all_json(dir.path(), files.into_iter()).unwrap_err();
            fs::remove_dir(dir.path().join(in_the_way)).unwrap();
            assert_eq!(files_of(dir.path(), "tmp"), 0, "{in_the_way}");
        }
        write_all_json(dir.path(), [("b".to_string(), Some(1))].into_iter()).unwrap();
        assert!(files_of(dir.path(), "json") >= 1);
    }

    fn files_of(dir: &Path, extension: &str) -> usize {
        files(dir, extension).unwrap().len()
    }

    #[test]
    fn a_record_comes_back_as_it_was_saved() {
        let (dir, store) = store();
        let key = Key::of(&id("c1", "eth0")).unwrap();
        store.save(&key, &id("c1", "eth0")).unwrap();
        store.save(&key, &id("c1", "eth1")).unwrap();
        let loaded = store.load::<AttachmentId>().unwrap();
        assert_eq!(loaded.items, [(dir.path().join("endpoints/c1-eth0.json"), id("c1", "eth1"))]);
        store.remove(&key).unwrap();
        store.remove(&key).unwrap();
        assert!(store.load::<AttachmentId>().unwrap().items.is_empty());
    }

    #[test]
    fn a_half_written_temporary_is_removed_and_no_error() {
        let (dir, store) = store();
        let temporary = dir.path().join("endpoints/c1-eth0.json.tmp");
        fs::write(&temporary, "{\"contai").unwrap();
        let loaded = store.load::<AttachmentId>().unwrap();
        assert!(loaded.items.is_empty() && loaded.errors.is_empty());
        assert!(!temporary.exists());
    }

    #[test]
    fn a_corrupt_record_is_named_and_the_others_are_loaded() {
        let (dir, store) = store();
        fs::write(dir.path().join("endpoints/bad-eth0.json"), "{").unwrap();
        store.save(&Key::of(&id("c1", "eth0")).unwrap(), &id("c1", "eth0")).unwrap();
        let loaded = store.load::<AttachmentId>().unwrap();
        assert_eq!(loaded.items.len(), 1);
        assert!(loaded.errors[0].to_string().contains("bad-eth0.json"));
        assert_eq!(loaded.unreadable().map(|k| k.0).collect::<Vec<_>>(), ["bad-eth0"]);
    }

    #[test]
    fn queued_dels_are_listed_until_done() {
        let (dir, store) = store();
        let queued = Detach { id: id("c1", "eth0"), netns: None };
        fs::write(dir.path().join("pending-del/x.json"), serde_json::to_vec(&queued).unwrap()).unwrap();
        fs::write(dir.path().join("pending-del/y.json.tmp"), "{").unwrap();
        let pending = store.pending().unwrap();
        assert_eq!(pending.items.len(), 1);
        assert_eq!(pending.items[0].1, queued);
        store.done(&pending.items[0].0).unwrap();
        assert!(store.pending().unwrap().items.is_empty());
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for (container, ifname) in [
            ("", "eth0"),
            ("../x", "eth0"),
            (".x", "eth0"),
            ("a/b", "eth0"),
            ("a", "../e"),
            ("a", ""),
            ("a", "averyverylongname"),
            ("a", "e 0"),
        ] {
            assert!(Key::of(&id(container, ifname)).is_err(), "{container} {ifname}");
        }
        assert_eq!(Key::of(&id("Ab_1.2-3", "eth0")).unwrap().as_str(), "Ab_1.2-3-eth0");
    }
}
