//! BIRD 2: its configuration, and its table in words.

use super::leaf::Owners;
use super::site::{NODE, ROUTER, ROUTER6};
use super::{Router, Seen, Setup, THEIRS, THEIRS6, Watched};
use crate::{Bird, Context, Netns, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub(super) struct BirdRouter {
    bird: Bird,
    /// `node`, or what BIRD makes of it for one out of a range.
    protocol: &'static str,
    log: PathBuf,
}

impl BirdRouter {
    pub fn start(netns: &Netns, dir: &Path, setup: &Setup) -> Result<Self> {
        let bird = Bird::start(netns, dir, &configuration(setup))?;
        let protocol = if setup.range.is_some() { "dynbgp1" } else { "node" };
        Ok(BirdRouter { bird, protocol, log: dir.join("bird.log") })
    }

    /// With a configuration of its own; `again`: it was here before, and forwarding went on.
    pub fn boot(
        netns: &Netns,
        dir: &Path,
        configuration: &str,
        protocol: &'static str,
        again: bool,
    ) -> Result<Self> {
        let start = if again { Bird::recover } else { Bird::start };
        Ok(BirdRouter { bird: start(netns, dir, configuration)?, protocol, log: dir.join("bird.log") })
    }
}

/// Waits after errors are shortened.
fn configuration(setup: &Setup) -> String {
    let Setup { router_as, node_as, router, node, hold_time, restart_time, .. } = setup;
    let option = |on: bool, line: &str| if on { format!("  {line};\n") } else { String::new() };
    let neighbour = match setup.range {
        Some(range) => format!("range {range}"),
        None => node.to_string(),
    };
    let session = [
        setup.password.map(|password| format!("  password \"{password}\";\n")).unwrap_or_default(),
        setup
            .long_lived
            .map(|time| format!("  long lived graceful restart on;\n  long lived stale time {time};\n"))
            .unwrap_or_default(),
        option(setup.security, "ttl security on"),
        option(setup.passive || setup.range.is_some(), "passive on"),
        option(setup.reflector, "rr client"),
        option(setup.multihop, "multihop 2"),
        option(!setup.speaker_alone, "debug { packets }"),
        option(true, "enable extended messages on"),
        option(setup.bfd.is_some(), "bfd on"),
    ]
    .concat();
    let channel = |family: &str, next_hop: &str, v4: bool| {
        let paths = if setup.add_path { "add paths tx; " } else { "" };
        let reflected = if setup.reflector { "if source = RTS_BGP then accept; " } else { "" };
        let extended = setup.extended_next_hop && v4;
        let next_hop = if extended {
            "extended next hop on;".to_owned()
        } else {
            format!("next hop address {next_hop};")
        };
        format!(
            "  {family} {{ import all; export filter {{ {reflected}if source != RTS_STATIC then reject; bgp_med = 30; accept; }}; \
             {paths}{next_hop} }};\n"
        )
    };
    let tags = format!(
        "bgp_community.add(({ROUTER_TAG},7)); bgp_large_community.add(({ROUTER_TAG},1,2)); \
         bgp_ext_community.add((rt,{ROUTER_TAG},9));"
    );
    let route = |name: &str, family: &str, prefix: &str| {
        let looped = if setup.looped && prefix == THEIRS {
            format!(" bgp_path.prepend({node_as});")
        } else {
            String::new()
        };
        format!("protocol static {name} {{ {family}; route {prefix} blackhole {{ {tags}{looped} }}; }}\n")
    };
    let bfd = setup.bfd.map(|millis| {
        let timers = format!("{{ interval {millis} ms; multiplier 3; }}");
        format!("protocol bfd {{ interface \"*\" {timers}; multihop {timers}; }}\n")
    });
    let second = if setup.add_path { route("again4", "ipv4", THEIRS) } else { String::new() };
    format!(
        "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n{}{}{}{second}\
         protocol bgp node {{\n  local {router} as {router_as};\n  neighbor {neighbour} as {node_as};\n  \
         graceful restart on;\n  graceful restart time {restart_time};\n  hold time {hold_time};\n  \
         connect delay time 1;\n  connect retry time 2;\n  error wait time 1, 2;\n{session}{}{}}}\n",
        bfd.unwrap_or_default(),
        route("theirs4", "ipv4", THEIRS),
        route("theirs6", "ipv6", THEIRS6),
        channel("ipv4", ROUTER, true),
        channel("ipv6", ROUTER6, false),
    )
}

const ROUTER_TAG: u32 = super::ROUTER_AS;

impl Router for BirdRouter {
    fn established(&self) -> Result<bool> {
        self.bird.established(self.protocol)
    }

    fn session(&self) -> Result<String> {
        self.bird.birdc("show protocols all")
    }

    fn seen(&self, prefix: &str) -> Result<Option<Seen>> {
        let text = self.bird.birdc(&format!("show route {prefix} all protocol {}", self.protocol));
        // BIRD calls it an error that there is nothing.
        let seen = text.ok().filter(|text| text.contains("BGP.as_path")).map(|text| parse(&text));
        // Which routes are stale is not told, only that some are.
        let stale = self.session()?.contains("Neighbor graceful restart active");
        Ok(seen.map(|seen| Seen { stale, ..seen }))
    }

    fn watched(&self) -> Result<Option<Watched>> {
        let text = self.bird.birdc("show bfd sessions")?;
        // `172.31.9.2  downlink  Up  17:03:11.123  0.050  0.150`
        let row = text.lines().find(|line| line.starts_with(NODE)).map(|line| line.split_whitespace());
        Ok(row.map(|row| row.collect::<Vec<_>>()).filter(|row| row.len() >= 6).map(|row| Watched {
            up: row[2] == "Up",
            history: row[3].to_owned(),
            detection: row[5].replace('.', "").parse().unwrap_or_default(),
        }))
    }

    fn reset(&self) -> Result<()> {
        self.bird.birdc(&format!("restart {}", self.protocol)).map(drop)
    }

    fn refresh(&self) -> Result<()> {
        self.bird.birdc(&format!("reload in {}", self.protocol)).map(drop)
    }

    fn pid(&self) -> u32 {
        self.bird.pid()
    }

    fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).during(|| self.log.display().to_string())
    }
}

