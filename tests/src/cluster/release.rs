//! What is installed: this build, or the one that it is upgraded from.

use super::{deploy, images::Archive};
use crate::{Context, Result, programs, unmet};
use std::{env, fmt, fs, path::PathBuf};

/// A folder with `bulkhead.tar` and `bulkhead.yaml` of an older build.
const PREVIOUS: &str = "BULKHEAD_PREVIOUS";
const IMAGE: &str = concat!("bulkhead.dev/bulkhead:", env!("CARGO_PKG_VERSION"));
/// Two builds of one version have the same name: the older one gets another.
const PREVIOUS_IMAGE: &str = "bulkhead.dev/bulkhead:previous";

/// Where an upgrade begins.
pub struct Release {
    folder: Option<PathBuf>,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            Some(folder) => write!(f, "the build in {}", folder.display()),
            None => write!(f, "this very build, as {PREVIOUS} names no other"),
        }
    }
}

impl Release {
    /// What [`PREVIOUS`] names. Where it names nothing, this very build under the older one's name: the whole way of an upgrade
    /// (manifest, rollout, a daemon that takes over what another one left), but for differences between two builds.
    pub fn previous() -> Self {
        Self { folder: env::var_os(PREVIOUS).map(PathBuf::from) }
    }

    pub(super) fn archive(&self) -> Result<Archive> {
        let path = match &self.folder {
            Some(folder) => folder.join("bulkhead.tar"),
            None => programs::find("bulkhead.tar")?,
        };
        Ok(Archive { path, also: Some((IMAGE, PREVIOUS_IMAGE)) })
    }

    /// Its `bulkhead.yaml`, with the name that its image has on the cluster's machines.
    pub(super) fn manifest(&self) -> Result<String> {
        let path = self.folder.clone().unwrap_or_else(deploy).join("bulkhead.yaml");
        let text = fs::read_to_string(&path).during(|| path.display().to_string())?;
        if !text.contains(IMAGE) {
            return unmet(format!("{} does not name the image {IMAGE}", path.display()));
        }
        Ok(text.replace(IMAGE, PREVIOUS_IMAGE))
    }
}
