//! What users, programs and the daemon say to each other.
//!
//! - [`objects`] (feature `objects`): the kinds of `bulkhead.dev/v1alpha1`. The same structs serve the directory of
//!   YAML files and, with feature `kube`, the API server.
//! - [`messages`]: requests and replies on the daemon's socket.
//! - [`client`]: one blocking HTTP request over that socket; no async runtime.

pub mod client;
#[cfg(feature = "kube")]
pub mod crds;
pub mod messages;
#[cfg(feature = "objects")]
pub mod objects;
