//! What a process sees of a service: by TCP and UDP, by either IP version and the one in the other.

use crate::site::{CLIENT, Case, FAR, NEAR, SERVED, SOON, Site, at, require, service, virtual_ip};
use bulkhead_lab::{Context, Error, Result, unmet, until};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn6, connect, getpeername, recvfrom, sendto, socket,
};
use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

pub const CASES: &[(&str, Case)] = &[
    ("a service is reached on both nodes, by both IP versions, and nothing else is seen of it", cluster_ips),
    ("datagrams of a socket go to one backend, and answers come from the service", datagrams),
    ("a connected socket of datagrams is ended when its backend is gone, and no other", orphaned),
    ("an IPv4 service is reached by an IPv6 socket", mapped),
    ("a process in a cgroup of its own is a pod's process", in_a_cgroup),
    ("a service without a backend refuses a call at once", refused),
    ("a pod that is its own backend reaches itself", hairpin),
    ("processes of the host are left alone", host),
    ("the command line shows services, and what is not translated", told),
];

const ANSWER: Duration = Duration::from_secs(3);

fn both(site: &Site, protocol: &str, endpoints: &[&str]) -> Result<()> {
    site.set(&[
        service("web", 1, &format!("protocol: {protocol}, port: 80"), ""),
        site.slice("web", false, endpoints)?,
        site.slice("web", true, endpoints)?,
    ])
}

fn cluster_ips(site: &mut Site) -> Result<()> {
    both(site, "TCP", &[NEAR, FAR])?;
    for v6 in [false, true] {
        site.until_answered_by(CLIENT, at(1, v6), &[NEAR, FAR])?;
        site.until_answered_by(FAR, at(1, v6), &[NEAR, FAR])?;
    }
    both(site, "TCP", &[FAR])?;
    for v6 in [false, true] {
        site.until_answered_by(CLIENT, at(1, v6), &[FAR])?;
    }
    Ok(())
}

/// Says who has answered, and from where.
fn ask(socket: &UdpSocket, to: Option<SocketAddr>) -> Result<(String, SocketAddr)> {
    match to {
        Some(to) => socket.send_to(b"who", to)?,
        None => socket.send(b"who")?,
    };
    let mut room = [0; 64];
    let (length, from) = socket.recv_from(&mut room)?;
    Ok((String::from_utf8_lossy(&room[..length]).into_owned(), from))
}

