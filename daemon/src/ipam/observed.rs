//! Real claims in a folder, for tests: what is asked of them is seen, and an answer can be lost.

use super::{BlockClaims, Claim, ClaimError, ClaimFiles};
use bulkhead_api::objects::IPBlockSpec;
use ipnetwork::IpNetwork;
use std::{path::Path, sync::Mutex};

pub struct Observed {
    files: ClaimFiles,
    pub seen: Mutex<Seen>,
}

#[derive(Default)]
pub struct Seen {
    pub claimed: Vec<IpNetwork>,
    pub got: Vec<IpNetwork>,
    asking: usize,
    /// So many questions of [`BlockClaims::get`] were open at once.
    pub at_once: usize,
    pub remembered: Vec<IPBlockSpec>,
    pub remembered_lost: Vec<IPBlockSpec>,
    /// The claim is made, and the answer never comes.
    pub answer_is_lost: bool,
}

impl Observed {
    pub fn new(dir: &Path) -> Self {
        Self { files: ClaimFiles::new(dir.into()).unwrap(), seen: Mutex::default() }
    }
}

impl BlockClaims for Observed {
    async fn claim(&self, block: &IPBlockSpec) -> Result<Claim, ClaimError> {
        self.seen.lock().unwrap().claimed.push(block.cidr);
        let claim = self.files.claim(block).await?;
        if self.seen.lock().unwrap().answer_is_lost {
            return Err(ClaimError::Api { what: "IPBlock".into(), reason: "no answer".into() });
        }
        Ok(claim)
    }

    async fn release(&self, block: &IPBlockSpec) -> Result<(), ClaimError> {
        self.files.release(block).await
    }

    async fn tidy(&self, node: &str) -> Result<(), ClaimError> {
        self.files.tidy(node).await
    }

    async fn get(&self, cidr: IpNetwork) -> Result<Option<IPBlockSpec>, ClaimError> {
        {
            let mut seen = self.seen.lock().unwrap();
            seen.got.push(cidr);
            seen.asking += 1;
            seen.at_once = seen.at_once.max(seen.asking);
        }
        tokio::task::yield_now().await;
        self.seen.lock().unwrap().asking -= 1;
        self.files.get(cidr).await
    }

    async fn list(&self) -> Result<Vec<IPBlockSpec>, ClaimError> {
        self.files.list().await
    }

    async fn of_node(&self, node: &str) -> Result<Vec<IPBlockSpec>, ClaimError> {
        self.files.of_node(node).await
    }

    fn remembered(&self) -> Vec<IPBlockSpec> {
        self.seen.lock().unwrap().remembered.clone()
    }

    fn remember_lost(&self, block: &IPBlockSpec) {
        self.seen.lock().unwrap().remembered_lost.push(block.clone());
    }
}
