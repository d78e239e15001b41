//! Routes in the kernel of a namespace: what stands there, and what goes away while one watches.

use crate::{Context, Error, Netns, Result, link::ip_output};
use ipnetwork::IpNetwork;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use serde::Deserialize;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// A route as BIRD or a kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub prefix: IpNetwork,
    /// Absent: unreachable, or a route to an interface.
    pub via: Option<IpAddr>,
}

#[derive(Deserialize)]
struct KernelRoute {
    dst: String,
    gateway: Option<IpAddr>,
}

/// Routes of one protocol (`bird`, `kernel`, `static`, ... or `all`) in the main table of this namespace, both families.
pub fn kernel_routes(netns: &Netns, protocol: &str) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let text = ip_output(Some(netns), &format!("{family} -j route show proto {protocol}"))?;
        let text = if text.trim().is_empty() { "[]" } else { text.as_str() };
        let parsed: Vec<KernelRoute> = serde_json::from_str(text)
            .map_err(|source| Error::Json { what: "the routes of the kernel".into(), source })?;
        // `default` is no prefix; a host route has no length, and parses as one.
        let prefixed = parsed
            .into_iter()
            .filter_map(|r| Some(Route { prefix: r.dst.parse::<IpNetwork>().ok()?, via: r.gateway }));
        routes.extend(prefixed);
    }
    Ok(routes)
}

/// Hears every route that leaves the kernel of a namespace, from the moment it starts until [`RouteWatch::stop`].
pub struct RouteWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<IpNetwork>>>,
}

impl RouteWatch {
    pub fn start(netns: &Netns) -> Result<Self> {
        let fd = netns.run(|| {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            let groups = (libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE) as u32;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
            setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20))?;
            Ok(fd)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Ok(Self { stop, thread: thread::spawn(move || hear(&fd, &stopped)) })
    }

    /// The prefixes of the routes that were deleted, in order.
    pub fn stop(self) -> Result<Vec<IpNetwork>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
    }
}

fn hear(fd: &OwnedFd, stop: &AtomicBool) -> Result<Vec<IpNetwork>> {
    let mut deleted = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => deleted.extend(messages(&buffer[..length]).filter_map(deleted_prefix)),
            Err(nix::Error::EAGAIN) if stop.load(Ordering::Relaxed) => return Ok(deleted),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            // ENOBUFS among them: what was not heard cannot be vouched for.
            Err(e) => return Err(e).during(|| "watching routes".into()),
        }
    }
}

/// Parts a datagram into netlink messages (type, body).
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<16>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let message = bytes.get(..length).filter(|m| m.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[4], header[5]]), &message[16..]))
    })
}

/// The destination of an RTM_DELROUTE message: `rtmsg` of 12 bytes, then attributes.
fn deleted_prefix((kind, body): (u16, &[u8])) -> Option<IpNetwork> {
    if kind != libc::RTM_DELROUTE {
        return None;
    }
    let (head, mut attributes) = body.split_first_chunk::<12>()?;
    while let Some(header) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == libc::RTA_DST {
            let address = match value.first_chunk::<16>() {
                Some(v6) => IpAddr::from(Ipv6Addr::from(*v6)),
                None => IpAddr::from(Ipv4Addr::from(*value.first_chunk::<4>()?)),
            };
            return IpNetwork::new(address, head[1]).ok();
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}
