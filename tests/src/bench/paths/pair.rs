//! A client and a server in two namespaces, both on one processor.

use crate::{Context, Netns, Result, unmet};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 8080;
const CPU: usize = 0;
/// A single byte each way; this one ends the server.
const END: u8 = 0xff;

#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub client: &'a Netns,
    pub server: &'a Netns,
    pub to: Ipv4Addr,
}

enum Order {
    Trips(u32),
    Calls(u32),
}

/// The clients, by turns.
pub struct Pairs {
    clients: Vec<(Sender<Order>, Receiver<Result<Duration>>)>,
}

impl Pairs {
    /// All of them ready while `measure` runs.
    pub fn with<T>(pairs: &[Pair<'_>], measure: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        thread::scope(|scope| {
            let mut clients = Vec::new();
            for pair in pairs.iter().copied() {
                let listener = pair.server.run(|| Ok(TcpListener::bind((pair.to, PORT))?))?;
                scope.spawn(move || serve(&listener));
                let (orders, received) = channel();
                let (send, results) = channel();
                scope.spawn(move || pair.client.run(move || obey(pair.to, &received, &send)));
                clients.push((orders, results));
            }
            // Dropped on return: the clients end the servers.
            measure(&Self { clients })
        })
    }

    /// On one connection, made for the slice.
    pub fn trips(&self, which: usize, count: u32) -> Result<Duration> {
        self.order(which, Order::Trips(count))
    }

    /// Connect, request, response, close.
    pub fn calls(&self, which: usize, count: u32) -> Result<Duration> {
        self.order(which, Order::Calls(count))
    }

    fn order(&self, which: usize, order: Order) -> Result<Duration> {
        let (orders, results) = &self.clients[which];
        match orders.send(order).ok().and_then(|()| results.recv().ok()) {
            Some(result) => result,
            None => unmet("a client is gone"),
        }
    }
}

fn obey(to: Ipv4Addr, orders: &Receiver<Order>, results: &Sender<Result<Duration>>) -> Result<()> {
    pin()?;
    let to = SocketAddr::from((to, PORT));
    for order in orders {
        let result = match order {
            Order::Trips(count) => trips(to, count),
            Order::Calls(count) => calls(to, count),
        };
        if results.send(result).is_err() {
            break;
        }
    }
    Ok(connect(to)?.write_all(&[END])?)
}

fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(CPU)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&to, Duration::from_secs(3)).during(|| format!("calling {to}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn trips(to: SocketAddr, count: u32) -> Result<Duration> {
    let mut stream = connect(to)?;
    // The first are not the connection's usual ones.
    (0..20).try_for_each(|_| trip(&mut stream))?;
    let start = Instant::now();
    (0..count).try_for_each(|_| trip(&mut stream))?;
    Ok(start.elapsed())
}

fn calls(to: SocketAddr, count: u32) -> Result<Duration> {
    let start = Instant::now();
    (0..count).try_for_each(|_| trip(&mut connect(to)?))?;
    Ok(start.elapsed())
}

fn trip(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[1])?;
    Ok(stream.read_exact(&mut [0])?)
}

fn serve(listener: &TcpListener) -> Result<()> {
    pin()?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? != 0 {
            if byte == [END] {
                return Ok(());
            }
            stream.write_all(&byte)?;
        }
    }
}
