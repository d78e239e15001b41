//! What a peer's task is told and asked.

use super::config::PeerConfig;
use super::status::{Direction, PeerStatus, PrefixAtPeer, Routes};
use ipnetwork::IpNetwork;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// Connections and questions: as many as may wait.
const COMMAND_QUEUE: usize = 16;

/// Where too many wait, a connection is lost, and who asks waits too.
pub(super) enum Command {
    Incoming(TcpStream),
    Status(oneshot::Sender<PeerStatus>),
    /// At most so many.
    Routes(Direction, usize, oneshot::Sender<Routes>),
    Prefix(IpNetwork, oneshot::Sender<PrefixAtPeer>),
    /// Answer once all that is to be announced or withdrawn went out.
    Flush(oneshot::Sender<()>),
}

/// What was decided about the peer: all of it is carried out, in its order, and before the end of who decided it.
#[derive(Debug)]
pub(super) enum Decision {
    /// Leave with Cease: the peer is no neighbour any more.
    Deconfigure,
    PathDown {
        independent: bool,
        silent: bool,
    },
    /// Another configuration that the session can go on under.
    Reconfigure(Box<PeerConfig>),
}

#[derive(Debug)]
pub(super) struct Mailbox {
    pub commands: mpsc::Sender<Command>,
    decisions: mpsc::UnboundedSender<Decision>,
}

/// The task's end.
pub(super) struct Inbox {
    pub commands: mpsc::Receiver<Command>,
    pub decisions: mpsc::UnboundedReceiver<Decision>,
}

impl Mailbox {
    pub fn new() -> (Mailbox, Inbox) {
        let (to_commands, commands) = mpsc::channel(COMMAND_QUEUE);
        let (to_decisions, decisions) = mpsc::unbounded_channel();
        (Mailbox { commands: to_commands, decisions: to_decisions }, Inbox { commands, decisions })
    }

    pub fn decide(&self, decision: Decision) {
        // A task that has ended has nothing to carry out.
        let _ = self.decisions.send(decision);
    }
}
