//! Kernel against user space: random objects are compiled and put in force; random packets must meet the verdict and
//! the rule that `Compiled::evaluate` names.
//!
//! Each run draws other packets; a failure prints its seed, which `BULKHEAD_SEED` repeats. What has ever failed is in
//! `oracle.regressions`, where a failure adds itself, and is run first.

#[path = "oracle/frames.rs"]
mod frames;
#[path = "oracle/model.rs"]
mod model;
#[path = "oracle/objects.rs"]
mod objects;
#[path = "oracle/policies.rs"]
mod policies;
#[path = "oracle/random.rs"]
mod random;
#[path = "oracle/reading.rs"]
mod reading;
#[path = "oracle/seeds.rs"]
mod seeds;

use crate::{
    node::{MAC_A, MAC_B, ifindex},
    sandbox,
};
use aya::{
    maps::{Map, MapData, PerCpuHashMap},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use bulkhead_daemon::datapath::{Datapath, Generation, Hook, PodMaps};
use bulkhead_ebpf_abi::{
    Addr, Connections, DIR_EGRESS, DIR_INGRESS, DropKey, ENDPOINT_PACED, Endpoint, FLOW_UNASKED,
    IDENTITY_LOCAL_POD, Identity, ORIGIN_NONE, ORIGIN_SHIFT, ORIGIN_UNKNOWN, RULE_FIRST_DYNAMIC,
    RULE_LOOPBACK, RULE_OWN_NODE, Sizes, origin_of,
};
use bulkhead_policy::{Compiled, Interner, Local, LocalPod, Objects, admit, compile};
use frames::Site;
use model::{AUDITED, Expected, Model, Pod};
use random::Random;
use seeds::Failed;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

crate::trials! {
    oracle:
    random_packets_meet_the_verdict_and_the_rule_that_user_space_names,
}

/// Every `make test`.
const PACKETS: usize = 120_000;
const PER_CLUSTER: usize = 500;
/// Clusters that one after the other are in force on one set of maps.
const PER_NODE: usize = 30;

const SIZES: Sizes =
    Sizes { identities: 8192, policies: 64, port_tables: 64, port_pages: 1024, rows: 8192, cells: 32_768 };

/// Room for all that a cluster's packets begin: nothing is refused or evicted here.
const CONNECTIONS: Connections =
    Connections { per_pod: 16_384, unanswered: 16_384, closed: 16_384, ..Connections::of(16_384) };

type Drops = PerCpuHashMap<MapData, [u8; 12], [u64; 3]>;

/// The programs of one node, run packet by packet.
struct Kernel {
    datapath: Datapath,
    programs: [SchedClassifier; 2],
    drops: Drops,
    /// What must have been counted: packets and bytes.
    counted: BTreeMap<DropKey, (u64, u64)>,
    generation: u32,
}

impl Kernel {
    fn open() -> Self {
        let pins = sandbox::pin_dir();
        let datapath = Datapath::open(&pins, SIZES, CONNECTIONS).unwrap_or_else(|e| panic!("{e}")).datapath;
        let program = |hook: Hook| {
            SchedClassifier::from_pin(pins.join("programs").join(hook.name())).expect("a pinned program")
        };
        let map = MapData::from_pin(pins.join("maps/DROPS")).expect("a pinned map");
        Self {
            programs: [program(Hook::FromPod), program(Hook::ToPod)],
            drops: Map::from_map_data(map).and_then(Drops::try_from).expect("a map of counters"),
            datapath,
            counted: BTreeMap::new(),
            generation: 0,
        }
    }

    fn put_in_force(&mut self, compiled: &Compiled, pods: &[Pod; 2]) {
        for (pod, name) in pods.iter().zip(["pod-a", "pod-b"]) {
            let endpoint = Endpoint {
                ipv4: pod.addresses[0],
                ipv6: pod.addresses[1],
                policies: [pod.policy; 2],
                identity_v4: pod.identities[0],
                identity_v6: pod.identities[1],
                ifb_ifindex: 0,
                mac: pod.mac,
                // Through the stack: each hook is met by itself.
                flags: ENDPOINT_PACED,
                ..Endpoint::default()
            };
            self.datapath.set_endpoint(ifindex(name), &endpoint).expect("endpoint");
            for (address, id) in pod.addresses.iter().zip(pod.identities) {
                let identity = Identity { id, flags: IDENTITY_LOCAL_POD };
                self.datapath.set_address(address.to_ip(), identity).expect("address");
            }
        }
        let Compiled { tables, prefixes, exact, .. } = compiled;
        self.generation =
            self.datapath.apply(&Generation { tables, prefixes, exact }).unwrap_or_else(|e| panic!("{e}"));
        self.datapath.settle().expect("settled");
    }

    /// Forgets the pods and all flows; says how many there were.
    fn clear(&mut self, pods: &[Pod; 2]) -> usize {
        for address in pods.iter().flat_map(|p| p.addresses) {
            self.datapath.remove_address(address.to_ip()).expect("removed");
        }
        let addresses: Vec<IpAddr> =
            self.datapath.flows().map(|flow| flow.expect("a flow").0.low.to_ip()).collect();
        self.datapath.forget_flows(&addresses).expect("forgotten")
    }

    fn run(&self, at: &At<'_>, frame: &[u8]) -> i32 {
        let interface = |pod: usize| ifindex(["pod-a", "pod-b"][pod]).to_ne_bytes();
        let mut context = [0u8; 184];
        context[8..12].copy_from_slice(&(at.origin << ORIGIN_SHIFT).to_ne_bytes());
        if let Some(from) = at.from {
            context[36..40].copy_from_slice(&interface(from));
        }
        context[40..44].copy_from_slice(&interface(at.pod));
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        self.programs[at.dir as usize].test_run(options).expect("a test-run").return_value as i32
    }

    /// Runs the packet; `Err` says where the kernel is of another opinion.
    fn check(&mut self, at: &At<'_>, frame: &[u8], expected: &Expected) -> Result<(), String> {
        let verdict = self.run(at, frame);
        let (passes, counted) = match expected {
            Expected::Drop(reason, rule) => (false, Some((*reason, *rule))),
            Expected::Pass { audited, .. } => (true, audited.map(|rule| (AUDITED, rule))),
            Expected::Known => return Ok(()),
        };
        // On to the stack, or redirected.
        if [-1, 7].contains(&verdict) != passes {
            return Err(format!("verdict {verdict}, {}", self.news()));
        }
        if let Some((reason, rule)) = counted {
            let key = DropKey { rule, policy: at.policy, reason, dir: at.dir as u8, reserved: 0 };
            let sum = self.counted.entry(key).or_default();
            *sum = (sum.0 + 1, sum.1 + frame.len() as u64);
            let sum = *sum;
            if self.read(&key) != sum {
                return Err(format!(
                    "{key:?} was not counted as {sum:?}, but {:?}: {}",
                    self.read(&key),
                    self.news()
                ));
            }
        }
        match expected {
            Expected::Pass { admitted: Some(admitted), .. } => self.check_flow(admitted),
            _ => Ok(()),
        }
    }

    fn check_flow(&self, want: &model::Admitted) -> Result<(), String> {
        let flow = self.datapath.flow(&want.key).expect("a look-up").ok_or("no entry for the flow")?;
        let (by, rule) = (flow.generations[want.dir as usize], flow.rules[want.dir as usize]);
        let generation = if want.flags & FLOW_UNASKED == 0 { self.generation } else { 0 };
        let same = (by, rule) == (generation, want.rule)
            && (flow.origin, flow.service_port) == (want.origin, want.service_port)
            && flow.flags & want.flags == want.flags;
        if same { Ok(()) } else { Err(format!("the entry says {flow:?}")) }
    }

    fn read(&self, key: &DropKey) -> (u64, u64) {
        let mut raw = [0; 12];
        raw[..4].copy_from_slice(&key.rule.to_ne_bytes());
        raw[4..8].copy_from_slice(&key.policy.to_ne_bytes());
        (raw[8], raw[9]) = (key.reason, key.dir);
        let values = self.drops.get(&raw, 0);
        values.map_or((0, 0), |cpus| cpus.iter().fold((0, 0), |sum, c| (sum.0 + c[0], sum.1 + c[1])))
    }

    /// What was counted that should not have been.
    fn news(&self) -> String {
        let all = self.datapath.drops().expect("drops").into_iter();
        let more = |(key, counter): &(DropKey, bulkhead_ebpf_abi::Counter)| {
            self.counted.get(key).copied().unwrap_or_default() != (counter.packets, counter.bytes)
        };
        format!("counted {:?}", all.filter(more).collect::<Vec<_>>())
    }
}

/// The hook a frame meets.
struct At<'a> {
    pod: usize,
    dir: u32,
    origin: u32,
    /// The pod at whose interface it came into the host.
    from: Option<usize>,
    policy: u32,
    seed: u64,
    objects: &'a Objects,
}

