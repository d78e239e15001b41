//! What selectors can see of pods: which of them pick a pod, and what its named ports stand for.
//!
//! Not labels but the set of selectors that match is what identities are made of: pods that no selector tells apart are
//! one to the tables, however they are labelled.

use crate::{
    Labels, Objects,
    atom::{Atom, NamedPort},
    objects::Pod,
    selector,
};
use bulkhead_api::objects::{LabelSelector, Protocol};
use bulkhead_ebpf_abi::{SLOT_ICMP, SLOT_SCTP, SLOT_TCP, SLOT_UDP};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// Pods by namespace and label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodSelector {
    pub scope: Scope,
    pub labels: LabelSelector,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scope {
    Namespace(String),
    Namespaces(LabelSelector),
}

impl PodSelector {
    /// All pods of all namespaces are known by their addresses.
    pub fn atom(&self) -> Atom {
        match &self.scope {
            Scope::Namespaces(namespaces) if namespaces.is_empty() && self.labels.is_empty() => Atom::Pod,
            _ => Atom::Selected(self.to_string().into()),
        }
    }

    pub fn matches(&self, objects: &Objects, namespace: &str, labels: &Labels) -> bool {
        self.matches_namespace(namespace, &objects.labels(namespace))
            && selector::matches(&self.labels, labels)
    }

    /// `labels` are the namespace's.
    pub fn matches_namespace(&self, namespace: &str, labels: &Labels) -> bool {
        match &self.scope {
            Scope::Namespace(only) => only == namespace,
            Scope::Namespaces(selector) => selector::matches(selector, labels),
        }
    }
}

/// Whether it picks every node.
pub(crate) fn all_nodes(selector: &LabelSelector) -> bool {
    selector.is_empty()
}

pub(crate) fn node_atom(selector: &LabelSelector) -> Atom {
    if all_nodes(selector) { Atom::Node } else { Atom::Selected(format!("nodes {}", text(selector)).into()) }
}

/// With the text of its atom.
type Asked = (Arc<str>, Arc<PodSelector>);

/// Everything that the policies of one compile ask about pods.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Selections {
    /// By the text of their atom.
    selectors: BTreeMap<Arc<str>, Arc<PodSelector>>,
    /// Of these, the ones of one namespace each, by namespace.
    within: BTreeMap<String, Vec<Asked>>,
    /// And those that look at every namespace.
    across: Vec<Asked>,
    /// Of nodes, by the text of their atom.
    nodes: BTreeMap<Arc<str>, LabelSelector>,
    /// Names of ports that rules ask of their peers.
    port_names: BTreeSet<String>,
}

impl Selections {
    pub fn ask(&mut self, selector: PodSelector) {
        let Atom::Selected(text) = selector.atom() else { return };
        if self.selectors.contains_key(&text) {
            return;
        }
        let selector = Arc::new(selector);
        let beside = match &selector.scope {
            Scope::Namespace(namespace) => self.within.entry(namespace.clone()).or_default(),
            Scope::Namespaces(_) => &mut self.across,
        };
        beside.push((text.clone(), selector.clone()));
        self.selectors.insert(text, selector);
    }

    pub fn ask_nodes(&mut self, selector: LabelSelector) {
        if let Atom::Selected(text) = node_atom(&selector) {
            self.nodes.insert(text, selector);
        }
    }

    /// What selectors see of a node.
    pub fn node_facts(&self, labels: &Labels) -> impl Iterator<Item = Atom> {
        let picking = self.nodes.iter().filter(|(_, s)| selector::matches(s, labels));
        picking.map(|(text, _)| Atom::Selected(text.clone()))
    }

    pub fn ask_port(&mut self, name: &str) {
        self.port_names.insert(name.into());
    }

