//! FRR: zebra and bgpd with their files and sockets in a folder of the test's, asked by `vtysh`.

use super::daemon::{Daemon, ask_here};
use super::leaf::NextHops;
use super::site::{NODE, ROUTER, ROUTER_AS, ROUTER6};
use super::{Router, Seen, Setup, THEIRS, THEIRS6, Watched};
use crate::{Context, Error, Netns, Result};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub struct Frr {
    netns: Arc<Netns>,
    sockets: PathBuf,
    /// The neighbour, as FRR names it.
    neighbour: String,
    /// Of bgpd, beside those that all have.
    more: &'static [&'static str],
    /// Read from `frr.conf` by all daemons, once they are there.
    booted: bool,
    bgpd: Daemon,
    _bfdd: Option<Daemon>,
    _zebra: Daemon,
}

impl Frr {
    pub fn start(netns: &Arc<Netns>, dir: &Path, setup: &Setup) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        // zebra gives its privileges up and becomes another user.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
        let gathering = setup.gathering.map(|millis| format!("zebra work-queue {millis}\n"));
        fs::write(dir.join("zebra.conf"), gathering.unwrap_or_default())?;
        fs::write(dir.join("bgpd.conf"), configuration(setup))?;
        let zebra = begin(netns, dir, "zebra", if setup.gathering.is_some() { ZEBRA } else { &[] })?;
        let bfdd = || {
            fs::write(dir.join("bfdd.conf"), "")?;
            begin(netns, dir, "bfdd", &[])
        };
        let bfdd = setup.bfd.map(|_| bfdd()).transpose()?;
        let more: &'static [&'static str] = if setup.speaker_alone { &["-n"] } else { &[] };
        let bgpd = begin(netns, dir, "bgpd", more)?;
        let neighbour = setup.unnumbered.unwrap_or(setup.node).to_owned();
        let (netns, sockets) = (netns.clone(), dir.to_owned());
        Ok(Frr { netns, sockets, neighbour, more, booted: false, bgpd, _bfdd: bfdd, _zebra: zebra })
    }

    /// As the system starts it: all daemons, and then one configuration for all of them (`/etc/frr/frr.conf`).
    pub fn boot(netns: &Arc<Netns>, dir: &Path, configuration: &str, neighbour: &str) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
        for name in ["zebra", "bfdd", "bgpd"] {
            fs::write(dir.join(format!("{name}.conf")), "")?;
        }
        fs::write(dir.join("frr.conf"), configuration)?;
        let zebra = begin(netns, dir, "zebra", ZEBRA)?;
        let bfdd = begin(netns, dir, "bfdd", &[])?;
        let bgpd = begin(netns, dir, "bgpd", &[])?;
        let frr = Frr {
            netns: netns.clone(),
            sockets: dir.to_owned(),
            neighbour: neighbour.to_owned(),
            more: &[],
            booted: true,
            bgpd,
            _bfdd: Some(bfdd),
            _zebra: zebra,
        };
        frr.configure()?;
        Ok(frr)
    }

    /// Every line of `frr.conf` is one that the daemons know.
    fn configure(&self) -> Result<()> {
        let dir = self.sockets.display().to_string();
        let said = ask_here("/usr/bin/vtysh", &["--vty_socket", &dir, "--config_dir", &dir, "-b"])?;
        let unknown = said.lines().find(|line| line.contains("Unknown command") || line.contains("failure"));
        unknown.map_or(Ok(()), |line| Err(Error::Unmet(format!("FRR refused its configuration: {line}"))))
    }

    fn json(&self, command: &str) -> Result<Value> {
        json(&self.sockets, command)
    }

    pub fn established_with(&self, neighbour: &str) -> Result<bool> {
        Ok(self.json("show bgp neighbors json")?[neighbour]["bgpState"] == "Established")
    }

    /// Of all of its ways to `prefix`, whenever it is asked.
    pub fn next_hops(&self, prefix: &'static str) -> NextHops {
        let sockets = self.sockets.clone();
        Box::new(move || {
            let route = json(&sockets, &format!("show bgp {} unicast {prefix} json", family(prefix)))?;
            let paths = route["paths"].as_array().cloned().unwrap_or_default();
            Ok(paths.iter().map(|path| parse(path).next_hop).collect())
        })
    }
}

fn json(sockets: &Path, command: &str) -> Result<Value> {
    let text = vtysh(sockets, "bgpd", command)?;
    serde_json::from_str(&text).map_err(|source| Error::Json { what: command.into(), source })
}

