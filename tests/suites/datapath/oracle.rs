//! Kernel against user space: random objects are compiled and put in force; random packets must meet the verdict and
//! the rule that `Compiled::evaluate` names.
//!
//! Each run draws other packets; a failure prints its seed, which `BULKHEAD_SEED` repeats. What has ever failed is in
//! `oracle.regressions`, where a failure adds itself, and is run first.

#[path = "oracle/follow.rs"]
mod follow;
#[path = "oracle/frames.rs"]
mod frames;
#[path = "oracle/kernel.rs"]
mod kernel;
#[path = "oracle/kinds.rs"]
mod kinds;
#[path = "oracle/model.rs"]
mod model;
#[path = "oracle/objects.rs"]
mod objects;
#[path = "oracle/outcome.rs"]
mod outcome;
#[path = "oracle/policies.rs"]
mod policies;
#[path = "oracle/random.rs"]
mod random;
#[path = "oracle/reading.rs"]
mod reading;
#[path = "oracle/roads.rs"]
mod roads;
#[path = "oracle/seeds.rs"]
mod seeds;

use crate::node::{MAC_A, MAC_B};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{Addr, ORIGIN_NONE, ORIGIN_UNKNOWN, origin_of};
use bulkhead_policy::{Compiled, Interner, Local, LocalPod, Objects, admit, compile};
use frames::Site;
use kernel::Kernel;
use kinds::{KINDS, Seen};
use model::{Model, Pod};
use outcome::{Outcome, PODS, Place, UPLINK, Way};
use random::Random;
use roads::Ranges;
use seeds::Failed;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

crate::trials! {
    oracle:
    random_packets_meet_the_verdict_and_the_rule_that_user_space_names,
}

/// Every `make test`. What an uplink leaves to the stack undecided is none of them, and neither is what follows a connection's
/// first packet.
const PACKETS: usize = 120_000;
const PER_CLUSTER: usize = 500;
/// Clusters that one after the other are in force on one set of maps.
const PER_NODE: usize = 30;

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

