//! Wiring of pods against the real kernel: interfaces, addresses, routes, neighbours, queues, records.
//!
//! The eBPF side is a fake that remembers; what this suite
//! does not show is that attached programs pass or drop anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite fails by panicking")]

mod wiring_support;
mod wiring_tampering;

use bulkhead_api::messages::{Attach, AttachmentId, Check, Gc, code};
use bulkhead_daemon::{
    endpoint::PodContext,
    net::{
        Kernel, Limit, Limits, Links, Nat, Routes, Translation, Uplink,
        nat::{Found, Masquerade},
        node,
        uplinks::{AddressRange, UplinkRule},
    },
};
use libtest_mimic::{Arguments, Trial};
use std::{collections::BTreeSet, time::Instant};
use wiring_support::*;

fn main() -> bulkhead_lab::Result<()> {
    let mut arguments = Arguments::from_args();
    let _inside = bulkhead_lab::enter()?;
    prepare_namespace();
    // One kernel, one node: the cases look at all of it.
    arguments.test_threads = Some(1);
    let trials = vec![
        trial("two pods of a node reach each other and the node, both IP versions", pods_reach_each_other),
        trial("the same ADD again gets the same answer and touches nothing", add_is_idempotent),
        trial("an ADD whose interface is gone wires again with the same address", add_wires_again),
        trial("CHECK is content with what ADD made", check_passes),
        trial("CHECK finds every tampering", wiring_tampering::check_finds_tampering),
        trial("DEL leaves nothing", del_leaves_nothing),
        trial("DEL succeeds when the namespace is gone, and again", del_without_namespace),
        trial("a failure at any effect leaves nothing", failure_leaves_nothing),
        trial("an ADD into a namespace that is not there says so", add_without_namespace),
        trial("an ADD over an interface that the pod has says so and keeps it", add_over_existing),
        trial("the host side is down while programs are not attached", closed_until_attached),
        trial("bandwidth is held by tbf with the rates asked for, and changes live", bandwidth),
        trial("a new daemon adopts pods that stand and traffic goes on", restart_adopts),
        trial("a new daemon removes what has no owner", restart_removes_ownerless),
        trial("a new daemon cleans up after pods that are gone, and frees their addresses", restart_cleans),
        trial("a new daemon leaves the pod of an unreadable record alone", restart_spares_unreadable),
        trial("queued DELs are carried out at the start", restart_replays),
        trial("GC removes what the runtime does not name", gc),
        trial("blocks have discard routes that live pods override", blocks_are_discarded),
        trial("uplinks are found by default route, by name and by address", uplinks),
        trial(
            "the table of a cluster of 5,000 nodes is one transaction, and one node more another",
            large_table,
        ),
        trial("figures: time of ADD and DEL", figures),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

fn trial<F: Future<Output = ()> + 'static>(name: &'static str, case: fn() -> F) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(case());
        Ok(())
    })
}

async fn pods_reach_each_other() {
    let mut node = Node::start().await;
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let to_a = node.add(&a).await;
    let to_b = node.add(&b).await;
    assert_eq!(to_a.len(), 2);
    for address in to_b {
        until("a reaches b", || a.pings(address));
    }
    for address in to_a {
        until("b reaches a", || b.pings(address));
        until("the node reaches a", || attempt(&format!("ping -n -c 1 -W 1 {address}")).0);
    }
    for own in ["192.0.2.1", "2001:db8::1"] {
        until("a reaches the node", || a.pings(own.parse().unwrap()));
    }
    assert_eq!(json("ip netns exec a ip -j link show dev eth0")[0]["mtu"], 1400);
    assert!(!a.run("ip -6 addr show dev eth0").contains("fe80"), "no link-local address");
    let sysctl = |key: &str| std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap();
    let host = node.host_name(&a);
    assert_eq!(sysctl(&format!("ipv4/conf/{host}/rp_filter")).trim(), "0");
    assert_eq!(sysctl(&format!("ipv6/conf/{host}/forwarding")).trim(), "1");
    assert_eq!(a.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
    let route = run(&format!("ip route get {}", node.endpoints.get(&a.id()).unwrap().addresses[0]));
    assert!(route.contains("src 192.0.2.1"), "{route}");
    node.del(&a).await;
    node.del(&b).await;
    node.assert_nothing_left();
}

async fn add_is_idempotent() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    let first = node.try_add(&context(), &pod.attach()).await.unwrap();
    let before = (run("ip -d addr"), pod.run("ip -d addr"), run("ip route"), run("ip -6 route"));
    let second = node.try_add(&context(), &pod.attach()).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(before, (run("ip -d addr"), pod.run("ip -d addr"), run("ip route"), run("ip -6 route")));
    node.del(&pod).await;
}

