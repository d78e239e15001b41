//! The way to the kernel: a socket for each question, so that no answer of an earlier one is taken for its own.

use super::{
    Found, HostPorts, Nat, Translation,
    conntrack::{self, Changed},
    expression::family,
    table::{self, message},
    wire::{self, Attributes, CONNTRACK, Message, NF_TABLES, Received},
};
use crate::net::{Kernel, NetError, inspect};
use netlink_packet_core::NLM_F_DUMP_INTR;
use nix::sys::{
    socket::{
        setsockopt,
        sockopt::{ReceiveTimeout, SndBufForce},
    },
    time::{TimeVal, TimeValLike},
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};
use tracing::warn;

const SET: &str = "set host ports and masquerade (nf_tables with nat, masquerade and fib)";
const READ: &str = "read host ports and masquerade (nf_tables)";
const FORGET: &str = "forget flows of a host port (conntrack)";
/// Seconds; the kernel answers at once.
const DEADLINE: i64 = 10;
/// Somebody else may write while we read.
const ATTEMPTS: usize = 5;

/// Less than a socket's buffer as it comes.
const FITS: usize = 64 << 10;
/// What the kernel takes of a buffer for itself.
const SLACK: usize = 4 << 10;
/// As many answers fit a socket's buffer.
const DELETED_AT_ONCE: usize = 64;
/// Of an interface's index: no filter.
const EVERY: u32 = 0;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// In the namespace of the daemon; the threads of its runtime are all there.
impl Translation for Kernel {
    async fn translate(&self, before: &Nat, after: &Nat) -> Result<(), NetError> {
        if before == after {
            return Ok(());
        }
        let changed = table::changed_ports(before, after);
        match table::difference(before, after) {
            Some(messages) if messages.is_empty() => {}
            Some(messages) => match blocking(SET, move || commit(&messages)).await {
                // Somebody has removed the table, or part of it.
                Err(e) if e.errno() == Some(libc::ENOENT) => self.translate_anew(after).await?,
                done => done?,
            },
            None => self.translate_anew(after).await?,
        }
        self.forget(changed).await;
        Ok(())
    }

    async fn translate_anew(&self, nat: &Nat) -> Result<(), NetError> {
        let messages = table::anew(nat);
        blocking(SET, move || commit(&messages)).await
    }

    async fn forget_flows(&self, gone: &HostPorts) {
        let gone = gone.iter().map(|(port, to)| Changed::Gone(*port, to.ip()));
        self.forget(gone.collect()).await;
    }

    async fn translated(&self) -> Result<Found, NetError> {
        blocking(READ, read).await
    }

    async fn ruleset(&self) -> Result<u32, NetError> {
        blocking(READ, ruleset).await
    }
}

impl Kernel {
    async fn forget(&self, changed: Vec<Changed>) {
        let changed: Vec<_> = changed.into_iter().filter(Changed::concerns_flows).collect();
        if changed.is_empty() {
            return;
        }
        let forget = async {
            let local = inspect::addresses(self, EVERY).await?;
            let local = local.iter().map(|a| a.network.ip()).collect();
            blocking(FORGET, move || forget(&changed, &local)).await
        };
        if let Err(error) = forget.await {
            // They go by themselves when they have been silent for a while.
            warn!(%error, "flows of a host port that changed go on as before");
        }
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, NetError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|e| Err(io::Error::other(e)));
    done.map_err(|source| NetError::Kernel { what, source })
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // SAFETY: the socket is open, and outlives what is borrowed of it.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(DEADLINE))?;
    Ok(socket)
}

