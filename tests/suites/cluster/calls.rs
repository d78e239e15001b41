//! Who reaches whom: calls of everybody at everybody, each from the caller's own network namespace.

use crate::site::{PORT, Pod, Site};
use bulkhead_lab::{
    Error, Netns, Result,
    cluster::SOON,
    probe::{self, Cell, Family, Service, Verdict},
    unmet, until,
};
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
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
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

    pub fn netns(&self) -> &Netns {
        &self.netns
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
        let passed = if passed { "passes" } else { "does not pass" };
        format!("{from} -> {to} ({:?} {}) {passed}", self.protocol, self.destination())
    }
}

fn calls_of<'a>(all: &'a [Party], asked: &[(Protocol, u16)]) -> Vec<Call<'a>> {
    let mut calls = Vec::new();
    for from in all {
        for to in all.iter().filter(|to| to.is_pod() && !std::ptr::eq(from, *to)) {
            for v6 in [false, true] {
                calls.extend(asked.iter().map(|&(protocol, port)| Call { from, to, v6, protocol, port }));
            }
        }
    }
    calls
}

/// Of each call by TCP, whether somebody answers.
fn by_tcp(all: &[Party], calls: &[Call<'_>]) -> Result<Vec<bool>> {
    let of = |from: &Party| {
        let own = calls.iter().filter(|call| std::ptr::eq(call.from, from));
        from.reaches_all(&own.map(Call::destination).collect::<Vec<_>>())
    };
    let of = &of;
    // Calls are in the order of those who make them.
    thread::scope(|scope| {
        let callers: Vec<_> = all.iter().map(|from| scope.spawn(move || of(from))).collect();
        let ended = callers.into_iter().map(|c| c.join().unwrap_or_else(|_| unmet("a caller panicked")));
        Ok(ended.collect::<Result<Vec<_>>>()?.concat())
    })
}

/// Of each datagram, whether it arrives and is answered there: who answers is of the test, in the pod's own network namespace.
fn by_udp(all: &[Party], calls: &[Call<'_>]) -> Result<Vec<bool>> {
    let site = |party: &'_ Party| match party.addresses {
        [IpAddr::V4(v4), IpAddr::V6(v6)] => Ok((v4, v6)),
        other => unmet(format!("{} has {other:?}", party.name)),
    };
    let addresses = all.iter().map(site).collect::<Result<Vec<_>>>()?;
    let sites: Vec<_> = all
        .iter()
        .zip(addresses)
        .map(|(party, (v4, v6))| probe::Site { name: party.name, netns: &party.netns, v4, v6 })
        .collect();
    let number = |of: &Party| all.iter().position(|party| std::ptr::eq(party, of)).unwrap_or_default();
    let cell = |call: &Call<'_>| Cell {
        from: number(call.from),
        to: number(call.to),
        family: if call.v6 { Family::V6 } else { Family::V4 },
        service: Service::Udp(call.port),
    };
    let verdicts = probe::probe(&sites, &calls.iter().map(cell).collect::<Vec<_>>())?;
    let passed = |(call, verdict): (&Call<'_>, Verdict)| match verdict {
        Verdict::Allowed => Ok(true),
        Verdict::Denied => Ok(false),
        other => unmet(format!("{}: {other:?}", call.told(true))),
    };
    calls.iter().zip(verdicts).map(passed).collect()
}

/// It comes to be so that of all calls at pods, in both families, just those pass that are expected to.
pub fn wait_calls(
    what: &str,
    all: &[Party],
    asked: &[(Protocol, u16)],
    expected: impl Fn(&Call<'_>) -> bool,
) -> Result<()> {
    let (tcp, udp): (Vec<_>, Vec<_>) =
        calls_of(all, asked).into_iter().partition(|call| call.protocol == Protocol::Tcp);
    let wrong = |calls: &[Call<'_>], passed: Vec<bool>| -> Vec<String> {
        let is_wrong =
            |(call, passed): &(&Call<'_>, bool)| *passed != (call.is_own_nodes() || expected(call));
        calls.iter().zip(passed).filter(is_wrong).map(|(call, passed)| call.told(passed)).collect()
    };
    let what = format!("just what is expected passes: {what}");
    until(&what, SOON, || {
        // Most of the time is that of calls which nobody answers.
        let (tcp_passed, udp_passed) = thread::scope(|scope| {
            let udp_passed = scope.spawn(|| if udp.is_empty() { Ok(Vec::new()) } else { by_udp(all, &udp) });
            (by_tcp(all, &tcp), udp_passed.join().unwrap_or_else(|_| unmet("a caller panicked")))
        });
        let mut all_wrong = wrong(&tcp, tcp_passed?);
        all_wrong.extend(wrong(&udp, udp_passed?));
        if all_wrong.is_empty() { Ok(Some(())) } else { unmet(all_wrong.join("\n")) }
    })
}

/// The same where nobody has more than one port.
pub fn wait_reached(what: &str, all: &[Party], expected: impl Fn(&Call<'_>) -> bool) -> Result<()> {
    wait_calls(what, all, &[(Protocol::Tcp, PORT)], expected)
}
