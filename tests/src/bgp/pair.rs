//! Two nodes with whole daemons in one rack, their router or two, and a fixed address that a pod has on one of the nodes, then on the
//! other.
//!
//! ```text
//!   node1 172.31.9.2 ──┐                      ┌── 172.31.9.1 leaf
//!                      ├── a bridge, in leaf ─┤                     AS 65020
//!   node2 172.31.9.3 ──┘                      └── 172.31.9.4 second
//!   AS 65010
//! ```

use super::{
    leaf::{Leaf, NODES, Owners, together},
    site::{DEADLINE, NODE_AS, ROUTER, ROUTER_AS},
    slow_claim::SlowClaim,
};
use crate::{
    Bird, Error, Netns, Node, Pod, Result,
    link::{End, run},
    node::UPLINK,
    until, veth,
};
use std::{
    collections::BTreeSet,
    fmt, fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

pub const ADDRESS: &str = "10.65.15.7/32";
const CLAIM: &str = "10-65-15-7-32.yaml";
/// For which the router keeps what a node announced that does not come back.
pub const RESTART_TIME: u16 = 8;
const SECOND: &str = "172.31.9.4";

/// Whom the nodes peer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routers {
    Bird,
    /// Which know nothing of each other.
    TwoBirds,
    /// The same, out of one listening range of the nodes.
    Range,
    /// A BIRD that tells the nodes nothing.
    Deaf,
    /// The guide's own configurations, with one line for the other node.
    GuideBird,
    GuideFrr,
    /// Reflects, in the nodes' AS: between sessions of two AS it tells none of them what the other announced, or, with
    /// `replace-peer-as`, never takes it back.
    Gobgp,
}

impl Routers {
    fn are_two(self) -> bool {
        matches!(self, Routers::TwoBirds | Routers::Range)
    }
}

impl fmt::Display for Routers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Routers::Bird => "BIRD",
            Routers::TwoBirds => "two BIRDs",
            Routers::Range => "two BIRDs of a range",
            Routers::Deaf => "a silent BIRD",
            Routers::GuideBird => "the guide's BIRD",
            Routers::GuideFrr => "the guide's FRR",
            Routers::Gobgp => "GoBGP, a reflector",
        })
    }
}

/// Each test has its own.
pub struct Pair {
    pub nodes: [Node; 2],
    /// The same pod, before it moves and after.
    pub pods: [Pod; 2],
    leaves: Vec<Leaf>,
    /// Theirs; the first has the bridge as well.
    _routers: Vec<Arc<Netns>>,
    dir: PathBuf,
    short: String,
    kind: Routers,
}

impl Pair {
    pub fn create(short: &str) -> Result<Self> {
        Self::create_at(short, Routers::Bird)
    }

