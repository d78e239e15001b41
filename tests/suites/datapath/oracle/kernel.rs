//! The programs of one node, run packet by packet.

use super::{
    model::Pod,
    outcome::{Admitted, Outcome, PODS, Place, UPLINK, Way},
    roads::Ranges,
};
use crate::{node::ifindex, packet::HOST_MAC, sandbox};
use aya::{
    maps::{Map, MapData, PerCpuHashMap},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use bulkhead_daemon::datapath::{Datapath, Generation, Hook, PodMaps};
use bulkhead_ebpf_abi::{
    Connections, DropKey, ENDPOINT_PACED, Endpoint, FLOW_UNASKED, IDENTITY_LOCAL_POD, Identity, ORIGIN_SHIFT,
    Sizes,
};
use bulkhead_policy::Compiled;
use std::{collections::BTreeMap, net::IpAddr};

const SIZES: Sizes =
    Sizes { identities: 8192, policies: 64, port_tables: 64, port_pages: 1024, rows: 8192, cells: 32_768 };

/// Room for all that a cluster's packets begin: nothing is refused or evicted here.
const CONNECTIONS: Connections =
    Connections { per_pod: 16_384, unanswered: 16_384, closed: 16_384, ..Connections::of(16_384) };

type Drops = PerCpuHashMap<MapData, [u8; 12], [u64; 3]>;

pub struct Kernel {
    pub datapath: Datapath,
    /// By [`Hook`].
    programs: [SchedClassifier; 4],
    drops: Drops,
    /// What must have been counted: packets and bytes.
    pub counted: BTreeMap<DropKey, (u64, u64)>,
    generation: u32,
}

impl Kernel {
    pub fn open() -> Self {
        let pins = sandbox::pin_dir();
        let datapath = Datapath::open(&pins, SIZES, CONNECTIONS).unwrap_or_else(|e| panic!("{e}")).datapath;
        let program = |hook: Hook| {
            SchedClassifier::from_pin(pins.join("programs").join(hook.name())).expect("a pinned program")
        };
        let map = MapData::from_pin(pins.join("maps/DROPS")).expect("a pinned map");
        Self {
            programs: Hook::ALL.map(program),
            drops: Map::from_map_data(map).and_then(Drops::try_from).expect("a map of counters"),
            datapath,
            counted: BTreeMap::new(),
            generation: 0,
        }
    }

    pub fn put_in_force(&mut self, compiled: &Compiled, pods: &[Pod; 2], untranslated: &Ranges) {
        for (pod, name) in pods.iter().zip(PODS) {
            let endpoint = Endpoint {
                ipv4: pod.addresses[0],
                ipv6: pod.addresses[1],
                policies: [pod.policy; 2],
                identity_v4: pod.identities[0],
                identity_v6: pod.identities[1],
                ifb_ifindex: 0,
                mac: pod.mac,
                host_mac: HOST_MAC,
                mtu: pod.mtu,
                flags: if pod.paced { ENDPOINT_PACED } else { 0 },
            };
            self.datapath.set_endpoint(ifindex(name), &endpoint).expect("endpoint");
            for (address, id) in pod.addresses.iter().zip(pod.identities) {
                let identity = Identity { id, flags: IDENTITY_LOCAL_POD };
                self.datapath.set_address(address.to_ip(), identity).expect("address");
            }
        }
        let Ranges { direct, translated } = untranslated;
        self.datapath.set_direct(direct.iter(), translated.iter()).expect("ranges");
        let Compiled { tables, prefixes, exact, .. } = compiled;
        self.generation =
            self.datapath.apply(&Generation { tables, prefixes, exact }).unwrap_or_else(|e| panic!("{e}"));
        self.datapath.settle().expect("settled");
    }

    /// Forgets the pods and all flows; says how many there were.
    pub fn clear(&mut self, pods: &[Pod; 2]) -> usize {
        for address in pods.iter().flat_map(|pod| pod.addresses) {
            self.datapath.remove_address(address.to_ip()).expect("removed");
        }
        let addresses: Vec<IpAddr> =
            self.datapath.flows().map(|flow| flow.expect("a flow").0.low.to_ip()).collect();
        let forgotten = self.datapath.forget_flows(&addresses).expect("forgotten");
        for name in PODS {
            self.datapath.remove_endpoint(ifindex(name)).expect("removed");
        }
        forgotten
    }

    /// What the program says, and the origin that the packet has then.
    fn run(&self, at: &Place, frame: &[u8]) -> (i32, u32) {
        let interface = if at.hook == Hook::FromUplink { UPLINK } else { PODS[at.pod] };
        let mut context = [0u8; 184];
        context[8..12].copy_from_slice(&(at.origin << ORIGIN_SHIFT).to_ne_bytes());
        if let Some(from) = at.from {
            context[36..40].copy_from_slice(&ifindex(from).to_ne_bytes());
        }
        context[40..44].copy_from_slice(&ifindex(interface).to_ne_bytes());
        let mut out = [0u8; 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let said = self.programs[at.hook as usize].test_run(options).expect("a test-run").return_value;
        let mark = u32::from_ne_bytes([out[8], out[9], out[10], out[11]]);
        (said as i32, mark >> ORIGIN_SHIFT)
    }

    /// Runs the packet; `Err` says where the kernel is of another opinion.
    pub fn check(&mut self, at: &Place, frame: &[u8], expected: &Outcome) -> Result<(), String> {
        let (said, origin) = self.run(at, frame);
        let way = match said {
            -1 => Way::Stack,
            7 => Way::Straight,
            _ => Way::Dropped,
        };
        if way != expected.way {
            return Err(format!("verdict {said}, {}", self.news()));
        }
        if way == Way::Stack && origin != expected.origin {
            return Err(format!("it goes on with origin {origin}"));
        }
        for key in &expected.counted {
            let sum = self.counted.entry(*key).or_default();
            *sum = (sum.0 + 1, sum.1 + frame.len() as u64);
            let (sum, read) = (*sum, self.read(key));
            if read != sum {
                return Err(format!("{key:?} was not counted as {sum:?}, but {read:?}: {}", self.news()));
            }
        }
        expected.admitted.iter().try_for_each(|admitted| self.check_flow(admitted))
    }

    fn check_flow(&self, want: &Admitted) -> Result<(), String> {
        let flow = self.datapath.flow(&want.key).expect("a look-up").ok_or("no entry for the flow")?;
        let (by, rule) = (flow.generations[want.dir as usize], flow.rules[want.dir as usize]);
        let generation = if want.flags & FLOW_UNASKED == 0 { self.generation } else { 0 };
        let same = (by, rule) == (generation, want.rule)
            && (flow.origin, flow.service_port, flow.path) == (want.origin, want.service_port, want.path)
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
