//! What the command line says of BGP routes, held against what a real router says of the same routes.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpRouteInfo, BgpRoutes, BgpWhy, PartitionInfo};
use bulkhead_lab::bgp::{
    Kind, Router, Seen, Setup, THEIRS, THEIRS6,
    rack::{BLOCK, BLOCK6, Rack, trial},
    site::{DEADLINE, NODE_AS, NODE6, ROUTER, ROUTER_AS},
};
use bulkhead_lab::{Error, Pod, Result, enter, node::UPLINK, until};
use libtest_mimic::Arguments;
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

type Test = fn(&mut Rack) -> Result<()>;
type OfEach = fn(&mut Rack, Kind) -> Result<()>;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let mut trials = Vec::new();
    let each: [(&str, OfEach); 3] = [
        ("advertised is what the router holds", advertised),
        ("received is what the router sends", received),
        ("why names the rule that decides, also after it has changed", rules),
    ];
    for (name, test) in each {
        trials.extend(
            Kind::ALL.map(|kind| trial(format!("{name} × {kind}"), "{}", move |rack| test(rack, kind))),
        );
    }
    let others: [(&str, Test); 10] = [
        ("a partition's attributes are on its blocks, as the router sees them", of_partition),
        (
            "what a peer does not say is as its group says, and another word of the group resets nothing",
            of_group,
        ),
        ("an address and an aggregate are told apart from the block that is announced", covers),
        ("without a session the reason is the session's", no_session),
        ("too many prefixes are the reason when they were", too_many),
        ("drained routes say so", drained),
        ("without an address of its IP version nothing is announced, and why says so", no_next_hop),
        ("a table is bounded, and says what it left out", bounded),
        (
            "of a wrong password no more is said than can be known, and another one in its file is taken",
            password,
        ),
        ("a password is in no log, no answer and no file of the daemon's", secret),
    ];
    trials.extend(others.map(|(name, test)| trial(name, "{}", test)));
    libtest_mimic::run(&arguments, trials).exit()
}

fn start(rack: &Rack, kind: Kind, setup: &Setup) -> Result<Box<dyn Router>> {
    kind.start_in(&rack.router, &rack.dir, setup)
}

fn route(rack: &Rack, command: &str, prefix: &str) -> Result<BgpRouteInfo> {
    until(&format!("{command} has {prefix}"), DEADLINE, || {
        let told: BgpRoutes = rack.ask(&["bgp", command, "leaf"])?;
        Ok(told.routes.into_iter().find(|route| route.prefix.to_string() == prefix))
    })
}

fn why(rack: &Rack, prefix: &str) -> Result<BgpWhy> {
    rack.ask(&["bgp", "why", prefix])
}

fn wait_reason(rack: &Rack, prefix: &str, words: &str) -> Result<BgpWhy> {
    until(&format!("{prefix}: {words}"), DEADLINE, || {
        let told = why(rack, prefix)?;
        let said = told.peers.first().is_some_and(|fate| fate.reason.contains(words));
        if said { Ok(Some(told)) } else { Err(Error::Unmet(format!("{told:?}"))) }
    })
}

/// What we say the router was sent is what it holds.
fn same(ours: &BgpRouteInfo, theirs: &Seen) {
    assert_eq!(ours.next_hop.to_string(), theirs.next_hop);
    assert_eq!(ours.as_path, theirs.as_path);
    assert_eq!(ours.med, theirs.med);
    let all: BTreeSet<String> = theirs.communities.union(&theirs.large).cloned().collect();
    assert_eq!(ours.communities.iter().cloned().collect::<BTreeSet<_>>(), all);
}

const TAGGED: &str =
    "{export: [{action: Accept, set: {med: 7, prepend: 2, communities: ['65010:5', '65010:1:2']}}]}";

fn advertised(rack: &mut Rack, kind: Kind) -> Result<()> {
    rack.peer(TAGGED)?;
    let router = start(rack, kind, &Setup::DEFAULT)?;
    for block in [BLOCK, BLOCK6] {
        let seen = until("the router has the route with all that is added", DEADLINE, || {
            Ok(router.seen(block)?.filter(|seen| !seen.large.is_empty()))
        })?;
        let ours = route(rack, "advertised", block)?;
        same(&ours, &seen);
        assert_eq!((ours.as_path.as_slice(), ours.med), (&[NODE_AS; 3][..], Some(7)));
    }
    Ok(())
}