/// `zebra_options` of the guide's `/etc/frr/daemons`.
const ZEBRA: &[&str] = &["--v6-rr-semantics"];

fn begin(netns: &Netns, dir: &Path, name: &'static str, more: &[&str]) -> Result<Daemon> {
    let file = |name: &str| dir.join(name).display().to_string();
    let program = format!("/usr/lib/frr/{name}");
    let [conf, pid] = [file(&format!("{name}.conf")), file(&format!("{name}.pid"))];
    let [sockets, zserv, bfdctl] = [dir.display().to_string(), file("zserv.api"), file("bfdd.sock")];
    let mut arguments =
        vec![program.as_str(), "-f", &conf, "-i", &pid, "-z", &zserv, "--vty_socket", &sockets];
    arguments.extend(["-P", "0", "--log", "stdout"]);
    match name {
        "bfdd" => arguments.extend(["--bfdctl", &bfdctl]),
        "bgpd" => arguments.push("-S"),
        _ => {}
    }
    arguments.extend(more);
    let ready = || vtysh(dir, name, "show version").map(drop);
    Daemon::start(netns, dir, "frr", &arguments, ready)
}

fn vtysh(sockets: &Path, daemon: &str, command: &str) -> Result<String> {
    let sockets = sockets.display().to_string();
    ask_here("/usr/bin/vtysh", &["--vty_socket", &sockets, "-d", daemon, "-c", command])
}

fn configuration(setup: &Setup) -> String {
    let Setup { router_as, node_as, router, node, hold_time, restart_time, .. } = setup;
    let keepalive = hold_time / 3;
    let peer = match (setup.unnumbered, setup.range) {
        (Some(interface), _) => interface,
        (None, Some(_)) => "NODES",
        (None, None) => node,
    };
    let begin = match (setup.unnumbered, setup.range) {
        (Some(interface), _) => format!(" neighbor {interface} interface remote-as {node_as}\n"),
        (None, Some(range)) => format!(
            " neighbor NODES peer-group\n neighbor NODES remote-as {node_as}\n bgp listen range {range} peer-group NODES\n"
        ),
        (None, None) => {
            format!(" neighbor {node} remote-as {node_as}\n neighbor {node} update-source {router}\n")
        }
    };
    let option = |on: bool, line: &str| if on { format!(" neighbor {peer} {line}\n") } else { String::new() };
    let session = [
        setup.password.map(|password| format!(" neighbor {peer} password {password}\n")).unwrap_or_default(),
        option(setup.security, "ttl-security hops 1"),
        option(setup.passive, "passive"),
        option(setup.long_open, "extended-optional-parameters"),
        option(setup.multihop, "ebgp-multihop 2"),
        option(setup.multihop, &format!("update-source {router}")),
        setup.bfd.map(|millis| format!(" neighbor {peer} bfd 3 {millis} {millis}\n")).unwrap_or_default(),
        option(setup.extended_next_hop && setup.unnumbered.is_none(), "capability extended-nexthop"),
    ]
    .concat();
    let long_lived = setup
        .long_lived
        .map(|time| format!(" bgp long-lived-graceful-restart stale-time {time}\n"))
        .unwrap_or_default();
    let family = |name: &str, prefix: &str, map: &str| {
        let paths = format!("  neighbor {peer} addpath-tx-all-paths\n");
        let client = format!("  neighbor {peer} route-reflector-client\n");
        let second = "  redistribute connected\n  network 172.31.9.0/24\n";
        format!(
            " address-family {name} unicast\n  neighbor {peer} activate\n  neighbor {peer} route-map {map} out\n  \
             network {prefix} route-map TAGS\n{}{}{} exit-address-family\n",
            if setup.add_path && name == "ipv4" { second } else { "" },
            if setup.add_path { paths } else { String::new() },
            if setup.reflector { client } else { String::new() },
        )
    };
    // A next hop of the other IP version is the router's to give.
    let hop = if setup.extended_next_hop || setup.unnumbered.is_some() {
        String::new()
    } else {
        format!(" set ip next-hop {ROUTER}\n")
    };
    let hop6 = if setup.unnumbered.is_some() {
        String::new()
    } else {
        format!(" set ipv6 next-hop global {ROUTER6}\n")
    };
    let debug = if setup.speaker_alone { "" } else { "debug bgp neighbor-events\n" };
    let looped = if setup.looped { format!(" set as-path prepend {node_as}\n") } else { String::new() };
    format!(
        "{debug}router bgp {router_as}\n bgp router-id {ROUTER}\n bgp log-neighbor-changes\n \
         no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check\n \
         bgp graceful-restart\n bgp graceful-restart restart-time {restart_time}\n \
         bgp graceful-restart preserve-fw-state\n no bgp hard-administrative-reset\n{long_lived}{begin} neighbor {peer} timers {keepalive} {hold_time}\n \
         neighbor {peer} timers connect 2\n neighbor {peer} advertisement-interval 0\n{session}{}{}exit\n\
         route-map TAGS permit 10\n set community {ROUTER_AS}:7\n set large-community {ROUTER_AS}:1:2\n \
         set extcommunity rt {ROUTER_AS}:9\n set metric 30\nexit\n\
         route-map V4 permit 10\n{hop}{looped}exit\nroute-map V6 permit 10\n{hop6}exit\n",
        family("ipv4", THEIRS, "V4"),
        family("ipv6", THEIRS6, "V6"),
    )
}