/// Most of them without a limit, so that they are reached straight; what is too long for a link is the stack's.
fn placed(random: &mut Random, pods: &[LocalPod; 2], objects: &Objects, compiled: &Compiled) -> [Pod; 2] {
    [(MAC_A, &pods[0]), (MAC_B, &pods[1])].map(|(mac, pod)| {
        let placement = compiled.place(objects, pod).expect("compiled for this pod");
        let identities = [0, 1].map(|n| compiled.pod_identity(&placement, pod.addresses[n]));
        let addresses = [0, 1].map(|n| Addr::from_ip(pod.addresses[n]));
        let (paced, mtu) = (random.percent(25), random.pick(&[1500, 1500, 1500, 100]));
        Pod { mac, policy: placement.policy, addresses, identities, paced, mtu }
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
        let pods = placed(&mut random, &local_pods, &objects, &compiled);
        let untranslated = Ranges::new(&mut random);
        kernel.put_in_force(&compiled, &pods, &untranslated);
        numbers.switched();
        let model = Model::new(&compiled, pods, untranslated);
        let seen = Seen { seen, by_name: policies::by_named_ports(&objects) };
        let mut run = Run { kernel: &mut kernel, model, objects: &objects, seed, seen, packets };
        while run.packets < PER_CLUSTER * (1 + (cluster - first) as usize) {
            run.datagram(&mut random);
        }
        let Run { model, packets: so_far, .. } = run;
        packets = so_far;
        assert_eq!(kernel.datapath.flow_count().expect("count"), model.flow_count(), "flows, seed {seed}");
        let drops = kernel.datapath.drops().expect("drops");
        let drops: BTreeMap<_, _> = drops.into_iter().map(|(k, c)| (k, (c.packets, c.bytes))).collect();
        assert_eq!(drops, kernel.counted, "nothing else is counted, seed {seed}");
        assert_eq!(kernel.clear(&model.pods), model.flow_count());
    }
    packets
}

/// A cluster's packets.
struct Run<'k, 'a> {
    kernel: &'k mut Kernel,
    model: Model<'a>,
    objects: &'a Objects,
    seed: u64,
    seen: Seen<'k>,
    /// Decided so far on this node.
    packets: usize,
}

impl Run<'_, '_> {
    /// One datagram through the hooks that it meets.
    fn datagram(&mut self, random: &mut Random) {
        let (pod, sends, v6) = (random.below(2), random.percent(50), random.percent(45));
        let frames = self.frames(random, pod, sends, v6);
        let from_wire = random.percent(40);
        let stray = self.stray(random, pod, v6);
        let follow = random.percent(20);
        for frame in frames {
            let at = |hook, origin, from| Place { hook, pod, origin, from };
            let place = match (sends, from_wire) {
                (true, _) => at(Hook::FromPod, ORIGIN_NONE, None),
                (false, true) => at(Hook::FromUplink, ORIGIN_NONE, Some(UPLINK)),
                (false, false) => stray,
            };
            let Some(mut outcome) = self.meet(place, &frame) else { continue };
            let mut last = place;
            if let Some(next) = self.next(&place, &frame, &outcome) {
                let Some(there) = self.meet(next, &frame) else { continue };
                (last, outcome) = (next, there);
            }
            if follow && outcome.way != Way::Dropped {
                self.follow(&last, &frame, &outcome);
            }
        }
    }

    fn frames(&self, random: &mut Random, pod: usize, sends: bool, v6: bool) -> Vec<Vec<u8>> {
        let Self { model, objects, .. } = self;
        let (own, other) = (&model.pods[pod], &model.pods[1 - pod]);
        let nodes = objects.nodes.values().flat_map(|n| &n.addresses);
        let of_pods = other.addresses.into_iter().chain(own.addresses).map(Addr::to_ip);
        let told = objects.pods.values().flat_map(|p| &p.addresses);
        let mut known: Vec<IpAddr> =
            nodes.chain(&objects.cluster_dns).chain(told).copied().chain(of_pods).collect();
        // Each other the pods call often, and this node calls them.
        if sends && random.percent(50) {
            known = vec![other.addresses[usize::from(v6)].to_ip()];
        } else if !sends {
            let own = &objects.nodes[objects::LOCAL_NODE].addresses;
            known.extend(own.iter().cycle().take(4 * own.len()));
        }
        let own_address = own.addresses[usize::from(v6)].to_ip();
        let called = |pod: &&Arc<bulkhead_policy::Pod>| sends || pod.addresses.contains(&own_address);
        let named: Vec<u16> =
            objects.pods.values().filter(called).flat_map(|p| &p.ports).map(|p| p.port).collect();
        let site = Site { own: own_address, own_mac: own.mac, sends, known: &known, named: &named };
        let about =
            random.percent(50).then(|| model.quote(random.next(), own.addresses[usize::from(v6)])).flatten();
        frames::frames(random, &site, self.packets as u16, about.as_deref())
    }

    /// At the pod's hook, come from anywhere with any mark.
    fn stray(&self, random: &mut Random, pod: usize, v6: bool) -> Place {
        let itself = origin_of(self.model.pods[pod].identities[usize::from(v6)]);
        let somebody = random.pick(&self.model.identities());
        let origins =
            [ORIGIN_NONE, ORIGIN_NONE, ORIGIN_UNKNOWN, 16, 18, 25, somebody, somebody, itself, itself];
        let from = random.pick(&[None, None, Some(PODS[pod]), Some(PODS[1 - pod])]);
        Place { hook: Hook::ToPod, pod, origin: random.pick(&origins), from }
    }

    /// Where the stack takes it: between two pods of this node it meets the other's hook, too; for itself, its own. None: it is
    /// not for a pod, or the stack has to answer it.
    fn next(&self, at: &Place, frame: &[u8], outcome: &Outcome) -> Option<Place> {
        if at.hook == Hook::ToPod || outcome.way != Way::Stack || outcome.is_direct() {
            return None;
        }
        let reading = reading::read(frame).ok();
        let (pod, from) = match at.hook {
            // What cannot be read is judged at the pod.
            Hook::FromUplink => (reading.map_or(Some(at.pod), |r| self.model.pod_at(r.dst))?, UPLINK),
            _ => {
                let reading = reading.filter(|r| self.model.pods[at.pod].addresses.contains(&r.src))?;
                (self.model.pod_at(reading.dst)?, PODS[at.pod])
            }
        };
        Some(Place { hook: Hook::ToPod, pod, origin: outcome.origin, from: Some(from) })
    }

    /// None: not this test's matter.
    fn meet(&mut self, at: Place, frame: &[u8]) -> Option<Outcome> {
        // ARP has tests of its own; of IPv6 a test-run takes whole headers only.
        if frame[12..14] == [8, 6] || (frame[12..14] == [0x86, 0xdd] && frame.len() < 54) {
            return None;
        }
        let outcome = self.model.expect(at, frame)?;
        self.check(&at, frame, &outcome);
        let undecided =
            at.hook == Hook::FromUplink && outcome.counted.is_empty() && outcome.admitted.is_empty();
        if !undecided {
            let reading = reading::read(frame).ok();
            let both = reading.as_ref().is_some_and(|r| self.model.is_straight(at.pod, r));
            self.seen.count(&at, both, reading.as_ref(), &outcome, self.model.compiled);
            self.packets += 1;
        }
        Some(outcome)
    }

    fn follow(&mut self, at: &Place, frame: &[u8], outcome: &Outcome) {
        let Ok(reading) = reading::read(frame) else { return };
        for (at, frame, outcome) in follow::packets(&self.model, at, frame, &reading, outcome) {
            self.check(&at, &frame, &outcome);
            let straight = outcome.way == Way::Straight;
            self.seen.add(if straight { "known: straight" } else { "known: by the stack" });
        }
    }

    fn check(&mut self, at: &Place, frame: &[u8], outcome: &Outcome) {
        if let Err(why) = self.kernel.check(at, frame, outcome) {
            let (Self { seed, objects, .. }, Model { pods, untranslated, .. }) = (&self, &self.model);
            let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
            panic!(
                "expected {outcome:?}; {why}\nBULKHEAD_SEED={seed}, {at:?}, frame {hex}\nread as {:?}\n{pods:?}\n\
                 {untranslated:?}\n{objects:#?}",
                reading::read(frame)
            );
        }
    }
}
