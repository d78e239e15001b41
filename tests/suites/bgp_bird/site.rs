//! What the suite is made of: a node with a speaker, a router with BIRD, and what watches the router.

use bulkhead_bgp::fsm::StateName;
use bulkhead_bgp::{Family, PeerConfig, PeerStatus, RouteAttributes, RouteView, Speaker, SpeakerConfig};
use bulkhead_lab::{
    Bird, Error, Netns, Result,
    link::End,
    routes::{Route, kernel_routes},
    until, veth,
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
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
    node: Netns,
    pub router: Netns,
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
        Ok(Site { node, router, dir: Path::new("/run/lab").join(short) })
    }

    pub fn bird(&self, bgp: &Bgp) -> Result<Bird> {
        Bird::start(&self.router, &self.dir, &bgp.configuration())
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

    /// In a process of its own, which can be killed.
    pub fn speaker_process(&self, role: &Role) -> Result<Child> {
        let log = File::create(self.dir.join("speaker.log"))?;
        let mut command = self.node.command("/proc/self/exe");
        Ok(command.arg(role.to_argument()).stdin(Stdio::null()).stderr(log).spawn()?)
    }

    pub fn speaker(&self, config: SpeakerConfig) -> Running {
        let made = self.node.run(|| Ok(Running::start(config)));
        made.expect("the node's namespace")
    }
}

/// What the router is configured with.
pub struct Bgp {
    pub transport: [&'static str; 2],
    pub router_as: u32,
    pub node_as: u32,
    pub import: &'static str,
    pub hold_time: u16,
}

pub const BGP: Bgp =
    Bgp { transport: [ROUTER, NODE], router_as: ROUTER_AS, node_as: NODE_AS, import: "all", hold_time: 30 };

impl Bgp {
    /// As a data-centre router: graceful restart, learned routes into the kernel. Waits after errors are shortened.
    pub fn configuration(&self) -> String {
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

pub fn speaker_config(restarting: bool) -> SpeakerConfig {
    SpeakerConfig {
        asn: NODE_AS,
        router_id: Ipv4Addr::new(172, 31, 9, 2),
        listen: vec!["0.0.0.0:179".parse().unwrap(), "[::]:179".parse().unwrap()],
        restart_time: 60,
        restarting,
        forwarding_preserved: restarting,
    }
}

pub fn router() -> PeerConfig {
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

pub fn routes(prefixes: &[&str]) -> BTreeMap<IpNetwork, RouteAttributes> {
    let attributes = RouteAttributes { communities: vec![(NODE_AS << 16) | 100] };
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
        on(&self.runtime, async move { speaker.received().await })
    }

    pub fn withdraw_all(&self) {
        let speaker = self.speaker.clone();
        on(&self.runtime, async move { speaker.withdraw_all().await });
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
