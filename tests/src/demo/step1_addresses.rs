//! Eight pods over three partitions get addresses from their partition's range, v4 and v6.

use super::Held;
use crate::{
    Lab, Pod, Result,
    link::ip_output,
    pod::{CniResult, IFNAME},
    unmet,
};
use bulkhead_api::messages::EndpointInfo;
use ipnetwork::IpNetwork;
use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Namespace, its partition, the partition's ranges: what the objects of the lab say.
const RANGES: [(&str, &str, [&str; 2]); 3] = [
    ("payments", "payments", ["10.65.0.0/16", "fd00:65::/48"]),
    ("web", "web", ["10.66.0.0/16", "fd00:66::/48"]),
    ("shop", "default", ["10.64.0.0/16", "fd00:64::/48"]),
];

pub fn run(lab: &mut Lab) -> Result<Held> {
    let mut times = Vec::new();
    let mut addresses = HashSet::new();
    for pod in &mut lab.pods {
        let node = &lab.nodes[pod.node];
        let start = Instant::now();
        let result = pod.add(node)?;
        times.push(start.elapsed());
        in_range(pod, &result)?;
        stands_in_the_pod(pod)?;
        for ip in &result.ips {
            if !addresses.insert(ip.address) {
                return unmet(format!("{} was given twice", ip.address));
            }
        }
    }
    known_to_the_daemons(lab)?;
    times.sort();
    Ok(Held::new(format!(
        "{} pods, {} addresses; ADD median {}, longest {}",
        lab.pods.len(),
        addresses.len(),
        millis(times[times.len() / 2]),
        millis(times[times.len() - 1]),
    )))
}

fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

/// One address of each family, alone in its prefix, out of the partition's range.
fn in_range(pod: &Pod, result: &CniResult) -> Result<()> {
    let Some((_, partition, ranges)) = RANGES.iter().find(|(namespace, ..)| *namespace == pod.namespace)
    else {
        return unmet(format!("no range is expected for {}", pod.namespace));
    };
    if result.ips.len() != 2 {
        return unmet(format!(
            "{} got {} addresses, not one of each family",
            pod.reference(),
            result.ips.len()
        ));
    }
    for ip in &result.ips {
        let inside = ranges
            .iter()
            .any(|range| range.parse::<IpNetwork>().is_ok_and(|range| range.contains(ip.address.ip())));
        let alone = ip.address.prefix() == if ip.address.is_ipv4() { 32 } else { 128 };
        if !inside || !alone {
            return unmet(format!("{} got {}, which is not of {partition}", pod.reference(), ip.address));
        }
    }
    Ok(())
}

fn stands_in_the_pod(pod: &Pod) -> Result<()> {
    let text = ip_output(Some(&pod.netns), &format!("-o address show dev {IFNAME}"))?;
    for address in [format!("{}/32", pod.v4), format!("{}/128", pod.v6)] {
        if !text.contains(&address) {
            return unmet(format!("{} does not stand on {IFNAME} of {}", address, pod.reference()));
        }
    }
    Ok(())
}

fn known_to_the_daemons(lab: &Lab) -> Result<()> {
    for (n, node) in lab.nodes.iter().enumerate() {
        let endpoints: Vec<EndpointInfo> = node.get("/v1/endpoints")?;
        for pod in lab.pods.iter().filter(|p| p.node == n) {
            let partition = RANGES.iter().find(|r| r.0 == pod.namespace).map(|r| r.1);
            let known = endpoints.iter().any(|e| {
                e.pod.namespace == pod.namespace
                    && e.pod.name == pod.name
                    && Some(e.partition.as_str()) == partition
                    && [IpAddr::V4(pod.v4), IpAddr::V6(pod.v6)].iter().all(|a| e.addresses.contains(a))
            });
            if !known {
                return unmet(format!("{} does not list {} as it is", node.name, pod.reference()));
            }
        }
        if endpoints.len() != lab.pods.iter().filter(|p| p.node == n).count() {
            return unmet(format!("{} lists {} endpoints", node.name, endpoints.len()));
        }
    }
    Ok(())
}