fn family(prefix: &str) -> &'static str {
    if prefix.contains(':') { "ipv6" } else { "ipv4" }
}

impl Router for Frr {
    fn established(&self) -> Result<bool> {
        self.established_with(&self.neighbour)
    }

    fn session(&self) -> Result<String> {
        vtysh(&self.sockets, "bgpd", "show bgp neighbors json")
    }

    fn seen(&self, prefix: &str) -> Result<Option<Seen>> {
        let route = self.json(&format!("show bgp {} unicast {prefix} json", family(prefix)))?;
        Ok(route["paths"].as_array().and_then(|paths| paths.first()).map(parse))
    }

    fn watched(&self) -> Result<Option<Watched>> {
        let json = |command: &str| {
            let text = vtysh(&self.sockets, "bfdd", command)?;
            let all: Value =
                serde_json::from_str(&text).map_err(|source| Error::Json { what: command.into(), source })?;
            let peers = all.as_array().cloned().unwrap_or_default();
            let is_ours = |peer: &Value| peer["peer"] == NODE || peer["interface"] == *self.neighbour;
            Ok::<_, Error>(peers.into_iter().find(is_ours))
        };
        let (peer, counters) = (json("show bfd peers json")?, json("show bfd peers counters json")?);
        let number = |peer: &Value, key: &str| peer[key].as_u64().unwrap_or_default();
        let slowest =
            |peer: &Value| number(peer, "receive-interval").max(number(peer, "remote-transmit-interval"));
        Ok(peer.zip(counters).map(|(peer, counters)| Watched {
            up: peer["status"] == "up",
            history: format!("{} {}", counters["session-up"], counters["session-down"]),
            detection: slowest(&peer) * number(&peer, "remote-detect-multiplier"),
        }))
    }

    fn restart(&mut self) -> Result<()> {
        // What `watchfrr` does when bgpd is gone.
        self.bgpd.kill();
        self.bgpd = begin(&self.netns, &self.sockets, "bgpd", self.more)?;
        if self.booted { self.configure() } else { Ok(()) }
    }

    fn reset(&self) -> Result<()> {
        vtysh(&self.sockets, "bgpd", &format!("clear bgp {}", self.neighbour)).map(drop)
    }

    fn refresh(&self) -> Result<()> {
        for family in ["ipv4", "ipv6"] {
            vtysh(&self.sockets, "bgpd", &format!("clear bgp {family} unicast {} in", self.neighbour))?;
        }
        Ok(())
    }

    fn pid(&self) -> u32 {
        self.bgpd.pid()
    }

    fn log(&self) -> Result<String> {
        self.bgpd.log()
    }
}

fn parse(path: &Value) -> Seen {
    let words = |key: &str| -> BTreeSet<String> {
        let text = path[key]["string"].as_str().unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let number = |key: &str| path[key].as_u64().and_then(|n| u32::try_from(n).ok());
    let targets = words("extendedCommunity");
    let hops = path["nexthops"].as_array().cloned().unwrap_or_default();
    let hop = hops.iter().find(|hop| hop["used"] == true).or(hops.first());
    let as_path = path["aspath"]["string"].as_str().unwrap_or_default();
    Seen {
        next_hop: hop.and_then(|hop| hop["ip"].as_str()).unwrap_or_default().to_owned(),
        as_path: as_path.split(' ').filter_map(|n| n.parse().ok()).collect(),
        communities: words("community"),
        large: words("largeCommunity"),
        targets: targets.iter().filter_map(|t| t.strip_prefix("RT:")).map(str::to_owned).collect(),
        med: number("metric").or(number("med")),
        local_pref: number("locPrf").or(number("localPref")),
        stale: path["stale"] == true,
    }
}