fn received(rack: &mut Rack, kind: Kind) -> Result<()> {
    let router = start(rack, kind, &Setup::DEFAULT)?;
    router.wait_established()?;
    for prefix in [THEIRS, THEIRS6] {
        let held = route(rack, "received", prefix)?;
        assert_eq!(held.as_path, [ROUTER_AS]);
        for community in ["65020:7", "65020:1:2", "rt:65020:9"] {
            assert!(held.communities.iter().any(|c| c == community), "{held:?}");
        }
        assert!(!held.learned, "nothing is learned without an import rule");
        let told = why(rack, prefix)?;
        assert_eq!((told.received.as_slice(), told.route), (&[held][..], None));
        assert!(told.origin.contains("nothing of this node covers it"), "{told:?}");
    }
    assert_eq!(route(rack, "received", THEIRS)?.next_hop.to_string(), ROUTER);
    Ok(())
}

fn rules(rack: &mut Rack, kind: Kind) -> Result<()> {
    let router = start(rack, kind, &Setup::DEFAULT)?;
    router.wait_seen(BLOCK)?;
    let told = wait_reason(rack, BLOCK, "no export rule matches it: announced")?;
    assert_eq!(told.origin, "this node's own block, of partition default");
    same(told.peers[0].announced.as_ref().unwrap(), &router.wait_seen(BLOCK)?);
    rack.peer("{export: [{action: Reject, prefixes: [{cidr: 10.64.0.0/16}]}]}")?;
    let told = wait_reason(rack, BLOCK, "rejected by BGPPeer/leaf (bgp.yaml:6) session.export[0]")?;
    assert_eq!(told.peers[0].announced, None);
    router.wait_gone(BLOCK)?;
    assert!(router.seen(BLOCK6)?.is_some());
    rack.peer(&TAGGED.replace("[{", "[{action: Reject, prefixes: [{cidr: 192.0.2.0/24}]}, {"))?;
    let told = wait_reason(rack, BLOCK, "accepted by BGPPeer/leaf (bgp.yaml:6) session.export[1]")?;
    same(told.peers[0].announced.as_ref().unwrap(), &router.wait_seen(BLOCK)?);
    Ok(())
}

fn covers(rack: &mut Rack) -> Result<()> {
    let router = start(rack, Kind::Bird, &Setup::DEFAULT)?;
    router.wait_seen(BLOCK)?;
    let told = why(rack, "10.64.0.1")?;
    assert_eq!(told.route.map(|route| route.to_string()).as_deref(), Some(BLOCK));
    assert!(told.origin.contains("a part of this node's own block"), "{told:?}");
    assert!(told.peers[0].announced.is_some() && router.seen("10.64.0.1/32")?.is_none());
    let told = why(rack, "10.64.0.0/16")?;
    assert!(told.origin.contains("its own blocks only, here 10.64.0.0/26"), "{told:?}");
    assert!(told.peers.is_empty() && router.seen("10.64.0.0/16")?.is_none());
    let told = why(rack, "10.64.9.0/26")?;
    assert!(told.origin.contains("of which this node has no such block"), "{told:?}");
    assert!(why(rack, "192.0.2.0/24")?.origin.contains("nothing of this node covers it"));
    let text = rack.node.cli(&["bgp", "why", BLOCK])?;
    assert!(text.starts_with("10.64.0.0/26: this node's own block, of partition default\n\nPEER"), "{text}");
    Ok(())
}

fn no_session(rack: &mut Rack) -> Result<()> {
    // There is no router yet.
    let told = wait_reason(rack, BLOCK, "no session (")?;
    assert_eq!(told.peers[0].announced, None);
    let router = start(rack, Kind::Bird, &Setup { node_as: 65099, ..Setup::DEFAULT })?;
    wait_reason(rack, BLOCK, "bad peer AS")?;
    let leaf = rack.wait_leaf("the meaning is told", |leaf| leaf.meaning.is_some())?;
    assert!(leaf.meaning.unwrap().contains("look at `asn`"));
    assert!(!router.established()?);
    rack.peer("{shutdown: moving to rack 7}")?;
    wait_reason(rack, BLOCK, "shut down here: moving to rack 7").map(drop)
}

