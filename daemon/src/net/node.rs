//! What is of the node and not of one pod: forwarding, and where the uplinks are.

use super::{
    Kernel, NetError, Sources, inspect,
    links::{is_ours, link_of},
    uplinks::{self, Candidate, Port, Uplink, UplinkRule},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressHeaderFlags, AddressScope},
    link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage},
    route::{RouteHeader, RouteMessage},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

/// Interfaces that may be uplinks, and the loopback's addresses.
pub type Seen = (Vec<Candidate>, Vec<IpAddr>);

const LOOPBACK: u32 = 1;
/// Of an interface's index: no filter.
const EVERY: u32 = 0;

impl Uplink {
    pub fn sources(&self) -> Sources {
        Sources { v4: self.v4, v6: self.v6 }
    }
}

/// Makes this namespace forward. `uplinks` that learn their default route from router advertisements keep doing so: a
/// forwarding node ignores them unless told otherwise.
pub fn prepare_node(uplinks: &[Uplink]) -> Result<(), NetError> {
    for uplink in uplinks {
        let accept = format!("net/ipv6/conf/{}/accept_ra", uplink.name);
        if read_sysctl(&accept)?.as_deref() == Some("1") {
            write_sysctl(&accept, "2", false)?;
        }
    }
    set_sysctl("net/ipv4/ip_forward", "1", true)?;
    set_sysctl("net/ipv6/conf/all/forwarding", "1", false)
}

/// Only a change is written: writing `forwarding` walks all interfaces.
fn set_sysctl(key: &str, value: &str, required: bool) -> Result<(), NetError> {
    if read_sysctl(key)?.as_deref() == Some(value) { Ok(()) } else { write_sysctl(key, value, required) }
}

fn read_sysctl(key: &str) -> Result<Option<String>, NetError> {
    let path = format!("/proc/sys/{key}");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetError::Sysctl { path, source }),
    }
}

/// In the namespace of the calling thread. What is not `required` may be missing (a kernel without IPv6).
pub(super) fn write_sysctl(key: &str, value: &str, required: bool) -> Result<(), NetError> {
    let path = format!("/proc/sys/{key}");
    match std::fs::write(&path, value) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !required => Ok(()),
        written => written.map_err(|source| NetError::Sysctl { path, source }),
    }
}

impl Kernel {
    /// The interfaces that the configuration chooses, or those that default routes leave by.
    pub async fn uplinks(&self, rules: &[UplinkRule]) -> Result<Vec<Uplink>, NetError> {
        let (candidates, loopback) = self.candidates().await?;
        uplinks::choose(rules, &candidates, &loopback).map_err(NetError::Uplink)
    }

    /// By whatever rules.
    pub async fn candidates(&self) -> Result<Seen, NetError> {
        let default_routes = self.default_route_interfaces().await?;
        let addresses = self.global_addresses().await?;
        let of = |index| addresses.get(&index).cloned().unwrap_or_default();
        let objects = self.dump("list interfaces", Message::GetLink(LinkMessage::default())).await?;
        let candidate = |object: &Message| {
            let link = link_of(object)?;
            let foreign = link.index != LOOPBACK && !is_ours(&link.name);
            foreign.then(|| Candidate {
                ifindex: link.index,
                mtu: link.mtu,
                port: port_of(object),
                is_inner: is_inner(object),
                addresses: of(link.index),
                is_default_route: default_routes.contains(&link.index),
                name: link.name,
            })
        };
        Ok((objects.iter().filter_map(candidate).collect(), of(LOOPBACK)))
    }

    async fn default_route_interfaces(&self) -> Result<BTreeSet<u32>, NetError> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.table = RouteHeader::RT_TABLE_MAIN;
            // Of a full table only these are kept.
            let see = |object: Message| {
                let is_default =
                    matches!(&object, Message::NewRoute(r) if r.header.destination_prefix_length == 0);
                if is_default && let Some(route) = inspect::route_of(&object) {
                    found.extend(route.interfaces);
                }
            };
            self.each("list routes", Message::GetRoute(filter), see).await?;
        }
        found.remove(&LOOPBACK);
        Ok(found)
    }

    /// Of each interface, in the kernel's order: the first of a family is its source.
    async fn global_addresses(&self) -> Result<BTreeMap<u32, Vec<IpAddr>>, NetError> {
        let mut all = BTreeMap::<u32, Vec<IpAddr>>::new();
        for address in inspect::addresses(self, EVERY).await? {
            let header = &address.message.header;
            // A tentative address cannot be a source yet.
            let unusable =
                AddressHeaderFlags::Secondary | AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
            if header.scope == AddressScope::Universe && !header.flags.intersects(unusable) {
                all.entry(header.index).or_default().push(address.network.ip());
            }
        }
        Ok(all)
    }
}

/// kube-proxy's and the local DNS cache's dummies hold addresses of services, a bridge those of containers. (A veth is what a
/// node that is a container itself leaves by.)
fn is_inner(object: &Message) -> bool {
    let Message::NewLink(message) = object else { return false };
    let of_kind =
        |i: &LinkInfo| matches!(i, LinkInfo::Kind(InfoKind::Dummy | InfoKind::Bridge | InfoKind::Tun));
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(of_kind)
}

fn port_of(object: &Message) -> Port {
    let Message::NewLink(message) = object else { return Port::No };
    let (mut master, mut kind) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                let found = |i: &LinkInfo| if let LinkInfo::PortKind(k) = i { Some(k.clone()) } else { None };
                kind = infos.iter().find_map(found);
            }
            _ => {}
        }
    }
    match (master, kind) {
        (None | Some(0), _) => Port::No,
        // A routing domain of its own, and no bundle.
        (_, Some(InfoPortKind::Vrf)) => Port::No,
        (Some(bond), Some(InfoPortKind::Bond | InfoPortKind::Team)) => Port::OfBond(bond),
        _ => Port::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(master: Option<u32>, kind: Option<InfoPortKind>) -> Port {
        let mut message = LinkMessage::default();
        message.attributes.extend(master.map(LinkAttribute::Controller));
        message.attributes.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)])));
        port_of(&Message::NewLink(message))
    }

    #[test]
    fn a_port_is_of_what_it_is_bundled_in_and_a_routing_domain_bundles_nothing() {
        for bundle in [InfoPortKind::Bond, InfoPortKind::Team] {
            assert_eq!(port(Some(7), Some(bundle)), Port::OfBond(7));
        }
        assert_eq!(port(Some(7), Some(InfoPortKind::Vrf)), Port::No);
        assert_eq!(port(Some(7), Some(InfoPortKind::Bridge)), Port::Other);
        // A kind that we do not know, and a kernel that says none.
        assert_eq!(port(Some(7), Some(InfoPortKind::Other("openvswitch".into()))), Port::Other);
        assert_eq!(
            (port(Some(7), None), port(None, None), port(Some(0), None)),
            (Port::Other, Port::No, Port::No)
        );
    }
}
