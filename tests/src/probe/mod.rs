//! Asks for many flows at once whether they pass, and believes no timeout.
//!
//! Each site listens twice: as an application (TCP, UDP echo, the kernel's ICMP echo) and with raw sockets, which see every
//! packet that reaches its IP layer. A flow is *denied* only when nothing of it arrived there, and *allowed* only when the
//! answer came back and the receiver saw the sender's own address.
//!
//! ```text
//! cell ──request──▶ raw socket (arrived?) + application ──answer──▶ sender (answered?)
//!   arrived  answered
//!      yes      yes     Allowed            yes  no   OneWay
//!      no       no      Denied             no   yes  Translated: it came under another address
//! ```

mod sniff;
mod sockets;

use crate::{Error, Netns, Result, packet};
use sniff::{Key, Seen, listen_raw};
use sockets::Sockets;
use std::{
    cell::RefCell,
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, task::LocalSet};

/// Nothing happened for so long: what has not arrived by now will not.
const QUIET: Duration = Duration::from_millis(400);
const LONGEST: Duration = Duration::from_secs(8);

/// Somebody who calls and is called.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    pub name: &'a str,
    pub netns: &'a Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    Tcp(u16),
    Udp(u16),
    Ping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// One question: may site `from` reach `service` of site `to` (indices into the sites)?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    pub from: usize,
    pub to: usize,
    pub family: Family,
    pub service: Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Denied,
    /// The request arrived; no answer came back.
    OneWay,
    /// The answer came, but the receiver did not see the sender's address.
    Translated,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "TCP {port}"),
            Self::Udp(port) => write!(f, "UDP {port}"),
            Self::Ping => f.write_str("ICMP echo"),
        }
    }
}

impl Site<'_> {
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// The verdict on each cell, in order. All at once; within seconds.
pub fn probe(sites: &[Site<'_>], cells: &[Cell]) -> Result<Vec<Verdict>> {
    let sockets = sites
        .iter()
        .enumerate()
        .map(|(n, site)| Sockets::open(site, n, cells))
        .collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(run(sites, cells, sockets)))
}

/// What has been seen so far.
#[derive(Default)]
struct Log {
    /// By (receiving site, key).
    arrived: HashSet<(usize, Key)>,
    /// By cell.
    answered: HashSet<usize>,
    last: Option<Instant>,
}

impl Log {
    fn arrival(&mut self, site: usize, seen: Seen) {
        let new = match seen {
            Seen::Request(key) => self.arrived.insert((site, key)),
            Seen::Answer(cell) => self.answered.insert(cell as usize),
        };
        if new {
            self.last = Some(Instant::now());
        }
    }

    fn answer(&mut self, cell: usize) {
        if self.answered.insert(cell) {
            self.last = Some(Instant::now());
        }
    }
}

async fn run(sites: &[Site<'_>], cells: &[Cell], mut sockets: Vec<Sockets>) -> Result<Vec<Verdict>> {
    let log = Rc::new(RefCell::new(Log::default()));
    for (n, site) in sockets.iter_mut().enumerate() {
        site.serve()?;
        for (raw, protocol) in site.raw()? {
            let log = log.clone();
            tokio::task::spawn_local(listen_raw(raw, protocol, move |seen| {
                log.borrow_mut().arrival(n, seen)
            }));
        }
        for udp in site.udp_clients()? {
            let log = log.clone();
            tokio::task::spawn_local(sockets::hear_answers(udp, move |cell| {
                log.borrow_mut().answer(cell as usize);
            }));
        }
    }
    let mut keys = Vec::with_capacity(cells.len());
    for (n, cell) in cells.iter().enumerate() {
        keys.push(ask(sites, &mut sockets[cell.from], n, cell, &log)?);
        // Let the listeners keep up, so that no socket buffer overflows.
        if n % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    settle(&log, cells.len()).await;
    let log = log.borrow();
    Ok(cells
        .iter()
        .zip(keys)
        .enumerate()
        .map(|(n, (cell, keys))| {
            let arrived = keys.iter().any(|key| log.arrived.contains(&(cell.to, *key)));
            match (arrived, log.answered.contains(&n)) {
                (true, true) => Verdict::Allowed,
                (false, false) => Verdict::Denied,
                (true, false) => Verdict::OneWay,
                (false, true) => Verdict::Translated,
            }
        })
        .collect())
}

/// Sends the request; the keys under which it may arrive.
fn ask(
    sites: &[Site<'_>],
    from: &mut Sockets,
    number: usize,
    cell: &Cell,
    log: &Rc<RefCell<Log>>,
) -> Result<Vec<Key>> {
    let address = sites[cell.to].address(cell.family);
    let id = u32::try_from(number).map_err(|_| Error::Unmet("too many cells".into()))?;
    let by_own_addresses = |from: &Sockets| from.own.iter().map(|source| Key::Tagged(*source, id)).collect();
    match cell.service {
        Service::Tcp(port) => {
            let (stream, local) = from.connect(SocketAddr::new(address, port))?;
            let log = log.clone();
            tokio::task::spawn_local(async move {
                if connected(&stream).await {
                    log.borrow_mut().answer(number);
                }
                // Held until the matrix is over: no RST, no FIN that could be taken for a request.
                std::future::pending::<()>().await;
            });
            Ok(vec![Key::Tcp(local.ip(), local.port(), port)])
        }
        Service::Udp(port) => {
            from.send_udp(SocketAddr::new(address, port), id);
            Ok(by_own_addresses(from))
        }
        Service::Ping => {
            from.send_echo(address, id);
            Ok(by_own_addresses(from))
        }
    }
}

async fn connected(stream: &TcpStream) -> bool {
    stream.writable().await.is_ok() && matches!(stream.take_error(), Ok(None)) && stream.peer_addr().is_ok()
}

/// Until everything is answered, or nothing happens any more.
async fn settle(log: &Rc<RefCell<Log>>, cells: usize) {
    let start = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let log = log.borrow();
        let quiet = log.last.unwrap_or(start).max(start).elapsed();
        if log.answered.len() == cells && quiet >= Duration::from_millis(20)
            || quiet >= QUIET
            || start.elapsed() >= LONGEST
        {
            return;
        }
    }
}

/// ICMP type of an echo request.
const fn echo_type(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 128,
    }
}

/// Protocol numbers a raw socket listens to.
const fn raw_protocols(family: Family) -> [u8; 3] {
    match family {
        Family::V4 => [packet::TCP, packet::UDP, packet::ICMP],
        Family::V6 => [packet::TCP, packet::UDP, packet::ICMPV6],
    }
}
