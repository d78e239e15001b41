//! The speaker against a real BIRD 2, each in a namespace of its own. What counts is the router's view: its table and its
//! kernel's routes.
//!
//! ```text
//!   node 172.31.9.2, fd00:31:9::2 ──────── 172.31.9.1, fd00:31:9::1 router
//!   speaker, AS 65010                                  BIRD, AS 65020
//! ```
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_bgp::fsm::StateName;
use bulkhead_bgp::{Family, PeerConfig, PeerStatus, RouteAttributes, RouteView, Speaker, SpeakerConfig};
use bulkhead_lab::{
    Bird, Error, Netns, Result, enter,
    link::{End, ip_output},
    until, veth,
};
use ipnetwork::IpNetwork;
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};

const NODE: &str = "172.31.9.2";
const NODE6: &str = "fd00:31:9::2";
const ROUTER: &str = "172.31.9.1";
const ROUTER6: &str = "fd00:31:9::1";
const NODE_AS: u32 = 65010;
const ROUTER_AS: u32 = 65020;
/// Covers a lost connection's wait on both sides.
const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    if let Some(role) = env::args().nth(1).and_then(|role| role.strip_prefix("speaker:").map(str::to_owned)) {
        return speaker_process(&role);
    }
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let trial = |name: &str, f: fn(&Site) -> Result<()>| {
        let title = name.to_owned();
        Trial::test(name, move || Site::create(&title).and_then(|site| f(&site)).map_err(Failed::from))
    };
    let trials = vec![
        trial("routes of both IP versions stand in the router over one IPv4 session", both_families),
        trial("an IPv6 session carries both IP versions", over_ipv6),
        trial("a session that only the router can open comes up", router_dials),
        trial("a session inside one AS carries the routes", internal),
        trial("what is withdrawn leaves the router, and nothing else does", withdrawal),
        trial("a route refresh is answered", refresh),
        trial("a killed speaker's routes stay, also through its return", killed_and_back),
        trial("a speaker that returns with less loses just that", back_with_less),
        trial("a stopped speaker's routes stay until the restart time is over", stopped),
        trial("a wrong AS is told in words, whichever side has it wrong", wrong_as),
        trial("a session comes back by itself when the router restarts", router_restarts),
        trial("a hold time of three seconds does not flap", short_hold_time),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

/// A cable with a node at one end and a router at the other; each test has its own.
struct Site {
    node: Netns,
    router: Netns,
    dir: PathBuf,
}

impl Site {
    fn create(title: &str) -> Result<Site> {
        let short: String = title.chars().filter(char::is_ascii_alphanumeric).take(30).collect();
        let machine = |kind: &str| {
            let netns = Netns::create(&format!("{kind}-{short}"))?;
            // Addresses must serve at once, without duplicate address detection.
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            Ok::<_, Error>(netns)
        };
        let (node, router) = (machine("node")?, machine("router")?);
        let addresses = |ipv4: &str, ipv6: &str| [format!("{ipv4}/24"), format!("{ipv6}/64")];
        let [n4, n6] = addresses(NODE, NODE6);
        let [r4, r6] = addresses(ROUTER, ROUTER6);
        veth(
            End { netns: &node, name: "uplink", addresses: &[&n4, &n6] },
            End { netns: &router, name: "downlink", addresses: &[&r4, &r6] },
        )?;
        Ok(Site { node, router, dir: Path::new("/run/lab").join(short) })
    }

    fn bird(&self, bgp: &Bgp) -> Result<Bird> {
        Bird::start(&self.router, &self.dir, &bgp.configuration())
    }

    /// The router's kernel table, as far as BIRD wrote it, with next hops.
    fn kernel(&self) -> Result<BTreeSet<String>> {
        let mut routes = BTreeSet::new();
        for family in ["-4", "-6"] {
            let table = ip_output(Some(&self.router), &format!("{family} route show proto bird"))?;
            for line in table.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let via = words.iter().position(|word| *word == "via").and_then(|at| words.get(at + 1));
                routes.insert(format!("{} via {}", words[0], via.unwrap_or(&"nothing")));
            }
        }
        Ok(routes)
    }

    fn wait_kernel(&self, expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = expected.iter().map(|route| route.to_string()).collect();
        until(&format!("the router's kernel has {expected:?}"), DEADLINE, || {
            let routes = self.kernel()?;
            if routes == expected { Ok(Some(())) } else { Err(Error::Unmet(format!("{routes:?}"))) }
        })
    }

    /// In a process of its own, which can be killed.
    fn speaker_process(&self, role: &Role) -> Result<Child> {
        let log = File::create(self.dir.join("speaker.log"))?;
        let mut command = self.node.command("/proc/self/exe");
        Ok(command.arg(role.to_argument()).stdin(Stdio::null()).stderr(log).spawn()?)
    }

    fn speaker(&self, config: SpeakerConfig) -> Running {
        let made = self.node.run(|| Ok(Running::start(config)));
        made.expect("the node's namespace")
    }
}

