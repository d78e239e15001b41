//! Calls between namespaces, and a look at what a node's stack forwards.

use bulkhead_lab::{Context, Lab, Netns, Node, Pod, Result, link::run, unmet};
use nix::sys::{
    socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike},
};
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::Stdio,
    time::Duration,
};

const DEADLINE: Duration = Duration::from_secs(5);
/// Longer than a call is tried.
const CALLED: Duration = Duration::from_millis(2500);
const REQUEST: usize = 10_000;

pub fn require(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { unmet(what) }
}

pub fn wire(lab: &mut Lab) -> Result<()> {
    lab.pods.push(Pod::create(0, "shop", "plain-0")?);
    for n in 0..lab.pods.len() {
        let node = &lab.nodes[lab.pods[n].node];
        lab.pods[n].add(node)?;
    }
    // Routes to the other node's blocks come by BGP.
    let (from, to) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?);
    for v6 in [false, true] {
        bulkhead_lab::until("the nodes' blocks are routed", Duration::from_secs(30), || {
            let to = alternative(to, v6).to_string();
            run(from.netns.command("ping").args(["-n", "-c1", "-W1", &to])).map(Some)
        })?;
    }
    Ok(())
}

pub fn alternative(pod: &Pod, v6: bool) -> IpAddr {
    if v6 { pod.v6.into() } else { pod.v4.into() }
}

/// Adds to the configuration and starts the daemon anew.
pub fn configure(node: &mut Node, lines: &str) -> Result<()> {
    let path = node.log().with_file_name("bulkheadd.yaml");
    let text = fs::read_to_string(&path)? + lines;
    fs::write(&path, text)?;
    node.stop_daemon()?;
    node.start_daemon()
}

/// Begins again with room for so many connections: of maps that are there the size is fixed.
pub fn with_connections(node: &mut Node, entries: usize) -> Result<()> {
    node.stop_daemon()?;
    let path = node.log().with_file_name("bulkheadd.yaml");
    let program = bulkhead_lab::programs::find("bulkheadd")?;
    run(node.netns.command(program).arg("--config").arg(&path).arg("--uninstall"))?;
    let text = fs::read_to_string(&path)? + &format!("conntrackEntries: {entries}\n");
    fs::write(&path, text)?;
    node.start_daemon()
}

/// What a command prints, however it ends.
pub fn says(netns: &Netns, words: &[&str]) -> Result<String> {
    let output = netns.command(words[0]).args(&words[1..]).output().during(|| words.join(" "))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// `nft -f` in a namespace.
pub fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut child =
        netns.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().during(|| "nft".into())?;
    child.stdin.take().expect("piped").write_all(rules.as_bytes())?;
    let status = child.wait()?;
    require(status.success(), &format!("nft refuses {rules}"))
}

/// Counts what pods send and get that a node's stack forwards, from the moment it is made.
pub struct Watch<'a>(&'a Node);

impl<'a> Watch<'a> {
    pub fn start(node: &'a Node) -> Result<Self> {
        let rules = "table inet watch {}\ndelete table inet watch\ntable inet watch {\n counter seen {}\n chain forwarded {\n\
             type filter hook forward priority -300;\n meta l4proto { tcp, udp, icmp, icmpv6 } counter name seen\n }\n}\n";
        nft(&node.netns, rules)?;
        Ok(Self(node))
    }

    pub fn node(&self) -> &str {
        &self.0.name
    }

    pub fn packets(&self) -> Result<u64> {
        let text = run(self.0.netns.command("nft").args(["list", "counter", "inet", "watch", "seen"]))?;
        let count = text.split_whitespace().skip_while(|w| *w != "packets").nth(1);
        count.and_then(|n| n.parse().ok()).map_or_else(|| unmet(text.clone()), Ok)
    }
}

