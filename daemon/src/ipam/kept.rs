//! Where this node's claims are kept: with the source's objects.

use super::{
    claims::{BlockClaims, Claim, ClaimError, ClaimFiles},
    objects::ClaimObjects,
};
use bulkhead_api::objects::IPBlockSpec;
use ipnetwork::IpNetwork;

#[derive(Clone)]
pub enum Claims {
    Files(ClaimFiles),
    Objects(Box<ClaimObjects>),
}

impl BlockClaims for Claims {
    async fn claim(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
        match self {
            Self::Files(files) => files.claim(block).await,
            Self::Objects(objects) => objects.claim(block).await,
        }
    }

    async fn release(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
        match self {
            Self::Files(files) => files.release(block).await,
            Self::Objects(objects) => objects.release(block).await,
        }
    }

    async fn tidy(&self, node: &str) -> Result<(), ClaimError> {
        match self {
            Self::Files(files) => files.tidy(node).await,
            Self::Objects(objects) => objects.tidy(node).await,
        }
    }

    async fn get(&self, cidr: IpNetwork) -> Result<Option<IPBlockSpec>, ClaimError> {
        match self {
            Self::Files(files) => files.get(cidr).await,
            Self::Objects(objects) => objects.get(cidr).await,
        }
    }

    async fn list(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
        match self {
            Self::Files(files) => files.list().await,
            Self::Objects(objects) => objects.list().await,
        }
    }

    async fn of_node(&self, node: &str) -> Result<Vec<IPBlockSpec>, ClaimError> {
        match self {
            Self::Files(files) => files.of_node(node).await,
            Self::Objects(objects) => objects.of_node(node).await,
        }
    }

    fn remembered(&self) -> Vec<IPBlockSpec> {
        match self {
            Self::Files(files) => files.remembered(),
            Self::Objects(objects) => objects.remembered(),
        }
    }

    fn remember_lost(&self, block: &IPBlockSpec) {
        match self {
            Self::Files(files) => files.remember_lost(block),
            Self::Objects(objects) => objects.remember_lost(block),
        }
    }
}
