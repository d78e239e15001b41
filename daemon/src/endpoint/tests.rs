use super::{fake::Fake, *};
use crate::{
    ipam::ClaimFiles,
    net::{Kernel, Limit, Nat, Sources, nat::Masquerade},
};
use bulkhead_api::messages::PodRef;

struct Node {
    dir: tempfile::TempDir,
    fake: Fake,
    endpoints: Endpoints<Fake, ClaimFiles>,
}

async fn load(dir: &Path, fake: &Fake) -> Endpoints<Fake, ClaimFiles> {
    let claims = ClaimFiles::new(dir.join("blocks")).unwrap();
    let node = NodeNet { mtu: 1500, sources: Sources::default() };
    Endpoints::load(fake.clone(), claims, &dir.join("state"), "n1", node).await.unwrap().0
}

impl Node {
    async fn new() -> Self {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::default());
        let endpoints = load(dir.path(), &fake).await;
        Self { dir, fake, endpoints }
    }

    async fn add(&mut self, name: &str) -> Result<Attachment, ErrorReply> {
        self.endpoints.add(&mut self.fake.clone(), &context(), |_| 17, &attach(name)).await
    }

    async fn del(&mut self, name: &str) -> Result<(), ErrorReply> {
        let detach = Detach { id: attach(name).id, netns: None };
        self.endpoints.del(&mut self.fake.clone(), &detach).await
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("state/endpoints")).unwrap().count()
    }

    fn assert_nothing_left(&self) {
        self.fake.with(|s| {
            assert!(s.links.is_empty() && s.routes.iter().all(|r| r.ifindex.is_none()), "{s:?}");
            assert!(s.endpoints.is_empty() && s.addresses.is_empty() && s.attached.is_empty(), "{s:?}");
            assert!(s.netns.is_empty(), "{s:?}");
        });
        assert_eq!((self.records(), self.endpoints.iter().count()), (0, 0));
    }
}

fn context() -> PodContext {
    let limit = Some(Limit { rate_bits: 1_000_000_000, burst_bytes: 131_072 });
    PodContext {
        partition: "web".into(),
        ranges: vec!["10.65.0.0/28".parse().unwrap(), "fd00:65::/120".parse().unwrap()],
        fixed_ranges: Vec::new(),
        fixed: Vec::new(),
        policy: 3,
        limits: Limits { ingress: limit, egress: limit },
        bandwidth_class: Some("low".into()),
    }
}

fn attach(name: &str) -> Attach {
    Attach {
        id: AttachmentId { container_id: name.into(), ifname: "eth0".into() },
        netns: format!("/run/netns/{name}"),
        pod: PodRef { namespace: "web".into(), name: name.into(), uid: None },
        bandwidth: None,
        port_mappings: Vec::new(),
    }
}

const STEPS: [&str; 9] = [
    "set_blocks",
    "create_pair",
    "configure_pod",
    "shape",
    "set_endpoint",
    "set_address",
    "set_netns",
    "attach_pod",
    "open",
];

#[tokio::test]
async fn effects_come_in_an_order_that_fails_closed() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    let mut calls = node.fake.with(|s| s.calls.clone());
    calls.dedup();
    assert_eq!(calls, STEPS);
}

#[tokio::test]
async fn a_pod_loses_its_interface_before_it_loses_its_policy() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    node.fake.with(|s| s.calls.clear());
    node.del("a").await.unwrap();
    let calls = node.fake.with(|s| s.calls.clone());
    let at = |call| calls.iter().position(|c| *c == call).unwrap();
    assert!(at("delete") < at("detach_pod") && at("delete") < at("remove_endpoint"), "{calls:?}");
    assert!(calls.contains(&"forget_flows"));
    node.assert_nothing_left();
}

