//! Host ports, as runtimes ask for them.

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::{fmt, net::IpAddr, num::NonZeroU16};

/// CNI `runtimeConfig.portMappings`: what arrives at the node's port goes to the pod's. containerd writes the keys with a capital, since the
/// reference plugins read them in either way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    #[serde(alias = "HostPort")]
    pub host_port: NonZeroU16,
    #[serde(alias = "ContainerPort")]
    pub container_port: NonZeroU16,
    #[serde(default, alias = "Protocol")]
    pub protocol: PortProtocol,
    /// The node's address that it is asked for at; absent: every one, of both families. Unspecified: of its family.
    #[serde(
        rename = "hostIP",
        alias = "HostIP",
        default,
        deserialize_with = "address",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
}

/// Runtimes write it in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    #[default]
    #[serde(alias = "TCP", alias = "")]
    Tcp,
    #[serde(alias = "UDP")]
    Udp,
    #[serde(alias = "SCTP")]
    Sctp,
}

impl PortProtocol {
    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// An empty text is how runtimes write none.
fn address<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(d)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| D::Error::custom(format!("hostIP `{text}` is no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_as_runtimes_write_it() {
        let read = |text: &str| serde_json::from_str::<PortMapping>(text);
        let all = read(r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}"#).unwrap();
        assert_eq!((all.protocol, all.host_ip), (PortProtocol::Tcp, None));
        // As containerd does.
        let capital = read(r#"{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":""}"#).unwrap();
        assert_eq!(capital, all);
        let one = r#"{"hostPort":53,"containerPort":5353,"protocol":"UDP","hostIP":"fd00::1"}"#;
        let one = read(one).unwrap();
        assert_eq!((one.protocol, one.host_ip), (PortProtocol::Udp, Some("fd00::1".parse().unwrap())));
        // What is kept of it is read again.
        assert_eq!(read(&serde_json::to_string(&one).unwrap()).unwrap(), one);
        for (bad, word) in [
            (r#"{"hostPort":0,"containerPort":80}"#, "nonzero"),
            (r#"{"hostPort":80,"containerPort":70000}"#, "70000"),
            (r#"{"hostPort":80,"containerPort":80,"protocol":"icmp"}"#, "icmp"),
            (r#"{"hostPort":80,"containerPort":80,"hostIP":"node"}"#, "node"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
