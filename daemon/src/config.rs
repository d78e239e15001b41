//! The node's own configuration: what the daemon must know before it can read any object.

use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node's name, as `Node` and `IPBlock` objects have it.
    pub node: String,
    /// Directory of YAML objects.
    pub objects: PathBuf,
    /// Directory where the nodes claim address blocks; shared by all nodes.
    pub blocks: PathBuf,
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Directory on a bpffs.
    #[serde(default = "pin_dir")]
    pub pin_dir: PathBuf,
    /// Ranges of the default partition.
    #[serde(rename = "podCIDRs", default)]
    pub pod_cidrs: Vec<IpNetwork>,
    /// Addresses that answer cluster DNS.
    #[serde(rename = "clusterDNS", default)]
    pub cluster_dns: Vec<IpAddr>,
    /// Interfaces that lead out of the node; none named: that of the default route.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// Connections that the node can track.
    #[serde(default = "conntrack_entries")]
    pub conntrack_entries: u32,
    /// Where to put the plugin and its configuration once the node is ready; absent: somebody else does.
    #[serde(default)]
    pub cni: Option<CniInstall>,
    /// Filter of the log, as `info` or `bulkhead_daemon=debug`.
    #[serde(default = "log")]
    pub log: String,
}

/// Folders of the container runtime, as this process sees them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CniInstall {
    /// The plugin to put there.
    #[serde(default = "plugin")]
    pub plugin: PathBuf,
    #[serde(default = "bin_dir")]
    pub bin_dir: PathBuf,
    #[serde(default = "conf_dir")]
    pub conf_dir: PathBuf,
}

/// Where the image has it.
fn plugin() -> PathBuf {
    "/opt/cni/bin/bulkhead-cni".into()
}
fn bin_dir() -> PathBuf {
    "/host/opt/cni/bin".into()
}
fn conf_dir() -> PathBuf {
    "/host/etc/cni/net.d".into()
}
fn state_dir() -> PathBuf {
    "/var/lib/bulkhead".into()
}
fn socket() -> PathBuf {
    "/run/bulkhead/bulkheadd.sock".into()
}
fn pin_dir() -> PathBuf {
    "/sys/fs/bpf/bulkhead".into()
}
fn conntrack_entries() -> u32 {
    131_072
}
fn log() -> String {
    "info".into()
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("the configuration {path} is not valid: {message}")]
    Parse { path: String, message: String },
}

impl Config {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::parse(&text).map_err(|message| ConfigError::Parse { path: name, message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if config.node.is_empty() {
            return Err("`node` is empty: give this node's name".into());
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_configuration_gets_the_defaults() {
        let config = Config::parse("node: n1\nobjects: /o\nblocks: /b\npodCIDRs: [10.64.0.0/16]\n").unwrap();
        assert_eq!(config.socket, socket());
        assert_eq!(config.pod_cidrs, ["10.64.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = Config::parse("node: n1\nobjects: /o\nblocks: /b\npodCidr: x\n").unwrap_err();
        assert!(error.contains("podCidr"), "{error}");
    }
}