fn udp_socket(site: &Site, v6: bool) -> Result<UdpSocket> {
    let any: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().expect("an address");
    let socket = site.netns(CLIENT)?.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

fn datagrams(site: &mut Site) -> Result<()> {
    both(site, "UDP", &[NEAR, FAR])?;
    for v6 in [false, true] {
        let to = at(1, v6);
        until("the service answers", SOON, || ask(&udp_socket(site, v6)?, Some(to)).map(Some))?;
        let mut seen = BTreeSet::new();
        for _ in 0..24 {
            let socket = udp_socket(site, v6)?;
            let (first, from) = ask(&socket, Some(to))?;
            require(from == to, &format!("the answer is {from}'s"))?;
            for _ in 0..6 {
                let (name, _) = ask(&socket, Some(to))?;
                require(name == first, &format!("{first} has answered, and then {name}"))?;
            }
            seen.insert(first);
        }
        require(seen.len() == 2, &format!("only {seen:?} answer"))?;
        let connected = udp_socket(site, v6)?;
        connected.connect(to)?;
        require(connected.peer_addr()? == to, "the peer is another than was called")?;
        let (_, from) = ask(&connected, None)?;
        require(from == to, &format!("the answer is {from}'s"))?;
    }
    // The backend goes, and the socket's next datagram finds another.
    let socket = udp_socket(site, false)?;
    let (first, _) = ask(&socket, Some(at(1, false)))?;
    let other = if first == NEAR { FAR } else { NEAR };
    both(site, "UDP", &[other])?;
    until("the socket goes to the backend that is left", SOON, || {
        Ok((ask(&socket, Some(at(1, false)))?.0 == other).then_some(()))
    })?;
    // And stays there when the first comes back.
    both(site, "UDP", &[NEAR, FAR])?;
    until("new sockets find both", SOON, || {
        Ok((ask(&udp_socket(site, false)?, Some(at(1, false)))?.0 == first).then_some(()))
    })?;
    require(ask(&socket, Some(at(1, false)))?.0 == other, "the socket has changed its backend")
}

/// Connected and answered; by whom.
fn talking(site: &Site, v6: bool, to: SocketAddr) -> Result<(UdpSocket, String)> {
    let socket = udp_socket(site, v6)?;
    socket.connect(to)?;
    let (name, _) = ask(&socket, None)?;
    Ok((socket, name))
}

fn orphaned(site: &mut Site) -> Result<()> {
    both(site, "UDP", &[NEAR, FAR])?;
    until("the service answers", SOON, || ask(&udp_socket(site, true)?, Some(at(1, true))).map(Some))?;
    // By each of the families, and IPv4 by a socket of IPv6.
    let IpAddr::V4(v4) = virtual_ip(1, false) else { return unmet("the service has an IPv4 address") };
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), 80);
    let talk =
        || [(false, at(1, false)), (true, at(1, true)), (true, mapped)].map(|(v6, to)| talking(site, v6, to));
    let mut all = Vec::new();
    until("sockets of each kind talk with both backends", SOON, || {
        for socket in talk() {
            all.push(socket?);
        }
        let kinds = |name: &str| (0..3).all(|kind| all.iter().skip(kind).step_by(3).any(|(_, n)| n == name));
        Ok((kinds(NEAR) && kinds(FAR)).then_some(()))
    })?;
    // Whoever calls a pod by its own address knows what he does.
    let (direct, _) = talking(site, false, SocketAddr::new(site.address(NEAR, false)?, SERVED))?;
    both(site, "UDP", &[FAR])?;
    for (socket, _) in all.iter().filter(|(_, name)| name == NEAR) {
        until("a socket whose backend is gone is told so", SOON, || match ask(socket, None) {
            Err(e) if is_aborted(&e) => Ok(Some(())),
            other => unmet(format!("{other:?}")),
        })?;
    }
    for (socket, name) in all.iter().filter(|(_, name)| name == FAR) {
        require(ask(socket, None)?.0 == *name, "a socket whose backend is there has been ended")?;
    }
    require(ask(&direct, None)?.0 == NEAR, "a socket that called no service has been ended")?;
    // What goes while no daemon runs is seen by the next one.
    let (socket, _) = talking(site, false, at(1, false))?;
    site.lab.nodes[0].kill_daemon()?;
    both(site, "UDP", &[NEAR])?;
    site.lab.nodes[0].start_daemon()?;
    until("a socket whose backend went meanwhile is told so", SOON, || match ask(&socket, None) {
        Err(e) if is_aborted(&e) => Ok(Some(())),
        other => unmet(format!("{other:?}")),
    })
}

/// Told once; from then on it is connected to nobody.
fn is_aborted(error: &Error) -> bool {
    let Error::Bare(source) = error else { return false };
    [Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)].contains(&source.raw_os_error())
}

fn mapped_socket(site: &Site, kind: SockType) -> Result<OwnedFd> {
    site.netns(CLIENT)?.run(|| Ok(socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?))
}

fn mapped(site: &mut Site) -> Result<()> {
    let mapped = match virtual_ip(1, false) {
        IpAddr::V4(a) => SocketAddrV6::new(a.to_ipv6_mapped(), 80, 0, 0),
        IpAddr::V6(_) => return unmet("the service has an IPv4 address"),
    };
    let to = SockaddrIn6::from(mapped);
    both(site, "TCP", &[NEAR, FAR])?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR, FAR])?;
    let stream = mapped_socket(site, SockType::Stream)?;
    connect(stream.as_raw_fd(), &to).during(|| format!("calling {mapped}"))?;
    let peer: SockaddrIn6 = getpeername(stream.as_raw_fd())?;
    require(peer.ip() == *mapped.ip() && peer.port() == 80, &format!("the peer is {peer}"))?;
    both(site, "UDP", &[NEAR, FAR])?;
    until("the service answers", SOON, || ask(&udp_socket(site, false)?, Some(at(1, false))).map(Some))?;
    let plain = mapped_socket(site, SockType::Datagram)?;
    UdpSocket::from(plain.try_clone()?).set_read_timeout(Some(ANSWER))?;
    sendto(plain.as_raw_fd(), b"who", &to, MsgFlags::empty())?;
    let mut room = [0; 64];
    let (_, from) = recvfrom::<SockaddrIn6>(plain.as_raw_fd(), &mut room)?;
    require(from == Some(to), &format!("the answer is {from:?}'s"))
}

