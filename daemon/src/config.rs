//! The node's own configuration: what the daemon must know before it can read any object.

use crate::net::uplinks::UplinkRule;
use bulkhead_api::objects::PartitionMasquerade;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node's name, as `Node` and `IPBlock` objects have it; default: what NODE_NAME says in the environment, so that
    /// all nodes of a cluster can have one configuration.
    #[serde(default = "node_name")]
    pub node: String,
    /// Directory of YAML objects, without Kubernetes. Read by way of [`Self::origin`], as the next two.
    #[serde(default)]
    pub objects: Option<PathBuf>,
    /// Directory where the nodes claim address blocks; shared by all nodes. Goes with `objects`.
    #[serde(default)]
    pub blocks: Option<PathBuf>,
    /// In place of both directories.
    #[serde(default)]
    pub kubernetes: Option<Kubernetes>,
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Where `bulkhead-bfd` answers.
    #[serde(default = "bfd_socket")]
    pub bfd_socket: PathBuf,
    /// Where metrics are served to Prometheus, as `127.0.0.1:9650`; absent: nowhere.
    #[serde(default)]
    pub metrics_address: Option<SocketAddr>,
    /// Directory on a bpffs.
    #[serde(default = "pin_dir")]
    pub pin_dir: PathBuf,
    /// Ranges of the default partition.
    #[serde(rename = "podCIDRs", default)]
    pub pod_cidrs: Vec<IpNetwork>,
    /// Addresses that answer cluster DNS.
    #[serde(rename = "clusterDNS", default)]
    pub cluster_dns: Vec<IpAddr>,
    /// Where services have their addresses: what goes there is translated by the host's stack.
    #[serde(rename = "serviceCIDRs", default)]
    pub service_cidrs: Vec<IpNetwork>,
    /// Addresses outside, besides the pods' own ranges, that nothing on this host translates or masquerades on the way to:
    /// connections between them and pods pass its stack by.
    #[serde(default)]
    pub direct_to: Vec<IpNetwork>,
    /// Pods of the default partition leave as this node; absent: they are themselves everywhere.
    #[serde(default)]
    pub masquerade: Option<PartitionMasquerade>,
    /// Interfaces that lead out of the node; none named: that of the default route.
    #[serde(default)]
    pub uplinks: Vec<UplinkRule>,
    /// Root of the cgroup2 hierarchy; default: where it is mounted.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
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

/// The API server as source.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// How to reach it; default: as the service account of the daemon's own pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
}

/// Where objects come from, and where blocks are claimed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Origin<'a> {
    Directories { objects: &'a Path, blocks: &'a Path },
    Kubernetes(&'a Kubernetes),
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
fn node_name() -> String {
    std::env::var("NODE_NAME").unwrap_or_default()
}
fn state_dir() -> PathBuf {
    "/var/lib/bulkhead".into()
}
fn socket() -> PathBuf {
    "/run/bulkhead/bulkheadd.sock".into()
}
fn bfd_socket() -> PathBuf {
    "/run/bulkhead/bfd.sock".into()
}
fn pin_dir() -> PathBuf {
    "/sys/fs/bpf/bulkhead".into()
}
fn conntrack_entries() -> u32 {
    CONNTRACK_ENTRIES_DEFAULT
}
pub(crate) const CONNTRACK_ENTRIES_DEFAULT: u32 = 131_072;
/// Fewer would leave a pod no share, and its rings no place.
const CONNTRACK_ENTRIES: RangeInclusive<u32> = 1024..=16_777_216;

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

    /// # Errors
    /// When the configuration names none, or two; one that was read names one.
    pub fn origin(&self) -> Result<Origin<'_>, String> {
        match (&self.objects, &self.blocks, &self.kubernetes) {
            (Some(objects), Some(blocks), None) => Ok(Origin::Directories { objects, blocks }),
            (None, None, Some(kubernetes)) => Ok(Origin::Kubernetes(kubernetes)),
            _ => Err("write either `objects` and `blocks`, or `kubernetes`".into()),
        }
    }

    /// What Secrets say of BGP's passwords.
    pub fn passwords(&self) -> PathBuf {
        self.socket.with_file_name("bgp-passwords.json")
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if config.node.is_empty() {
            return Err(
                "`node` is empty: give this node's name here, or as NODE_NAME in the environment".into()
            );
        }
        config.origin()?;
        if let Some(masquerade) = &config.masquerade {
            let host_bits = |c: &&IpNetwork| c.ip() != c.network();
            if let Some(cidr) = masquerade.non_masquerade_cidrs.iter().find(host_bits) {
                let (network, prefix) = (cidr.network(), cidr.prefix());
                return Err(format!(
                    "`masquerade.nonMasqueradeCIDRs`: {cidr} has bits set beyond its prefix: write {network}/{prefix}"
                ));
            }
        }
        if !CONNTRACK_ENTRIES.contains(&config.conntrack_entries) {
            return Err(format!(
                "`conntrackEntries` is {}: give a number of connections from {} to {}; each takes some 290 bytes",
                config.conntrack_entries,
                CONNTRACK_ENTRIES.start(),
                CONNTRACK_ENTRIES.end()
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_connections_is_within_bounds() {
        let parse = |entries: &str| {
            Config::parse(&format!("node: n1\nobjects: /o\nblocks: /b\nconntrackEntries: {entries}\n"))
        };
        for good in [1024, 2048, 16_777_216] {
            assert_eq!(parse(&good.to_string()).unwrap().conntrack_entries, good);
        }
        for bad in ["0", "1023", "16777217", "-1", "many"] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains("conntrackEntries") || error.contains("line 4"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_range_with_an_address_of_its_own_is_refused() {
        let parse = |cidr: &str| {
            let masquerade = format!("masquerade: {{nonMasqueradeCIDRs: [{cidr}]}}");
            Config::parse(&format!("node: n1\nobjects: /o\nblocks: /b\n{masquerade}\n"))
        };
        assert!(parse("10.0.0.0/8").unwrap().masquerade.is_some());
        let error = parse("10.0.0.1/8").unwrap_err();
        assert!(error.contains("nonMasqueradeCIDRs") && error.contains("10.0.0.0/8"), "{error}");
    }

    #[test]
    fn a_short_configuration_gets_the_defaults() {
        let config = Config::parse("node: n1\nobjects: /o\nblocks: /b\npodCIDRs: [10.64.0.0/16]\n").unwrap();
        assert_eq!(config.socket, socket());
        assert_eq!(config.pod_cidrs, ["10.64.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn objects_come_from_directories_or_from_the_api_server() {
        let config = Config::parse("node: n1\nkubernetes: {kubeconfig: /k}\n").unwrap();
        let expected = Kubernetes { kubeconfig: Some("/k".into()) };
        assert_eq!(config.origin(), Ok(Origin::Kubernetes(&expected)));
        for text in
            ["node: n1\n", "node: n1\nobjects: /o\n", "node: n1\nobjects: /o\nblocks: /b\nkubernetes: {}\n"]
        {
            assert!(Config::parse(text).unwrap_err().contains("write either"), "{text}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = Config::parse("node: n1\nobjects: /o\nblocks: /b\npodCidr: x\n").unwrap_err();
        assert!(error.contains("podCidr"), "{error}");
    }
}
