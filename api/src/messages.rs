//! Requests and replies on the daemon's unix socket: JSON over HTTP/1.
//!
//! | request | body | reply |
//! | --- | --- | --- |
//! | `POST /v1/cni/add` | [`Attach`] | [`Attachment`] |
//! | `POST /v1/cni/del` | [`Detach`] | `{}` |
//! | `POST /v1/cni/check` | [`Check`] | `{}` |
//! | `POST /v1/cni/gc` | [`Gc`] | `{}` |
//! | `GET /v1/cni/status` | | `{}`, or an error while an ADD would not work |
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/endpoints` | | `Vec<`[`EndpointInfo`]`>` |
//! | `GET /v1/partitions` | | `Vec<`[`PartitionInfo`]`>` |
//! | `POST /v1/explain` | [`ExplainRequest`] | [`Explanation`] |
//! | `GET /v1/policy/generations` | `?generation=N`: that one alone | `Vec<`[`GenerationInfo`]`>`, newest first |
//! | `POST /v1/policy/diff` | [`DiffRequest`] | [`PolicyDiff`] |
//! | `POST /v1/policy/rollback` | [`Rollback`] | [`GenerationInfo`]: what is in force now; the source is held |
//! | `POST /v1/policy/release` | `{}` | [`GenerationInfo`]: what is in force now, from the source |
//! | `POST /v1/policy/rules` | [`RulesRequest`] | `Vec<`[`RuleCountInfo`]`>`, by name |
//! | `GET /v1/drops` | | `Vec<`[`DropInfo`]`>` |
//! | `GET /v1/services` | | [`Services`] |
//! | `GET /v1/bgp/peers` | | `Vec<`[`BgpPeerInfo`]`>` |
//! | `POST /v1/bgp/routes` | [`BgpRoutesRequest`] | [`BgpRoutes`] |
//! | `POST /v1/bgp/why` | [`BgpWhyRequest`] | [`BgpWhy`] |
//! | `POST /v1/node/drain-routes` | [`DrainRequest`] | `Vec<`[`DrainInfo`]`>`: what is being drained now |
//!
//! Any other status than 200 carries an [`ErrorReply`].

mod bgp;
mod ports;
mod service;

pub use bgp::*;
pub use ports::*;
pub use service::*;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What names one interface of one container to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    pub container_id: String,
    pub ifname: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// CNI `runtimeConfig.bandwidth`: bits a second and bits; 0 is no limit. containerd writes the keys with a capital, as those of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeBandwidth {
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

/// CNI ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attach {
    #[serde(flatten)]
    pub id: AttachmentId,
    /// Path of the network namespace.
    pub netns: String,
    pub pod: PodRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<RuntimeBandwidth>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

/// What was wired; the same request again gives the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub host_interface: Interface,
    pub pod_interface: Interface,
    /// With host prefix lengths.
    pub addresses: Vec<IpNetwork>,
    pub routes: Vec<PodRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub name: String,
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRoute {
    pub dst: IpNetwork,
    pub gateway: IpAddr,
}

/// CNI DEL; also the format of a queued DEL on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Detach {
    #[serde(flatten)]
    pub id: AttachmentId,
    /// Absent when the namespace is gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
}

/// CNI CHECK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    #[serde(flatten)]
    pub id: AttachmentId,
    pub netns: String,
    /// Addresses of the result that the runtime holds (`prevResult`).
    pub addresses: Vec<IpNetwork>,
}

/// CNI GC: everything that is not named goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gc {
    pub valid: Vec<AttachmentId>,
}

/// Codes of the CNI specification (section "Error"), which the plugin hands to the runtime as they are.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNSUPPORTED_FIELD: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO_FAILURE: u32 = 5;
    pub const DECODE_FAILURE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot service ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: not available, and existing containers may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Ours: no free address in the partition's range.
    pub const NO_ADDRESS: u32 = 100;
    /// Ours: the kernel refused, or was found other than CHECK expects.
    pub const WIRING: u32 = 101;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct ErrorReply {
    pub code: u32,
    /// What is wrong, in one line.
    pub msg: String,
    /// Why, and what to do.
    #[serde(default)]
    pub details: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub node: String,
    pub version: String,
    /// Generation in force.
    pub generation: u32,
    /// Unix time, seconds, when it was switched to.
    pub generation_since: u64,
    /// Milliseconds from the change of the source to the switch, of the last change.
    pub last_change_millis: u64,
    pub endpoints: usize,
    pub connections: usize,
    /// The generation whose objects were brought back; the source is held until released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u32>,
    /// What is being drained, and how far that is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<DrainInfo>,
    /// How bandwidth is held: `tbf`.
    pub bandwidth: String,
    pub uplinks: Vec<UplinkInfo>,
    /// Objects that were refused; what was in force before still is.
    pub errors: Vec<ObjectError>,
}

/// An interface that leads out of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkInfo {
    pub name: String,
    pub mtu: u32,
    /// What made it one: `default route`, `by name`, `10.1.0.5 in 10.0.0.0/8`.
    pub chosen_by: String,
}

/// A generation this node has had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerationInfo {
    pub generation: u32,
    /// Unix time, seconds, since when these objects were in force.
    pub since: u64,
    /// The generation whose objects were brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<u32>,
    /// `Partition/web`.
    pub objects: Vec<String>,
    /// Against the generation before: `+Partition/new`, `~Partition/edited`, `-NetworkGroup/gone`.
    pub changed: Vec<String>,
}

/// One generation, or all that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GenerationsRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// Which generation's objects to bring back; none named: those before the ones in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rollback {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
}

/// Files as they would be: their objects in place of those in force.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiffRequest {
    pub files: Vec<FileText>,
    /// `Partition/web`: objects that would be removed.
    #[serde(default)]
    pub delete: Vec<String>,
    /// The files are all there would be: what is in force and not in them would be removed. Namespaces, pods and nodes stay.
    #[serde(default)]
    pub prune: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileText {
    pub name: String,
    pub text: String,
}

/// What a change would do.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDiff {
    /// `~Partition/web`, as in [`GenerationInfo`].
    pub changed: Vec<String>,
    pub changes: Vec<PolicyChange>,
    /// Live connections of this node that would be cut.
    pub cut_connections: usize,
}

/// Flows whose verdict turns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChange {
    /// Newly allowed; else newly denied.
    pub allows: bool,
    /// Who: `partition web`, `pods app=db in namespace shop`, `NetworkGroup/vms`, a prefix, `world`.
    pub from: Vec<String>,
    pub to: Vec<String>,
    /// `tcp`, `icmp`, `other protocols`, `any`.
    pub protocol: String,
    /// `8080`, `80, 8000-8090`, `all`; ICMP types.
    pub ports: String,
    pub example: ExampleFlow,
    /// The rule that decides now, and the one that would.
    pub before: RuleInfo,
    pub after: RuleInfo,
    /// Live connections of this node among these flows that would be cut.
    pub cut_connections: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleFlow {
    pub from: IpAddr,
    pub to: IpAddr,
    /// By number.
    pub protocol: u8,
    pub port: u16,
}

/// Why an object is not in force. Printed as `file: Kind/name: field: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectError {
    /// File, where the source has files; with a line (`web.yaml:12`) where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// `Partition/web`; absent where the file could not be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `spec.ingress[0].ports[1].endPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    pub message: String,
}