async fn add_wires_again() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    let first = node.add(&pod).await;
    run(&format!("ip link del {}", node.host_name(&pod)));
    assert_eq!(node.add(&pod).await, first);
    until("the node reaches the pod", || attempt(&format!("ping -n -c 1 -W 1 {}", first[0])).0);
    // The runtime made the sandbox anew under the same id.
    let other = Pod { name: "b".into() };
    run("ip netns add b");
    let moved = Attach { netns: other.path(), ..pod.attach() };
    node.try_add(&context(), &moved).await.unwrap();
    until("the node reaches the pod in its new namespace", || {
        attempt(&format!("ping -n -c 1 -W 1 {}", first[1])).0
    });
    assert!(!pod.run("ip -o link").contains("eth0"));
    node.del(&pod).await;
    node.assert_nothing_left();
}

pub fn check_of(node: &Node, pod: &Pod) -> Check {
    let record = node.endpoints.get(&pod.id()).unwrap();
    Check { id: pod.id(), netns: pod.path(), addresses: record.attachment().addresses }
}

pub fn limited() -> PodContext {
    let limit = |rate_bits| Some(Limit { rate_bits, burst_bytes: 200_000 });
    PodContext { limits: Limits { ingress: limit(1_000_000_000), egress: limit(500_000_000) }, ..context() }
}

async fn check_passes() {
    let mut node = Node::start().await;
    let (pod, plain) = (Pod::new("a"), Pod::new("b"));
    node.add_with(&pod, &limited()).await;
    node.add(&plain).await;
    node.endpoints.check(&node.maps, &check_of(&node, &pod)).await.unwrap();
    node.endpoints.check(&node.maps, &check_of(&node, &plain)).await.unwrap();
    let unknown = Check {
        id: AttachmentId { container_id: "x".into(), ifname: "eth0".into() },
        ..check_of(&node, &pod)
    };
    assert_eq!(node.endpoints.check(&node.maps, &unknown).await.unwrap_err().code, code::UNKNOWN_CONTAINER);
    node.del(&pod).await;
    node.del(&plain).await;
    node.assert_nothing_left();
}

async fn del_leaves_nothing() {
    let mut node = Node::start().await;
    let pods = [Pod::new("a"), Pod::new("b")];
    for pod in &pods {
        node.add_with(pod, &limited()).await;
    }
    for pod in &pods {
        node.del(pod).await;
        assert!(!pod.run("ip -o link").contains("eth0"), "gone when DEL returns");
    }
    node.assert_nothing_left();
    let address = node.add(&pods[0]).await;
    assert!(address[0].to_string().ends_with(".3"), "freed, and not given again at once: {address:?}");
    node.del(&pods[0]).await;
}

async fn del_without_namespace() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    node.add_with(&pod, &limited()).await;
    run("ip netns del a");
    node.del(&pod).await;
    node.del(&pod).await;
    node.assert_nothing_left();
}

async fn failure_leaves_nothing() {
    let pod = Pod::new("a");
    let mut failures = 0;
    loop {
        let mut node = Node::start().await;
        node.trap.set(failures + 1);
        let mapping = serde_json::json!({"hostPort": 8080, "containerPort": 80});
        let port_mappings = vec![serde_json::from_value(mapping).unwrap()];
        let result = node.try_add(&limited(), &Attach { port_mappings, ..pod.attach() }).await;
        if !node.trap.went_off() {
            node.del(&pod).await;
            break;
        }
        let error = result.expect_err("the failure is reported");
        assert!(error.details.contains("injected"), "{error}");
        assert!(!error.details.contains("undoing"), "{error}");
        node.assert_nothing_left();
        assert!(!pod.run("ip -o link").contains("eth0"));
        let first = node.add(&pod).await;
        assert!(first[0].to_string().starts_with("10.65.0."), "and the next attempt works");
        node.del(&pod).await;
        failures += 1;
    }
    // Discard routes, pair, pod's side, queues, endpoint, two addresses, namespace, programs, host ports, host side.
    assert_eq!(failures, 11);
}

async fn add_without_namespace() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    let request = Attach { netns: "/run/netns/nowhere".into(), ..pod.attach() };
    let error = node.try_add(&context(), &request).await.unwrap_err();
    assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    assert!(error.details.contains("/run/netns/nowhere"), "{error}");
    node.assert_nothing_left();
}

