//! The driver against a peer played by the test, on loopback and ports that the kernel chooses.
//!
//! A green run says nothing about real routers: `tests/suites/bgp_bird.rs` does.

use super::socket::Options;
use super::table::PeerTable;
use super::*;
use crate::filter::{Filter, PrefixRange, Rule};
use crate::fsm::StateName;
use crate::wire::{
    AsPath, Attributes, Capability, Context, Framer, Message, Notification, Open, Reach, Update,
};
use crate::{Family, RouteAttributes};
use ipnetwork::IpNetwork;
use nix::sys::socket::{getsockopt, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

mod decisions;

/// Nobody waits so long but for what never comes.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);
pub(super) const CONTEXT: Context = Context {
    four_octet_as: true,
    external: true,
    extended_messages: false,
    add_path: [false; 2],
    link_local: false,
};

pub(super) async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

pub(super) async fn speaker(listen: Vec<SocketAddr>) -> Speaker {
    let config = SpeakerConfig {
        asn: 65010,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        listen,
        restart_time: 60,
        restarting: false,
        forwarding_preserved: false,
    };
    Speaker::start(config).await.expect("a speaker")
}

/// A router without a listening speaker towards it.
pub(super) struct Router(TcpListener);

impl Router {
    pub(super) async fn new() -> Router {
        Router::at("127.0.0.1:0").await
    }

    async fn at(address: &str) -> Router {
        Router(TcpListener::bind(address).await.unwrap())
    }

    pub(super) fn config(&self, name: &str) -> PeerConfig {
        let address = self.0.local_addr().unwrap();
        PeerConfig {
            port: address.port(),
            // No attempt is given up that a busy machine takes its time for.
            connect_retry: 60,
            families: vec![Family::Ipv4Unicast],
            ..PeerConfig::new(name, Remote::Address(address.ip()), 65020)
        }
    }

    async fn accept(&self) -> Session {
        let (stream, _) = within(self.0.accept()).await.unwrap();
        Session { stream, framer: Framer::default() }
    }

    pub(super) async fn establish(&self) -> Session {
        let mut session = self.accept().await;
        session.establish().await;
        session
    }
}

pub(super) struct Session {
    pub(super) stream: TcpStream,
    framer: Framer,
}

impl Session {
    pub(super) async fn send(&mut self, message: Message) {
        self.stream.write_all(&message.encode(CONTEXT)).await.unwrap();
    }

    /// `None` at the end of the stream, also where it was reset.
    pub(super) async fn receive(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.framer.next(CONTEXT) {
                return Some(message.unwrap());
            }
            let mut bytes = vec![0; 65536];
            match within(self.stream.read(&mut bytes)).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.framer.push(&bytes[..count]),
            }
        }
    }

    async fn establish(&mut self) {
        self.establish_with(Vec::new()).await;
    }

    async fn establish_with(&mut self, mut capabilities: Vec<Capability>) {
        assert!(matches!(self.receive().await, Some(Message::Open(_))));
        capabilities.push(Capability::FourOctetAs(65020));
        let router_id = Ipv4Addr::new(10, 0, 0, 20);
        self.send(Message::Open(Open { asn: 65020, hold_time: 90, router_id, capabilities })).await;
        assert_eq!(self.receive().await, Some(Message::Keepalive));
        self.send(Message::Keepalive).await;
    }

    /// The next message that is not a KEEPALIVE.
    async fn update(&mut self) -> Update {
        loop {
            match self.receive().await {
                Some(Message::Keepalive) => {}
                Some(Message::Update(update)) => return update,
                other => panic!("no UPDATE but {other:?}"),
            }
        }
    }
}

fn routes(prefixes: &[&str]) -> BTreeMap<IpNetwork, RouteAttributes> {
    prefixes.iter().map(|prefix| (prefix.parse().unwrap(), RouteAttributes::default())).collect()
}

fn announced(update: &Update) -> Vec<String> {
    let reach = update.announced.iter().flat_map(|announced| &announced.reach);
    reach.flat_map(|reach| &reach.prefixes).map(ToString::to_string).collect()
}

