//! What was decided about peers is carried out, whatever threads the runtime has.

use super::*;
use crate::neighbour::Fate;
use crate::wire::GracefulRestart;

/// Also where the speaker ends at once, as with the last peer of a node: only those are cut that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn peers_that_are_taken_out_one_after_another_are_all_told() {
    let speaker = speaker(Vec::new()).await;
    let mut routers = Vec::new();
    for _ in 0..32 {
        routers.push(Router::new().await);
    }
    let named = |from: usize| {
        let all = routers.iter().enumerate().skip(from);
        all.map(|(n, router)| router.config(&n.to_string())).collect::<Vec<_>>()
    };
    speaker.set_peers(named(0));
    let mut sessions = Vec::new();
    for router in &routers {
        let mut session = router.establish().await;
        assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
        sessions.push(session);
    }
    for gone in 1..routers.len() {
        speaker.set_peers(named(gone));
    }
    within(speaker.stop()).await;
    let stays = sessions.pop().map(async |mut session| session.receive().await);
    assert_eq!(stays.expect("one stays").await, None);
    for (n, session) in sessions.iter_mut().enumerate() {
        let told = Message::Notification(Notification::new(6, 3));
        assert_eq!((n, session.receive().await), (n, Some(told)));
        assert_eq!(session.receive().await, None);
    }
}