    pub fn create_at(short: &str, routers: Routers) -> Result<Self> {
        let dir = Path::new("/run/lab").join(short);
        for folder in ["objects", "blocks"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let router = machine(&format!("router-{short}"))?;
        router.ip("link add rack type bridge")?;
        for address in [format!("{ROUTER}/24"), "fd00:31:9::1/64".to_owned()] {
            router.ip(&format!("address add {address} dev rack"))?;
        }
        router.ip("link set rack up")?;
        let plug = |netns: &Netns, name: &str, port: &str, address: &str| {
            veth(
                End { netns, name, addresses: &[&format!("{address}/24")] },
                End { netns: &router, name: port, addresses: &[] },
            )?;
            router.ip(&format!("link set {port} master rack"))
        };
        let node = |n: usize| {
            let (netns, of_node) =
                (machine(&format!("{}-{short}", NODES[n].0))?, dir.join(format!("of{}", n + 1)));
            plug(&netns, UPLINK, NODES[n].0, NODES[n].1)?;
            fs::create_dir_all(&of_node)?;
            for folder in ["objects", "blocks"] {
                symlink(dir.join(folder), of_node.join(folder))?;
            }
            let address = if n == 0 { Ipv4Addr::new(172, 31, 9, 2) } else { Ipv4Addr::new(172, 31, 9, 3) };
            Node::create(netns, address, Ipv6Addr::UNSPECIFIED, &of_node)
        };
        let nodes = [node(0)?, node(1)?];
        fs::write(dir.join("objects/all.yaml"), objects(short, routers, "", ""))?;
        let mut netns = vec![Arc::new(router)];
        if routers.are_two() {
            let other = machine(&format!("second-{short}"))?;
            veth(
                End { netns: &other, name: "downlink", addresses: &[&format!("{SECOND}/24")] },
                End { netns: &netns[0], name: "second", addresses: &[] },
            )?;
            netns[0].ip("link set second master rack")?;
            netns.push(Arc::new(other));
        }
        let at = |n: usize| dir.join(["router", "router2"][n]);
        let first = match routers {
            Routers::Bird | Routers::TwoBirds | Routers::Range => {
                Leaf::bird(&netns[0], &at(0), &bird(ROUTER))
            }
            Routers::Deaf => {
                Leaf::bird(&netns[0], &at(0), &bird(ROUTER).replace("export all", "export none"))
            }
            Routers::GuideBird => Leaf::bird(&netns[0], &at(0), &guide_bird()),
            Routers::GuideFrr => Leaf::frr(&netns[0], &at(0), &guide_frr(), ADDRESS),
            Routers::Gobgp => Leaf::gobgp(&netns[0], &at(0), &gobgp(), ADDRESS),
        };
        let mut leaves = vec![first?];
        if let Some(netns) = netns.get(1) {
            leaves.push(Leaf::bird(netns, &at(1), &bird(SECOND))?);
        }
        let pods = [0, 1]
            .map(|node| Pod::create_as(node, short, "db-0", &format!("db-0-{node}")))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let pods = pods.try_into().map_err(|_| Error::Unmet("two pods".into()))?;
        let mut pair =
            Self { nodes, pods, leaves, _routers: netns, dir, short: short.to_owned(), kind: routers };
        for node in &mut pair.nodes {
            node.start_daemon()?;
        }
        for leaf in &pair.leaves {
            [0, 1].iter().try_for_each(|node| leaf.wait_established(*node))?;
        }
        Ok(pair)
    }

    pub fn leaf(&self) -> &Leaf {
        &self.leaves[0]
    }

    pub fn established(&self, node: usize, router: usize) -> Result<bool> {
        self.leaves[router].established(node)
    }

    /// Where it is one.
    pub fn bird(&self) -> Result<&Bird> {
        match self.leaf() {
            Leaf::Bird { bird, .. } => Ok(bird),
            _ => Err(Error::Unmet("the router is no BIRD".into())),
        }
    }

    /// Fields of the BGPConfiguration's `spec`, and of the partition's `bgp`.
    pub fn configure(&self, bgp: &str, partition: &str) -> Result<()> {
        self.write("all.yaml", &objects(&self.short, self.kind, bgp, partition))
    }

    /// A file of objects that both nodes read, whole at once.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let at = |name: &str| self.dir.join("objects").join(name);
        let new = at(&format!(".{name}.new"));
        fs::write(&new, text)?;
        Ok(fs::rename(new, at(name))?)
    }

