//! What the node's stack translates for pods: host ports and masquerade, in nf_tables tables of their own.
//!
//! [`Nat`] is what is wanted, a value. [`table`] makes of it tables as data ([`rules`], [`element`]), and of two of them the messages that
//! lead from one to the other; [`wire`] and [`expression`] write these as octets. Only [`kernel`] has a socket.
//!
//! ```text
//!  Nat ─▶ table::tables ─▶ Vec<Table> ─┬─▶ difference ─▶ messages ─▶ one transaction ─▶ ip bulkhead, ip6 bulkhead
//!                                      └─▶ Found::expected ◀── compared with ──▶ what was read back
//! ```
//! A pod's host port is an element of a map, so its ADD and DEL are one small transaction. Whatever else changes makes the
//! table anew, in one transaction, too: there is no moment without. Where nothing is wanted, there is no table.

mod conntrack;
mod element;
mod expression;
mod kernel;
mod ranges;
mod rules;
mod table;
mod wire;

pub use table::Found;

use super::{NetError, Sources};
use bulkhead_api::messages::{PortMapping, PortProtocol};
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Unspecified: all that the node has of this family.
    pub address: IpAddr,
    pub protocol: PortProtocol,
    pub port: u16,
}

impl HostPort {
    /// Whether something may arrive that is of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let any = self.address.is_unspecified() || other.address.is_unspecified();
        (self.protocol, self.port) == (other.protocol, other.port)
            && self.address.is_ipv4() == other.address.is_ipv4()
            && (any || self.address == other.address)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// Ports of the node, and whither they lead: a pod's address and port.
pub type HostPorts = BTreeMap<HostPort, SocketAddr>;

/// Of a pod with these addresses.
pub fn host_ports(mappings: &[PortMapping], addresses: &[IpAddr]) -> HostPorts {
    let mut ports = HostPorts::new();
    for mapping in mappings {
        for pod in addresses {
            let any = match pod {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let address = mapping.host_ip.unwrap_or(any);
            if address.is_ipv4() == pod.is_ipv4() {
                let port = HostPort { address, protocol: mapping.protocol, port: mapping.host_port.get() };
                ports.insert(port, SocketAddr::new(*pod, mapping.container_port.get()));
            }
        }
    }
    ports
}

/// All that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Nat {
    pub ports: HostPorts,
    pub masquerade: Masquerade,
    /// As whom a pod meets itself, and processes of the node that call from the loopback.
    pub sources: Sources,
}

/// Whose connections leave as the node's.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Masquerade {
    /// Ranges of pods, and for whom they are themselves all the same.
    pub ranges: Vec<(IpNetwork, Vec<IpNetwork>)>,
    /// Pods and nodes: for them every pod is itself.
    pub cluster: Vec<IpNetwork>,
}

impl Nat {
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.masquerade.ranges.is_empty()
    }

    pub fn with(&self, ports: &HostPorts) -> Self {
        let mut all = self.clone();
        all.ports.extend(ports);
        all
    }

    /// Without those of them that are there.
    pub fn without(&self, ports: &HostPorts) -> Self {
        let mut all = self.clone();
        all.ports.retain(|port, to| ports.get(port) != Some(to));
        all
    }
}

/// The node's translation. Nothing is asked or changed where nothing is wanted.
pub trait Translation {
    /// From what is in force to what is wanted, at once or not at all.
    fn translate(&self, before: &Nat, after: &Nat) -> impl Future<Output = Result<(), NetError>> + Send;
    /// The same from whatever is there.
    fn translate_anew(&self, nat: &Nat) -> impl Future<Output = Result<(), NetError>> + Send;
    /// Connections to these ports go no longer to pods that are gone. What fails is told: they end by themselves.
    fn forget_flows(&self, gone: &HostPorts) -> impl Future<Output = ()> + Send;
    fn translated(&self) -> impl Future<Output = Result<Found, NetError>> + Send;
    /// Counts every change of any table of the node, whoever makes it.
    fn ruleset(&self) -> impl Future<Output = Result<u32, NetError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str, protocol: PortProtocol, port: u16) -> HostPort {
        HostPort { address: address.parse().unwrap(), protocol, port }
    }

    #[test]
    fn a_port_of_any_address_is_also_each_ones() {
        use PortProtocol::{Tcp, Udp};
        let any = port("0.0.0.0", Tcp, 80);
        for (other, overlaps) in [
            (any, true),
            (port("192.0.2.1", Tcp, 80), true),
            (port("192.0.2.1", Udp, 80), false),
            (port("192.0.2.1", Tcp, 81), false),
            (port("::", Tcp, 80), false),
        ] {
            assert_eq!((any.overlaps(&other), other.overlaps(&any)), (overlaps, overlaps), "{other}");
        }
        assert!(!port("192.0.2.1", Tcp, 80).overlaps(&port("192.0.2.2", Tcp, 80)));
        assert_eq!(port("::", Udp, 53).to_string(), "[::]:53/UDP");
    }

    #[test]
    fn without_an_address_a_mapping_is_for_each_family_of_the_pod() {
        let mapping = |host_ip: Option<&str>| PortMapping {
            host_port: 8080.try_into().unwrap(),
            container_port: 80.try_into().unwrap(),
            protocol: PortProtocol::Tcp,
            host_ip: host_ip.map(|a| a.parse().unwrap()),
        };
        let pod = ["10.64.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let of = |host_ip| -> Vec<String> {
            let ports = host_ports(&[mapping(host_ip)], &pod);
            ports.iter().map(|(port, to)| format!("{port} {to}")).collect()
        };
        assert_eq!(of(None), ["0.0.0.0:8080/TCP 10.64.0.1:80", "[::]:8080/TCP [fd00::1]:80"]);
        assert_eq!(of(Some("0.0.0.0")), ["0.0.0.0:8080/TCP 10.64.0.1:80"]);
        assert_eq!(of(Some("fd00:1::1")), ["[fd00:1::1]:8080/TCP [fd00::1]:80"]);
    }

    #[test]
    fn a_pod_takes_only_its_own_ports_with_it() {
        let of = |to: &str| HostPorts::from([(port("0.0.0.0", PortProtocol::Tcp, 80), to.parse().unwrap())]);
        let nat = Nat::default().with(&of("10.64.0.1:80"));
        assert_eq!(nat.without(&of("10.64.0.2:80")), nat);
        assert!(nat.without(&of("10.64.0.1:80")).is_empty());
    }
}
