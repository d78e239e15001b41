//! The network configuration on standard input.
//!
//! Keys that are not ours or that a verb has no use for are never a reason to refuse: configurations are written for
//! chains of plugins, and a DEL must not fail over a key that only ADD reads.

use crate::error;
use bulkhead_api::messages::{AttachmentId, ErrorReply, PortMapping, RuntimeBandwidth, code};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

/// Versions of the specification, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub const NEWEST: Self = Self::V1_1_0;

    pub fn text(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

/// Read before anything else: what the rest means depends on it.
pub fn version(input: &[u8]) -> Result<Version, ErrorReply> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        cni_version: Option<String>,
    }
    let Head { cni_version } = decode(input)?;
    let supported = Version::ALL.map(Version::text).join(", ");
    let refused = |what: String| {
        error::new(code::INCOMPATIBLE_VERSION, what, format!("set cniVersion to one of these: {supported}"))
    };
    let text = cni_version.ok_or_else(|| refused("the configuration names no cniVersion".into()))?;
    Version::ALL
        .into_iter()
        .find(|v| v.text() == text)
        .ok_or_else(|| refused(format!("CNI version {text} is not supported")))
}

/// DNS settings, handed through to the result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub version: Version,
    pub socket: PathBuf,
    /// Holds `pending-del/`.
    pub state_dir: PathBuf,
    pub deadline: Duration,
    pub dns: Dns,
    pub bandwidth: Option<RuntimeBandwidth>,
    pub port_mappings: Vec<PortMapping>,
    prev_result: Option<Value>,
    /// GC's list; absent is not empty.
    valid_attachments: Option<Vec<AttachmentId>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_deadline")]
    deadline_seconds: u64,
    #[serde(default)]
    dns: Option<Dns>,
    #[serde(default)]
    runtime_config: Option<RuntimeConfig>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "list")]
    valid_attachments: Option<Vec<RawAttachment>>,
    /// What the specification called it at first; libcni sends both.
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "list")]
    attachments: Option<Vec<RawAttachment>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default)]
    bandwidth: Option<RuntimeBandwidth>,
    /// `null` is how Go writes an empty list.
    #[serde(default)]
    port_mappings: Option<Vec<PortMapping>>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

fn default_socket() -> PathBuf {
    "/run/bulkhead/bulkheadd.sock".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/bulkhead".into()
}

fn default_deadline() -> u64 {
    30
}

/// `null` is how Go writes an empty list.
fn list<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<RawAttachment>>, D::Error> {
    Option::deserialize(d).map(|list| Some(list.unwrap_or_default()))
}

impl Config {
    pub fn parse(input: &[u8], version: Version) -> Result<Self, ErrorReply> {
        let raw: Raw = decode(input)?;
        if raw.name.is_empty() {
            return Err(invalid("it has no `name`", "name the network, for example \"bulkhead\""));
        }
        if !(1..=3600).contains(&raw.deadline_seconds) {
            return Err(invalid("`deadlineSeconds` must be 1 to 3600", raw.deadline_seconds));
        }
        let runtime = raw.runtime_config.unwrap_or_default();
        let id = |a: RawAttachment| AttachmentId { container_id: a.container_id, ifname: a.ifname };
        Ok(Self {
            version,
            socket: raw.socket,
            state_dir: raw.state_dir,
            deadline: Duration::from_secs(raw.deadline_seconds),
            dns: raw.dns.unwrap_or_default(),
            bandwidth: runtime.bandwidth,
            port_mappings: runtime.port_mappings.unwrap_or_default(),
            prev_result: raw.prev_result,
            valid_attachments: raw
                .valid_attachments
                .or(raw.attachments)
                .map(|list| list.into_iter().map(id).collect()),
        })
    }

    /// GC's list. A missing one must not read as "nothing is valid".
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentId>, ErrorReply> {
        self.valid_attachments.clone().ok_or_else(|| {
            invalid("GC needs `cni.dev/valid-attachments`", "the runtime lists there what it still knows")
        })
    }

    /// Addresses that `prevResult` gives this interface; those of interfaces that other plugins added are theirs.
    pub fn previous_addresses(&self, ifname: &str) -> Result<Vec<IpNetwork>, ErrorReply> {
        #[derive(Deserialize)]
        struct Previous {
            #[serde(default)]
            interfaces: Vec<PreviousInterface>,
            #[serde(default)]
            ips: Vec<PreviousIp>,
        }
        #[derive(Deserialize)]
        struct PreviousInterface {
            name: String,
            #[serde(default)]
            sandbox: String,
        }
        #[derive(Deserialize)]
        struct PreviousIp {
            address: IpNetwork,
            #[serde(default)]
            interface: Option<usize>,
        }
        let value = self.prev_result.as_ref().ok_or_else(|| {
            invalid("CHECK needs `prevResult`", "the runtime hands the result of ADD back there")
        })?;
        let previous =
            Previous::deserialize(value).map_err(|e| invalid("`prevResult` is not a result", e))?;
        let ours = |index: usize| {
            previous.interfaces.get(index).is_some_and(|i| i.name == ifname && !i.sandbox.is_empty())
        };
        Ok(previous.ips.iter().filter(|ip| ip.interface.is_none_or(ours)).map(|ip| ip.address).collect())
    }
}

fn decode<T: DeserializeOwned>(input: &[u8]) -> Result<T, ErrorReply> {
    serde_json::from_slice(input).map_err(|e| match e.is_data() {
        true => invalid("a key has a value of the wrong kind", e),
        false => error::new(code::DECODE_FAILURE, "the configuration on standard input is not JSON", e),
    })
}

fn invalid(what: &str, details: impl ToString) -> ErrorReply {
    error::new(code::INVALID_CONFIG, format!("invalid network configuration: {what}"), details)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
