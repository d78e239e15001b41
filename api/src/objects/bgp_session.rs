//! How a session with a router is to be: the settings of a `BGPPeer`, or of a group of them.

use super::schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What is not said here is taken from the peer's group, and then from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BGPSession {
    /// Our AS number towards this router; the cluster's stands behind it in the path.
    #[serde(rename = "localASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub local_asn: Option<u32>,
    /// Leave the cluster's AS number out of the path behind `localASN` if it is a private one (RFC 6996).
    #[serde(rename = "removePrivateAS", skip_serializing_if = "Option::is_none")]
    pub remove_private_as: Option<bool>,
    /// Where we connect from; default: the uplink's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ip")]
    pub source_address: Option<IpAddr>,
    /// Wait for the router to connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passive: Option<bool>,
    /// RFC 5082: the router is at most so many hops away. Both ends must have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub ttl_security_hops: Option<u8>,
    /// TTL of what we send, for a router that is not on the link.
    #[serde(rename = "multihopTTL", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub multihop_ttl: Option<u8>,
    /// RFC 2385: a file on the node whose first line is the password, at most 80 octets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// The same out of a Secret in the daemons' own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<BGPPasswordSecret>,
    /// RFC 9687: seconds for which the router may read nothing; 0, the default, as that RFC says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_hold_time_seconds: Option<u16>,
    /// RFC 7911: take several routes for a prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_path: Option<bool>,
    /// RFC 8950: IPv4 routes with an IPv6 next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_next_hop: Option<bool>,
    /// How often our own AS number may stand in the path of what we receive; our own blocks are never learned.
    #[serde(rename = "allowOwnAS", skip_serializing_if = "Option::is_none")]
    pub allow_own_as: Option<u8>,
    /// How many routes the router may announce in each IP version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prefixes: Option<BGPMaxPrefixes>,
    /// Bidirectional Forwarding Detection: the session ends when the path to the router is dead (RFC 5882).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BGPBfd>,
    /// No session, and why: the router is told (RFC 9003).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<String>,
    /// The first rule that matches decides; what none matches is announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub export: Option<Vec<BGPRule>>,
    /// What the router announces is installed on the node as far as these rules accept it: the first that matches decides; what
    /// none matches is not (RFC 8212).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub import: Option<Vec<BGPRule>>,
}

/// A Secret that daemons may read: they need a Role that names it, as `deploy/rbac.yaml` does for the default one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPPasswordSecret {
    /// Default `bulkhead-bgp`.
    #[serde(default = "secret_name")]
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whose first line is the password, at most 80 octets.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn secret_name() -> String {
    "bulkhead-bgp".into()
}

/// `bulkhead-bfd` must run on the node, and BFD on the router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BGPBfd {
    /// `false`: none, whatever the group says.
    pub enabled: bool,
    /// We would like to send no oftener. Default 300.
    #[schemars(range(min = 10, max = 60000))]
    pub min_transmit_milliseconds: u32,
    /// We can take packets no oftener. Default 300.
    #[schemars(range(min = 10, max = 60000))]
    pub min_receive_milliseconds: u32,
    /// So many packets missing, and the path is dead. Default 3.
    #[schemars(range(min = 1))]
    pub multiplier: u8,
}

impl Default for BGPBfd {
    fn default() -> Self {
        BGPBfd { enabled: true, min_transmit_milliseconds: 300, min_receive_milliseconds: 300, multiplier: 3 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPMaxPrefixes {
    pub limit: u32,
    /// Percent of `limit` from which on the log warns. Default 75.
    #[serde(default = "warn_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub warn_percent: u8,
    /// Begin anew after that time; absent: not before this object changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_seconds: Option<u32>,
}

fn warn_percent() -> u8 {
    75
}

/// Conditions that are absent match everything; of those in one list, one must match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPRule {
    pub action: BGPAction,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub prefixes: Vec<BGPPrefixRange>,
    /// `65000:100`, or large ones as `65000:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub communities: Vec<String>,
    /// AS numbers of which one stands somewhere in the path.
    #[serde(rename = "pathASNs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub path_asns: Vec<u32>,
    #[serde(default)]
    pub set: BGPChanges,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BGPAction {
    Accept,
    Reject,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPPrefixRange {
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: super::IpNetwork,
    /// Default: the CIDR's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u8>,
    /// Default: the longest there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u8>,
}

/// What a route that is accepted is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BGPChanges {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub communities: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    /// Towards routers of our own AS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_preference: Option<u32>,
    /// How many times more our AS number stands in the path.
    pub prepend: u8,
}

impl BGPSession {
    /// Every field of ours, else of `group`.
    pub fn or(self, group: &BGPSession) -> BGPSession {
        let group = group.clone();
        // One password, however it is said.
        let own = self.password_file.is_some() || self.password_secret.is_some();
        let of_group = |group: &BGPSession| (group.password_file.clone(), group.password_secret.clone());
        let (password_file, password_secret) =
            if own { (self.password_file, self.password_secret) } else { of_group(&group) };
        BGPSession {
            local_asn: self.local_asn.or(group.local_asn),
            remove_private_as: self.remove_private_as.or(group.remove_private_as),
            source_address: self.source_address.or(group.source_address),
            passive: self.passive.or(group.passive),
            ttl_security_hops: self.ttl_security_hops.or(group.ttl_security_hops),
            multihop_ttl: self.multihop_ttl.or(group.multihop_ttl),
            password_file,
            password_secret,
            send_hold_time_seconds: self.send_hold_time_seconds.or(group.send_hold_time_seconds),
            add_path: self.add_path.or(group.add_path),
            extended_next_hop: self.extended_next_hop.or(group.extended_next_hop),
            allow_own_as: self.allow_own_as.or(group.allow_own_as),
            max_prefixes: self.max_prefixes.or(group.max_prefixes),
            bfd: self.bfd.or(group.bfd),
            shutdown: self.shutdown.or(group.shutdown),
            export: self.export.or(group.export),
            import: self.import.or(group.import),
        }
    }
}
