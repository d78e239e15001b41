//! The tables: what is wanted as chains, rules and sets, the messages that make them, and what is read back of them. Pure.
//!
//! ```text
//!  prerouting, output ─▶ (address, protocol, port) in hostports? ─▶ the pod
//!                        one of the node's, (protocol, port) in anyports? ─▶ the pod
//!  postrouting ─▶ from a pod to itself, from the loopback to a pod ─▶ from the node's address
//!                 from a masqueraded range, and neither to the cluster nor to whom it excepts ─▶ masquerade
//!  before connections are known ─▶ from a pod to the loopback ─▶ dropped
//! ```
//! Priorities are just before kube-proxy's: a pod that asked for a port of this node has it.

use super::{
    HostPort, HostPorts, Nat, conntrack,
    element::Element,
    expression::{self, family, octets},
    ranges,
    rules::{
        ANY_PORTS, CLUSTER, EXCEPTED, HOST_PORTS, MASQUERADED, PODS, Rule, address_field, as_the_node,
        comment, loopback_is_not_the_pods, masquerades, to_pods,
    },
    wire::{self, Attributes, Message, NF_TABLES},
};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// Name of both tables.
pub const TABLE: &str = "bulkhead";

/// `enum nf_tables_msg_types`. DESTROY is DEL that is content with what is missing (Linux 6.3).
pub mod message {
    pub const NEW_TABLE: u8 = 0;
    pub const NEW_CHAIN: u8 = 3;
    pub const NEW_RULE: u8 = 6;
    pub const GET_RULE: u8 = 7;
    pub const NEW_SET: u8 = 9;
    pub const GET_SET: u8 = 10;
    pub const NEW_ELEMENTS: u8 = 12;
    pub const GET_ELEMENTS: u8 = 13;
    pub const NEW_GENERATION: u8 = 15;
    pub const GET_GENERATION: u8 = 16;
    pub const DESTROY_TABLE: u8 = 26;
    pub const DESTROY_ELEMENTS: u8 = 30;
}
use message as m;

/// Of attributes of a rule or a list of elements.
const OF_TABLE: u16 = 1;
const OF_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const SET_NAME: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
/// An attribute's length has 16 bits.
const ELEMENTS_AT_ONCE: usize = 256;

const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// kube-proxy's are -100 and 100.
const BEFORE_DNAT: i32 = -110;
const BEFORE_SNAT: i32 = 90;
const RAW: i32 = -300;

/// nft's own numbers of types, by which it prints.
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub v6: bool,
    chains: Vec<Chain>,
    sets: Vec<Set>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
    rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Map,
    Set,
    Intervals,
    /// Of two fields, each an interval.
    Pairs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    name: &'static str,
    kind: Kind,
    /// nft's types of the key's fields, and how long they are.
    fields: Vec<(u32, u32)>,
    elements: BTreeSet<Element>,
}

/// None where nothing is wanted of a family.
pub fn tables(nat: &Nat) -> Vec<Table> {
    [false, true].into_iter().filter_map(|v6| table(nat, v6)).collect()
}

fn table(nat: &Nat, v6: bool) -> Option<Table> {
    let source = if v6 { nat.sources.v6.map(IpAddr::V6) } else { nat.sources.v4.map(IpAddr::V4) };
    let ports: Vec<_> = nat.ports.iter().filter(|(port, _)| port.address.is_ipv6() == v6).collect();
    let masquerade: Vec<_> =
        nat.masquerade.ranges.iter().filter(|(range, _)| range.is_ipv6() == v6).collect();
    let (mut chains, mut sets, mut post) = (Vec::new(), Vec::new(), Vec::new());
    if !ports.is_empty() {
        let chain = |name, hook| Chain { name, kind: "nat", hook, priority: BEFORE_DNAT, rules: to_pods(v6) };
        chains.extend([chain("prerouting", PREROUTING), chain("output", OUTPUT)]);
        if !v6 {
            let rules = vec![loopback_is_not_the_pods()];
            chains.push(Chain { name: "loopback", kind: "filter", hook: PREROUTING, priority: RAW, rules });
        }
        sets.extend(port_sets(&ports, v6));
        post.extend(source.into_iter().flat_map(|source| as_the_node(source, v6)));
    }
    if !masquerade.is_empty() {
        sets.extend(masquerade_sets(&masquerade, nat, v6));
        post.extend(masquerades(v6));
    }
    if !post.is_empty() {
        chains.push(Chain {
            name: "postrouting",
            kind: "nat",
            hook: POSTROUTING,
            priority: BEFORE_SNAT,
            rules: post,
        });
    }
    (!chains.is_empty()).then_some(Table { v6, chains, sets })
}

