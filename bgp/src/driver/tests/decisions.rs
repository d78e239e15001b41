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
        // A process that waits for nobody is gone by then.
        tokio::time::sleep(Duration::from_millis(100)).await;
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
        assert_eq!(within(speaker.may_be_kept()).await, lost);
    }
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
    speaker.expect_peers(["leaf".to_owned(), "spine".to_owned()].into());
    speaker.set_peers(vec![leaf.config("leaf")]);
    speaker.initial_routes_complete();
    let mut session = leaf.establish().await;
    assert_eq!(session.update().await.is_end_of_rib(), IPV4_END);
    assert!(speaker.may_be_kept().await, "there was another one");
    speaker.set_peers(vec![leaf.config("leaf"), spine.config("spine")]);
    assert!(speaker.may_be_kept().await, "it has not been told yet");
    let mut other = spine.establish().await;
    assert_eq!(other.update().await.is_end_of_rib(), IPV4_END);
    assert!(!within(speaker.may_be_kept()).await);
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