impl std::fmt::Display for ObjectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in [&self.file, &self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointInfo {
    #[serde(flatten)]
    pub id: AttachmentId,
    pub pod: PodRef,
    pub partition: String,
    pub addresses: Vec<IpAddr>,
    pub host_interface: String,
    pub mac: String,
    pub identity: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_class: Option<String>,
    /// Bits a second into and out of the pod; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionInfo {
    pub name: String,
    pub policy_id: u16,
    pub isolation: String,
    pub namespaces: Vec<String>,
    pub pod_cidrs: Vec<IpNetwork>,
    /// Blocks of this node.
    pub blocks: Vec<IpNetwork>,
    /// Pods of this node.
    pub endpoints: usize,
    /// Of those, pods whose address lies outside the partition's range.
    pub strays: usize,
}

/// An end of a flow: an address, `namespace/pod`, or `NetworkGroup/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainRequest {
    pub from: String,
    pub to: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number.
    pub protocol: String,
    /// Destination port or ICMP type.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub allowed: bool,
    pub generation: u32,
    pub from: ExplainedEnd,
    pub to: ExplainedEnd,
    pub protocol: String,
    pub port: u16,
    /// The initiator's egress, then the responder's ingress; only ends that are pods decide.
    pub decisions: Vec<ExplainedDecision>,
    /// A service was called, and the first of its backends is `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ExplainedService>,
    /// Of an end that is a network group: its parts that fare otherwise than the address shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<OtherPart>,
    /// Live connections of this flow that this node knows, the last seen first; no more than a page of them.
    #[serde(default)]
    pub connections: Vec<ConnectionInfo>,
    /// All of them.
    #[serde(default)]
    pub connections_found: usize,
}

