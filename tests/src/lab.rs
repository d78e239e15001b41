//! The topology: a router with BIRD, two nodes, a virtual machine, eight pods in three partitions.
//!
//! ```text
//!            vm 172.30.9.2, fd00:30:9::2
//!             │
//!          router (BIRD, AS 65000)
//!   172.30.1.1 │              │ 172.30.2.1
//!   fd00:30:1::1              fd00:30:2::1
//!             │              │
//!   172.30.1.2 node1        node2 172.30.2.2      (AS 65010)
//! ```

use crate::{
    Bird, Netns, Node, Objects, Pod, Result,
    enter::WORK,
    link::{End, ip_output, veth},
    node::UPLINK,
    probe::Site,
    unmet,
};
use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

pub(crate) const ROUTER: &str = include_str!("../lab/router.conf");
/// Sessions of the router's configuration, by node: v4, v6.
pub const SESSIONS: [[&str; 2]; 2] = [["n1v4", "n1v6"], ["n2v4", "n2v6"]];

/// The eight pods: node, namespace, name.
const PODS: [(usize, &str, &str); 8] = [
    (0, "payments", "db-0"),
    (1, "payments", "db-1"),
    (0, "web", "front-0"),
    (1, "web", "front-1"),
    (0, "shop", "low-0"),
    (0, "shop", "management-0"),
    (0, "shop", "cart-0"),
    (1, "shop", "cart-1"),
];

/// Fields in the order in which they must go: daemons before the router, processes before namespaces.
#[derive(Debug)]
pub struct Lab {
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    /// Each node with its daemon ready and no pod yet.
    pub baselines: Vec<Baseline>,
    pub bird: Bird,
    pub router: Netns,
    pub vm: Vm,
    pub objects: Objects,
    pub dir: PathBuf,
}

#[derive(Debug)]
pub struct Vm {
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// What pods leave traces in: interfaces, addresses, routes, neighbours of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    lines: BTreeSet<String>,
}

impl Baseline {
    pub fn of(node: &Node) -> Result<Self> {
        Self::of_machine(&node.netns)
    }

    pub fn of_machine(netns: &Netns) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for what in
            ["link show", "-4 route show table all", "-6 route show table all", "rule show", "-6 rule show"]
        {
            let text = ip_output(Some(netns), &format!("-o {what}"))?;
            // Counters of time differ from one look to the next.
            let steady = |line: &str| line.split(" expires ").next().unwrap_or(line).trim().to_string();
            lines.extend(text.lines().map(|line| format!("{what}: {}", steady(line))));
        }
        Ok(Self { lines })
    }

    /// Fails by naming what is there now and was not, or was and is not.
    pub fn compare(&self, now: &Self) -> Result<()> {
        match self.lines.symmetric_difference(&now.lines).next() {
            None => Ok(()),
            Some(line) if now.lines.contains(line) => unmet(format!("left behind: {line}")),
            Some(line) => unmet(format!("missing: {line}")),
        }
    }
}

impl Lab {
    /// Everything but the pods' wiring: cables, router, both daemons ready.
    pub fn start() -> Result<Self> {
        let dir = Path::new(WORK).to_path_buf();
        let objects = Objects::create(&dir.join("objects"))?;
        let router = namespace("router")?;
        forward(&router)?;
        let vm = Vm { netns: namespace("vm")?, v4: Ipv4Addr::new(172, 30, 9, 2), v6: v6(9, 2) };
        cable(&router, "v", 9, &vm.netns)?;
        let mut nodes = Vec::new();
        for n in 1..=2u8 {
            let netns = namespace(&format!("node{n}"))?;
            cable(&router, &format!("n{n}"), n, &netns)?;
            // As a cluster's installer demands it of a node.
            forward(&netns)?;
            nodes.push(Node::create(netns, Ipv4Addr::new(172, 30, n, 2), v6(n, 2), &dir)?);
        }
        let bird = Bird::start(&router, &dir.join("router"), ROUTER)?;
        for node in &mut nodes {
            node.start_daemon()?;
        }
        let baselines = nodes.iter().map(Baseline::of).collect::<Result<_>>()?;
        let pods = PODS
            .iter()
            .map(|(node, namespace, name)| Pod::create(*node, namespace, name))
            .collect::<Result<_>>()?;
        Ok(Self { pods, nodes, baselines, bird, router, vm, objects, dir })
    }

    pub fn pod(&self, reference: &str) -> Result<&Pod> {
        match self.pods.iter().find(|p| p.reference() == reference) {
            Some(pod) => Ok(pod),
            None => unmet(format!("the lab has no pod {reference}")),
        }
    }

    pub fn node_of(&self, pod: &Pod) -> &Node {
        &self.nodes[pod.node]
    }

    /// Everybody who can call and be called: pods, the virtual machine, both nodes.
    pub fn sites(&self) -> Vec<Site<'_>> {
        let pods =
            self.pods.iter().map(|p| Site { name: p.netns.name(), netns: &p.netns, v4: p.v4, v6: p.v6 });
        let vm = Site { name: "vm", netns: &self.vm.netns, v4: self.vm.v4, v6: self.vm.v6 };
        let nodes = self.nodes.iter().map(|n| Site { name: &n.name, netns: &n.netns, v4: n.v4, v6: n.v6 });
        pods.chain([vm]).chain(nodes).collect()
    }

    /// What the daemons logged last, for a reader who must find out why a step failed.
    pub fn logs(&self, lines: usize) -> String {
        self.nodes
            .iter()
            .map(|n| format!("-- {}\n{}\n", n.log().display(), n.log_tail(lines)))
            .chain(fs::read_to_string(self.dir.join("router/bird.log")).map(|log| {
                let all: Vec<&str> = log.lines().collect();
                format!("-- router\n{}\n", all[all.len().saturating_sub(lines)..].join("\n"))
            }))
            .collect()
    }
}

fn v6(net: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, u16::from(net), 0, 0, 0, 0, host)
}

/// A machine: IPv6 without duplicate address detection, so that addresses serve at once.
pub(crate) fn namespace(name: &str) -> Result<Netns> {
    let netns = Netns::create(name)?;
    for scope in ["default", "all"] {
        netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
    }
    Ok(netns)
}

pub(crate) fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Network `net` between the router's interface `name` and the uplink of `machine`, which sends everything that way.
pub(crate) fn cable(router: &Netns, name: &str, net: u8, machine: &Netns) -> Result<()> {
    let [r4, r6] = [format!("172.30.{net}.1/24"), format!("fd00:30:{net}::1/64")];
    let [m4, m6] = [format!("172.30.{net}.2/24"), format!("fd00:30:{net}::2/64")];
    veth(
        End { netns: router, name, addresses: &[&r4, &r6] },
        End { netns: machine, name: UPLINK, addresses: &[&m4, &m6] },
    )?;
    machine.ip(&format!("route add default via 172.30.{net}.1"))?;
    machine.ip(&format!("route add default via fd00:30:{net}::1"))
}