/// Sends, and hands on all that comes until `see` has what it wants.
fn ask(octets: &[u8], see: impl FnMut(&Received<'_>) -> io::Result<bool>) -> io::Result<()> {
    let socket = open()?;
    // What is sent at once has to fit, and a transaction cannot be parted.
    if octets.len() > FITS {
        // SAFETY: the socket is open, and outlives what is borrowed of it.
        let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        setsockopt(&fd, SndBufForce, &(octets.len() + SLACK))?;
    }
    ask_on(&socket, octets, &[], see)
}

/// `fine`: error numbers that are as good as success.
fn ask_on(
    socket: &Socket,
    octets: &[u8],
    fine: &[i32],
    mut see: impl FnMut(&Received<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    socket.send(octets, 0)?;
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        for message in wire::received(&buffer) {
            if let Some(error) = error_of(&message)
                && !fine.contains(&error.raw_os_error().unwrap_or_default())
            {
                return Err(error);
            }
            if see(&message)? {
                return Ok(());
            }
        }
    }
}

fn error_of(message: &Received<'_>) -> Option<io::Error> {
    let code = message.body.get(..4)?.try_into().ok().map(i32::from_ne_bytes)?;
    let is_error = matches!(message.kind, NLMSG_ERROR | NLMSG_DONE) && code < 0;
    is_error.then(|| io::Error::from_raw_os_error(-code))
}

/// One transaction.
fn commit(messages: &[Message]) -> io::Result<()> {
    let last = messages.len() as u32;
    ask(&wire::transaction(messages), |m| Ok(m.kind == NLMSG_ERROR && m.sequence == last))
}

/// All objects of a dump; none where there is no table.
fn dump(message: Message, mut see: impl FnMut(&Received<'_>)) -> io::Result<()> {
    let octets = wire::requests(&[message], false);
    let dumped = ask(&octets, |m| {
        // What was read first may not go with what was read last.
        if m.flags & NLM_F_DUMP_INTR != 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if m.kind != NLMSG_DONE {
            see(m);
        }
        Ok(m.kind == NLMSG_DONE)
    });
    match dumped {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

fn read() -> io::Result<Found> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match read_once() {
            Err(e) if left > 0 && is_interrupted(&e) => {}
            read => return read,
        }
    }
}

fn is_interrupted(e: &io::Error) -> bool {
    // EINTR is what nf_tables says of a dump that a change came between.
    e.kind() == io::ErrorKind::Interrupted
}

fn read_once() -> io::Result<Found> {
    let mut found = Found::default();
    for v6 in [false, true] {
        let of = family(v6);
        dump(table::dump(message::GET_RULE, v6, None), |m| {
            if m.is_of(NF_TABLES, message::NEW_RULE) {
                found.add_rule(of, m.attributes());
            }
        })?;
        let mut sets = Vec::new();
        dump(table::dump(message::GET_SET, v6, None), |m| {
            if m.is_of(NF_TABLES, message::NEW_SET) {
                sets.push(found.add_set(of, m.attributes()));
            }
        })?;
        for set in sets {
            dump(table::dump(message::GET_ELEMENTS, v6, Some(&set)), |m| {
                if m.is_of(NF_TABLES, message::NEW_ELEMENTS) {
                    found.add_elements(of, m.attributes());
                }
            })?;
        }
    }
    Ok(found)
}

fn ruleset() -> io::Result<u32> {
    const NUMBER: u16 = 1;
    let asked = Message::new(NF_TABLES, message::GET_GENERATION, 0, 0, Attributes::new());
    let mut number = None;
    ask(&wire::requests(&[asked], false), |m| {
        if m.is_of(NF_TABLES, message::NEW_GENERATION) {
            number = wire::find(m.attributes(), NUMBER).map(wire::number);
        }
        Ok(true)
    })?;
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One walk through the kernel's connections for each protocol, however many ports have changed.
fn forget(changed: &[Changed], local: &BTreeSet<IpAddr>) -> io::Result<()> {
    let mut requests = Vec::new();
    for (question, of_kind) in conntrack::questions(changed) {
        dump(question, |m| {
            if m.is_of(CONNTRACK, conntrack::NEW) {
                requests.extend(of_kind.iter().find_map(|change| change.forget(m.attributes(), local)));
            }
        })?;
    }
    if requests.is_empty() {
        return Ok(());
    }
    let socket = open()?;
    for some in requests.chunks(DELETED_AT_ONCE) {
        // It has ended meanwhile.
        let fine = [libc::ENOENT];
        let last = some.len() as u32;
        ask_on(&socket, &wire::requests(some, true), &fine, |m| {
            Ok(m.kind == NLMSG_ERROR && m.sequence == last)
        })?;
    }
    Ok(())
}