fn port_sets(ports: &[(&HostPort, &SocketAddr)], v6: bool) -> [Set; 3] {
    let (address, port) = (address_field(v6), [(TYPE_PROTOCOL, 1), (TYPE_PORT, 2)]);
    let of = |any: bool| -> BTreeSet<Element> {
        let kind = ports.iter().filter(|(port, _)| port.address.is_unspecified() == any);
        kind.map(|(port, to)| Element::of_port(port, to)).collect()
    };
    let itself = ports.iter().map(|(_, to)| Element::of([octets(to.ip()), octets(to.ip())].concat()));
    [
        Set {
            name: HOST_PORTS,
            kind: Kind::Map,
            fields: [&[address][..], &port].concat(),
            elements: of(false),
        },
        Set { name: ANY_PORTS, kind: Kind::Map, fields: port.to_vec(), elements: of(true) },
        Set { name: PODS, kind: Kind::Set, fields: vec![address, address], elements: itself.collect() },
    ]
}

fn masquerade_sets(masquerade: &[&(IpNetwork, Vec<IpNetwork>)], nat: &Nat, v6: bool) -> [Set; 3] {
    let address = address_field(v6);
    let intervals = |prefixes: Vec<IpNetwork>| -> BTreeSet<Element> {
        let ends = ranges::merged(prefixes, v6).into_iter().flat_map(|(first, last)| {
            let end = ranges::next(last).map(|next| Element { is_end: true, ..Element::of(octets(next)) });
            [Some(Element::of(octets(first))), end]
        });
        ends.flatten().collect()
    };
    // The kernel takes no pairs that overlap: ranges that except the same are one.
    let mut by_exceptions = BTreeMap::<Vec<_>, Vec<IpNetwork>>::new();
    for (range, except) in masquerade {
        by_exceptions.entry(ranges::merged(except.iter().copied(), v6)).or_default().push(*range);
    }
    let excepted = by_exceptions.iter().flat_map(|(except, own)| {
        let own = ranges::merged(own.iter().copied(), v6);
        own.into_iter().flat_map(move |(from, to)| {
            except.iter().map(move |(first, last)| Element {
                key_end: Some([octets(to), octets(*last)].concat()),
                ..Element::of([octets(from), octets(*first)].concat())
            })
        })
    });
    let set = |name, kind, fields, elements| Set { name, kind, fields, elements };
    let own = masquerade.iter().map(|(range, _)| *range).collect();
    [
        set(MASQUERADED, Kind::Intervals, vec![address], intervals(own)),
        set(CLUSTER, Kind::Intervals, vec![address], intervals(nat.masquerade.cluster.clone())),
        set(EXCEPTED, Kind::Pairs, vec![address, address], excepted.collect()),
    ]
}

/// Messages that lead from one to the other in one transaction; `None`: some of it must be made anew.
pub fn difference(before: &Nat, after: &Nat) -> Option<Vec<Message>> {
    let (before, after) = (tables(before), tables(after));
    let same =
        before.len() == after.len() && before.iter().zip(&after).all(|(a, b)| a.skeleton() == b.skeleton());
    if !same {
        return None;
    }
    let mut messages = Vec::new();
    for (before, after) in before.iter().zip(&after) {
        for (old, new) in before.sets.iter().zip(&after.sets) {
            let gone: Vec<_> = old.elements.difference(&new.elements).collect();
            let come: Vec<_> = new.elements.difference(&old.elements).collect();
            // Whoever was killed may have left one that nobody knows of.
            messages.extend(after.elements(m::DESTROY_ELEMENTS, new.name, &[&gone[..], &come].concat()));
            messages.extend(after.elements(m::NEW_ELEMENTS, new.name, &come));
        }
    }
    Some(messages)
}

/// Messages that make all of it, whatever is there.
pub fn anew(nat: &Nat) -> Vec<Message> {
    let destroy = [false, true].map(|v6| {
        let name = Attributes::new().text(OF_TABLE, TABLE);
        Message::new(NF_TABLES, m::DESTROY_TABLE, family(v6), 0, name)
    });
    destroy.into_iter().chain(tables(nat).iter().flat_map(Table::messages)).collect()
}

