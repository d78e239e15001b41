//! Who reaches whom: calls of everybody at everybody, each from the caller's own network namespace.

use crate::site::{PORT, Pod, Site};
use bulkhead_lab::{Error, Netns, Result, cluster::SOON, unmet, until};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

/// Of a call that nobody forbids, many times over; all are made at once.
const PATIENCE: Duration = Duration::from_millis(500);

/// One who calls and is called: a pod, or a node, which has no namespace here.
pub struct Party {
    pub namespace: &'static str,
    pub name: &'static str,
    pub node: &'static str,
    pub role: &'static str,
    /// IPv4 first.
    pub addresses: [IpAddr; 2],
    netns: Netns,
}

pub struct Call<'a> {
    pub from: &'a Party,
    pub to: &'a Party,
    pub v6: bool,
    pub port: u16,
}

impl Party {
    pub fn of_pod(site: &Site, pod: &Pod) -> Result<Self> {
        let [v4, v6] = site.addresses(pod)?;
        let machine = site.cluster.machines.iter().find(|m| m.name == pod.node);
        let machine = machine.ok_or_else(|| Error::Unmet(format!("there is no {}", pod.node)))?;
        let parse = |text: &str| text.parse().map_err(|_| Error::Unmet(format!("no address: {text}")));
        Ok(Self {
            namespace: pod.namespace,
            name: pod.name,
            node: pod.node,
            role: pod.role,
            addresses: [parse(&v4)?, parse(&v6)?],
            netns: machine.pod_netns(&v4)?,
        })
    }

    /// Both of them.
    pub fn nodes(site: &Site) -> Result<Vec<Self>> {
        let of = |(machine, name): (&bulkhead_lab::cluster::Machine, &'static str)| {
            let netns = Netns::of(machine.netns.path().to_path_buf())?;
            let addresses = [machine.v4.into(), machine.v6.into()];
            Ok(Self { namespace: "", name, node: name, role: "", addresses, netns })
        };
        site.cluster.machines.iter().zip(["node1", "node2"]).map(of).collect()
    }

    pub fn is_pod(&self) -> bool {
        !self.namespace.is_empty()
    }

    /// Whether somebody answers there.
    pub fn reaches(&self, to: SocketAddr) -> Result<bool> {
        self.reaches_within(to, PATIENCE)
    }

    pub fn reaches_within(&self, to: SocketAddr, patience: Duration) -> Result<bool> {
        self.netns.run(|| Ok(TcpStream::connect_timeout(&to, patience).is_ok()))
    }

    /// Of each, whether somebody answers; all at once.
    fn reaches_all(&self, to: &[SocketAddr]) -> Result<Vec<bool>> {
        let answered = |to: &SocketAddr| TcpStream::connect_timeout(to, PATIENCE).is_ok();
        // Threads are born where their parent is.
        self.netns.run(|| {
            thread::scope(|scope| {
                let calls: Vec<_> = to.iter().map(|to| scope.spawn(move || answered(to))).collect();
                let ended = |call: thread::ScopedJoinHandle<'_, bool>| {
                    call.join().map_err(|_| Error::Unmet("a call panicked".into()))
                };
                calls.into_iter().map(ended).collect()
            })
        })
    }
}

impl Call<'_> {
    /// A node reaches its own pods, whatever anybody says.
    fn is_own_nodes(&self) -> bool {
        !self.from.is_pod() && self.from.node == self.to.node
    }

    fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.to.addresses[usize::from(self.v6)], self.port)
    }

    fn told(&self, passed: bool) -> String {
        let (from, to) = (self.from.name, self.to.name);
        format!("{from} -> {to} ({}) {}", self.destination(), if passed { "passes" } else { "does not pass" })
    }
}

fn calls_of<'a>(from: &'a Party, all: &'a [Party], ports: &[u16]) -> Vec<Call<'a>> {
    let mut calls = Vec::new();
    for to in all.iter().filter(|to| to.is_pod() && !std::ptr::eq(from, *to)) {
        for v6 in [false, true] {
            calls.extend(ports.iter().map(|port| Call { from, to, v6, port: *port }));
        }
    }
    calls
}

/// It comes to be so that of all calls at pods, in both families, just those pass that are expected to.
pub fn wait_calls(
    what: &str,
    all: &[Party],
    ports: &[u16],
    expected: impl Fn(&Call<'_>) -> bool + Sync,
) -> Result<()> {
    let wrong = |from: &Party| -> Result<Vec<String>> {
        let calls = calls_of(from, all, ports);
        let passed = from.reaches_all(&calls.iter().map(Call::destination).collect::<Vec<_>>())?;
        let is_wrong =
            |(call, passed): &(&Call<'_>, bool)| *passed != (call.is_own_nodes() || expected(call));
        let wrong = calls.iter().zip(passed).filter(is_wrong);
        Ok(wrong.map(|(call, passed)| call.told(passed)).collect())
    };
    let wrong = &wrong;
    let what = format!("just what is expected passes: {what}");
    until(&what, SOON, || {
        let wrong = thread::scope(|scope| {
            let callers: Vec<_> = all.iter().map(|from| scope.spawn(move || wrong(from))).collect();
            let ended = callers.into_iter().map(|c| c.join().unwrap_or_else(|_| unmet("a caller panicked")));
            ended.collect::<Result<Vec<_>>>()
        })?;
        let wrong = wrong.concat();
        if wrong.is_empty() { Ok(Some(())) } else { unmet(wrong.join("\n")) }
    })
}

/// The same where nobody has more than one port.
pub fn wait_reached(what: &str, all: &[Party], expected: impl Fn(&Call<'_>) -> bool + Sync) -> Result<()> {
    wait_calls(what, all, &[PORT], expected)
}