/// What the router is configured with.
struct Bgp {
    transport: [&'static str; 2],
    router_as: u32,
    node_as: u32,
    import: &'static str,
    hold_time: u16,
}

const BGP: Bgp =
    Bgp { transport: [ROUTER, NODE], router_as: ROUTER_AS, node_as: NODE_AS, import: "all", hold_time: 30 };

impl Bgp {
    /// As a data-centre router: graceful restart, learned routes into the kernel. Waits after errors are shortened.
    fn configuration(&self) -> String {
        let Bgp { transport: [here, there], router_as, node_as, import, hold_time } = self;
        let kernel = |family| {
            format!("protocol kernel {{ {family} {{ import none; export where source = RTS_BGP; }}; }}\n")
        };
        format!(
            "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n{}{}\
             protocol static {{ ipv4; route 10.99.0.0/16 blackhole {{ bgp_community.add((65020,7)); }}; }}\n\
             protocol static {{ ipv6; route fd00:99::/32 blackhole; }}\n\
             protocol bgp node {{\n  local {here} as {router_as};\n  neighbor {there} as {node_as};\n  \
             graceful restart on;\n  hold time {hold_time};\n  connect delay time 1;\n  connect retry time 2;\n  \
             error wait time 1, 2;\n  \
             ipv4 {{ import {import}; export where source = RTS_STATIC; next hop address {ROUTER}; }};\n  \
             ipv6 {{ import {import}; export where source = RTS_STATIC; next hop address {ROUTER6}; }};\n}}\n",
            kernel("ipv4"),
            kernel("ipv6"),
        )
    }
}

fn speaker_config(restarting: bool) -> SpeakerConfig {
    SpeakerConfig {
        asn: NODE_AS,
        router_id: Ipv4Addr::new(172, 31, 9, 2),
        listen: vec!["0.0.0.0:179".parse().unwrap(), "[::]:179".parse().unwrap()],
        restart_time: 60,
        restarting,
        forwarding_preserved: restarting,
    }
}

fn router() -> PeerConfig {
    PeerConfig {
        name: "leaf".to_owned(),
        address: ROUTER.parse().unwrap(),
        port: 179,
        asn: ROUTER_AS,
        hold_time: 30,
        connect_retry: 2,
        families: Family::ALL.to_vec(),
        local_address: Some(NODE.parse().unwrap()),
        next_hop_ipv4: None,
        next_hop_ipv6: Some(NODE6.parse().unwrap()),
    }
}

fn routes(prefixes: &[&str]) -> BTreeMap<IpNetwork, RouteAttributes> {
    let attributes = RouteAttributes { communities: vec![(NODE_AS << 16) | 100] };
    prefixes.iter().map(|prefix| (prefix.parse().expect("a prefix"), attributes.clone())).collect()
}

/// A speaker on a thread inside the node's namespace.
struct Running {
    runtime: Runtime,
    speaker: Speaker,
}

impl Running {
    /// To be called inside the namespace: the runtime's thread is born there and stays there.
    fn start(config: SpeakerConfig) -> Running {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let speaker = on(&runtime, Speaker::start(config)).expect("a speaker");
        Running { runtime, speaker }
    }

    fn peer(&self) -> PeerStatus {
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.peers().await }).remove(0)
    }

    fn received(&self) -> Vec<RouteView> {
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.received().await })
    }

    fn withdraw_all(&self) {
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.withdraw_all().await });
    }

    fn stop(self) {
        on(&self.runtime, self.speaker.stop());
    }

    fn wait_established(&self) -> Result<()> {
        until("our session is established", DEADLINE, || match self.peer() {
            PeerStatus { state: StateName::Established, .. } => Ok(Some(())),
            other => Err(Error::Unmet(format!("{other:?}"))),
        })
    }
}