async fn add_over_existing() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    pod.run("ip link add eth0 type veth peer name other0");
    let error = node.try_add(&context(), &pod.attach()).await.unwrap_err();
    assert!(error.details.contains("already"), "{error}");
    assert!(pod.run("ip -o link").contains("other0"));
    node.assert_nothing_left();
}

async fn closed_until_attached() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    node.maps.watch = true;
    node.add(&pod).await;
    assert_eq!(node.maps.attached.len(), 1);
    assert!(node.maps.open_at_attach.is_empty(), "{:?}", node.maps.open_at_attach);
    node.del(&pod).await;
}

/// (rate in bytes a second, burst in bytes) of the `tbf` at an interface's root.
fn tbf(name: &str) -> Option<(u64, u64)> {
    let qdisc = json(&format!("tc -j qdisc show dev {name} root"));
    let options = &qdisc.as_array()?.iter().find(|q| q["kind"] == "tbf")?["options"];
    Some((options["rate"].as_u64()?, options["burst"].as_u64()?))
}

async fn bandwidth() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    node.add_with(&pod, &limited()).await;
    let host = node.host_name(&pod);
    let ifb = host.replacen("bh", "bi", 1);
    assert_eq!(tbf(&host).unwrap().0, 125_000_000);
    assert_eq!(tbf(&ifb).unwrap().0, 62_500_000);
    // tc computes the burst back from ticks of 64 ns: it may be a few bytes less.
    assert!((199_900..=200_000).contains(&tbf(&host).unwrap().1), "{:?}", tbf(&host));
    let link = json(&format!("ip -j link show dev {ifb}"));
    assert!(link[0]["flags"].to_string().contains("\"UP\""));
    let entry = node.maps.endpoints.values().next().unwrap();
    assert_eq!(u64::from(entry.ifb_ifindex), link[0]["ifindex"].as_u64().unwrap());

    let faster = Some(Limit { rate_bits: 4_000_000_000, burst_bytes: 500_000 });
    let limits = Limits { ingress: None, egress: faster };
    node.endpoints.set_limits(&mut node.maps, &pod.id(), limits, Some("high".into())).await.unwrap();
    assert_eq!((tbf(&host), tbf(&ifb).map(|t| t.0)), (None, Some(500_000_000)));
    node.endpoints.check(&node.maps, &check_of(&node, &pod)).await.unwrap();

    node.endpoints.set_limits(&mut node.maps, &pod.id(), Limits::default(), None).await.unwrap();
    assert!(!attempt(&format!("ip link show dev {ifb}")).0, "the ifb is gone");
    assert_eq!(node.maps.endpoints.values().next().unwrap().ifb_ifindex, 0);
    node.del(&pod).await;
    node.assert_nothing_left();
}

async fn restart_adopts() {
    let mut node = Node::start().await;
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let to_a = node.add(&a).await;
    node.add_with(&b, &limited()).await;
    let before = (run("ip -d addr"), run("ip route"), run("ip -6 route"), run("tc qdisc show"));
    let report = node.restart().await;
    assert_eq!((report.adopted, report.removed.len(), report.ownerless.len()), (2, 0, 0), "{report:?}");
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(before, (run("ip -d addr"), run("ip route"), run("ip -6 route"), run("tc qdisc show")));
    // The same ADD again still gets the same answer.
    assert_eq!(node.add(&a).await, to_a);

    // What is missing is set right: pins, map entries, routes.
    node.maps.attached.clear();
    node.maps.endpoints.clear();
    node.maps.addresses.clear();
    run(&format!("ip route del {} dev {}", to_a[0], node.host_name(&a)));
    let report = node.restart().await;
    assert_eq!(report.adopted, 2, "{report:?}");
    for pod in [&a, &b] {
        node.endpoints.check(&node.maps, &check_of(&node, pod)).await.unwrap();
    }
    let c = Pod::new("c");
    assert!(!node.add(&c).await.contains(&to_a[0]), "adopted addresses are not given again");
    for pod in [&a, &b, &c] {
        node.del(pod).await;
    }
    node.assert_nothing_left();
}

