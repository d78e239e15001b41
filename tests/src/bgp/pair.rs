//! Two nodes with whole daemons at one router, and a fixed address that a pod has on one of them, then on the other.
//!
//! ```text
//!   node1 172.31.1.2 ──── 172.31.1.1 router 172.31.2.1 ──── 172.31.2.2 node2
//!   AS 65010                      BIRD, AS 65020                      AS 65010
//! ```
//! BIRD writes every change of its table to its log: who has had a way to the address is read there, and nothing is missed.

use super::site::{DEADLINE, NODE_AS, ROUTER_AS};
use crate::{
    Bird, Error, Netns, Node, Pod, Result,
    link::{End, run},
    node::UPLINK,
    until, veth,
};
use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

pub const ADDRESS: &str = "10.65.15.7/32";
/// For which the router keeps what a node announced that does not come back.
pub const RESTART_TIME: u16 = 8;

/// Each test has its own.
pub struct Pair {
    pub nodes: [Node; 2],
    /// The same pod, before it moves and after.
    pub pods: [Pod; 2],
    pub bird: Bird,
    pub router: Netns,
    dir: PathBuf,
    short: String,
}

impl Pair {
    pub fn create(short: &str) -> Result<Self> {
        let machine = |kind: &str| {
            let netns = Netns::create(&format!("{kind}-{short}"))?;
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            Ok::<_, Error>(netns)
        };
        let dir = Path::new("/run/lab").join(short);
        for folder in ["objects", "blocks"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let router = machine("router")?;
        let node = |n: u8| {
            let (netns, of_node) = (machine(&format!("node{n}"))?, dir.join(format!("of{n}")));
            let [near, far] = [2, 1].map(|host| format!("172.31.{n}.{host}/24"));
            let downlink = format!("n{n}");
            veth(
                End { netns: &netns, name: UPLINK, addresses: &[&near] },
                End { netns: &router, name: &downlink, addresses: &[&far] },
            )?;
            fs::create_dir_all(&of_node)?;
            for folder in ["objects", "blocks"] {
                symlink(dir.join(folder), of_node.join(folder))?;
            }
            Node::create(netns, Ipv4Addr::new(172, 31, n, 2), Ipv6Addr::UNSPECIFIED, &of_node)
        };
        let nodes = [node(1)?, node(2)?];
        fs::write(dir.join("objects/all.yaml"), objects(short, &nodes, "", ""))?;
        let bird = Bird::start(&router, &dir.join("router"), &configuration())?;
        let pods = [0, 1]
            .map(|node| Pod::create_as(node, short, "db-0", &format!("db-0-{node}")))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let pods = pods.try_into().map_err(|_| Error::Unmet("two pods".into()))?;
        let mut pair = Self { nodes, pods, bird, router, dir, short: short.to_owned() };
        for node in &mut pair.nodes {
            node.start_daemon()?;
        }
        pair.bird.wait_established(&["node1", "node2"], DEADLINE)?;
        Ok(pair)
    }

    /// Fields of the BGPConfiguration's `spec`, and of the partition's `bgp`.
    pub fn configure(&self, bgp: &str, partition: &str) -> Result<()> {
        self.write("all.yaml", &objects(&self.short, &self.nodes, bgp, partition))
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
        Ok(fs::remove_file(self.dir.join("blocks/10-65-15-7-32.yaml"))?)
    }

    /// This node's way to the claims goes, or comes back.
    pub fn claims_reachable(&self, node: usize, reachable: bool) -> Result<()> {
        let at = self.dir.join(format!("of{}/blocks", node + 1));
        if reachable {
            return Ok(symlink(self.dir.join("blocks"), at)?);
        }
        Ok(fs::remove_file(at)?)
    }

    /// Everything between this node and the router is dropped, both ways, and the carrier stays.
    pub fn cut(&self, node: usize) -> Result<()> {
        let rules = "table inet cut { chain in { type filter hook input priority 0; policy drop; }; \
                     chain out { type filter hook output priority 0; policy drop; }; }";
        run(self.nodes[node].netns.command("nft").arg(rules)).map(drop)
    }

    pub fn mend(&self, node: usize) -> Result<()> {
        run(self.nodes[node].netns.command("nft").arg("delete table inet cut")).map(drop)
    }

    /// Who has a way to the address in the router's table now: of `node1`, `node2`.
    pub fn owners(&self) -> Result<BTreeSet<String>> {
        Ok(self.history()?.pop().unwrap_or_default())
    }

    pub fn wait_owners(&self, what: &str, wanted: &[&str]) -> Result<()> {
        until(&format!("{what}: {wanted:?} has a way to the address"), DEADLINE, || {
            let owners = self.owners()?;
            if owners.iter().eq(wanted) { Ok(Some(())) } else { Err(Error::Unmet(format!("{owners:?}"))) }
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

    /// Who has had a way to the address, after each change.
    pub fn history(&self) -> Result<Vec<BTreeSet<String>>> {
        Ok(owners(&self.router_log()?))
    }

    pub fn logs(&self) -> String {
        let of_node = |node: &Node| format!("-- {}\n{}\n", node.name, node.log_tail(30));
        let history = self.history().map(|history| format!("{history:?}")).unwrap_or_default();
        self.nodes.iter().map(of_node).collect::<String>() + &history + " in " + &self.short
    }
}

/// `node1.ipv4 > added [best] 10.65.15.7/32 0L 10G unicast`
fn owners(log: &str) -> Vec<BTreeSet<String>> {
    let mut history = Vec::new();
    let mut now = BTreeSet::new();
    for line in log.lines().filter(|line| line.contains(&format!(" {ADDRESS} "))) {
        let Some((channel, change)) = line.split_once(" > ") else { continue };
        let node = channel.split_whitespace().last().and_then(|channel| channel.split('.').next());
        let Some(node) = node else { continue };
        if change.starts_with("removed") {
            now.remove(node);
        } else if change.starts_with("added") {
            now.insert(node.to_owned());
        }
        history.push(now.clone());
    }
    history
}

fn objects(namespace: &str, nodes: &[Node; 2], bgp: &str, of_partition: &str) -> String {
    let peer = |n: usize| {
        format!(
            "---\napiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf{n}}}\n\
             spec: {{node: {}, peerAddress: 172.31.{n}.1, peerASN: {ROUTER_AS}, connectRetrySeconds: 1, families: [IPv4]}}\n",
            nodes[n - 1].name
        )
    };
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {NODE_AS}, restartTimeSeconds: {RESTART_TIME}, {bgp}}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: vault}}\n\
         spec: {{policyID: 31, namespaces: [{namespace}], podCIDRs: [10.65.0.0/16], fixedCIDRs: [10.65.15.0/28], bgp: {{{of_partition}}}}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {{name: db, namespace: {namespace}}}\n\
         spec: {{pod: db-0, addresses: [10.65.15.7]}}\n{}{}",
        peer(1),
        peer(2)
    )
}

fn configuration() -> String {
    let session = |n: u8| {
        format!(
            "protocol bgp node{n} {{ local 172.31.{n}.1 as {ROUTER_AS}; neighbor 172.31.{n}.2 as {NODE_AS};\n\
             hold time 6; graceful restart on; connect delay time 1; connect retry time 1; error wait time 1, 1;\n\
             debug {{ routes }}; ipv4 {{ import all; export all; }}; }}\n"
        )
    };
    format!(
        "log stderr all;\nrouter id 172.31.1.1;\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n{}{}",
        session(1),
        session(2)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_from_the_routers_log() {
        let log = "2026-11-29 <TRACE> node1.ipv4 > added [best] 10.65.15.7/32 0L 10G unicast\n\
                   2026-11-29 <TRACE> node1.ipv4 > added [best] 10.65.0.0/26 0L 10G unicast\n\
                   2026-11-29 <TRACE> node2.ipv4 < added 10.65.15.7/32 0L 10G unicast\n\
                   2026-11-29 <TRACE> node2.ipv4 > added 10.65.15.7/32 0L 11G unicast\n\
                   2026-11-29 <TRACE> node1.ipv4 > removed [replaced] 10.65.15.7/32 0L 10G unicast\n";
        let told: Vec<usize> = owners(log).iter().map(BTreeSet::len).collect();
        assert_eq!(told, [1, 2, 1]);
        assert_eq!(owners(log).pop(), Some(BTreeSet::from(["node2".to_owned()])));
    }
}