/// Calls `to:port`, served in the namespace `server` on any address; sends a request, gets it back. Who the server saw.
pub fn exchange(client: &Netns, server: &Netns, to: IpAddr, port: u16, mark: Option<u32>) -> Result<IpAddr> {
    exchange_at(client, server, port, SocketAddr::new(to, port), mark)
}

/// The same, where the service is not at the address that is called.
pub fn exchange_at(
    client: &Netns,
    server: &Netns,
    port: u16,
    called: SocketAddr,
    mark: Option<u32>,
) -> Result<IpAddr> {
    let listener = server.run(|| Ok(TcpListener::bind(("::", port))?))?;
    let serve = move || -> Result<IpAddr> {
        let (mut stream, peer) = accept(&listener)?;
        let mut request = vec![0; REQUEST];
        stream.read_exact(&mut request)?;
        stream.write_all(&request)?;
        Ok(peer.ip().to_canonical())
    };
    let served = std::thread::spawn(serve);
    let called = client.run(|| {
        let mut stream = connect(called, mark)?;
        let request = vec![7; REQUEST];
        stream.write_all(&request)?;
        let mut answer = vec![0; REQUEST];
        stream.read_exact(&mut answer)?;
        require(answer == request, "the answer is not what was sent")
    });
    let seen = served.join().expect("no panic");
    called?;
    seen
}

pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let (stream, peer) = bulkhead_lab::until("somebody calls", CALLED, || match listener.accept() {
        Ok(accepted) => Ok(Some(accepted)),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e.into()),
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok((stream, peer))
}

/// With `SO_MARK`, where one is given.
fn connect(to: SocketAddr, mark: Option<u32>) -> Result<TcpStream> {
    let fd = stream_for(to)?;
    if let Some(mark) = mark {
        setsockopt(&fd, sockopt::Mark, &mark)?;
    }
    connected(fd, to)
}

/// From this port, which others may have, too.
pub fn connect_from(port: u16, to: SocketAddr) -> Result<TcpStream> {
    let fd = stream_for(to)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
    connected(fd, to)
}

pub fn stream_for(to: SocketAddr) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn connected(fd: OwnedFd, to: SocketAddr) -> Result<TcpStream> {
    // Of connecting, too.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(2))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).during(|| format!("calling {to}"))?;
    Ok(TcpStream::from(fd))
}

/// For datagrams; whoever waits for one does not for ever.
pub fn bound(netns: &Netns, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = netns.run(|| Ok(UdpSocket::bind(SocketAddr::new(address, port))?))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// In packets as long as the route allows.
pub fn send_a_megabyte(client: &Netns, server: &Netns, to: IpAddr, port: u16) -> Result<()> {
    const SIZE: usize = 1 << 20;
    let listener = server.run(|| Ok(TcpListener::bind(("::", port))?))?;
    let served = std::thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = accept(&listener)?;
        let mut all = Vec::new();
        Ok(stream.read_to_end(&mut all)?)
    });
    client.run(|| Ok(connect(SocketAddr::new(to, port), None)?.write_all(&vec![1; SIZE])?))?;
    let arrived = served.join().expect("no panic")?;
    require(arrived == SIZE, &format!("{arrived} bytes arrived"))
}

/// A connection that stays.
pub struct Live {
    client: TcpStream,
    server: TcpStream,
}

impl Live {
    pub fn start(client: &Pod, server: &Pod, port: u16) -> Result<Self> {
        let listener = server.netns.run(|| Ok(TcpListener::bind(("::", port))?))?;
        let client = client.netns.run(|| connect(SocketAddr::new(server.v4.into(), port), None))?;
        let (server, _) = accept(&listener)?;
        Ok(Self { client, server })
    }

    /// So many bytes to the server.
    pub fn exchange(&mut self, bytes: usize) -> Result<()> {
        let mut server = self.server.try_clone()?;
        let read = std::thread::spawn(move || Ok(server.read_exact(&mut vec![0; bytes])?));
        self.client.write_all(&vec![9; bytes])?;
        read.join().expect("no panic")
    }
}