    pub fn router_log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("router/bird.log"))?)
    }

    pub fn add(&mut self, node: usize) -> Result<()> {
        self.pods[node].add(&self.nodes[node]).map(drop)
    }

    pub fn del(&self, node: usize) -> Result<()> {
        self.pods[node].del(&self.nodes[node])
    }

    /// The claim goes, as with the node's `Node` object.
    pub fn forget_claim(&self) -> Result<()> {
        Ok(fs::remove_file(self.dir.join("blocks").join(CLAIM))?)
    }

    fn claims_of(&self, node: usize) -> PathBuf {
        self.dir.join(format!("of{}/blocks", node + 1))
    }

    /// This node's way to the claims goes, or comes back.
    pub fn claims_reachable(&self, node: usize, reachable: bool) -> Result<()> {
        let at = self.claims_of(node);
        if reachable {
            if at.is_dir() {
                fs::remove_dir_all(&at)?;
            }
            return Ok(symlink(self.dir.join("blocks"), at)?);
        }
        Ok(fs::remove_file(at)?)
    }

    /// This node's way to the claims is such that nothing comes back for a while.
    pub fn claims_slow(&self, node: usize) -> Result<SlowClaim> {
        self.claims_reachable(node, false)?;
        SlowClaim::create(&self.claims_of(node), CLAIM)
    }

    /// Everything that this node sends and is sent is dropped, and the carrier stays.
    pub fn cut(&self, node: usize) -> Result<()> {
        self.nft(node, &drops("drop", "", ""))
    }

    /// Only between it and the first router, or the second.
    pub fn cut_from(&self, node: usize, router: usize) -> Result<()> {
        self.nft(node, &drops_between(router))
    }

    pub fn mend(&self, node: usize) -> Result<()> {
        self.nft(node, "delete table inet cut")
    }

    /// All but what is between it and this router.
    pub fn mend_but(&self, node: usize, router: usize) -> Result<()> {
        self.nft(node, &format!("delete table inet cut; {}", drops_between(router)))
    }

    fn nft(&self, node: usize, change: &str) -> Result<()> {
        run(self.nodes[node].netns.command("nft").arg(change)).map(drop)
    }

    /// Who has a way to the address in each router's table now: of `node1`, `node2`.
    pub fn owners(&self) -> Result<Vec<BTreeSet<String>>> {
        let last = |mut history: Vec<Owners>| history.pop().map(|(_, owners)| owners).unwrap_or_default();
        Ok(self.tables()?.into_iter().map(last).collect())
    }

    fn tables(&self) -> Result<Vec<Vec<Owners>>> {
        self.leaves.iter().map(|leaf| leaf.history(ADDRESS)).collect()
    }

    /// In all tables.
    pub fn wait_owners(&self, what: &str, wanted: &[&str]) -> Result<()> {
        self.wait_tables(what, &vec![wanted; self.leaves.len()])
    }

    pub fn wait_tables(&self, what: &str, wanted: &[&[&str]]) -> Result<()> {
        until(&format!("{what}: {wanted:?} have a way to the address"), DEADLINE, || {
            let owners = self.owners()?;
            let same = owners.iter().zip(wanted).all(|(owners, wanted)| owners.iter().eq(wanted.iter()));
            if same { Ok(Some(())) } else { Err(Error::Unmet(format!("{owners:?}"))) }
        })
    }

    /// What the node says of the address.
    pub fn why(&self, node: usize) -> Result<String> {
        self.nodes[node].cli(&["bgp", "why", ADDRESS])
    }

    pub fn wait_why(&self, node: usize, words: &str) -> Result<()> {
        until(&format!("{} says {words:?}", self.nodes[node].name), DEADLINE, || {
            let said = self.why(node)?;
            if said.contains(words) { Ok(Some(())) } else { Err(Error::Unmet(said)) }
        })
    }

    /// Who has had a way to the address in any table, after each change.
    pub fn history(&self) -> Result<Vec<BTreeSet<String>>> {
        Ok(together(self.tables()?))
    }

    pub fn logs(&self) -> String {
        let of_node = |node: &Node| {
            let why = node.cli(&["bgp", "why", ADDRESS]).unwrap_or_default();
            format!("-- {}\n{}\n{why}\n", node.name, node.log_tail(30))
        };
        let history = self.history().map(|history| format!("{history:?}")).unwrap_or_default();
        self.nodes.iter().map(of_node).collect::<String>() + &history + " in " + &self.short
    }
}

/// Addresses must serve at once, without duplicate address detection.
fn machine(name: &str) -> Result<Netns> {
    let netns = Netns::create(name)?;
    netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    Ok(netns)
}