#[tokio::test]
async fn of_two_attachments_in_one_namespace_the_one_that_goes_leaves_the_other_its_services() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    let mut second = attach("a");
    second.id.ifname = "net1".into();
    node.endpoints.add(&mut node.fake.clone(), &context(), |_| 17, &second).await.unwrap();
    node.del("a").await.unwrap();
    assert_eq!(node.fake.with(|s| s.netns.len()), 1);
    // One that comes and fails takes nothing either.
    node.fake.with(|s| s.failing.extend(["open"]));
    node.add("a").await.unwrap_err();
    assert_eq!(node.fake.with(|s| s.netns.len()), 1);
    node.fake.with(|s| s.failing.clear());
    let detach = Detach { id: second.id, netns: None };
    node.endpoints.del(&mut node.fake.clone(), &detach).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn whichever_effect_fails_everything_is_undone() {
    for step in STEPS {
        let mut node = Node::new().await;
        node.fake.with(|s| s.failing.extend([step]));
        let error = node.add("a").await.unwrap_err();
        assert!(error.details.contains(step) || error.details.contains("injected"), "{step}: {error}");
        node.assert_nothing_left();
        // 15 usable addresses: none was lost.
        node.fake.with(|s| s.failing.clear());
        for n in 0..15 {
            node.add(&format!("p{n}")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_failing_undo_keeps_every_error_and_the_record_for_a_later_attempt() {
    let mut node = Node::new().await;
    let failing = ["open", "detach_pod", "clear_egress", "remove_address"];
    node.fake.with(|s| s.failing.extend(failing));
    let error = node.add("a").await.unwrap_err();
    for call in ["open", "detach_pod", "clear_egress", "remove_address"] {
        assert!(error.details.contains(call), "{call}: {error}");
    }
    assert_eq!(node.records(), 1);
    node.fake.with(|s| s.failing.clear());
    node.del("a").await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_add_after_a_failed_undo_wires_with_the_same_address() {
    let mut node = Node::new().await;
    node.fake.with(|s| s.failing.extend(["open", "detach_pod"]));
    node.add("a").await.unwrap_err();
    let address = node.endpoints.get(&attach("a").id).unwrap().addresses.clone();
    node.fake.with(|s| s.failing.clear());
    let attachment = node.add("a").await.unwrap();
    assert_eq!(attachment.addresses.iter().map(|n| n.ip()).collect::<Vec<_>>(), address);
}

#[tokio::test]
async fn a_del_that_fails_can_be_repeated() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    node.fake.with(|s| s.failing.extend(["delete"]));
    assert_eq!(node.del("a").await.unwrap_err().code, code::WIRING);
    assert_eq!(node.records(), 1);
    node.fake.with(|s| s.failing.clear());
    node.del("a").await.unwrap();
    node.del("a").await.unwrap();
    node.del("never wired").await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn exhaustion_has_its_own_code_and_says_what_to_do() {
    let mut node = Node::new().await;
    for n in 0..15 {
        node.add(&format!("p{n}")).await.unwrap();
    }
    let error = node.add("late").await.unwrap_err();
    assert_eq!(error.code, code::NO_ADDRESS);
    for part in ["web", "10.65.0.0/28", "podCIDRs"] {
        assert!(error.details.contains(part), "{error}");
    }
    assert_eq!(node.records(), 15);
}

#[tokio::test]
async fn identity_and_limits_change_live_and_on_disk() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    let id = attach("a").id;
    let mut maps = node.fake.clone();
    node.endpoints.set_identity(&mut maps, &id, ("web", 4), |a| 18 + u32::from(a.is_ipv6())).await.unwrap();
    node.endpoints.set_limits(&mut maps, &id, Limits::default(), None).await.unwrap();
    node.fake.with(|s| {
        let entry = s.endpoints.values().next().unwrap();
        assert_eq!((entry.policies, entry.ifb_ifindex), ([4; 2], 0));
        assert_eq!((entry.identity_v4, entry.identity_v6), (18, 19));
        assert_eq!(s.addresses.values().map(|i| i.id).collect::<Vec<_>>(), [18, 19]);
        assert_eq!(s.links.len(), 1, "the ifb is gone");
        s.calls.clear();
    });
    node.endpoints.set_identity(&mut maps, &id, ("web", 4), |a| 18 + u32::from(a.is_ipv6())).await.unwrap();
    assert!(node.fake.with(|s| s.calls.is_empty()), "no change, no write");
    // Moved to a partition that judges it alike.
    node.endpoints.set_identity(&mut maps, &id, ("pay", 4), |a| 18 + u32::from(a.is_ipv6())).await.unwrap();
    let again = load(node.dir.path(), &node.fake).await;
    assert_eq!(again.get(&id), node.endpoints.get(&id));
    assert_eq!(again.get(&id).unwrap().partition, "pay");
}

#[tokio::test]
async fn a_change_of_identity_that_failed_half_way_is_done_by_the_next_attempt() {
    for step in ["set_address", "set_endpoint"] {
        let mut node = Node::new().await;
        node.add("a").await.unwrap();
        let (id, mut maps) = (attach("a").id, node.fake.clone());
        node.fake.with(|s| s.failing.extend([step]));
        node.endpoints.set_identity(&mut maps, &id, ("web", 4), |_| 18).await.unwrap_err();
        node.fake.with(|s| s.failing.clear());
        node.endpoints.set_identity(&mut maps, &id, ("web", 4), |_| 18).await.unwrap();
        node.fake.with(|s| {
            let entry = s.endpoints.values().next().unwrap();
            assert_eq!((entry.policies, entry.identity_v4), ([4; 2], 18), "{step}");
            assert!(s.addresses.values().all(|i| i.id == 18), "{step}");
        });
        let again = load(node.dir.path(), &node.fake).await;
        assert_eq!(again.get(&id).unwrap().policy, 4);
    }
}

#[tokio::test]
async fn a_former_address_outside_the_range_is_not_given_again() {
    let mut node = Node::new().await;
    let first = node.add("a").await.unwrap();
    node.fake.with(|s| s.links.clear());
    let moved = PodContext {
        ranges: vec!["10.66.0.0/28".parse().unwrap(), "fd00:65::/120".parse().unwrap()],
        ..context()
    };
    let mut maps = node.fake.clone();
    let second = node.endpoints.add(&mut maps, &moved, |_| 17, &attach("a")).await.unwrap();
    assert_ne!(first.addresses, second.addresses);
    assert_eq!(second.addresses[0].to_string(), "10.66.0.1/32");
}

#[tokio::test]
async fn a_start_gives_pods_what_the_controller_says_now() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    let mut maps = node.fake.clone();
    node.endpoints = load(node.dir.path(), &node.fake).await;
    let now = PodContext { policy: 9, limits: Limits::default(), ..context() };
    let report = node.endpoints.reconcile(&mut maps, |_| Some(now.clone())).await.unwrap();
    assert_eq!((report.adopted, report.ownerless), (1, vec![format!("interface {}", ifb(&node))]));
    node.fake.with(|s| {
        let entry = s.endpoints.values().next().unwrap();
        assert_eq!((entry.policies, entry.ifb_ifindex), ([9; 2], 0));
    });
}

/// A daemon that dies behind a switch has not written down yet what pods are by it.
#[tokio::test]
async fn until_it_has_a_policy_of_its_own_a_start_leaves_pods_as_they_stand_in_the_maps() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    let standing = node.fake.with(|s| {
        s.addresses.values_mut().for_each(|i| i.id = 23);
        let entry = s.endpoints.values_mut().next().unwrap();
        (entry.policies, entry.identity_v4, entry.identity_v6) = ([3, 9], 23, 23);
        *entry
    });
    let mut maps = node.fake.clone();
    node.endpoints = load(node.dir.path(), &node.fake).await;
    assert_eq!(node.endpoints.reconcile(&mut maps, |_| None).await.unwrap().adopted, 1);
    node.fake.with(|s| {
        assert_eq!(s.endpoints.values().collect::<Vec<_>>(), [&standing]);
        assert!(s.addresses.values().all(|i| i.id == 23));
    });
}

fn ifb(node: &Node) -> String {
    node.endpoints.get(&attach("a").id).unwrap().ifb()
}

#[tokio::test]
async fn a_file_under_another_pods_name_is_refused_by_name() {
    let mut node = Node::new().await;
    node.add("a").await.unwrap();
    let dir = node.dir.path().join("state/endpoints");
    std::fs::copy(dir.join("a-eth0.json"), dir.join("b-eth0.json")).unwrap();
    let claims = ClaimFiles::new(node.dir.path().join("blocks")).unwrap();
    let net = NodeNet { mtu: 1500, sources: Sources::default() };
    let (endpoints, errors) =
        Endpoints::load(node.fake.clone(), claims, &node.dir.path().join("state"), "n1", net).await.unwrap();
    assert_eq!(endpoints.iter().count(), 1);
    assert!(errors[0].to_string().contains("b-eth0.json"), "{errors:?}");
}

/// The daemon runs these in tasks.
#[allow(dead_code)]
fn futures_can_be_sent<M: PodMaps + Send + Sync>(e: &mut Endpoints<Kernel, ClaimFiles>, m: &mut M) {
    fn check<T: Send>(_: T) {}
    check(e.add(m, &context(), |_| 17, &attach("a")));
    check(e.reconcile(m, |_| None));
    check(e.gc(m, &Gc { valid: vec![] }));
}

fn attach_with(name: &str, mappings: serde_json::Value) -> Attach {
    Attach { port_mappings: serde_json::from_value(mappings).unwrap(), ..attach(name) }
}

impl Node {
    async fn add_with(&mut self, name: &str, mappings: serde_json::Value) -> Result<Attachment, ErrorReply> {
        let request = attach_with(name, mappings);
        self.endpoints.add(&mut self.fake.clone(), &context(), |_| 17, &request).await
    }

    /// Ports of the node in the kernel.
    fn ports(&self) -> Vec<String> {
        self.fake.with(|s| s.nat.ports.iter().map(|(port, to)| format!("{port} {to}")).collect())
    }
}

#[tokio::test]
async fn host_ports_come_and_go_with_their_pod_and_outlive_the_daemon() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    let any = serde_json::json!([{"hostPort": 8080, "containerPort": 80}]);
    let one =
        serde_json::json!([{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}]);
    node.add_with("a", any).await.unwrap();
    node.add_with("b", one).await.unwrap();
    let all =
        ["0.0.0.0:8080/TCP 10.65.0.1:80", "192.0.2.1:53/UDP 10.65.0.2:53", "[::]:8080/TCP [fd00:65::1]:80"];
    assert_eq!(node.ports(), all);
    // The next daemon finds a table that somebody has emptied.
    node.fake.with(|s| s.nat = Nat::default());
    node.endpoints = load(node.dir.path(), &node.fake).await;
    node.endpoints.reconcile(&mut node.fake.clone(), |_| None).await.unwrap();
    assert_eq!(node.ports(), all);
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    node.del("a").await.unwrap();
    assert_eq!(node.ports(), all[1..2]);
    node.del("b").await.unwrap();
    assert_eq!(node.ports(), [""; 0]);
    node.assert_nothing_left();
}

#[tokio::test]
async fn what_somebody_else_changes_of_the_translation_is_put_right() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    node.add_with("a", serde_json::json!([{"hostPort": 8080, "containerPort": 80}])).await.unwrap();
    let all = node.ports();
    node.endpoints.keep_translation().await.unwrap();
    let flush = |s: &mut super::fake::State| (s.nat, s.ruleset) = (Nat::default(), s.ruleset + 1);
    node.fake.with(flush);
    node.endpoints.keep_translation().await.unwrap();
    assert_eq!(node.ports(), all);
}