impl Table {
    /// All but the elements that come and go with pods.
    fn skeleton(&self) -> Self {
        let mut skeleton = self.clone();
        let of_pods = |set: &&mut Set| matches!(set.kind, Kind::Map | Kind::Set);
        skeleton.sets.iter_mut().filter(of_pods).for_each(|set| set.elements.clear());
        skeleton
    }

    fn create(&self, message: u8, flags: u16, attributes: Attributes) -> Message {
        Message::new(NF_TABLES, message, family(self.v6), NLM_F_CREATE | flags, attributes)
    }

    fn named() -> Attributes {
        Attributes::new().text(OF_TABLE, TABLE)
    }

    fn messages(&self) -> Vec<Message> {
        let mut messages = vec![self.create(m::NEW_TABLE, 0, Self::named())];
        for (id, set) in (1..).zip(&self.sets) {
            messages.push(self.create(m::NEW_SET, 0, set.attributes(id, self.v6)));
            messages.extend(self.elements(
                m::NEW_ELEMENTS,
                set.name,
                &set.elements.iter().collect::<Vec<_>>(),
            ));
        }
        for chain in &self.chains {
            let hook = Attributes::new().u32(1, chain.hook).u32(2, chain.priority as u32);
            let attributes = Self::named().text(3, chain.name).nest(4, hook).text(7, chain.kind);
            messages.push(self.create(m::NEW_CHAIN, 0, attributes));
            for rule in &chain.rules {
                let attributes = Self::named()
                    .text(OF_CHAIN, chain.name)
                    .nest(RULE_EXPRESSIONS, expression::list(&rule.expressions))
                    .bytes(RULE_USERDATA, &comment(&rule.comment()));
                messages.push(self.create(m::NEW_RULE, NLM_F_APPEND, attributes));
            }
        }
        messages
    }

    fn elements(&self, message: u8, set: &str, elements: &[&Element]) -> Vec<Message> {
        let destroyed = message == m::DESTROY_ELEMENTS;
        let of_some = |some: &[&Element]| {
            let list = some
                .iter()
                .fold(Attributes::new(), |list, element| list.nest(ELEMENT, element.attributes(destroyed)));
            let attributes = Self::named().text(SET_NAME, set).nest(ELEMENTS, list);
            let flags = if destroyed { 0 } else { NLM_F_CREATE };
            Message::new(NF_TABLES, message, family(self.v6), flags, attributes)
        };
        elements.chunks(ELEMENTS_AT_ONCE).map(of_some).collect()
    }
}

impl Set {
    fn attributes(&self, id: u32, v6: bool) -> Attributes {
        const MAP: u32 = 0x8;
        const INTERVAL: u32 = 0x4;
        const CONCATENATED: u32 = 0x80;
        let flags = match self.kind {
            Kind::Map => MAP,
            Kind::Set => 0,
            Kind::Intervals => INTERVAL,
            Kind::Pairs => INTERVAL | CONCATENATED,
        };
        let kind_of = |fields: &[(u32, u32)]| fields.iter().fold(0, |all, (kind, _)| all << 6 | kind);
        let length_of =
            |fields: &[(u32, u32)]| fields.iter().map(|(_, l)| l.next_multiple_of(4)).sum::<u32>();
        let mut all = Table::named()
            .text(SET_NAME, self.name)
            .u32(3, flags)
            .u32(4, kind_of(&self.fields))
            .u32(5, length_of(&self.fields))
            .u32(10, id);
        if self.kind == Kind::Map {
            let to = [address_field(v6), (TYPE_PORT, 2)];
            all = all.u32(6, kind_of(&to)).u32(7, length_of(&to));
        }
        if self.kind == Kind::Pairs {
            let lengths = self
                .fields
                .iter()
                .fold(Attributes::new(), |list, (_, length)| list.nest(1, Attributes::new().u32(1, *length)));
            all = all.nest(9, Attributes::new().nest(2, lengths));
        }
        all
    }
}

/// What is in the kernel, or should be: rules by chain, by their comments; elements by set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    rules: BTreeMap<(u8, String), Vec<String>>,
    pub(super) sets: BTreeMap<(u8, String), BTreeSet<Element>>,
}

