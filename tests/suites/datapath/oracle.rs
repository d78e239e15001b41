//! Kernel against user space: random objects are compiled and put in force; random packets must meet the verdict and
//! the rule that `Compiled::evaluate` names.
//!
//! `BULKHEAD_SEED` repeats a run; a failure prints its seed.

#[path = "oracle/frames.rs"]
mod frames;
#[path = "oracle/model.rs"]
mod model;
#[path = "oracle/objects.rs"]
mod objects;
#[path = "oracle/random.rs"]
mod random;
#[path = "oracle/reading.rs"]
mod reading;

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
use bulkhead_policy::{Compiled, Interner, Local, LocalPod, Objects, compile};
use frames::Site;
use model::{AUDITED, Expected, Model, Pod};
use random::Random;
use std::{collections::BTreeMap, env, net::IpAddr};

crate::trials! {
    oracle:
    random_packets_meet_the_verdict_and_the_rule_that_user_space_names,
}

/// Every `make test`.
const PACKETS: usize = 120_000;
const PER_CLUSTER: usize = 500;
/// Clusters that one after the other are in force on one set of maps.
const PER_NODE: usize = 30;
const SEED: u64 = 0xb01c_4ead;

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
                policy: pod.policy,
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

/// Two pods, now and then strays: with an address outside of their partition's range.
fn pods(random: &mut Random, objects: &Objects, compiled: &Compiled) -> [Pod; 2] {
    let mut taken: Vec<Addr> = compiled.exact.keys().copied().collect();
    [MAC_A, MAC_B].map(|mac| {
        let partitions: Vec<&String> = compiled.policies.keys().collect();
        let partition = random.pick(&partitions);
        let addresses = [false, true].map(|v6| {
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
                if !taken.contains(&Addr::from_ip(address)) {
                    taken.push(Addr::from_ip(address));
                    break Addr::from_ip(address);
                }
            }
        });
        let pod = LocalPod {
            namespace: "anywhere".into(),
            name: "pod".into(),
            partition: partition.clone(),
            addresses: addresses.iter().map(|a| a.to_ip()).collect(),
        };
        let placement = compiled.place(objects, &pod).expect("a partition without policies of pods");
        let identity = |a: Addr| compiled.pod_identity(&placement, a.to_ip());
        Pod { mac, policy: placement.policy, addresses, identities: addresses.map(identity) }
    })
}

fn random_packets_meet_the_verdict_and_the_rule_that_user_space_names() {
    let seed = env::var("BULKHEAD_SEED").map_or(SEED, |s| s.parse().expect("BULKHEAD_SEED is a number"));
    let mut seen = BTreeMap::new();
    let mut packets = 0;
    for first in (0..).step_by(PER_NODE) {
        if packets >= PACKETS {
            break;
        }
        packets += node(seed, first, &mut seen);
    }
    println!("{packets} packets, seed {seed}: {seen:?}");
    for what in KINDS {
        let count = seen.get(what).copied().unwrap_or_default();
        assert!(count >= PACKETS / 2000, "too few of {what}: {count}, seed {seed}");
    }
}

/// What must have been seen in numbers.
const KINDS: [&str; 16] = [
    "a written rule allows",
    "a written rule denies",
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

fn kind(expected: &Expected) -> &'static str {
    match expected {
        Expected::Drop(bulkhead_ebpf_abi::DROP_POLICY, RULE_FIRST_DYNAMIC..) => "a written rule denies",
        Expected::Drop(reason, _) => bulkhead_ebpf_abi::drop_reason_text(*reason),
        Expected::Pass { audited: Some(_), .. } => "audited",
        Expected::Pass { admitted: None, .. } => "no flow",
        Expected::Pass { admitted: Some(admitted), .. } => match admitted.rule {
            RULE_OWN_NODE => "this node's own",
            RULE_LOOPBACK => "a pod itself",
            RULE_FIRST_DYNAMIC.. => "a written rule allows",
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
        let objects = objects::objects(&mut random);
        let local = Local { node: objects::LOCAL_NODE, pods: &[], partitions: None, former: None };
        let compiled = compile(&objects, &mut numbers, &local).expect("objects that fit");
        let pods = pods(&mut random, &objects, &compiled);
        kernel.put_in_force(&compiled, &pods);
        let mut model = Model::new(&compiled, pods);
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
    seen: &mut BTreeMap<&'static str, usize>,
) -> usize {
    let (pod, dir, v6) = (random.below(2), random.pick(&[DIR_EGRESS, DIR_INGRESS]), random.percent(45));
    let other = &model.pods[1 - pod];
    let nodes = objects.nodes.values().flat_map(|n| &n.addresses);
    let own = &model.pods[pod];
    let of_pods = other.addresses.into_iter().chain(own.addresses).map(Addr::to_ip);
    let known: Vec<IpAddr> = nodes.chain(&objects.cluster_dns).copied().chain(of_pods).collect();
    let own_address = own.addresses[usize::from(v6)].to_ip();
    let site = Site { own: own_address, own_mac: own.mac, sends: dir == DIR_EGRESS, known: &known };
    let about =
        random.percent(50).then(|| model.quote(random.next(), own.addresses[usize::from(v6)])).flatten();
    let frames = frames::frames(random, &site, serial, about.as_deref());
    let itself = origin_of(own.identities[usize::from(v6)]);
    let origins = [ORIGIN_NONE, ORIGIN_NONE, ORIGIN_UNKNOWN, 16, 17, 18, 20, 25, itself, itself];
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
    seen: &mut BTreeMap<&'static str, usize>,
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
    *seen.entry(kind(&expected)).or_default() += 1;
    expected
}
