//! What is taken back where it cannot simply be said: a block that goes while the daemon's sessions are not up again, and peers that
//! go one right after another. Seen by real routers, which keep what a restart leaves with them.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::PartitionInfo;
use bulkhead_lab::bgp::{
    Kind, Router, Setup,
    rack::{BLOCK, BLOCK6, Rack, trial},
    site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS},
};
use bulkhead_lab::{Bird, Error, Pod, Result, enter, link::run, unmet, until};
use libtest_mimic::Arguments;
use std::fs;

type OfEach = fn(&mut Rack, Kind) -> Result<()>;

/// Of another partition, so that it goes while the first block stays.
const OF_BANK: &str = "10.65.0.0/26";

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let each: [(&str, OfEach); 3] = [
        ("a block that goes before a restarted daemon has sessions goes at the router, and no other", unsaid),
        ("a block that goes before its router's password is read goes when it is, and no other", unread),
        ("a block that goes while nobody is to be peered with goes when somebody is, and no other", put_back),
    ];
    let mut trials = Vec::new();
    for (name, test) in each {
        for kind in Kind::ALL {
            trials.push(trial(format!("{name} × {kind}"), "{}", move |rack| test(rack, kind)));
        }
    }
    let name =
        "peers that are taken out one right after another are each told, and the last one keeps the routes";
    trials.push(trial(name, "{}", peers_go));
    libtest_mimic::run(&arguments, trials).exit()
}

fn bank_has_a_block(rack: &Rack) -> Result<bool> {
    let partitions: Vec<PartitionInfo> = rack.node.get("/v1/partitions")?;
    Ok(partitions.iter().any(|partition| partition.name == "bank" && !partition.blocks.is_empty()))
}

/// The only pod of a second block, which the router has, as it has the first.
fn teller(rack: &Rack, router: &dyn Router) -> Result<Pod> {
    let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: bank}\n\
                spec: {policyID: 20, namespaces: [bank], podCIDRs: [10.65.0.0/16], isolation: Open}\n";
    let [new, file] = [".bank.yaml.new", "bank.yaml"].map(|name| rack.dir.join("objects").join(name));
    fs::write(&new, text)?;
    fs::rename(new, file)?;
    until("the partition is in force", DEADLINE, || {
        let there: Vec<PartitionInfo> = rack.node.get("/v1/partitions")?;
        Ok(there.iter().any(|partition| partition.name == "bank").then_some(()))
    })?;
    let mut teller = Pod::create(0, "bank", &format!("teller-{}", rack.router.name()))?;
    teller.add(&rack.node)?;
    for block in [BLOCK, BLOCK6, OF_BANK] {
        router.wait_seen(block)?;
    }
    Ok(teller)
}

/// The one block is gone at the router and at the node, the others were there all the time and are said again.
fn only_that_goes(rack: &Rack, router: &dyn Router) -> Result<()> {
    until("the router has lost the block", DEADLINE, || {
        if router.seen(BLOCK)?.is_none() || router.seen(BLOCK6)?.is_none() {
            return unmet("it has lost another one");
        }
        match router.seen(OF_BANK)? {
            None => Ok(Some(())),
            Some(seen) => Err(Error::Unmet(format!("{seen:?}"))),
        }
    })?;
    router.wait_established()?;
    until("nothing is kept of before", DEADLINE, || {
        let [first, second] = [router.seen(BLOCK)?, router.seen(BLOCK6)?];
        let fresh = first.is_some_and(|seen| !seen.stale) && second.is_some_and(|seen| !seen.stale);
        Ok(fresh.then_some(()))
    })?;
    until("the node has given it back", DEADLINE, || Ok((!bank_has_a_block(rack)?).then_some(())))
}

fn unsaid(rack: &mut Rack, kind: Kind) -> Result<()> {
    let router = kind.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    let teller = teller(rack, &*router)?;
    rack.node.kill_daemon()?;
    router.wait_lost()?;
    let without = "table inet silence { chain in { type filter hook input priority 0; tcp sport 179 drop; tcp dport 179 drop; }; }";
    run(rack.node.netns.command("nft").arg(without))?;
    rack.node.start_daemon()?;
    teller.del(&rack.node)?;
    assert!(bank_has_a_block(rack)? && router.seen(OF_BANK)?.is_some(), "the router leads here");
    let shown = rack.node.cli(&["bgp", "peers"])?;
    assert!(
        shown.contains(
            "leaf: the peer may keep what was announced to it before: blocks without pods are held"
        ),
        "{shown}"
    );
    run(rack.node.netns.command("nft").arg("delete table inet silence"))?;
    only_that_goes(rack, &*router)
}

