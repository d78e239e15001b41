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

/// For a session, and between two routes that a receiver takes: it may share its core with whatever else runs.
const DEADLINE: Duration = Duration::from_secs(120);
const PROGRESS: Duration = Duration::from_secs(15);
/// For all routes: GoBGP takes ten minutes and more for a million.
const LONGEST: Duration = Duration::from_secs(150);
/// Between two looks, each of which costs the receiver a little.
const LOOK: Duration = Duration::from_millis(20);

/// Of those beside whom something is promised, by turns. The fastest counts: whatever else the machine does can only make it slower.
const ROUNDS: usize = 3;

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

type Attempt = Result<Spent, String>;

pub fn run() -> Vec<Figure> {
    [(200, PACKED), (1000, PACKED), (200, 5), (1000, 5)]
        .into_iter()
        .flat_map(|(thousands, each)| {
            let number = thousands * 1000 / scale();
            let octets = stream(0, number, each);
            let what = format!("BGP: {thousands}k prefixes, {each} a set");
            let attempt = |kind| attempt(&what, kind, number, &octets);
            let by_turns = (0..ROUNDS).map(|_| [attempt(None), attempt(Some(Kind::Bird))]);
            let [ours, bird] =
                by_turns.reduce(best_of_each).unwrap_or_else(|| [0, 1].map(|_| Err("no round".into())));
            let mut figures = rows(&what, &ours, Kind::Bird, &bird);
            for kind in [Kind::Frr, Kind::Gobgp] {
                figures.extend(rows(&what, &ours, kind, &attempt(Some(kind))));
            }
            figures
        })
        .collect()
}

/// What is promised is promised beside BIRD.
fn rows(what: &str, ours: &Attempt, kind: Kind, other: &Attempt) -> Vec<Figure> {
    let row = |of: &str, unit, value: fn(&Spent) -> f64| {
        let figure =
            Figure::attempted(format!("{what}, {of}, {kind}"), ours.clone().map(|s| value(&s)), unit);
        figure.beside_attempted(other.clone().map(|s| value(&s)))
    };
    let cpu = row("CPU", "ms", |spent| spent.cpu);
    let cpu = if kind == Kind::Bird { cpu.ratio_at_most(1.0) } else { cpu };
    vec![cpu, row("last", "ms", |spent| spent.wall), row("memory", "MB", |spent| spent.memory)]
}

/// Of ours, a round that failed is what counts.
fn best_of_each(before: [Attempt; 2], [ours, bird]: [Attempt; 2]) -> [Attempt; 2] {
    let [ours_before, bird_before] = before;
    let ours = ours_before.and_then(|before| Ok(better(before, ours?)));
    let bird = match (bird_before, bird) {
        (Ok(before), Ok(bird)) => Ok(better(before, bird)),
        (before, bird) => before.or(bird),
    };
    [ours, bird]
}

fn better(one: Spent, other: Spent) -> Spent {
    if other.cpu < one.cpu { other } else { one }
}

fn attempt(what: &str, kind: Option<Kind>, number: usize, octets: &[u8]) -> Attempt {
    let who = kind.map_or("Bulkhead".to_owned(), |kind| kind.to_string());
    let spent = receive(kind, number, octets).map_err(|e| format!("{who}: {e}"));
    match &spent {
        Ok(spent) => eprintln!("    {what}: {who}: {:.0} ms of CPU, {:.0} MB", spent.cpu, spent.memory),
        Err(error) => eprintln!("    {what}: {error}"),
    }
    spent
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
    let (mut ended, begun) = (String::new(), Instant::now());
    for _ in 0..3 {
        let stream = until("the receiver connects", DEADLINE, || match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e.into()),
        })?;
        stream.set_nonblocking(false)?;
        match feed(&mut who, stream, number, octets) {
            Ok(spent) => return Ok(spent),
            Err(e) if begun.elapsed() > LONGEST => return Err(e),
            Err(e) => ended = e.to_string(),
        }
    }
    unmet(ended)
}

fn feed(who: &mut Who, stream: TcpStream, number: usize, octets: &[u8]) -> Result<Spent> {
    let mut fed = Fed::establish(stream, NODE_AS, Ipv4Addr::new(172, 31, 9, 2))?;
    let pid = who.pid();
    alone(pid)?;
    let (cpu, memory, start) = (cpu(pid)?, resident(pid)?, Instant::now());
    fed.send(octets)?;
    wait_received(number, || {
        fed.holds()?;
        // Who computes may not answer.
        Ok(who.received().unwrap_or_default())
    })?;
    Ok(Spent {
        cpu: self::cpu(pid)? - cpu,
        wall: start.elapsed().as_secs_f64() * 1e3,
        memory: resident(pid)? - memory,
    })
}

/// As long as there are more of them again and again, and at most [`LONGEST`].
fn wait_received(number: usize, mut received: impl FnMut() -> Result<usize>) -> Result<()> {
    let begun = Instant::now();
    let (mut before, mut grew, mut told) = (0, begun, begun);
    loop {
        let now = received()?;
        if now >= number {
            return Ok(());
        }
        if now > before {
            (before, grew) = (now, Instant::now());
        }
        if grew.elapsed() > DEADLINE {
            return unmet(format!("{now} of {number} routes, and no more for {} s", DEADLINE.as_secs()));
        }
        if begun.elapsed() > LONGEST {
            return unmet(format!("{now} of {number} routes after {} s", LONGEST.as_secs()));
        }
        if told.elapsed() > PROGRESS {
            eprintln!("    {now} of {number} routes");
            told = Instant::now();
        }
        thread::sleep(LOOK);
    }
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
    wait_received(sessions * of_each, || receiver.received())?;
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
    fn the_fastest_of_the_rounds_that_were_measured_counts() {
        let spent = |cpu| Ok(Spent { cpu, ..Spent::default() });
        let failed = || Err("no session".to_owned());
        let rounds = [[spent(3.0), failed()], [spent(4.0), spent(9.0)], [spent(2.0), spent(8.0)]];
        let [ours, bird] = rounds.into_iter().reduce(best_of_each).unwrap();
        assert_eq!((ours.unwrap().cpu, bird.unwrap().cpu), (2.0, 8.0));
    }

    #[test]
    fn a_round_of_ours_that_failed_is_hidden_by_no_other() {
        let spent = |cpu| Ok(Spent { cpu, ..Spent::default() });
        let failed = || Err("no session".to_owned());
        for rounds in [[failed(), spent(2.0)], [spent(2.0), failed()]] {
            let rounds = rounds.map(|ours| [ours, failed()]);
            let [ours, bird] = rounds.into_iter().reduce(best_of_each).unwrap();
            assert!(ours.is_err() && bird.is_err());
        }
    }

    #[test]
    fn accepted_routes_are_read_from_each_router() {
        let bird = "    Routes:         200000 imported, 2 exported, 200000 preferred\n    Routes:         0 imported\n";
        assert_eq!(count(bird), 200_000);
        assert_eq!(count("        \"acceptedPrefixCounter\":77,\n"), 77);
        assert_eq!(count("  Route statistics:\n    Accepted:               78\n"), 78);
    }
}
