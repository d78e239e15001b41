//! What was decided about peers is carried out, whatever threads the runtime has.

use super::*;
use crate::neighbour::Fate;

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