/// Everything that the daemon says and writes, with a password that is wrong, and with the right one.
fn secret(rack: &mut Rack) -> Result<()> {
    const KEY: &str = "correct-horse-battery";
    let file = rack.dir.join("key");
    fs::write(&file, format!("{KEY}\n"))?;
    let configuration = rack.node.dir().join("bulkheadd.yaml");
    let with_metrics = fs::read_to_string(&configuration)? + &format!("metricsAddress: {METRICS}\n");
    fs::write(&configuration, with_metrics.replace("log: info", "log: trace"))?;
    rack.node.stop_daemon()?;
    rack.node.start_daemon()?;
    rack.peer(&format!("{{passwordFile: {}}}", file.display()))?;
    for theirs in ["another-one", KEY] {
        let router = start(rack, Kind::Bird, &Setup { password: Some(theirs), ..Setup::DEFAULT })?;
        rack.wait_leaf("the session is as the password has it", |leaf| {
            (leaf.state == "Established", leaf.meaning.is_none()) == (theirs == KEY, theirs == KEY)
        })?;
        let mut said = vec![rack.node.log_tail(usize::MAX), scrape(rack)?];
        for command in [
            &["status", "-o", "json"][..],
            &["bgp", "peers"],
            &["bgp", "peers", "-o", "json"],
            &["bgp", "history"],
            &["bgp", "why", BLOCK, "-o", "json"],
            &["bgp", "advertised", "-o", "json"],
        ] {
            said.push(rack.node.cli(command)?);
        }
        assert!(said.iter().all(|text| !text.is_empty()));
        assert!(said[0].contains("TRACE") && said[1].contains("bulkhead_bgp_peer_state"), "{said:?}");
        let telling = said.iter().find(|text| text.contains(KEY));
        assert_eq!(telling, None);
        // Under its folder there are its state, its sockets and its log.
        let found = Command::new("grep").args(["-rl", "-D", "skip", KEY]).arg(rack.node.dir()).output()?;
        assert_eq!((found.status.code(), String::from_utf8_lossy(&found.stdout).trim()), (Some(1), ""));
        drop(router);
    }
    Ok(())
}

const METRICS: &str = "127.0.0.1:9650";

fn scrape(rack: &Rack) -> Result<String> {
    rack.node.netns.run(|| {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    })
}

fn no_next_hop(rack: &mut Rack) -> Result<()> {
    let router = start(rack, Kind::Bird, &Setup::DEFAULT)?;
    router.wait_seen(BLOCK6)?;
    let address = format!("{NODE6}/64 dev {UPLINK}");
    rack.node.netns.ip(&format!("address del {address}"))?;
    router.wait_gone(BLOCK6)?;
    let told = wait_reason(rack, BLOCK6, "the session runs over the other IP version, and no next hop")?;
    assert_eq!(told.peers[0].announced, None);
    assert!(router.seen(BLOCK)?.is_some(), "IPv4 goes on");
    rack.node.netns.ip(&format!("address add {address}"))?;
    assert_eq!(router.wait_seen(BLOCK6)?.next_hop, NODE6);
    wait_reason(rack, BLOCK6, "announced").map(drop)
}

fn too_many(rack: &mut Rack) -> Result<()> {
    let router = start(rack, Kind::Bird, &Setup::DEFAULT)?;
    router.wait_seen(BLOCK)?;
    rack.peer("{maxPrefixes: {limit: 0}}")?;
    wait_reason(rack, BLOCK, "the peer announced more than the 0 routes")?;
    let leaf = rack.leaf()?;
    assert!(leaf.meaning.is_some_and(|meaning| meaning.contains("maxPrefixes.limit")));
    router.wait_gone(BLOCK)
}

fn drained(rack: &mut Rack) -> Result<()> {
    let router = start(rack, Kind::Bird, &Setup::DEFAULT)?;
    router.wait_seen(BLOCK)?;
    rack.node.cli(&["node", "drain-routes", "--all", "--withdraw-after", "0"])?;
    router.wait_gone(BLOCK)?;
    let told = why(rack, BLOCK)?;
    assert!(told.origin.contains("routes were drained") && told.peers.is_empty(), "{told:?}");
    Ok(())
}

fn of_group(rack: &mut Rack) -> Result<()> {
    let (key, objects) = (rack.dir.join("key"), rack.dir.join("objects"));
    fs::write(&key, "correcthorse\n")?;
    let export =
        |community: &str| format!("export: [{{action: Accept, set: {{communities: ['{community}']}}}}]");
    let say = |of_group: &str, own: &str| {
        let text = format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
             spec: {{asn: {NODE_AS}, peerGroups: {{leaves: {{passwordFile: {}, {}}}}}}}\n---\n\
             apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf}}\n\
             spec: {{peerAddress: {ROUTER}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2, group: leaves, session: {{{own}}}}}\n",
            key.display(),
            export(of_group)
        );
        fs::write(objects.join(".bgp.yaml.new"), text)?;
        Ok::<_, Error>(fs::rename(objects.join(".bgp.yaml.new"), objects.join("bgp.yaml"))?)
    };
    let comes_with = |router: &dyn Router, community: &str| {
        until(&format!("the block comes with {community} alone"), DEADLINE, || {
            let seen = router.wait_seen(BLOCK)?.communities;
            let alone =
                ["65010:1", "65010:2", "65010:3"].iter().all(|c| seen.contains(*c) == (*c == community));
            if alone { Ok(Some(())) } else { Err(Error::Unmet(format!("{seen:?}"))) }
        })
    };
    say("65010:1", "")?;
    let router = start(rack, Kind::Bird, &Setup { password: Some("correcthorse"), ..Setup::DEFAULT })?;
    router.wait_established()?;
    comes_with(&*router, "65010:1")?;
    let since = || {
        Ok::<_, Error>(rack.wait_leaf("the session", |l| l.state == "Established")?.established_transitions)
    };
    let before = since()?;
    say("65010:2", "")?;
    comes_with(&*router, "65010:2")?;
    say("65010:2", &export("65010:3"))?;
    comes_with(&*router, "65010:3")?;
    assert_eq!(since()?, before);
    Ok(())
}

