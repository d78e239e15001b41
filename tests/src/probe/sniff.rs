//! What a raw socket tells: which request has reached this site's IP layer, and which echo came back.

use crate::packet::{self, Packet};
use std::net::{IpAddr, SocketAddr};
use tokio::net::UdpSocket;

/// First bytes of every datagram and echo of a probe; the cell's number follows.
pub(super) const MAGIC: [u8; 4] = *b"bulk";

/// Under which name a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Source address, source port, destination port.
    Tcp(IpAddr, u16, u16),
    /// Source address and number of the cell, from the payload.
    Tagged(IpAddr, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Request(Key),
    /// An echo reply to this cell.
    Answer(u32),
}

/// Payload of cell `id`'s request.
pub(super) fn tag(id: u32) -> [u8; 8] {
    let [a, b, c, d] = id.to_be_bytes();
    [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], a, b, c, d]
}

pub(super) fn read_tag(payload: &[u8]) -> Option<u32> {
    let rest = payload.strip_prefix(&MAGIC)?;
    rest.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// Until the runtime ends. `raw` is a raw socket in the shape of tokio's datagram socket.
pub(super) async fn listen_raw(raw: UdpSocket, protocol: u8, mut heard: impl FnMut(Seen)) {
    let mut buffer = vec![0; 65_536];
    // An error of a raw socket is that of one packet (an ICMP error, say): the next may be well.
    loop {
        if let Ok((length, from)) = raw.recv_from(&mut buffer).await
            && let Some(seen) = read(protocol, from, &buffer[..length])
        {
            heard(seen);
        }
    }
}

/// IPv4 raw sockets give the IP header too; IPv6 ones do not.
fn read(protocol: u8, from: SocketAddr, bytes: &[u8]) -> Option<Seen> {
    let payload = if from.is_ipv4() { Packet::ipv4(bytes)?.payload } else { bytes };
    let source = from.ip();
    match protocol {
        packet::TCP => {
            let (source_port, port) = packet::ports(payload)?;
            Some(Seen::Request(Key::Tcp(source, source_port, port)))
        }
        packet::UDP => Some(Seen::Request(Key::Tagged(source, read_tag(payload.get(8..)?)?))),
        _ => {
            let id = read_tag(payload.get(8..)?)?;
            match payload[0] {
                8 | 128 => Some(Seen::Request(Key::Tagged(source, id))),
                0 | 129 => Some(Seen::Answer(id)),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_back_and_foreign_payload_is_not() {
        assert_eq!(read_tag(&tag(70_000)), Some(70_000));
        assert_eq!(read_tag(b"bulk\0\0"), None);
        assert_eq!(read_tag(b"someone else's"), None);
    }

    #[test]
    fn an_echo_request_is_an_arrival_and_its_reply_an_answer() {
        let from: SocketAddr = "[fd00::1]:0".parse().unwrap();
        let request = packet::echo_request(128, 1, &tag(5));
        assert_eq!(read(packet::ICMPV6, from, &request), Some(Seen::Request(Key::Tagged(from.ip(), 5))));
        let reply = packet::echo_request(129, 1, &tag(5));
        assert_eq!(read(packet::ICMPV6, from, &reply), Some(Seen::Answer(5)));
    }
}
