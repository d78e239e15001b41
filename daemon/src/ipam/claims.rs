//! Which node has which block. Creating the object named after the block is the lock: whoever comes second finds it there.
//!
//! [`ClaimFiles`] is the standalone form: one YAML file a block, in a directory that the nodes share. In a cluster the objects
//! are the API server's (`ClaimObjects`).

use super::allocator::overlap;
use bulkhead_api::objects::{API_VERSION, IPBlockSpec, block_name};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::{self, File},
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
};

const KIND: &str = "IPBlock";
/// Locked by who claims.
const TURN: &str = ".lock";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The block is this node's (also where it was before), and no other claim overlaps it.
    Won,
    /// Another node or partition has it.
    Taken,
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: is not an IPBlock: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{claim}: is claimed by node {found}, not by {node}")]
    NotOurs { claim: String, found: String, node: String },
    #[error("Node/{0}: the cluster has no such node, so nothing can be claimed for it")]
    NoNode(String),
    #[error("{what}: {reason}")]
    Api { what: String, reason: String },
}

/// Who has which block; shared by all nodes.
pub trait BlockClaims {
    fn claim(&self, block: &IPBlockSpec) -> impl Future<Output = Result<Claim, ClaimError>> + Send;
    /// Succeeds also where there is no such claim; refuses to touch another node's.
    fn release(&self, block: &IPBlockSpec) -> impl Future<Output = Result<(), ClaimError>> + Send;
    /// Removes what a daemon of this node left half done; there is one of it, and it does not claim meanwhile.
    fn tidy(&self, node: &str) -> impl Future<Output = Result<(), ClaimError>> + Send;
    /// Whose exactly this block is; nobody's where there is none.
    fn get(&self, cidr: IpNetwork) -> impl Future<Output = Result<Option<IPBlockSpec>, ClaimError>> + Send;
    /// Of all nodes.
    fn list(&self) -> impl Future<Output = Result<Vec<IPBlockSpec>, ClaimError>> + Send;
    /// Of this node, as far as can be known now.
    fn of_node(&self, node: &str) -> impl Future<Output = Result<Vec<IPBlockSpec>, ClaimError>> + Send;
    /// What this node had claimed when it was last known, whatever has become of it. What it had lost is of no node.
    fn remembered(&self) -> Vec<IPBlockSpec>;
    /// So that a daemon that comes later does not take it for its own.
    fn remember_lost(&self, block: &IPBlockSpec);
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockFile {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: IPBlockSpec,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    name: String,
}

/// A directory of claims.
#[derive(Clone, Debug)]
pub struct ClaimFiles {
    dir: PathBuf,
}

impl ClaimFiles {
    /// Makes the directory where it is missing.
    pub fn new(dir: PathBuf) -> Result<Self, ClaimError> {
        fs::create_dir_all(&dir).map_err(|source| ClaimError::Io { path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// A directory that nodes share may be a slow one, and who claims waits for his turn: the runtime's threads do not.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ClaimError> + Send + 'static,
    ) -> Result<T, ClaimError> {
        let files = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        done.unwrap_or_else(|e| Err(ClaimError::Io { path: self.dir.clone(), source: io::Error::other(e) }))
    }

    fn path(&self, block: &IPBlockSpec) -> PathBuf {
        self.dir.join(format!("{}.yaml", block_name(block.cidr)))
    }

    fn read_all(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
        let io_error = |source| ClaimError::Io { path: self.dir.clone(), source };
        let mut blocks = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if path.extension() == Some(OsStr::new("yaml")) && !hidden {
                blocks.extend(read(&path)?);
            }
        }
        Ok(blocks)
    }

    /// Held until it is dropped.
    fn turn(&self) -> Result<File, ClaimError> {
        let path = self.dir.join(TURN);
        let file = File::options().create(true).append(true).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| ClaimError::Io { path, source })
    }

    /// The file appears under its name with its whole content, or not at all: `link` does not replace.
    fn create(&self, block: &IPBlockSpec) -> io::Result<Claim> {
        let text = serde_saphyr::to_string(&BlockFile {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            metadata: Metadata { name: block_name(block.cidr) },
            spec: block.clone(),
        })
        .map_err(io::Error::other)?;
        let temporary = self.dir.join(format!("{}{}", temporaries_of(&block.node), unique()));
        let linked = File::create_new(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::hard_link(&temporary, self.path(block)));
        let removed = fs::remove_file(&temporary);
        match linked {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return removed.map(|()| Claim::Taken),
            other => other.and(removed)?,
        }
        File::open(&self.dir)?.sync_all()?;
        Ok(Claim::Won)
    }

    fn claim_block(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
        let path = self.path(block);
        // Claims that overlap under different names are told apart by looking, so nobody may come in between.
        let _turn = self.turn()?;
        if self.read_all()?.iter().any(|b| b.cidr != block.cidr && overlap(b.cidr, block.cidr)) {
            return Ok(Claim::Taken);
        }
        match self.create(block) {
            Ok(Claim::Taken) if read(&path)?.as_ref() == Some(block) => Ok(Claim::Won),
            result => result.map_err(|source| ClaimError::Io { path, source }),
        }
    }

    fn release_block(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
        let path = self.path(block);
        match read(&path)? {
            None => return Ok(()),
            Some(found) if found.node != block.node => {
                let claim = path.display().to_string();
                return Err(ClaimError::NotOurs { claim, found: found.node, node: block.node.clone() });
            }
            Some(_) => {}
        }
        let removed = fs::remove_file(&path).and_then(|()| File::open(&self.dir)?.sync_all());
        removed.map_err(|source| ClaimError::Io { path, source })
    }

