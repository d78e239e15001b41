//! What people ask of BGP: peers, routes, why a prefix is announced, and what is drained.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerInfo {
    pub name: String,
    /// Unspecified while the router of `interface` is not found.
    pub address: IpAddr,
    /// Of an unnumbered session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    pub asn: u32,
    /// RFC 4271 section 8.2.2: `Idle`, `Connect`, `Active`, `OpenSent`, `OpenConfirm`, `Established`.
    pub state: String,
    /// Seconds in this state.
    pub since_seconds: u64,
    pub families: Vec<String>,
    pub advertised: usize,
    pub received: usize,
    /// Negotiated.
    pub graceful_restart: bool,
    /// Messages since the peer was configured.
    #[serde(default)]
    pub sent_messages: BgpMessageCounts,
    #[serde(default)]
    pub received_messages: BgpMessageCounts,
    /// How often a session came up.
    #[serde(default)]
    pub established_transitions: u64,
    /// The last ups and downs, the newest first.
    #[serde(default)]
    pub history: Vec<BgpSessionChange>,
    /// Absent: not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BgpBfdInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What it may come from, and what to look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// Routes that it may announce in each IP version; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_prefixes: Option<u32>,
    /// It announces nearly as many, or may keep what was announced to it before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpMessageCounts {
    pub open: u64,
    pub update: u64,
    pub notification: u64,
    pub keepalive: u64,
    pub route_refresh: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpSessionChange {
    /// Seconds ago.
    pub ago_seconds: u64,
    pub up: bool,
    /// Why it went down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The BFD session with a router, as `bulkhead-bfd` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpBfdInfo {
    /// RFC 5880 section 6.2: `AdminDown`, `Down`, `Init`, `Up`; or `Unknown`.
    pub state: String,
    /// Of no silence longer than this of the router the path counts as dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection_time_millis: Option<u64>,
    /// What we send at; absent: the router wants nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit_interval_millis: Option<u64>,
    /// Why it is not up, or not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpRouteInfo {
    pub prefix: IpNetwork,
    /// `advertised` or `received`.
    pub direction: String,
    pub peer: String,
    pub next_hop: IpAddr,
    pub as_path: Vec<u32>,
    /// Of all kinds: `65010:1`, `65010:1:2`, `rt:65010:1`.
    pub communities: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<u32>,
    /// Received, and kept while the peer restarts.
    #[serde(default)]
    pub stale: bool,
    /// Received, and passed the import filter.
    #[serde(default)]
    pub learned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BgpDirection {
    Advertised,
    Received,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BgpRoutesRequest {
    /// Absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<BgpDirection>,
    /// Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// At most so many, of each direction; the daemon has a limit of its own.
    pub limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpRoutes {
    /// How many there are.
    pub total: usize,
    /// By prefix.
    pub routes: Vec<BgpRouteInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BgpWhyRequest {
    pub prefix: IpNetwork,
}

/// What is to go another way than by this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    pub what: DrainScope,
    /// Seconds for which routes are announced with the graceful-shutdown community before they are withdrawn.
    pub withdraw_after: u64,
    /// Take back what was asked for before, whatever it was.
    #[serde(default)]
    pub undo: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DrainScope {
    /// What other nodes announce as well: services. Blocks have no other home.
    Services,
    /// Everything, towards these peers.
    Peers(Vec<String>),
    /// Everything: pods of this node are not reachable any more.
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainInfo {
    pub what: DrainScope,
    /// `command` or `annotation`.
    pub by: String,
    /// Withdrawn already.
    pub withdrawn: bool,
    /// Seconds until then.
    pub withdraw_in: u64,
}

/// Why a prefix is announced, to whom, and why not to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpWhy {
    /// What was asked.
    pub prefix: IpNetwork,
    /// The route of this node that it is, or is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<IpNetwork>,
    /// Why there is such a route, or none.
    pub origin: String,
    /// By name; none where there is no route.
    pub peers: Vec<BgpFate>,
    /// What the peers have sent of just this prefix.
    pub received: Vec<BgpRouteInfo>,
}

/// What becomes of a route at one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpFate {
    pub peer: String,
    pub reason: String,
    /// As the peer gets it; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<BgpRouteInfo>,
}
