//! One YAML file into objects, or into an error that names file, object and field.

use super::{PodInfo, pod, service};
use crate::{
    Labels, NodeInfo, RuleLines, Sourced,
    objects::with_name,
    service::{EndpointSlice, Service},
};
use bulkhead_api::{
    messages::ObjectError,
    objects::{
        ANNOTATION_DRAIN_ROUTES, API_VERSION, BGPConfigurationSpec, BGPPeerSpec, BandwidthClassSpec,
        ClusterNetworkPolicySpec, IPBlockSpec, IPReservationSpec, NetworkGroupSpec, NetworkPolicySpec,
        PartitionSpec,
    },
};
use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery, networking::v1::NetworkPolicy},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::{fmt, net::IpAddr, sync::Arc};

/// A label of the nodes that run the API server.
const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";
const KINDS: &str = "Partition, NetworkGroup, BandwidthClass, BGPPeer, BGPConfiguration, IPReservation and IPBlock of bulkhead.dev/v1alpha1, \
                     Namespace, Pod, Node and Service of v1, EndpointSlice of discovery.k8s.io/v1, \
                     NetworkPolicy of networking.k8s.io/v1, \
                     ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    Partition(String, Arc<Sourced<PartitionSpec>>),
    NetworkGroup(String, Arc<Sourced<NetworkGroupSpec>>),
    BandwidthClass(String, Arc<Sourced<BandwidthClassSpec>>),
    BgpPeer(String, Box<Sourced<BGPPeerSpec>>),
    BgpConfiguration(String, Box<Sourced<BGPConfigurationSpec>>),
    /// By `namespace/name`.
    IpReservation(String, Arc<IPReservationSpec>),
    IpBlock(String, Arc<IPBlockSpec>),
    Namespace(String, Arc<Labels>),
    /// By `namespace/name`.
    Pod(String, PodInfo),
    /// By `namespace/name`.
    NetworkPolicy(String, Arc<Sourced<NetworkPolicySpec>>),
    ClusterNetworkPolicy(String, Arc<Sourced<ClusterNetworkPolicySpec>>),
    Node(String, Arc<NodeInfo>),
    /// By `namespace/name`, as the next.
    Service(String, Arc<Service>),
    EndpointSlice(String, Arc<EndpointSlice>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Partition,
    NetworkGroup,
    BandwidthClass,
    BgpPeer,
    BgpConfiguration,
    IpReservation,
    IpBlock,
    Namespace,
    Pod,
    NetworkPolicy,
    ClusterNetworkPolicy,
    Node,
    Service,
    EndpointSlice,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Partition,
        Self::NetworkGroup,
        Self::BandwidthClass,
        Self::BgpPeer,
        Self::BgpConfiguration,
        Self::IpReservation,
        Self::IpBlock,
        Self::Namespace,
        Self::Pod,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
    ];

    /// By its name in objects, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_string().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BgpPeer => f.write_str("BGPPeer"),
            Self::BgpConfiguration => f.write_str("BGPConfiguration"),
            Self::IpReservation => f.write_str("IPReservation"),
            Self::IpBlock => f.write_str("IPBlock"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Object {
    /// What may stand only once in a source: kind, and name (`namespace/name` where the kind has a namespace).
    pub fn id(&self) -> (Kind, &str) {
        match self {
            Self::Partition(name, _) => (Kind::Partition, name),
            Self::NetworkGroup(name, _) => (Kind::NetworkGroup, name),
            Self::BandwidthClass(name, _) => (Kind::BandwidthClass, name),
            Self::BgpPeer(name, _) => (Kind::BgpPeer, name),
            Self::BgpConfiguration(name, _) => (Kind::BgpConfiguration, name),
            Self::IpReservation(key, _) => (Kind::IpReservation, key),
            Self::IpBlock(name, _) => (Kind::IpBlock, name),
            Self::Namespace(name, _) => (Kind::Namespace, name),
            Self::Pod(key, _) => (Kind::Pod, key),
            Self::NetworkPolicy(key, _) => (Kind::NetworkPolicy, key),
            Self::ClusterNetworkPolicy(name, _) => (Kind::ClusterNetworkPolicy, name),
            Self::Node(name, _) => (Kind::Node, name),
            Self::Service(key, _) => (Kind::Service, key),
            Self::EndpointSlice(key, _) => (Kind::EndpointSlice, key),
        }
    }

    /// `Partition/web`, as messages say it.
    pub fn key(&self) -> String {
        let (kind, name) = self.id();
        format!("{kind}/{name}")
    }
}

/// All objects of a file, or the first thing that is wrong with it. `file` is its name within the directory.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, ObjectError> {
    documents(text)
        .into_iter()
        .filter_map(|(line, document)| parse_document(file, line, document).transpose())
        .collect()
}

