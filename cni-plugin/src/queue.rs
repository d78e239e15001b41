//! DELs that the daemon could not be asked for, one file each in `<stateDir>/pending-del/`; the daemon carries them
//! out when it starts.
//!
//! A file named `*.json` is whole: it is written aside, synced and renamed, and the directory is synced, before the
//! runtime is told that the DEL is done. What does not end in `.json` is to be ignored.

use bulkhead_api::messages::{AttachmentId, Detach};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub fn put(state_dir: &Path, detach: &Detach) -> io::Result<()> {
    let dir = directory(state_dir);
    fs::create_dir_all(&dir)?;
    // A container id begins with a letter or digit, so that no other file has this name.
    let aside = dir.join(format!(".{}.{}", name(&detach.id), std::process::id()));
    let written = write(&aside, detach).and_then(|()| fs::rename(&aside, dir.join(name(&detach.id))));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
        return written;
    }
    // Both: the directory may be new.
    sync(&dir)?;
    sync(state_dir)
}

pub fn holds(state_dir: &Path, id: &AttachmentId) -> bool {
    directory(state_dir).join(name(id)).exists()
}

/// Not being there is no error.
pub fn remove(state_dir: &Path, id: &AttachmentId) -> io::Result<()> {
    let dir = directory(state_dir);
    match fs::remove_file(dir.join(name(id))) {
        Ok(()) => sync(&dir),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("pending-del")
}

fn name(id: &AttachmentId) -> String {
    format!("{}-{}.json", id.container_id, id.ifname)
}

fn write(path: &Path, detach: &Detach) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(detach)?)?;
    file.sync_all()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detach(container: &str) -> Detach {
        let id = AttachmentId { container_id: container.into(), ifname: "eth0".into() };
        Detach { id, netns: Some("/var/run/netns/a".into()) }
    }

    fn files(state: &Path) -> Vec<String> {
        let entry = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(state.join("pending-del")).unwrap().map(entry).collect();
        names.sort();
        names
    }

    #[test]
    fn a_queued_del_is_one_whole_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("not/yet/there");
        for d in [detach("c1"), detach("c2"), detach("c1")] {
            put(&state, &d).unwrap();
        }
        assert_eq!(files(&state), ["c1-eth0.json", "c2-eth0.json"]);
        let read: Detach =
            serde_json::from_slice(&fs::read(state.join("pending-del/c1-eth0.json")).unwrap()).unwrap();
        assert_eq!(read, detach("c1"));
    }

    #[test]
    fn a_settled_del_is_gone_and_may_be_settled_again() {
        let dir = tempfile::tempdir().unwrap();
        let d = detach("c1");
        assert!(!holds(dir.path(), &d.id));
        remove(dir.path(), &d.id).unwrap();
        put(dir.path(), &d).unwrap();
        assert!(holds(dir.path(), &d.id));
        remove(dir.path(), &d.id).unwrap();
        remove(dir.path(), &d.id).unwrap();
        assert!(!holds(dir.path(), &d.id));
    }

    #[test]
    fn a_del_that_cannot_be_kept_is_an_error_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let d = detach("c1");
        fs::create_dir_all(dir.path().join("pending-del/c1-eth0.json")).unwrap();
        assert!(put(dir.path(), &d).is_err());
        assert_eq!(files(dir.path()), ["c1-eth0.json"]);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(put(&dir.path().join("file"), &d).is_err());
    }
}
