//! Connected UDP sockets of pods, ended by the kernel's word (sock_diag(7), `CONFIG_INET_DIAG_DESTROY`): no hook is asked of what
//! they send, so nothing else can take them from a peer that is gone. Whoever waits at one, or sends by it next, is told
//! ECONNABORTED.

use super::NetError;
use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::{Socket, SocketAddr as KernelAddr};
use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// A socket by its cookie, which no other of this machine has or had, and whom it is connected to.
pub type Connected = (u64, SocketAddr);

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Of the states of `inet_diag_req_v2`: a UDP socket that is connected.
const ESTABLISHED: u32 = 1 << 1;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// Of it in `struct inet_diag_msg`.
const ID_AT: usize = 4;

/// Ends those of `sockets` that are in one of these namespaces, on a thread of its own.
pub fn end_connected(namespaces: Vec<PathBuf>, sockets: BTreeSet<Connected>) {
    let work = move || {
        let mut ended = 0;
        for netns in &namespaces {
            match end_in(netns, &sockets) {
                Ok(number) => ended += number,
                // Its pod has just gone.
                Err(NetError::Namespace { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                // Nor has any other namespace.
                Err(NetError::Kernel { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    warn!(
                        "this kernel has no word for sockets (module udp_diag): those that are connected to backends that are \
                         gone stay so"
                    );
                    break;
                }
                Err(e) => {
                    warn!(netns = %netns.display(), error = %e, "cannot end sockets that are connected to backends that are gone");
                }
            }
        }
        if ended > 0 {
            info!(ended, "connected UDP sockets ended, whose backends are gone");
        }
    };
    if let Err(e) = std::thread::Builder::new().name("sockets".into()).spawn(work) {
        warn!(error = %e, "cannot end sockets that are connected to backends that are gone");
    }
}

/// The thread stays in the namespace.
fn end_in(netns: &Path, sockets: &BTreeSet<Connected>) -> Result<usize, NetError> {
    let namespace = |source| NetError::Namespace { path: netns.into(), source };
    let failed = |what| move |source| NetError::Kernel { what, source };
    let file = File::open(netns).map_err(namespace)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| namespace(e.into()))?;
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(NetError::Socket)?;
    socket.bind_auto().map_err(NetError::Socket)?;
    socket.connect(&KernelAddr::new(0, 0)).map_err(NetError::Socket)?;
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let found = list(&socket, family as u8).map_err(failed("list connected UDP sockets"))?;
        for (_, id) in found.iter().filter(|(connected, _)| sockets.contains(connected)) {
            ended += usize::from(destroy(&socket, family as u8, id).map_err(failed("end a UDP socket"))?);
        }
    }
    Ok(ended)
}

type Id = [u8; ID];

fn list(socket: &Socket, family: u8) -> io::Result<Vec<(Connected, Id)>> {
    socket.send(&request(SOCK_DIAG_BY_FAMILY, DUMP, family, ESTABLISHED, &[0; ID]), 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take(&datagram, &mut found)? {
            return Ok(found);
        }
    }
}

/// Whether it was the last of a list. What has kept the kernel from making the list stands in its end.
fn take(datagram: &[u8], found: &mut Vec<(Connected, Id)>) -> io::Result<bool> {
    for (kind, body) in messages(datagram) {
        match kind {
            NLMSG_DONE | NLMSG_ERROR => return errno(body).map(|()| true),
            _ => found.extend(connected(body)),
        }
    }
    Ok(false)
}

/// Whether there was still such a socket.
fn destroy(socket: &Socket, family: u8, id: &Id) -> io::Result<bool> {
    socket.send(&request(SOCK_DESTROY, ACK, family, ESTABLISHED, id), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    match messages(&datagram).next().map(|(_, body)| errno(body)) {
        Some(Err(e)) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Some(answer) => answer.map(|()| true),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &Id) -> Vec<u8> {
    let length = (HEADER + 8 + ID) as u32;
    let mut octets = Vec::with_capacity(length as usize);
    octets.extend(length.to_ne_bytes());
    octets.extend(kind.to_ne_bytes());
    octets.extend((REQUEST | flags).to_ne_bytes());
    octets.extend([0; 8]);
    octets.extend([family, libc::IPPROTO_UDP as u8, 0, 0]);
    octets.extend(states.to_ne_bytes());
    octets.extend(id);
    octets
}

/// Kinds and bodies; ends where a length is none.
fn messages(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*octets.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*octets.get(4..)?.first_chunk()?);
        let body = octets.get(HEADER..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn errno(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Of `struct inet_diag_msg`. An IPv6 socket's view of IPv4 is IPv4.
fn connected(body: &[u8]) -> Option<(Connected, Id)> {
    let family = i32::from(*body.first()?);
    let id: Id = *body.get(ID_AT..)?.first_chunk()?;
    let port = u16::from_be_bytes([id[2], id[3]]);
    let address: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::from(*id[20..].first_chunk::<4>()?).into(),
        _ => Ipv6Addr::from(*id[20..].first_chunk::<16>()?).into(),
    };
    // Two words, the low one first.
    let word = |at: usize| id[at..].first_chunk().map(|octets| u64::from(u32::from_ne_bytes(*octets)));
    let cookie = word(40)? | word(44)? << 32;
    Some(((cookie, SocketAddr::new(address.to_canonical(), port)), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diag(family: i32, peer: &[u8]) -> Vec<u8> {
        let mut body = vec![family as u8, 1, 0, 0, 0x12, 0x34, 0x1f, 0x90];
        body.extend([7; 16]);
        body.extend(peer);
        body.resize(44, 0);
        body.extend([2u32, 1].map(u32::to_ne_bytes).concat());
        body.resize(72, 9);
        body
    }

    #[test]
    fn a_socket_is_read_with_its_cookie_and_its_peer() {
        let mapped = "::ffff:10.0.0.7".parse::<Ipv6Addr>().unwrap().octets();
        for (body, peer) in [
            (diag(libc::AF_INET, &[10, 0, 0, 7]), "10.0.0.7:8080"),
            (diag(libc::AF_INET6, &mapped), "10.0.0.7:8080"),
            (diag(libc::AF_INET6, &[0xfd; 16]), "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:8080"),
        ] {
            let (found, id) = connected(&body).unwrap();
            assert_eq!(found.1, peer.parse().unwrap());
            assert_eq!(id[..4], [0x12, 0x34, 0x1f, 0x90]);
            assert_eq!(found.0, 0x1_0000_0002);
        }
        assert_eq!(connected(&diag(libc::AF_INET, &[10, 0, 0, 7])[..40]), None);
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut octets = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        octets.extend(kind.to_ne_bytes());
        octets.resize(HEADER, 0);
        octets.extend(body);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    #[test]
    fn a_list_that_the_kernel_could_not_make_is_no_empty_one() {
        let socket = message(SOCK_DIAG_BY_FAMILY, &diag(libc::AF_INET, &[10, 0, 0, 7]));
        let mut found = Vec::new();
        assert!(!take(&socket, &mut found).unwrap());
        assert!(take(&message(NLMSG_DONE, &0i32.to_ne_bytes()), &mut found).unwrap());
        assert_eq!(found.len(), 1);
        // Without the module that knows UDP.
        let error = take(&message(NLMSG_DONE, &(-libc::ENOENT).to_ne_bytes()), &mut found).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn messages_are_cut_where_their_lengths_say() {
        let both = [message(20, &[1, 2, 3, 4, 5]), message(NLMSG_DONE, &[])].concat();
        let read: Vec<_> = messages(&both).collect();
        assert_eq!(read, [(20, &[1, 2, 3, 4, 5][..]), (NLMSG_DONE, &[])]);
        assert_eq!(messages(&both[..18]).count(), 0);
        assert_eq!(messages(&[0; 16]).count(), 0);
    }
}
