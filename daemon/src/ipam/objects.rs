//! Claims as `IPBlock` objects: the API server lets one of a name be made, so making it is the lock. Of two that overlap under
//! different names the later one gives way.
//!
//! A block belongs to its node's `Node` object, with which the cluster's garbage collector removes it. What this node has
//! claimed is remembered on disk, so that a daemon that starts while the API server is away still knows its blocks.

use super::{
    allocator::overlap,
    claims::{BlockClaims, Claim, ClaimError},
};
use crate::{source::kubernetes::reason, store};
use bulkhead_api::objects::{AddressBlock, IPBlockSpec, block_name};
use ipnetwork::IpNetwork;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use std::{path::PathBuf, time::Duration};
use tracing::warn;

/// A pod waits meanwhile: better to fail, and be tried again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAGE: u32 = 500;
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;

#[derive(Clone)]
pub struct ClaimObjects {
    blocks: Api<AddressBlock>,
    nodes: Api<Node>,
    memory: PathBuf,
}

impl ClaimObjects {
    /// `memory` is the file that remembers this node's blocks.
    pub fn new(client: Client, memory: PathBuf) -> Self {
        Self { blocks: Api::all(client.clone()), nodes: Api::all(client), memory }
    }

    async fn owner(&self, node: &str) -> Result<OwnerReference, ClaimError> {
        let object = ask(&format!("Node/{node}"), self.nodes.get_opt(node)).await?;
        let object = object.ok_or_else(|| ClaimError::NoNode(node.into()))?;
        Ok(OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.into(),
            uid: object.uid().unwrap_or_default(),
            ..OwnerReference::default()
        })
    }

    async fn all(&self) -> Result<Vec<AddressBlock>, ClaimError> {
        let mut blocks = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = ask("IPBlocks", self.blocks.list(&page)).await?;
            blocks.extend(list.items);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(blocks),
            }
        }
    }

    /// That very object, and no other node's that took its name meanwhile.
    async fn delete(&self, block: &AddressBlock) -> Result<(), ClaimError> {
        let name = block.name_any();
        let what = format!("IPBlock/{name}");
        let preconditions = Preconditions { uid: block.uid(), resource_version: block.resource_version() };
        let delete = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match asked(&what, self.blocks.delete(&name, &delete)).await? {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, NOT_FOUND) => Ok(()),
            Err(e) => Err(refused(&what, &e)),
        }
    }

    /// Reads, changes and writes what is remembered.
    fn remember(&self, change: impl FnOnce(&mut Vec<IPBlockSpec>)) {
        let written = store::read_json::<Vec<IPBlockSpec>>(&self.memory).and_then(|known| {
            let mut blocks = known.clone().unwrap_or_default();
            change(&mut blocks);
            // Without the file a start would not know that there was none.
            if known.as_ref() == Some(&blocks) { Ok(()) } else { store::write_json(&self.memory, &blocks) }
        });
        if let Err(e) = written {
            warn!(error = %e, "cannot remember this node's blocks; a restart without the API server would not know them");
        }
    }

    fn forget(&self, cidr: IpNetwork) {
        self.remember(|blocks| blocks.retain(|b| b.cidr != cidr));
    }
}

impl BlockClaims for ClaimObjects {
    async fn claim(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
        let name = block_name(block.cidr);
        let mut object = AddressBlock::new(&name, block.clone());
        object.metadata.owner_references = Some(vec![self.owner(&block.node).await?]);
        let what = format!("IPBlock/{name}");
        let ours = match asked(&what, self.blocks.create(&PostParams::default(), &object)).await? {
            Ok(created) => Some(created),
            // Also when our own request came through and its answer did not.
            Err(e) if has_code(&e, CONFLICT) => {
                let found = ask(&what, self.blocks.get_opt(&name)).await?;
                found.filter(|found| found.spec == *block)
            }
            Err(e) => return Err(refused(&what, &e)),
        };
        let Some(ours) = ours else {
            self.forget(block.cidr);
            return Ok(Claim::Taken);
        };
        if comes_later(&ours, &self.all().await?) {
            self.delete(&ours).await?;
            self.forget(block.cidr);
            return Ok(Claim::Taken);
        }
        self.remember(|blocks| {
            blocks.retain(|b| b.cidr != block.cidr);
            blocks.push(block.clone());
        });
        Ok(Claim::Won)
    }

    async fn release(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
        let name = block_name(block.cidr);
        let what = format!("IPBlock/{name}");
        if let Some(found) = ask(&what, self.blocks.get_opt(&name)).await? {
            if found.spec.node != block.node {
                self.forget(block.cidr);
                return Err(ClaimError::NotOurs {
                    claim: what,
                    found: found.spec.node,
                    node: block.node.clone(),
                });
            }
            self.delete(&found).await?;
        }
        self.forget(block.cidr);
        Ok(())
    }

