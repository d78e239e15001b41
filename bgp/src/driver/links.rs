//! The connections of one neighbour: one, or two while they collide. Output waits here, input does not.
//!
//! What a connection has to say at its end is sent by a task of its own, which holds the [`Alive`] of its peer's.

use super::socket;
use crate::fsm::ConnId;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

#[derive(Debug, PartialEq)]
pub(super) enum LinkEvent {
    Received(ConnId, Vec<u8>),
    /// The connection is gone already.
    Closed(ConnId, Option<ErrorKind>),
    /// Some output went out; `all`: nothing is left of it.
    Sent {
        id: ConnId,
        all: bool,
    },
    /// What was to be said at its end arrived.
    Told(ConnId),
}

/// Whoever stops the speaker can wait until all of these are gone.
pub(super) type Alive = watch::Receiver<()>;

#[derive(Debug)]
pub(super) struct Links {
    all: Vec<Link>,
    /// What they have to say at their end is on its way, and whether it arrives.
    ending: Vec<(ConnId, oneshot::Receiver<bool>)>,
    alive: Alive,
}

#[derive(Debug)]
struct Link {
    id: ConnId,
    stream: TcpStream,
    output: Vec<u8>,
}

const READ_SIZE: usize = 64 * 1024;

impl Links {
    pub fn new(alive: Alive) -> Links {
        Links { all: Vec::new(), ending: Vec::new(), alive }
    }

    pub fn add(&mut self, id: ConnId, stream: TcpStream) {
        self.all.push(Link { id, stream, output: Vec::new() });
    }

    /// Queues `bytes`; a connection that is gone swallows them.
    pub fn send(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some(link) = self.all.iter_mut().find(|link| link.id == id) {
            link.output.extend_from_slice(bytes);
        }
    }

    /// Closes after what is queued. Without anything queued, at once.
    pub fn close(&mut self, id: ConnId) {
        let Some(index) = self.all.iter().position(|link| link.id == id) else {
            return;
        };
        let Link { stream, output, .. } = self.all.swap_remove(index);
        if !output.is_empty() {
            let alive = self.alive.clone();
            let (ends, arrives) = oneshot::channel();
            self.ending.push((id, arrives));
            tokio::spawn(async move {
                // Who asked may be gone.
                let _ = ends.send(socket::finish(stream, output).await);
                drop(alive);
            });
        }
    }

    /// Waits, for a moment, for all that is said at the end of connections: on which of them it arrived.
    pub async fn told(&mut self) -> Vec<ConnId> {
        let mut told = Vec::new();
        for (id, arrives) in self.ending.drain(..) {
            told.extend(arrives.await.is_ok_and(|arrived| arrived).then_some(id));
        }
        told
    }

    fn poll_ending(&mut self, context: &mut Context<'_>) -> Option<ConnId> {
        let mut told = None;
        self.ending.retain_mut(|(id, arrives)| {
            if told.is_some() {
                return true;
            }
            let Poll::Ready(arrived) = Pin::new(arrives).poll(context) else { return true };
            told = arrived.is_ok_and(|arrived| arrived).then_some(*id);
            false
        });
        told
    }

    /// Octets that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.all.iter().map(|link| link.output.len()).sum()
    }

    /// Waits until something happens on any connection. May be dropped and called again.
    pub async fn next(&mut self) -> LinkEvent {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<LinkEvent> {
        if let Some(id) = self.poll_ending(context) {
            return Poll::Ready(LinkEvent::Told(id));
        }
        for index in 0..self.all.len() {
            let link = &mut self.all[index];
            if let Poll::Ready(read) = link.poll_read(context) {
                let id = link.id;
                return Poll::Ready(match read {
                    Ok(bytes) if !bytes.is_empty() => LinkEvent::Received(id, bytes),
                    ended => {
                        self.all.swap_remove(index);
                        LinkEvent::Closed(id, ended.err().map(|error| error.kind()))
                    }
                });
            }
        }
        let sent = self.all.iter_mut().find_map(|link| {
            let sent = link.poll_write(context);
            sent.then_some(LinkEvent::Sent { id: link.id, all: link.output.is_empty() })
        });
        sent.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Link {
    /// Nothing read is the end of the stream.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        loop {
            std::task::ready!(self.stream.poll_read_ready(context))?;
            let mut bytes = Vec::with_capacity(READ_SIZE);
            match self.stream.try_read_buf(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                read => return Poll::Ready(read.map(|_| bytes)),
            }
        }
    }

    /// Whether anything was written. An error is left to be found by reading: the other end may have
    /// said why before it closed.
    fn poll_write(&mut self, context: &mut Context<'_>) -> bool {
        let mut sent = false;
        while !self.output.is_empty() && self.stream.poll_write_ready(context).is_ready() {
            match self.stream.try_write(&self.output) {
                Ok(count) => {
                    self.output.drain(..count);
                    sent = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.output.clear(),
            }
        }
        sent
    }
}
