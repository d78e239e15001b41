//! A monitoring station (BMP, RFC 7854) beside a node with a whole daemon and a real router. What it reads is taken apart
//! here, by the RFC's figures alone.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_lab::bgp::{
    Kind, Setup, THEIRS,
    rack::{Rack, trial},
    site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS},
};
use bulkhead_lab::{Error, Result, enter, until};
use libtest_mimic::{Arguments, Trial};
use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read},
    net::{TcpListener, TcpStream},
    time::Instant,
};

const PORT: u16 = 11019;
const INITIATION: u8 = 4;
const TERMINATION: u8 = 5;
const UP: u8 = 3;
const DOWN: u8 = 2;
const STATISTICS: u8 = 1;
const ROUTES: u8 = 0;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let mut trials: Vec<Trial> = Kind::ALL
        .map(|kind| {
            trial(format!("a station sees a session from its up to its down × {kind}"), "{}", move |rack| {
                whole(rack, kind)
            })
        })
        .into();
    trials.push(trial("a station that was away is told everything anew", "{}", again));
    libtest_mimic::run(&arguments, trials).exit()
}

fn configure(rack: &Rack, monitoring: &str) -> Result<()> {
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {NODE_AS}, monitoring: [{monitoring}]}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf}}\n\
         spec: {{peerAddress: {ROUTER}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2}}\n"
    );
    Ok(fs::write(rack.dir.join("objects/bgp.yaml"), text)?)
}

struct Station {
    listener: TcpListener,
    rack_dir: std::path::PathBuf,
}

/// One message: its type, and what follows the common header.
type Told = (u8, Vec<u8>);

impl Station {
    fn listen(rack: &Rack) -> Result<Self> {
        let listener = rack.router.run(|| Ok(TcpListener::bind((ROUTER, PORT))?))?;
        listener.set_nonblocking(true)?;
        configure(rack, &format!("{{address: {ROUTER}, port: {PORT}, statisticsSeconds: 1}}"))?;
        Ok(Self { listener, rack_dir: rack.dir.clone() })
    }

    /// The next connection, past its Initiation.
    fn accept(&self) -> Result<Session> {
        let what = format!("the node of {} connects", self.rack_dir.display());
        let stream = until(&what, DEADLINE, || match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e.into()),
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut session = Session(stream);
        let (kind, body) = session.next()?;
        assert_eq!(kind, INITIATION);
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(text.contains("bulkheadd ") && text.contains("node-"), "sysDescr and sysName: {text:?}");
        Ok(session)
    }
}

struct Session(TcpStream);

impl Session {
    fn next(&mut self) -> Result<Told> {
        let mut header = [0; 6];
        self.0.read_exact(&mut header)?;
        assert_eq!(header[0], 3, "version");
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length - 6];
        self.0.read_exact(&mut body)?;
        Ok((header[5], body))
    }

    /// The next of this kind; statistics and routes in front of it are passed over.
    fn find(&mut self, wanted: u8) -> Result<Vec<u8>> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let (kind, body) = self.next()?;
            if kind == wanted {
                return Ok(body);
            }
            assert!([STATISTICS, ROUTES].contains(&kind), "type {kind} before {wanted}");
        }
        Err(Error::Unmet(format!("no message of type {wanted}")))
    }

    /// IPv4 prefixes up to End-of-RIB of both families.
    fn routes(&mut self) -> Result<BTreeSet<String>> {
        let (mut prefixes, mut ends) = (BTreeSet::new(), 0);
        while ends < 2 {
            let (announced, end) = self.update()?;
            ends += u8::from(end);
            prefixes.extend(announced);
        }
        Ok(prefixes)
    }

    /// Routers differ in what they say first, routes or their End-of-RIB.
    fn wait_route(&mut self, wanted: &str) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if self.update()?.0.iter().any(|prefix| prefix == wanted) {
                return Ok(());
            }
        }
        Err(Error::Unmet(format!("no Route Monitoring of {wanted}")))
    }

    /// IPv4 prefixes of the next UPDATE, and whether it is an End-of-RIB.
    fn update(&mut self) -> Result<(Vec<String>, bool)> {
        let body = self.find(ROUTES)?;
        let update = &body[42 + 19..];
        let withdrawn = usize::from(u16::from_be_bytes([update[0], update[1]]));
        let attributes = &update[2 + withdrawn..];
        let length = usize::from(u16::from_be_bytes([attributes[0], attributes[1]]));
        let nlri = &attributes[2 + length..];
        // RFC 4724: an empty UPDATE, or one with an empty MP_UNREACH_NLRI alone.
        let empty = length == 0 || (length <= 7 && attributes[3] == 15);
        Ok((ipv4(nlri), withdrawn == 0 && nlri.is_empty() && empty))
    }
}

