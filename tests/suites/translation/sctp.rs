//! SCTP by its packets: the kernels that this runs on may have no sockets of it.

use crate::{
    Case,
    ports::{node, wired},
    support::{alternative, require},
};
use bulkhead_lab::{Lab, Netns, Result, until};
use nix::sys::socket::{AddressFamily, MsgFlags, SockaddrStorage, recvfrom, sendto};
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

pub const CASES: &[(&str, Case)] =
    &[("a host port of SCTP leads to the pod, and its answer back", associations)];

const CLIENT: u16 = 40_132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn associations(lab: &mut Lab) -> Result<()> {
    let pod = wired(
        lab,
        "shop",
        "ported-9",
        json!([{"hostPort": 3868, "containerPort": 3869, "protocol": "sctp"}]),
    )?;
    for v6 in [false, true] {
        let (own, client): (IpAddr, IpAddr) =
            (node(lab, v6), if v6 { lab.vm.v6.into() } else { lab.vm.v4.into() });
        let (here, there) = (raw(&lab.vm.netns, v6)?, raw(&pod.netns, v6)?);
        send(&here, own, &chunk(CLIENT, 3868, 0, INIT))?;
        let packet = receive(&there, v6)?;
        require(packet[..4] == chunk(CLIENT, 3869, 0, INIT)[..4], "the pod's ports are others")?;
        // The verification tag is the other side's, as it has said.
        send(&there, client, &chunk(3869, CLIENT, 7, INIT_ACK))?;
        let packet = receive(&here, v6)?;
        require(
            packet[..4] == chunk(3868, CLIENT, 7, INIT_ACK)[..4],
            "the answer is not from the host port",
        )?;
        require(alternative(&pod, v6) != own, "a pod has the node's address")?;
    }
    pod.del(&lab.nodes[0])
}

fn raw(netns: &Netns, v6: bool) -> Result<OwnedFd> {
    netns.run(|| {
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        // SAFETY: no memory is handed over; what is returned is checked, and nobody else's.
        let fd =
            unsafe { libc::socket(family as i32, libc::SOCK_RAW | libc::SOCK_NONBLOCK, libc::IPPROTO_SCTP) };
        nix::errno::Errno::result(fd)?;
        // SAFETY: as above.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

fn send(socket: &OwnedFd, to: IpAddr, packet: &[u8]) -> Result<()> {
    let to = SockaddrStorage::from(SocketAddr::new(to, 0));
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
    Ok(())
}

/// From the common header on.
fn receive(socket: &OwnedFd, v6: bool) -> Result<Vec<u8>> {
    until("an SCTP packet comes", Duration::from_secs(5), || {
        let mut buffer = vec![0; 256];
        match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, _)) => {
                buffer.truncate(length);
                // Of IPv4 the header comes with it.
                let header = if v6 { 0 } else { usize::from(buffer[0] & 15) * 4 };
                Ok(Some(buffer.split_off(header)))
            }
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    })
}

/// A packet of one INIT or INIT ACK chunk (RFC 9260, sections 3.3.2 and 3.3.3).
fn chunk(source: u16, destination: u16, tag: u32, kind: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0, 0, 20]);
    // Initiate tag, window, streams out and in, first number.
    packet.extend(7u32.to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

fn crc32c(octets: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !octets.iter().fold(!0, |crc, octet| (0..8).fold(crc ^ u32::from(*octet), step))
}