fn drops_between(router: usize) -> String {
    let address = [ROUTER, SECOND][router];
    drops("accept", &format!("ip saddr {address} drop;"), &format!("ip daddr {address} drop;"))
}

fn drops(policy: &str, received: &str, sent: &str) -> String {
    let chain = |name: &str, rule: &str| {
        format!("chain {name} {{ type filter hook {name} priority 0; policy {policy}; {rule} }}; ")
    };
    format!("table inet cut {{ {}{}}}", chain("input", received), chain("output", sent))
}

fn objects(namespace: &str, routers: Routers, bgp: &str, of_partition: &str) -> String {
    let asn = if routers == Routers::Gobgp { NODE_AS } else { ROUTER_AS };
    let peer = |name: &str, remote: &str| {
        format!(
            "---\napiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
             spec: {{{remote}, peerASN: {asn}, connectRetrySeconds: 1, holdTimeSeconds: 6, families: [IPv4]}}\n"
        )
    };
    let at = |address: &str| format!("peerAddress: {address}");
    let peers = match routers {
        Routers::TwoBirds => peer("leaf", &at(ROUTER)) + &peer("second", &at(SECOND)),
        Routers::Range => peer("leaf", "peerRange: 172.31.9.0/29"),
        _ => peer("leaf", &at(ROUTER)),
    };
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {NODE_AS}, restartTimeSeconds: {RESTART_TIME}, {bgp}}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: vault}}\n\
         spec: {{policyID: 31, namespaces: [{namespace}], podCIDRs: [10.65.0.0/16], fixedCIDRs: [10.65.15.0/28], bgp: {{{of_partition}}}}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {{name: db, namespace: {namespace}}}\n\
         spec: {{pod: db-0, addresses: [10.65.15.7]}}\n{peers}"
    )
}

fn bird(router: &str) -> String {
    let session = |(name, address): (&str, &str)| {
        format!(
            "protocol bgp {name} {{ local {router} as {ROUTER_AS}; neighbor {address} as {NODE_AS};\n\
             hold time 6; graceful restart on; connect delay time 1; connect retry time 1; error wait time 1, 1;\n\
             ipv4 {{ import all; export all; }}; }}\n"
        )
    };
    let sessions = NODES.map(session).concat();
    format!(
        "log stderr all;\nrouter id {router};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n{sessions}"
    )
}

fn guide_bird() -> String {
    let [_, (name, address)] = NODES;
    let guide = include_str!("../../../docs/bgp/bird.conf");
    format!("{guide}\nprotocol bgp {name} from node {{ neighbor {address} as CLUSTER; }}\n")
}

fn guide_frr() -> String {
    let [(_, first), (_, other)] = NODES;
    let line = |address: &str| format!(" neighbor {address} peer-group NODES\n");
    let guide = include_str!("../../../docs/bgp/frr.conf");
    guide.replace(&line(first), &(line(first) + &line(other)))
}

fn gobgp() -> String {
    let neighbour = |(_, address): (&str, &str)| {
        format!(
            "- config: {{neighbor-address: {address}, peer-as: {NODE_AS}}}\n  \
             route-reflector: {{config: {{route-reflector-client: true, route-reflector-cluster-id: {ROUTER}}}}}\n  \
             timers: {{config: {{hold-time: 6, keepalive-interval: 2, connect-retry: 1, idle-hold-time-after-reset: 1}}}}\n  \
             transport: {{config: {{local-address: {ROUTER}}}}}\n  \
             graceful-restart: {{config: {{enabled: true, restart-time: 60, notification-enabled: true}}}}\n  \
             afi-safis:\n  - config: {{afi-safi-name: ipv4-unicast}}\n    mp-graceful-restart: {{config: {{enabled: true}}}}\n"
        )
    };
    format!(
        "global:\n  config: {{as: {NODE_AS}, router-id: {ROUTER}}}\nneighbors:\n{}",
        NODES.map(neighbour).concat()
    )
}
