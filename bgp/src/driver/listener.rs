//! Connections from peers: each goes to the task of the neighbour with that address.

use super::socket;
use super::speaker::PeerTable;
use super::task::Command;
use crate::wire::notification::{Notification, cease, code};
use crate::wire::{Context, Message};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// After an error of the listener itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs until it is dropped.
pub(super) async fn run(listener: TcpListener, peers: PeerTable) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => admit(stream, from, &peers),
            Err(error) => {
                tracing::warn!(%error, "cannot accept BGP connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, from: SocketAddr, peers: &PeerTable) {
    if let Err(error) = socket::accepted(&stream) {
        tracing::debug!(%from, %error, "connection lost at once");
        return;
    }
    let Some(commands) = peers.by_address(from.ip()) else {
        tracing::info!(%from, "refused a BGP connection from an address that is no peer's");
        let rejected = Notification::new(code::CEASE, cease::CONNECTION_REJECTED);
        let bytes = Message::Notification(rejected).encode(Context::default());
        tokio::spawn(socket::finish(stream, bytes));
        return;
    };
    // A full queue is a flood of connections: the last ones are dropped.
    let _ = commands.try_send(Command::Incoming(stream));
}