/// As where a daemon ends right after its peers have changed. The speaker's process is a runtime of its own here, and what the peer is
/// told waits behind what it has not read yet.
#[test]
fn a_peer_that_is_taken_out_is_told_though_the_process_ends_at_once() {
    let [here, process] = [(); 2].map(|()| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    let router = here.block_on(Router::new());
    let config = router.config("leaf");
    let (ends, begin) = tokio::sync::oneshot::channel();
    let speaks = std::thread::spawn(move || {
        let _routes = process.block_on(async {
            let speaker = speaker(Vec::new()).await;
            speaker.announce(more_than_sockets_hold(20_000));
            speaker.set_peers(vec![config]);
            handed_out(&speaker).await;
            speaker.set_peers(Vec::new());
            // To give back the routes' memory takes longer than all the rest.
            let other = speaker.clone();
            tokio::join!(biased; speaker.stop(), async { ends.send(()).unwrap() });
            other
        });
        process.shutdown_background();
    });
    here.block_on(async {
        let mut session = router.establish().await;
        within(begin).await.unwrap();
        let mut bytes = Vec::new();
        within(session.stream.read_to_end(&mut bytes)).await.unwrap();
        session.framer.push(&bytes);
        let mut last = None;
        while let Some(message) = session.framer.next(CONTEXT) {
            last = Some(message.unwrap());
        }
        assert_eq!(last, Some(Message::Notification(Notification::new(6, 3))));
    });
    speaks.join().unwrap();
}

#[tokio::test]
async fn a_peer_whose_address_changes_is_told_that_it_is_none_any_more() {
    let (router, other) = (Router::new().await, Router::at("127.0.0.2:0").await);
    let speaker = speaker(Vec::new()).await;
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    speaker.set_peers(vec![other.config("leaf")]);
    other.establish().await;
    assert_eq!(session.receive().await, Some(Message::Notification(Notification::new(6, 3))));
}

#[tokio::test]
async fn who_goes_while_it_is_down_may_keep_what_it_was_told_and_who_hears_of_it_does_not() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    for lost in [false, true] {
        speaker.set_peers(vec![router.config("leaf")]);
        let mut session = router.accept().await;
        let (restarting, notification, families) = (false, false, Vec::new());
        let helper = GracefulRestart { restarting, notification, time: 0, families };
        session.establish_with(vec![Capability::GracefulRestart(helper)]).await;
        assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
        if lost {
            drop(session);
            within(async {
                while speaker.peers().await[0].state == StateName::Established {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        speaker.set_peers(Vec::new());
        assert_eq!(within(speaker.kept_by()).await.len(), usize::from(lost));
    }
}

/// Its process may be stopped, or its host gone: what it was to be told waits behind what it does not take.
#[tokio::test]
async fn who_does_not_hear_that_it_is_none_any_more_may_keep_what_it_was_told() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.announce(more_than_sockets_hold(20_000));
    speaker.set_peers(vec![router.config("leaf")]);
    let _session = router.establish().await;
    handed_out(&speaker).await;
    assert_eq!(speaker.kept_by().await, BTreeSet::new());
    speaker.set_peers(Vec::new());
    assert_eq!(within(speaker.kept_by()).await, ["leaf".to_owned()].into());
}

#[tokio::test]
async fn a_peer_that_is_shut_down_keeps_nothing_once_it_has_heard_so() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.set_peers(vec![router.config("leaf")]);
    let mut session = router.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    speaker.set_peers(vec![PeerConfig { shutdown: Some("moving".into()), ..router.config("leaf") }]);
    assert_eq!(session.receive().await, Some(Message::Notification(Notification::shutdown("moving"))));
    drop(session);
    within(async {
        while !speaker.kept_by().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Others have had sessions with this process.
#[tokio::test]
async fn a_mere_connection_out_of_a_range_keeps_nothing() {
    let address = free_address().await;
    let (router, speaker) = (Router::at("127.0.0.9:0").await, speaker(vec![address]).await);
    let range = PeerConfig::new("racks", Remote::Range("127.0.0.0/30".parse().unwrap()), 65020);
    speaker.set_peers(vec![router.config("leaf"), range]);
    let mut session = router.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    let mut stranger =
        Session { stream: TcpStream::connect(address).await.unwrap(), framer: Framer::default() };
    assert!(matches!(stranger.receive().await, Some(Message::Open(_))), "it is a peer");
    assert_eq!(within(speaker.kept_by()).await, BTreeSet::new());
}

#[tokio::test]
async fn a_member_that_is_cut_by_another_configuration_may_keep_what_it_was_told() {
    let address = free_address().await;
    let speaker = speaker(vec![address]).await;
    let range = |add_path| PeerConfig {
        families: vec![Family::Ipv4Unicast],
        add_path,
        ..PeerConfig::new("racks", Remote::Range("127.0.0.0/30".parse().unwrap()), 65020)
    };
    speaker.set_peers(vec![range(false)]);
    let mut session =
        Session { stream: TcpStream::connect(address).await.unwrap(), framer: Framer::default() };
    session.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    assert_eq!((speaker.members().await.len(), speaker.kept_by().await), (1, BTreeSet::new()));
    speaker.set_peers(vec![range(true)]);
    assert_eq!(session.receive().await, None, "cut");
    assert_eq!(within(speaker.kept_by()).await, ["racks[127.0.0.1]".to_owned()].into());
    speaker.set_peers(Vec::new());
    assert_eq!(within(speaker.kept_by()).await, ["127.0.0.1".to_owned()].into(), "also without its range");
}

/// As after a start where a password cannot be read.
#[tokio::test]
async fn of_an_earlier_processs_peers_each_must_have_heard_all_before_nothing_is_kept() {
    let (leaf, spine) = (Router::new().await, Router::new().await);
    let config = SpeakerConfig {
        asn: 65010,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        listen: Vec::new(),
        restart_time: 60,
        restarting: true,
        forwarding_preserved: true,
    };
    let speaker = Speaker::start(config).await.unwrap();
    let former = |config: PeerConfig| {
        let (name, remote) = (config.name, config.remote.to_string());
        Former { name, remote, keeps: Duration::from_secs(150) }
    };
    speaker.expect_peers(vec![former(leaf.config("leaf")), former(spine.config("spine"))]);
    speaker.set_peers(vec![leaf.config("leaf")]);
    speaker.initial_routes_complete();
    let mut session = leaf.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    assert_eq!(speaker.kept_by().await, ["spine".to_owned()].into(), "there was another one");
    speaker.set_peers(vec![leaf.config("leaf"), spine.config("spine")]);
    assert!(speaker.kept_by().await.contains("spine"), "it has not been told yet");
    let mut other = spine.establish().await;
    assert_eq!(other.update().await.is_end_of_rib(), IPV4_END);
    assert_eq!(within(speaker.kept_by()).await, BTreeSet::new());
}

#[tokio::test]
async fn an_earlier_processs_peer_is_not_back_with_another_one_of_its_name() {
    let speaker = speaker(Vec::new()).await;
    let at = |last| PeerConfig::new("leaf", Remote::Address([127, 0, 0, last].into()), 65020);
    let remote = at(8).remote.to_string();
    speaker.expect_peers(vec![Former { name: "leaf".into(), remote, keeps: Duration::from_secs(150) }]);
    for (last, left) in [(7, 1), (8, 0)] {
        speaker.set_peers(vec![at(last)]);
        assert_eq!(speaker.inner.peers.lock().expected.len(), left);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_changes_that_follow_each_other_the_last_one_is_in_force() {
    let (router, speaker) = (Router::new().await, speaker(Vec::new()).await);
    speaker.announce(routes(&["10.1.0.0/26"]));
    let export = |export: &Filter| PeerConfig { export: export.clone(), ..router.config("leaf") };
    speaker.set_peers(vec![export(&Filter::ACCEPT)]);
    let mut session = router.establish().await;
    assert_eq!(announced(&session.update().await), ["10.1.0.0/26"]);
    // On one of the runtime's own threads, as the daemon's changes are.
    let [accept, reject] = [Filter::ACCEPT, Filter::REJECT].map(|filter| vec![export(&filter)]);
    let changing = speaker.clone();
    let changes = tokio::spawn(async move {
        for _ in 0..50 {
            changing.set_peers(accept.clone());
            changing.set_peers(reject.clone());
            let fate = changing.prefix("10.1.0.0/26".parse().unwrap()).await.remove(0).fate;
            assert_eq!(fate, Fate::Filtered(None));
        }
    });
    within(changes).await.unwrap();
}