/// Runs on the runtime's own thread, where sockets are made.
fn on<T: Send + 'static>(runtime: &Runtime, what: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(runtime.spawn(what)).expect("no panic")
}

/// What a speaker in a process of its own does.
struct Role {
    restarting: bool,
    prefixes: &'static [&'static str],
    /// Says that its set is whole when this file is there.
    complete_when: PathBuf,
}

impl Role {
    fn to_argument(&self) -> String {
        format!("speaker:{}|{}|{}", self.restarting, self.complete_when.display(), self.prefixes.join(","))
    }
}

fn speaker_process(role: &str) -> Result<()> {
    let parts: Vec<&str> = role.split('|').collect();
    let &[restarting, complete_when, prefixes] = parts.as_slice() else {
        return Err(Error::Unmet(format!("not a role: {role}")));
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config = speaker_config(restarting == "true");
        let speaker = Speaker::start(config).await.map_err(|error| Error::Unmet(error.to_string()))?;
        speaker.set_peers(vec![router()]);
        speaker.announce(routes(&prefixes.split(',').collect::<Vec<_>>()));
        while !Path::new(complete_when).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        speaker.initial_routes_complete();
        std::future::pending().await
    })
}

/// Everything that happens to the router's kernel routes while it lives.
struct Monitor<'a> {
    site: &'a Site,
    process: Child,
    seen: PathBuf,
    marks: u8,
}

impl<'a> Monitor<'a> {
    fn start(site: &'a Site) -> Result<Self> {
        let seen = site.dir.join("monitor.log");
        let out = File::create(&seen)?;
        let process = site.router.command("ip").args(["-o", "monitor", "route"]).stdout(out).spawn()?;
        let mut monitor = Monitor { site, process, seen, marks: 0 };
        monitor.mark()?;
        Ok(monitor)
    }

    /// Returns when all that happened before was seen.
    fn mark(&mut self) -> Result<()> {
        until("the monitor listens", DEADLINE, || {
            self.marks += 1;
            let mark = format!("192.0.2.{}", self.marks);
            self.site.router.ip(&format!("route add {mark}/32 dev lo"))?;
            until("the mark is seen", Duration::from_millis(500), || {
                Ok(fs::read_to_string(&self.seen)?.contains(&mark).then_some(()))
            })
            .map(Some)
        })
    }