#[tokio::test]
async fn without_host_ports_nothing_is_asked_or_changed() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    node.fake.with(|s| s.calls.clear());
    node.add("a").await.unwrap();
    node.endpoints.keep_translation().await.unwrap();
    node.del("a").await.unwrap();
    let asked = |call: &&str| ["translate", "translated", "ruleset"].contains(call);
    assert!(!node.fake.with(|s| s.calls.iter().any(asked)));
}

#[tokio::test]
async fn a_host_port_is_one_pods() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    let mapping = |protocol: &str, ip: &str| serde_json::json!([{"hostPort": 80, "containerPort": 80, "protocol": protocol, "hostIP": ip}]);
    node.add_with("a", mapping("tcp", "192.0.2.1")).await.unwrap();
    for (ip, taken) in
        [("192.0.2.1", true), ("", true), ("0.0.0.0", true), ("192.0.2.2", false), ("::", false)]
    {
        let added = node.add_with("b", mapping("tcp", ip)).await;
        assert_eq!(added.is_err(), taken, "{ip}");
        if let Err(error) = added {
            assert_eq!(error.code, code::TRY_AGAIN_LATER);
            let text = error.to_string();
            assert!(text.contains(":80/TCP is taken") && text.contains("web/a"), "{text}");
        }
        node.del("b").await.unwrap();
    }
    node.add_with("b", mapping("udp", "")).await.unwrap();
    // Again, and as another sandbox of the same name: it does not stand in its own way.
    node.add_with("a", mapping("tcp", "192.0.2.1")).await.unwrap();
    node.del("a").await.unwrap();
    node.add_with("c", mapping("tcp", "")).await.unwrap();
}