impl Found {
    pub fn expected(nat: &Nat) -> Self {
        let mut found = Self::default();
        for table in tables(nat) {
            let family = family(table.v6);
            for chain in table.chains {
                let comments = chain.rules.iter().map(Rule::comment).collect();
                found.rules.insert((family, chain.name.into()), comments);
            }
            let sets = table.sets.into_iter().map(|set| ((family, set.name.into()), set.elements));
            found.sets.extend(sets);
        }
        found
    }

    /// Those of these ports that lead elsewhere, or nowhere.
    pub fn missing<'a>(&'a self, ports: &'a HostPorts) -> impl Iterator<Item = &'a HostPort> {
        let is_missing = |(port, to): &(&HostPort, &SocketAddr)| {
            let name = if port.address.is_unspecified() { ANY_PORTS } else { HOST_PORTS };
            let set = self.sets.get(&(family(port.address.is_ipv6()), name.into()));
            !set.is_some_and(|set| set.contains(&Element::of_port(port, to)))
        };
        ports.iter().filter(is_missing).map(|(port, _)| port)
    }

    pub(super) fn add_rule(&mut self, family: u8, attributes: &[u8]) {
        let text = |kind| wire::find(attributes, kind).map(wire::text).unwrap_or_default();
        let comment = wire::find(attributes, RULE_USERDATA).and_then(|data| data.get(2..)).map(wire::text);
        self.rules.entry((family, text(OF_CHAIN))).or_default().push(comment.unwrap_or_default());
    }

    /// Its elements come by themselves. The name.
    pub(super) fn add_set(&mut self, family: u8, attributes: &[u8]) -> String {
        let name = wire::find(attributes, SET_NAME).map(wire::text).unwrap_or_default();
        self.sets.entry((family, name.clone())).or_default();
        name
    }

    pub(super) fn add_elements(&mut self, family: u8, attributes: &[u8]) {
        let name = wire::find(attributes, SET_NAME).map(wire::text).unwrap_or_default();
        let list = wire::find(attributes, ELEMENTS).unwrap_or_default();
        let elements = wire::each(list).filter_map(|(_, element)| Element::read(element));
        self.sets.entry((family, name)).or_default().extend(elements);
    }
}

/// Asks for all of a kind in our table.
pub fn dump(message: u8, v6: bool, set: Option<&str>) -> Message {
    let named = Table::named();
    let attributes = match set {
        Some(set) => named.text(SET_NAME, set),
        None => named,
    };
    Message::new(NF_TABLES, message, family(v6), netlink_packet_core::NLM_F_DUMP, attributes)
}

