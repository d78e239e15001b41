//! Under Debian's 6.12 in a virtual machine: that the programs load there, and what the machine's own kernel may lack: bonds, and
//! sockets of SCTP.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

use bulkhead_lab::{
    Error, Netns, Node, Objects, Pod, Result, enter,
    enter::WORK,
    guest,
    link::{End, veth},
    node::UPLINK,
    unmet, until,
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    errno::Errno,
    sys::socket::{Backlog, SockaddrStorage, bind, connect, listen},
};
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The guest's processors are emulated.
const SOON: Duration = Duration::from_secs(60);
/// Who is refused hears nothing for so long.
const REFUSED: Duration = Duration::from_secs(3);
const TCP: i32 = libc::IPPROTO_TCP;
const SCTP: i32 = libc::IPPROTO_SCTP;
const ASSOCIATION: u16 = 3905;
/// Of what the daemon's pods have theirs.
const MTU: &str = "1400";

type Case = fn(&Site) -> Result<()>;
const CASES: &[(&str, Case)] = &[
    ("a bond is the uplink, and its ports are none", chosen),
    ("policy holds on what comes by a bond, and packets go on when one of its ports goes", by_bond),
    ("an association of SCTP is let in by the rule that names it, and by no other", associations),
];

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let asked_for =
        |name: &str| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    if arguments.list || !CASES.iter().any(|(name, _)| asked_for(name)) {
        libtest_mimic::run(&arguments, trials(&Arc::new(Mutex::new(unmet("not started"))))).exit();
    }
    guest::enter()?;
    let _inside = enter()?;
    let site = Arc::new(Mutex::new(Site::create()));
    let conclusion = libtest_mimic::run(&arguments, trials(&site));
    drop(site);
    conclusion.exit()
}

fn trials(site: &Arc<Mutex<Result<Site>>>) -> Vec<Trial> {
    let trial = |(name, case): &(&str, Case)| {
        let (site, case) = (site.clone(), *case);
        Trial::test(*name, move || {
            let site = site.lock().unwrap_or_else(PoisonError::into_inner);
            let site = site.as_ref().map_err(ToString::to_string)?;
            let log = || format!("\n{}", site.node.log_tail(20));
            case(site).map_err(|e| Failed::from(e.to_string() + &log()))
        })
    };
    CASES.iter().map(trial).collect()
}

/// A node that hangs on a switch by two cables in a bond, a machine at the switch, and two pods.
struct Site {
    node: Node,
    switch: Netns,
    front: Pod,
    db: Pod,
}

impl Site {
    fn create() -> Result<Self> {
        let dir = Path::new(WORK);
        let objects = Objects::create(&dir.join("objects"))?;
        let admitted = format!("ports: [{{protocol: SCTP, port: {ASSOCIATION}}}");
        for (file, rule) in [
            ("payments.yaml", "ports: [{port: 8000, endPort: 8090}"),
            ("web.yaml", "ports: [{port: 8000, endPort: 8091}"),
        ] {
            let text = objects.read(file)?;
            let with = text.replace(rule, &rule.replace("ports: [", &(admitted.clone() + ", ")));
            assert_ne!(text, with, "{file} has the rule");
            objects.write(file, &with)?;
        }
        let (netns, switch) = (Netns::create("node1")?, Netns::create("switch")?);
        for netns in [&netns, &switch] {
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        }
        switch.ip("link add br0 type bridge")?;
        netns.ip("link add bond0 type bond mode active-backup miimon 50")?;
        for port in ["port1", "port2"] {
            veth(
                End { netns: &netns, name: port, addresses: &[] },
                End { netns: &switch, name: port, addresses: &[] },
            )?;
            switch.ip(&format!("link set {port} master br0"))?;
            // A bond takes only what is down.
            netns.ip(&format!("link set {port} down"))?;
            netns.ip(&format!("link set {port} master bond0"))?;
        }
        for (netns, name, addresses) in [
            (&netns, "bond0", ["172.30.1.2/24", "fd00:30:1::2/64"]),
            (&switch, "br0", ["172.30.1.1/24", "fd00:30:1::1/64"]),
            // The machine is of the group `legacy`.
            (&switch, "br0", ["172.30.9.2/32", "fd00:30:9::2/128"]),
        ] {
            netns.ip(&format!("link set {name} up mtu {MTU}"))?;
            for address in addresses {
                netns.ip(&format!("address add {address} dev {name}"))?;
            }
        }
        for (v4, v6) in [("default", "default"), ("172.30.9.2", "fd00:30:9::2")] {
            netns.ip(&format!("route add {v4} via 172.30.1.1"))?;
            netns.ip(&format!("-6 route add {v6} via fd00:30:1::1"))?;
        }
        switch.ip("route add 10.64.0.0/14 via 172.30.1.2 src 172.30.9.2")?;
        switch.ip("route add fd00:64::/30 via fd00:30:1::2 src fd00:30:9::2")?;
        let mut node =
            Node::create(netns, "172.30.1.2".parse().expect("v4"), "fd00:30:1::2".parse().expect("v6"), dir)?;
        let configuration = node.dir().join("bulkheadd.yaml");
        let text = fs::read_to_string(&configuration)?;
        fs::write(
            &configuration,
            text.replace(&format!("uplinks: [{UPLINK}]"), "uplinks: [\"bond*\", \"port*\"]"),
        )?;
        node.start_daemon_unready()?;
        until("the daemon is ready", SOON, || node.wait_ready().map(Some))?;
        let mut pods = [Pod::create(0, "web", "front-0")?, Pod::create(0, "payments", "db-0")?];
        for pod in &mut pods {
            pod.add(&node)?;
        }
        let [front, db] = pods;
        Ok(Self { node, switch, front, db })
    }
}

