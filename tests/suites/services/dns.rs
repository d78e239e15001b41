//! Who asks cluster DNS, and where it stands: a cache on the node, and servers in an isolated partition that nodes ask.

use crate::site::{Case, SOON, Site, require};
use bulkhead_lab::{Result, link::run, unmet, until};
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

pub const CASES: &[(&str, Case)] = &[
    ("an isolated pod asks a DNS cache on its node, and nothing else there", cache),
    ("every node asks DNS servers in an isolated partition, and nothing else of them", asked_by_nodes),
];

/// Where node-local caches listen by custom.
const CACHE: &str = "169.254.20.10";
const PORT: u16 = 53;
/// Of enforced partitions, on node1.
const WEB: &str = "web/front-0";
const DB: &str = "payments/db-0";
const PATIENCE: Duration = Duration::from_millis(500);

/// The first node's daemon with these addresses as cluster DNS, for as long as `what` takes.
fn with_dns(site: &mut Site, addresses: &[IpAddr], what: impl FnOnce(&mut Site) -> Result<()>) -> Result<()> {
    let path = site.lab.nodes[0].log().with_file_name("bulkheadd.yaml");
    let before = std::fs::read_to_string(&path)?;
    let addresses: Vec<_> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
    let with = before.replace("clusterDNS: []", &format!("clusterDNS: [{}]", addresses.join(", ")));
    require(with != before, "the configuration names no DNS")?;
    std::fs::write(&path, with)?;
    restart(site)?;
    let result = what(site);
    std::fs::write(&path, before)?;
    restart(site)?;
    result
}

fn restart(site: &mut Site) -> Result<()> {
    site.lab.nodes[0].stop_daemon()?;
    site.lab.nodes[0].start_daemon()
}

/// Listens in one place, by UDP and TCP.
struct Server {
    udp: UdpSocket,
    _tcp: TcpListener,
}

impl Server {
    fn start(site: &Site, place: &str, at: SocketAddr) -> Result<Self> {
        let (udp, tcp) = site.netns(place)?.run(|| Ok((UdpSocket::bind(at)?, TcpListener::bind(at)?)))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { udp, _tcp: tcp })
    }
}

/// By UDP there and back, until it is answered.
fn asks(site: &Site, from: &str, server: &Server, to: SocketAddr) -> Result<()> {
    let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let socket = site.netns(from)?.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    until(&format!("{from} asks {to}"), SOON, || {
        socket.send_to(b"who", to)?;
        let mut room = [0; 8];
        let (_, client) = server.udp.recv_from(&mut room)?;
        server.udp.send_to(b"me", client)?;
        let (_, answered) = socket.recv_from(&mut room)?;
        if answered == to { Ok(Some(())) } else { unmet(format!("the answer is {answered}'s")) }
    })?;
    connects(site, from, to)?.map_err(Into::into)
}

/// A listener's queue takes it, whether it is accepted or not.
fn connects(site: &Site, from: &str, to: SocketAddr) -> Result<io::Result<()>> {
    let wait = Duration::from_secs(2);
    site.netns(from)?.run(|| Ok(TcpStream::connect_timeout(&to, wait).map(drop)))
}

/// By neither protocol, though somebody listens.
fn is_refused(site: &Site, from: &str, server: &Server, to: SocketAddr) -> Result<()> {
    let error = connects(site, from, to)?.err();
    let timed_out = error.as_ref().is_some_and(|e| e.kind() == ErrorKind::TimedOut);
    require(timed_out, &format!("{from} calls {to} by TCP: {error:?}"))?;
    let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let socket = site.netns(from)?.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.send_to(b"who", to)?;
    require(server.udp.recv_from(&mut [0; 8]).is_err(), &format!("{from} reaches {to} by UDP"))
}

/// As a cache's own pod makes it: an interface of no network, with an address that only this node has.
fn cache(site: &mut Site) -> Result<()> {
    let address: IpAddr = CACHE.parse().expect("an address");
    site.lab.nodes[0].netns.ip("link add nodelocaldns type bridge")?;
    site.lab.nodes[0].netns.ip(&format!("address add {CACHE}/32 dev nodelocaldns"))?;
    let node = site.lab.nodes[0].name.clone();
    let [at, beside] = [PORT, PORT + 1].map(|port| SocketAddr::new(address, port));
    let result = with_dns(site, &[address], |site| {
        let (server, other) = (Server::start(site, &node, at)?, Server::start(site, &node, beside)?);
        asks(site, WEB, &server, at)?;
        is_refused(site, WEB, &other, beside)
    });
    run(site.lab.nodes[0].netns.command("ip").args(["link", "del", "nodelocaldns"]))?;
    result
}

fn asked_by_nodes(site: &mut Site) -> Result<()> {
    let addresses = [site.address(DB, false)?, site.address(DB, true)?];
    let other_node = site.lab.nodes[1].name.clone();
    with_dns(site, &addresses, |site| {
        for address in addresses {
            let [at, beside] = [PORT, PORT + 1].map(|port| SocketAddr::new(address, port));
            let (server, other) = (Server::start(site, DB, at)?, Server::start(site, DB, beside)?);
            asks(site, &other_node, &server, at)?;
            asks(site, WEB, &server, at)?;
            is_refused(site, &other_node, &other, beside)?;
        }
        Ok(())
    })
}
