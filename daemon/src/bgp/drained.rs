//! What is to go another way, and the file that remembers it over restarts.

use crate::{
    drain::Drains,
    store::{self, StoreError},
};
use bulkhead_api::messages::DrainRequest;
use std::{ops::Deref, path::PathBuf};
use tracing::error;

pub struct Drained {
    file: PathBuf,
    drains: Drains,
}

impl Drained {
    pub fn open(file: PathBuf) -> Self {
        let drains = store::read_json(&file).unwrap_or_else(|e| {
            error!(error = %e, "cannot read what is drained: nothing is");
            None
        });
        Self { file, drains: drains.unwrap_or_default() }
    }

    /// In force once it is on disk, or not at all: whoever is told of a failure has changed nothing.
    pub fn command(&mut self, request: &DrainRequest, now: u64) -> Result<(), StoreError> {
        let mut drains = self.drains.clone();
        drains.command(request, now);
        store::write_json(&self.file, &drains)?;
        self.drains = drains;
        Ok(())
    }

    /// What the cluster says counts, remembered or not: it says so again.
    pub fn annotate(&mut self, text: Option<&str>, now: u64) {
        let before = self.drains.clone();
        self.drains.annotate(text, now);
        if before != self.drains
            && let Err(e) = store::write_json(&self.file, &self.drains)
        {
            error!(error = %e, "cannot remember what is drained");
        }
    }
}

impl Deref for Drained {
    type Target = Drains;

    fn deref(&self) -> &Drains {
        &self.drains
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::messages::DrainScope;

    #[test]
    fn what_cannot_be_remembered_is_not_carried_out() {
        let state = tempfile::tempdir().unwrap();
        let request = |undo| DrainRequest { what: DrainScope::All, withdraw_after: 0, undo };
        let mut drained = Drained::open(state.path().join("drains.json"));
        drained.command(&request(false), 1000).unwrap();
        drop(state);
        let before = drained.clone();
        drained.command(&request(true), 1000).unwrap_err();
        assert_eq!(*drained, before, "it is drained still");
    }
}
