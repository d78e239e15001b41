//! A node with a pod under a policy, and packets of it: what the hooks are measured on.

use super::asm::{Layout, V4, V6};
use crate::{Result, enter::BPFFS, link::ip, unmet};
use aya::{
    maps::MapData,
    programs::{ProgramFd, SchedClassifier},
};
use bulkhead_daemon::datapath::{Datapath, Exact, Generation, Hook, PodMaps, Prefixes};
use bulkhead_ebpf_abi::{
    Addr, Cell, Connections, Endpoint, IDENTITY_LOCAL_NODE, IDENTITY_LOCAL_POD, Identity, PORT_SLOTS,
    PolicyDir, PortDirectory, PortPage, RULE_FIRST_DYNAMIC, Sizes, VERDICT_ALLOW,
};
use bulkhead_policy::Tables;
use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

/// As many pods as a node usually has at most.
const PODS: u32 = 110;
/// The pods' own, and what the others' ranges are judged by.
pub const POLICY: u32 = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 1, 0xa];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The pod's own identity, the node's, and the first of others.
pub const OWN: u32 = 16;
const NODE: u32 = 17;
pub const OTHERS: u32 = 32;

/// Both families of 30,000 pods.
const SIZES: Sizes = Sizes { identities: 32_768, cells: 524_288, ..Sizes::DEFAULT };
/// Room for all in one pod's share.
const CONNECTIONS: Connections =
    Connections { per_pod: 262_144, unanswered: 262_144, ..Connections::of(262_144) };

/// The first address of the others, its last four bytes.
pub const FIRST_V4: u32 = 0xac10_0000;
pub const FIRST_V6: u32 = 0;

/// Who is told apart by the rules, and on how many ports.
#[derive(Clone, Copy)]
pub struct Rules {
    pub addresses: u32,
    /// Of the addresses, each as often as any other.
    pub identities: u32,
    /// What the rules tell apart: identities of one kind share a row.
    pub kinds: u32,
    /// Ports of TCP and SCTP from 1024 on, and ICMP types from 64 on, each with a rule of its own.
    pub ports: u32,
}

impl Rules {
    /// One for each kind and port, and for what is of none.
    pub fn cells(&self) -> u32 {
        (self.kinds + 1) * (self.ports + 1)
    }
}

pub struct World {
    pub datapath: Datapath,
    pins: PathBuf,
    pub ifindex: u32,
    pub generation: MapData,
    pub connections: MapData,
    pub addresses: MapData,
    pub cells: MapData,
    /// Of what leaves in the node's name.
    pub begun: MapData,
}

/// What the library of another crate says went wrong.
pub fn told<T>(result: Result<T, impl Display>) -> Result<T> {
    result.or_else(|e| unmet(e.to_string()))
}

impl World {
    /// `pod`: the interface of the pod that is measured.
    pub fn new(pod: &str) -> Result<Self> {
        ip(None, &format!("link add {pod} type veth peer name {pod}-peer"))?;
        let ifindex = nix::net::if_::if_nametoindex(pod)?;
        let pins = PathBuf::from(BPFFS).join(pod);
        let mut datapath = told(Datapath::open(&pins, SIZES, CONNECTIONS))?.datapath;
        for n in 0..PODS {
            let endpoint = Endpoint {
                ipv4: own(&V4, n),
                ipv6: own(&V6, n),
                policies: [POLICY; 2],
                identity_v4: OWN,
                identity_v6: OWN,
                ifb_ifindex: 0,
                mac: MAC,
                host_mac: HOST_MAC,
                mtu: 1500,
                flags: 0,
            };
            // Indices grow with every interface that a node ever had.
            told(datapath.set_endpoint(ifindex + 17 * n, &endpoint))?;
            for address in [endpoint.ipv4, endpoint.ipv6] {
                let identity = Identity { id: OWN, flags: IDENTITY_LOCAL_POD };
                told(datapath.set_address(address.to_ip(), identity))?;
            }
        }
        let map = |name| told(MapData::from_pin(pins.join("maps").join(name)));
        let (generation, connections) = (map("GENERATION")?, map("CONNTRACK")?);
        let (addresses, cells, begun) = (map("IDENTITY_EXACT")?, map("CELL")?, map("BEGUN")?);
        Ok(Self { datapath, pins, ifindex, generation, connections, addresses, cells, begun })
    }