/// A part of a network group whose verdict is another one than that of the address shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherPart {
    pub from: IpNetwork,
    pub to: IpNetwork,
    pub allowed: bool,
    /// The rule that decides.
    pub rule: RuleInfo,
}

/// A live connection, in its initiator's direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    pub from: IpAddr,
    pub to: IpAddr,
    /// The initiator's port; of ICMP the identifier.
    pub from_port: u16,
    /// `unanswered`, `answered`, `established`, `closing`, `closed`.
    pub state: String,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Both directions.
    pub packets: u64,
    pub bytes: u64,
    /// `direct`: from hook to interface; `stack`: through the host's stack.
    pub path: String,
    /// By the ends that are pods of this node; none where the node itself began it.
    pub admitted: Vec<AdmissionInfo>,
}

/// What one end's policy said when it last admitted a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionInfo {
    /// `egress` or `ingress`.
    pub direction: String,
    pub generation: u32,
    pub rule: RuleInfo,
    /// `established: Keep`: changes of the partition do not cut it.
    pub keep: bool,
}

/// What a pod of this node may use.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedBandwidth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Into and out of the pod; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<ExplainedRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<ExplainedRate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRate {
    /// Bits a second.
    pub rate: u64,
    /// `annotation`, `partition default`, `partition maximum`, `runtime`; `kept`: what asked for it is refused now.
    pub origin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEnd {
    pub address: IpAddr,
    /// `namespace/name` of a pod of this node, or that the source tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Groups and prefixes of rules that hold the address, and `node`, `controlPlane`, `world`.
    pub known_as: Vec<String>,
    pub identity: u32,
    /// Of a pod of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ExplainedBandwidth>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedDecision {
    /// `egress` or `ingress`.
    pub direction: String,
    pub partition: String,
    pub allowed: bool,
    /// `isolation: Audit`: a deny is only recorded.
    pub audit: bool,
    /// The rule that decided.
    pub rule: RuleInfo,
    /// What each tier that has a say about this pod says, in the order of decision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<TierDecision>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierDecision {
    /// `node`, `admin`, `partition`, `networkPolicy`, `baseline`.
    pub tier: String,
    /// `allow`, `deny`, `pass`, or `none` where no rule of the tier matches.
    pub verdict: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleInfo>,
}

/// A rule by name and origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleInfo {
    pub number: u32,
    /// `Partition/web egress "to-payments"`, or the name of a built-in rule.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Which rules to tell of.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesRequest {
    /// Only those that have decided on nothing.
    #[serde(default)]
    pub never_hit: bool,
    /// Only those that this partition's object writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

/// What a rule has decided on, on this node; where it allowed, both directions of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleCountInfo {
    pub rule: RuleInfo,
    /// Not gone from its object since.
    pub in_force: bool,
    pub packets: u64,
    pub bytes: u64,
    /// Connections that began under it.
    pub connections: u64,
    /// Unix time, seconds, of the last packet; absent: never hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_hit: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropInfo {
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// What to do about it, where no rule says that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    pub direction: String,
    pub packets: u64,
    pub bytes: u64,
}
