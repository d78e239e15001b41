//! Who is a peer out of a range. A connection makes one for a while, a session a member: it is watched by BFD, waited for, and
//! known to the next process. Without a session for [`HOLD`], and for as long as it may keep
//! what was announced to it, it is a member no more. Who has only connected is a stranger, and keeps nothing: it is forgotten after [`HOLD`].

use super::mailbox::Command;
use super::speaker::{Inner, Speaker};
use super::status::PeerStatus;
use super::table::Seen;
use crate::fsm::StateName;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Weak;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// For how long after its last session somebody out of a range is waited for, and known; longer where it may keep longer what was
/// announced to it.
pub const HOLD: Duration = Duration::from_secs(120);
/// How often it is looked who is gone; who has come is noticed at once.
const LOOK: Duration = Duration::from_secs(15);
/// How many peers of all ranges there may be at once.
const MAX_MEMBERS: usize = 1024;

/// Somebody out of a range who may come, and is no peer yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// As the peer would be called; the range where nobody is known.
    pub name: String,
    /// Since the last session that is known of, or since the speaker began.
    pub away: Duration,
}

impl Speaker {
    /// Who had had sessions out of ranges with an earlier process: until they are back, or [`HOLD`] is over, more may be learned.
    pub fn expect_members(&self, members: BTreeSet<IpAddr>) {
        let mut table = self.inner.peers.lock();
        table.met = members.into_iter().map(|member| (member, self.inner.started)).collect();
        self.inner.tell_paths(&table);
    }

    /// Who has had a session out of ranges, within [`HOLD`], or may keep what was announced to it.
    pub async fn members(&self) -> BTreeSet<IpAddr> {
        self.look_over().await;
        self.inner.peers.lock().members()
    }

    /// Who may come out of ranges, and has not yet.
    pub fn absent(&self) -> Vec<Absent> {
        self.inner.peers.lock().absent(self.inner.started, Instant::now())
    }

    async fn look_over(&self) {
        let seen: Vec<Seen> = self.peers().await.into_iter().map(Seen::from).collect();
        let mut table = self.inner.peers.lock();
        for gone in table.look_over(self.inner.started, Instant::now(), &seen) {
            gone.task.abort();
            self.inner.learned.forget(&gone.config.name);
        }
        self.inner.tell_paths(&table);
    }
}

impl From<PeerStatus> for Seen {
    fn from(peer: PeerStatus) -> Seen {
        // What is kept of its routes is so until it is back.
        let is_there = peer.state == StateName::Established || peer.received > 0;
        let away = peer.away.filter(|_| !is_there).unwrap_or_default();
        Seen { name: peer.name, away, met: peer.ups > 0, keeps: peer.may_be_kept }
    }
}

/// Until the speaker is gone.
pub(super) async fn look_after(speaker: Weak<Inner>, mut begun: watch::Receiver<u64>) {
    loop {
        if let Ok(Err(_)) = timeout(LOOK, begun.changed()).await {
            return;
        }
        let Some(inner) = speaker.upgrade() else { return };
        Speaker { inner }.look_over().await;
    }
}

/// Makes peers of those who connect out of a range, until the speaker is gone.
pub(super) async fn welcome(speaker: Weak<Inner>, mut strangers: mpsc::Receiver<TcpStream>) {
    while let Some(stream) = strangers.recv().await {
        let Some(speaker) = speaker.upgrade() else { return };
        let Ok(from) = stream.peer_addr() else { continue };
        let mut table = speaker.peers.lock();
        let address = from.ip().to_canonical();
        let Some(member) = table.member(address) else { continue };
        if table.peers.len() >= MAX_MEMBERS {
            tracing::warn!(%from, "no more peers out of ranges: there are {MAX_MEMBERS}");
            continue;
        }
        let is_a_stranger = !table.may_know(address, speaker.succeeds_for());
        let spawn = || Inner::spawn(&speaker, member.clone(), is_a_stranger);
        let handle = table.peers.entry(member.name.clone()).or_insert_with(spawn);
        // A queue that is full at once is none.
        let _ = handle.mailbox.commands.try_send(Command::Incoming(stream));
    }
}