/// Two pods of the node, now and then strays: with an address outside of their partition's range. Most are told of by the
/// source; of the others only the namespace is known.
fn local_pods(random: &mut Random, objects: &mut Objects) -> [LocalPod; 2] {
    let of_nodes = objects.nodes.values().flat_map(|n| n.addresses.clone());
    let of_pods = objects.pods.values().flat_map(|p| p.addresses.clone());
    let mut taken: Vec<IpAddr> = of_nodes.chain(of_pods).collect();
    ["pod-a", "pod-b"].map(|name| {
        let namespace = random.pick(&policies::NAMESPACES);
        // It was wired into the partition of its namespace, and later that may have changed.
        let partitions: Vec<&String> = objects.partitions.keys().collect();
        let partition = match random.percent(70) {
            true => objects.partition_of_namespace(namespace).to_string(),
            false => random.pick(&partitions).clone(),
        };
        let addresses = [false, true].map(|v6| free_address(random, &mut taken, &partition, v6));
        let pod = LocalPod {
            namespace: namespace.into(),
            name: name.into(),
            partition,
            addresses: addresses.into(),
        };
        if random.percent(80) {
            let told = bulkhead_policy::Pod {
                addresses: pod.addresses.clone(),
                host_network: false,
                ..policies::pod(random)
            };
            objects.pods.insert(pod.key(), Arc::new(told));
        }
        pod
    })
}