    /// What each name that is asked for stands for anywhere in the cluster.
    pub fn named_ports<'a>(&self, all: impl Iterator<Item = &'a NamedPort>) -> BTreeSet<NamedPort> {
        all.filter(|p| self.port_names.contains(&p.name)).cloned().collect()
    }

    /// The selectors that can match in a namespace.
    pub fn within<'a>(&'a self, objects: &Objects, namespace: &str) -> Within<'a> {
        let labels = objects.labels(namespace);
        let of_namespace = self.within.get(namespace).into_iter().flatten();
        let across = self.across.iter().filter(|(_, s)| s.matches_namespace(namespace, &labels));
        let selectors = of_namespace.chain(across).map(|(text, selector)| (text, &**selector)).collect();
        Within { all: self, selectors }
    }

    /// Selectors that only one of the two asks for.
    pub fn unlike<'a>(&'a self, other: &'a Self) -> Vec<&'a PodSelector> {
        let lacks = |of: &Self, text: &Arc<str>| !of.selectors.contains_key(text);
        let new = self.selectors.iter().filter(|(text, _)| lacks(other, text));
        let gone = other.selectors.iter().filter(|(text, _)| lacks(self, text));
        new.chain(gone).map(|(_, selector)| &**selector).collect()
    }

    /// Whether both ask the same of nodes.
    pub fn same_nodes(&self, other: &Self) -> bool {
        self.nodes == other.nodes
    }

    pub fn port_names(&self) -> &BTreeSet<String> {
        &self.port_names
    }
}

pub(crate) struct Within<'a> {
    all: &'a Selections,
    selectors: Vec<(&'a Arc<str>, &'a PodSelector)>,
}

impl Within<'_> {
    /// What rules see of a pod besides its addresses, sorted; of one that no source tells of, by its namespace.
    pub fn facts(&self, pod: Option<&Pod>) -> Vec<Atom> {
        let none = Labels::default();
        let labels = pod.map_or(&none, |p| &p.labels);
        let picked = self.selectors.iter().filter(|(_, s)| selector::matches(&s.labels, labels));
        let ports = pod.into_iter().flat_map(named_ports).filter(|p| self.all.port_names.contains(&p.name));
        let facts: BTreeSet<Atom> = picked
            .map(|(text, _)| Atom::Selected((*text).clone()))
            .chain(ports.map(Atom::NamedPort))
            .collect();
        facts.into_iter().collect()
    }
}

pub(crate) fn named_ports(pod: &Pod) -> impl Iterator<Item = NamedPort> {
    pod.ports.iter().map(|p| {
        let slot = match p.protocol {
            Protocol::TCP => SLOT_TCP,
            Protocol::UDP => SLOT_UDP,
            Protocol::SCTP => SLOT_SCTP,
            Protocol::ICMP => SLOT_ICMP,
        };
        NamedPort { name: p.name.clone(), slot, port: p.port }
    })
}

/// `pods app=db in namespace web`, `pods in namespaces team in (a, b)`. Equal texts mean equal selectors.
impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pods ")?;
        if !self.labels.is_empty() {
            write!(f, "{} ", text(&self.labels))?;
        }
        match &self.scope {
            Scope::Namespace(name) => write!(f, "in namespace {}", word(name)),
            Scope::Namespaces(selector) if selector.is_empty() => f.write_str("in all namespaces"),
            Scope::Namespaces(selector) => write!(f, "in namespaces {}", text(selector)),
        }
    }
}

/// A selector as `kubectl` writes it.
fn text(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter();
    let mut parts: Vec<String> = labels.map(|(k, v)| format!("{}={}", word(k), word(v))).collect();
    for r in &selector.match_expressions {
        let values: BTreeSet<String> = r.values.iter().map(|v| word(v)).collect();
        let values = values.into_iter().collect::<Vec<_>>().join(", ");
        parts.push(match &*r.operator {
            "In" => format!("{} in ({values})", word(&r.key)),
            "NotIn" => format!("{} notin ({values})", word(&r.key)),
            "Exists" => word(&r.key),
            "DoesNotExist" => format!("!{}", word(&r.key)),
            other => format!("{} {} ({values})", word(&r.key), word(other)),
        });
    }
    parts.sort_unstable();
    parts.dedup();
    parts.join(",")
}

/// What could be taken for more than one word is quoted.
fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) { text.into() } else { format!("{text:?}") }
}
