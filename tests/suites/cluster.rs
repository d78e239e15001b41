//! A cluster that Bulkhead is installed in as a user would: Kubernetes' own kubelets, containerd, kube-proxy, real pods.
//!
//! The cases are one story and run in this order: not ready, installed, upgraded, used, uninstalled.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "cluster/calls.rs"]
mod calls;
#[path = "cluster/dns.rs"]
mod dns;
#[path = "cluster/fixed.rs"]
mod fixed;
#[path = "cluster/install.rs"]
mod install;
#[path = "cluster/matrix.rs"]
mod matrix;
#[path = "cluster/outside.rs"]
mod outside;
#[path = "cluster/policy.rs"]
mod policy;
#[path = "cluster/ports.rs"]
mod ports;
#[path = "cluster/reach.rs"]
mod reach;
#[path = "cluster/room.rs"]
mod room;
#[path = "cluster/sctp.rs"]
mod sctp;
#[path = "cluster/services.rs"]
mod services;
#[path = "cluster/site.rs"]
mod site;
#[path = "cluster/story.rs"]
mod story;
#[path = "cluster/strays.rs"]
mod strays;
#[path = "cluster/upgrade.rs"]
mod upgrade;

use bulkhead_lab::Result;
use site::Case;
use std::time::Duration;

/// Of everything; it takes half of this on a quiet machine.
const LIMIT: Duration = Duration::from_secs(1400);

const CASES: [(&str, Case); 29] = [
    ("nodes become ready by one kubectl apply, and by nothing else", install::installed),
    ("pods of both nodes reach each other and the nodes, without NAT", reach::everybody),
    ("what is installed is upgraded to this build without a lost packet", upgrade::upgraded),
    ("a build that could not take over does not end the one that runs", upgrade::refused),
    ("a pod's host port leads to it for TCP and UDP, and goes with it", ports::host_ports),
    ("pods call services, and are seen as who they are", services::of_pods),
    ("nodes and others call services, by kube-proxy in both of its modes", services::of_others),
    ("services of both families, headless ones and those of SCTP", services::of_both_families),
    ("policy judges the backend, whoever has translated the service", services::judged),
    ("who calls from outside is let in or refused as himself, by any node and either mode", outside::judged),
    ("kube-proxy translates SCTP for pods and others, and the backend judges them", sctp::services),
    ("pods call services where no kube-proxy runs", services::without_proxy),
    ("pods find services and the pods of headless ones by cluster DNS, and call them", dns::cluster),
    ("pods of an isolated partition ask cluster DNS, unless it opts out", dns::isolated),
    ("pods of an isolated partition ask their node's DNS cache, which asks cluster DNS", dns::cached),
    ("kubelets probe pods of an isolated partition that lets nobody else in", policy::partition),
    ("a network policy by label holds for pods of both nodes, and follows labels", policy::labels),
    ("a rule for a port of SCTP is none for TCP, and the reverse", sctp::judged),
    ("the matrix of policies by label, of pods on both nodes, by TCP and UDP", matrix::by_label),
    ("a pod that comes is judged right from its first packet", matrix::newcomer),
    ("partitions over running pods, moved and shrunk: a pod is of its namespace's", strays::laid_over),
    (
        "a namespace is moved by its name from one isolated partition to another, and is never open",
        strays::moved_by_name,
    ),
    ("a running pod's bandwidth follows its annotation, as far as its partition allows", policy::bandwidth),
    ("why a pod has no network stands in its events", reach::events),
    ("a partition without room says so, and its pod, which is connected once there is", room::exhausted),
    ("a drained node gives its blocks back, and serves again", room::drained),
    (
        "a fixed address follows its pod from a node that is cut off, once that node is deleted",
        fixed::follows,
    ),
    ("a node that comes back does not take the address from its new owner", fixed::returned),
    ("uninstalled under running pods, the nodes are what they were before", install::uninstalled),
];

fn main() -> Result<()> {
    story::run(LIMIT, &CASES)
}
