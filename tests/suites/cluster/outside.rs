//! Who calls from outside: node ports and external IPs, by the node of the backend and by the other one, in both of kube-proxy's
//! modes and with both external traffic policies. A partition judges who really calls, also where a node masquerades him.

use crate::site::{PORT, Pod, Site};
use bulkhead_lab::{Context, Result, cluster::SOON, unmet, until};
use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    thread,
};

pub const VAULT: [Pod; 2] = [
    Pod { namespace: "vault", name: "vault1", node: "node1", host: false, role: "vault" },
    Pod { namespace: "vault", name: "vault2", node: "node2", host: false, role: "vault" },
];
const SERVICE: u16 = 80;
/// By pod.
const CLUSTER: [u16; 2] = [30_091, 30_092];
const LOCAL: [u16; 2] = [30_093, 30_094];
/// Who is let in, on the networks of both nodes, and who is not. All are the router's.
const FRIENDS: &str = "172.30.1.1/32, 172.30.2.1/32, \"fd00:30:1::1/128\", \"fd00:30:2::1/128\"";
pub const STRANGER: [&str; 2] = ["172.30.8.1", "fd00:30:8::1"];

/// Lets in nodes as well: what a node masquerades is the node's at a pod of another one.
fn partition() -> &'static str {
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: vault}\n---\n\
     apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: vault}\n\
     spec:\n  policyID: 167\n  namespaces: [vault]\n  podCIDRs: [10.67.16.0/20, \"fd00:66:0:16::/64\"]\n  \
     ingress: [{name: callers, from: [{networkGroup: callers}, {nodes: {}}]}]\n---\n"
}

fn callers(more: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {{name: callers}}\n\
         spec: {{cidrs: [{FRIENDS}{more}]}}\n"
    )
}

/// An address outside that is routed to this node, of this pod's service.
fn external(node: usize, pod: usize) -> String {
    format!("198.51.100.{}{}", node + 1, pod + 1)
}

fn services() -> String {
    let service = |name: String, pod: usize, port: u16, more: String| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: vault}}\n\
             spec: {{type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {{name: {}}}, {more}, \
             ports: [{{port: {SERVICE}, targetPort: {PORT}, nodePort: {port}}}]}}\n",
            VAULT[pod].name
        )
    };
    let of_pod = |pod: usize| {
        let addresses = format!("externalIPs: [{}, {}]", external(0, pod), external(1, pod));
        let local = "externalTrafficPolicy: Local".to_string();
        service(format!("any{pod}"), pod, CLUSTER[pod], addresses)
            + &service(format!("local{pod}"), pod, LOCAL[pod], local)
    };
    of_pod(0) + &of_pod(1)
}

/// One way to a service.
struct Way {
    to: SocketAddr,
    node: usize,
    pod: usize,
    /// Answered by the backends of the node that is called alone, and without NAT.
    local: bool,
}

fn ways(site: &Site) -> Vec<Way> {
    let mut all = Vec::new();
    for (node, machine) in site.cluster.machines.iter().enumerate() {
        for pod in [0, 1] {
            let mut way = |address: IpAddr, port, local| {
                all.push(Way { to: SocketAddr::new(address, port), node, pod, local });
            };
            for address in [IpAddr::from(machine.v4), machine.v6.into()] {
                way(address, CLUSTER[pod], false);
                way(address, LOCAL[pod], true);
            }
            way(external(node, pod).parse().unwrap(), SERVICE, false);
        }
    }
    all
}

/// Who answers, and as whom it sees the caller; None: nobody.
type Answer = Option<(String, String)>;

