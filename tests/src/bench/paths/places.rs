//! Other ways to connect two namespaces.

use super::{super::packet::asm, pair::Pair};
use crate::{
    Context, Netns, Result, bpf,
    link::{End, veth},
    unmet,
};
use nix::net::if_::if_nametoindex;
use std::{
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Stdio,
};

/// Client, server, and what lies between them.
pub struct Place {
    client: Netns,
    server: Netns,
    _between: Netns,
    to: Ipv4Addr,
    _links: Vec<OwnedFd>,
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

const FIREWALL: &str = "net/bridge/bridge-nf-call-iptables";

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
    if between.run(|| Ok(Path::new("/proc/sys").join(FIREWALL).exists()))? {
        between.sysctl(FIREWALL, "0")?;
    }
    Ok(Place { client, server, _between: between, to: Ipv4Addr::new(172, 31, 1, 2), _links: Vec::new() })
}

/// Two veths, and on each a program that makes one call: into the other's far end. No address is asked, nothing is looked
/// up or written. What is slower than this is the plugin's; what this does not reach, no plugin does that has a hook there.
pub fn redirect() -> Result<Place> {
    hooked("redirect", |_, to| Ok(redirect_peer(to)))
}

/// The same with programs that keep connections ([`asm::tracker`]) in a table as large as ours.
pub fn tracker() -> Result<Place> {
    let (key, value) = asm::TRACKED;
    let map = bpf::hash(key, value, CONNECTIONS)?;
    // What stands there already, since each end takes the other for its gateway.
    let macs = |to: u32, from: u32| [2, to << 8 | 2 << 16, from << 24];
    hooked("tracker", |client, to| {
        Ok(asm::tracker(client, &map, to, if client { macs(2, 1) } else { macs(1, 2) }))
    })
}

/// Entries of the daemon's table, where nobody says otherwise.
const CONNECTIONS: u32 = 131_072;

/// `program`: of the client's hook (or the server's), with the other's interface.
fn hooked(name: &str, program: impl Fn(bool, u32) -> Result<Vec<u64>> + Sync) -> Result<Place> {
    let [client, server, between] = Place::namespaces(name)?;
    let ends = [(&client, "port1", "172.31.1.1", 1), (&server, "port2", "172.31.1.2", 2)];
    for (netns, port, address, n) in ends {
        veth(
            End { netns: &between, name: port, addresses: &[] },
            End { netns, name: "eth0", addresses: &[&format!("{address}/32")] },
        )?;
        // Each takes the other for its gateway, so that frames need not be addressed anew.
        netns.ip(&format!("link set eth0 address 02:00:00:00:00:0{n}"))?;
        netns.ip("route add 169.254.1.1 dev eth0")?;
        netns.ip("route add default via 169.254.1.1")?;
        netns
            .ip(&format!("neigh add 169.254.1.1 lladdr 02:00:00:00:00:0{} dev eth0 nud permanent", 3 - n))?;
    }
    let links = between.run(|| {
        let [one, two] = [if_nametoindex("port1")?, if_nametoindex("port2")?];
        let link = |(client, at, to)| bpf::attach(bpf::load(name, &program(client, to)?)?.as_fd(), at);
        [(true, one, two), (false, two, one)].into_iter().map(link).collect()
    })?;
    Ok(Place { client, server, _between: between, to: Ipv4Addr::new(172, 31, 1, 2), _links: links })
}

/// `return bpf_redirect_peer(ifindex, 0)`
fn redirect_peer(ifindex: u32) -> Vec<u64> {
    let set = |register, value| bpf::instruction(0xb7, register, 0, 0, value);
    vec![
        set(1, ifindex as i32),
        set(2, 0),
        bpf::instruction(0x85, 0, 0, 0, 155),
        bpf::instruction(0x95, 0, 0, 0, 0),
    ]
}

pub enum Filter {
    IntervalSet,
    /// That many rules, none of which says anything of the packets but the last; each packet passes them.
    Linear(u32),
    /// The same behind conntrack: a connection's first packet passes them.
    LinearBehindConntrack(u32),
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
    Ok(Place { client, server, _between: between, to: Ipv4Addr::new(172, 31, 2, 2), _links: Vec::new() })
}

const ESTABLISHED: &str = "  ct state established,related accept\n";

fn rules(filter: &Filter) -> String {
    let mut text = String::from("table ip walls {\n");
    match filter {
        Filter::IntervalSet => {
            text += " set admitted {\n  type ipv4_addr\n  flags interval\n  elements = { 172.31.1.0/24";
            for n in 0..1000 {
                let _ = write!(text, ", 10.{}.{}.0/25", n / 250, n % 250);
            }
            text += " }\n }\n chain forward {\n  type filter hook forward priority 0; policy drop;\n";
            text = text + ESTABLISHED + "  ip saddr @admitted tcp dport 8080 accept\n";
        }
        Filter::Linear(count) | Filter::LinearBehindConntrack(count) => {
            text += " chain forward {\n  type filter hook forward priority 0; policy drop;\n";
            if let Filter::LinearBehindConntrack(_) = filter {
                text += ESTABLISHED;
            }
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
