//! The way to the API server: by a kubeconfig, or as a pod of the cluster has it.

use crate::causes::with_causes;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the kubeconfig {}: {source}", path.display())]
    Kubeconfig { path: PathBuf, source: kube::config::KubeconfigError },
    #[error("this is no pod with a service account ({0}): set `kubernetes.kubeconfig` in the configuration")]
    NotInCluster(#[from] kube::config::InClusterError),
    #[error("cannot make a client of the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Calls nobody yet: the API server may be away.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let config = match kubeconfig {
        None => Config::incluster()?,
        Some(path) => {
            let failed = |source| ClientError::Kubeconfig { path: path.into(), source };
            let read = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(failed)?
        }
    };
    Client::try_from(config).map_err(|e| ClientError::Client(Box::new(e)))
}

/// What the API server said, or why it could not be asked.
pub fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    with_causes(error)
}