async fn restart_removes_ownerless() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    let kept = node.add(&pod).await;
    run("ip link add bh00000000aa type veth peer name bi00000000aa");
    run("ip link set bh00000000aa up");
    run("ip route add 10.65.0.77 dev bh00000000aa proto 66");
    run(&format!("ip route add 10.65.0.78 dev {} proto 66", node.host_name(&pod)));
    run("ip link add bhyve0 type bridge");
    node.maps.attached.insert("bh00000000aa".into());
    node.maps.endpoints.insert(4_000, Default::default());
    let report = node.restart().await;
    assert_eq!(report.adopted, 1);
    assert!(report.errors.is_empty(), "{report:?}");
    assert!(!attempt("ip link show dev bh00000000aa").0);
    assert!(attempt("ip link show dev bhyve0").0, "somebody else's");
    run("ip link del bhyve0");
    let routes = run("ip -4 route show proto 66");
    assert!(!routes.contains("10.65.0.7"), "{routes}");
    assert!(routes.contains(&kept[0].to_string()));
    assert_eq!((node.maps.attached.len(), node.maps.endpoints.len()), (1, 1));
    node.del(&pod).await;
    node.assert_nothing_left();
}

async fn restart_cleans() {
    let mut node = Node::start().await;
    let (gone, half) = (Pod::new("a"), Pod::new("b"));
    node.add_with(&gone, &limited()).await;
    node.add_with(&half, &limited()).await;
    run("ip netns del a");
    let host = node.host_name(&gone);
    until("the kernel removes the pair", || !attempt(&format!("ip link show dev {host}")).0);
    // Killed between two effects: the host side was never opened.
    run(&format!("ip link set {} down", node.host_name(&half)));
    let report = node.restart().await;
    assert_eq!((report.adopted, report.removed.len()), (0, 2), "{report:?}");
    node.assert_nothing_left();
    let blocks = node.endpoints.release_empty_blocks(&Default::default()).await.unwrap();
    assert_eq!(blocks.len(), 2, "all addresses are free");
    assert_eq!(run("ip route show proto 66"), "");
}

async fn restart_spares_unreadable() {
    let mut node = Node::start().await;
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let to_a = node.add(&a).await;
    std::fs::write(node.file("state/endpoints/a-eth0.json"), "{").unwrap();
    node.restart().await;
    let to_b = node.add(&b).await;
    until("b still reaches a", || b.pings(to_a[0]));
    assert_ne!(to_a, to_b);
    node.del(&a).await;
    node.del(&b).await;
    node.maps.addresses.clear();
    node.assert_nothing_left();
}

async fn restart_replays() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    node.add(&pod).await;
    let queued = node.file("state/pending-del/a-eth0.json");
    std::fs::write(&queued, serde_json::to_vec(&pod.detach()).unwrap()).unwrap();
    let report = node.restart().await;
    assert_eq!(report.removed, [pod.id()]);
    assert!(!queued.exists());
    node.assert_nothing_left();
}

async fn gc() {
    let mut node = Node::start().await;
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    node.add(&a).await;
    node.add(&b).await;
    node.endpoints.gc(&mut node.maps, &Gc { valid: vec![b.id()] }).await.unwrap();
    assert_eq!(node.endpoints.iter().map(|r| r.id.clone()).collect::<Vec<_>>(), [b.id()]);
    node.endpoints.gc(&mut node.maps, &Gc { valid: vec![] }).await.unwrap();
    node.assert_nothing_left();
}

async fn blocks_are_discarded() {
    let mut node = Node::start().await;
    let pod = Pod::new("a");
    // Blocks of one address: pod and discard route have the same destination.
    let tiny = PodContext {
        partition: "tiny".into(),
        ranges: vec!["10.66.0.9/32".parse().unwrap(), "fd00:66::9/128".parse().unwrap()],
        ..context()
    };
    let addresses = node.add_with(&pod, &tiny).await;
    for address in &addresses {
        until("the node reaches the pod", || attempt(&format!("ping -n -c 1 -W 1 {address}")).0);
    }
    node.del(&pod).await;
    for family in ["-4", "-6"] {
        let routes = run(&format!("ip {family} route show proto 66"));
        assert!(
            routes.starts_with("blackhole 10.66.0.9") || routes.starts_with("blackhole fd00:66::9"),
            "{routes}"
        );
    }
    let kernel = Kernel::open().unwrap();
    let other: BTreeSet<_> = ["10.67.0.0/26".parse().unwrap()].into();
    kernel.set_blocks(&other).await.unwrap();
    kernel.set_blocks(&other).await.unwrap();
    assert_eq!(kernel.list_routes().await.unwrap().len(), 1);
    kernel.set_blocks(&BTreeSet::new()).await.unwrap();
    assert!(kernel.list_routes().await.unwrap().is_empty());
}

