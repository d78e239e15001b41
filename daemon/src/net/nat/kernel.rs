//! The way to the kernel: a socket for each question, so that no answer of an earlier one is taken for its own.

use super::{
    Found, Nat, Translation, conntrack,
    expression::family,
    table::{self, message},
    wire::{self, Attributes, CONNTRACK, Message, NF_TABLES, Received},
};
use crate::net::{Kernel, NetError};
use netlink_packet_core::NLM_F_DUMP_INTR;
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::{
    io,
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
        if changed.iter().any(|c| c.dump().is_some())
            && let Err(error) = blocking(FORGET, move || forget(&changed)).await
        {
            // They go by themselves when they have been silent for a while.
            warn!(%error, "flows of a host port that changed go on as before");
        }
        Ok(())
    }

    async fn translate_anew(&self, nat: &Nat) -> Result<(), NetError> {
        let messages = table::anew(nat);
        blocking(SET, move || commit(&messages)).await
    }

    async fn translated(&self) -> Result<Found, NetError> {
        blocking(READ, read).await
    }

    async fn ruleset(&self) -> Result<u32, NetError> {
        blocking(READ, ruleset).await
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
fn ask(octets: &[u8], mut see: impl FnMut(&Received<'_>) -> io::Result<bool>) -> io::Result<()> {
    let socket = open()?;
    socket.send(octets, 0)?;
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        for message in wire::received(&buffer) {
            if let Some(error) = error_of(&message) {
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

fn forget(changed: &[conntrack::Changed]) -> io::Result<()> {
    for change in changed {
        let Some(question) = change.dump() else { continue };
        let mut requests = Vec::new();
        dump(question, |m| {
            if m.is_of(CONNTRACK, conntrack::NEW) {
                requests.extend(change.forget(m.attributes()));
            }
        })?;
        for request in requests {
            match ask(&wire::requests(&[request], true), |m| Ok(m.kind == NLMSG_ERROR)) {
                // It has ended meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                done => done?,
            }
        }
    }
    Ok(())
}
