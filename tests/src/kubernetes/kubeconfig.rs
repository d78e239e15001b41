//! Who calls the API server, and the file that says so.

use super::pki::Certificate;
use crate::{Context, Result};
use serde_json::json;
use std::{fs, path::Path};

pub enum Identity {
    Certificate(Certificate),
    /// A bearer token, as a service account has one: in a file that is written anew before it expires.
    Token(String),
}

/// Writes a kubeconfig whose secrets stand in files beside it.
pub fn write(path: &Path, server: &str, authority: &Path, identity: &Identity) -> Result<()> {
    let user = match identity {
        Identity::Token(token) => {
            let file = path.with_extension("token");
            fs::write(&file, token).during(|| file.display().to_string())?;
            json!({"tokenFile": file})
        }
        Identity::Certificate(Certificate { certificate, key }) => {
            let files =
                [("crt", certificate), ("key", key)].map(|(end, text)| (path.with_extension(end), text));
            for (file, text) in &files {
                fs::write(file, text).during(|| file.display().to_string())?;
            }
            json!({"client-certificate": files[0].0, "client-key": files[1].0})
        }
    };
    // A service account is of a namespace, as its pod is.
    let namespace = if matches!(identity, Identity::Token(_)) { "bulkhead" } else { "default" };
    // JSON is YAML.
    let configuration = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": authority}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab", "namespace": namespace}}],
        "users": [{"name": "lab", "user": user}],
    });
    fs::write(path, configuration.to_string()).during(|| path.display().to_string())
}