fn free_address(random: &mut Random, taken: &mut Vec<IpAddr>, partition: &str, v6: bool) -> IpAddr {
    loop {
        let mut address = objects::address(random, v6);
        let stray = random.percent(10);
        if let (false, Some(number)) = (stray, partition.strip_prefix('p')) {
            let text = if v6 {
                format!("fd00:{number}::a{}", random.below(99))
            } else {
                format!("9.{number}.0.{}", random.below(200))
            };
            address = text.parse().expect("an address");
        }
        if !taken.contains(&address) {
            taken.push(address);
            return address;
        }
    }
}

fn placed(pods: &[LocalPod; 2], objects: &Objects, compiled: &Compiled) -> [Pod; 2] {
    [(MAC_A, &pods[0]), (MAC_B, &pods[1])].map(|(mac, pod)| {
        let placement = compiled.place(objects, pod).expect("compiled for this pod");
        let identities = [0, 1].map(|n| compiled.pod_identity(&placement, pod.addresses[n]));
        let addresses = [0, 1].map(|n| Addr::from_ip(pod.addresses[n]));
        Pod { mac, policy: placement.policy, addresses, identities }
    })
}

fn random_packets_meet_the_verdict_and_the_rule_that_user_space_names() {
    for Failed { seed, first } in seeds::failed() {
        node(seed, first, &mut BTreeMap::new());
    }
    let seed = seeds::of_this_run();
    let mut seen = BTreeMap::new();
    let mut packets = 0;
    for first in (0..).step_by(PER_NODE) {
        if packets >= PACKETS {
            break;
        }
        packets += seeds::kept(Failed { seed, first }, || node(seed, first, &mut seen));
    }
    println!("{packets} packets, seed {seed}: {seen:?}");
    for what in KINDS {
        let count = seen.get(what).copied().unwrap_or_default();
        assert!(count >= PACKETS / 2000, "too few of {what}: {count}, seed {seed}");
    }
}

/// What must have been seen in numbers.
const KINDS: [&str; 22] = [
    "Partition: a rule allows",
    "Partition: a rule denies",
    "NetworkPolicy: a rule allows",
    "NetworkPolicy: isolates",
    "NetworkPolicies: isolate",
    "ClusterNetworkPolicy: a rule allows",
    "ClusterNetworkPolicy: a rule denies",
    "a port's name allows",
    "a built-in rule allows",
    "policy",
    "audited",
    "this node's own",
    "a pod itself",
    "no flow",
    "spoofed source from pod",
    "truncated packet",
    "malformed packet",
    "not IP",
    "fragment without its first",
    "tiny or overlapping fragment",
    "multicast",
    "unknown origin",
];

