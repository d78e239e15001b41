//! Receivers side by side: CPU of the process that speaks BGP, and the time until its last route is there.
//!
//! Each has one core, the sender the rest. The octets are made before; what a receiver says is thrown away.

use super::{
    feed::{Fed, PACKED, stream},
    receiver::Receiver,
    scale,
};
use crate::{
    Result,
    bgp::{
        Kind, Router, Setup,
        site::{NODE, NODE_AS, ROUTER, Site},
    },
    figure::Figure,
    link::run as command,
    unmet, until,
};
use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks, each of which costs the receiver a little.
const LOOK: Duration = Duration::from_millis(20);

enum Who {
    Ours(Receiver),
    Other(Box<dyn Router>),
}

impl Who {
    fn pid(&self) -> u32 {
        match self {
            Who::Ours(receiver) => receiver.pid(),
            Who::Other(router) => router.pid(),
        }
    }

    fn received(&mut self) -> Result<usize> {
        match self {
            Who::Ours(receiver) => receiver.received(),
            Who::Other(router) => Ok(count(&router.session()?)),
        }
    }
}

/// Accepted routes, in BIRD's, FRR's or GoBGP's own words about the session.
fn count(session: &str) -> usize {
    let numbers = session.lines().filter_map(|line| {
        let line = line.trim();
        let text = line
            .strip_prefix("Routes:")
            .or_else(|| line.strip_prefix("\"acceptedPrefixCounter\":"))
            .or_else(|| line.strip_prefix("Accepted:"))?;
        text.trim().split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
    });
    numbers.max().unwrap_or_default()
}

#[derive(Clone, Copy, Default)]
struct Spent {
    cpu: f64,
    wall: f64,
    memory: f64,
}

pub fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (thousands, each) in [(200, PACKED), (1000, PACKED), (200, 5), (1000, 5)] {
        let number = thousands * 1000 / scale();
        let octets = stream(0, number, each);
        let what = format!("BGP: {thousands}k prefixes, {each} a set");
        let ours = receive(None, number, &octets)?;
        let bird = receive(Some(Kind::Bird), number, &octets)?;
        figures.push(Figure::new(format!("{what}, CPU"), ours.cpu, "ms").beside(bird.cpu).ratio_at_most(1.0));
        figures.push(Figure::new(format!("{what}, last"), ours.wall, "ms").beside(bird.wall));
        figures.push(Figure::new(format!("{what}, memory"), ours.memory, "MB").beside(bird.memory));
        // GoBGP takes 17 s and 1.3 GB for a million, and nothing is promised beside it.
        let others = [Kind::Frr, Kind::Gobgp].into_iter().filter(|k| *k == Kind::Frr || thousands <= 200);
        for kind in others {
            let other = receive(Some(kind), number, &octets)?;
            figures.push(Figure::new(format!("{what}, CPU, {kind}"), ours.cpu, "ms").beside(other.cpu));
            figures.push(Figure::new(format!("{what}, last, {kind}"), ours.wall, "ms").beside(other.wall));
        }
    }
    Ok(figures)
}

/// `None`: by us.
fn receive(kind: Option<Kind>, number: usize, octets: &[u8]) -> Result<Spent> {
    let site = Site::create("receiver")?;
    let listener = site.node.run(|| Ok(TcpListener::bind((NODE, 179))?))?;
    let setup = Setup { hold_time: super::feed::HOLD, speaker_alone: true, ..Setup::DEFAULT };
    let mut who = match kind {
        None => Who::Ours(Receiver::start(&site.router)?),
        Some(kind) => Who::Other(kind.start(&site, &setup)?),
    };
    listener.set_nonblocking(true)?;
    // FRR resets its first session when the last of its configuration is read.
    let mut ended = String::new();
    for _ in 0..3 {
        let stream = until("the receiver connects", DEADLINE, || match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e.into()),
        })?;
        stream.set_nonblocking(false)?;
        match feed(&mut who, stream, number, octets) {
            Ok(spent) => return Ok(spent),
            Err(e) => ended = e.to_string(),
        }
    }
    unmet(format!("feeding {kind:?}: {ended}"))
}