#[tokio::test]
async fn a_host_port_at_an_address_of_another_family_is_refused() {
    let mut node = Node::new().await;
    let mapping = serde_json::json!([{"hostPort": 80, "containerPort": 80, "hostIP": "192.0.2.1"}]);
    let pod = PodContext { ranges: vec!["fd00:65::/120".parse().unwrap()], ..context() };
    let request = attach_with("a", mapping);
    let error = node.endpoints.add(&mut node.fake.clone(), &pod, |_| 17, &request).await.unwrap_err();
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_host_port_that_cannot_be_set_leaves_nothing() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    node.fake.with(|s| s.failing.insert("translate"));
    let mappings = serde_json::json!([{"hostPort": 8080, "containerPort": 80}]);
    let error = node.add_with("a", mappings.clone()).await.unwrap_err();
    assert!(error.details.contains("translate"), "{error}");
    node.fake.with(|s| s.failing.clear());
    // What could not be undone is, now.
    node.del("a").await.unwrap();
    assert_eq!(node.ports(), [""; 0]);
    node.assert_nothing_left();
    node.add_with("a", mappings).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_goes_before_the_source_has_spoken_takes_no_masquerade_with_it() {
    let mut node = Node::new().await;
    let range = ("10.65.0.0/28".parse().unwrap(), vec![]);
    let masquerade = Masquerade { ranges: vec![range], cluster: vec![] };
    node.endpoints.set_masquerade(masquerade.clone()).await.unwrap();
    node.add_with("a", serde_json::json!([{"hostPort": 8080, "containerPort": 80}])).await.unwrap();
    node.endpoints = load(node.dir.path(), &node.fake).await;
    node.endpoints.reconcile(&mut node.fake.clone(), |_| None).await.unwrap();
    node.endpoints.keep_translation().await.unwrap();
    assert_eq!(node.fake.with(|s| s.nat.masquerade.clone()), masquerade);
    node.del("a").await.unwrap();
    node.endpoints.keep_translation().await.unwrap();
    assert_eq!(node.fake.with(|s| s.nat.masquerade.clone()), masquerade);
    assert_eq!(node.fake.with(|s| s.forgotten.len()), 0);
    node.endpoints.set_masquerade(masquerade.clone()).await.unwrap();
    assert_eq!(node.ports(), [""; 0]);
    assert_eq!(node.fake.with(|s| s.nat.masquerade.clone()), masquerade);
    // Only now nothing leads to it any more.
    assert_eq!(node.fake.with(|s| s.forgotten.len()), 2);
}

#[tokio::test]
async fn where_the_kernel_knows_no_tables_a_refused_pod_can_go() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    node.fake.with(|s| s.no_tables = true);
    node.add_with("a", serde_json::json!([{"hostPort": 8080, "containerPort": 80}])).await.unwrap_err();
    node.assert_nothing_left();
    node.del("a").await.unwrap();
}

#[tokio::test]
async fn a_daemon_starts_also_where_its_table_cannot_be_read() {
    let mut node = Node::new().await;
    node.endpoints.set_masquerade(Default::default()).await.unwrap();
    node.add_with("a", serde_json::json!([{"hostPort": 8080, "containerPort": 80}])).await.unwrap();
    node.endpoints = load(node.dir.path(), &node.fake).await;
    node.fake.with(|s| s.failing.insert("translated"));
    let report = node.endpoints.reconcile(&mut node.fake.clone(), |_| None).await.unwrap();
    assert!(report.errors.iter().any(|e| e.contains("host ports")), "{report:?}");
    assert_eq!(report.adopted, 1);
}