fn ipv4(mut nlri: &[u8]) -> Vec<String> {
    let mut prefixes = Vec::new();
    while let [length, rest @ ..] = nlri {
        let octets = usize::from(length.div_ceil(8));
        let mut address = [0; 4];
        address[..octets].copy_from_slice(&rest[..octets]);
        prefixes.push(format!("{}/{length}", std::net::Ipv4Addr::from(address)));
        nlri = &rest[octets..];
    }
    prefixes
}

/// Peer address, AS number.
fn peer(body: &[u8]) -> (String, u32) {
    assert_eq!(body[0..2], [0, 0], "a global peer, IPv4, before policy, four-octet AS numbers");
    let address: [u8; 4] = body[22..26].try_into().unwrap();
    (std::net::Ipv4Addr::from(address).to_string(), u32::from_be_bytes(body[26..30].try_into().unwrap()))
}

fn whole(rack: &mut Rack, kind: Kind) -> Result<()> {
    let station = Station::listen(rack)?;
    let mut session = station.accept()?;
    let router = kind.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    router.wait_established()?;
    let up = session.find(UP)?;
    assert_eq!(peer(&up), (ROUTER.to_owned(), ROUTER_AS));
    let local: [u8; 4] = up[54..58].try_into().unwrap();
    assert_eq!(std::net::Ipv4Addr::from(local).to_string(), NODE);
    // Two OPENs, ours first: length at 16, type at 18, AS at 20.
    let ours = &up[62..];
    let length = usize::from(u16::from_be_bytes([ours[16], ours[17]]));
    let theirs = &ours[length..];
    for (open, asn) in [(ours, NODE_AS), (theirs, ROUTER_AS)] {
        assert_eq!((open[18], u32::from(u16::from_be_bytes([open[20], open[21]]))), (1, asn));
    }
    session.wait_route(THEIRS)?;
    let report = session.find(STATISTICS)?;
    assert_eq!(peer(&report), (ROUTER.to_owned(), ROUTER_AS));
    // Behind the count of TLVs, some of which is type 7, length 8: routes in Adj-RIB-In.
    let gauge = |report: &[u8]| {
        let tlv = report[46..].windows(12).find(|tlv| tlv[..4] == [0, 7, 0, 8]).expect("a gauge of routes");
        u64::from_be_bytes(tlv[4..].try_into().unwrap())
    };
    let mut routes = gauge(&report);
    while routes < 2 {
        routes = gauge(&session.find(STATISTICS)?);
    }
    assert_eq!(routes, 2, "one of each IP version");
    drop(router);
    let down = session.find(DOWN)?;
    assert_eq!(peer(&down), (ROUTER.to_owned(), ROUTER_AS));
    assert_eq!(down[42], 4, "the connection was lost");
    configure(rack, "")?;
    session.find(TERMINATION).map(drop)
}

fn again(rack: &mut Rack) -> Result<()> {
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    router.wait_established()?;
    rack.wait_leaf("both routes came", |leaf| leaf.received == 2)?;
    let station = Station::listen(rack)?;
    for _ in 0..2 {
        let mut session = station.accept()?;
        assert_eq!(peer(&session.find(UP)?), (ROUTER.to_owned(), ROUTER_AS));
        assert_eq!(session.routes()?, BTreeSet::from([THEIRS.to_owned()]));
    }
    let address = format!("{ROUTER}:{PORT}");
    drop(station);
    until("the status tells of the station that is gone", DEADLINE, || {
        let shown = rack.node.cli(&["status"])?;
        if shown.contains(&format!("BMP collector {address}: ")) {
            Ok(Some(()))
        } else {
            Err(Error::Unmet(shown))
        }
    })?;
    assert!(router.established()?);
    Ok(())
}
