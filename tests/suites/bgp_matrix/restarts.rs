//! What stays in the tables while one end restarts.

use crate::{Row, all};
use bulkhead_bgp::PeerConfig;
use bulkhead_bgp::rib::LLGR_STALE;
use bulkhead_lab::bgp::site::{DEADLINE, Role, Site, router, routes, speaker_config};
use bulkhead_lab::bgp::{Kind, Setup, THEIRS};
use bulkhead_lab::{Error, Result, link::run, until};
use std::fs;

pub const ROWS: &[Row] = &[
    all("our routes stay through a kill of the speaker and its return", "4724", we_restart),
    all("the router's routes stay through its kill and return", "4724", they_restart),
    all("long-lived graceful restart, as helper", "9494", long_lived),
    all("our routes stay through a NOTIFICATION of ours that is no hard reset", "8538", we_notify)
        .without(Kind::Bird, "the router lacks it; a NOTIFICATION takes routes back at once"),
    all("the router's routes stay through a reset of its own that is no hard one", "8538", they_notify)
        .without(Kind::Bird, "the router lacks it; a NOTIFICATION takes routes back at once"),
    all("the session survives nothing after a hard reset", "8538", deconfigured),
];

const BLOCK: &str = "10.64.0.0/26";
const BLOCK6: &str = "fd00:64::/122";

fn we_restart(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let complete_when = site.dir.join("complete");
    let role =
        |restarting| Role { restarting, prefixes: &[BLOCK, BLOCK6], complete_when: complete_when.clone() };
    let mut speaker = site.speaker_process(&role(false))?;
    fs::write(&complete_when, "")?;
    there.wait_seen(BLOCK6)?;
    there.wait_seen(BLOCK)?;
    speaker.kill()?;
    speaker.wait()?;
    until("the router lost the session", DEADLINE, || Ok((!there.established()?).then_some(())))?;
    for prefix in [BLOCK, BLOCK6] {
        assert!(there.wait_seen(prefix)?.stale, "{prefix} is kept as stale");
    }
    let mut speaker = site.speaker_process(&role(true))?;
    for prefix in [BLOCK, BLOCK6] {
        until(&format!("{prefix} is fresh again"), DEADLINE, || match there.seen(prefix)? {
            Some(seen) if !seen.stale => Ok(Some(())),
            Some(seen) => Err(Error::Unmet(format!("{seen:?}"))),
            None => panic!("{prefix} has left the router"),
        })?;
    }
    speaker.kill()?;
    speaker.wait()?;
    Ok(())
}

fn they_restart(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    node.speaker.set_peers(vec![router()]);
    node.wait_peer("we have its routes", |peer| peer.received == 2)?;
    there.wait_seen(BLOCK)?;
    drop(there);
    node.wait_peer("the session is lost", |peer| peer.last_error.is_some())?;
    let received = node.received();
    assert!(received.len() == 2 && received.iter().all(|route| route.stale), "{received:?}");
    let there = kind.start(site, &Setup::default())?;
    until("its routes are fresh again", DEADLINE, || {
        let received = node.received();
        let fresh = received.len() == 2 && received.iter().all(|route| !route.stale);
        if fresh { Ok(Some(())) } else { Err(Error::Unmet(format!("{received:?}"))) }
    })?;
    there.wait_seen(BLOCK)?;
    there.wait_seen(BLOCK6).map(drop)
}

fn long_lived(site: &Site, kind: Kind) -> Result<()> {
    let setup = Setup { restart_time: 2, long_lived: Some(8), ..Setup::default() };
    let there = kind.start(site, &setup)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![router()]);
    node.wait_peer("we have its routes", |peer| peer.received == 2)?;
    drop(there);
    until("the restart time is over, and the routes are marked", DEADLINE, || {
        let received = node.received();
        let marked = |prefix: &str| {
            received
                .iter()
                .any(|r| r.prefix.to_string() == prefix && r.stale && r.communities.contains(&LLGR_STALE))
        };
        if marked(THEIRS) { Ok(Some(())) } else { Err(Error::Unmet(format!("{received:?}"))) }
    })?;
    node.wait_peer("they are gone when that is over as well", |peer| peer.received == 0).map(drop)
}

/// Our hold time is over, while the router has heard us all the time.
fn we_notify(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup { hold_time: 3, ..Setup::default() })?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    node.speaker.set_peers(vec![PeerConfig { hold_time: 3, ..router() }]);
    there.wait_seen(BLOCK)?;
    there.wait_seen(BLOCK6)?;
    let deaf = "table inet deaf { chain in { type filter hook input priority 0; policy drop; }; }";
    run(site.node.command("nft").arg(deaf))?;
    there.wait_lost()?;
    for prefix in [BLOCK, BLOCK6] {
        assert!(there.wait_seen(prefix)?.stale, "{prefix} is kept as stale");
    }
    run(site.node.command("nft").arg("delete table inet deaf"))?;
    until("they are fresh again", DEADLINE, || Ok(there.seen(BLOCK)?.filter(|seen| !seen.stale).map(drop)))
}

fn they_notify(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![router()]);
    node.wait_peer("we have its routes", |peer| peer.received == 2)?;
    there.reset()?;
    node.wait_peer("it has told us why", |peer| {
        let mut ends = peer.history.iter().filter_map(|change| change.down.as_ref());
        ends.any(|end| end.to_string().starts_with("the peer sent NOTIFICATION 6/4"))
    })?;
    until("its routes have stayed, and are fresh again", 2 * DEADLINE, || {
        let received = node.received();
        assert_eq!(received.len(), 2, "{received:?}");
        let peer = node.peer();
        let back = peer.ups == 2 && received.iter().all(|route| !route.stale);
        if back { Ok(Some(())) } else { Err(Error::Unmet(format!("{peer:?}, {received:?}"))) }
    })
}

/// Taken out of the configuration, we are gone at once, also for a router that keeps routes after other errors.
fn deconfigured(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&[BLOCK, BLOCK6]));
    node.speaker.set_peers(vec![router()]);
    there.wait_seen(BLOCK)?;
    there.wait_seen(BLOCK6)?;
    node.speaker.set_peers(Vec::new());
    there.wait_gone(BLOCK)?;
    there.wait_gone(BLOCK6)
}