/// A cgroup of the lab's, gone with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let of_cgroup2 = |l: &&str| l.contains(" - cgroup2 ");
        let root = mounts.lines().find(of_cgroup2).and_then(|l| l.split(' ').nth(4));
        let root = root.ok_or_else(|| Error::Unmet("cgroup2 is not mounted".into()))?;
        // Another lab may run beside this one.
        let mark = fs::read_link("/proc/self/ns/net")?.display().to_string();
        let digits: String = mark.chars().filter(char::is_ascii_digit).collect();
        let path = PathBuf::from(root).join(format!("bulkhead-services-{digits}"));
        fs::create_dir_all(path.join("pod")).during(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("pod"));
        let _ = fs::remove_dir(&self.0);
    }
}

fn in_a_cgroup(site: &mut Site) -> Result<()> {
    both(site, "TCP", &[FAR])?;
    site.until_answered_by(CLIENT, at(1, false), &[FAR])?;
    let cgroup = Cgroup::create()?;
    let (ip, port) = (virtual_ip(1, false), 80);
    let procs = cgroup.0.join("pod/cgroup.procs").display().to_string();
    let script = format!("echo 0 > {procs} && exec 3<>/dev/tcp/{ip}/{port} && cat <&3");
    let said = bulkhead_lab::link::run(site.netns(CLIENT)?.command("bash").args(["-c", &script]))?;
    require(said == FAR, &format!("the answer is {said}"))
}

fn refused(site: &mut Site) -> Result<()> {
    both(site, "TCP", &[])?;
    for v6 in [false, true] {
        site.until_fails(CLIENT, at(1, v6), ErrorKind::ConnectionRefused)?;
    }
    both(site, "UDP", &[])?;
    until("a datagram is refused", SOON, || {
        let error = udp_socket(site, false)?.send_to(b"who", at(1, false));
        Ok(error.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused).then_some(()))
    })
}

fn hairpin(site: &mut Site) -> Result<()> {
    both(site, "TCP", &[CLIENT])?;
    for v6 in [false, true] {
        site.until_answered_by(CLIENT, at(1, v6), &[CLIENT])?;
    }
    Ok(())
}

/// The node serves at the port of its own that stands for another to pods.
fn host(site: &mut Site) -> Result<()> {
    let port = format!("protocol: TCP, port: 80, nodePort: {SERVED}");
    site.set(&[service("web", 1, &port, "  type: NodePort\n"), site.slice("web", false, &[FAR])?])?;
    let own = SocketAddr::new(site.address("node1", false)?, SERVED);
    site.until_answered_by(CLIENT, own, &[FAR])?;
    site.until_answered_by("node1", own, &["node1"])
}

fn told(site: &mut Site) -> Result<()> {
    let headless =
        "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None}\n";
    site.set(&[
        service("web", 1, "protocol: TCP, port: 80", ""),
        site.slice("web", false, &[NEAR, FAR])?,
        service("signal", 2, "name: m3ua, protocol: SCTP, port: 2905", ""),
        headless.into(),
    ])?;
    let backends = format!(
        "{}:{SERVED}, {}:{SERVED}",
        site.address(NEAR, false)?.min(site.address(FAR, false)?),
        site.address(NEAR, false)?.max(site.address(FAR, false)?)
    );
    until("the command line shows them", SOON, || {
        let said = site.lab.nodes[0].cli(&["services"])?;
        let lines: Vec<Vec<&str>> = said.lines().map(|l| l.split("  ").map(str::trim).collect()).collect();
        let has = |words: &[&str]| lines.iter().any(|l| words.iter().all(|w| l.contains(w)));
        let all = has(&["shop/web", "ClusterIP", "10.96.0.1", "80", "tcp", &backends])
            && has(&["shop/web", "fd00:96::1", "none: refused"])
            && has(&["shop/db", "all of it"])
            && has(&["shop/signal", "port m3ua"]);
        if all { Ok(Some(())) } else { unmet(said) }
    })
}
