//! What an error of a session may come from, and what to look at. Pure, but for the kernel's counters.
//!
//! Of a wrong password (RFC 2385) nobody is told anything: either end's kernel drops the other's segments. What can be
//! known is that nobody answers, and how many such segments came to this node; the counters are the whole node's.

use bulkhead_bgp::{PeerStatus, fsm::PeerError, wire::Notification};
use std::{fs, io::ErrorKind};

/// Segments that the kernel has dropped for their key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Md5 {
    /// With another key than ours.
    wrong: u64,
    /// Without one, from a peer with a password.
    missing: u64,
    /// With one, from a peer without a password.
    unexpected: u64,
}

impl Md5 {
    /// A kernel that does not tell has counted nothing.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/net/netstat").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("TcpExt:")).collect();
        let [names, values] = rows.as_slice() else { return Self::default() };
        let value = |name: &str| {
            let found = names.split_whitespace().zip(values.split_whitespace()).find(|(n, _)| *n == name);
            found.and_then(|(_, value)| value.parse().ok()).unwrap_or_default()
        };
        Self {
            wrong: value("TCPMD5Failure"),
            missing: value("TCPMD5NotFound"),
            unexpected: value("TCPMD5Unexpected"),
        }
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            wrong: self.wrong.saturating_sub(before.wrong),
            missing: self.missing.saturating_sub(before.missing),
            unexpected: self.unexpected.saturating_sub(before.unexpected),
        }
    }
}

/// `md5`: since the daemon began. None where the error says it all.
pub fn meaning(peer: &PeerStatus, md5: Md5) -> Option<String> {
    let words = match peer.error.as_ref()? {
        PeerError::ConnectTimeout | PeerError::ConnectFailed(ErrorKind::TimedOut) => {
            return Some(silence(peer, md5));
        }
        PeerError::ConnectFailed(ErrorKind::ConnectionRefused) => {
            "the router is there, but takes no connection from this node: does BGP run there, on that port, and does it \
             know this node's address as a neighbour?"
        }
        PeerError::ConnectFailed(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
            "this node has no way to the router: look at the link, and at `ip route get`"
        }
        PeerError::ConnectFailed(ErrorKind::AddrNotAvailable) => {
            "this node does not have the address that it is to connect from: look at `sourceAddress`"
        }
        PeerError::Closed(_) => {
            "the router ended the connection without a word: it stopped, or does not know this node's address as a \
             neighbour, or one of the two ends alone has GTSM"
        }
        PeerError::HoldTimerExpired => {
            "the link or the router is dead, or too busy; `bfd` finds that earlier"
        }
        PeerError::PathDown => "the link or the router is dead; the session begins anew when it answers",
        PeerError::TooManyPrefixes { .. } => {
            "look at what it announces (`bulkhead bgp received`), or raise `maxPrefixes.limit`"
        }
        PeerError::Received { notification } => told(notification)?,
        _ => return None,
    };
    Some(words.to_owned())
}

fn silence(peer: &PeerStatus, md5: Md5) -> String {
    let address = peer.address;
    let counted = match (peer.password, md5) {
        (true, Md5 { wrong: count @ 1.., .. }) => {
            format!("{count} segments with another password than this node's came")
        }
        (true, Md5 { missing: count @ 1.., .. }) => {
            format!("{count} segments without a password came, where this node has one")
        }
        (false, Md5 { unexpected: count @ 1.., .. }) => {
            format!("{count} segments with a password came, where this node has none")
        }
        (true, _) => {
            return format!(
                "{address} is wrong or unreachable, a filter drops BGP, or the password is not the router's: which of these \
                 cannot be told, because a router drops what has a wrong password without a word"
            );
        }
        (false, _) => {
            return format!(
                "{address} is wrong or unreachable, a filter drops BGP, or the router wants a password: it drops what has none \
                 without a word"
            );
        }
    };
    format!(
        "the passwords of the two ends differ, probably: since the daemon began, {counted} to this node (from any peer)"
    )
}

fn told(notification: &Notification) -> Option<&'static str> {
    Some(match (notification.code, notification.subcode) {
        (2, 2) => "look at `asn` of the BGPConfiguration and `localASN` of the peer, and at the router's",
        (6, 2 | 4) => "people at the router have shut the session down, or reset it",
        (6, 3) => "the router was told to forget this node as a neighbour",
        (6, 10) => "the router's BFD has found the path to this node dead, or was told AdminDown",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bgp::{Messages, fsm::StateName};
    use std::time::Duration;

    fn peer(error: PeerError, password: bool) -> PeerStatus {
        PeerStatus {
            name: "leaf".into(),
            address: [192, 0, 2, 1].into(),
            interface: None,
            asn: 65020,
            state: StateName::Active,
            away: None,
            since: Duration::ZERO,
            families: Vec::new(),
            carried: Vec::new(),
            advertised: 0,
            received: 0,
            prefix_limit: None,
            many_prefixes: Vec::new(),
            refreshes: 0,
            may_be_kept: false,
            graceful_restart: false,
            last_error: Some(error.to_string()),
            error: Some(error),
            learning: false,
            password,
            bfd: None,
            messages_sent: Messages::default(),
            messages_received: Messages::default(),
            history: Vec::new(),
            ups: 0,
        }
    }

    #[test]
    fn the_kernels_counters_are_read_by_name() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure\nTcpExt: 9 1 2 3\nIpExt: A\nIpExt: 1\n";
        let expected = Md5 { missing: 1, unexpected: 2, wrong: 3 };
        assert_eq!(Md5::parse(text), expected);
        assert_eq!(Md5::parse("nothing"), Md5::default());
        assert_eq!(expected.since(Md5 { wrong: 1, ..Md5::default() }).wrong, 2);
    }

    #[test]
    fn of_a_password_that_may_be_wrong_no_more_is_said_than_is_known() {
        let said = |password, md5| meaning(&peer(PeerError::ConnectTimeout, password), md5).unwrap();
        let none = Md5::default();
        assert!(said(true, none).contains("cannot be told"));
        assert!(said(false, none).contains("the router wants a password"));
        let wrong = said(true, Md5 { wrong: 4, ..none });
        assert!(wrong.contains("differ, probably") && wrong.contains("4 segments with another password"));
        assert!(said(true, Md5 { missing: 4, ..none }).contains("without a password"));
        assert!(said(false, Md5 { unexpected: 4, ..none }).contains("this node has none"));
        // Another peer's trouble.
        assert!(said(false, Md5 { wrong: 4, ..none }).contains("the router wants a password"));
    }

    #[test]
    fn what_says_it_all_needs_no_more_words() {
        assert_eq!(meaning(&peer(PeerError::Shutdown("bye".into()), false), Md5::default()), None);
        let refused = PeerError::ConnectFailed(ErrorKind::ConnectionRefused);
        assert!(meaning(&peer(refused, false), Md5::default()).unwrap().contains("takes no connection"));
    }
}
