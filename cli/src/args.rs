//! What can be typed.

use crate::offline::Cluster;
use bulkhead_api::messages::ExplainRequest;
use bulkhead_api::objects::IpNetwork;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use std::path::PathBuf;

/// Look into Bulkhead on this node: who is connected, what may pass, and why not.
#[derive(Parser, Debug)]
#[command(name = "bulkhead", version)]
pub struct Args {
    /// The daemon's socket
    #[arg(long, global = true, env = "BULKHEAD_SOCKET", default_value = "/run/bulkhead/bulkheadd.sock")]
    pub socket: PathBuf,

    /// Tables for people, JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// The daemon, the generation in force, and objects that were refused
    Status {
        /// Fail where a pod could not be connected now; for readiness probes
        #[arg(long)]
        ready: bool,
        /// With --ready: of the daemon that writes this file. It is ready also while it says there what it waits for, and not before
        /// it has written it, whoever else answers
        #[arg(long, value_name = "FILE", requires = "ready")]
        standby: Option<PathBuf>,
        /// With --standby: ready not before it has waited for so long
        #[arg(long, value_name = "SECONDS", requires = "standby", default_value_t = 0)]
        waited: u64,
    },
    /// Pods of this node
    Endpoints,
    /// Partitions, their ranges and this node's blocks of them
    Partitions,
    /// Packets dropped on this node, by reason and rule
    Drops,
    /// Services as pods of this node reach them, and what is not translated at the socket
    Services,
    /// What happens to a flow, and which rule decides
    Explain(Explain),
    /// What a change would newly allow and deny; exit status 0: nothing, 1: something, 2: error
    Diff {
        /// Files, or directories of files, with the objects as they would be; `-`: standard input
        #[arg(short, long = "file", required_unless_present = "delete", num_args = 1..)]
        files: Vec<PathBuf>,
        /// An object that would be removed, as in Partition/web or NetworkPolicy/shop/db
        #[arg(long, value_name = "KIND/NAME", num_args = 1..)]
        delete: Vec<String>,
        /// The files are all there would be: objects in force that are not in them would be removed (namespaces, pods and nodes stay)
        #[arg(long, requires = "files")]
        prune: bool,
        /// Compare with the objects of this directory, and not with a daemon's
        #[arg(long, value_name = "DIR")]
        objects: Option<PathBuf>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Generations of policy: what is in force, and going back
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Border Gateway Protocol
    #[command(subcommand)]
    Bgp(BgpCommand),
    /// This node as a whole
    #[command(subcommand)]
    Node(NodeCommand),
}

#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Take routes off this node: announced as the last choice (RFC 8326), then withdrawn; services, unless told otherwise
    DrainRoutes {
        /// Everything, towards this BGPPeer; another one must be left
        #[arg(long = "peer", value_name = "NAME", conflicts_with = "all")]
        peers: Vec<String>,
        /// Everything, blocks too: pods of this node are not reachable any more
        #[arg(long)]
        all: bool,
        /// Seconds until the routes are withdrawn
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        withdraw_after: u64,
        /// Take back what was asked for before
        #[arg(long, conflicts_with_all = ["peers", "all", "withdraw_after"])]
        undo: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// What was in force, since when, and what each change changed
    Generations {
        /// Only this one, with the objects that it was made from
        generation: Option<u32>,
    },
    /// What each rule has decided on: packets, bytes, new connections, last hit; and which were never hit
    Rules {
        /// Only rules that have decided on nothing
        #[arg(long)]
        never_hit: bool,
        /// Only rules that this partition writes
        #[arg(long)]
        partition: Option<String>,
    },
    /// Bring former objects back under a new number, and hold the source until released
    Rollback {
        /// The generation whose objects to bring back [default: the one before]
        #[arg(long)]
        to: Option<u32>,
    },
    /// End the hold: what the source says comes into force
    Release,
}

#[derive(Subcommand, Debug)]
pub enum BgpCommand {
    /// Sessions and their states
    Peers,
    /// Routes advertised and received
    Routes {
        /// At most so many of each direction
        #[arg(long, value_name = "N", default_value_t = MOST_ROUTES)]
        limit: usize,
    },
    /// What the routers were sent and hold
    Advertised(RoutesOf),
    /// What the routers have sent to this node
    Received(RoutesOf),
    /// Why a prefix is announced or not: to whom, with which attributes, by which rule
    Why {
        /// A prefix, or an address
        prefix: IpNetwork,
    },
    /// The last times each session came up or went down, and why
    History {
        /// Of this BGPPeer only
        peer: Option<String>,
    },
}

/// A table that somebody can read.
const MOST_ROUTES: usize = 500;

#[derive(clap::Args, Debug)]
pub struct RoutesOf {
    /// Of this BGPPeer only
    pub peer: Option<String>,
    /// At most so many, by prefix
    #[arg(long, value_name = "N", default_value_t = MOST_ROUTES)]
    pub limit: usize,
}

#[derive(clap::Args, Debug)]
pub struct Explain {
    /// Who opens the connection: an address, namespace/pod, or NetworkGroup/name
    pub from: String,
    /// Who is called: an address, namespace/pod, or NetworkGroup/name
    pub to: String,
    /// tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, visible_alias = "proto", default_value = "tcp")]
    pub protocol: String,
    /// Destination port; for ICMP its type [default for ICMP: echo request]
    #[arg(long)]
    pub port: Option<u16>,
}

impl Explain {
    pub fn request(&self) -> Result<ExplainRequest, clap::Error> {
        let protocol = self.protocol.to_ascii_lowercase();
        let port = self.port.or(match protocol.as_str() {
            "icmp" | "1" => Some(8),
            "icmpv6" | "58" => Some(128),
            "tcp" | "6" | "udp" | "17" | "sctp" | "132" => None,
            // Others have no ports.
            _ => Some(0),
        });
        let Some(port) = port else {
            let message = format!("{protocol} has ports: say which with --port");
            return Err(Args::command().error(ErrorKind::MissingRequiredArgument, message));
        };
        Ok(ExplainRequest { from: self.from.clone(), to: self.to.clone(), protocol, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(protocol: &str, port: Option<u16>) -> Option<(String, u16)> {
        let explain = Explain { from: "a".into(), to: "b".into(), protocol: protocol.to_string(), port };
        explain.request().ok().map(|r| (r.protocol, r.port))
    }

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_port_is_asked_for_where_the_protocol_has_ports() {
        assert_eq!(request("TCP", Some(80)), Some(("tcp".into(), 80)));
        assert_eq!(request("tcp", None), None);
        assert_eq!(request("132", None), None);
        assert_eq!(request("icmp", None), Some(("icmp".into(), 8)));
        assert_eq!(request("icmpv6", None), Some(("icmpv6".into(), 128)));
        assert_eq!(request("icmp", Some(0)), Some(("icmp".into(), 0)));
        assert_eq!(request("47", None), Some(("47".into(), 0)));
    }
}
