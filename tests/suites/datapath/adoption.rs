//! A daemon that starts finds what the one before it left, and nothing stops meanwhile.

use crate::{
    node::{A, B, CONNECTIONS, End, Node, POLICY_A, POLICY_B, V4, V6, VM, addr, ifindex},
    packet::{SYN, TCP, UDP, tcp, udp},
    rules::{CLASSES, Port, Rules, SIZES},
    sandbox::{pin_dir, run},
};
use aya::{
    maps::{HashMap, Map, MapData},
    programs::{SchedClassifier, TcAttachType},
};
use bulkhead_daemon::datapath::{Datapath, DatapathError, Generation, Hook, PodMaps};
use bulkhead_ebpf_abi::{ABI_VERSION, Connections, Delivery, Endpoint, RecentKey, RecentPage, Sizes};
use bulkhead_lab::bpf;
use std::{fs, path::Path, sync::Arc};

crate::trials! {
    adoption:
    a_first_start_adopts_nothing,
    generation_flows_and_endpoints_are_adopted,
    endpoints_are_read_as_they_were_written_however_many,
    a_generation_after_adoption_leaves_nothing_of_those_before,
    deliveries_are_adopted_and_go_with_their_pod,
    a_generation_after_adoption_writes_only_what_differs_and_decides,
    links_stay_attached_and_run_the_new_programs,
    links_of_interfaces_that_are_gone_are_forgotten,
    an_interface_made_again_under_its_name_is_attached_again,
    pins_of_another_layout_are_refused_and_left_alone,
    pins_of_other_sizes_are_refused_and_left_alone,
    fewer_rings_than_a_new_node_has_are_taken_over,
    what_pods_have_called_before_there_was_a_map_for_that_is_answered,
    a_start_that_never_finished_is_begun_again,
    a_folder_that_is_not_on_a_bpf_file_system_is_refused,
    removing_pins_leaves_nothing,
}

fn rules() -> Rules {
    Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70)
}

fn deliveries(node: &Node) -> Vec<Option<Delivery>> {
    let of_pods = [V4, V6].into_iter().flat_map(|f| [f.a, f.b]);
    of_pods.map(|a| node.datapath.delivery(a.parse().expect("an address")).expect("read")).collect()
}

/// A pod that goes after the daemon was replaced leaves no way to it: no other hook delivers to its interface.
fn deliveries_are_adopted_and_go_with_their_pod() {
    let mut node =
        Node::new(Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71));
    node.rewire(1500, 0);
    let pins = node.pins.clone();
    drop(node);
    let mut node = Node::open(pins);
    let request = |port| tcp((V4.a, port), (V4.b, 80), SYN);
    assert_eq!(node.send(A, &request(5)).end, End::Redirect);
    node.datapath.remove_endpoint(ifindex("pod-b")).expect("removed");
    assert_eq!(deliveries(&node).iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, false]);
    assert_eq!(node.send(A, &request(6)).end, End::Next);
}

fn connect(node: &Node, port: u16) -> End {
    node.send(A, &tcp((V4.a, port), (V4.vm, 80), SYN)).end
}

fn a_first_start_adopts_nothing() {
    assert!(!Node::empty().adopted);
}

fn generation_flows_and_endpoints_are_adopted() {
    let mut node = Node::new(rules());
    node.apply(&rules());
    assert_eq!(connect(&node, 5), End::Next);
    let (flow, identities) = (node.flow((V4.a, 5), (V4.vm, 80), TCP), node.datapath.read_identities());
    let endpoints = node.datapath.endpoints().expect("endpoints");
    let deliveries = deliveries(&node);
    assert!(deliveries.iter().all(Option::is_some));
    let pins = node.pins.clone();
    drop(node);
    let node = Node::open(pins);
    assert!(node.adopted);
    assert_eq!(node.datapath.running_generation().expect("generation"), 2);
    assert_eq!(node.flow((V4.a, 5), (V4.vm, 80), TCP), flow);
    assert_eq!(node.datapath.read_identities().expect("identities"), identities.expect("identities"));
    assert_eq!(node.datapath.endpoints().expect("endpoints"), endpoints);
    assert_eq!(self::deliveries(&node), deliveries);
    assert_eq!(connect(&node, 6), End::Next);
}

/// They come many a call: fewer than that, just as many, and more.
fn endpoints_are_read_as_they_were_written_however_many() {
    let mut node = Node::empty();
    let mut written = node.datapath.endpoints().expect("endpoints");
    for n in 1..=600 {
        let endpoint = Endpoint { policies: [n, n + 1], identity_v4: n + 2, ..Endpoint::default() };
        node.datapath.set_endpoint(100_000 + n, &endpoint).expect("an endpoint");
        written.insert(100_000 + n, endpoint);
        if [1, 2, 254, 255, 256, 257, 600].contains(&n) {
            assert_eq!(node.datapath.endpoints().expect("endpoints"), written, "{n}");
        }
    }
    for n in 1..=600 {
        node.datapath.remove_endpoint(100_000 + n).expect("removed");
    }
    assert!(node.datapath.endpoints().expect("endpoints").keys().all(|ifindex| *ifindex < 100_000));
}