fn withdrawn(update: &Update) -> Vec<String> {
    update.unreach.iter().flat_map(|unreach| &unreach.prefixes).map(ToString::to_string).collect()
}

const IPV4_END: Option<Family> = Some(Family::Ipv4Unicast);

#[tokio::test]
async fn a_stop_closes_without_notification() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    within(speaker.stop()).await;
    assert_eq!(session.receive().await, None);
}

#[tokio::test]
async fn the_last_handle_stops_the_speaker_without_notification() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    drop(speaker.clone());
    speaker.announce(routes(&["10.1.0.0/26"]));
    assert_eq!(announced(&session.update().await), ["10.1.0.0/26"], "a clone is only a handle");
    drop(speaker);
    assert_eq!(session.receive().await, None);
}

/// Its BFD client holds such a handle, and ends what is wanted no more.
#[tokio::test]
async fn a_stop_leaves_nothing_that_runs_and_changes_nothing_of_what_is_wanted_of_bfd() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.set_peers(vec![PeerConfig { bfd: Some(crate::bfd::Settings::DEFAULT), ..router.config("leaf") }]);
    let (other, paths) = (speaker.clone(), speaker.paths());
    assert_eq!(paths.borrow().sessions.len(), 1);
    within(speaker.stop()).await;
    assert_eq!(Arc::weak_count(&other.inner), 0, "a task that could still say something");
    assert_eq!((paths.borrow().sessions.len(), paths.has_changed().unwrap()), (1, false));
}

#[tokio::test]
async fn a_connection_from_afar_is_known_by_its_first_segment() {
    for home in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let listener = socket::listen(SocketAddr::new(home, 0)).unwrap();
        for (sent, near) in [(1, false), (254, false), (255, true)] {
            let options = Options { from: None, ttl: Ttl::Fixed(sent), password: None };
            let _dialled = socket::dial(listener.local_addr().unwrap(), options).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            socket::set_ttl(&accepted, home, Ttl::Security(1)).unwrap();
            assert_eq!(socket::is_near(&accepted, Ttl::Security(1)).unwrap(), near, "{home}, {sent}");
        }
    }
}

/// As where the kernel has answered it by a cookie.
#[tokio::test]
async fn a_connection_of_which_no_first_segment_is_kept_must_not_have_said_anything_yet() {
    let keeps_none = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = keeps_none.local_addr().unwrap();
    for says in [false, true] {
        let mut dialled = TcpStream::connect(home).await.unwrap();
        let (accepted, _) = keeps_none.accept().await.unwrap();
        if says {
            dialled.write_all(b"x").await.unwrap();
            within(accepted.readable()).await.unwrap();
        }
        socket::set_ttl(&accepted, home.ip(), Ttl::Security(1)).unwrap();
        assert_eq!(socket::is_near(&accepted, Ttl::Security(1)).unwrap(), !says);
    }
}

#[tokio::test]
async fn connections_are_marked_as_network_control_and_do_not_wait_to_send() {
    for home in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let router = TcpListener::bind((home, 0)).await.unwrap();
        let options = Options { from: Some(home), ttl: Ttl::Fixed(255), password: None };
        let dialled = socket::dial(router.local_addr().unwrap(), options).await.unwrap();
        let (accepted, _) = router.accept().await.unwrap();
        socket::accepted(&accepted).unwrap();
        let (ttl, marks) = match home {
            IpAddr::V4(_) => (
                getsockopt(&dialled, sockopt::Ipv4Ttl),
                [&dialled, &accepted].map(|stream| getsockopt(stream, sockopt::Ipv4Tos)),
            ),
            IpAddr::V6(_) => (
                getsockopt(&dialled, sockopt::Ipv6Ttl),
                [&dialled, &accepted].map(|stream| getsockopt(stream, sockopt::Ipv6TClass)),
            ),
        };
        assert_eq!((ttl, marks), (Ok(255), [Ok(0xc0); 2]), "{home}");
        assert!(dialled.nodelay().unwrap() && accepted.nodelay().unwrap());
    }
}

