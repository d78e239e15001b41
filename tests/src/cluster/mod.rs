//! A whole cluster: control plane, two machines with kubelet, containerd and kube-proxy, and the lab's router between them.
//!
//! ```text
//!        control 172.30.8.2: etcd, API server, controllers, scheduler
//!             │
//!          router (BIRD, AS 65000)
//!             │              │
//!   172.30.1.2 node1        node2 172.30.2.2
//! ```
//! No network plugin is there until [`Cluster::install`] applies `deploy/bulkhead.yaml`, as a user would.

pub mod cgroups;
pub mod door;
pub mod flannel;
mod images;
mod machine;
mod release;

pub use images::BUSYBOX;
pub use machine::{K3S, Layout, Machine};
pub use release::Release;

use crate::{
    Bird, Error, Netns, Result,
    enter::WORK,
    kubernetes::{ControlPlane, Controllers},
    lab::{ROUTER, cable, forward, namespace},
    unmet, until,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

const CONTROL: Ipv4Addr = Ipv4Addr::new(172, 30, 8, 2);
/// Of kube-proxy: each node has another.
const PROXY_MODES: [&str; 2] = ["nftables", "iptables"];
const BGP: &str = include_str!("../../lab/objects/bgp.yaml");
/// Of the service of cluster DNS, where that is installed.
pub const DNS: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
const COREDNS: &str = include_str!("../../kubernetes/coredns/cluster.yaml");
const NODE_CACHE: &str = include_str!("../../kubernetes/coredns/node.yaml");
/// Of a node's own cache of it.
pub const NODE_DNS: &str = "169.254.20.10";
/// For what kubelets, controllers and daemons do by themselves, on a busy machine.
pub const SOON: Duration = Duration::from_secs(90);

/// Fields in the order in which they must go.
pub struct Cluster {
    _managers: [Controllers; 2],
    pub machines: Vec<Machine>,
    pub control: ControlPlane,
    pub bird: Bird,
    pub router: Netns,
}

impl Cluster {
    /// Everything but a network plugin: both nodes are registered, and not ready.
    pub fn start() -> Result<Self> {
        let dir = Path::new(WORK).to_path_buf();
        let router = namespace("router")?;
        forward(&router)?;
        let control = namespace("control")?;
        cable(&router, "c", 8, &control)?;
        let mut machines = Vec::new();
        for (n, proxy_mode) in (1u8..).zip(PROXY_MODES) {
            let netns = namespace(&format!("node{n}"))?;
            cable(&router, &format!("n{n}"), n, &netns)?;
            forward(&netns)?;
            let v6 = Ipv6Addr::new(0xfd00, 0x30, n.into(), 0, 0, 0, 0, 2);
            machines.push(Machine::create(netns, Ipv4Addr::new(172, 30, n, 2), v6, proxy_mode)?);
        }
        let bird = Bird::start(&router, &dir.join("router"), ROUTER)?;
        let control = ControlPlane::start_for_kubelets(control, CONTROL.into(), &dir.join("control"))?;
        let managers = control.start_managers()?;
        let (group, images) = (cgroups::own()?, images::all(&dir, &Release::previous())?);
        for machine in &mut machines {
            let group = format!("{group}/{}", machine.name);
            cgroups::create(&group)?;
            machine.start(&control, BUSYBOX, &images, &group)?;
        }
        let cluster = Self { _managers: managers, machines, control, bird, router };
        let registered = until("both nodes are registered", SOON, || {
            let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?;
            if nodes.lines().count() == 2 { Ok(Some(())) } else { unmet(nodes) }
        });
        cluster.or_logs(registered)?;
        Ok(cluster)
    }

    /// Both nodes become those of a distribution with this layout. Pods must be gone.
    pub fn relocate(&mut self, layout: Layout) -> Result<()> {
        let images = images::all(Path::new(WORK), &Release::previous())?;
        for machine in &mut self.machines {
            machine.relocate(layout, &self.control, BUSYBOX, &images)?;
        }
        Ok(())
    }

    /// What a user does, to install and to upgrade.
    pub fn apply(&self) -> Result<()> {
        let file = deploy().join("bulkhead.yaml");
        self.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]).map(drop)
    }

    /// What a user does, and the objects that say whom the nodes peer with.
    pub fn install(&self) -> Result<()> {
        self.apply()?;
        self.peer()
    }

    /// As [`Self::install`], of the release that this one takes the place of.
    pub fn install_previous(&self) -> Result<()> {
        let file = self.control.write("previous.yaml", &Release::previous().manifest()?)?;
        self.kubectl(&["apply", "--server-side", "-f", &file])?;
        self.peer()
    }

    /// Says whom the nodes peer with, and waits until they are ready.
    pub fn peer(&self) -> Result<()> {
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        self.control.apply(BGP)?;
        let ready =
            self.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=90s"]).map(drop);
        self.or_logs(ready)
    }

    /// Cluster DNS, two servers of it.
    pub fn install_dns(&self) -> Result<()> {
        self.control.apply(COREDNS)?;
        self.rolled_out("kube-system", "deploy/coredns")
    }

    /// A cache of it on each node, at [`NODE_DNS`].
    pub fn install_node_dns(&self) -> Result<()> {
        self.control.apply(NODE_CACHE)?;
        self.rolled_out("kube-system", "ds/node-local-dns")
    }

    /// The end of both.
    pub fn remove_dns(&self) -> Result<()> {
        for manifest in [NODE_CACHE, COREDNS] {
            let file = self.control.write("dns.yaml", manifest)?;
            self.kubectl(&["delete", "-f", &file, "--cascade=foreground", "--timeout=60s"])?;
        }
        for machine in &self.machines {
            machine.run("ip", &["link", "delete", "nodelocaldns"])?;
        }
        Ok(())
    }

    /// Waits until all pods of this are new and ready.
    pub fn rolled_out(&self, namespace: &str, of: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", "-n", namespace, of, "--timeout=120s"]).map(drop)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.control.kubectl(arguments)
    }

    /// What this prints in a pod, given as in `-n web deploy/front`.
    pub fn exec(&self, pod: &[&str], command: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec"], pod, &["--"], command].concat())
    }

    /// The same, and on failure what everybody logged.
    pub fn or_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| Error::Unmet(format!("{e}\n{}", self.logs(25))))
    }

    pub fn logs(&self, lines: usize) -> String {
        let pods = self.kubectl(&["get", "pods,nodes", "-A", "-o", "wide"]).unwrap_or_else(|e| e.to_string());
        let events = self
            .kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"])
            .map(|text| text.lines().rev().take(lines).map(|l| format!("{l}\n")).collect::<String>())
            .unwrap_or_else(|e| e.to_string());
        let daemons = self
            .kubectl(&["logs", "-n", "bulkhead", "--prefix", "--tail=25", "-l", "app=bulkheadd"])
            .unwrap_or_else(|e| e.to_string());
        let machines: String = self.machines.iter().map(|m| m.logs(lines)).collect();
        format!("{pods}\n{events}\n-- bulkheadd\n{daemons}\n{machines}")
    }
}

/// Where the manifests are.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}
