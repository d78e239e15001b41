//! What goes wrong in the lab, with what was being done.

use bulkhead_api::client::ClientError;
use std::{io, process::ExitStatus, time::Duration};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}")]
    Bare(#[from] io::Error),
    #[error("`{command}`: {status}: {stderr}")]
    Command { command: String, status: ExitStatus, stderr: String },
    #[error("after {:.1} s still not true: {what}{}{last}", waited.as_secs_f32(), if last.is_empty() { "" } else { ": " })]
    Deadline {
        what: String,
        waited: Duration,
        /// The last answer that was not the awaited one.
        last: String,
    },
    #[error("{0} is not built (looked in {1}): make build, and make kubernetes for those of Kubernetes")]
    NotBuilt(&'static str, String),
    #[error("{0} is not installed: make deps")]
    NotInstalled(&'static str),
    #[error("the lab makes network namespaces: run it as root")]
    NotRoot,
    #[error(transparent)]
    Api(#[from] ClientError),
    #[error("cannot read {what}: {source}")]
    Json { what: String, source: serde_json::Error },
    /// Something that must hold, does not.
    #[error("{0}")]
    Unmet(String),
}

impl From<nix::Error> for Error {
    fn from(e: nix::Error) -> Self {
        Self::Bare(e.into())
    }
}

/// Names what was being done when a call failed.
pub trait Context<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }
}

/// A condition that does not hold, as a failure.
pub fn unmet<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Unmet(what.into()))
}