#[tokio::test]
async fn a_peer_that_is_taken_out_is_told_and_an_unchanged_one_keeps_its_session() {
    let (stays, goes) = (Router::new().await, Router::new().await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_peers(vec![stays.config("stays"), goes.config("goes")]);
    let mut staying = stays.establish().await;
    let mut going = goes.establish().await;
    assert_eq!(going.update().await.is_end_of_rib(), IPV4_END);
    speaker.set_peers(vec![stays.config("stays")]);
    assert_eq!(going.receive().await, Some(Message::Notification(Notification::new(6, 3))));
    assert_eq!(going.receive().await, None);
    assert_eq!(staying.update().await.is_end_of_rib(), IPV4_END);
    speaker.announce(routes(&["10.1.0.0/26"]));
    assert_eq!(announced(&staying.update().await), ["10.1.0.0/26"]);
    let names: Vec<String> = speaker.peers().await.into_iter().map(|peer| peer.name).collect();
    assert_eq!(names, ["stays"]);
}

#[tokio::test]
async fn a_peer_whose_configuration_changes_starts_anew_without_notification() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    speaker.set_peers(vec![PeerConfig { local_asn: Some(65011), ..router.config("leaf") }]);
    assert_eq!(session.receive().await, None);
    router.establish().await;
}

#[tokio::test]
async fn what_was_taken_back_has_gone_out_when_flush_returns() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.announce(routes(&["10.1.0.0/26", "10.2.0.0/26"]));
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(announced(&session.update().await), ["10.1.0.0/26", "10.2.0.0/26"]);
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    speaker.announce(routes(&[]));
    within(speaker.flush()).await;
    assert_eq!(withdrawn(&session.update().await), ["10.1.0.0/26", "10.2.0.0/26"]);
    assert_eq!(speaker.routes(Direction::Advertised, None, 9).await.shown, []);
    within(speaker.stop()).await;
    assert_eq!(session.receive().await, None, "nothing was announced afterwards");
}

#[tokio::test]
async fn what_is_told_of_a_peer_is_what_is_on_the_wire() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    let attributes = RouteAttributes { communities: vec![(65010 << 16) | 100], ..RouteAttributes::default() };
    speaker.announce(BTreeMap::from([("10.1.0.9/26".parse().unwrap(), attributes)]));
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(announced(&session.update().await), ["10.1.0.0/26"], "host bits are not announced");
    let status = speaker.peers().await.remove(0);
    assert_eq!(status.state, StateName::Established);
    assert_eq!((status.advertised, status.received, status.graceful_restart), (1, 0, false));
    assert_eq!((status.families, status.last_error), (vec![Family::Ipv4Unicast], None));
    let view = speaker.routes(Direction::Advertised, None, 9).await.shown.remove(0);
    assert_eq!(view.prefix.to_string(), "10.1.0.0/26");
    assert_eq!(view.next_hop, IpAddr::from([127, 0, 0, 1]));
    assert_eq!((view.as_path, view.peer.as_str()), (vec![65010], "leaf"));
    assert_eq!(view.communities, [(65010 << 16) | 100]);
}

