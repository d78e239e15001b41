//! Kubernetes' own programs in the lab: `tests/kubernetes` builds them, [`ControlPlane`] runs them.
//!
//! ```text
//!  control (namespace of its own)             node1
//!    etcd ◀── kube-apiserver :6443 ───────────── bulkheadd
//! ```

mod control_plane;
mod kubeconfig;
mod pki;

pub use control_plane::{ControlPlane, Controllers};
pub(crate) use control_plane::{start, tail};
pub use kubeconfig::Identity;
pub use pki::{Authority, Certificate};