/// The documents of a file with the line each begins on.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        if line.trim_end() == "---" {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (end, number + 2);
        }
        offset = end;
    }
    documents.push((start_line, &text[start..]));
    documents
}

fn parse_document(file: &str, first_line: usize, text: &str) -> Result<Option<Object>, ObjectError> {
    let error = |line: usize, object: Option<String>, field: Option<String>, message: String| ObjectError {
        file: Some(format!("{file}:{line}")),
        object,
        field,
        message,
    };
    let value: Option<Value> = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map_or(first_line, |l| first_line + l.line() as usize - 1);
        error(line, None, None, format!("not valid YAML: {}", without_snippet(&e.to_string())))
    })?;
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(None) };
    // The line of the document's first word: where the object begins.
    let line = first_line + text.lines().take_while(|l| l.trim().is_empty() || l.starts_with('#')).count();
    let text_of = |path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_string);
    let (api_version, kind) = (text_of("/apiVersion"), text_of("/kind"));
    let (Some(api_version), Some(kind)) = (api_version, kind) else {
        return Err(error(line, None, Some("kind".into()), "an object needs apiVersion and kind".into()));
    };
    let Some(name) = text_of("/metadata/name").filter(|n| !n.is_empty()) else {
        return Err(error(line, Some(kind), Some("metadata.name".into()), "an object needs a name".into()));
    };
    let origin = Origin { file: format!("{file}:{line}"), first_line, text };
    typed(&api_version, &kind, &name, value, Some(origin))
        .map(Some)
        .map_err(|(field, message)| error(line, Some(format!("{kind}/{name}")), field, message))
}

/// Where an object stands, and its document.
pub struct Origin<'a> {
    file: String,
    first_line: usize,
    text: &'a str,
}

fn plain<T>(spec: T, origin: Option<Origin<'_>>) -> Sourced<T> {
    Sourced::new(spec, origin.map(|o| o.file))
}

/// With the lines of its rules.
fn with_rules<T>(spec: T, origin: Option<Origin<'_>>) -> Arc<Sourced<T>> {
    let lines = origin.as_ref().map(|o| rule_lines(o.first_line, o.text)).unwrap_or_default();
    Arc::new(Sourced { lines, ..plain(spec, origin) })
}

/// What of a document has positions that people are told; a `Value` has lost them.
#[derive(Deserialize)]
struct Positions {
    spec: RulePositions,
}

#[derive(Deserialize, Default)]
struct RulePositions {
    #[serde(default)]
    ingress: Option<Vec<Spanned<IgnoredAny>>>,
    #[serde(default)]
    egress: Option<Vec<Spanned<IgnoredAny>>>,
}

/// Where the items of `spec.ingress` and `spec.egress` begin; an alias where it is used.
fn rule_lines(first_line: usize, text: &str) -> RuleLines {
    let spec = serde_saphyr::from_str(text).map_or_else(|_| RulePositions::default(), |p: Positions| p.spec);
    let line = |item: &Spanned<IgnoredAny>| {
        let within = usize::try_from(item.referenced.line()).ok()?;
        u32::try_from((first_line + within).checked_sub(1)?).ok().filter(|_| within > 0)
    };
    let lines = |items: Option<Vec<_>>| items.iter().flatten().map(line).collect::<Option<Vec<_>>>();
    RuleLines {
        egress: lines(spec.egress).unwrap_or_default(),
        ingress: lines(spec.ingress).unwrap_or_default(),
    }
}

pub type FieldError = (Option<String>, String);

