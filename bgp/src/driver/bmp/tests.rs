//! A collector and a router played by the test, on loopback.

use super::*;
use crate::bmp::{Reason, tests::decode};
use crate::driver::Speaker;
use crate::driver::tests::{CONTEXT, Router, speaker, within};
use crate::wire::{AsPath, Attributes, Framer, Message as Bgp, Notification, Reach, Update};
use crate::{Family, PeerConfig};
use ipnetwork::IpNetwork;
use std::net::Ipv4Addr;
use tokio::net::TcpListener;

struct Collector(TcpListener);

struct Connection(TcpStream);

impl Collector {
    async fn new() -> Collector {
        Collector(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn station(&self, statistics: Duration) -> Station {
        let address = self.0.local_addr().unwrap();
        Station { address, statistics, name: "n1".into(), description: "a node".into() }
    }

    /// Past the Initiation.
    async fn accept(&self) -> Connection {
        let (stream, _) = within(self.0.accept()).await.unwrap();
        let mut connection = Connection(stream);
        let expected = Message::Initiation { name: "n1".into(), description: "a node".into() };
        assert_eq!(connection.next().await, Some(expected));
        connection
    }
}

impl Connection {
    /// `None` at the end of the stream.
    async fn next(&mut self) -> Option<Message> {
        let mut header = [0; 5];
        within(self.0.read_exact(&mut header)).await.ok()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut whole = header.to_vec();
        whole.resize(length, 0);
        within(self.0.read_exact(&mut whole[5..])).await.ok()?;
        Some(decode(&whole))
    }

    async fn up(&mut self) {
        let Some(Message::PeerUp { peer, sent, received, .. }) = self.next().await else {
            panic!("no Peer Up")
        };
        assert_eq!((peer.asn, peer.router_id), (65020, Ipv4Addr::new(10, 0, 0, 20)));
        for (open, asn) in [(sent, 65010), (received, 65020)] {
            let mut framer = Framer::default();
            framer.push(&open);
            assert!(matches!(framer.next(CONTEXT), Some(Ok(Bgp::Open(open))) if open.asn == asn));
        }
    }

    async fn update(&mut self) -> Update {
        match self.next().await {
            Some(Message::RouteMonitoring { update, .. }) => {
                let mut framer = Framer::default();
                framer.push(&update);
                match framer.next(CONTEXT) {
                    Some(Ok(Bgp::Update(update))) => update,
                    other => panic!("no UPDATE but {other:?}"),
                }
            }
            other => panic!("no Route Monitoring but {other:?}"),
        }
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn announcing(prefixes: &[&str]) -> Update {
    let attributes = Attributes { as_path: AsPath::sequence([65020]), ..Attributes::default() };
    let prefixes = prefixes.iter().map(|prefix| net(prefix)).collect();
    Update::announce(attributes, Reach::new(Family::Ipv4Unicast, [192, 0, 2, 1].into(), prefixes))
}

async fn received(speaker: &Speaker, count: usize) {
    within(async {
        while speaker.peers().await[0].received != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_collector_sees_a_session_from_its_up_to_its_down() {
    let (router, collector) = (Router::new().await, Collector::new().await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_stations(vec![collector.station(Duration::ZERO)]);
    let mut told = collector.accept().await;
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    told.up().await;
    let update = announcing(&["10.1.0.0/16", "10.2.0.0/16"]);
    session.send(Bgp::Update(update.clone())).await;
    assert_eq!(told.update().await, update);
    session.send(Bgp::Update(Update::end_of_rib(Family::Ipv4Unicast))).await;
    assert_eq!(told.update().await.is_end_of_rib(), Some(Family::Ipv4Unicast));
    let last = Bgp::Notification(Notification::new(6, 2));
    session.send(last.clone()).await;
    let Some(Message::PeerDown { reason, .. }) = told.next().await else { panic!("no Peer Down") };
    assert_eq!(reason, Reason::RemoteNotification(last.encode(CONTEXT)));
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_what_there_is_and_then_what_changes() {
    let (router, collector) = (Router::new().await, Collector::new().await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    session.send(Bgp::Update(announcing(&["10.1.0.0/16", "10.2.0.0/16"]))).await;
    received(&speaker, 2).await;
    speaker.set_stations(vec![collector.station(Duration::ZERO)]);
    let mut told = collector.accept().await;
    told.up().await;
    let mut update = told.update().await;
    update.announced.as_mut().unwrap().reach[0].prefixes.sort();
    assert_eq!(update, announcing(&["10.1.0.0/16", "10.2.0.0/16"]));
    assert_eq!(told.update().await.is_end_of_rib(), Some(Family::Ipv4Unicast));
    let gone = Update::withdraw(Family::Ipv4Unicast, vec![net("10.1.0.0/16")]);
    session.send(Bgp::Update(gone.clone())).await;
    assert_eq!(told.update().await, gone);
}

#[tokio::test]
async fn an_update_that_counts_as_withdrawn_is_told_as_withdrawn_and_reported() {
    let (router, collector) = (Router::new().await, Collector::new().await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_stations(vec![collector.station(Duration::from_secs(1))]);
    let mut told = collector.accept().await;
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    told.up().await;
    session.send(Bgp::Update(announcing(&["10.1.0.0/16", "10.2.0.0/16"]))).await;
    told.update().await;
    let mut broken = Bgp::Update(announcing(&["10.1.0.0/16"])).encode(CONTEXT);
    // ORIGIN, the first attribute: a value that is none.
    broken[26] = 9;
    session.stream.write_all(&broken).await.unwrap();
    let statistics = |report: Option<Message>| match report {
        Some(Message::Statistics { statistics, .. }) => statistics,
        other => panic!("no statistics but {other:?}"),
    };
    let gone = loop {
        match told.next().await {
            Some(Message::RouteMonitoring { update, .. }) => break update,
            report => drop(statistics(report)),
        }
    };
    let expected = Update::withdraw(Family::Ipv4Unicast, vec![net("10.1.0.0/16")]);
    assert_eq!(gone, Bgp::Update(expected).encode(CONTEXT));
    let last = statistics(told.next().await);
    assert_eq!((last.treated_as_withdraw, last.routes), (1, [1, 0]));
}

#[tokio::test]
async fn who_does_not_read_loses_the_session_and_begins_anew_with_the_whole_state() {
    let (router, collector) = (Router::new().await, Collector::new().await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_stations(vec![collector.station(Duration::ZERO)]);
    let told = collector.accept().await;
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    // The same again and again costs the peer's table nothing, and a collector 4 KB each time.
    let prefixes: Vec<String> = (0..900).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    let update = Bgp::Update(announcing(&prefixes)).encode(CONTEXT);
    let over = MOST_WAITING / update.len() + 4096;
    for _ in 0..over {
        within(session.stream.write_all(&update)).await.unwrap();
    }
    let mut again = collector.accept().await;
    again.up().await;
    assert_eq!(again.update().await.announced.unwrap().reach[0].prefixes.len(), 900);
    let [status] = &speaker.stations()[..] else { panic!("one collector") };
    assert_eq!((status.connected, status.sessions), (true, 2));
    drop(told);
}

#[tokio::test]
async fn a_collector_is_taken_leave_of_and_a_peer_that_starts_anew_was_down() {
    let (router, collector) = (Router::new().await, Collector::new().await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_stations(vec![collector.station(Duration::ZERO)]);
    let mut told = collector.accept().await;
    speaker.set_peers(vec![router.config("leaf")]);
    let _session = router.establish().await;
    told.up().await;
    speaker.set_peers(vec![PeerConfig { local_asn: Some(65011), ..router.config("leaf") }]);
    let Some(Message::PeerDown { reason, .. }) = told.next().await else { panic!("no Peer Down") };
    assert_eq!(reason, Reason::LocalEvent(2));
    speaker.set_stations(Vec::new());
    assert!(matches!(told.next().await, Some(Message::Termination { .. })));
    assert_eq!(told.next().await, None);
    assert_eq!(speaker.stations(), []);
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_told_of_and_tried_again() {
    let collector = Collector::new().await;
    let station = collector.station(Duration::ZERO);
    drop(collector);
    let speaker = speaker(Vec::new()).await;
    speaker.set_stations(vec![station.clone()]);
    within(async {
        while speaker.stations()[0].error.is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let collector = Collector(TcpListener::bind(station.address).await.unwrap());
    collector.accept().await;
}
