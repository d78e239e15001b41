//! Single addresses of services, and a partition's range from a named node, in a real router's table: two nodes, one BIRD.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_lab::bgp::{pair::Pair, site::DEADLINE};
use bulkhead_lab::{Error, Result, enter, link::ip_output, until};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeSet;

type Test = fn(&mut Pair) -> Result<()>;

const EXTERNAL: &str = "192.0.2.7/32";
const BALANCER: &str = "198.51.100.7/32";
const BOTH: [&str; 2] = ["node1", "node2"];
const RANGES: &str = "advertiseExternalIPs: [192.0.2.0/24], advertiseLoadBalancerIPs: [198.51.100.0/24]";

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let all: [(&str, Test); 4] = [
        (
            "with policy Cluster every node announces a service's addresses, in the ranges asked for",
            everywhere,
        ),
        ("with policy Local those with a ready endpoint do, until the last has gone", local),
        ("a drain takes a node out of anycast, and a restart without the source takes nothing", drained),
        ("a partition's range comes whole from the named node, which discards nothing of it", aggregate),
    ];
    let trials = all.map(|(name, test)| {
        let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
        let place = place.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
        Trial::test(name, move || {
            let mut pair = Pair::create(&place)?;
            let held = test(&mut pair);
            if held.is_err() {
                eprintln!("{}", pair.logs());
            }
            held.map_err(Failed::from)
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit()
}

fn service(policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: front, namespace: web}}\n\
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{{port: 80}}],\n\
         externalIPs: [192.0.2.7, 203.0.113.7], externalTrafficPolicy: {policy}}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.7, ipMode: VIP}}]}}}}\n"
    )
}

/// One endpoint on each of these nodes, ready or on its way out.
fn endpoints(pair: &Pair, on: &[(usize, bool)]) -> Result<()> {
    let endpoint = |(node, ready): &(usize, bool)| {
        format!(
            "{{addresses: [10.64.9.{node}], nodeName: {}, conditions: {{ready: {ready}, serving: true, terminating: {}}}}}",
            pair.nodes[*node].name, !ready
        )
    };
    let all: Vec<String> = on.iter().map(endpoint).collect();
    let text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: front-v4, namespace: web, labels: {{kubernetes.io/service-name: front}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]\n",
        all.join(", ")
    );
    pair.write("slice.yaml", &text)
}

fn owners(pair: &Pair, prefix: &str) -> Result<BTreeSet<String>> {
    // BIRD calls it an error that there is nothing.
    let table = pair.bird()?.birdc(&format!("show route {prefix}")).unwrap_or_default();
    let named = |node: &&str| table.contains(&format!("[{node} "));
    Ok(BOTH.into_iter().filter(named).map(str::to_owned).collect())
}

fn wait_owners(pair: &Pair, prefix: &str, wanted: &[&str]) -> Result<()> {
    until(&format!("the router has {prefix} from {wanted:?}"), DEADLINE, || {
        let owners = owners(pair, prefix)?;
        if owners.iter().eq(wanted) { Ok(Some(())) } else { Err(Error::Unmet(format!("{owners:?}"))) }
    })
}

fn everywhere(pair: &mut Pair) -> Result<()> {
    pair.write("service.yaml", &service("Cluster"))?;
    pair.configure(RANGES, "")?;
    for prefix in [EXTERNAL, BALANCER] {
        wait_owners(pair, prefix, &BOTH)?;
    }
    assert_eq!(owners(pair, "203.0.113.7/32")?, BTreeSet::new(), "it lies in no range that was asked for");
    let why = pair.nodes[0].cli(&["bgp", "why", EXTERNAL])?;
    assert!(why.contains("an address of a service"), "{why}");
    pair.configure("advertiseLoadBalancerIPs: [198.51.100.0/24]", "")?;
    wait_owners(pair, EXTERNAL, &[])?;
    wait_owners(pair, BALANCER, &BOTH)
}

fn local(pair: &mut Pair) -> Result<()> {
    pair.write("service.yaml", &service("Local"))?;
    pair.configure(RANGES, "")?;
    endpoints(pair, &[(0, true), (1, false)])?;
    wait_owners(pair, EXTERNAL, &["node1"])?;
    endpoints(pair, &[(0, true), (1, true)])?;
    wait_owners(pair, EXTERNAL, &BOTH)?;
    endpoints(pair, &[(0, false), (1, true)])?;
    wait_owners(pair, EXTERNAL, &["node2"])?;
    endpoints(pair, &[(1, false)])?;
    wait_owners(pair, EXTERNAL, &[])
}

fn drained(pair: &mut Pair) -> Result<()> {
    pair.write("service.yaml", &service("Cluster"))?;
    pair.configure(RANGES, "")?;
    wait_owners(pair, EXTERNAL, &BOTH)?;
    pair.nodes[0].cli(&["node", "drain-routes", "--withdraw-after", "60"])?;
    until("the router has this node's as the last choice", DEADLINE, || {
        let said = |node: &str| pair.bird()?.birdc(&format!("show route {EXTERNAL} all protocol {node}"));
        let (leaving, other) = (said("node1")?, said("node2")?);
        assert!(!other.contains("(65535,0)"), "{other}");
        Ok(leaving.contains("(65535,0)").then_some(()))
    })?;
    assert_eq!(owners(pair, EXTERNAL)?.len(), 2, "marked, and not withdrawn");
    pair.nodes[0].cli(&["node", "drain-routes", "--withdraw-after", "0"])?;
    wait_owners(pair, EXTERNAL, &["node2"])?;
    pair.nodes[0].cli(&["node", "drain-routes", "--undo"])?;
    wait_owners(pair, EXTERNAL, &BOTH)?;
    // What another node announces as well is nobody's own: no claim, no quarantine.
    pair.nodes[1].kill_daemon()?;
    pair.nodes[1].start_daemon()?;
    pair.leaf().wait_established(1)?;
    pair.leaf().wait_restarts_over()?;
    wait_owners(pair, EXTERNAL, &BOTH)?;
    let log = pair.router_log()?;
    let removed = log.lines().filter(|l| l.contains("node2.ipv4 > removed") && l.contains(EXTERNAL)).count();
    assert_eq!(removed, 0, "it was in the router's table all the time: {log}");
    Ok(())
}

fn aggregate(pair: &mut Pair) -> Result<()> {
    let name = pair.nodes[1].name.clone();
    pair.configure("communities: ['65010:100']", &format!("aggregateFrom: [{name}]"))?;
    wait_owners(pair, "10.65.0.0/16", &["node2"])?;
    // Nothing that pods' packets could end in.
    let routes = ip_output(Some(&pair.nodes[1].netns), "route show table all 10.65.0.0/16")?;
    assert_eq!(routes.trim(), "", "{routes}");
    let seen = pair.bird()?.birdc("show route 10.65.0.0/16 all")?;
    assert!(seen.contains("(65010,100)"), "{seen}");
    pair.configure("", "")?;
    wait_owners(pair, "10.65.0.0/16", &[])
}