/// One object of an API version and kind; `origin`: where it stands, in a source of files. The error: a field, if it is
/// one's, and what is wrong.
pub fn typed(
    api_version: &str,
    kind: &str,
    name: &str,
    value: Value,
    origin: Option<Origin<'_>>,
) -> Result<Object, FieldError> {
    let name = name.to_string();
    Ok(match (api_version, kind) {
        (API_VERSION, "Partition") => Object::Partition(name, with_rules(spec(value)?, origin)),
        (API_VERSION, "NetworkGroup") => Object::NetworkGroup(name, Arc::new(plain(spec(value)?, origin))),
        (API_VERSION, "BandwidthClass") => {
            Object::BandwidthClass(name, Arc::new(plain(spec(value)?, origin)))
        }
        (API_VERSION, "BGPPeer") => Object::BgpPeer(name, Box::new(plain(spec(value)?, origin))),
        (API_VERSION, "BGPConfiguration") => {
            if name != "default" {
                let message =
                    format!("there is one BGPConfiguration, and its name is `default`, not `{name}`");
                return Err((Some("metadata.name".into()), message));
            }
            Object::BgpConfiguration(name, Box::new(plain(spec(value)?, origin)))
        }
        (API_VERSION, "IPReservation") => {
            let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
            let key = format!("{namespace}/{name}");
            Object::IpReservation(key, Arc::new(spec(value)?))
        }
        (API_VERSION, "IPBlock") => Object::IpBlock(name, Arc::new(spec(value)?)),
        ("v1", "Namespace") => {
            let labels = read::<v1::Namespace>(value)?.metadata.labels.unwrap_or_default();
            let labels = with_name(labels.into(), &name);
            Object::Namespace(name, Arc::new(labels))
        }
        ("v1", "Pod") => {
            let pod = read::<v1::Pod>(value)?;
            let key = format!("{}/{name}", namespace_of(&pod.metadata));
            Object::Pod(key, pod::info(pod)?)
        }
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            let policy = strict::<NetworkPolicy>(value)?;
            let key = format!("{}/{name}", namespace_of(&policy.metadata));
            Object::NetworkPolicy(key, with_rules(policy.spec.unwrap_or_default().into(), origin))
        }
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
            Object::ClusterNetworkPolicy(name, with_rules(spec(value)?, origin))
        }
        ("v1", "Node") => Object::Node(name, Arc::new(node(read::<v1::Node>(value)?)?)),
        ("v1", "Service") => {
            let read = read::<v1::Service>(value)?;
            let key = format!("{}/{name}", namespace_of(&read.metadata));
            Object::Service(key, Arc::new(service::service(read)?))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let slice = read::<discovery::EndpointSlice>(value)?;
            let namespace = namespace_of(&slice.metadata);
            let key = format!("{namespace}/{name}");
            Object::EndpointSlice(key, Arc::new(service::endpoint_slice(slice, &namespace)?))
        }
        _ => {
            let message = format!("{api_version} {kind} is not a kind of this source: it reads {KINDS}");
            return Err((Some("kind".into()), message));
        }
    })
}

fn namespace_of(metadata: &ObjectMeta) -> String {
    metadata.namespace.clone().unwrap_or_else(|| "default".into())
}

/// What is read of an object besides its name; its status is the reporters'.
#[derive(Deserialize)]
struct Written<T> {
    spec: T,
}

/// As [`read`], of a type that passes over what it does not know: a misspelt field of a policy must not be lost.
fn strict<T: DeserializeOwned + Serialize>(value: Value) -> Result<T, FieldError> {
    let spec = value.get("spec").cloned();
    let object: T = read(value)?;
    let understood = serde_json::to_value(&object).ok().and_then(|mut o| o.get_mut("spec").map(Value::take));
    match spec.zip(understood).and_then(|(spec, understood)| lost(&spec, &understood, "spec")) {
        Some(field) => {
            Err((Some(field), "is not a field of this kind: correct its name or remove it".into()))
        }
        None => Ok(object),
    }
}

/// The first field of `written` that `understood` lacks.
fn lost(written: &Value, understood: &Value, path: &str) -> Option<String> {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            written.iter().filter(|(_, v)| !v.is_null()).find_map(|(key, value)| {
                let path = format!("{path}.{key}");
                match understood.get(key) {
                    Some(understood) => lost(value, understood, &path),
                    None => Some(path),
                }
            })
        }
        (Value::Array(written), Value::Array(understood)) => written
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(i, (written, understood))| lost(written, understood, &format!("{path}[{i}]"))),
        _ => None,
    }
}

fn spec<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    Ok(read::<Written<T>>(value)?.spec)
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let field = (path != ".").then_some(path);
        (field, e.into_inner().to_string())
    })
}