    /// Files whose names begin so.
    fn remove_all(&self, prefix: &str) -> Result<(), ClaimError> {
        let io_error = |source| ClaimError::Io { path: self.dir.clone(), source };
        for entry in fs::read_dir(&self.dir).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                fs::remove_file(entry.path()).map_err(io_error)?;
            }
        }
        Ok(())
    }
}

/// What the names of a node's temporary files begin with. No node's name has a `~`.
fn temporaries_of(node: &str) -> String {
    format!(".{node}~")
}

/// Differs between nodes that share the directory, and between attempts.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{}", std::process::id(), now.as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn read(path: &Path) -> Result<Option<IPBlockSpec>, ClaimError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ClaimError::Io { path: path.into(), source }),
    };
    let unreadable = |reason: String| ClaimError::Unreadable { path: path.into(), reason };
    let file: BlockFile = serde_saphyr::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
    if file.api_version != API_VERSION || file.kind != KIND {
        return Err(unreadable(format!("it says {}/{}", file.api_version, file.kind)));
    }
    Ok(Some(file.spec))
}

impl BlockClaims for ClaimFiles {
    async fn claim(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
        let block = block.clone();
        self.aside(move |files| files.claim_block(&block)).await
    }

    async fn release(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
        let block = block.clone();
        self.aside(move |files| files.release_block(&block)).await
    }

    async fn tidy(&self, node: &str) -> Result<(), ClaimError> {
        let temporaries = temporaries_of(node);
        self.aside(move |files| files.remove_all(&temporaries)).await
    }

    async fn get(&self, cidr: IpNetwork) -> Result<Option<IPBlockSpec>, ClaimError> {
        self.aside(move |files| read(&files.dir.join(format!("{}.yaml", block_name(cidr))))).await
    }

    async fn list(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
        self.aside(Self::read_all).await
    }

    async fn of_node(&self, node: &str) -> Result<Vec<IPBlockSpec>, ClaimError> {
        let mut blocks = self.list().await?;
        blocks.retain(|b| b.node == node);
        Ok(blocks)
    }

    /// Nobody but its node removes a file.
    fn remembered(&self) -> Vec<IPBlockSpec> {
        Vec::new()
    }

    fn remember_lost(&self, _: &IPBlockSpec) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(node: &str) -> IPBlockSpec {
        IPBlockSpec { cidr: "10.1.0.0/26".parse().unwrap(), partition: "web".into(), node: node.into() }
    }

    #[tokio::test]
    async fn a_claim_is_an_object_that_people_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        assert_eq!(claims.claim(&block("n1")).await.unwrap(), Claim::Won);
        let text = fs::read_to_string(dir.path().join("10-1-0-0-26.yaml")).unwrap();
        for line in
            ["apiVersion: bulkhead.dev/v1alpha1", "kind: IPBlock", "name: 10-1-0-0-26", "partition: web"]
        {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(claims.list().await.unwrap(), [block("n1")]);
        let stays = fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().file_name() != TURN);
        assert_eq!(stays.count(), 1, "no temporary stays");
    }

    #[tokio::test]
    async fn a_second_claim_is_ours_again_or_taken() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        claims.claim(&block("n1")).await.unwrap();
        assert_eq!(claims.claim(&block("n1")).await.unwrap(), Claim::Won);
        assert_eq!(claims.claim(&block("n2")).await.unwrap(), Claim::Taken);
    }

    #[tokio::test]
    async fn what_overlaps_a_claim_under_another_name_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        let of = |cidr: &str, node: &str| IPBlockSpec { cidr: cidr.parse().unwrap(), ..block(node) };
        claims.claim(&of("10.1.0.7/32", "n1")).await.unwrap();
        assert_eq!(claims.claim(&block("n2")).await.unwrap(), Claim::Taken);
        assert_eq!(claims.claim(&of("10.1.0.64/26", "n2")).await.unwrap(), Claim::Won);
        assert_eq!(claims.claim(&of("10.1.0.64/27", "n1")).await.unwrap(), Claim::Taken);
    }

    #[tokio::test]
    async fn nobody_else_waits_while_a_claim_waits_for_another_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        let turn = claims.turn().unwrap();
        let (one, ours) = (claims.clone(), block("n1"));
        let claim = tokio::spawn(async move { one.claim(&ours).await });
        // The runtime of this test has one thread.
        assert!(claims.list().await.unwrap().is_empty() && !claim.is_finished());
        drop(turn);
        assert_eq!(claim.await.unwrap().unwrap(), Claim::Won);
    }

    #[tokio::test]
    async fn a_node_releases_only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        claims.claim(&block("n1")).await.unwrap();
        assert!(matches!(claims.release(&block("n2")).await, Err(ClaimError::NotOurs { .. })));
        claims.release(&block("n1")).await.unwrap();
        claims.release(&block("n1")).await.unwrap();
        assert!(claims.list().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_half_done_goes_and_other_nodes_attempts_stay() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        for name in [".n1~1-2-3", ".n10~1-2-3", ".n1-a~1-2-3"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        claims.tidy("n1").await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(!dir.path().join(".n1~1-2-3").exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_block_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let claims = ClaimFiles::new(dir.path().into()).unwrap();
        fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();
        assert!(claims.list().await.unwrap_err().to_string().contains("broken.yaml"));
    }
}
