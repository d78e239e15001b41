//! What each router says in its first minute, octet by octet: all of it is read without a fault. With `BULKHEAD_WRITE_SEEDS=yes` it
//! becomes the seeds of the fuzz targets, in `fuzz/seeds`.

use crate::{Row, all};
use bulkhead_bgp::bfd::{Packet, State, packet::LENGTH};
use bulkhead_bgp::wire::{
    Capability, Context, Framer, GracefulRestart, HEADER_LEN, Message, Open, RestartFamily, Update,
};
use bulkhead_bgp::{Family, wire};
use bulkhead_lab::bgp::rack::BLOCK;
use bulkhead_lab::bgp::site::{DEADLINE, NODE, NODE_AS, Site, router, routes, speaker_config};
use bulkhead_lab::bgp::{Kind, Setup, THEIRS, THEIRS6};
use bulkhead_lab::{Error, Result, unmet, until};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

pub const ROWS: &[Row] = &[
    all(
        "an OPEN in the long form that the test writes with our codec (the speaker's own are short enough), and the router's where it has it",
        "9072",
        long_opens,
    )
    .without(Kind::Gobgp, "the router does not read it"),
    all("a session of BFD comes up, and every packet of it is read", "5880, 5881", packets)
        .without(Kind::Gobgp, "the router has no BFD"),
];

const CONTEXT: Context = Context {
    four_octet_as: true,
    external: true,
    extended_messages: false,
    add_path: [false; 2],
    link_local: false,
};

/// Of a router that is about to say something.
const SILENCE: Duration = Duration::from_secs(10);

pub fn messages(site: &Site, kind: Kind) -> Result<()> {
    let listener = site.node.run(|| Ok(TcpListener::bind((NODE, 179))?))?;
    listener.set_nonblocking(true)?;
    let _there = kind.start(site, &Setup::default())?;
    // FRR dials before it has read the whole of its own configuration, and then once more.
    let (_, open, updates) =
        until("a session says all that there is", DEADLINE, || session_of(&listener, our_open()).map(Some))?;
    keep("open", kind, &[open])?;
    keep("update", kind, &updates)
}

/// Where the parameters of an OPEN begin.
const PARAMETERS: usize = HEADER_LEN + 9;
const IS_LONG: [u8; 2] = [255, 255];

fn long_opens(site: &Site, kind: Kind) -> Result<()> {
    let listener = site.node.run(|| Ok(TcpListener::bind((NODE, 179))?))?;
    listener.set_nonblocking(true)?;
    let there = kind.start(site, &Setup { long_open: true, ..Setup::default() })?;
    let mut ours = our_open();
    // Of a code for experiments (RFC 8810).
    ours.capabilities.push(Capability::Unknown { code: 239, data: vec![7; 250] });
    let sent = Message::Open(ours.clone()).encode(Context::default());
    assert_eq!(sent[PARAMETERS..PARAMETERS + 2], IS_LONG);
    let (session, theirs, _) =
        until("a session comes up", DEADLINE, || session_of(&listener, ours.clone()).map(Some))?;
    there.wait_established()?;
    assert_eq!(theirs[PARAMETERS..PARAMETERS + 2] == IS_LONG, kind == Kind::Frr, "{theirs:02x?}");
    drop((session, listener));
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK]));
    node.speaker.set_peers(vec![router()]);
    if kind == Kind::Frr {
        // Told to send that form it takes no other.
        let is_told = |error: &String| error.starts_with("the peer sent NOTIFICATION 2/");
        return node
            .wait_peer("ours is refused", |peer| peer.last_error.as_ref().is_some_and(is_told))
            .map(drop);
    }
    there.wait_seen(BLOCK).map(drop)
}

/// The connection, the OPEN, and what makes a whole table.
fn session_of(listener: &TcpListener, ours: Open) -> Result<(TcpStream, Vec<u8>, Vec<Vec<u8>>)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let open = next(&mut stream)?;
    assert!(matches!(read(&open), Message::Open(_)), "{open:02x?}");
    stream.write_all(&Message::Open(ours).encode(Context::default()))?;
    stream.write_all(&Message::Keepalive.encode(CONTEXT))?;
    // FRR that begins to run says nothing before.
    for family in Family::ALL {
        stream.write_all(&Message::Update(Update::end_of_rib(family)).encode(CONTEXT))?;
    }
    let (mut updates, mut ended, mut said) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    while ended.len() < 2 || said.len() < 2 {
        let bytes = next(&mut stream)?;
        let update = match read(&bytes) {
            Message::Update(update) => update,
            Message::Notification(told) => return unmet(format!("the router ends it: {told}")),
            _ => continue,
        };
        assert_eq!(update.malformed, None, "{bytes:02x?}");
        ended.extend(update.is_end_of_rib().map(|family| family as usize));
        said.extend(prefixes(&update).filter(|prefix| [THEIRS, THEIRS6].contains(&prefix.as_str())));
        updates.push(bytes);
    }
    Ok((stream, open, updates))
}

