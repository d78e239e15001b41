//! A site's sockets, all made inside its namespace and used from outside it.

use super::{
    Cell, Family, Service, Site, echo_type, raw_protocols,
    sniff::{read_tag, tag},
};
use crate::{Context, Result, link::ip_output, packet};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub(super) struct Sockets {
    /// Addresses of the namespace: what a receiver may see as source.
    pub own: Vec<IpAddr>,
    listeners: Vec<TcpListener>,
    echoes: Vec<UdpSocket>,
    /// With the protocol they hear.
    raw: Vec<(UdpSocket, u8)>,
    /// Unconnected TCP sockets for the cells that begin here.
    dialers: HashMap<Family, Vec<OwnedFd>>,
    udp: HashMap<Family, UdpSocket>,
    icmp: HashMap<Family, UdpSocket>,
}

impl Sockets {
    /// What site number `n` needs to ask and answer its cells.
    pub fn open(site: &Site<'_>, n: usize, cells: &[Cell]) -> Result<Self> {
        let own = own_addresses(site)?;
        site.netns.run(|| {
            let services: BTreeSet<(Service, Family)> =
                cells.iter().filter(|c| c.to == n).map(|c| (c.service, c.family)).collect();
            let (mut listeners, mut echoes) = (Vec::new(), Vec::new());
            for (service, family) in services {
                let at = |port| SocketAddr::new(site.address(family), port);
                match service {
                    Service::Tcp(port) => {
                        listeners.push(TcpListener::bind(at(port)).during(|| at(port).to_string())?);
                    }
                    Service::Udp(port) => {
                        echoes.push(UdpSocket::bind(at(port)).during(|| at(port).to_string())?);
                    }
                    Service::Ping => {}
                }
            }
            let mut sockets = Self {
                own,
                listeners,
                echoes,
                raw: Vec::new(),
                dialers: HashMap::new(),
                udp: HashMap::new(),
                icmp: HashMap::new(),
            };
            for family in FAMILIES {
                sockets.open_clients(family, n, cells)?;
            }
            Ok(sockets)
        })
    }

    fn open_clients(&mut self, family: Family, n: usize, cells: &[Cell]) -> Result<()> {
        let dials = |c: &&Cell| c.from == n && c.family == family && matches!(c.service, Service::Tcp(_));
        let dialers = cells
            .iter()
            .filter(dials)
            .map(|_| open(family, SockType::Stream, None))
            .collect::<Result<Vec<_>>>()?;
        self.dialers.insert(family, dialers);
        self.udp.insert(family, open(family, SockType::Datagram, None)?.into());
        for protocol in raw_protocols(family) {
            let raw: UdpSocket = open(family, SockType::Raw, Some(protocol))?.into();
            if matches!(protocol, packet::ICMP | packet::ICMPV6) {
                self.icmp.insert(family, raw.try_clone()?);
            }
            self.raw.push((raw, protocol));
        }
        Ok(())
    }

    /// Begins to answer: TCP connections are held open, datagrams are echoed.
    pub fn serve(&mut self) -> Result<()> {
        for listener in self.listeners.drain(..) {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::task::spawn_local(async move {
                let mut held = Vec::new();
                while let Ok(connection) = listener.accept().await {
                    held.push(connection);
                }
            });
        }
        for echo in self.echoes.drain(..) {
            echo.set_nonblocking(true)?;
            let echo = tokio::net::UdpSocket::from_std(echo)?;
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 2048];
                loop {
                    if let Ok((length, from)) = echo.recv_from(&mut buffer).await {
                        // A reply that cannot be sent shows as `OneWay`.
                        let _ = echo.send_to(&buffer[..length], from).await;
                    }
                }
            });
        }
        Ok(())
    }

    pub fn raw(&mut self) -> Result<Vec<(tokio::net::UdpSocket, u8)>> {
        self.raw.drain(..).map(|(s, protocol)| Ok((tokio::net::UdpSocket::from_std(s)?, protocol))).collect()
    }

    pub fn udp_clients(&self) -> Result<Vec<tokio::net::UdpSocket>> {
        self.udp.values().map(|s| Ok(tokio::net::UdpSocket::from_std(s.try_clone()?)?)).collect()
    }

    /// Begins a connection; its local end is known at once. That it cannot even begin is no error: nothing will arrive.
    pub fn connect(&mut self, to: SocketAddr) -> Result<(tokio::net::TcpStream, SocketAddr)> {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let fd = match self.dialers.get_mut(&family).and_then(Vec::pop) {
            Some(fd) => fd,
            None => return crate::unmet("a socket is missing for a cell"),
        };
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(_) => {}
        }
        let stream = TcpStream::from(fd);
        let local = stream.local_addr()?;
        Ok((tokio::net::TcpStream::from_std(stream)?, local))
    }

    /// A datagram that the kernel refuses to send will not arrive.
    pub fn send_udp(&self, to: SocketAddr, id: u32) {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let _ = self.udp.get(&family).map(|s| s.send_to(&tag(id), to));
    }

    /// IPv4 wants the checksum from us; the kernel makes ICMPv6's.
    pub fn send_echo(&self, to: IpAddr, id: u32) {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let mut message = packet::echo_request(echo_type(family), id as u16, &tag(id));
        if family == Family::V4 {
            let sum = packet::checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        let _ = self.icmp.get(&family).map(|s| s.send_to(&message, SocketAddr::new(to, 0)));
    }
}

/// Echoed datagrams, by the number of their cell; until the runtime ends.
pub(super) async fn hear_answers(udp: tokio::net::UdpSocket, mut heard: impl FnMut(u32)) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, _)) = udp.recv_from(&mut buffer).await
            && let Some(id) = read_tag(&buffer[..length])
        {
            heard(id);
        }
    }
}

fn open(family: Family, kind: SockType, protocol: Option<u8>) -> Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let protocol = match protocol {
        None => None,
        Some(packet::TCP) => Some(SockProtocol::Tcp),
        Some(packet::UDP) => Some(SockProtocol::Udp),
        Some(packet::ICMP) => Some(SockProtocol::Icmp),
        Some(packet::ICMPV6) => Some(SockProtocol::IcmpV6),
        Some(_) => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20))?;
    Ok(fd)
}

#[derive(Deserialize)]
struct Link {
    addr_info: Vec<AddressInfo>,
}

#[derive(Deserialize)]
struct AddressInfo {
    local: Option<IpAddr>,
}

fn own_addresses(site: &Site<'_>) -> Result<Vec<IpAddr>> {
    let text = ip_output(Some(site.netns), "-j address show")?;
    let links: Vec<Link> = serde_json::from_str(&text)
        .map_err(|source| crate::Error::Json { what: format!("the addresses of {}", site.name), source })?;
    Ok(links.into_iter().flat_map(|l| l.addr_info).filter_map(|a| a.local).collect())
}
