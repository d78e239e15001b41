//! A node with two pods and an uplink, none of them real: packets are handed to the pinned programs one by one.

use crate::{
    packet::{HOST_MAC, Packet},
    rules::{Rules, SIZES},
    sandbox,
};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use bulkhead_daemon::datapath::{Datapath, Exact, Generation, Hook, PodMaps, Prefix, Prefixes};
use bulkhead_ebpf_abi::{
    AUDIT_POLICY, Addr, Connections, DropKey, ENDPOINT_PACED, Endpoint, Flow, FlowKey, IDENTITY_LOCAL_NODE,
    IDENTITY_LOCAL_POD, Identity, ORIGIN_SHIFT,
};
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

/// Identities and policies of the two pods.
pub const A: u32 = 20;
pub const B: u32 = 21;
pub const POLICY_A: u32 = 1;
pub const POLICY_B: u32 = 2;
pub const NODE: u32 = 16;
pub const WORLD: u32 = 1;
/// A network group outside.
pub const VM: u32 = 30;

pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 1, 0xa];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 1, 0xb];

/// The addresses of everybody in one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub a: &'static str,
    pub b: &'static str,
    pub node: &'static str,
    pub vm: &'static str,
    pub world: &'static str,
    pub echo: u8,
    pub echo_reply: u8,
    pub unreachable: u8,
}

pub const V4: Family = Family {
    a: "10.0.1.1",
    b: "10.0.2.1",
    node: "10.9.0.1",
    vm: "192.0.2.7",
    world: "203.0.113.9",
    echo: 8,
    echo_reply: 0,
    unreachable: 3,
};
pub const V6: Family = Family {
    a: "fd00:1::1",
    b: "fd00:2::1",
    node: "fd00:9::1",
    vm: "2001:db8:2::7",
    world: "2001:db8:ffff::9",
    echo: 128,
    echo_reply: 129,
    unreachable: 1,
};
pub const FAMILIES: [Family; 2] = [V4, V6];

/// How a packet ended: 0 and below the program's word, else what was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// On to the kernel.
    Next,
    Redirect,
    /// Reason, rule.
    Drop(u8, u32),
}

pub struct Outcome {
    pub end: End,
    /// Upper half of the mark.
    pub origin: u32,
    /// All of it.
    pub mark: u32,
    /// The rule of an audited refusal.
    pub audited: Option<u32>,
    /// Of what was counted.
    pub counted: Option<DropKey>,
    /// As the hook left it.
    pub frame: Vec<u8>,
}

/// Of a packet's context.
#[derive(Default)]
struct Fields {
    mark: u32,
    ingress: u32,
    gso_size: u32,
}

/// Each pod may have all of it.
pub const CONNECTIONS: Connections =
    Connections { per_pod: 1024, unanswered: 1024, closed: 1024, ..Connections::of(1024) };

pub struct Node {
    pub datapath: Datapath,
    pub pins: PathBuf,
    pub adopted: bool,
    pub prefixes: Prefixes,
    pub exact: Exact,
}

pub fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse::<IpAddr>().expect("an address"))
}

fn prefix(text: &str, length: u8) -> Prefix {
    (addr(text), if text.contains(':') { length } else { length + 96 })
}

pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("an interface")
}

impl Node {
    /// With these rules in force.
    pub fn new(rules: Rules) -> Self {
        let mut node = Self::empty();
        node.wire();
        node.apply(&rules);
        node
    }

    /// No pods, no generation.
    pub fn empty() -> Self {
        Self::open(sandbox::pin_dir())
    }

    pub fn open(pins: PathBuf) -> Self {
        Self::open_for(pins, CONNECTIONS)
    }

    /// With these rules in force, and this room for connections.
    pub fn with_room(rules: Rules, connections: Connections) -> Self {
        let mut node = Self::open_for(sandbox::pin_dir(), connections);
        node.wire();
        node.apply(&rules);
        node
    }

    pub fn open_for(pins: PathBuf, connections: Connections) -> Self {
        let opened = Datapath::open(&pins, SIZES, connections).unwrap_or_else(|e| panic!("{e}"));
        let vm = Identity { id: VM, flags: 0 };
        let node = Identity { id: NODE, flags: IDENTITY_LOCAL_NODE };
        Self {
            datapath: opened.datapath,
            adopted: opened.adopted,
            pins,
            prefixes: [(prefix("192.0.2.0", 24), vm), (prefix("2001:db8:2::", 48), vm)].into_iter().collect(),
            exact: [(addr(V4.node), node), (addr(V6.node), node), (addr("169.254.1.1"), node)]
                .into_iter()
                .collect(),
        }
    }

