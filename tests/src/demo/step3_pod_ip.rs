//! The vm calls a Dubbo provider by the pod's own IP, and the pod sees the vm's own address: no NAT, no encapsulation.

use super::{Held, call::call};
use crate::{
    Capture, Lab, Result,
    capture::{Frame, Outer},
    node::UPLINK,
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, TCP, UDP},
    unmet,
};
use std::net::{IpAddr, SocketAddr};

const DUBBO: u16 = 20880;
/// Tunnels over UDP: VXLAN (both its ports), Geneve, WireGuard.
const TUNNEL_PORTS: [u16; 4] = [4789, 8472, 6081, 51820];

pub fn run(lab: &mut Lab) -> Result<Held> {
    let pod = lab.pod("payments/db-0")?;
    let node = lab.node_of(pod);
    let capture = Capture::start(&node.netns, UPLINK)?;
    let ends: [(IpAddr, IpAddr); 2] = [(lab.vm.v4.into(), pod.v4.into()), (lab.vm.v6.into(), pod.v6.into())];
    let mut times = Vec::new();
    for (vm, address) in ends {
        let call = call(&lab.vm.netns, &pod.netns, SocketAddr::new(address, DUBBO))?;
        if call.seen_as.ip() != vm {
            return unmet(format!("the pod saw {}, not the vm's {vm}", call.seen_as.ip()));
        }
        times.push(format!("{:.1} ms", call.took.as_secs_f64() * 1000.0));
    }
    let frames = capture.stop()?;
    let count = bare(&frames, &ends)?;
    Ok(Held::new(format!(
        "source {} and {}; calls {}; {count} frames, none translated or wrapped",
        lab.vm.v4,
        lab.vm.v6,
        times.join(" and ")
    )))
}

/// The frames of the calls, which must all be bare IP between the two ends.
fn bare(frames: &[Frame], ends: &[(IpAddr, IpAddr)]) -> Result<usize> {
    for frame in frames {
        let wrapped = match frame {
            Frame { ethertype: ETHERTYPE_ARP, .. } => false,
            Frame { ethertype: ETHERTYPE_IPV4 | ETHERTYPE_IPV6, ip: Some(ip) } => wraps(ip),
            _ => true,
        };
        if wrapped {
            return unmet(format!("a frame on the uplink is not bare IP: {frame:?}"));
        }
    }
    let mut count = 0;
    for (vm, pod) in ends {
        let between = |from: &IpAddr, to: &IpAddr| {
            frames
                .iter()
                .filter_map(|f| f.ip)
                .filter(|ip| ip.source == *from && ip.destination == *to && ip.protocol == TCP)
                .count()
        };
        let (there, back) = (between(vm, pod), between(pod, vm));
        // SYN, ACK and request; SYN-ACK and answer.
        if there < 3 || back < 2 {
            return unmet(format!("on the uplink {there} frames {vm} → {pod} and {back} back"));
        }
        count += there + back;
    }
    Ok(count)
}

fn wraps(ip: &Outer) -> bool {
    let tunnel = |port: u16| TUNNEL_PORTS.contains(&port);
    match ip.protocol {
        UDP => ip.ports.is_some_and(|(source, destination)| tunnel(source) || tunnel(destination)),
        // Hop-by-hop: multicast listener reports of IPv6.
        TCP | ICMP | ICMPV6 | 0 => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(from: &str, to: &str, protocol: u8, ports: Option<(u16, u16)>) -> Frame {
        let ip = Outer { source: from.parse().unwrap(), destination: to.parse().unwrap(), protocol, ports };
        Frame { ethertype: ETHERTYPE_IPV4, ip: Some(ip) }
    }

    fn call(vm: &str, pod: &str) -> Vec<Frame> {
        let there = frame(vm, pod, TCP, Some((40000, DUBBO)));
        let back = frame(pod, vm, TCP, Some((DUBBO, 40000)));
        vec![there, back, there, there, back]
    }

    const VM: &str = "172.30.9.2";
    const POD: &str = "10.65.0.1";

    fn judged(frames: &[Frame]) -> Result<usize> {
        bare(frames, &[(VM.parse().unwrap(), POD.parse().unwrap())])
    }

    #[test]
    fn a_call_between_the_two_addresses_is_bare() {
        assert_eq!(judged(&call(VM, POD)).unwrap(), 5);
    }

    #[test]
    fn a_translated_call_is_noticed() {
        assert!(judged(&call("172.30.1.2", POD)).is_err(), "source of the node");
    }

    #[test]
    fn a_tunnel_is_noticed() {
        for tunnel in [
            frame("172.30.2.2", "172.30.1.2", UDP, Some((50000, 4789))),
            frame("172.30.2.2", "172.30.1.2", 4, None),
            frame("172.30.2.2", "172.30.1.2", 47, None),
            Frame { ethertype: 0x8100, ip: None },
        ] {
            assert!(judged(&[call(VM, POD), vec![tunnel]].concat()).is_err(), "{tunnel:?}");
        }
    }
}
