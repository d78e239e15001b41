//! Every map, and the sizes that the loader decides.
//!
//! Entries here are placeholders: the loader sets them from `Sizes` (twice a half for the tables of generations).

use crate::address::Address;
use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuHashMap, Queue},
};
use bulkhead_ebpf_abi::{
    Addr, Affinity, AffinityKey, Ages, BackendAddr, BackendKey, Cell, Connections, Counter, Delivery,
    DropKey, Endpoint, Flow, FlowKey, FlowName, FragmentKey, FragmentPorts, FrontendKey, FrontendValue,
    Identity, MemberKey, PolicyDir, PortDirectory, PortPage, RecentKey, RecentPage, RuleCounter, Share,
    Sizes, TranslatedKey, TranslatedValue,
};

/// The live generation; read once a packet.
#[map]
pub static GENERATION: Array<u32> = Array::with_max_entries(1, 0);
/// Layout version; written by the loader when all else stands.
#[map]
pub static ABI: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub static IDENTITY_EXACT: HashMap<Addr, Identity> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static IDENTITY_PREFIX: LpmTrie<Address, Identity> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINT: HashMap<u32, Endpoint> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Another number with every change of `ENDPOINT`, behind it.
#[map]
pub static ENDPOINT_EPOCH: Array<u32> = Array::with_max_entries(1, 0);
/// The pods of this node by address.
#[map]
pub static LOCAL: HashMap<Addr, Delivery> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Whom connections reach without the host's stack; see `forward`.
#[map]
pub static DIRECT: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Whose policy is asked about what this node sends on in its own name; see `departure`. The longest prefix counts.
#[map]
pub static RANGE_POLICY: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
/// Flows between this node and pods elsewhere that somebody began whom this node sent on; see `departure`.
#[map]
pub static BEGUN: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(1, 0);
/// Those that the pods began: apart, so that none of these takes the place of one of the others.
#[map]
pub static CALLED: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(1, 0);
/// The MTU of IPv4 routes that the route look-up does not tell, in bytes; 0: it does. The longest prefix counts.
#[map]
pub static NARROW: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
/// The least of them; 0: there is none.
#[map]
pub static NARROWEST: Array<u32> = Array::with_max_entries(1, 0);

/// Of each identity: how often its number has been given out.
#[map]
pub static ORIGIN_TURN: Array<u32> = Array::with_max_entries(1, 0);
#[map]
pub static CLASS: Array<u32> = Array::with_max_entries(1, 0);
#[map]
pub static POLICY: Array<PolicyDir> = Array::with_max_entries(1, 0);
#[map]
pub static PORT_DIR: Array<PortDirectory> = Array::with_max_entries(1, 0);
#[map]
pub static PORT_PAGE: Array<PortPage> = Array::with_max_entries(1, 0);
#[map]
pub static ROW: Array<u32> = Array::with_max_entries(1, 0);
#[map]
pub static CELL: Array<Cell> = Array::with_max_entries(1, 0);

#[map]
pub static CONNTRACK: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);
/// Every entry of `CONNTRACK`, in the order in which their ages are looked at.
#[map]
pub static AGING: Queue<FlowName> = Queue::with_max_entries(1, 0);
#[map]
pub static RECENT: HashMap<RecentKey, RecentPage> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static SHARE: HashMap<u32, Share> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static FRAGMENT: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static FRAGMENT_RING: HashMap<RecentKey, FragmentKey> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static DROPS: PerCpuHashMap<DropKey, Counter> = PerCpuHashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static RULES: PerCpuHashMap<u32, RuleCounter> = PerCpuHashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Pods of this node by the cookie of their network namespace.
#[map]
pub static POD_NETNS: HashMap<u64, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
/// All nodes' addresses: node ports are answered there.
#[map]
pub static NODE_ADDRESS: HashMap<Addr, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
// Without preallocation: an entry that was replaced is not used again while somebody may read it.
#[map]
pub static FRONTEND: HashMap<FrontendKey, FrontendValue> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static BACKEND: HashMap<BackendKey, BackendAddr> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static MEMBER: HashMap<MemberKey, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static TRANSLATED: LruHashMap<TranslatedKey, TranslatedValue> = LruHashMap::with_max_entries(1, 0);
/// A word at each socket that has called a service. (Key and value are known to the kernel by type.)
#[btf_map]
pub static SERVICE_CALLER: SkStorage<u32> = SkStorage::new();
/// 0: sockets that called before there was `SERVICE_CALLER` may be without.
#[unsafe(no_mangle)]
pub static ALL_CALLERS_MARKED: Global<u32> = Global::new(1);

/// Entries of one half. Constants to the verifier: the loader writes them before the programs are checked.
#[unsafe(no_mangle)]
pub static HALF_IDENTITIES: Global<u32> = Global::new(Sizes::DEFAULT.identities);
#[unsafe(no_mangle)]
pub static HALF_POLICIES: Global<u32> = Global::new(Sizes::DEFAULT.policies);
#[unsafe(no_mangle)]
pub static HALF_PORT_TABLES: Global<u32> = Global::new(Sizes::DEFAULT.port_tables);
#[unsafe(no_mangle)]
pub static HALF_PORT_PAGES: Global<u32> = Global::new(Sizes::DEFAULT.port_pages);
#[unsafe(no_mangle)]
pub static HALF_ROWS: Global<u32> = Global::new(Sizes::DEFAULT.rows);
#[unsafe(no_mangle)]
pub static HALF_CELLS: Global<u32> = Global::new(Sizes::DEFAULT.cells);

/// Of one pod; see `Connections`.
#[unsafe(no_mangle)]
pub static FLOWS_PER_POD: Global<u32> = Global::new(Connections::of(0).per_pod);
#[unsafe(no_mangle)]
pub static FLOWS_UNANSWERED: Global<u32> = Global::new(Connections::of(0).unanswered);
#[unsafe(no_mangle)]
pub static FLOWS_CLOSED: Global<u32> = Global::new(Connections::of(0).closed);

/// Nanoseconds; see `Ages`.
#[unsafe(no_mangle)]
pub static AGE_UNANSWERED: Global<u64> = Global::new(Ages::DEFAULT.unanswered);
#[unsafe(no_mangle)]
pub static AGE_TCP: Global<u64> = Global::new(Ages::DEFAULT.tcp);
#[unsafe(no_mangle)]
pub static AGE_CLOSING: Global<u64> = Global::new(Ages::DEFAULT.closing);
#[unsafe(no_mangle)]
pub static AGE_CLOSED: Global<u64> = Global::new(Ages::DEFAULT.closed);
#[unsafe(no_mangle)]
pub static AGE_CUT: Global<u64> = Global::new(Ages::DEFAULT.cut);
#[unsafe(no_mangle)]
pub static AGE_UDP: Global<u64> = Global::new(Ages::DEFAULT.udp);
#[unsafe(no_mangle)]
pub static AGE_ECHO: Global<u64> = Global::new(Ages::DEFAULT.echo);
#[unsafe(no_mangle)]
pub static AGE_OTHER: Global<u64> = Global::new(Ages::DEFAULT.other);
/// The least of them.
#[unsafe(no_mangle)]
pub static AGE_LEAST: Global<u64> = Global::new(Ages::DEFAULT.unanswered);
