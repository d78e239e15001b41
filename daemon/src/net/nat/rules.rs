//! What the chains' rules look at and do. Pure.

use super::expression::{self, Base, Expression as E, Meta, octets, register};
use crate::net::HOST_PREFIX;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv6Addr};

pub const HOST_PORTS: &str = "hostports";
pub const ANY_PORTS: &str = "anyports";
pub const PODS: &str = "pods";
pub const MASQUERADED: &str = "masqueraded";
pub const CLUSTER: &str = "cluster";
pub const EXCEPTED: &str = "excepted";

/// nft's own number of the type, by which it prints.
const TYPE_ADDRESS: [u32; 2] = [7, 8];
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub what: &'static str,
    pub expressions: Vec<E>,
}

impl Rule {
    /// What it is for, and what it consists of: so that one of another build is known for it.
    pub fn comment(&self) -> String {
        let digest = Sha256::digest(expression::list(&self.expressions).as_bytes());
        format!("{} ({:02x}{:02x}{:02x})", self.what, digest[0], digest[1], digest[2])
    }
}

/// As nft reads it: type 0, length, text with its closing zero.
pub fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], text.as_bytes(), &[0]].concat()
}

/// nft's type, and how many octets it has.
pub fn address_field(v6: bool) -> (u32, u32) {
    (TYPE_ADDRESS[usize::from(v6)], if v6 { 16 } else { 4 })
}

/// How many registers an address takes.
fn width(v6: bool) -> u32 {
    address_field(v6).1 / 4
}

fn source_of(v6: bool, to: u32) -> E {
    E::Payload { base: Base::Network, offset: if v6 { 8 } else { 12 }, length: address_field(v6).1, to }
}

fn destination_of(v6: bool, to: u32) -> E {
    E::Payload { base: Base::Network, offset: if v6 { 24 } else { 16 }, length: address_field(v6).1, to }
}

pub fn to_pods(v6: bool) -> Vec<Rule> {
    let port = |first: u32| {
        [
            E::Meta { what: Meta::Protocol, to: register(first) },
            E::Payload { base: Base::Transport, offset: 2, length: 2, to: register(first + 1) },
        ]
    };
    let to_pod = |map| {
        [
            E::FromMap { map, register: register(0), to: register(0) },
            E::Destination { v6, address: register(0), port: register(width(v6)) },
        ]
    };
    let mut of_address = vec![destination_of(v6, register(0))];
    of_address.extend(port(width(v6)));
    of_address.extend(to_pod(HOST_PORTS));
    let mut of_any = vec![
        E::KindOfDestination { to: register(0) },
        E::Compare { register: register(0), equal: true, with: LOCAL.to_ne_bytes().to_vec() },
    ];
    if v6 {
        // What leaves ::1 for an interface is dropped by the kernel: there the node's own listener answers, if there is one.
        let loopback = octets(Ipv6Addr::LOCALHOST.into());
        of_any.push(destination_of(v6, register(0)));
        of_any.push(E::Compare { register: register(0), equal: false, with: loopback });
    }
    of_any.extend(port(0));
    of_any.extend(to_pod(ANY_PORTS));
    vec![
        Rule { what: "host port of one address", expressions: of_address },
        Rule { what: "host port of every address", expressions: of_any },
    ]
}

/// A pod takes no packet from itself, and answers none from the loopback.
pub fn as_the_node(source: IpAddr, v6: bool) -> Vec<Rule> {
    let from = [E::Load { value: octets(source), to: register(0) }, E::Source { v6, address: register(0) }];
    let mut itself = vec![
        source_of(v6, register(0)),
        destination_of(v6, register(width(v6))),
        E::InSet { set: PODS, register: register(0), inside: true },
    ];
    itself.extend(from.clone());
    let mut rules = vec![Rule { what: "a pod meets itself as the node", expressions: itself }];
    if !v6 {
        let mut loopback = vec![
            E::Payload { base: Base::Network, offset: 12, length: 1, to: register(0) },
            E::Compare { register: register(0), equal: true, with: vec![127] },
        ];
        loopback.extend(pods_interface(Meta::InterfaceOut));
        loopback.extend(from);
        rules.push(Rule { what: "the loopback calls as the node", expressions: loopback });
    }
    rules
}

fn pods_interface(what: Meta) -> [E; 2] {
    let with = HOST_PREFIX.as_bytes().to_vec();
    [E::Meta { what, to: register(0) }, E::Compare { register: register(0), equal: true, with }]
}

/// A pod's interface lets the loopback through, so that a process of the node can call `127.0.0.1` (`route_localnet`). No
/// pod may, and of an answer the destination is the node's address still.
pub fn loopback_is_not_the_pods() -> Rule {
    let mut expressions = pods_interface(Meta::InterfaceIn).to_vec();
    expressions.extend([
        E::Payload { base: Base::Network, offset: 16, length: 1, to: register(0) },
        E::Compare { register: register(0), equal: true, with: vec![127] },
        E::Drop,
    ]);
    Rule { what: "no pod calls the loopback", expressions }
}

/// A TCP connection that nobody followed before these rules came is met in its midst. Under another address it would end.
fn in_midstream() -> Rule {
    const TCP: u8 = 6;
    const SYN: u8 = 0x02;
    const FIN_SYN_RST_ACK: u8 = 0x17;
    let flags = register(0);
    let expressions = vec![
        E::Meta { what: Meta::Protocol, to: register(0) },
        E::Compare { register: register(0), equal: true, with: vec![TCP] },
        E::Payload { base: Base::Transport, offset: 13, length: 1, to: flags },
        E::Mask { register: flags, bits: vec![FIN_SYN_RST_ACK] },
        E::Compare { register: flags, equal: false, with: vec![SYN] },
        E::Accept,
    ];
    Rule { what: "a connection that lives already", expressions }
}

pub fn masquerades(v6: bool) -> Vec<Rule> {
    let in_set = |set, inside| E::InSet { set, register: register(0), inside };
    vec![
        Rule {
            what: "not of a masqueraded range",
            expressions: vec![source_of(v6, register(0)), in_set(MASQUERADED, false), E::Accept],
        },
        Rule {
            what: "to the cluster",
            expressions: vec![destination_of(v6, register(0)), in_set(CLUSTER, true), E::Accept],
        },
        Rule {
            what: "to whom its partition excepts",
            expressions: vec![
                source_of(v6, register(0)),
                destination_of(v6, register(width(v6))),
                in_set(EXCEPTED, true),
                E::Accept,
            ],
        },
        in_midstream(),
        Rule { what: "masquerade", expressions: vec![E::Masquerade] },
    ]
}
