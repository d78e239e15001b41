//! Veth pairs: made, configured from inside the pod's namespace, found, deleted.

use super::{
    HOST_PREFIX, IFB_PREFIX, Kernel, Link, Links, Mac, NetError, Pair, PairIndex, PodSide, PodState, cookie,
    default_of, gateway_of, host_network, inspect,
    netlink::Request,
    routes::{neighbour, route},
};
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
    route::RouteScope,
};
use std::{fs::File, net::IpAddr, os::fd::AsRawFd, path::Path};

const LOOPBACK: u32 = 1;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;

impl Links for Kernel {
    async fn create_pair(&self, pair: &Pair) -> Result<PairIndex, NetError> {
        let netns = open_netns(&pair.netns)?;
        let objects = self
            .batch(vec![
                new_link("make the pair of interfaces", veth(pair, &netns), NLM_F_EXCL),
                without_link_local(
                    "configure the host side",
                    of_host(by_name(&pair.host), pair.from_loopback),
                ),
                get_link("find the host side", &pair.host),
            ])
            .await
            .map_err(|error| match error {
                NetError::Kernel { source, .. } if source.raw_os_error() == Some(libc::EEXIST) => {
                    let what = "make the pair of interfaces (the pod may have one of this name already)";
                    NetError::Kernel { what, source }
                }
                other => other,
            })?;
        let link = objects.iter().find_map(link_of).ok_or(NetError::Answer { what: "find the host side" })?;
        Ok(PairIndex { host: link.index, pod: link.peer })
    }

    async fn configure_pod(&self, ifindex: u32, pod: &PodSide) -> Result<(), NetError> {
        let netns = open_netns(&pod.netns)?;
        let ifname = pod.ifname.clone();
        let v6 = pod.addresses.iter().any(IpAddr::is_ipv6);
        let inside = Kernel::open_in(&netns, move || pod_sysctls(&ifname, v6)).await?;
        let mut requests = vec![
            set_up("bring the pod's loopback up", LOOPBACK),
            without_link_local("configure the pod's interface", by_index(ifindex)),
            set_up("bring the pod's interface up", ifindex),
        ];
        for &address in &pod.addresses {
            let gateway = gateway_of(address);
            requests.push(add_address(ifindex, address));
            requests.push(neighbour("set the pod's gateway neighbour", ifindex, gateway, pod.gateway_mac));
            if gateway.is_ipv4() {
                // The gateway of IPv6 is link-local and needs no route of its own.
                let to_gateway = route(host_network(gateway), RouteScope::Link).device(ifindex);
                requests.push(to_gateway.add("set the pod's route to its gateway"));
            }
            let default = route(default_of(address), RouteScope::Universe).device(ifindex).gateway(gateway);
            requests.push(default.add("set the pod's default route"));
        }
        inside.batch(requests).await.map(|_| ())
    }

    async fn delete(&self, name: &str) -> Result<(), NetError> {
        let request = Request::new("delete the interface", Message::DelLink(by_name(name)), 0);
        self.batch(vec![request.fine_if(&[libc::ENODEV])]).await.map(|_| ())
    }

    async fn find(&self, name: &str) -> Result<Option<Link>, NetError> {
        let request = get_link("find the interface", name).fine_if(&[libc::ENODEV]);
        Ok(self.batch(vec![request]).await?.iter().find_map(link_of))
    }

    async fn list(&self) -> Result<Vec<Link>, NetError> {
        let objects = self.dump("list interfaces", Message::GetLink(LinkMessage::default())).await?;
        Ok(objects.iter().filter_map(link_of).filter(|l| is_ours(&l.name)).collect())
    }

    async fn inspect_pod(&self, netns: &Path, ifname: &str) -> Result<Option<PodState>, NetError> {
        let netns = open_netns(netns)?;
        let inside = Kernel::open_in(&netns, || Ok(())).await?;
        inspect::pod(&inside, ifname).await
    }

    async fn netns_cookie(&self, netns: &Path) -> Result<u64, NetError> {
        cookie::of(open_netns(netns)?).await
    }
}

fn open_netns(path: &Path) -> Result<File, NetError> {
    File::open(path).map_err(|source| NetError::Namespace { path: path.into(), source })
}

/// A prefix and ten hexadecimal digits: somebody else's `bhyve0` is not ours.
pub(super) fn is_ours(name: &str) -> bool {
    let prefixed = name.starts_with(HOST_PREFIX) || name.starts_with(IFB_PREFIX);
    prefixed && name.get(2..).is_some_and(|t| t.len() == 10 && t.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn veth(pair: &Pair, netns: &File) -> LinkMessage {
    let side = |name: &str, mac: Mac| {
        let mut link = by_name(name);
        link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        link.attributes.push(LinkAttribute::Mtu(pair.mtu));
        link
    };
    let mut pod = side(&pair.pod, pair.pod_mac);
    pod.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut host = side(&pair.host, pair.host_mac);
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(pod))),
    ]));
    host
}