fn a_generation_after_adoption_writes_only_what_differs_and_decides() {
    let node = Node::new(rules());
    let pins = node.pins.clone();
    drop(node);
    let mut node = Node::open(pins);
    assert_eq!(node.apply(&Rules::none()), 2);
    assert!(matches!(connect(&node, 5), End::Drop(..)));
    assert_eq!(node.apply(&rules()), 3);
    assert_eq!(connect(&node, 5), End::Next);
}

/// What stands there and must be zero is written, too: who has class 0 has no other's.
fn a_generation_after_adoption_leaves_nothing_of_those_before() {
    let mut node = Node::new(rules());
    node.apply(&rules());
    let pins = node.pins.clone();
    drop(node);
    let mut node = Node::open(pins);
    let mut tables = rules().turned(CLASSES - VM).tables();
    // From the vm on all are the first class: that of the vm alone.
    Arc::make_mut(&mut tables.classes).truncate(VM as usize);
    for port in [5, 6] {
        let generation = Generation { tables: &tables, prefixes: &node.prefixes, exact: &node.exact };
        node.datapath.apply(&generation).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(connect(&node, port), End::Next);
    }
}

/// A veth of its own.
struct Veth(&'static str);

impl Veth {
    fn new(name: &'static str) -> Self {
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")]);
        Self(name)
    }

    fn programs(&self, side: TcAttachType) -> Vec<u32> {
        let (_, programs) = SchedClassifier::query_tcx(self.0, side).expect("a query");
        programs.iter().map(|p| p.id()).collect()
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        run("ip", &["link", "del", self.0]);
    }
}

fn program_id(pins: &Path, hook: Hook) -> u32 {
    let program = SchedClassifier::from_pin(pins.join("programs").join(hook.name())).expect("a program");
    program.info().expect("its info").id()
}

fn links_stay_attached_and_run_the_new_programs() {
    let veth = Veth::new("ad.100");
    let mut node = Node::empty();
    node.datapath.attach_pod(veth.0, ifindex(veth.0)).expect("attached");
    node.datapath.attach_pod(veth.0, ifindex(veth.0)).expect("attached again");
    node.datapath.attach_uplink("lo", 1).expect("attached");
    let (of_pod, of_uplink) = ([Hook::FromPod, Hook::ToPod], [Hook::FromUplink, Hook::ToUplink]);
    let of_pod = of_pod.map(|hook| (veth.0.to_string(), hook));
    let all = [of_pod, of_uplink.map(|hook| ("lo".to_string(), hook))].concat();
    let pins = node.pins.clone();
    let first = program_id(&pins, Hook::FromPod);
    for start in 0..3 {
        assert_eq!(node.datapath.links_pinned().expect("links"), all, "start {start}");
        assert_eq!(veth.programs(TcAttachType::Ingress), [program_id(&pins, Hook::FromPod)]);
        assert_eq!(veth.programs(TcAttachType::Egress), [program_id(&pins, Hook::ToPod)]);
        drop(node);
        assert_eq!(veth.programs(TcAttachType::Ingress), [program_id(&pins, Hook::FromPod)]);
        node = Node::open(pins.clone());
    }
    assert_ne!(program_id(&pins, Hook::FromPod), first);
    for _ in 0..2 {
        node.datapath.detach_pod(veth.0).expect("detached");
        node.datapath.detach_uplink("lo").expect("detached");
    }
    assert!(
        veth.programs(TcAttachType::Ingress).is_empty() && veth.programs(TcAttachType::Egress).is_empty()
    );
    assert!(node.datapath.links_pinned().expect("links").is_empty());
}

fn links_of_interfaces_that_are_gone_are_forgotten() {
    let veth = Veth::new("gone0");
    let mut node = Node::empty();
    node.datapath.attach_pod(veth.0, ifindex(veth.0)).expect("attached");
    drop(veth);
    assert!(node.datapath.links_pinned().expect("links").is_empty());
    let pins = node.pins.clone();
    drop(node);
    let node = Node::open(pins.clone());
    assert!(node.adopted);
    assert_eq!(fs::read_dir(pins.join("links")).expect("a folder").count(), 0);
}

fn an_interface_made_again_under_its_name_is_attached_again() {
    let mut node = Node::empty();
    for _ in 0..2 {
        let veth = Veth::new("again0");
        node.datapath.attach_pod(veth.0, ifindex(veth.0)).expect("attached");
        assert_eq!(veth.programs(TcAttachType::Egress), [program_id(&node.pins, Hook::ToPod)]);
        let wrong = node.datapath.attach_pod(veth.0, ifindex(veth.0) + 1000);
        assert!(wrong.is_err());
    }
}

fn refusal(pins: &Path, sizes: Sizes, connections: Connections) -> DatapathError {
    Datapath::open(pins, sizes, connections).err().expect("a refusal")
}

fn pins_of_another_layout_are_refused_and_left_alone() {
    let node = Node::new(rules());
    let path = node.pins.join("maps/ABI");
    let map =
        aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(&path).expect("a map")).expect("a map");
    let mut abi: aya::maps::Array<_, u32> = map.try_into().expect("an array");
    abi.set(0, ABI_VERSION + 1, 0).expect("written");
    let refused = refusal(&node.pins, SIZES, CONNECTIONS);
    assert!(matches!(refused, DatapathError::Version { found, needed } if found == needed + 1), "{refused}");
    assert_eq!(connect(&node, 5), End::Next);
}

