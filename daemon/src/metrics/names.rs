//! Every metric that is exported. `docs/metrics.md` has the same list.

use super::text::{Kind, Metric};

pub const BUILD: Metric = Metric::gauge("bulkhead_build_info", "1; the daemon's version.", &["version"]);
pub const GENERATION: Metric =
    Metric::gauge("bulkhead_policy_generation", "Number of the generation of policy in force.", &[]);
pub const GENERATION_SINCE: Metric = Metric::gauge(
    "bulkhead_policy_generation_timestamp_seconds",
    "Unix time since which it is in force.",
    &[],
);
pub const HELD: Metric = Metric::gauge(
    "bulkhead_policy_held",
    "1: a former generation was brought back, and the source is not followed.",
    &[],
);
pub const COMPILE: Metric = Metric {
    name: "bulkhead_policy_compile_seconds",
    kind: Kind::Histogram,
    help: "Time of compiling the objects to tables, for each change.",
    labels: &[],
};
pub const LAST_CHANGE: Metric = Metric::gauge(
    "bulkhead_policy_last_change_seconds",
    "From the moment the last change was noticed to its switch.",
    &[],
);
pub const SOURCE_READY: Metric = Metric::gauge(
    "bulkhead_source_ready",
    "1: the source of objects has told everything; 0: what was in force before still is.",
    &[],
);
pub const SOURCE_CHANGE: Metric = Metric::gauge(
    "bulkhead_source_change_timestamp_seconds",
    "Unix time at which the source last noticed a change.",
    &[],
);
pub const PROBLEMS: Metric = Metric::gauge(
    "bulkhead_problems",
    "Objects that were refused, and things that could not be done; `bulkhead status` names them.",
    &[],
);
pub const ENDPOINTS: Metric = Metric::gauge("bulkhead_endpoints", "Pods of this node.", &["partition"]);
pub const STRAYS: Metric = Metric::gauge(
    "bulkhead_stray_endpoints",
    "Pods of this node whose address lies outside their partition's range.",
    &["partition"],
);
pub const CONNECTIONS: Metric = Metric::gauge("bulkhead_connections", "Connections that are alive.", &[]);
pub const CONNECTIONS_LIMIT: Metric =
    Metric::gauge("bulkhead_connections_limit", "Connections that the node can track.", &[]);
pub const DROP_PACKETS: Metric = Metric::counter(
    "bulkhead_drop_packets_total",
    "Packets dropped; partition is empty where the packet was no known pod's.",
    &["reason", "partition", "direction"],
);
pub const DROP_BYTES: Metric = Metric::counter(
    "bulkhead_drop_bytes_total",
    "Octets of the packets dropped.",
    &["reason", "partition", "direction"],
);
pub const PEER_INFO: Metric =
    Metric::gauge("bulkhead_bgp_peer_info", "1; a BGP peer of this node.", &["peer", "address", "asn"]);
pub const PEER_STATE: Metric = Metric::gauge(
    "bulkhead_bgp_peer_state",
    "1 for the state (RFC 4271 section 8.2.2) that the session is in, 0 for the others.",
    &["peer", "state"],
);
pub const PEER_STATE_SECONDS: Metric = Metric::gauge(
    "bulkhead_bgp_peer_state_seconds",
    "Time in that state; of an established session its uptime.",
    &["peer"],
);
pub const PEER_ESTABLISHED: Metric =
    Metric::counter("bulkhead_bgp_peer_established_total", "How often the session came up.", &["peer"]);
pub const PEER_MESSAGES: Metric =
    Metric::counter("bulkhead_bgp_peer_messages_total", "BGP messages.", &["peer", "direction", "type"]);
pub const PEER_PREFIXES: Metric = Metric::gauge(
    "bulkhead_bgp_peer_prefixes",
    "Routes that the peer was sent and holds, and that it sent.",
    &["peer", "direction"],
);
pub const PEER_MAX_PREFIXES: Metric = Metric::gauge(
    "bulkhead_bgp_peer_max_prefixes",
    "Routes that the peer may announce in each IP version (`maxPrefixes.limit`). Absent: any number.",
    &["peer"],
);
pub const PEER_MANY_PREFIXES: Metric = Metric::gauge(
    "bulkhead_bgp_peer_many_prefixes",
    "1: the peer announces more than `maxPrefixes.warnPercent` of the routes that it may. Absent: it may announce any number.",
    &["peer"],
);
pub const PEER_GRACEFUL_RESTART: Metric = Metric::gauge(
    "bulkhead_bgp_peer_graceful_restart",
    "1: the peer keeps this node's routes while the daemon restarts.",
    &["peer"],
);
pub const PEER_ERROR: Metric = Metric::gauge(
    "bulkhead_bgp_peer_last_error_info",
    "1; why there is no session, or why routes are kept from it. Absent: nothing is wrong.",
    &["peer", "error"],
);
pub const BFD_UP: Metric =
    Metric::gauge("bulkhead_bfd_up", "1: the BFD session with the peer is up.", &["peer"]);
pub const BFD_DETECTION: Metric = Metric::gauge(
    "bulkhead_bfd_detection_seconds",
    "After such a silence of the peer the path to it counts as dead.",
    &["peer"],
);
pub const DRAINING: Metric = Metric::gauge(
    "bulkhead_draining",
    "1: announced as the last choice; 2: withdrawn. Absent: nothing is drained.",
    &["what"],
);
pub const BMP_UP: Metric =
    Metric::gauge("bulkhead_bmp_up", "1: the collector of BMP is connected.", &["collector"]);
pub const BMP_SESSIONS: Metric =
    Metric::counter("bulkhead_bmp_sessions_total", "Sessions with the collector that began.", &["collector"]);
pub const BMP_MESSAGES: Metric =
    Metric::counter("bulkhead_bmp_messages_total", "BMP messages sent to the collector.", &["collector"]);

pub const ALL: [&Metric; 31] = [
    &BUILD,
    &GENERATION,
    &GENERATION_SINCE,
    &HELD,
    &COMPILE,
    &LAST_CHANGE,
    &SOURCE_READY,
    &SOURCE_CHANGE,
    &PROBLEMS,
    &ENDPOINTS,
    &STRAYS,
    &CONNECTIONS,
    &CONNECTIONS_LIMIT,
    &DROP_PACKETS,
    &DROP_BYTES,
    &PEER_INFO,
    &PEER_STATE,
    &PEER_STATE_SECONDS,
    &PEER_ESTABLISHED,
    &PEER_MESSAGES,
    &PEER_PREFIXES,
    &PEER_MAX_PREFIXES,
    &PEER_MANY_PREFIXES,
    &PEER_GRACEFUL_RESTART,
    &PEER_ERROR,
    &BFD_UP,
    &BFD_DETECTION,
    &DRAINING,
    &BMP_UP,
    &BMP_SESSIONS,
    &BMP_MESSAGES,
];
