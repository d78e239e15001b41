//! GoBGP: a daemon that keeps its table to itself, asked by `gobgp`.

use super::daemon::{Daemon, ask};
use super::leaf::NextHops;
use super::site::{ROUTER, ROUTER_AS, ROUTER6};
use super::{Router, Seen, Setup, THEIRS, THEIRS6, Watched};
use crate::{Context, Error, Netns, Result};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

pub struct Gobgp {
    netns: Arc<Netns>,
    node: &'static str,
    daemon: Daemon,
}

const API: &str = "127.0.0.1:50051";

impl Gobgp {
    pub fn start(netns: &Arc<Netns>, dir: &Path, setup: &Setup) -> Result<Self> {
        let log = if setup.speaker_alone { "warn" } else { "debug" };
        let gobgp = Self::boot(netns, dir, &configuration(setup), setup.node, log)?;
        gobgp.originate(THEIRS, ROUTER, &[])?;
        gobgp.originate(THEIRS6, ROUTER6, &[])?;
        if setup.add_path {
            gobgp.originate(THEIRS, ROUTER, &["identifier", "7"])?;
        }
        Ok(gobgp)
    }

    /// With a configuration of its own, and no routes.
    pub fn boot(
        netns: &Arc<Netns>,
        dir: &Path,
        configuration: &str,
        node: &'static str,
        log: &str,
    ) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        let conf = dir.join("gobgpd.yaml");
        fs::write(&conf, configuration)?;
        let conf = conf.display().to_string();
        let command =
            ["/usr/bin/gobgpd", "-t", "yaml", "-f", &conf, "--api-hosts", API, "--pprof-disable", "-l", log];
        let ready = || gobgp(netns, &["neighbor"]).map(drop);
        let daemon = Daemon::start(netns, dir, "gobgpd", &command, ready)?;
        Ok(Gobgp { netns: netns.clone(), node, daemon })
    }

    pub fn established_with(&self, node: &str) -> Result<bool> {
        let neighbours = json(&self.netns, &["neighbor"])?;
        let node =
            neighbours.as_array().into_iter().flatten().find(|n| n["state"]["neighbor_address"] == node);
        // SESSION_STATE of its API.
        Ok(node.is_some_and(|node| node["state"]["session_state"] == 6))
    }

    /// Of all of its ways to `prefix`, whenever it is asked.
    pub fn next_hops(&self, prefix: &'static str) -> NextHops {
        let netns = self.netns.clone();
        Box::new(move || {
            let table = json(&netns, &["global", "rib", "-a", family(prefix)])?;
            let paths = table[prefix].as_array().cloned().unwrap_or_default();
            Ok(paths.iter().map(|path| parse(path).next_hop).collect())
        })
    }

    fn originate(&self, prefix: &str, next_hop: &str, more: &[&str]) -> Result<()> {
        let [community, large, target] =
            [format!("{ROUTER_AS}:7"), format!("{ROUTER_AS}:1:2"), format!("{ROUTER_AS}:9")];
        let route = ["global", "rib", "add", "-a", family(prefix), prefix];
        let tags = [
            "nexthop",
            next_hop,
            "community",
            &community,
            "large-community",
            &large,
            "rt",
            &target,
            "med",
            "30",
        ];
        gobgp(&self.netns, &[&route[..], more, &tags].concat()).map(drop)
    }
}

fn json(netns: &Netns, arguments: &[&str]) -> Result<Value> {
    let text = gobgp(netns, &[arguments, &["-j"]].concat())?;
    serde_json::from_str(&text).map_err(|source| Error::Json { what: "what gobgp says".into(), source })
}

fn gobgp(netns: &Netns, arguments: &[&str]) -> Result<String> {
    ask(netns, "/usr/bin/gobgp", arguments)
}