/// What has gone or come, for which the kernel may still know another way.
pub fn changed_ports(before: &Nat, after: &Nat) -> Vec<conntrack::Changed> {
    let of = |a: &Nat, b: &Nat| -> Vec<(HostPort, SocketAddr)> {
        a.ports.iter().filter(|(port, to)| b.ports.get(port) != Some(to)).map(|(p, t)| (*p, *t)).collect()
    };
    let gone = of(before, after).into_iter().map(|(port, to)| conntrack::Changed::Gone(port, to.ip()));
    let come = of(after, before).into_iter().map(|(port, _)| conntrack::Changed::Come(port));
    gone.chain(come).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nat::Masquerade;
    use bulkhead_api::messages::PortProtocol;

    fn nat(ports: &[(u16, &str)]) -> Nat {
        let of = |(port, to): &(u16, &str)| {
            let address = "0.0.0.0".parse().unwrap();
            (HostPort { address, protocol: PortProtocol::Tcp, port: *port }, to.parse().unwrap())
        };
        Nat { ports: ports.iter().map(of).collect(), ..Nat::default() }
    }

    fn masquerade(range: &str, except: &[&str], cluster: &[&str]) -> Nat {
        let all = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
        let masquerade =
            Masquerade { ranges: vec![(range.parse().unwrap(), all(except))], cluster: all(cluster) };
        Nat { masquerade, ..Nat::default() }
    }

    /// Messages of each kind.
    fn kinds(messages: &[Message]) -> Vec<u8> {
        let octets = wire::requests(messages, false);
        wire::received(&octets).iter().map(|m| (m.kind & 0xff) as u8).collect()
    }

    #[test]
    fn what_nobody_needs_is_not_there() {
        assert_eq!(tables(&Nat::default()), []);
        assert_eq!(kinds(&anew(&Nat::default())), [m::DESTROY_TABLE; 2]);
        let families: Vec<_> = tables(&nat(&[(80, "10.64.0.1:80")])).iter().map(|t| t.v6).collect();
        assert_eq!(families, [false]);
    }

    #[test]
    fn a_pod_that_comes_or_goes_is_a_few_elements() {
        let one = nat(&[(80, "10.64.0.1:80")]);
        let two = nat(&[(80, "10.64.0.1:80"), (81, "10.64.0.2:80")]);
        // The port, and the pod as who may meet itself.
        let come = [m::DESTROY_ELEMENTS, m::NEW_ELEMENTS, m::DESTROY_ELEMENTS, m::NEW_ELEMENTS];
        assert_eq!(difference(&one, &two).as_deref().map(kinds), Some(come.to_vec()));
        assert_eq!(difference(&two, &one).as_deref().map(kinds), Some(vec![m::DESTROY_ELEMENTS; 2]));
        assert_eq!(difference(&one, &one).as_deref().map(kinds), Some(vec![]));
        // The same port of another pod.
        assert_eq!(
            difference(&one, &nat(&[(80, "10.64.0.2:80")])).as_deref().map(kinds),
            Some(come.to_vec())
        );
    }

    #[test]
    fn whatever_else_changes_makes_the_table_anew() {
        let (one, range) = (nat(&[(80, "10.64.0.1:80")]), masquerade("10.66.0.0/16", &[], &["10.0.0.0/8"]));
        let both = Nat { ports: one.ports.clone(), ..range.clone() };
        let wider = masquerade("10.66.0.0/15", &[], &["10.0.0.0/8"]);
        for (before, after) in
            [(&Nat::default(), &one), (&one, &Nat::default()), (&range, &both), (&range, &wider)]
        {
            assert_eq!(difference(before, after), None);
        }
    }

    #[test]
    fn sets_hold_intervals_that_neither_touch_nor_overlap() {
        let nat = masquerade("255.0.0.0/8", &["10.1.0.0/16", "10.0.0.0/16"], &["10.0.0.0/8", "10.2.0.0/16"]);
        let found = Found::expected(&nat);
        let set =
            |name: &str| found.sets[&(family(false), name.to_string())].iter().cloned().collect::<Vec<_>>();
        let start = |a: [u8; 4]| Element::of(a.to_vec());
        // Behind the last address there is none.
        assert_eq!(set(MASQUERADED), [start([255, 0, 0, 0])]);
        let end = Element { is_end: true, ..start([11, 0, 0, 0]) };
        assert_eq!(set(CLUSTER), [start([10, 0, 0, 0]), end]);
        let pair = Element {
            key_end: Some(vec![255, 255, 255, 255, 10, 1, 255, 255]),
            ..Element::of(vec![255, 0, 0, 0, 10, 0, 0, 0])
        };
        assert_eq!(set(EXCEPTED), [pair]);
    }

    #[test]
    fn ranges_that_overlap_except_the_same_once() {
        let except: Vec<IpNetwork> = vec!["10.0.0.0/8".parse().unwrap()];
        let of = |ranges: &[&str]| {
            let ranges = ranges.iter().map(|r| (r.parse().unwrap(), except.clone())).collect();
            let nat = Nat { masquerade: Masquerade { ranges, cluster: vec![] }, ..Nat::default() };
            Found::expected(&nat).sets[&(family(false), EXCEPTED.to_string())].clone()
        };
        let overlapping = of(&["10.64.0.0/16", "10.64.0.0/12", "10.65.0.0/16"]);
        assert_eq!((overlapping.len(), overlapping), (1, of(&["10.64.0.0/12"])));
        assert_eq!(of(&["10.64.0.0/16", "10.66.0.0/16"]).len(), 2);
    }

    #[test]
    fn what_is_missing_is_told_by_name() {
        let (one, two) = (nat(&[(80, "10.64.0.1:80")]), nat(&[(80, "10.64.0.1:80"), (81, "10.64.0.2:80")]));
        let missing: Vec<_> = Found::expected(&one).missing(&two.ports).map(ToString::to_string).collect();
        assert_eq!(missing, ["0.0.0.0:81/TCP"]);
    }
}
