//! What the hooks of services add to a call: `connect` of datagram sockets, which sends no packet.
//!
//! Both nodes of the lab have hooks on the one root of cgroup2, and every daemon of another lab beside this one has, too: a call
//! meets them all, where a node's meets one. So the figures are an upper bound.

use crate::{Lab, Netns, Pod, Result, figure::Figure, link::run as command, programs, wait::until_true};
use bulkhead_api::messages::Services;
use std::{
    fmt::Write,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

/// Sockets in one round; a socket calls once.
const CALLS: u32 = 2_000;
const ROUNDS: usize = 21;
const SOON: Duration = Duration::from_secs(60);
/// Many enough that a walk over them would show.
const MANY: usize = 1_000;

pub fn run() -> Result<Vec<Figure>> {
    let mut lab = Lab::start()?;
    let mut pod = Pod::create(0, "shop", "caller")?;
    pod.add(&lab.nodes[0])?;
    // One hop from a default route, as a pod is, and no pod.
    let nobody = Netns::create("nobody")?;
    for line in ["link add eth0 type veth peer name peer0", "link set eth0 up", "link set peer0 up"] {
        nobody.ip(line)?;
    }
    nobody.ip("addr add 10.9.0.1/32 dev eth0")?;
    nobody.ip("route add default dev eth0")?;
    let (outside, service) =
        (SocketAddr::from(([172, 30, 9, 2], 53)), SocketAddr::from(([10, 96, 0, 1], 53)));
    let mut measured = Vec::new();
    for services in [10, MANY] {
        write(&lab, services)?;
        until_true("all services are told", SOON, || {
            let told: Services = lab.nodes[0].get("/v1/services")?;
            Ok(told.frontends.len() == services)
        })?;
        let kinds = [
            (format!("connect_no_pod_{services}"), &nobody, outside),
            (format!("connect_no_service_{services}"), &pod.netns, outside),
            (format!("connect_service_{services}"), &pod.netns, service),
        ];
        let mut times = kinds.each_ref().map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for ((_, netns, to), times) in kinds.iter().zip(&mut times) {
                times.push(netns.run(|| nanoseconds(*to))?);
            }
        }
        measured.extend(kinds.into_iter().zip(times).map(|((name, ..), times)| (name, median(times))));
    }
    for node in &mut lab.nodes {
        node.stop_daemon()?;
        let configuration = node.log().with_file_name("bulkheadd.yaml");
        let program = programs::find("bulkheadd")?;
        command(node.netns.command(program).arg("--config").arg(configuration).arg("--uninstall"))?;
    }
    let bare = (0..ROUNDS).map(|_| nobody.run(|| nanoseconds(outside))).collect::<Result<Vec<_>>>()?;
    let bare = median(bare);
    Ok(measured.into_iter().map(|(name, ours)| Figure::new(&name, ours, "ns").beside(bare)).collect())
}

/// Of one call.
fn nanoseconds(to: SocketAddr) -> Result<f64> {
    let sockets = (0..CALLS).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<std::io::Result<Vec<_>>>()?;
    let start = Instant::now();
    for socket in &sockets {
        socket.connect(to)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(CALLS))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Each with one backend.
fn write(lab: &Lab, services: usize) -> Result<()> {
    let mut text = String::new();
    for n in 1..=services {
        let (ip, name) = (format!("10.96.{}.{}", n >> 8, n & 0xff), format!("s{n}"));
        // Writing to a string never fails.
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: {ip}, ports: [{{protocol: UDP, port: 53}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", protocol: UDP, port: 53}}]\nendpoints: [{{addresses: [172.30.9.2]}}]\n"
        );
    }
    lab.objects.write("services.yaml", &text).map(drop)
}