/// Of that router the daemon knows nothing but its name, and that from the one before.
fn unread(rack: &mut Rack, kind: Kind) -> Result<()> {
    const PASSWORD: &str = "correct-horse";
    let file = rack.dir.join("key");
    fs::write(&file, PASSWORD)?;
    rack.peer(&format!("{{passwordFile: {}}}", file.display()))?;
    let setup = Setup { password: Some(PASSWORD), ..Setup::DEFAULT };
    let router = kind.start_in(&rack.router, &rack.dir, &setup)?;
    let teller = teller(rack, &*router)?;
    rack.node.kill_daemon()?;
    router.wait_lost()?;
    fs::remove_file(&file)?;
    rack.node.start_daemon()?;
    teller.del(&rack.node)?;
    assert!(bank_has_a_block(rack)? && router.seen(OF_BANK)?.is_some(), "the router leads here");
    let log = rack.node.log_tail(1000);
    let held = log.lines().any(|line| line.contains("blocks without pods are held") && line.contains("leaf"));
    assert!(held, "{log}");
    fs::write(&file, PASSWORD)?;
    only_that_goes(rack, &*router)
}

fn put_back(rack: &mut Rack, kind: Kind) -> Result<()> {
    let router = kind.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    let teller = teller(rack, &*router)?;
    fs::remove_file(rack.dir.join("objects/bgp.yaml"))?;
    router.wait_lost()?;
    teller.del(&rack.node)?;
    assert!(bank_has_a_block(rack)? && router.seen(OF_BANK)?.is_some(), "routers lead here");
    rack.peer("{}")?;
    only_that_goes(rack, &*router)
}

/// Four routers.
fn peers_go(rack: &mut Rack) -> Result<()> {
    let addresses = [ROUTER, "172.31.9.3", "172.31.9.4", "172.31.9.5"];
    let object = |number: usize| rack.dir.join("objects").join(format!("leaf{number}.yaml"));
    let mut routers = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        if number > 0 {
            rack.router.ip(&format!("address add {address}/24 dev downlink"))?;
            let text = format!(
                "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf{number}}}\n\
                 spec: {{peerAddress: {address}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2}}\n"
            );
            fs::write(object(number), text)?;
        }
        let configuration = format!(
            "log stderr all;\nrouter id {address};\nprotocol device {{}}\n\
             protocol bgp node {{ local {address} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; strict bind on;\n\
             graceful restart on; connect delay time 1; connect retry time 2; error wait time 1, 2;\n\
             ipv4 {{ import all; export none; }}; }}\n"
        );
        routers.push(Bird::start(&rack.router, &rack.dir.join(address), &configuration)?);
    }
    // BIRD calls it an error that there is none.
    let has = |number: usize| {
        routers[number].birdc(&format!("show route {BLOCK}")).is_ok_and(|said| said.contains(BLOCK))
    };
    until("all have the block", DEADLINE, || {
        let missing: Vec<usize> = (0..routers.len()).filter(|number| !has(*number)).collect();
        if missing.is_empty() { Ok(Some(())) } else { Err(Error::Unmet(format!("{missing:?} have not"))) }
    })?;
    let log = |number: usize| {
        Ok::<_, Error>(fs::read_to_string(rack.dir.join(addresses[number]).join("bird.log"))?)
    };
    let before: Vec<usize> =
        (0..routers.len()).map(|number| Ok(log(number)?.len())).collect::<Result<_>>()?;
    let said = |number: usize| Ok::<_, Error>(log(number)?[before[number]..].to_owned());
    for number in 1..routers.len() {
        fs::remove_file(object(number))?;
    }
    for number in 1..routers.len() {
        until(&format!("router {number} is told"), DEADLINE, || {
            let said = said(number)?;
            let told = said.contains("Received: Peer de-configured");
            if told { Ok(Some(())) } else { Err(Error::Unmet(said)) }
        })?;
        assert!(!has(number), "it has dropped the routes");
    }
    assert!(routers[0].established("node")? && has(0));
    // The last one is an interruption: a restart to the router, which keeps the routes.
    fs::remove_file(rack.dir.join("objects/bgp.yaml"))?;
    until("its session is over", DEADLINE, || Ok((!routers[0].established("node")?).then_some(())))?;
    let said = said(0)?;
    assert!(has(0) && !said.contains("Received"), "{said}");
    Ok(())
}