fn configuration(setup: &Setup) -> String {
    let Setup { router_as, node_as, router, node, hold_time, restart_time, .. } = setup;
    let keepalive = hold_time / 3;
    let option = |on: bool, text: String| if on { text } else { String::new() };
    let password = setup.password.map(|p| format!(", auth-password: {p}")).unwrap_or_default();
    let long_lived = setup
        .long_lived
        .map(|time| {
            format!("\n    long-lived-graceful-restart: {{config: {{enabled: true, restart-time: {time}}}}}")
        })
        .unwrap_or_default();
    let helper = option(setup.long_lived.is_some(), ", long-lived-enabled: true".into());
    let family = |name: &str| {
        format!(
            "  - config: {{afi-safi-name: {name}}}\n    mp-graceful-restart: {{config: {{enabled: true}}}}{long_lived}\n{}",
            option(setup.add_path, "    add-paths: {config: {send-max: 4}}\n".into())
        )
    };
    let session = format!(
        "  timers: {{config: {{hold-time: {hold_time}, keepalive-interval: {keepalive}, connect-retry: 2, \
         idle-hold-time-after-reset: 2}}}}\n  transport: {{config: {{passive-mode: {}, local-address: {router}}}}}\n{}{}  \
         graceful-restart: {{config: {{enabled: true, restart-time: {restart_time}, notification-enabled: true{helper}}}}}\n  \
         afi-safis:\n{}{}",
        setup.passive,
        option(setup.multihop, "  ebgp-multihop: {config: {enabled: true, multihop-ttl: 2}}\n".into())
            + &option(setup.security, "  ttl-security: {config: {enabled: true, ttl-min: 255}}\n".into()),
        option(
            setup.reflector,
            format!(
                "  route-reflector: {{config: {{route-reflector-client: true, route-reflector-cluster-id: {ROUTER}}}}}\n"
            )
        ),
        family("ipv4-unicast"),
        family("ipv6-unicast"),
    );
    let global = format!("global:\n  config: {{as: {router_as}, router-id: {ROUTER}}}\n");
    match setup.range {
        Some(range) => format!(
            "{global}peer-groups:\n- config: {{peer-group-name: nodes, peer-as: {node_as}{password}}}\n{session}\
             dynamic-neighbors:\n- config: {{prefix: {range}, peer-group: nodes}}\n"
        ),
        None => format!(
            "{global}neighbors:\n- config: {{neighbor-address: \"{node}\", peer-as: {node_as}{password}}}\n{session}"
        ),
    }
}

fn family(prefix: &str) -> &'static str {
    if prefix.contains(':') { "ipv6" } else { "ipv4" }
}

impl Router for Gobgp {
    fn established(&self) -> Result<bool> {
        self.established_with(self.node)
    }

    fn session(&self) -> Result<String> {
        gobgp(&self.netns, &["neighbor", self.node])
    }

    fn seen(&self, prefix: &str) -> Result<Option<Seen>> {
        let table = json(&self.netns, &["global", "rib", "-a", family(prefix)])?;
        Ok(table[prefix].as_array().and_then(|paths| paths.first()).map(parse))
    }

    fn watched(&self) -> Result<Option<Watched>> {
        Ok(None)
    }

    fn reset(&self) -> Result<()> {
        gobgp(&self.netns, &["neighbor", self.node, "reset"]).map(drop)
    }

    fn refresh(&self) -> Result<()> {
        gobgp(&self.netns, &["neighbor", self.node, "softresetin"]).map(drop)
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    fn log(&self) -> Result<String> {
        self.daemon.log()
    }
}

/// Attributes by their numbers.
fn parse(path: &Value) -> Seen {
    let attributes = path["attrs"].as_array().cloned().unwrap_or_default();
    let of = |kind: u64| attributes.iter().find(|a| a["type"] == kind).cloned().unwrap_or_default();
    let numbers = |value: &Value| -> Vec<u32> {
        let numbers = value.as_array().into_iter().flatten();
        numbers.filter_map(|n| n.as_u64().and_then(|n| n.try_into().ok())).collect()
    };
    let as_path = of(2)["as_paths"].as_array().cloned().unwrap_or_default();
    let pair = |n: u32| format!("{}:{}", n >> 16, n & 0xffff);
    let large = |c: &Value| format!("{}:{}:{}", c["ASN"], c["LocalData1"], c["LocalData2"]);
    let target = |c: &Value| (c["subtype"] == 2).then(|| c["value"].as_str().map(str::to_owned)).flatten();
    let number = |value: Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let hop = of(3)["nexthop"].as_str().or(of(14)["nexthop"].as_str()).unwrap_or_default().to_owned();
    Seen {
        next_hop: hop,
        as_path: as_path.iter().flat_map(|segment| numbers(&segment["asns"])).collect(),
        communities: numbers(&of(8)["communities"]).into_iter().map(pair).collect(),
        large: of(32)["value"].as_array().into_iter().flatten().map(large).collect(),
        targets: of(16)["value"].as_array().into_iter().flatten().filter_map(target).collect::<BTreeSet<_>>(),
        med: number(of(4)["metric"].clone()),
        local_pref: number(of(5)["value"].clone()),
        stale: path["stale"] == true,
    }
}