fn pins_of_other_sizes_are_refused_and_left_alone() {
    let node = Node::new(rules());
    let refused = refusal(&node.pins, Sizes { rows: SIZES.rows * 2, ..SIZES }, CONNECTIONS).to_string();
    assert!(refused.contains("ROW") && refused.contains("1024") && refused.contains("2048"), "{refused}");
    let refused = refusal(&node.pins, SIZES, Connections::of(4096)).to_string();
    assert!(refused.contains("CONNTRACK"), "{refused}");
    assert_eq!(connect(&node, 5), End::Next);
}

/// As daemons made them before.
fn fewer_rings_than_a_new_node_has_are_taken_over() {
    let node = Node::new(rules());
    assert_eq!(connect(&node, 5), End::Next);
    let pins = node.pins.clone();
    drop(node);
    let rings = pins.join("maps/RECENT");
    fs::remove_file(&rings).expect("removed");
    let fewer = bpf::hash(size_of::<RecentKey>() as u32, size_of::<RecentPage>() as u32, 64);
    let fewer = MapData::from_fd(fewer.expect("a hash")).expect("a map");
    fewer.pin(&rings).expect("pinned");
    let node = Node::open(pins);
    assert!(node.adopted);
    assert!(node.flow((V4.a, 5), (V4.vm, 80), TCP).is_some());
    assert_eq!(connect(&node, 6), End::Next);
    let made = HashMap::<_, [u8; size_of::<RecentKey>()], [u8; size_of::<RecentPage>()]>::try_from(
        Map::from_map_data(fewer).expect("a map"),
    );
    assert_eq!(made.expect("a hash").keys().count(), 1, "the new connection stands in these rings");
}

fn what_pods_have_called_before_there_was_a_map_for_that_is_answered() {
    let mut node = Node::new(rules());
    node.datapath
        .set_range_policies(&[("10.0.9.0/24".parse().expect("a range"), POLICY_B)].into())
        .expect("set");
    let (pod, pins) = ("10.0.9.9", node.pins.clone());
    let notes = || {
        HashMap::<_, [u32; 10], u32>::try_from(
            Map::from_map_data(MapData::from_pin(pins.join("maps/BEGUN")).expect("pinned")).expect("a map"),
        )
        .expect("a hash")
    };
    let call = |port: u16| {
        let words = |address| {
            addr(address)
                .0
                .chunks(4)
                .map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))
                .collect::<Vec<_>>()
        };
        let ports = u32::from(port) | 8053 << 16;
        let key: Vec<_> = [words(pod), words(V4.node), vec![ports, u32::from(UDP)]].concat();
        notes().insert(<[u32; 10]>::try_from(key).expect("ten"), 0, 0).expect("noted");
    };
    let answer = |node: &Node, port| node.leave(Some("pod-a"), &udp((V4.node, 8053), (pod, port)), A).end;
    assert_ne!(answer(&node, 5), End::Next);
    call(5);
    drop(node);
    fs::remove_file(pins.join("maps/CALLED")).expect("unpinned");
    let node = Node::open(pins.clone());
    assert!(node.adopted);
    assert_eq!(notes().iter().count(), 0, "it has moved to where it ages");
    assert_eq!(answer(&node, 5), End::Next);
    // Of a program that is replaced next.
    call(6);
    assert_eq!(answer(&node, 6), End::Next);
    assert_ne!(answer(&node, 7), End::Next);
}

fn a_start_that_never_finished_is_begun_again() {
    let node = Node::new(rules());
    let pins = node.pins.clone();
    drop(node);
    fs::remove_file(pins.join("maps/ABI")).expect("removed");
    let mut node = Node::open(pins);
    assert!(!node.adopted);
    assert_eq!(node.datapath.running_generation().expect("generation"), 0);
    node.wire();
    node.apply(&rules());
    assert_eq!(connect(&node, 5), End::Next);
}

fn a_folder_that_is_not_on_a_bpf_file_system_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = refusal(&folder.path().join("pins"), SIZES, CONNECTIONS).to_string();
    assert!(refused.contains("BPF file system"), "{refused}");
}

fn removing_pins_leaves_nothing() {
    let veth = Veth::new("last0");
    let mut node = Node::empty();
    node.datapath.attach_pod(veth.0, ifindex(veth.0)).expect("attached");
    let pins = node.pins.clone();
    drop(node);
    for _ in 0..2 {
        Datapath::remove_pins(&pins).expect("removed");
        assert!(!pins.exists());
    }
    assert!(
        veth.programs(TcAttachType::Ingress).is_empty() && veth.programs(TcAttachType::Egress).is_empty()
    );
    assert!(pin_dir() != pins);
}
