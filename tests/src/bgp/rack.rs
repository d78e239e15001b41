//! A node with its whole daemon, and what watches it from the router's end of the cable.

use super::site::{DEADLINE, NODE, NODE_AS, NODE6, ROUTER, ROUTER_AS, ROUTER6};
use crate::{
    Bfd, Error, Netns, Node, Pod, Result,
    link::{End, run},
    node::UPLINK,
    until, veth,
};
use bulkhead_api::messages::BgpPeerInfo;
use libtest_mimic::{Failed, Trial};
use serde::de::DeserializeOwned;
use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Of the first pod.
pub const BLOCK: &str = "10.64.0.0/26";
pub const BLOCK6: &str = "fd00:64::/122";

/// A test in a rack of its own, whose peer's session begins as `session`; of one that fails the end of the daemon's log is told.
pub fn trial(
    name: impl Into<String>,
    session: &'static str,
    test: impl Fn(&mut Rack) -> Result<()> + Send + 'static,
) -> Trial {
    let name = name.into();
    // A namespace is known by its name.
    let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
    Trial::test(name, move || {
        let mut rack = Rack::create(&place, session)?;
        let held = test(&mut rack);
        if held.is_err() {
            eprintln!("{}", rack.node.log_tail(30));
        }
        held.map_err(Failed::from)
    })
}

/// Each test has its own.
#[derive(Debug)]
pub struct Rack {
    pub node: Node,
    pub router: Arc<Netns>,
    pub dir: PathBuf,
    /// Its blocks are what the node announces.
    pub pod: Pod,
}

impl Rack {
    /// The daemon is ready, and peers with the router under `session`, a YAML mapping in one line.
    pub fn create(title: &str, session: &str) -> Result<Self> {
        Self::create_with(title, &format!("peerAddress: {ROUTER}"), session)
    }

    /// `remote`: whom the session is with, fields of the peer's `spec`.
    pub fn create_with(title: &str, remote: &str, session: &str) -> Result<Self> {
        let short: String = title.chars().filter(char::is_ascii_alphanumeric).take(30).collect();
        let machine = |kind: &str| {
            let netns = Netns::create(&format!("{kind}-{short}"))?;
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            Ok::<_, Error>(netns)
        };
        let (node, router) = (machine("node")?, machine("router")?);
        let [n4, n6] = [format!("{NODE}/24"), format!("{NODE6}/64")];
        let [r4, r6] = [format!("{ROUTER}/24"), format!("{ROUTER6}/64")];
        veth(
            End { netns: &node, name: UPLINK, addresses: &[&n4, &n6] },
            End { netns: &router, name: "downlink", addresses: &[&r4, &r6] },
        )?;
        let dir = Path::new("/run/lab").join(&short);
        let v6 = Ipv6Addr::new(0xfd00, 0x31, 9, 0, 0, 0, 0, 2);
        let node = Node::create(node, Ipv4Addr::new(172, 31, 9, 2), v6, &dir)?;
        fs::create_dir_all(dir.join("objects"))?;
        let pod = Pod::create(0, "shop", &short)?;
        let mut rack = Self { node, router: Arc::new(router), dir, pod };
        rack.peer_with(remote, session)?;
        rack.node.start_daemon()?;
        rack.pod.add(&rack.node)?;
        Ok(rack)
    }

    /// The peer's session is to be so from now on.
    pub fn peer(&self, session: &str) -> Result<()> {
        self.peer_with(&format!("peerAddress: {ROUTER}"), session)
    }

    /// With another router, perhaps.
    pub fn peer_with(&self, remote: &str, session: &str) -> Result<()> {
        let text = format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
             spec: {{asn: {NODE_AS}}}\n---\n\
             apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf}}\n\
             spec: {{{remote}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2, session: {session}}}\n"
        );
        let [new, file] = [".bgp.yaml.new", "bgp.yaml"].map(|name| self.dir.join("objects").join(name));
        fs::write(&new, text)?;
        Ok(fs::rename(new, file)?)
    }

    /// A command with `-o json`.
    pub fn ask<T: DeserializeOwned>(&self, command: &[&str]) -> Result<T> {
        let text = self.node.cli(&[command, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|source| Error::Json { what: command.join(" "), source })
    }

    pub fn bfd(&self) -> Result<Bfd> {
        Bfd::start(&self.node.netns, self.node.dir())
    }

    pub fn leaf(&self) -> Result<BgpPeerInfo> {
        let peers: Vec<BgpPeerInfo> = self.node.get("/v1/bgp/peers")?;
        peers.into_iter().next().ok_or_else(|| Error::Unmet("no peer".into()))
    }

    /// What `bulkhead bgp peers` knows, once it is as wanted.
    pub fn wait_leaf(&self, what: &str, wanted: impl Fn(&BgpPeerInfo) -> bool) -> Result<BgpPeerInfo> {
        until(what, DEADLINE, || {
            let leaf = self.leaf()?;
            if wanted(&leaf) { Ok(Some(leaf)) } else { Err(Error::Unmet(format!("{leaf:?}"))) }
        })
    }

    /// Everything is dropped in both directions, and the carrier stays.
    pub fn cut(&self) -> Result<()> {
        let rules = "table inet cut { chain in { type filter hook input priority 0; policy drop; }; \
                     chain out { type filter hook output priority 0; policy drop; }; }";
        run(self.node.netns.command("nft").arg(rules)).map(drop)
    }

    pub fn mend(&self) -> Result<()> {
        run(self.node.netns.command("nft").arg("delete table inet cut")).map(drop)
    }
}