    pub fn wire(&mut self) {
        self.wire_as("pod-a", 0);
    }

    /// Pod a on this interface, with this `ifb`.
    pub fn wire_as(&mut self, interface_a: &str, ifb_a: u32) {
        for (name, mac, policy, identity, v4, v6) in
            [(interface_a, MAC_A, POLICY_A, A, V4.a, V6.a), ("pod-b", MAC_B, POLICY_B, B, V4.b, V6.b)]
        {
            let ifb_ifindex = if identity == A { ifb_a } else { 0 };
            let endpoint = Endpoint {
                ipv4: addr(v4),
                ipv6: addr(v6),
                policies: [policy; 2],
                identity_v4: identity,
                identity_v6: identity,
                ifb_ifindex,
                mac,
                // Through the stack: each hook is met by itself.
                flags: ENDPOINT_PACED,
                ..Endpoint::default()
            };
            self.datapath.set_endpoint(ifindex(name), &endpoint).expect("endpoint");
            for address in [v4, v6] {
                let identity = Identity { id: identity, flags: IDENTITY_LOCAL_POD };
                self.datapath.set_address(address.parse().expect("address"), identity).expect("address");
            }
        }
    }

    /// Pods that may reach each other straight, with this room for a packet, or not (`ENDPOINT_*` bits).
    pub fn rewire(&mut self, mtu: u16, flags: u16) {
        for name in ["pod-a", "pod-b"] {
            let index = ifindex(name);
            let pod = self.datapath.endpoints().expect("endpoints")[&index];
            let pod = Endpoint { mtu, flags, host_mac: HOST_MAC, ..pod };
            self.datapath.set_endpoint(index, &pod).expect("endpoint");
        }
    }

    pub fn apply(&mut self, rules: &Rules) -> u32 {
        let tables = rules.tables();
        let generation = Generation { tables: &tables, prefixes: &self.prefixes, exact: &self.exact };
        self.datapath.apply(&generation).unwrap_or_else(|e| panic!("{e}"))
    }

    /// From pod a or b, by its source MAC.
    pub fn send(&self, pod: u32, packet: &Packet) -> Outcome {
        let mac = if pod == A { MAC_A } else { MAC_B };
        self.send_raw(pod, &packet.clone().with_mac(mac).frame(), 0)
    }

    pub fn send_raw(&self, pod: u32, frame: &[u8], mark: u32) -> Outcome {
        self.run(Hook::FromPod, if pod == A { "pod-a" } else { "pod-b" }, frame, mark)
    }

    /// To pod a or b, by a packet that came into the host by `origin`.
    pub fn deliver(&self, pod: u32, packet: &Packet, origin: u32) -> Outcome {
        let name = if pod == A { "pod-a" } else { "pod-b" };
        self.run(Hook::ToPod, name, &packet.frame(), origin << ORIGIN_SHIFT)
    }

    /// To pod a or b, by a packet of this origin that came into the host at the interface of pod `at`.
    pub fn deliver_from(&self, at: u32, pod: u32, packet: &Packet, origin: u32) -> Outcome {
        self.deliver_by(if at == A { "pod-a" } else { "pod-b" }, pod, packet, origin)
    }

    /// The same, at any interface.
    pub fn deliver_by(&self, ingress: &str, pod: u32, packet: &Packet, origin: u32) -> Outcome {
        let fields = Fields { mark: origin << ORIGIN_SHIFT, ingress: ifindex(ingress), gso_size: 0 };
        self.run_as(Hook::ToPod, if pod == A { "pod-a" } else { "pod-b" }, &packet.frame(), fields)
    }

    pub fn uplink(&self, frame: &[u8], mark: u32) -> Outcome {
        self.run(Hook::FromUplink, "up0", frame, mark)
    }

    /// By the uplink, a packet of this origin that came into the host at an interface, or was made here.
    pub fn leave(&self, ingress: Option<&str>, packet: &Packet, origin: u32) -> Outcome {
        let fields =
            Fields { mark: origin << ORIGIN_SHIFT, ingress: ingress.map_or(0, ifindex), gso_size: 0 };
        self.run_as(Hook::ToUplink, "up0", &packet.frame(), fields)
    }

