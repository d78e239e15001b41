//! The peers that this node's objects name, on disk: of one that a later daemon cannot make, or whose object is gone by then, it is known
//! that it may keep what was announced to it.

use crate::store;
use std::{collections::BTreeSet, path::PathBuf};
use tracing::warn;

#[derive(Debug)]
pub struct Named {
    file: PathBuf,
    known: BTreeSet<String>,
}

impl Named {
    pub fn open(file: PathBuf) -> Self {
        let known = store::read_json(&file).ok().flatten().unwrap_or_default();
        Self { file, known }
    }

    pub fn known(&self) -> &BTreeSet<String> {
        &self.known
    }

    pub fn follow(&mut self, names: BTreeSet<String>) {
        if names == self.known {
            return;
        }
        self.known = names;
        if let Err(e) = store::write_json(&self.file, &self.known) {
            warn!(error = %e, "cannot remember the peers; a restart may give a block back to which one of them still leads");
        }
    }
}
