//! What the cluster says of this node, remembered: a daemon that starts while the API server is away has the same peers
//! (`nodeSelector`), and what the node's annotation drains stays drained.

use crate::store::{self, StoreError};
use bulkhead_policy::NodeInfo;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::error;

const FILE: &str = "node.json";

#[derive(Debug)]
pub struct OwnNode {
    file: PathBuf,
    /// As it is on disk.
    known: Option<Arc<NodeInfo>>,
}

impl OwnNode {
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let file = state.join(FILE);
        let known = store::read_json(&file)?;
        Ok(Self { file, known })
    }

    pub fn known(&self) -> Option<Arc<NodeInfo>> {
        self.known.clone()
    }

    /// A snapshot says this.
    pub fn told(&mut self, info: &Arc<NodeInfo>) {
        if self.known.as_ref() == Some(info) {
            return;
        }
        match store::write_json(&self.file, info) {
            Ok(()) => self.known = Some(info.clone()),
            Err(e) => {
                error!(error = %e, "cannot remember this node's labels; a restart without the API server would lack them")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_the_node_outlives_the_daemon() {
        let state = tempfile::tempdir().unwrap();
        let mut own = OwnNode::open(state.path()).unwrap();
        assert_eq!(own.known(), None);
        let labels = [("rack".to_owned(), "1".to_owned())].into_iter().collect();
        let mut info = NodeInfo { labels, drain_routes: Some("true".into()), ..NodeInfo::default() };
        own.told(&Arc::new(info.clone()));
        assert_eq!(OwnNode::open(state.path()).unwrap().known(), Some(Arc::new(info.clone())));
        info.drain_routes = None;
        own.told(&Arc::new(info.clone()));
        assert_eq!(OwnNode::open(state.path()).unwrap().known().as_deref(), Some(&info));
    }
}
