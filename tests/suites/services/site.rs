//! The lab with servers in its pods, and calls that say who has answered.

use bulkhead_api::messages::Services;
use bulkhead_lab::{Lab, Netns, Pod, Result, unmet, until};
use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

pub type Case = fn(&mut Site) -> Result<()>;

pub const SOON: Duration = Duration::from_secs(20);
/// Longer than a call is tried.
const CALL: Duration = Duration::from_secs(2);
/// Where all servers listen, TCP and UDP, both IP versions.
pub const SERVED: u16 = 8085;
/// Who calls.
pub const CLIENT: &str = "shop/cart-0";
/// On the client's node, and on the other.
pub const NEAR: &str = "shop/plain-0";
pub const FAR: &str = "shop/cart-1";

/// Servers end before the namespaces they are in.
pub struct Site {
    servers: Vec<Server>,
    pub lab: Lab,
}

impl Site {
    /// All pods wired, all of them and both nodes serve.
    pub fn start() -> Result<Self> {
        let mut lab = Lab::start()?;
        for (node, name) in [(0, "plain-0"), (0, "plain-1")] {
            lab.pods.push(Pod::create(node, "shop", name)?);
        }
        for n in 0..lab.pods.len() {
            let node = &lab.nodes[lab.pods[n].node];
            lab.pods[n].add(node)?;
        }
        let pods = lab.pods.iter().map(|p| (p.reference(), &p.netns));
        let nodes = lab.nodes.iter().map(|n| (n.name.clone(), &n.netns));
        let mut servers = Vec::new();
        for (name, netns) in pods.chain(nodes) {
            servers.push(Server::start(netns, &name)?);
        }
        let site = Self { servers, lab };
        // Routes to the other node's blocks come by BGP.
        for v6 in [false, true] {
            until("the nodes' blocks are routed", Duration::from_secs(30), || {
                site.call(CLIENT, SocketAddr::new(site.address(FAR, v6)?, SERVED)).map(Some)
            })?;
        }
        Ok(site)
    }

    /// Of a pod or a node.
    pub fn address(&self, name: &str, v6: bool) -> Result<IpAddr> {
        if let Some(node) = self.lab.nodes.iter().find(|n| n.name == name) {
            return Ok(if v6 { node.v6.into() } else { node.v4.into() });
        }
        let pod = self.lab.pod(name)?;
        Ok(if v6 { pod.v6.into() } else { pod.v4.into() })
    }

    pub fn netns(&self, name: &str) -> Result<&Netns> {
        match self.lab.nodes.iter().find(|n| n.name == name) {
            Some(node) => Ok(&node.netns),
            None => Ok(&self.lab.pod(name)?.netns),
        }
    }

    /// Who answers a call by TCP.
    pub fn call(&self, from: &str, to: SocketAddr) -> Result<String> {
        self.netns(from)?.run(|| Ok(call(to)?))
    }

    /// What a call by TCP fails with.
    pub fn call_error(&self, from: &str, to: SocketAddr) -> Result<io::Error> {
        match self.netns(from)?.run(|| Ok(call(to)))? {
            Err(e) => Ok(e),
            Ok(name) => unmet(format!("{name} answers")),
        }
    }

    /// Everybody who answers calls, until all of these have and nobody else does.
    pub fn until_answered_by(&self, from: &str, to: SocketAddr, expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
        until(&format!("{expected:?} answer at {to}"), SOON, || {
            let mut seen = BTreeSet::new();
            // One of two is missing in one try of a million.
            for _ in 0..if expected.len() == 1 { 8 } else { 24 } {
                seen.insert(self.call(from, to)?);
            }
            if seen == expected { Ok(Some(())) } else { unmet(format!("{seen:?} answer")) }
        })
    }

    pub fn until_fails(&self, from: &str, to: SocketAddr, kind: io::ErrorKind) -> Result<()> {
        until(&format!("a call of {to} ends with {kind:?}"), SOON, || {
            let error = self.call_error(from, to)?;
            if error.kind() == kind { Ok(Some(())) } else { unmet(error.to_string()) }
        })
    }

    /// In the place of all services there were; names (of pods and nodes) are replaced by their addresses.
    pub fn set(&self, documents: &[String]) -> Result<()> {
        self.lab.objects.write("services.yaml", &documents.join("---\n")).map(drop)
    }

    /// Both nodes' pods find these backends at that many frontends of a service.
    pub fn told(&self, node: usize) -> Result<Services> {
        self.lab.nodes[node].get("/v1/services")
    }

    pub fn slice(&self, service: &str, v6: bool, endpoints: &[&str]) -> Result<String> {
        let plain = |name: &&str| self.endpoint(name, v6, "");
        let endpoints = endpoints.iter().map(plain).collect::<Result<Vec<_>>>()?;
        Ok(slice(service, v6, &endpoints.concat()))
    }

    /// One entry of a slice, with more fields.
    pub fn endpoint(&self, name: &str, v6: bool, more: &str) -> Result<String> {
        let node = match self.lab.pod(name) {
            Ok(pod) => &self.lab.nodes[pod.node].name,
            Err(_) => name,
        };
        Ok(format!("- {{addresses: [\"{}\"], nodeName: {node}{more}}}\n", self.address(name, v6)?))
    }
}

/// A service of the namespace `shop`; `port` is one item of its ports, `more` are other fields of its spec.
pub fn service(name: &str, n: u16, port: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  clusterIPs: [{}, \"{}\"]\n  \
         ports: [{{{port}}}]\n{more}",
        virtual_ip(n, false),
        virtual_ip(n, true)
    )
}

/// Cluster IP number `n`.
pub fn virtual_ip(n: u16, v6: bool) -> IpAddr {
    if v6 { format!("fd00:96::{n}") } else { format!("10.96.0.{n}") }.parse().expect("an address")
}

pub fn at(n: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(virtual_ip(n, v6), 80)
}

/// `endpoints` are items of a list. Of both protocols, as a service may have either.
pub fn slice(service: &str, v6: bool, endpoints: &str) -> String {
    let (family, end) = if v6 { ("IPv6", "v6") } else { ("IPv4", "v4") };
    let endpoints =
        if endpoints.is_empty() { "endpoints: []\n" } else { &format!("endpoints:\n{endpoints}") };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{end}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: {family}\nports:\n\
         - {{name: \"\", protocol: TCP, port: {SERVED}}}\n- {{name: \"\", protocol: UDP, port: {SERVED}}}\n{endpoints}"
    )
}

fn call(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, CALL)?;
    stream.set_read_timeout(Some(CALL))?;
    // Nothing but the service is to be seen of it.
    let peer = stream.peer_addr()?;
    if peer != to {
        return Err(io::Error::other(format!("the peer is {peer}")));
    }
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

/// Says its name to whoever calls.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(netns: &Netns, name: &str) -> Result<Self> {
        let (listener, socket) =
            netns.run(|| Ok((TcpListener::bind(("::", SERVED))?, UdpSocket::bind(("::", SERVED))?)))?;
        listener.set_nonblocking(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = ((stop.clone(), name.to_string()), (stop.clone(), name.to_string()));
        let threads = vec![
            thread::spawn(move || {
                while !tcp.0.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // Whoever has gone meanwhile did not want to know.
                        Ok((mut stream, _)) => drop(stream.write_all(tcp.1.as_bytes())),
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            }),
            thread::spawn(move || {
                let mut room = [0; 64];
                while !udp.0.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut room) {
                        drop(socket.send_to(udp.1.as_bytes(), from));
                    }
                }
            }),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.servers.clear();
    }
}

pub fn require(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { unmet(what) }
}