fn parse(text: &str) -> Seen {
    let value = |key: &str| {
        let key = format!("{key}:");
        text.lines().find_map(|line| line.trim().strip_prefix(key.as_str()).map(str::trim))
    };
    // `(65010,100) (65010,7)`, `(rt, 65010, 7)`
    let tuples = |key: &str| -> BTreeSet<String> {
        let text = value(key).unwrap_or_default().replace(' ', "");
        text.split(['(', ')']).filter(|t| !t.is_empty()).map(|tuple| tuple.replace(',', ":")).collect()
    };
    let targets = tuples("BGP.ext_community");
    Seen {
        next_hop: value("BGP.next_hop").unwrap_or_default().to_owned(),
        as_path: value("BGP.as_path").unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect(),
        communities: tuples("BGP.community"),
        large: tuples("BGP.large_community"),
        targets: targets.iter().filter_map(|target| target.strip_prefix("rt:")).map(str::to_owned).collect(),
        med: value("BGP.med").and_then(|n| n.parse().ok()),
        local_pref: value("BGP.local_pref").and_then(|n| n.parse().ok()),
        stale: false,
    }
}

/// Who has had a way to `prefix`, after each change, by lines such as
/// `2026-11-29 10:00:00.123 <TRACE> node1.ipv4 > added [best] 10.65.15.7/32 0L 10G unicast`.
pub(super) fn owners(log: &str, prefix: &str) -> Vec<Owners> {
    let mut history = Vec::new();
    let mut now = BTreeSet::new();
    for line in log.lines().filter(|line| line.contains(&format!(" {prefix} "))) {
        let Some((channel, change)) = line.split_once(" > ") else { continue };
        let node = channel.split_whitespace().last().and_then(|channel| channel.split('.').next());
        let Some(node) = node else { continue };
        if change.starts_with("removed") {
            now.remove(node);
        } else if change.starts_with("added") {
            now.insert(node.to_owned());
        }
        history.push((clock(line), now.clone()));
    }
    history
}

/// Seconds since midnight.
fn clock(line: &str) -> f64 {
    let time = line.split_whitespace().nth(1).unwrap_or_default();
    time.split(':').filter_map(|part| part.parse::<f64>().ok()).fold(0.0, |sum, part| sum * 60.0 + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_from_the_routers_log() {
        let log = "2026-11-29 10:00:00.100 <TRACE> node1.ipv4 > added [best] 10.65.15.7/32 0L 10G unicast\n\
                   2026-11-29 10:00:00.200 <TRACE> node1.ipv4 > added [best] 10.65.0.0/26 0L 10G unicast\n\
                   2026-11-29 10:00:00.300 <TRACE> node2.ipv4 < added 10.65.15.7/32 0L 10G unicast\n\
                   2026-11-29 10:00:01.250 <TRACE> node2.ipv4 > added 10.65.15.7/32 0L 11G unicast\n\
                   2026-11-29 10:01:00.000 <TRACE> node1.ipv4 > removed [replaced] 10.65.15.7/32 0L 10G unicast\n";
        let owners = owners(log, "10.65.15.7/32");
        let told: Vec<(f64, usize)> =
            owners.iter().map(|(at, owners)| (at - 36000.0, owners.len())).collect();
        let told: Vec<(u64, usize)> = told.iter().map(|(at, n)| ((at * 1000.0).round() as u64, *n)).collect();
        assert_eq!(told, [(100, 1), (1250, 2), (60000, 1)]);
        assert_eq!(owners.last().map(|(_, last)| last.clone()), Some(BTreeSet::from(["node2".to_owned()])));
    }
}