#[tokio::test]
async fn a_refused_attempt_is_told_in_words() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    let config = router.config("leaf");
    drop(router);
    speaker.set_peers(vec![config]);
    let error = within(async {
        loop {
            if let Some(error) = speaker.peers().await.remove(0).last_error {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(error.await, "cannot connect: connection refused");
}

/// Communities that differ make a message for each route: some megabytes.
fn more_than_sockets_hold(count: u32) -> BTreeMap<IpNetwork, RouteAttributes> {
    let prefix = |n: u32| IpNetwork::new(IpAddr::from((0x0a00_0000 + n * 4).to_be_bytes()), 30).unwrap();
    let attributes = |n: u32| {
        let communities = (0..64).map(|c| n * 64 + c).collect();
        RouteAttributes { communities, ..RouteAttributes::default() }
    };
    (0..count).map(|n| (prefix(n), attributes(n))).collect()
}

/// How many routes, once no more are: what was handed out but not taken is bounded.
async fn handed_out(speaker: &Speaker) -> usize {
    within(async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = speaker.peers().await[0].advertised;
            if now == before && now > 0 {
                return now;
            }
            before = now;
        }
    })
    .await
}

#[tokio::test]
async fn a_peer_that_reads_late_gets_every_route() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    let count = 20_000;
    speaker.announce(more_than_sockets_hold(count));
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    let handed_out = handed_out(&speaker).await;
    assert!(handed_out < count as usize, "a peer that does not read is not written to without end");
    let mut seen = BTreeSet::new();
    loop {
        let update = session.update().await;
        if update.is_end_of_rib().is_some() {
            break;
        }
        seen.extend(announced(&update));
    }
    assert_eq!(seen.len(), count as usize);
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_clear_error() {
    let other_daemon = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = other_daemon.local_addr().unwrap();
    let config = SpeakerConfig {
        asn: 65010,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        listen: vec![taken],
        restart_time: 60,
        restarting: false,
        forwarding_preserved: false,
    };
    let error = Speaker::start(config).await.expect_err("the port is taken");
    let words = error.to_string();
    assert_eq!(
        words,
        format!("{taken} is taken by another process: is another BGP daemon running on this node?")
    );
}

#[tokio::test]
async fn a_connection_from_an_address_that_is_no_peers_is_rejected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(listener::run(Arc::new(listener), PeerTable::default(), mpsc::channel(1).0));
    let stream = TcpStream::connect(address).await.unwrap();
    let mut session = Session { stream, framer: Framer::default() };
    assert_eq!(session.receive().await, Some(Message::Notification(Notification::new(6, 5))));
    assert_eq!(session.receive().await, None);
    task.abort();
}

#[tokio::test]
async fn filters_and_timers_change_while_the_session_goes_on() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.announce(routes(&["10.1.0.0/26", "10.2.0.0/26"]));
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(announced(&session.update().await), ["10.1.0.0/26", "10.2.0.0/26"]);
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    let first = PrefixRange { network: "10.1.0.0/16".parse().unwrap(), min: 16, max: 32 };
    let export = Filter { rules: vec![Rule { prefixes: vec![first], ..Rule::default() }], otherwise: true };
    let filtered = PeerConfig { export, hold_time: 30, connect_retry: 2, ..router.config("leaf") };
    speaker.set_peers(vec![filtered.clone()]);
    assert_eq!(withdrawn(&session.update().await), ["10.1.0.0/26"]);
    let at_peer = speaker.prefix("10.1.0.0/26".parse().unwrap()).await.remove(0);
    assert_eq!(
        (at_peer.peer.name.as_str(), at_peer.fate),
        ("leaf", crate::neighbour::Fate::Filtered(Some(0)))
    );
    speaker.set_peers(vec![PeerConfig { shutdown: Some("moving".to_owned()), ..filtered.clone() }]);
    assert_eq!(session.receive().await, Some(Message::Notification(Notification::shutdown("moving"))));
    assert_eq!(speaker.peers().await[0].last_error.as_deref(), Some("shut down here: moving"));
    speaker.set_peers(vec![filtered]);
    let mut session = router.establish().await;
    assert_eq!(announced(&session.update().await), ["10.2.0.0/26"]);
}

/// An address of this machine on which nobody listens.
async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn whoever_connects_out_of_a_range_becomes_a_peer_of_its_own() {
    let address = free_address().await;
    let speaker = speaker(vec![address]).await;
    let range = |network: &str| PeerConfig {
        families: vec![Family::Ipv4Unicast],
        ..PeerConfig::new("rack", Remote::Range(network.parse().unwrap()), 65020)
    };
    speaker.set_peers(vec![range("127.0.0.0/30")]);
    speaker.announce(routes(&["10.1.0.0/26"]));
    assert_eq!(speaker.peers().await, [], "nobody is dialled");
    let mut sessions = Vec::new();
    for last in 1..=3 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        let mut session =
            Session { stream: socket.connect(address).await.unwrap(), framer: Framer::default() };
        session.establish().await;
        assert_eq!(announced(&session.update().await), ["10.1.0.0/26"]);
        sessions.push(session);
    }
    let names: Vec<String> = speaker.peers().await.into_iter().map(|peer| peer.name).collect();
    assert_eq!(names, ["rack[127.0.0.1]", "rack[127.0.0.2]", "rack[127.0.0.3]"]);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 9], 0))).unwrap();
    let mut stranger = Session { stream: socket.connect(address).await.unwrap(), framer: Framer::default() };
    assert_eq!(stranger.receive().await, Some(Message::Notification(Notification::new(6, 5))));
    speaker.set_peers(vec![range("127.0.0.0/31")]);
    assert_eq!(sessions[0].update().await.is_end_of_rib(), IPV4_END);
    for session in &mut sessions[1..] {
        assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
        assert_eq!(session.receive().await, Some(Message::Notification(Notification::new(6, 3))));
    }
    assert_eq!(speaker.peers().await.len(), 1);
}

