//! What is of the node and not of one pod: forwarding, and where the uplinks are.

use super::{
    Kernel, NetError, Sources, inspect,
    links::{get_link, link_of},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressHeaderFlags, AddressScope},
    link::LinkMessage,
    route::{RouteHeader, RouteMessage},
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

const LOOPBACK: u32 = 1;

/// An interface towards the routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    /// First global address of each family; of the loopback where the uplink has none (unnumbered).
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

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
    /// The configured interfaces, or those that default routes leave by.
    pub async fn uplinks(&self, configured: &[String]) -> Result<Vec<Uplink>, NetError> {
        let links = if configured.is_empty() {
            let indexes = self.default_route_interfaces().await?;
            let objects = self.dump("list interfaces", Message::GetLink(LinkMessage::default())).await?;
            objects.iter().filter_map(link_of).filter(|l| indexes.contains(&l.index)).collect()
        } else {
            let mut links = Vec::new();
            for name in configured {
                let objects = self.batch(vec![get_link("find the uplink", name)]).await.map_err(
                    |e| match e.errno() {
                        Some(libc::ENODEV) => NetError::Uplink(format!(
                            "uplink {name}: there is no such interface; see `uplinks` in the configuration"
                        )),
                        _ => e,
                    },
                )?;
                links.extend(objects.iter().find_map(link_of));
            }
            links
        };
        if links.is_empty() {
            return Err(NetError::Uplink(
                "no uplink: there is no default route, and the configuration names no interface".into(),
            ));
        }
        let mut uplinks = Vec::new();
        for link in links {
            let (mut v4, mut v6) = self.primary_addresses(link.index).await?;
            if v4.is_none() || v6.is_none() {
                let (lo4, lo6) = self.primary_addresses(LOOPBACK).await?;
                (v4, v6) = (v4.or(lo4), v6.or(lo6));
            }
            uplinks.push(Uplink { name: link.name, ifindex: link.index, mtu: link.mtu, v4, v6 });
        }
        Ok(uplinks)
    }

    async fn default_route_interfaces(&self) -> Result<BTreeSet<u32>, NetError> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.table = RouteHeader::RT_TABLE_MAIN;
            let objects = self.dump("list routes", Message::GetRoute(filter)).await?;
            let default = objects.iter().filter_map(inspect::route_of).filter(|r| r.dst.prefix() == 0);
            found.extend(default.flat_map(|r| r.interfaces));
        }
        found.remove(&LOOPBACK);
        Ok(found)
    }

    async fn primary_addresses(
        &self,
        ifindex: u32,
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), NetError> {
        let (mut v4, mut v6) = (None, None);
        for address in inspect::addresses(self, ifindex).await? {
            let header = &address.message.header;
            // A tentative address cannot be a source yet.
            let unusable =
                AddressHeaderFlags::Secondary | AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
            if header.scope != AddressScope::Universe || header.flags.intersects(unusable) {
                continue;
            }
            match address.network.ip() {
                IpAddr::V4(a) => v4 = v4.or(Some(a)),
                IpAddr::V6(a) => v6 = v6.or(Some(a)),
            }
        }
        Ok((v4, v6))
    }
}