fn our_open() -> Open {
    let kept = |family| RestartFamily { family, forwarding: true };
    let families = Family::ALL.map(kept).to_vec();
    let restart = GracefulRestart { restarting: false, notification: true, time: 60, families };
    let mut capabilities = Family::ALL.map(Capability::Multiprotocol).to_vec();
    capabilities.extend([
        Capability::RouteRefresh,
        Capability::EnhancedRefresh,
        Capability::GracefulRestart(restart),
        Capability::FourOctetAs(NODE_AS),
    ]);
    Open { asn: NODE_AS, hold_time: 90, router_id: [172, 31, 9, 2].into(), capabilities }
}

/// One message as it stands on the wire.
fn next(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_LEN];
    stream.read_exact(&mut bytes)?;
    let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    assert!((HEADER_LEN..=wire::MAX_LEN).contains(&length), "{bytes:02x?}");
    bytes.resize(length, 0);
    stream.read_exact(&mut bytes[HEADER_LEN..])?;
    Ok(bytes)
}

fn read(bytes: &[u8]) -> Message {
    let mut framer = Framer::default();
    framer.push(bytes);
    match framer.next(CONTEXT) {
        Some(Ok(message)) => message,
        other => panic!("{other:?} of {bytes:02x?}"),
    }
}

fn prefixes(update: &Update) -> impl Iterator<Item = String> {
    let reach = update.announced.iter().flat_map(|announced| &announced.reach);
    reach.flat_map(|reach| &reach.prefixes).map(ToString::to_string)
}

fn packets(site: &Site, kind: Kind) -> Result<()> {
    let (socket, outbox) = site.node.run(|| {
        let outbox = UdpSocket::bind((NODE, 49_200))?;
        outbox.set_ttl(255)?;
        Ok((UdpSocket::bind((NODE, 3784))?, outbox))
    })?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let _listener = site.node.run(|| Ok(TcpListener::bind((NODE, 179))?))?;
    // FRR asks for BFD at once, BIRD when its session of BGP is up.
    let _there = kind.start(site, &Setup { bfd: Some(300), ..Setup::default() })?;
    let speaker = (kind == Kind::Bird).then(|| answering(&_listener));
    let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
    let mut buffer = [0; 128];
    while !seen.contains(&State::Up) {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let bytes = &buffer[..length];
        let packet = Packet::decode(bytes).map_err(|e| Error::Unmet(format!("{e}: {bytes:02x?}")))?;
        assert_eq!(length, LENGTH);
        if seen.insert(packet.state) {
            kept.push(bytes.to_vec());
        }
        let state = if packet.state == State::Down { State::Init } else { State::Up };
        let mine = Packet {
            state,
            your_discriminator: packet.my_discriminator.get(),
            my_discriminator: NonZeroU32::MIN,
            is_final: packet.poll,
            poll: false,
            ..packet
        };
        outbox.send_to(&mine.encode(), (from.ip(), 3784))?;
    }
    drop(speaker);
    keep("bfd", kind, &kept)
}

/// A session of BGP that is up, and stays so while this is held.
fn answering(listener: &TcpListener) -> Result<TcpStream> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    next(&mut stream)?;
    stream.write_all(&Message::Open(our_open()).encode(Context::default()))?;
    stream.write_all(&Message::Keepalive.encode(CONTEXT))?;
    Ok(stream)
}

fn keep(target: &str, kind: Kind, recorded: &[Vec<u8>]) -> Result<()> {
    assert!(!recorded.is_empty());
    if env::var_os("BULKHEAD_WRITE_SEEDS").is_none() {
        return Ok(());
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    fs::create_dir_all(&directory)?;
    let name = format!("{kind}").to_lowercase().replace(' ', "");
    for (index, bytes) in recorded.iter().enumerate() {
        fs::write(directory.join(format!("{name}-{index}")), bytes)?;
    }
    Ok(())
}