/// All at once: whom nobody answers waits for seconds.
fn ask(site: &Site, ways: &[Way], stranger: bool) -> Vec<Answer> {
    thread::scope(|scope| {
        let one = |way| scope.spawn(move || connected(site, way, stranger).ok().and_then(answer));
        let asked: Vec<_> = ways.iter().map(one).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// The caller's address on the way.
fn own(way: &Way, stranger: bool) -> String {
    let n = way.node + 1;
    match (way.to.is_ipv6(), stranger) {
        (v6, true) => STRANGER[usize::from(v6)].into(),
        (false, false) => format!("172.30.{n}.1"),
        (true, false) => format!("fd00:30:{n}::1"),
    }
}

/// As the services' policies promise it, to whoever is let in.
fn is_right(way: &Way, stranger: bool, answer: &Answer) -> bool {
    match (way.local, way.node == way.pod, answer) {
        (true, false, answer) => answer.is_none(),
        (_, _, None) => false,
        (local, _, Some((name, seen))) => {
            name == VAULT[way.pod].name && (!local || *seen == own(way, stranger))
        }
    }
}

/// It comes to be so that the friends are let in, and the stranger is or is not.
fn wait(site: &Site, ways: &[Way], what: &str, stranger: bool) -> Result<()> {
    until(what, SOON, || {
        let (friends, strangers) = (ask(site, ways, false), ask(site, ways, true));
        let friends = ways.iter().zip(&friends).filter(|(way, answer)| !is_right(way, false, answer));
        let strangers = ways
            .iter()
            .zip(&strangers)
            .filter(|(way, answer)| if stranger { !is_right(way, true, answer) } else { answer.is_some() });
        let told = |(way, answer): (&Way, &Answer)| format!("{}: {answer:?}", way.to);
        let wrong: [Vec<String>; 2] = [friends.map(told).collect(), strangers.map(told).collect()];
        if wrong.iter().all(Vec::is_empty) { Ok(Some(())) } else { unmet(format!("{wrong:?}")) }
    })
}

/// A connection that has asked nothing yet.
fn connected(site: &Site, way: &Way, stranger: bool) -> Result<TcpStream> {
    let to = way.to;
    site.cluster.router.run(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if stranger {
            let own: IpAddr = STRANGER[usize::from(to.is_ipv6())].parse().unwrap();
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
        }
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(3))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(3))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).during(|| format!("calling {to}"))?;
        Ok(TcpStream::from(fd))
    })
}

/// What is said on it, if it goes on.
fn answer(mut stream: TcpStream) -> Answer {
    let mut said = String::new();
    stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n").ok()?;
    stream.read_to_string(&mut said).ok()?;
    let (name, seen) = said.lines().last()?.split_once(' ')?;
    let seen = seen.trim_start_matches('[').trim_end_matches(']').trim_start_matches("::ffff:");
    Some((name.into(), seen.into()))
}

pub fn judged(site: &mut Site) -> Result<()> {
    let stranger =
        STRANGER.map(|address| format!(", \"{address}/{}\"", if address.contains(':') { 128 } else { 32 }));
    site.cluster.control.apply(&format!("{}{}", partition(), callers(&stranger.concat())))?;
    site.cluster.control.apply(&services())?;
    site.create(&VAULT)?;
    let ways = ways(site);
    for (node, machine) in site.cluster.machines.iter().enumerate() {
        for pod in [0, 1] {
            site.cluster.router.ip(&format!("route add {}/32 via {}", external(node, pod), machine.v4))?;
        }
    }
    // So it is the policy alone that refuses the stranger afterwards.
    wait(site, &ways, "both are let in", true)?;
    let begun: Vec<&Way> = ways.iter().filter(|way| !way.local || way.node == way.pod).collect();
    let of = |stranger| begun.iter().map(|way| connected(site, way, stranger)).collect::<Result<Vec<_>>>();
    let (friends, strangers) = (of(false)?, of(true)?);
    site.cluster.control.apply(&callers(""))?;
    wait(site, &ways, "the stranger is refused, and nobody else", false)?;
    let at = |n: usize| begun[n].to;
    if let Some(n) = friends.into_iter().position(|stream| answer(stream).is_none()) {
        return unmet(format!("a connection that is let in has ended: {}", at(n)));
    }
    let live = thread::scope(|scope| {
        let asked: Vec<_> = strangers.into_iter().map(|stream| scope.spawn(|| answer(stream))).collect();
        asked.into_iter().position(|one| one.join().unwrap().is_some())
    });
    if let Some(n) = live {
        return unmet(format!("the stranger's connection goes on: {}", at(n)));
    }
    Ok(())
}
