//! The direct path, live: datagrams, errors, what clashes with it, what is at its limit, another daemon, another family's
//! next hop.

use crate::support::{Watch, alternative, bound, connect_from, exchange, require, says};
use crate::translated::{at, clear, service, translate};
use bulkhead_api::messages::DropInfo;
use bulkhead_lab::{Lab, Node, Pod, Result, until};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

const DEADLINE: Duration = Duration::from_secs(5);
/// What the partitions of both ends allow.
const DATAGRAMS: u16 = 9125;

fn dropped(node: &Node, reason: &str) -> Result<u64> {
    let drops: Vec<DropInfo> = node.get("/v1/drops")?;
    Ok(drops.iter().filter(|d| d.reason == reason).map(|d| d.packets).sum())
}

fn untouched(watch: &Watch<'_>) -> Result<()> {
    require(watch.packets()? == 0, &format!("{} forwarded some of it by its stack", watch.node()))
}

/// Of ICMP the partitions allow pods of `payments` nothing: only the error's own connection lets it pass. At an uplink no
/// datagram is known to begin a connection: there the stack has them.
pub fn datagrams(lab: &mut Lab) -> Result<()> {
    let db = lab.pod("payments/db-0")?;
    for front in [lab.pod("web/front-0")?, lab.pod("web/front-1")?] {
        for v6 in [false, true] {
            let (own, to) = (alternative(front, v6), SocketAddr::new(alternative(db, v6), DATAGRAMS));
            let watch = Watch::start(lab.node_of(front))?;
            let server = bound(&db.netns, to.ip(), DATAGRAMS)?;
            let client = bound(&front.netns, own, 0)?;
            client.connect(to)?;
            for n in 0..8u8 {
                client.send(&[n; 100])?;
                let (length, from) = server.recv_from(&mut [0; 200])?;
                require((length, from) == (100, client.local_addr()?), "the datagram changed on its way")?;
                server.send_to(&[n; 50], from)?;
                require(client.recv(&mut [0; 200])? == 50, "the answer changed on its way")?;
            }
            drop(server);
            // Its port is closed now, and the pod says so.
            client.send(&[9; 100])?;
            let refused = client.recv(&mut [0; 200]).map_err(|e| e.kind());
            require(refused == Err(ErrorKind::ConnectionRefused), &format!("no error but {refused:?}"))?;
            untouched(&watch)?;
        }
    }
    Ok(())
}

/// A router's word about a direct connection.
pub fn errors_of_routers(lab: &mut Lab) -> Result<()> {
    let (front, db) = (lab.pod("web/front-1")?, lab.pod("payments/db-0")?);
    let client = bound(&front.netns, front.v4.into(), 0)?;
    client.connect((db.v4, DATAGRAMS))?;
    let server = bound(&db.netns, db.v4.into(), DATAGRAMS)?;
    client.send(&[1])?;
    server.recv(&mut [0; 8])?;
    let watch = Watch::start(&lab.nodes[1])?;
    setsockopt(&client, sockopt::Ipv4RecvErr, &true)?;
    // The node takes the first hop.
    client.set_ttl(2)?;
    client.send(&[2])?;
    let error = client.recv(&mut [0; 8]).map_err(|e| e.kind());
    require(error == Err(ErrorKind::HostUnreachable), &format!("not told, but {error:?}"))?;
    untouched(&watch)
}

