//! UPDATEs made beforehand, and a sender that costs its receiver nothing but their reading.

use crate::{Context as _, Result, unmet};
use bulkhead_bgp::{
    Family,
    wire::{AsPath, Attributes, Capability, Context, Framer, Message, Open, Reach, Update},
};
use ipnetwork::{IpNetwork, Ipv4Network};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

pub const CONTEXT: Context = Context {
    four_octet_as: true,
    external: true,
    extended_messages: false,
    add_path: [false; 2],
    link_local: false,
};
/// What fits in a message of 4,096 octets beside a few attributes.
pub const PACKED: usize = 900;
/// The sender does not speak meanwhile.
pub const HOLD: u16 = 600;
/// With a receiver that is silent before its session is there, or reads nothing afterwards.
const PATIENCE: Duration = Duration::from_secs(120);

fn prefix(index: usize) -> IpNetwork {
    let address = Ipv4Addr::from_bits(0x0100_0000 + ((index as u32) << 8));
    Ipv4Network::new(address, 24).map_or_else(|_| IpNetwork::from(IpAddr::V4(address)), IpNetwork::V4)
}

/// `each` prefixes that share one set of attributes.
pub fn update(first: usize, each: usize, attributes: &Attributes) -> Vec<u8> {
    let prefixes = (first..first + each).map(prefix).collect();
    let reach = Reach::new(Family::Ipv4Unicast, IpAddr::from(super::receiver::NEXT_HOP), prefixes);
    Message::Update(Update::announce(attributes.clone(), reach)).encode(CONTEXT)
}

pub fn few() -> Attributes {
    Attributes { as_path: AsPath::sequence([65010, 65030]), ..Attributes::default() }
}

/// `count` prefixes from the one with that number on, `each` of them with a set of attributes of its own.
pub fn stream(from: usize, count: usize, each: usize) -> Vec<u8> {
    (from..from + count)
        .step_by(each)
        .flat_map(|first| {
            let attributes = Attributes { med: Some(first as u32), ..few() };
            update(first, each.min(from + count - first), &attributes)
        })
        .collect()
}

/// A session that was established from this end.
pub struct Fed {
    stream: TcpStream,
    /// What the receiver says is read and thrown away; but for its last words.
    end: mpsc::Receiver<String>,
}

impl Fed {
    pub fn establish(mut stream: TcpStream, asn: u32, router_id: Ipv4Addr) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let capabilities = vec![Capability::Multiprotocol(Family::Ipv4Unicast), Capability::FourOctetAs(asn)];
        let open = Open { asn, hold_time: HOLD, router_id, capabilities };
        stream.write_all(&Message::Open(open).encode(CONTEXT))?;
        let (mut framer, mut bytes) = (Framer::default(), vec![0; 65_536]);
        loop {
            match framer.next(CONTEXT) {
                Some(Ok(Message::Open(_))) => stream.write_all(&Message::Keepalive.encode(CONTEXT))?,
                Some(Ok(Message::Keepalive)) => break,
                Some(other) => return unmet(format!("no session but {other:?}")),
                None => match stream.read(&mut bytes).during(|| "waiting for a session".into())? {
                    0 => return unmet("the receiver closed the connection"),
                    count => framer.push(&bytes[..count]),
                },
            }
        }
        let mut reader = stream.try_clone()?;
        // However long it says nothing while it computes: its keepalives are minutes apart.
        reader.set_read_timeout(None)?;
        let (told, end) = mpsc::channel();
        thread::spawn(move || {
            let mut last = Vec::new();
            let how = loop {
                match reader.read(&mut bytes) {
                    Ok(0) => break "the receiver ended the session".to_owned(),
                    Ok(count) => last = bytes[..count].to_vec(),
                    Err(e) => break format!("the session was lost ({e})"),
                }
            };
            // Nobody may wait for it.
            let _ = told.send(format!("{how}: {}", words(&last)));
        });
        Ok(Self { stream, end })
    }

    /// An error once the session is over, with the receiver's last words.
    pub fn holds(&self) -> Result<()> {
        self.end.try_recv().map_or(Ok(()), unmet)
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.holds()?;
        self.stream.write_all(bytes).during(|| "feeding the receiver".into())
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        // Its reader has the same socket, and waits.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn words(last: &[u8]) -> String {
    let mut framer = Framer::default();
    framer.push(last);
    let mut said = "without a word".to_owned();
    while let Some(message) = framer.next(CONTEXT) {
        said = match message {
            Ok(Message::Notification(told)) => told.to_string(),
            other => format!("{other:?}"),
        };
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bgp::wire::Notification;
    use std::net::TcpListener;

    #[test]
    fn a_receiver_may_be_silent_for_long_and_its_last_words_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let mut say = |message: Message| receiver.write_all(&message.encode(CONTEXT)).unwrap();
        let router_id = [192, 0, 2, 1].into();
        say(Message::Open(Open { asn: 65020, hold_time: HOLD, router_id, capabilities: Vec::new() }));
        say(Message::Keepalive);
        let fed = Fed::establish(stream, 65010, [192, 0, 2, 2].into()).unwrap();
        assert_eq!(fed.stream.read_timeout().unwrap(), None);
        fed.holds().unwrap();
        say(Message::Notification(Notification::shutdown("moving")));
        receiver.shutdown(Shutdown::Write).unwrap();
        let told = fed.end.recv().unwrap();
        assert!(told.starts_with("the receiver ended the session: ") && told.contains("moving"), "{told}");
    }
}
