//! Follows the directory of objects: what the kernel tells of it becomes looks at files.

use super::{Directory, RESCAN};
use crate::source::Observed;
use bulkhead_policy::files::is_object_file;
use notify::{
    EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::{Notify, watch};
use tracing::{error, warn};

/// Reads the directory now, and again after every change, until the receiver is gone.
///
/// # Errors
/// When the directory cannot be listed or watched at the start.
pub fn watch(path: &Path, memory: &Path) -> io::Result<watch::Receiver<Observed>> {
    let news = Arc::new(News::default());
    let heard = news.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
        Ok(event) if is_finished_change(&event.kind) => heard.of(&event.paths),
        Ok(_) => {}
        Err(_) => heard.of(&[]),
    })
    .map_err(io::Error::other)?;
    watcher.watch(path, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
    let mut directory = Directory::open(path, memory).map_err(io::Error::other)?;
    directory.scan()?;
    let (sender, receiver) = watch::channel(observe(&directory));
    directory.remember();
    let mut watched = identity(path);
    tokio::spawn(async move {
        loop {
            let told = tokio::select! {
                told = news.next() => told,
                () = tokio::time::sleep(RESCAN) => Told::All,
                () = sender.closed() => return,
            };
            // Another folder under the same name: the kernel still watches the one that went.
            let now = identity(&directory.path);
            let is_watched = now.is_some() && now == watched;
            if now.is_some() && !is_watched {
                // It knows nothing any more of a folder that is gone.
                let _ = watcher.unwatch(&directory.path);
                match watcher.watch(&directory.path, RecursiveMode::NonRecursive) {
                    Ok(()) => watched = now,
                    Err(e) => warn!(path = %directory.path.display(), error = %e, "cannot watch the objects"),
                }
            }
            let changed = match told {
                // Files are gone where their folder is not: a folder that is missing as a whole has told nothing.
                Told::Of(names) if is_watched => Ok(directory.look_at(names)),
                _ => directory.scan(),
            };
            match changed {
                Ok(true) => drop(sender.send_replace(observe(&directory))),
                Ok(false) => {}
                Err(e) => {
                    warn!(path = %directory.path.display(), error = %e, "cannot list the objects; what is in force stays")
                }
            }
            // It waits for the disk, and whoever was just told waits on this thread.
            let remembered = tokio::task::spawn_blocking(move || {
                directory.remember();
                directory
            });
            directory = match remembered.await {
                Ok(directory) => directory,
                Err(e) => {
                    return error!(error = %e, "writing down what was observed ended unexpectedly; the daemon ends, too");
                }
            };
        }
    });
    Ok(receiver)
}

/// Which folder this is, whatever it is called.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn observe(directory: &Directory) -> Observed {
    let noticed = Instant::now();
    let (snapshot, errors) = directory.snapshot();
    Observed { snapshot: Some(snapshot), errors, versions: Arc::default(), noticed }
}

/// What is to be looked at.
#[derive(Debug, PartialEq)]
enum Told {
    Of(BTreeSet<String>),
    All,
}

/// From the watcher's thread to whoever looks: what has changed since the last look.
#[derive(Debug, Default)]
struct News {
    told: Mutex<Option<Told>>,
    wake: Notify,
}

impl News {
    /// No path: something was missed.
    fn of(&self, paths: &[PathBuf]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = object_files(paths) else {
            *told = Some(Told::All);
            return self.wake.notify_one();
        };
        match told.get_or_insert_with(|| Told::Of(BTreeSet::new())) {
            Told::Of(all) => all.extend(names),
            Told::All => {}
        }
        self.wake.notify_one();
    }

    async fn next(&self) -> Told {
        loop {
            self.wake.notified().await;
            if let Some(told) = self.told.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return told;
            }
        }
    }
}

/// The files that paths of an event name. None: all may be others, as where a link to a folder was replaced through which
/// they are reached (a mounted ConfigMap).
fn object_files(paths: &[PathBuf]) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in paths {
        let name = path.file_name()?.to_str()?;
        if is_object_file(name) {
            names.insert(name.to_string());
        } else if fs::symlink_metadata(path).is_ok_and(|m| !m.is_file()) {
            return None;
        }
    }
    (!paths.is_empty()).then_some(names)
}

pub(in crate::source) fn is_finished_change(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_)
            | EventKind::Other
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\nspec: {cidrs: [10.0.0.0/8]}\n";

    #[test]
    fn an_event_names_the_files_to_look_at_or_all_where_more_may_be_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let of = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
        fs::write(at(".vms.yaml.swp"), "").unwrap();
        std::os::unix::fs::symlink("..2026", at("..data")).unwrap();
        assert_eq!(object_files(&[at(".vms.yaml.new"), at("vms.yaml")]), of(&["vms.yaml"]));
        assert_eq!(object_files(&[at(".vms.yaml.swp")]), of(&[]));
        assert_eq!(object_files(&[at("..data")]), None);
        assert_eq!(object_files(&[]), None);
    }

    #[tokio::test]
    async fn files_that_are_reached_through_a_folder_that_is_replaced_are_observed_without_a_rescan() {
        let dir = tempfile::tempdir().unwrap();
        let version = |name: &str, text: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("vms.yaml"), text).unwrap();
            std::os::unix::fs::symlink(name, dir.path().join("..data_tmp")).unwrap();
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        };
        version("..1", GROUP);
        std::os::unix::fs::symlink("..data/vms.yaml", dir.path().join("vms.yaml")).unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut observed = watch(dir.path(), &state.path().join("objects")).unwrap();
        version("..2", &GROUP.replace("vms", "machines"));
        let renamed = observed
            .wait_for(|o| o.snapshot.as_ref().unwrap().policy.network_groups.contains_key("machines"));
        tokio::time::timeout(RESCAN / 2, renamed).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_written_file_is_observed_without_a_rescan() {
        let dir = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut observed = watch(dir.path(), &state.path().join("objects")).unwrap();
        fs::write(dir.path().join("vms.yaml"), GROUP).unwrap();
        tokio::time::timeout(RESCAN / 2, observed.changed()).await.unwrap().unwrap();
        assert!(observed.borrow().snapshot.as_ref().unwrap().policy.network_groups.contains_key("vms"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_observed_is_told_on_while_the_disk_has_not_remembered_it_yet() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Whoever writes into it waits until somebody reads.
        let slow = state.path().join("vms.yaml.json.tmp");
        nix::unistd::mkfifo(&slow, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut observed = watch(dir.path(), state.path()).unwrap();
        let told = tokio::spawn(async move { observed.changed().await });
        tokio::task::yield_now().await;
        fs::write(dir.path().join("vms.yaml"), GROUP).unwrap();
        let told = tokio::time::timeout(RESCAN / 2, told).await;
        let _reader = fs::File::options().read(true).write(true).open(&slow).unwrap();
        // Refused, as what is no file cannot be synced.
        while slow.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        told.expect("nobody was told").unwrap().unwrap();
    }
}