fn of_partition(rack: &mut Rack) -> Result<()> {
    let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: bank}\n\
                spec:\n  policyID: 20\n  namespaces: [bank]\n  podCIDRs: [10.65.0.0/16]\n  \
                bgp: {communities: ['65010:66', '65010:6:6'], localPreference: 250, med: 7, prepend: 2}\n";
    fs::write(rack.dir.join("objects/bank.yaml"), text)?;
    until("the partition is in force", DEADLINE, || {
        let there: Vec<PartitionInfo> = rack.node.get("/v1/partitions")?;
        Ok(there.iter().any(|partition| partition.name == "bank").then_some(()))
    })?;
    let mut pod = Pod::create(0, "bank", "teller")?;
    pod.add(&rack.node)?;
    const OF_BANK: &str = "10.65.0.0/26";
    let router = start(rack, Kind::Bird, &Setup::DEFAULT)?;
    let seen = router.wait_seen(OF_BANK)?;
    assert_eq!((seen.as_path.as_slice(), seen.med), (&[NODE_AS; 3][..], Some(7)));
    assert!(seen.communities.contains("65010:66") && seen.large.contains("65010:6:6"), "{seen:?}");
    let other = router.wait_seen(BLOCK)?;
    assert_eq!((other.as_path.as_slice(), other.med), (&[NODE_AS][..], None));
    drop(router);
    // Inside the AS local preference counts, and nothing is prepended.
    let file = rack.dir.join("objects/bgp.yaml");
    let inside =
        fs::read_to_string(&file)?.replace(&format!("peerASN: {ROUTER_AS}"), &format!("peerASN: {NODE_AS}"));
    fs::write(file, inside)?;
    let router = start(rack, Kind::Bird, &Setup { router_as: NODE_AS, ..Setup::DEFAULT })?;
    let seen = router.wait_seen(OF_BANK)?;
    assert_eq!((seen.as_path.as_slice(), seen.local_pref), (&[][..], Some(250)));
    assert_eq!(router.wait_seen(BLOCK)?.local_pref, Some(100));
    Ok(())
}

/// The session runs over IPv4: the next hop of IPv6 routes is the uplink's global address.
fn bounded(rack: &mut Rack) -> Result<()> {
    let router = start(rack, Kind::Bird, &Setup::DEFAULT)?;
    router.wait_seen(BLOCK6)?;
    route(rack, "received", THEIRS6)?;
    for command in ["advertised", "received"] {
        let told: BgpRoutes = rack.ask(&["bgp", command, "--limit", "1"])?;
        assert_eq!((told.total, told.routes.len()), (2, 1));
        let text = rack.node.cli(&["bgp", command, "--limit", "1"])?;
        assert!(text.ends_with("… and 1 more: name a peer, or give --limit\n"), "{text}");
    }
    let refused = rack.node.cli(&["bgp", "received", "spine"]).unwrap_err().to_string();
    assert!(refused.contains("no BGP peer `spine` on this node: there are: leaf"), "{refused}");
    Ok(())
}

fn password(rack: &mut Rack) -> Result<()> {
    let file = rack.dir.join("key");
    fs::write(&file, "correcthorse\n")?;
    let secret = format!("{{passwordFile: {}}}", file.display());
    rack.peer(&secret)?;
    let meaning = |words: &str| {
        let leaf = rack.wait_leaf(words, |leaf| leaf.meaning.as_ref().is_some_and(|m| m.contains(words)))?;
        assert_ne!(leaf.state, "Established");
        Ok::<_, Error>(())
    };
    let router = start(rack, Kind::Bird, &Setup { password: Some("wrongbattery"), ..Setup::DEFAULT })?;
    // It dials, too, and its segments are counted.
    meaning("segments with another password than this node's came")?;
    assert!(!router.established()?);
    drop(router);
    // One that waits to be called says nothing that could be counted.
    let router = start(rack, Kind::Bird, &Setup { password: Some("correcthorse"), ..Setup::DEFAULT })?;
    router.wait_established()?;
    rack.wait_leaf("the right one is", |leaf| leaf.state == "Established" && leaf.meaning.is_none())?;
    drop(router);
    fs::write(&file, "batterystaple\n")?;
    let router = start(rack, Kind::Bird, &Setup { password: Some("batterystaple"), ..Setup::DEFAULT })?;
    until("the other one is", DEADLINE, || Ok(router.established()?.then_some(())))
}