/// A service that would put a connection into the place of a direct one: the stack has not seen that one, and gives both the
/// same addresses and ports.
pub fn clash(lab: &mut Lab) -> Result<()> {
    const FROM: u16 = 41_000;
    const REASON: &str = "clash with a direct connection";
    let (cart, plain) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?);
    for v6 in [false, true] {
        let (backend, called) = (at(alternative(plain, v6), 8080), at(service(14, v6), 80));
        translate(lab, &[(called, backend)], &[])?;
        let before = dropped(&lab.nodes[0], REASON)?;
        let listener = plain.netns.run(|| Ok(TcpListener::bind(backend)?))?;
        let mut live = cart.netns.run(|| connect_from(FROM, backend))?;
        let (mut served, _) = listener.accept()?;
        let refused = cart.netns.run(|| connect_from(FROM, called));
        require(refused.is_err(), "two connections have the same ends")?;
        require(dropped(&lab.nodes[0], REASON)? > before, "nobody tells why")?;
        live.write_all(b"still")?;
        served.read_exact(&mut [0; 5])?;
        // The one begins where the other has ended. (A reset leaves no socket waiting.)
        resets_when_dropped(&live)?;
        drop((live, served));
        let after = cart.netns.run(|| connect_from(FROM, called))?;
        resets_when_dropped(&after)?;
    }
    clear(lab)
}

fn resets_when_dropped(stream: &TcpStream) -> Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(stream, sockopt::Linger, &at_once)?)
}

/// Connections of the node under test; a pod may have a quarter of them.
pub const CONNECTIONS: usize = 2048;

pub fn share(lab: &mut Lab) -> Result<()> {
    const REASON: &str = "pod's share of connections used up";
    // Both ends of each are this process's.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most)?;
    let node = &lab.nodes[0];
    let (cart, plain, low) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?, lab.pod("shop/low-0")?);
    let to = SocketAddr::new(plain.v4.into(), 8080);
    let listener = plain.netns.run(|| Ok(TcpListener::bind(to)?))?;
    let open = |pod: &Pod| -> Result<(TcpStream, TcpStream)> {
        let caller = pod.netns.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_millis(500))?))?;
        Ok((caller, listener.accept()?.0))
    };
    let before = dropped(node, REASON)?;
    let mut live = Vec::new();
    while let Ok(connection) = open(cart) {
        live.push(connection);
        require(live.len() <= CONNECTIONS / 4, "a pod has more than its share")?;
    }
    // It had some that still close.
    require(live.len() > CONNECTIONS / 8, &format!("only {} were to be had", live.len()))?;
    require(dropped(node, REASON)? > before, "refused, and nobody tells why")?;
    let watch = Watch::start(node)?;
    for (caller, called) in &mut live {
        caller.write_all(b"x")?;
        called.read_exact(&mut [0])?;
    }
    untouched(&watch)?;
    open(low)?;
    drop(live);
    until("there is room again", DEADLINE, || open(cart).map(Some))?;
    Ok(())
}

pub fn another_daemon(lab: &mut Lab) -> Result<()> {
    let call = |lab: &Lab| -> Result<()> {
        let (cart, plain, far) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?, lab.pod("shop/cart-1")?);
        for v6 in [false, true] {
            let watch = Watch::start(&lab.nodes[0])?;
            exchange(&cart.netns, &plain.netns, alternative(plain, v6), 8080, None)?;
            exchange(&far.netns, &cart.netns, alternative(cart, v6), 8080, None)?;
            untouched(&watch)?;
        }
        Ok(())
    };
    lab.nodes[0].kill_daemon()?;
    call(lab)?;
    lab.nodes[0].start_daemon()?;
    call(lab)
}

/// RFC 8950: of the router only its IPv6 address is known.
pub fn next_hop_of_the_other_family(lab: &mut Lab) -> Result<()> {
    let (cart, far, node) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?, &lab.nodes[0]);
    node.netns.ip(&format!("route add {}/32 via inet6 fd00:30:1::1 dev eth0", far.v4))?;
    node.netns.ip("neigh flush dev eth0")?;
    let watch = Watch::start(node)?;
    let seen = exchange(&cart.netns, &far.netns, far.v4.into(), 8080, None)?;
    require(seen == cart.v4, &format!("the server saw {seen}"))?;
    untouched(&watch)?;
    let neighbours = says(&node.netns, &["ip", "-6", "neigh", "show", "dev", "eth0"])?;
    require(neighbours.contains("fd00:30:1::1"), &format!("the next hop was not asked for: {neighbours}"))?;
    node.netns.ip(&format!("route del {}/32 via inet6 fd00:30:1::1 dev eth0", far.v4))
}