fn chosen(site: &Site) -> Result<()> {
    let status = site.node.cli(&["status"])?;
    let line = status.lines().find(|line| line.contains("uplinks")).unwrap_or_default();
    let expected = format!("bond0 (by `bond*`, MTU {MTU})");
    if !line.trim_end().ends_with(&expected) || line.contains("port") {
        return unmet(status);
    }
    let interface = bulkhead_lab::link::ip_output(Some(&site.front.netns), "-o link show dev eth0")?;
    if interface.contains(&format!("mtu {MTU}")) { Ok(()) } else { unmet(interface) }
}

fn by_bond(site: &Site) -> Result<()> {
    let pod: [IpAddr; 2] = [site.db.v4.into(), site.db.v6.into()];
    let admitted = |at: IpAddr| exchange(TCP, &site.switch, &site.db.netns, SocketAddr::new(at, 20880));
    for at in pod {
        until("the machine calls the pod", SOON, || admitted(at).map(Some))?;
        refused(TCP, &site.switch, &site.db.netns, SocketAddr::new(at, 8080))?;
        admitted(at)?;
    }
    for port in ["port1", "port2"] {
        site.switch.ip(&format!("link set {port} down"))?;
        for at in pod {
            until(&format!("packets go on without {port}"), SOON, || admitted(at).map(Some))?;
        }
        site.switch.ip(&format!("link set {port} up"))?;
        until("both ports are there again", SOON, || {
            let state =
                bulkhead_lab::link::ip_output(Some(&site.node.netns), &format!("-o link show dev {port}"))?;
            Ok(state.contains("LOWER_UP").then_some(()))
        })?;
    }
    Ok(())
}

fn associations(site: &Site) -> Result<()> {
    for at in [IpAddr::from(site.db.v4), site.db.v6.into()] {
        until("an association", SOON, || {
            exchange(SCTP, &site.front.netns, &site.db.netns, SocketAddr::new(at, ASSOCIATION)).map(Some)
        })?;
        // Of TCP that port is another one, and of SCTP another port is.
        refused(TCP, &site.front.netns, &site.db.netns, SocketAddr::new(at, ASSOCIATION))?;
        refused(SCTP, &site.front.netns, &site.db.netns, SocketAddr::new(at, 8080))?;
    }
    Ok(())
}

/// A call that somebody waits for, that never comes to him, and that nothing answers.
fn refused(protocol: i32, client: &Netns, server: &Netns, to: SocketAddr) -> Result<()> {
    let listener = listening(protocol, server, to)?;
    let silent = |e: &Error| {
        let Error::Bare(e) = e else { return false };
        [libc::EINPROGRESS, libc::EAGAIN, libc::ETIMEDOUT].map(Some).contains(&e.raw_os_error())
    };
    match call(protocol, client, to) {
        Err(e) if !silent(&e) => return Err(e),
        Ok(()) => return unmet(format!("{to} answers")),
        Err(_) => {}
    }
    match listener.accept() {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        other => unmet(format!("{to} has heard it: {other:?}")),
    }
}

/// A connection or association; octets there and back.
fn exchange(protocol: i32, client: &Netns, server: &Netns, to: SocketAddr) -> Result<()> {
    let listener = listening(protocol, server, to)?;
    let served = std::thread::spawn(move || serve(&listener));
    let called = call(protocol, client, to);
    let served = served.join().expect("no panic");
    called.and(served)
}

fn listening(protocol: i32, server: &Netns, to: SocketAddr) -> Result<TcpListener> {
    server.run(|| {
        let socket = open(protocol, to)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        listen(&socket, Backlog::new(1)?)?;
        Ok(TcpListener::from(socket))
    })
}

fn call(protocol: i32, client: &Netns, to: SocketAddr) -> Result<()> {
    client.run(|| {
        let socket = open(protocol, to)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"there")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        if &answer == b"there" { Ok(()) } else { unmet("another answer") }
    })
}

fn serve(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut request = [0; 5];
    stream.read_exact(&mut request)?;
    Ok(stream.write_all(&request)?)
}

/// One that gives up by itself: what it reads, sends, connects to and accepts.
fn open(protocol: i32, to: SocketAddr) -> Result<OwnedFd> {
    let family = if to.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no memory is handed over; what is returned is checked, and nobody else's.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
    Errno::result(fd)?;
    // SAFETY: as above.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let limit = nix::sys::time::TimeVal::new(REFUSED.as_secs() as i64, 0);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &limit)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SendTimeout, &limit)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReuseAddr, &true)?;
    Ok(socket)
}