async fn large_table() {
    let kernel = Kernel::open().unwrap();
    let of = |nodes: u32| {
        // None touches another: each is an interval.
        let v4 = (0..nodes).map(|n| format!("198.18.{}.{}/32", n / 100, n % 100 * 2));
        let v6 = (0..nodes).map(|n| format!("2001:db8::{:x}/128", n * 2 + 1));
        let ranges = ["10.66.0.0/16", "fd00:66::/48"].map(|r| (r.parse().unwrap(), vec![]));
        let cluster = v4.chain(v6).map(|a| a.parse().unwrap()).collect();
        Nat { masquerade: Masquerade { ranges: ranges.into(), cluster }, ..Nat::default() }
    };
    let (before, after) = (of(5000), of(5001));
    kernel.translate_anew(&before).await.unwrap();
    assert!(kernel.translated().await.unwrap() == Found::expected(&before));
    kernel.translate(&before, &after).await.unwrap();
    assert!(kernel.translated().await.unwrap() == Found::expected(&after));
    kernel.translate(&after, &Nat::default()).await.unwrap();
    assert!(kernel.translated().await.unwrap() == Found::default());
}

async fn uplinks() {
    let kernel = Kernel::open().unwrap();
    let by = |rule: &str| match rule.split_once('=') {
        Some((_, cidr)) => vec![UplinkRule::Range(AddressRange { cidr: cidr.parse().unwrap() })],
        None => vec![UplinkRule::Name(rule.into())],
    };
    let found = kernel.uplinks(&[]).await.unwrap();
    assert_eq!((found.len(), found[0].name.as_str(), found[0].mtu), (1, "up0", 1400));
    assert_eq!(found[0].v4, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(found[0].v6, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(found[0].chosen_by, "default route");
    for (rule, chosen_by) in [
        ("up0", "by name"),
        ("up*", "by `up*`"),
        ("cidr=192.0.2.0/24", "192.0.2.1 in 192.0.2.0/24"),
        ("cidr=2001:db8::/32", "2001:db8::1 in 2001:db8::/32"),
    ] {
        let expected = Uplink { chosen_by: chosen_by.into(), ..found[0].clone() };
        assert_eq!(kernel.uplinks(&by(rule)).await.unwrap(), [expected], "{rule}");
    }
    // Two, one of them by an address that comes and goes.
    run("ip link add up1 mtu 1300 type veth peer name router1");
    let rules = [by("up0"), by("cidr=198.51.100.0/24")].concat();
    assert_eq!(kernel.uplinks(&rules).await.unwrap().len(), 1);
    run("ip addr add 198.51.100.7/25 dev up1");
    let two = kernel.uplinks(&rules).await.unwrap();
    let names: Vec<_> = two.iter().map(|u| (u.name.as_str(), u.mtu)).collect();
    assert_eq!(names, [("up0", 1400), ("up1", 1300)]);
    // A port of a bridge is none by a pattern.
    run("ip link add name br1 type bridge");
    run("ip link set up1 master br1");
    assert_eq!(kernel.uplinks(&by("up*")).await.unwrap().len(), 1);
    assert_eq!(kernel.uplinks(&by("up1")).await.unwrap().len(), 1);
    // A bridge with an address of containers is one only where it is named in full.
    run("ip addr add 203.0.113.7/32 dev br1");
    for rule in ["cidr=203.0.113.0/24", "br*"] {
        let error = kernel.uplinks(&by(rule)).await.unwrap_err();
        assert!(error.to_string().contains("no uplink"), "{error}");
    }
    assert_eq!(kernel.uplinks(&by("br1")).await.unwrap().len(), 1);
    run("ip link del up1");
    run("ip link del br1");
    assert!(kernel.uplinks(&by("nowhere0")).await.is_err());
    assert!(kernel.uplinks(&by("cidr=203.0.113.0/24")).await.is_err());
    node::prepare_node(&found).unwrap();
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        assert_eq!(std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap().trim(), "1");
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/up0/accept_ra").unwrap().trim(), "2");
    assert!(kernel.list().await.unwrap().is_empty());
}

async fn figures() {
    let mut node = Node::start().await;
    let pods: Vec<_> = (0..20).map(|n| Pod::new(&format!("p{n}"))).collect();
    for (kind, context) in [("unlimited", context()), ("limited", limited())] {
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for pod in &pods {
            let start = Instant::now();
            node.add_with(pod, &context).await;
            adds.push(start.elapsed());
        }
        for pod in &pods {
            let start = Instant::now();
            node.del(pod).await;
            dels.push(start.elapsed());
        }
        adds.sort();
        dels.sort();
        println!("{kind}: ADD median {:?} (max {:?}), DEL median {:?}", adds[10], adds[19], dels[10]);
    }
    node.assert_nothing_left();
}