    pub fn apply(&mut self, rules: &Rules) -> Result<()> {
        let others = (0..rules.addresses)
            .flat_map(|n| [&V4, &V6].map(|layout| (n, other(layout, n))))
            .map(|(n, address)| (address, Identity { id: OTHERS + n % rules.identities, flags: 0 }));
        let node = [&V4, &V6].map(|layout| (node(layout), Identity { id: NODE, flags: IDENTITY_LOCAL_NODE }));
        let exact: Exact = others.chain(node).collect();
        let tables = tables(rules);
        let prefixes = Prefixes::new();
        told(self.datapath.apply(&Generation { tables: &tables, prefixes: &prefixes, exact: &exact }))?;
        told(self.datapath.settle())
    }

    /// All connections of the pod.
    pub fn forget(&mut self) -> Result<()> {
        told(self.datapath.forget_flows(&[own(&V4, 0).to_ip(), own(&V6, 0).to_ip()])).map(drop)
    }

    pub fn hook(&self, hook: Hook) -> Result<ProgramFd> {
        let program = told(SchedClassifier::from_pin(self.pins.join("programs").join(hook.name())))?;
        told(told(program.fd())?.try_clone())
    }
}

fn own(layout: &Layout, n: u32) -> Addr {
    Addr::from_ip(if layout.ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n as u16 + 1).into()
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0101 + n))
    })
}

/// Lower than the others', as the pods' are.
pub fn node(layout: &Layout) -> Addr {
    own(layout, PODS)
}

fn other(layout: &Layout, n: u32) -> Addr {
    Addr::from_ip(if layout.ipv6 {
        Ipv6Addr::from_bits((0x2001_0db8_0002u128 << 80) + u128::from(FIRST_V6 + n)).into()
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(FIRST_V4 + n))
    })
}

/// All is allowed, each kind and port by a rule of its own.
fn tables(rules: &Rules) -> Tables {
    let columns = rules.ports + 1;
    let classes = rules.identities + 1;
    let policy = PolicyDir { port_table: 0, row_base: 0, row_count: classes, flags: 0 };
    let cell = |n| Cell { rule: RULE_FIRST_DYNAMIC + n, verdict: VERDICT_ALLOW, flags: 0, reserved: 0 };
    let (port_directories, port_pages) = ports(rules.ports);
    Tables {
        classes: Arc::new((0..OTHERS).map(|_| 0).chain(1..classes).collect()),
        policies: Arc::new(vec![[policy; 2]; POLICY as usize + 1]),
        port_directories: port_directories.into(),
        port_pages: port_pages.into(),
        rows: (0..classes).map(|class| class % (rules.kinds + 1) * columns).collect(),
        cells: (0..rules.cells()).map(cell).collect(),
    }
}

/// Where the columns of so many ports are found.
fn ports(count: u32) -> (Vec<PortDirectory>, Vec<PortPage>) {
    let mut directories = vec![[0; 256]; PORT_SLOTS as usize];
    let mut pages = vec![[0; 256]];
    for n in 0..count {
        for (slot, port) in [(0, 1024 + n), (2, 1024 + n), (3, 64 + n), (4, 64 + n)] {
            if slot > 2 && port > 255 {
                continue;
            }
            let page = &mut directories[slot][(port >> 8) as usize];
            if *page == 0 {
                *page = pages.len() as u32;
                pages.push([0; 256]);
            }
            pages[*page as usize][(port & 0xff) as usize] = n as u16 + 1;
        }
    }
    (directories, pages)
}

/// The packet that a driver makes its own of: of this protocol, from the pod (`sends`) or to it.
pub fn frame(layout: &Layout, sends: bool, proto: u8, transport: &[u8]) -> Vec<u8> {
    let (src_mac, dst_mac) = if sends { (MAC, HOST_MAC) } else { (HOST_MAC, MAC) };
    let (src, dst) =
        if sends { (own(layout, 0), other(layout, 0)) } else { (other(layout, 0), own(layout, 0)) };
    let mut raw = [dst_mac, src_mac].concat();
    let size = layout.len as u16 - 14;
    if layout.ipv6 {
        raw.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        raw.extend((size - 40).to_be_bytes());
        raw.extend([proto, 64]);
        raw.extend(src.0);
        raw.extend(dst.0);
    } else {
        raw.extend([8, 0, 0x45, 0]);
        raw.extend(size.to_be_bytes());
        raw.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
        raw.extend(&src.0[12..]);
        raw.extend(&dst.0[12..]);
    }
    raw.extend(transport);
    raw.resize(layout.len as usize, 0);
    raw
}

/// Of a packet between the pod's port 80 and the others' 1024 (which a driver varies); to SCTP its first bytes are as good.
pub fn tcp(sends: bool, flags: u8) -> Vec<u8> {
    let ports = if sends { [80u16, 1024] } else { [1024, 80] };
    let mut header: Vec<u8> = ports.iter().flat_map(|p| p.to_be_bytes()).collect();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 1, 0, 0, 0, 0, 0]);
    header
}