/// What packets have met.
struct Seen<'a> {
    seen: &'a mut BTreeMap<&'static str, usize>,
    /// Rules of this cluster that ask for ports by name.
    by_name: BTreeSet<String>,
}

impl Seen<'_> {
    fn count(&mut self, expected: &Expected, compiled: &Compiled) {
        let what = kind(expected, compiled);
        *self.seen.entry(what).or_default() += 1;
        let Expected::Pass { admitted: Some(admitted), .. } = expected else { return };
        if compiled.rules.get(admitted.rule).is_some_and(|entry| self.by_name.contains(&entry.name)) {
            *self.seen.entry("a port's name allows").or_default() += 1;
        }
    }
}

fn kind(expected: &Expected, compiled: &Compiled) -> &'static str {
    let by = |rule: u32, allows: bool| {
        let name = compiled.rules.get(rule).map_or("", |entry| &entry.name);
        match (name.split('/').next(), allows) {
            (Some("Partition"), true) => "Partition: a rule allows",
            (Some("Partition"), false) => "Partition: a rule denies",
            (Some("NetworkPolicy"), true) => "NetworkPolicy: a rule allows",
            (Some("NetworkPolicy"), false) if name.ends_with("(isolates)") => "NetworkPolicy: isolates",
            (Some("NetworkPolicy"), false) => "NetworkPolicies: isolate",
            (Some("ClusterNetworkPolicy"), true) => "ClusterNetworkPolicy: a rule allows",
            (Some("ClusterNetworkPolicy"), false) => "ClusterNetworkPolicy: a rule denies",
            _ => "nameless",
        }
    };
    match expected {
        Expected::Drop(bulkhead_ebpf_abi::DROP_POLICY, rule @ RULE_FIRST_DYNAMIC..) => by(*rule, false),
        Expected::Drop(reason, _) => bulkhead_ebpf_abi::drop_reason_text(*reason),
        Expected::Pass { audited: Some(_), .. } => "audited",
        Expected::Pass { admitted: None, .. } => "no flow",
        Expected::Pass { admitted: Some(admitted), .. } => match admitted.rule {
            RULE_OWN_NODE => "this node's own",
            RULE_LOOPBACK => "a pod itself",
            rule @ RULE_FIRST_DYNAMIC.. => by(rule, true),
            _ => "a built-in rule allows",
        },
        Expected::Known => "known",
    }
}

/// Clusters one after the other on one set of maps; how many packets that were.
fn node(seed: u64, first: u64, seen: &mut BTreeMap<&'static str, usize>) -> usize {
    let mut kernel = Kernel::open();
    let mut numbers = Interner::default();
    let mut packets = 0;
    for cluster in first..first + PER_NODE as u64 {
        let mut random = Random::new(seed ^ cluster << 32);
        let mut objects = objects::objects(&mut random);
        let local_pods = local_pods(&mut random, &mut objects);
        let refused = admit(&Objects::default(), objects.clone()).1;
        assert_eq!(refused, [], "objects that are refused, seed {seed}");
        let local = Local { node: objects::LOCAL_NODE, pods: &local_pods, partitions: None, former: None };
        let compiled = compile(&objects, &mut numbers, &local).expect("objects that fit");
        let pods = placed(&local_pods, &objects, &compiled);
        kernel.put_in_force(&compiled, &pods);
        numbers.switched();
        let mut model = Model::new(&compiled, pods);
        let seen = &mut Seen { seen, by_name: policies::by_named_ports(&objects) };
        while packets < PER_CLUSTER * (1 + (cluster - first) as usize) {
            packets += datagram(&mut random, &mut kernel, &mut model, &objects, seed, packets as u16, seen);
        }
        assert_eq!(kernel.datapath.flow_count().expect("count"), model.flow_count(), "flows, seed {seed}");
        let drops = kernel.datapath.drops().expect("drops");
        let drops: BTreeMap<_, _> = drops.into_iter().map(|(k, c)| (k, (c.packets, c.bytes))).collect();
        assert_eq!(drops, kernel.counted, "nothing else is counted, seed {seed}");
        assert_eq!(kernel.clear(&model.pods), model.flow_count());
    }
    packets
}