fn feed(who: &mut Who, stream: TcpStream, number: usize, octets: &[u8]) -> Result<Spent> {
    let mut fed = Fed::establish(stream, NODE_AS, Ipv4Addr::new(172, 31, 9, 2))?;
    let pid = who.pid();
    alone(pid)?;
    let (cpu, memory, start) = (cpu(pid)?, resident(pid)?, Instant::now());
    fed.send(octets)?;
    until("the receiver has every route", DEADLINE, || {
        let received = who.received()?;
        if received >= number {
            return Ok(Some(Ok(())));
        }
        if let Err(ended) = fed.holds() {
            return Ok(Some(Err(ended)));
        }
        thread::sleep(LOOK);
        Err(crate::Error::Unmet(format!("{received} of {number}")))
    })??;
    Ok(Spent {
        cpu: self::cpu(pid)? - cpu,
        wall: start.elapsed().as_secs_f64() * 1e3,
        memory: resident(pid)? - memory,
    })
}

const SESSIONS: usize = 200;
const OF_EACH: usize = 10_000;

/// Many sessions, each with prefixes of its own.
pub fn many() -> Result<Vec<Figure>> {
    let site = Site::create("many")?;
    let (sessions, of_each) = (SESSIONS / scale().min(20), OF_EACH / scale());
    for session in 0..sessions {
        site.node.ip(&format!("address add {}/24 dev uplink", source(session)))?;
    }
    site.router.ip("route add 172.31.10.0/24 dev downlink")?;
    let mut receiver = Receiver::start(&site.router)?;
    alone(receiver.pid())?;
    let octets: Vec<Vec<u8>> = (0..sessions).map(|s| stream(s * of_each, of_each, PACKED)).collect();
    let mut fed = Vec::new();
    for session in 0..sessions {
        let from = source(session);
        let stream = until("the receiver listens", DEADLINE, || site.node.run(|| Ok(Some(dial(from)?))))?;
        fed.push(Fed::establish(stream, NODE_AS, from)?);
    }
    let (cpu, start) = (cpu(receiver.pid())?, Instant::now());
    thread::scope(|scope| {
        let senders: Vec<_> =
            fed.iter_mut().zip(&octets).map(|(fed, octets)| scope.spawn(|| fed.send(octets))).collect();
        senders.into_iter().try_for_each(|s| s.join().unwrap_or_else(|_| unmet("a sender panicked")))
    })?;
    until("every route of every session", DEADLINE, || {
        let received = receiver.received()?;
        if received >= sessions * of_each {
            return Ok(Some(()));
        }
        thread::sleep(LOOK);
        Err(crate::Error::Unmet(format!("{received} of {}", sessions * of_each)))
    })?;
    let pid = receiver.pid();
    let what = format!("BGP: {SESSIONS} sessions, {OF_EACH} each");
    Ok(vec![
        Figure::new(format!("{what}, CPU"), self::cpu(pid)? - cpu, "ms").at_most(5000.0),
        Figure::new(format!("{what}, last"), start.elapsed().as_secs_f64() * 1e3, "ms"),
        Figure::new(format!("{what}, memory"), resident(pid)?, "MB").at_most(400.0),
    ])
}

fn source(session: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac1f_0a01 + session as u32)
}

fn dial(from: Ipv4Addr) -> Result<TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(from, 0)))?;
    let Ok(SocketAddr::V4(to)) = format!("{ROUTER}:179").parse() else { return unmet("no address") };
    connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(fd.into())
}

/// On one core, with all its threads.
fn alone(pid: u32) -> Result<()> {
    command(Command::new("taskset").args(["-a", "-c", "-p", "0", &pid.to_string()])).map(drop)
}

/// Milliseconds, of all threads.
fn cpu(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e6)
}

/// MB.
fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.map_or_else(|| unmet("no resident pages"), |pages| Ok(pages * 4096.0 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_routes_are_read_from_each_router() {
        let bird = "    Routes:         200000 imported, 2 exported, 200000 preferred\n    Routes:         0 imported\n";
        assert_eq!(count(bird), 200_000);
        assert_eq!(count("        \"acceptedPrefixCounter\":77,\n"), 77);
        assert_eq!(count("  Route statistics:\n    Accepted:               78\n"), 78);
    }
}