#[tokio::test]
async fn a_peer_that_is_shut_down_is_refused_without_a_word() {
    let address = free_address().await;
    let speaker = speaker(vec![address]).await;
    let down =
        |remote| PeerConfig { shutdown: Some("moving".to_owned()), ..PeerConfig::new("leaf", remote, 65020) };
    for remote in [Remote::Address([127, 0, 0, 1].into()), Remote::Range("127.0.0.0/30".parse().unwrap())] {
        speaker.set_peers(vec![down(remote)]);
        let refused = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.read(&mut [0; 64]).await
        };
        let refused = within(refused).await.map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn a_range_that_is_learned_from_is_waited_for_and_so_is_the_first_peer() {
    let address = free_address().await;
    let speaker = speaker(vec![address]).await;
    assert!(speaker.is_learning().await, "there may be peers still");
    let range = |import: Filter| PeerConfig {
        families: vec![Family::Ipv4Unicast],
        import,
        ..PeerConfig::new("rack", Remote::Range("127.0.0.0/30".parse().unwrap()), 65020)
    };
    speaker.set_peers(vec![range(Filter::REJECT)]);
    assert!(!speaker.is_learning().await, "no import rule");
    speaker.set_peers(vec![PeerConfig { shutdown: Some("moving".to_owned()), ..range(Filter::ACCEPT) }]);
    assert!(!speaker.is_learning().await, "nobody may come");
    speaker.set_peers(vec![range(Filter::ACCEPT)]);
    assert!(speaker.is_learning().await, "nobody has come");
    let stream = TcpStream::connect(address).await.unwrap();
    let mut session = Session { stream, framer: Framer::default() };
    session.establish().await;
    assert!(speaker.is_learning().await, "it has not said everything");
    session.send(Message::Update(Update::end_of_rib(Family::Ipv4Unicast))).await;
    within(async {
        while speaker.is_learning().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_peers_announce_is_learned_through_their_filters_and_goes_with_them() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    let mut feed = speaker.follow_learned();
    speaker.set_peers(vec![PeerConfig { import: Filter::ACCEPT, ..router.config("leaf") }]);
    let mut session = router.establish().await;
    let prefix: IpNetwork = "10.8.0.0/24".parse().unwrap();
    let next_hop = IpAddr::from([192, 0, 2, 1]);
    let attributes = Attributes { as_path: AsPath::sequence([65020]), ..Attributes::default() };
    let reach = Reach::new(Family::Ipv4Unicast, next_hop, vec![prefix]);
    session.send(Message::Update(Update::announce(attributes, reach))).await;
    within(feed.changed()).await;
    assert_eq!(feed.take(), [(prefix, vec![next_hop.into()])]);
    assert_eq!(speaker.learned(), BTreeMap::from([(prefix, vec![next_hop.into()])]));
    let view = speaker.routes(Direction::Received, None, 9).await.shown.remove(0);
    assert!(view.accepted && view.prefix == prefix, "{view:?}");
    drop(session);
    within(feed.changed()).await;
    assert_eq!(feed.take(), [(prefix, vec![])]);
    assert_eq!(speaker.learned(), BTreeMap::new());
}

#[tokio::test]
async fn a_peer_that_never_reads_is_left() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.announce(more_than_sockets_hold(40_000));
    speaker.set_peers(vec![PeerConfig { send_hold_time: 1, ..router.config("leaf") }]);
    let session = router.establish().await;
    let error = within(async {
        loop {
            if let Some(error) = speaker.peers().await.remove(0).last_error {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(error.await, "the peer read nothing of what was sent to it for 1 s");
    drop(session);
}
