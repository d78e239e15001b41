//! Other ways to connect two namespaces.

use super::pair::Pair;
use crate::{
    Context, Netns, Result,
    link::{End, veth},
    unmet,
};
use std::{fmt::Write as _, io::Write as _, net::Ipv4Addr, process::Stdio};

/// Client, server, and what lies between them.
pub struct Place {
    client: Netns,
    server: Netns,
    _between: Netns,
    to: Ipv4Addr,
}

impl Place {
    pub fn pair(&self) -> Pair<'_> {
        Pair { client: &self.client, server: &self.server, to: self.to }
    }

    fn namespaces(name: &str) -> Result<[Netns; 3]> {
        Ok([
            Netns::create(&format!("{name}-client"))?,
            Netns::create(&format!("{name}-server"))?,
            Netns::create(&format!("{name}-between"))?,
        ])
    }
}

/// Two ports of a bridge that asks no firewall.
pub fn bridge() -> Result<Place> {
    let [client, server, between] = Place::namespaces("bridge")?;
    between.ip("link add br0 type bridge")?;
    between.ip("link set br0 up")?;
    for (netns, port, address) in [(&client, "port1", "172.31.1.1/24"), (&server, "port2", "172.31.1.2/24")] {
        veth(
            End { netns: &between, name: port, addresses: &[] },
            End { netns, name: "eth0", addresses: &[address] },
        )?;
        between.ip(&format!("link set {port} master br0"))?;
    }
    // There only where the module is loaded.
    let _ = between.sysctl("net/bridge/bridge-nf-call-iptables", "0");
    Ok(Place { client, server, _between: between, to: Ipv4Addr::new(172, 31, 1, 2) })
}

pub enum Filter {
    IntervalSet,
    /// That many rules, none of which says anything of the packets but the last.
    Linear(u32),
}

/// A node that routes between two veths, and filters.
pub fn routed(name: &str, filter: Filter) -> Result<Place> {
    let [client, server, between] = Place::namespaces(name)?;
    between.sysctl("net/ipv4/ip_forward", "1")?;
    for (netns, port, net) in [(&client, "port1", 1), (&server, "port2", 2)] {
        let [near, far] = [format!("172.31.{net}.1/24"), format!("172.31.{net}.2/24")];
        veth(
            End { netns: &between, name: port, addresses: &[&near] },
            End { netns, name: "eth0", addresses: &[&far] },
        )?;
        netns.ip(&format!("route add default via 172.31.{net}.1"))?;
    }
    nft(&between, &rules(&filter))?;
    Ok(Place { client, server, _between: between, to: Ipv4Addr::new(172, 31, 2, 2) })
}

fn rules(filter: &Filter) -> String {
    let mut text = String::from("table ip walls {\n");
    match filter {
        Filter::IntervalSet => {
            text += " set admitted {\n  type ipv4_addr\n  flags interval\n  elements = { 172.31.1.0/24";
            for n in 0..1000 {
                let _ = write!(text, ", 10.{}.{}.0/25", n / 250, n % 250);
            }
            text += " }\n }\n chain forward {\n  type filter hook forward priority 0; policy drop;\n";
            text += "  ct state established,related accept\n  ip saddr @admitted tcp dport 8080 accept\n";
        }
        Filter::Linear(count) => {
            text += " chain forward {\n  type filter hook forward priority 0; policy drop;\n";
            for n in 0..*count {
                let _ = writeln!(text, "  ip saddr 10.{}.{}.0/25 tcp dport 8080 accept", n / 250, n % 250);
            }
            text += "  ip saddr 172.31.0.0/16 accept\n";
        }
    }
    text + " }\n}\n"
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut child =
        netns.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().during(|| "nft".into())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    if child.wait()?.success() { Ok(()) } else { unmet("nft refuses the rules") }
}