/// One datagram through the hooks that it meets; how many packets were run.
fn datagram(
    random: &mut Random,
    kernel: &mut Kernel,
    model: &mut Model<'_>,
    objects: &Objects,
    seed: u64,
    serial: u16,
    seen: &mut Seen<'_>,
) -> usize {
    let (pod, dir, v6) = (random.below(2), random.pick(&[DIR_EGRESS, DIR_INGRESS]), random.percent(45));
    let other = &model.pods[1 - pod];
    let nodes = objects.nodes.values().flat_map(|n| &n.addresses);
    let own = &model.pods[pod];
    let of_pods = other.addresses.into_iter().chain(own.addresses).map(Addr::to_ip);
    let told = objects.pods.values().flat_map(|p| &p.addresses);
    let known: Vec<IpAddr> = nodes.chain(&objects.cluster_dns).chain(told).copied().chain(of_pods).collect();
    let own_address = own.addresses[usize::from(v6)].to_ip();
    let called = |pod: &&Arc<bulkhead_policy::Pod>| dir == DIR_EGRESS || pod.addresses.contains(&own_address);
    let named: Vec<u16> =
        objects.pods.values().filter(called).flat_map(|p| &p.ports).map(|p| p.port).collect();
    let site =
        Site { own: own_address, own_mac: own.mac, sends: dir == DIR_EGRESS, known: &known, named: &named };
    let about =
        random.percent(50).then(|| model.quote(random.next(), own.addresses[usize::from(v6)])).flatten();
    let frames = frames::frames(random, &site, serial, about.as_deref());
    let itself = origin_of(own.identities[usize::from(v6)]);
    let somebody = random.pick(&model.identities());
    let origins = [ORIGIN_NONE, ORIGIN_NONE, ORIGIN_UNKNOWN, 16, 18, 25, somebody, somebody, itself, itself];
    let origin = if dir == DIR_EGRESS { 0 } else { random.pick(&origins) };
    let from = if dir == DIR_EGRESS { None } else { random.pick(&[None, None, Some(pod), Some(1 - pod)]) };
    let mut run = 0;
    for frame in frames {
        let mut at = At { pod, dir, origin, from, policy: model.pods[pod].policy, seed, objects };
        let expected = step(kernel, model, &at, &frame, seen, &mut run);
        // Between two pods of this node it meets the other's hook, too; for itself, its own.
        let Some(target) = delivered_to(model, pod, &frame) else { continue };
        if dir == DIR_EGRESS && matches!(expected, Expected::Pass { .. }) {
            let identity = model.pods[pod].identities[usize::from(v6)];
            at = At { pod: target, dir: DIR_INGRESS, origin: origin_of(identity), from: Some(pod), ..at };
            at.policy = model.pods[target].policy;
            step(kernel, model, &at, &frame, seen, &mut run);
        }
    }
    run
}

fn delivered_to(model: &Model<'_>, from: usize, frame: &[u8]) -> Option<usize> {
    let reading = reading::read(frame).ok()?;
    let own = model.pods[from].addresses.contains(&reading.src);
    own.then(|| model.pods.iter().position(|p| p.addresses.contains(&reading.dst))).flatten()
}

fn step(
    kernel: &mut Kernel,
    model: &mut Model<'_>,
    at: &At<'_>,
    frame: &[u8],
    seen: &mut Seen<'_>,
    run: &mut usize,
) -> Expected {
    // ARP has tests of its own; of IPv6 a test-run takes whole headers only.
    if frame[12..14] == [8, 6] || (frame[12..14] == [0x86, 0xdd] && frame.len() < 54) {
        return Expected::Known;
    }
    let expected = model.expect(at.pod, at.dir, frame, at.origin, at.from);
    if expected == Expected::Known {
        return expected;
    }
    if let Err(why) = kernel.check(at, frame, &expected) {
        let At { pod, dir, origin, from, policy, seed, objects } = at;
        let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        panic!(
            "expected {expected:?}; {why}\nBULKHEAD_SEED={seed}, pod {pod} (policy {policy}), direction {dir}, \
             origin {origin}, from {from:?}, frame {hex}\nread as {:?}\n{objects:#?}",
            reading::read(frame)
        );
    }
    *run += 1;
    seen.count(&expected, model.compiled);
    expected
}
