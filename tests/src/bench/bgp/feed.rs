//! UPDATEs made beforehand, and a sender that costs its receiver nothing but their reading.

use crate::{Context as _, Result, unmet};
use bulkhead_bgp::{
    Family,
    wire::{AsPath, Attributes, Capability, Context, Framer, Message, Open, Reach, Update},
};
use ipnetwork::{IpNetwork, Ipv4Network};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
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
const PATIENCE: Duration = Duration::from_secs(60);

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
    end: mpsc::Receiver<Vec<u8>>,
}

impl Fed {
    pub fn establish(mut stream: TcpStream, asn: u32, router_id: Ipv4Addr) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
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
        let (told, end) = mpsc::channel();
        thread::spawn(move || {
            let mut last = Vec::new();
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                last = bytes[..count].to_vec();
            }
            // Nobody may wait for it.
            let _ = told.send(last);
        });
        Ok(Self { stream, end })
    }

    /// An error once the receiver has closed the connection, with its last words.
    pub fn holds(&self) -> Result<()> {
        match self.end.try_recv() {
            Ok(last) => unmet(format!("the receiver ended the session: {}", words(&last))),
            Err(_) => Ok(()),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.holds()?;
        Ok(self.stream.write_all(bytes)?)
    }
}

fn words(last: &[u8]) -> String {
    let mut framer = Framer::default();
    framer.push(last);
    let mut said = Vec::new();
    while let Some(message) = framer.next(CONTEXT) {
        said.push(format!("{message:?}"));
    }
    said.last().cloned().unwrap_or_else(|| "without a word".into())
}
