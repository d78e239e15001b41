//! The blocks that all nodes have claimed, beside what a directory of objects tells: in a cluster they are objects as all others.

use super::{Object, Observed, directory::is_finished_change, parse};
use bulkhead_api::objects::IPBlockSpec;
use bulkhead_policy::{Named, files::is_object_file};
use notify::{RecursiveMode, Watcher};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tracing::warn;

/// Looks at the directory also without an event: a network file system has none.
const RESCAN: Duration = Duration::from_secs(10);

/// A claim is a file that appears whole and never changes; under its name another one may come.
type Stamp = (u64, i64, i64);

struct Blocks {
    dir: PathBuf,
    files: BTreeMap<String, Stamp>,
    /// By the name of the file.
    blocks: Named<IPBlockSpec>,
}

impl Blocks {
    /// Says whether anything had changed.
    fn scan(&mut self) -> io::Result<bool> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Given back since it was listed.
            let Ok(metadata) = entry.metadata() else { continue };
            if is_object_file(&name) {
                files.insert(name, (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()));
            }
        }
        if files == self.files {
            return Ok(false);
        }
        for name in self.files.keys().filter(|name| !files.contains_key(*name)) {
            self.blocks.remove(name);
        }
        let changed = files.iter().filter(|(name, stamp)| self.files.get(*name) != Some(stamp));
        let mut unread = Vec::new();
        for name in changed.map(|(name, _)| name.clone()) {
            match read(&self.dir.join(&name)) {
                Ok(Some(block)) => drop(self.blocks.insert(name, block)),
                Ok(None) => drop(self.blocks.remove(&name)),
                // What is known of it stays, and the next scan tries again.
                Err(e) => {
                    warn!(file = name, error = %e, "cannot read a block; tried again");
                    unread.push(name);
                }
            }
        }
        self.files = files;
        for name in unread {
            self.files.remove(&name);
        }
        Ok(true)
    }
}

/// None: it is no claim, of which whoever claims blocks tells, or gone.
fn read(path: &Path) -> io::Result<Option<Arc<IPBlockSpec>>> {
    let text = match fs::read_to_string(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            return Ok(None);
        }
        text => text?,
    };
    let objects = parse("", &text).unwrap_or_default();
    Ok(objects.into_iter().find_map(|object| match object {
        Object::IpBlock(_, block) => Some(block),
        _ => None,
    }))
}

/// What is observed, with the blocks in `dir`, until the receiver is gone.
///
/// # Errors
/// When the directory cannot be listed or watched at the start.
pub fn with_blocks(
    mut observed: watch::Receiver<Observed>,
    dir: &Path,
) -> io::Result<watch::Receiver<Observed>> {
    let (wake, mut woken) = mpsc::channel::<()>(1);
    let mut watcher = notify::recommended_watcher(move |event| {
        if may_be_change(&event) {
            // Full: a scan is due already.
            let _ = wake.try_send(());
        }
    })
    .map_err(io::Error::other)?;
    watcher.watch(dir, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
    let mut blocks = Blocks { dir: dir.into(), files: BTreeMap::new(), blocks: Named::new() };
    blocks.scan()?;
    let (sender, receiver) = watch::channel(joined(&observed.borrow_and_update(), &blocks));
    tokio::spawn(async move {
        let _watcher = watcher;
        loop {
            let claims = tokio::select! {
                changed = observed.changed() => {
                    if changed.is_err() { return }
                    false
                }
                _ = woken.recv() => true,
                () = tokio::time::sleep(RESCAN) => true,
                () = sender.closed() => return,
            };
            if claims {
                // The directory may be a slow one.
                let scan = tokio::task::spawn_blocking(move || {
                    let scanned = blocks.scan();
                    (blocks, scanned)
                });
                let Ok((scanned_blocks, scanned)) = scan.await else { return };
                blocks = scanned_blocks;
                match scanned {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(e) => {
                        warn!(path = %blocks.dir.display(), error = %e, "cannot list the blocks; what is known of them stays");
                        continue;
                    }
                }
            }
            let mut now = joined(&observed.borrow_and_update(), &blocks);
            if claims {
                now.noticed = Instant::now();
            }
            sender.send_replace(now);
        }
    });
    Ok(receiver)
}

/// The kernel also tells of what a scan itself does, which opens files. A claim appears by a link, whole.
fn may_be_change(event: &notify::Result<notify::Event>) -> bool {
    event.as_ref().map_or(true, |e| e.kind.is_create() || is_finished_change(&e.kind))
}

fn joined(observed: &Observed, blocks: &Blocks) -> Observed {
    let mut observed = observed.clone();
    if let Some(snapshot) = &mut observed.snapshot {
        snapshot.blocks = blocks.blocks.clone();
    }
    observed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::{BlockClaims, ClaimFiles};
    use notify::{
        EventKind,
        event::{AccessKind, AccessMode, CreateKind, RemoveKind},
    };

    fn block(cidr: &str, node: &str) -> IPBlockSpec {
        IPBlockSpec { cidr: cidr.parse().unwrap(), partition: "web".into(), node: node.into() }
    }

    async fn told(of: &mut watch::Receiver<Observed>, wanted: &[&str]) {
        let says = |observed: &Observed| {
            let blocks = &observed.snapshot.as_ref().unwrap().blocks;
            blocks.values().map(|b| format!("{} {}", b.cidr, b.node)).collect::<Vec<_>>() == wanted
        };
        let wait = tokio::time::timeout(RESCAN / 2, of.wait_for(says));
        wait.await.unwrap_or_else(|_| panic!("never told: {wanted:?}")).unwrap();
    }

    #[test]
    fn a_scan_does_not_wake_the_next_one() {
        let event = |kind| may_be_change(&Ok(notify::Event::new(kind)));
        assert!(!event(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!event(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(event(EventKind::Create(CreateKind::File)) && event(EventKind::Remove(RemoveKind::File)));
        assert!(may_be_change(&Err(notify::Error::generic("events were lost"))));
    }

    #[tokio::test]
    async fn a_claim_is_told_when_it_is_made_given_back_and_made_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        claims.claim(&block("10.1.0.0/26", "n1")).await.unwrap();
        let (_objects, observed) = watch::channel(Observed::nothing());
        let mut told_of = with_blocks(observed, dir.path()).unwrap();
        told(&mut told_of, &["10.1.0.0/26 n1"]).await;
        claims.claim(&block("10.1.0.64/26", "n2")).await.unwrap();
        told(&mut told_of, &["10.1.0.0/26 n1", "10.1.0.64/26 n2"]).await;
        claims.release(&block("10.1.0.0/26", "n1")).await.unwrap();
        claims.claim(&block("10.1.0.0/26", "n2")).await.unwrap();
        told(&mut told_of, &["10.1.0.0/26 n2", "10.1.0.64/26 n2"]).await;
    }
}
