//! A node with a speaker, a router beside it, and what watches the router.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

use crate::{
    Error, Netns, Result,
    link::{End, run},
    routes::{Route, kernel_routes},
    until, veth,
};
use bulkhead_bgp::fsm::StateName;
use bulkhead_bgp::{
    Direction, PeerConfig, PeerStatus, Remote, RouteAttributes, RouteView, Speaker, SpeakerConfig,
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

pub const NODE: &str = "172.31.9.2";
pub const NODE6: &str = "fd00:31:9::2";
pub const ROUTER: &str = "172.31.9.1";
pub const ROUTER6: &str = "fd00:31:9::1";
pub const NODE_AS: u32 = 65010;
pub const ROUTER_AS: u32 = 65020;
/// Covers a lost connection's wait on both sides.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A cable with a node at one end and a router at the other; each test has its own.
pub struct Site {
    pub node: Netns,
    pub router: Arc<Netns>,
    pub dir: PathBuf,
}

impl Site {
    pub fn create(title: &str) -> Result<Site> {
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
        Ok(Site { node, router: Arc::new(router), dir: Path::new("/run/lab").join(short) })
    }

    /// The router's kernel table, as far as BIRD wrote it, with next hops.
    fn kernel(&self) -> Result<BTreeSet<String>> {
        let via = |r: &Route| r.via.map_or("nothing".into(), |via| via.to_string());
        Ok(kernel_routes(&self.router, "bird")?
            .iter()
            .map(|r| format!("{} via {}", r.prefix, via(r)))
            .collect())
    }

    pub fn wait_kernel(&self, expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = expected.iter().map(|route| route.to_string()).collect();
        until(&format!("the router's kernel has {expected:?}"), DEADLINE, || {
            let routes = self.kernel()?;
            if routes == expected { Ok(Some(())) } else { Err(Error::Unmet(format!("{routes:?}"))) }
        })
    }

    /// Everything between the two is dropped in both directions, and the carrier stays.
    pub fn cut(&self) -> Result<()> {
        let rules = "table inet cut { chain in { type filter hook input priority 0; policy drop; }; \
                     chain out { type filter hook output priority 0; policy drop; }; }";
        run(self.node.command("nft").arg(rules)).map(drop)
    }

    pub fn mend(&self) -> Result<()> {
        run(self.node.command("nft").arg("delete table inet cut")).map(drop)
    }

    /// In a process of its own, which can be killed; the suite's program hands its argument to
    /// [`speaker_process`].
    pub fn speaker_process(&self, role: &Role) -> Result<Child> {
        fs::create_dir_all(&self.dir)?;
        let log = File::create(self.dir.join("speaker.log"))?;
        let mut command = self.node.command("/proc/self/exe");
        Ok(command.arg(role.to_argument()).stdin(Stdio::null()).stderr(log).spawn()?)
    }

    pub fn speaker(&self, config: SpeakerConfig) -> Running {
        let made = self.node.run(|| Ok(Running::start(config)));
        made.expect("the node's namespace")
    }
}

pub fn speaker_config(restarting: bool) -> SpeakerConfig {
    SpeakerConfig {
        asn: NODE_AS,
        router_id: Ipv4Addr::new(172, 31, 9, 2),
        listen: vec![(Ipv4Addr::UNSPECIFIED, 179).into(), (Ipv6Addr::UNSPECIFIED, 179).into()],
        restart_time: 60,
        restarting,
        forwarding_preserved: restarting,
    }
}

pub fn router() -> PeerConfig {
    let address = |text: &str| text.parse().expect("an address");
    PeerConfig {
        hold_time: 30,
        connect_retry: 2,
        local_address: Some(address(NODE)),
        next_hop_ipv6: Some(NODE6.parse().expect("an address")),
        ..PeerConfig::new("leaf", Remote::Address(address(ROUTER)), ROUTER_AS)
    }
}

pub fn routes(prefixes: &[&str]) -> BTreeMap<IpNetwork, RouteAttributes> {
    let attributes =
        RouteAttributes { communities: vec![(NODE_AS << 16) | 100], ..RouteAttributes::default() };
    prefixes.iter().map(|prefix| (prefix.parse().expect("a prefix"), attributes.clone())).collect()
}

/// A speaker on a thread inside the node's namespace.
pub struct Running {
    runtime: Runtime,
    pub speaker: Speaker,
}

impl Running {
    /// To be called inside the namespace: the runtime's thread is born there and stays there.
    fn start(config: SpeakerConfig) -> Running {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let speaker = on(&runtime, Speaker::start(config)).expect("a speaker");
        Running { runtime, speaker }
    }

    pub fn peer(&self) -> PeerStatus {
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.peers().await }).remove(0)
    }

    pub fn received(&self) -> Vec<RouteView> {
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.routes(Direction::Received, None, usize::MAX).await.shown })
    }

    /// The status once it is as wanted.
    pub fn wait_peer(&self, what: &str, wanted: impl Fn(&PeerStatus) -> bool) -> Result<PeerStatus> {
        until(what, DEADLINE, || {
            let peer = self.peer();
            if wanted(&peer) { Ok(Some(peer)) } else { Err(Error::Unmet(format!("{peer:?}"))) }
        })
    }

    /// Returns when it went out.
    pub fn withdraw_all(&self) {
        self.speaker.announce(BTreeMap::new());
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.flush().await });
    }

    pub fn stop(self) {
        on(&self.runtime, self.speaker.stop());
    }

    pub fn wait_established(&self) -> Result<()> {
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
pub struct Role {
    pub restarting: bool,
    pub prefixes: &'static [&'static str],
    /// Says that its set is whole when this file is there.
    pub complete_when: PathBuf,
}

impl Role {
    fn to_argument(&self) -> String {
        format!("speaker:{}|{}|{}", self.restarting, self.complete_when.display(), self.prefixes.join(","))
    }
}

pub fn speaker_process(role: &str) -> Result<()> {
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
pub struct Monitor<'a> {
    site: &'a Site,
    process: Child,
    seen: PathBuf,
    marks: u8,
}

impl<'a> Monitor<'a> {
    pub fn start(site: &'a Site) -> Result<Self> {
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

    pub fn deleted(&mut self) -> Result<Vec<String>> {
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