    fn deleted(&mut self) -> Result<Vec<String>> {
        self.mark()?;
        let seen = fs::read_to_string(&self.seen)?;
        Ok(seen.lines().filter(|line| line.starts_with("Deleted")).map(str::to_owned).collect())
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const BLOCK: &str = "10.64.0.0/26 via 172.31.9.2";
const BLOCK6: &str = "fd00:64::/122 via fd00:31:9::2";
const OTHER: &str = "10.65.0.0/26 via 172.31.9.2";

fn both_families(site: &Site) -> Result<()> {
    let bird = site.bird(&BGP)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    bird.wait_established(&["node"], DEADLINE)?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    for table in ["master4", "master6"] {
        let routes = bird.birdc(&format!("show route all protocol node table {table}"))?;
        for line in ["BGP.community: (65010,100)", "BGP.as_path: 65010", "BGP.origin: IGP"] {
            assert!(routes.contains(line), "{line} in {routes}");
        }
    }
    let received: BTreeMap<String, RouteView> = until("both routes came", DEADLINE, || {
        let received = node.received();
        Ok((received.len() == 2).then(|| received.into_iter().map(|r| (r.prefix.to_string(), r)).collect()))
    })?;
    let ipv4 = &received["10.99.0.0/16"];
    assert_eq!((ipv4.next_hop, &ipv4.as_path), (ROUTER.parse::<IpAddr>().unwrap(), &vec![ROUTER_AS]));
    assert_eq!(ipv4.communities, [(ROUTER_AS << 16) | 7]);
    assert_eq!(received["fd00:99::/32"].next_hop, ROUTER6.parse::<IpAddr>().unwrap());
    let status = node.peer();
    assert_eq!((status.advertised, status.received, status.graceful_restart), (2, 2, true), "{status:?}");
    assert_eq!((status.families, status.last_error), (Family::ALL.to_vec(), None));
    Ok(())
}

fn over_ipv6(site: &Site) -> Result<()> {
    let bird = site.bird(&Bgp { transport: [ROUTER6, NODE6], ..BGP })?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    let address = ROUTER6.parse().unwrap();
    let local_address = Some(NODE6.parse().unwrap());
    let no_hops = PeerConfig { address, local_address, next_hop_ipv6: None, ..router() };
    node.speaker.set_peers(vec![no_hops.clone()]);
    bird.wait_established(&["node"], DEADLINE)?;
    site.wait_kernel(&[BLOCK6])?;
    let told = node.peer().last_error.unwrap_or_default();
    assert!(told.starts_with("routes of ipv4-unicast are not announced"), "{told}");
    node.speaker.set_peers(vec![PeerConfig { next_hop_ipv4: Some(NODE.parse().unwrap()), ..no_hops }]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    assert_eq!(node.peer().last_error, None);
    Ok(())
}

fn router_dials(site: &Site) -> Result<()> {
    let _bird = site.bird(&BGP)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    // Nobody listens there.
    node.speaker.set_peers(vec![PeerConfig { port: 7, ..router() }]);
    site.wait_kernel(&[BLOCK, BLOCK6])
}

fn internal(site: &Site) -> Result<()> {
    let bird = site.bird(&Bgp { router_as: NODE_AS, ..BGP })?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![PeerConfig { asn: NODE_AS, ..router() }]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let routes = bird.birdc("show route all protocol node table master4")?;
    assert!(routes.contains("BGP.local_pref: 100"), "{routes}");
    Ok(())
}

fn withdrawal(site: &Site) -> Result<()> {
    let bird = site.bird(&BGP)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "10.65.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    site.wait_kernel(&[BLOCK, OTHER, BLOCK6])?;
    let mut monitor = Monitor::start(site)?;
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let deleted = monitor.deleted()?;
    assert!(deleted.iter().all(|line| line.contains("10.65.0.0/26")), "{deleted:?}");
    node.withdraw_all();
    site.wait_kernel(&[])?;
    assert!(bird.established("node")?, "withdrawal is not the end of the session");
    Ok(())
}

fn refresh(site: &Site) -> Result<()> {
    let bird = site.bird(&Bgp { import: "where net.len < 26", ..BGP })?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    bird.wait_established(&["node"], DEADLINE)?;
    until("both were sent", DEADLINE, || Ok((node.peer().advertised == 2).then_some(())))?;
    site.wait_kernel(&[])?;
    let since = node.peer().since;
    // BIRD did not keep what its filter refused: it asks for it again.
    fs::write(site.dir.join("bird.conf"), BGP.configuration())?;
    bird.birdc("configure")?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    assert!(node.peer().since >= since, "the session went on");
    Ok(())
}

fn killed_and_back(site: &Site) -> Result<()> {
    let bird = site.bird(&BGP)?;
    let complete = site.dir.join("complete");
    let role = |restarting| Role {
        restarting,
        prefixes: &["10.64.0.0/26", "fd00:64::/122"],
        complete_when: complete.clone(),
    };
    let mut speaker = site.speaker_process(&role(false))?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let mut monitor = Monitor::start(site)?;
    for _ in 0..3 {
        speaker.kill()?;
        speaker.wait()?;
        until("BIRD lost the session", DEADLINE, || Ok((!bird.established("node")?).then_some(())))?;
        site.wait_kernel(&[BLOCK, BLOCK6])?;
        speaker = site.speaker_process(&role(true))?;
        bird.wait_established(&["node"], DEADLINE)?;
        assert!(!restart_is_over(&bird)?, "End-of-RIB waits for the set to be complete");
        fs::write(&complete, "")?;
        until("BIRD's restart is over", DEADLINE, || Ok(restart_is_over(&bird)?.then_some(())))?;
        site.wait_kernel(&[BLOCK, BLOCK6])?;
        fs::remove_file(&complete)?;
    }
    speaker.kill()?;
    speaker.wait()?;
    assert_eq!(monitor.deleted()?, [""; 0], "the routes never left");
    Ok(())
}

/// BIRD holds no stale routes of ours any more.
fn restart_is_over(bird: &Bird) -> Result<bool> {
    Ok(!bird.birdc("show protocols all node")?.contains("Neighbor graceful restart active"))
}

fn back_with_less(site: &Site) -> Result<()> {
    let bird = site.bird(&BGP)?;
    let complete = site.dir.join("complete");
    let complete_when = complete.clone();
    let role = Role {
        restarting: false,
        prefixes: &["10.64.0.0/26", "10.65.0.0/26", "fd00:64::/122"],
        complete_when,
    };
    let mut speaker = site.speaker_process(&role)?;
    site.wait_kernel(&[BLOCK, OTHER, BLOCK6])?;
    let mut monitor = Monitor::start(site)?;
    speaker.kill()?;
    speaker.wait()?;
    let role = Role {
        restarting: true,
        prefixes: &["10.64.0.0/26", "fd00:64::/122"],
        complete_when: complete.clone(),
    };
    let mut speaker = site.speaker_process(&role)?;
    bird.wait_established(&["node"], DEADLINE)?;
    until("the kept routes came again", DEADLINE, || {
        let protocol = bird.birdc("show protocols all node")?;
        Ok((imported(&protocol) >= 5).then_some(()))
    })?;
    assert!(!restart_is_over(&bird)?, "End-of-RIB waits for the set to be complete");
    site.wait_kernel(&[BLOCK, OTHER, BLOCK6])?;
    fs::write(&complete, "")?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    let deleted = monitor.deleted()?;
    assert!(deleted.len() == 1 && deleted[0].contains("10.65.0.0/26"), "{deleted:?}");
    speaker.kill()?;
    speaker.wait()?;
    Ok(())
}

/// Updates that BIRD received on all channels of the session.
fn imported(protocol: &str) -> u32 {
    let counters = protocol.lines().filter_map(|line| line.trim().strip_prefix("Import updates:"));
    counters.filter_map(|counters| counters.split_whitespace().next()?.parse::<u32>().ok()).sum()
}

fn stopped(site: &Site) -> Result<()> {
    let bird = site.bird(&BGP)?;
    let node = site.speaker(SpeakerConfig { restart_time: 4, ..speaker_config(false) });
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    node.stop();
    until("BIRD lost the session", DEADLINE, || Ok((!bird.established("node")?).then_some(())))?;
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    assert!(!restart_is_over(&bird)?, "BIRD waits for us");
    site.wait_kernel(&[])
}

fn wrong_as(site: &Site) -> Result<()> {
    let _bird = site.bird(&BGP)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![PeerConfig { asn: 65099, ..router() }]);
    let told = |start: &str| {
        until(&format!("the error begins with {start:?}"), DEADLINE, || {
            let error = node.peer().last_error.unwrap_or_default();
            if error.starts_with(start) { Ok(Some(())) } else { Err(Error::Unmet(error)) }
        })
    };
    told("the peer is AS 65020, but AS 65099 is configured")?;
    node.speaker.set_peers(Vec::new());
    drop(_bird);
    let _bird = site.bird(&Bgp { node_as: 65088, ..BGP })?;
    node.speaker.set_peers(vec![router()]);
    told(
        "the peer sent NOTIFICATION 2/2: OPEN message error, bad peer AS: it expects another AS number of us",
    )
}

fn router_restarts(site: &Site) -> Result<()> {
    let bird = site.bird(&BGP)?;
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(routes(&["10.64.0.0/26", "fd00:64::/122"]));
    node.speaker.set_peers(vec![router()]);
    site.wait_kernel(&[BLOCK, BLOCK6])?;
    drop(bird);
    until("we notice", DEADLINE, || Ok((node.peer().state != StateName::Established).then_some(())))?;
    for route in ["10.64.0.0/26", "fd00:64::/122"] {
        site.router.ip(&format!("route del {route}"))?;
    }
    let _bird = site.bird(&BGP)?;
    node.wait_established()?;
    site.wait_kernel(&[BLOCK, BLOCK6])
}

fn short_hold_time(site: &Site) -> Result<()> {
    let bird = site.bird(&Bgp { hold_time: 3, ..BGP })?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![PeerConfig { hold_time: 3, ..router() }]);
    bird.wait_established(&["node"], DEADLINE)?;
    node.wait_established()?;
    let start = Instant::now();
    // More than two hold times.
    until("seven seconds have passed", DEADLINE, || {
        let status = node.peer();
        assert_eq!(status.state, StateName::Established, "{status:?}");
        Ok((status.since >= Duration::from_secs(7)).then_some(()))
    })?;
    assert!(start.elapsed() >= Duration::from_secs(6), "one session all the time");
    assert!(bird.established("node")?);
    Ok(())
}
