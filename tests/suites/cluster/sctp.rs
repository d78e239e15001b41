//! Services of SCTP, which are kube-proxy's alone: nftables on one node, iptables on the other. By packets: see `lab::sctp`.

use crate::{
    outside::{STRANGER, VAULT},
    reach::PODS,
    site::{PORT, Pod, Site},
};
use bulkhead_lab::{
    Netns, Result,
    cluster::SOON,
    sctp::{Heard, Raw},
    unmet, until,
};
use std::net::{IpAddr, SocketAddr};

const SERVICE: u16 = 2905;
const BACKEND: u16 = 3905;
const NODE_PORTS: [u16; 2] = [30_095, 30_096];

fn service(namespace: &str, n: usize, pod: &Pod) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: signal{n}, namespace: {namespace}}}\n\
         spec: {{type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {{name: {}}}, \
         ports: [{{protocol: SCTP, port: {SERVICE}, targetPort: {BACKEND}{}}}]}}\n",
        pod.name,
        if namespace == "vault" { format!(", nodePort: {}", NODE_PORTS[n]) } else { String::new() }
    )
}

fn addresses(site: &Site, name: &str) -> Result<Vec<IpAddr>> {
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let told = site.cluster.kubectl(&["get", "service", "-n", "shop", name, "-o", path])?;
    told.split(' ').map(|a| a.parse().map_or_else(|_| unmet(&told), Ok)).collect()
}

fn netns(site: &Site, pod: &Pod) -> Result<Netns> {
    let machine = site.cluster.machines.iter().find(|m| m.name == pod.node);
    machine.map_or_else(|| unmet(pod.node), |m| m.pod_netns(&site.address(pod)?))
}

/// One who is at an address of the family.
struct End<'a> {
    netns: &'a Netns,
    own: Option<IpAddr>,
}

/// `caller` asks for an association at `to` and gets it from `backend`, who sees it as the address that is returned.
fn associated(caller: &End<'_>, source: u16, to: SocketAddr, backend: &Raw) -> Result<IpAddr> {
    let here = Raw::open(caller.netns, to.is_ipv6(), caller.own)?;
    let heard = until(&format!("the backend hears who calls {to}"), SOON, || {
        here.call(source, to)?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(backend.heard()?.filter(|heard| heard.caller == source))
    })?;
    if (heard.destination, heard.is_answer) != (BACKEND, false) {
        return unmet(format!("the backend heard {heard:?}"));
    }
    backend.answer(&heard)?;
    let answer = here.receive()?;
    let expected =
        Heard { from: to.ip(), source: to.port(), destination: source, is_answer: true, caller: source };
    if answer != expected {
        return unmet(format!("who calls {to} heard {answer:?}"));
    }
    Ok(heard.from)
}

pub fn services(site: &mut Site) -> Result<()> {
    let [app1, app2, db1, db2] = &PODS;
    let all: String = [("shop", [db1, db2]), ("vault", [&VAULT[0], &VAULT[1]])]
        .into_iter()
        .flat_map(|(namespace, pods)| {
            pods.into_iter().enumerate().map(move |(n, pod)| service(namespace, n, pod))
        })
        .collect();
    site.cluster.control.apply(&all)?;
    let mut source = 41_000;
    let mut next = || {
        source += 1;
        source
    };
    // Pods: each node's kube-proxy translates what its own pods call.
    for (n, backend) in [db1, db2].into_iter().enumerate() {
        let there = netns(site, backend)?;
        for to in addresses(site, &format!("signal{n}"))? {
            let backend = Raw::open(&there, to.is_ipv6(), None)?;
            for app in [app1, app2] {
                let own: IpAddr = site.addresses(app)?[usize::from(to.is_ipv6())].parse().unwrap();
                let caller = End { netns: &netns(site, app)?, own: None };
                let seen = associated(&caller, next(), SocketAddr::new(to, SERVICE), &backend)?;
                if seen != own {
                    return unmet(format!("{} calls {to} and is seen as {seen}", app.name));
                }
            }
        }
    }
    // Others: by either node, and judged as who they are.
    for (n, pod) in VAULT.iter().enumerate() {
        let there = netns(site, pod)?;
        for machine in &site.cluster.machines {
            for to in [IpAddr::from(machine.v4), machine.v6.into()] {
                let (to, v6) = (SocketAddr::new(to, NODE_PORTS[n]), to.is_ipv6());
                let backend = Raw::open(&there, v6, None)?;
                associated(&End { netns: &site.cluster.router, own: None }, next(), to, &backend)?;
                let (own, stranger, friend) = (STRANGER[usize::from(v6)].parse().unwrap(), next(), next());
                Raw::open(&site.cluster.router, v6, Some(own))?.call(stranger, to)?;
                // Behind it comes one who is let in: of both, whoever comes first is heard first.
                Raw::open(&site.cluster.router, v6, None)?.call(friend, to)?;
                let heard = until("the backend hears one of them", SOON, || {
                    Ok(backend.heard()?.filter(|heard| [stranger, friend].contains(&heard.caller)))
                })?;
                if heard.caller == stranger {
                    return unmet(format!("the stranger calls {to}, and is heard"));
                }
            }
        }
    }
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments).map(drop);
    kubectl(&["delete", "service", "-n", "shop", "signal0", "signal1"])?;
    kubectl(&["delete", "namespace", "vault", "--timeout=60s"])?;
    kubectl(&["delete", "partition", "vault"])?;
    kubectl(&["delete", "networkgroup", "callers"])
}

/// Two ports of one number are two: the one of TCP lets no SCTP in, nor the one of SCTP any TCP.
pub fn judged(site: &mut Site) -> Result<()> {
    let [app1, app2, db1, db2] = &PODS;
    let other = BACKEND + 1;
    site.cluster.control.apply(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: signal, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{role: db}}}}, ingress: [{{ports: [\
         {{protocol: TCP, port: {BACKEND}}}, {{protocol: SCTP, port: {other}}}, {{protocol: SCTP, port: {PORT}}}]}}]}}\n"
    ))?;
    let mut source = 42_000;
    for to in [db1, db2] {
        let there = netns(site, to)?;
        for from in [app1, app2] {
            site.wait_reached(from, to, false)?;
            for address in site.addresses(to)? {
                let address: IpAddr = address.parse().unwrap();
                let backend = Raw::open(&there, address.is_ipv6(), None)?;
                let caller = Raw::open(&netns(site, from)?, address.is_ipv6(), None)?;
                until(&format!("{} is heard at {address} and port {other} alone", from.name), SOON, || {
                    source += 1;
                    // Whoever comes first is heard first.
                    for port in [BACKEND, other] {
                        caller.call(source, SocketAddr::new(address, port))?;
                    }
                    let heard = until("one of them is heard", SOON, || {
                        Ok(backend.heard()?.filter(|heard| heard.caller == source))
                    })?;
                    Ok((heard.destination == other).then_some(()))
                })?;
            }
        }
    }
    site.cluster.kubectl(&["delete", "networkpolicy", "-n", "shop", "signal"]).map(drop)
}