    /// From one pod of this node to the other: both hooks.
    pub fn pass(&self, from: u32, packet: &Packet) -> [End; 2] {
        let sent = self.send(from, packet);
        if sent.end != End::Next {
            return [sent.end, sent.end];
        }
        [sent.end, self.deliver(if from == A { B } else { A }, packet, sent.origin).end]
    }

    /// One packet for the stack, many on the wire.
    pub fn send_gso(&self, pod: u32, frame: &[u8], size: u32) -> Outcome {
        let fields = Fields { gso_size: size, ..Fields::default() };
        self.run_as(Hook::FromPod, if pod == A { "pod-a" } else { "pod-b" }, frame, fields)
    }

    pub fn run(&self, hook: Hook, interface: &str, frame: &[u8], mark: u32) -> Outcome {
        self.run_as(hook, interface, frame, Fields { mark, ..Fields::default() })
    }

    /// One of many that pass, at a hook of pod a or b; it entered the host at `ingress`.
    pub fn flood(&self, hook: Hook, pod: u32, ingress: &str, packet: &Packet) {
        let (mac, interface) = if pod == A { (MAC_A, "pod-a") } else { (MAC_B, "pod-b") };
        let origin = if ingress == "up0" { VM } else { B };
        let fields = Fields { mark: origin << ORIGIN_SHIFT, ingress: ifindex(ingress), gso_size: 0 };
        let frame = packet.clone().with_mac(mac).frame();
        assert_eq!(self.test_run(hook, interface, &frame, fields).0, -1);
    }

    /// What the program says, the mark, and the frame as it leaves it.
    fn test_run(&self, hook: Hook, interface: &str, frame: &[u8], fields: Fields) -> (i32, u32, Vec<u8>) {
        let path = self.pins.join("programs").join(hook.name());
        let program = SchedClassifier::from_pin(path).expect("a pinned program");
        // `struct __sk_buff` in words.
        let mut context = [0u32; 46];
        (context[2], context[9]) = (fields.mark, fields.ingress);
        (context[10], context[44]) = (ifindex(interface), fields.gso_size);
        let context: Vec<u8> = context.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut context_out = vec![0; 256];
        let mut data_out = vec![0; frame.len()];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                data_out: Some(&mut data_out),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|e| panic!("{hook:?}: {e}"));
        let mark = u32::from_ne_bytes([context_out[8], context_out[9], context_out[10], context_out[11]]);
        (result.return_value as i32, mark, data_out)
    }

    fn run_as(&self, hook: Hook, interface: &str, frame: &[u8], fields: Fields) -> Outcome {
        let before: BTreeMap<_, _> = self.datapath.drops().expect("drops").into_iter().collect();
        let (said, mark, data_out) = self.test_run(hook, interface, frame, fields);
        let mut new: Vec<DropKey> = self
            .datapath
            .drops()
            .expect("drops")
            .into_iter()
            .filter(|(key, counter)| before.get(key).is_none_or(|b| b.packets < counter.packets))
            .map(|(key, _)| key)
            .collect();
        let audited = new.iter().position(|key| key.reason == AUDIT_POLICY).map(|i| new.remove(i).rule);
        let end = match (said, new.as_slice()) {
            (-1, []) => End::Next,
            (7, []) => End::Redirect,
            (2, [key]) => End::Drop(key.reason, key.rule),
            (verdict, counted) => panic!("verdict {verdict}, counted {counted:?}"),
        };
        let counted = new.first().copied();
        Outcome { end, mark, origin: mark >> ORIGIN_SHIFT, audited, counted, frame: data_out }
    }

    /// The entry of a flow, whichever end is the lower.
    pub fn flow(&self, a: (&str, u16), b: (&str, u16), proto: u8) -> Option<Flow> {
        let ((low, low_port), (high, high_port)) = {
            let (a, b) = ((addr(a.0), a.1), (addr(b.0), b.1));
            if a <= b { (a, b) } else { (b, a) }
        };
        self.datapath
            .flow(&FlowKey { low, high, low_port, high_port, proto, reserved: [0; 3] })
            .expect("flow")
    }
}
