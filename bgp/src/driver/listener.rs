//! Connections from peers: each goes to the task of the neighbour with that address.

use super::mailbox::Command;
use super::socket;
use super::table::{Caller, PeerTable};
use crate::wire::notification::{Notification, cease, code};
use crate::wire::{Context, Message};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// After an error of the listener itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs until it is dropped.
pub(super) async fn run(listener: Arc<TcpListener>, peers: PeerTable, strangers: mpsc::Sender<TcpStream>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => admit(stream, from, &peers, &strangers),
            Err(error) => {
                tracing::warn!(%error, "cannot accept BGP connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, from: SocketAddr, peers: &PeerTable, strangers: &mpsc::Sender<TcpStream>) {
    if let Err(error) = socket::accepted(&stream) {
        tracing::debug!(%from, %error, "connection lost at once");
        return;
    }
    // A full queue is a flood of connections: the last ones are dropped.
    match peers.caller(from) {
        Caller::Peer(commands) => drop(commands.try_send(Command::Incoming(stream))),
        // Idle refuses (RFC 4271 section 8.2.2). No message: it would take the place of the text that the peer was told at the end
        // of its session.
        Caller::Down => socket::refuse(stream),
        Caller::Member => drop(strangers.try_send(stream)),
        Caller::Nobody => {
            tracing::info!(%from, "refused a BGP connection from an address that is no peer's");
            let rejected = Notification::new(code::CEASE, cease::CONNECTION_REJECTED);
            let bytes = Message::Notification(rejected).encode(Context::default());
            tokio::spawn(socket::finish(stream, bytes));
        }
    }
}