pub(super) fn by_name(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.into()));
    link
}

fn by_index(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

pub(super) fn new_link(what: &'static str, link: LinkMessage, flags: u16) -> Request {
    Request::new(what, Message::NewLink(link), NLM_F_CREATE | flags)
}

pub(super) fn get_link(what: &'static str, name: &str) -> Request {
    Request::new(what, Message::GetLink(by_name(name)), 0)
}

pub(super) fn get_link_by_index(what: &'static str, ifindex: u32) -> Request {
    Request::new(what, Message::GetLink(by_index(ifindex)), 0)
}

/// By the number that our namespace has for the other.
pub(super) fn get_link_in(netns: i32, ifindex: u32) -> Request {
    let mut link = by_index(ifindex);
    link.attributes.push(LinkAttribute::IfNetnsId(netns));
    // Gone with its pod: whoever wires it finds that out.
    Request::new("find the pod's side", Message::GetLink(link), 0).fine_if(&[libc::ENODEV, libc::EINVAL])
}

/// The other side of a pair, which is in another namespace: its index, and that namespace's number.
pub(super) fn peer_of(object: &Message) -> Option<(u32, i32)> {
    let Message::NewLink(message) = object else { return None };
    let (mut peer, mut netns) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => netns = Some(*id),
            _ => {}
        }
    }
    Some((peer?, netns?))
}

/// No reverse path filter, whatever the node's default: the programs know the pod's address better, and the filter does
/// not know of their marks. `from_loopback`: what leaves 127.0.0.0/8 may go there.
fn of_host(mut link: LinkMessage, from_loopback: bool) -> LinkMessage {
    let set = |key, to: u32| DefaultNla::new(key, to.to_ne_bytes().to_vec());
    let mut all = vec![set(IPV4_DEVCONF_RP_FILTER, 0)];
    if from_loopback {
        all.push(set(IPV4_DEVCONF_ROUTE_LOCALNET, 1));
    }
    let mut value = vec![0; all.as_slice().buffer_len()];
    all.as_slice().emit(&mut value);
    let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, value));
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])]));
    link
}

/// Before the interface is up: no link-local address, hence no duplicate address detection and no router solicitation.
pub(super) fn without_link_local(what: &'static str, mut link: LinkMessage) -> Request {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let inet6 = AfSpecUnspec::Inet6(vec![none]);
    match link.attributes.iter_mut().find_map(af_spec) {
        Some(families) => families.push(inet6),
        None => link.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6])),
    }
    // A kernel without IPv6 has nothing to switch off.
    Request::new(what, Message::SetLink(link), 0).fine_if(&[libc::EAFNOSUPPORT])
}

fn af_spec(attribute: &mut LinkAttribute) -> Option<&mut Vec<AfSpecUnspec>> {
    if let LinkAttribute::AfSpecUnspec(families) = attribute { Some(families) } else { None }
}

pub(super) fn up(mut link: LinkMessage) -> LinkMessage {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

pub(super) fn set_up(what: &'static str, ifindex: u32) -> Request {
    Request::new(what, Message::SetLink(up(by_index(ifindex))), 0)
}

fn add_address(ifindex: u32, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    message.header.family = family_of(address);
    message.header.prefix_len = host_network(address).prefix();
    message.attributes.push(AddressAttribute::Address(address));
    if address.is_ipv4() {
        message.attributes.push(AddressAttribute::Local(address));
    } else {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    Request::new("set the pod's address", Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn link_of(object: &Message) -> Option<Link> {
    let Message::NewLink(message) = object else { return None };
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        peer: 0,
        mac: Mac::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(peer) => link.peer = *peer,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = Mac(bytes.as_slice().try_into().unwrap_or_default()),
            _ => {}
        }
    }
    Some(link)
}

/// In the pod's namespace: no router but ours speaks there, and IPv6 is on where the pod has an address of it.
fn pod_sysctls(ifname: &str, v6: bool) -> Result<(), NetError> {
    super::node::write_sysctl(&format!("net/ipv6/conf/{ifname}/accept_ra"), "0", v6)?;
    if v6 {
        super::node::write_sysctl(&format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0", true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_generate_are_ours() {
        for (name, ours) in
            [("bh0123456789", true), ("bhyve0", false), ("bh01234567890", false), ("bh", false)]
        {
            assert_eq!(is_ours(name), ours, "{name}");
        }
    }
}