fn node(node: v1::Node) -> Result<NodeInfo, FieldError> {
    let labels = Labels::from(node.metadata.labels.unwrap_or_default());
    let drain_routes = node.metadata.annotations.and_then(|mut all| all.remove(ANNOTATION_DRAIN_ROUTES));
    let mut addresses = Vec::new();
    let listed = node.status.and_then(|s| s.addresses).unwrap_or_default();
    for (i, address) in listed.into_iter().enumerate().filter(|(_, a)| a.type_.ends_with("IP")) {
        let ip: IpAddr = address.address.parse().map_err(|_| {
            let field = format!("status.addresses[{i}].address");
            (Some(field), format!("`{}` is not an IP address", address.address))
        })?;
        addresses.push(ip);
    }
    let control_plane = labels.contains_key(CONTROL_PLANE_LABEL);
    Ok(NodeInfo { addresses, control_plane, labels, drain_routes })
}

/// The parser's message without the excerpt of the text it adds below.
fn without_snippet(message: &str) -> &str {
    message.lines().next().unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse("web.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_file_may_hold_several_documents_and_comments() {
        let text = "# groups\n---\napiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\n\
                    spec: {cidrs: [10.0.0.0/8]}\n---\n# empty\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n";
        let objects = parse("a.yaml", text).unwrap();
        assert_eq!(
            objects.iter().map(Object::key).collect::<Vec<_>>(),
            ["NetworkGroup/vms", "Namespace/web"]
        );
        let Object::NetworkGroup(_, group) = &objects[0] else { panic!("{objects:?}") };
        assert_eq!(group.file.as_deref(), Some("a.yaml:3"));
    }

    fn lines(text: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
        let lines = |object: &Object| match object {
            Object::Partition(_, o) => o.lines.clone(),
            Object::NetworkPolicy(_, o) => o.lines.clone(),
            Object::ClusterNetworkPolicy(_, o) => o.lines.clone(),
            _ => RuleLines::default(),
        };
        parse("a.yaml", text).unwrap().iter().map(lines).map(|l| (l.egress, l.ingress)).collect()
    }

    #[test]
    fn a_rule_is_where_its_own_item_begins_in_block_and_in_flow_style() {
        let text = "# partitions\n---\napiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: web}\nspec:\n  \
                    policyID: 1\n  podCIDRs: [10.0.0.0/8]\n  ingress:\n  # the first\n  - from: [{networkGroup: vms}]\n    \
                    ports: [{port: 1}]\n\n  - name: second\n    from: []\n  egress: [{to: [{partition: a}]}, {to: [\n    \
                    {partition: b}]},\n    {to: []}]\n\
                    ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db}\n\
                    spec: {podSelector: {}, ingress: [{}]}\n\
                    ---\n{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: x},\n  spec: \
                    {tier: Admin, priority: 1, subject: {namespaces: {}},\n    egress: [{action: Deny, to: [{namespaces: {}}]}]}}\n";
        assert_eq!(lines(text), [(vec![16, 16, 18], vec![11, 14]), (vec![], vec![23]), (vec![27], vec![])]);
    }

    #[test]
    fn a_rule_by_alias_is_where_it_is_used_and_a_key_on_a_line_of_its_own_begins_the_item() {
        let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: web}\nspec:\n  policyID: 1\n  \
                    podCIDRs: [10.0.0.0/8]\n  ingress:\n  - &a\n    name: one\n  - *a\n";
        let [(_, ingress)] = lines(text).try_into().unwrap();
        assert!(ingress[0] == 8 || ingress[0] == 9, "{ingress:?}");
        assert_eq!(ingress[1], 10);
    }

    #[test]
    fn bad_yaml_names_file_and_line() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: [\n";
        let m = message(text);
        assert!(m.starts_with("web.yaml:") && m.contains("not valid YAML"), "{m}");
    }

    #[test]
    fn an_unknown_field_is_named_with_its_object() {
        let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: web}\n\
                    spec: {policyID: 1, podCIDRs: [10.0.0.0/8], ingress: [{form: []}]}\n";
        let m = message(text);
        assert!(m.starts_with("web.yaml:1: Partition/web: spec.ingress[0]"), "{m}");
        assert!(m.contains("form"), "{m}");
    }

    #[test]
    fn a_bad_cidr_names_its_field() {
        let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\nspec: {cidrs: [10.0.0.0/33]}\n";
        let m = message(text);
        assert!(m.starts_with("web.yaml:1: NetworkGroup/vms: spec.cidrs[0]: "), "{m}");
    }

    #[test]
    fn an_unknown_kind_is_refused_with_the_known_ones() {
        let m = message("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n");
        assert!(m.contains("v1 Secret is not a kind of this source") && m.contains("NetworkGroup"), "{m}");
    }
}