    /// Nothing is ever half done: an object is there or not.
    async fn tidy(&self, _: &str) -> Result<(), ClaimError> {
        Ok(())
    }

    async fn get(&self, cidr: IpNetwork) -> Result<Option<IPBlockSpec>, ClaimError> {
        let name = block_name(cidr);
        let found = ask(&format!("IPBlock/{name}"), self.blocks.get_opt(&name)).await?;
        // One that is on its way out is nobody's to announce.
        Ok(found.filter(|block| block.metadata.deletion_timestamp.is_none()).map(|block| block.spec))
    }

    async fn list(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
        Ok(self.all().await?.into_iter().map(|block| block.spec).collect())
    }

    async fn of_node(&self, node: &str) -> Result<Vec<IPBlockSpec>, ClaimError> {
        match self.list().await {
            Ok(mut blocks) => {
                blocks.retain(|b| b.node == node);
                // Those that are remembered and gone stay: see `Ipam::load`.
                self.remember(|known| {
                    known.retain(|k| !blocks.iter().any(|b| b.cidr == k.cidr));
                    known.extend_from_slice(&blocks);
                });
                Ok(blocks)
            }
            Err(error) => {
                let known = store::read_json::<Vec<IPBlockSpec>>(&self.memory).ok().flatten();
                let mut blocks = known.ok_or(error)?;
                blocks.retain(|b| b.node == node);
                warn!(
                    blocks = blocks.len(),
                    "the API server cannot be asked for this node's blocks: those remembered count"
                );
                Ok(blocks)
            }
        }
    }

    fn remembered(&self) -> Vec<IPBlockSpec> {
        store::read_json(&self.memory).ok().flatten().unwrap_or_default()
    }

    fn remember_lost(&self, block: &IPBlockSpec) {
        self.remember(|blocks| match blocks.iter_mut().find(|b| b.cidr == block.cidr) {
            Some(known) => known.node.clear(),
            None => blocks.push(IPBlockSpec { node: String::new(), ..block.clone() }),
        });
    }
}

/// Whether a claim that overlaps `ours` was there before it. Claims of different sizes have different names, so that creating
/// is no lock between them: nodes may differ for a moment on what `fixedCIDRs` is. Whoever lists after creating sees all
/// that came before him. Claims are never changed, so that their versions say in which order they were made; times would
/// not: two may have the same, and two API servers different clocks.
fn comes_later(ours: &AddressBlock, all: &[AddressBlock]) -> bool {
    let version = |block: &AddressBlock| block.resource_version()?.parse::<u64>().ok();
    let own = version(ours);
    let others = all.iter().filter(|other| other.name_any() != ours.name_any());
    others.filter(|other| overlap(other.spec.cidr, ours.spec.cidr)).any(|other| version(other) <= own)
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn refused(what: &str, error: &kube::Error) -> ClaimError {
    ClaimError::Api { what: what.into(), reason: reason(error) }
}

/// The answer, whatever it is, within [`PATIENCE`].
async fn asked<T>(
    what: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<kube::Result<T>, ClaimError> {
    let late = |_| ClaimError::Api { what: what.into(), reason: format!("no answer within {PATIENCE:?}") };
    tokio::time::timeout(PATIENCE, request).await.map_err(late)
}

async fn ask<T>(what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, ClaimError> {
    asked(what, request).await?.map_err(|e| refused(what, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::Ipam;

    fn spec(cidr: &str) -> IPBlockSpec {
        IPBlockSpec { cidr: cidr.parse().unwrap(), partition: "web".into(), node: "n1".into() }
    }

    /// Nobody listens there.
    fn unreachable(dir: &std::path::Path) -> ClaimObjects {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        ClaimObjects::new(Client::try_from(nowhere).unwrap(), dir.join("blocks.json"))
    }

    #[tokio::test]
    async fn that_there_is_no_block_is_remembered_too() {
        let dir = tempfile::tempdir().unwrap();
        let claims = unreachable(dir.path());
        assert!(claims.of_node("n1").await.is_err());
        claims.remember(|_| {});
        assert_eq!(claims.of_node("n1").await.unwrap(), []);
    }

    #[tokio::test]
    async fn without_an_api_server_what_was_lost_is_lost_still() {
        let dir = tempfile::tempdir().unwrap();
        let claims = unreachable(dir.path());
        let (lost, ours) = (spec("10.1.0.0/26"), spec("10.1.0.64/26"));
        claims.remember(|blocks| *blocks = vec![lost.clone(), ours.clone()]);
        claims.remember_lost(&lost);
        let ipam = Ipam::load(claims, "n1").await.unwrap();
        assert_eq!(ipam.blocks().keys().collect::<Vec<_>>(), [&ours.cidr]);
        assert_eq!(ipam.lost().keys().collect::<Vec<_>>(), [&lost.cidr]);
    }
}
