//! What the kernel's maps of a node decide, look-up by look-up, and what a compile of the same objects from scratch does.

use crate::support::{endpoints, require};
use aya::{
    Pod as Plain,
    maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key},
};
use bulkhead_ebpf_abi::*;
use bulkhead_lab::{Context, Error, Lab, Node, Result, unmet};
use bulkhead_policy::{
    Compiled, Interner, Local, LocalPod, NodeInfo, Objects, compile,
    files::{is_object_file, parse, snapshot},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    sync::Arc,
};

/// An IPv4 or IPv6 address as the maps have it, and an identity with its flags.
type Address = [u8; 16];
type Who = [u32; 2];

pub struct Kernel {
    half: u32,
    class: Array<MapData, u32>,
    policy: Array<MapData, [u32; 4]>,
    port_dir: Array<MapData, [u32; 256]>,
    port_page: Array<MapData, [u16; 256]>,
    row: Array<MapData, u32>,
    cell: Array<MapData, [u32; 2]>,
    exact: HashMap<MapData, Address, Who>,
    prefix: LpmTrie<MapData, Address, Who>,
    endpoints: BTreeMap<u32, [u32; ENDPOINT_WORDS]>,
    local: BTreeMap<Address, [u32; DELIVERY_WORDS]>,
}

const ENDPOINT_WORDS: usize = size_of::<Endpoint>() / 4;
const DELIVERY_WORDS: usize = size_of::<Delivery>() / 4;
const SIZES: Sizes = Sizes::DEFAULT;

fn failed(map: &str) -> impl Fn(aya::maps::MapError) -> Error + '_ {
    move |e| Error::Unmet(format!("{map}: {e}"))
}

fn pinned(node: &Node, map: &str) -> Result<MapData> {
    MapData::from_pin(node.pins().join("maps").join(map)).map_err(failed(map))
}

fn array<V: Plain>(node: &Node, map: &str) -> Result<Array<MapData, V>> {
    Map::Array(pinned(node, map)?).try_into().map_err(failed(map))
}

pub fn hash<K: Plain, V: Plain>(node: &Node, map: &str) -> Result<HashMap<MapData, K, V>> {
    Map::HashMap(pinned(node, map)?).try_into().map_err(failed(map))
}

fn entries<K: Plain + Ord, V: Plain>(node: &Node, map: &str) -> Result<BTreeMap<K, V>> {
    hash::<K, V>(node, map)?.iter().collect::<std::result::Result<_, _>>().map_err(failed(map))
}

/// Verdict, Audit, Keep, last, open.
type Said = [bool; 5];

impl Kernel {
    pub fn of(node: &Node) -> Result<Self> {
        let generation: u32 = array(node, "GENERATION")?.get(&0, 0).map_err(failed("GENERATION"))?;
        Ok(Self {
            half: generation & 1,
            class: array(node, "CLASS")?,
            policy: array(node, "POLICY")?,
            port_dir: array(node, "PORT_DIR")?,
            port_page: array(node, "PORT_PAGE")?,
            row: array(node, "ROW")?,
            cell: array(node, "CELL")?,
            exact: hash(node, "IDENTITY_EXACT")?,
            prefix: Map::LpmTrie(pinned(node, "IDENTITY_PREFIX")?)
                .try_into()
                .map_err(failed("IDENTITY_PREFIX"))?,
            endpoints: entries(node, "ENDPOINT")?,
            local: entries(node, "LOCAL")?,
        })
    }

    fn identity(&self, address: IpAddr) -> u32 {
        let address = Addr::from_ip(address).0;
        let found = self.exact.get(&address, 0).or_else(|_| self.prefix.get(&Key::new(128, address), 0));
        found.map_or(ID_WORLD, |[id, _]| id)
    }

    fn addresses(&self) -> Result<BTreeSet<Address>> {
        self.exact.keys().collect::<std::result::Result<_, _>>().map_err(failed("IDENTITY_EXACT"))
    }

    fn prefixes(&self) -> Result<BTreeSet<(Address, u32)>> {
        let keys = self.prefix.keys().map(|key| key.map(|k| (k.data(), k.prefix_len())));
        keys.collect::<std::result::Result<_, _>>().map_err(failed("IDENTITY_PREFIX"))
    }

    /// And by which rule.
    fn decide(&self, policy: u32, dir: u32, peer: u32, proto: u8, port: u16) -> Option<(Said, u32)> {
        let at = |index: u32, entries: u32| (index < entries).then(|| self.half * entries + index);
        let policy = self.policy.get(&at(policy * 2 + dir, SIZES.policies * 2)?, 0).ok()?;
        let [table, row_base, row_count, flags] = policy;
        let class = self.class.get(&at(peer, SIZES.identities)?, 0).ok()?;
        let class = if class < row_count { class } else { 0 };
        let row = self.row.get(&at(row_base + class, SIZES.rows)?, 0).ok()?;
        let (slot, index) = port_slot(proto, port);
        let directory = at(table * PORT_SLOTS + slot, SIZES.port_tables * PORT_SLOTS)?;
        let page = self.port_dir.get(&directory, 0).ok()?[usize::from(index >> 8)];
        let page = self.port_page.get(&at(page, SIZES.port_pages)?, 0).ok()?;
        let port_class = u32::from(page[usize::from(index & 0xff)]);
        let [rule, rest] = self.cell.get(&at(row + port_class, SIZES.cells)?, 0).ok()?;
        let [verdict, bits, ..] = rest.to_le_bytes();
        let last = bits & CELL_FINAL != 0;
        let audit = flags & POLICY_AUDIT != 0 && !last;
        let open = flags & POLICY_OPEN != 0;
        Some(([verdict == VERDICT_ALLOW, audit, bits & CELL_KEEP != 0, last, open], rule))
    }
}

/// The objects as the files have them, and what a daemon's configuration and its kernel add.
fn objects(lab: &Lab, node: &Node) -> Result<Objects> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(lab.objects.dir())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_object_file(&name) {
            let text = fs::read_to_string(entry.path()).during(|| name.clone())?;
            let read = parse(&name, &text).map_err(|e| Error::Unmet(e.to_string()))?;
            files.insert(name, read);
        }
    }
    let (snapshot, errors) = snapshot(files.iter().map(|(name, read)| (name.as_str(), read.as_slice())));
    require(errors.is_empty(), &format!("{errors:?}"))?;
    let mut objects = snapshot.policy;
    objects.default_pod_cidrs = ["10.64.0.0/16", "fd00:64::/48"].map(|c| c.parse().expect("a range")).into();
    let mut own = objects.nodes.get(&node.name).map(|n| NodeInfo::clone(n)).unwrap_or_default();
    own.addresses.extend(["169.254.1.1", "fe80::1"].map(|a| a.parse::<IpAddr>().expect("an address")));
    objects.nodes.insert(node.name.clone(), Arc::new(own));
    Ok(objects)
}

/// Whoever rules and maps speak of, and somebody that they do not.
fn peers(kernel: &Kernel, compiled: &Compiled, pods: &[LocalPod]) -> Result<BTreeSet<IpAddr>> {
    let wanted = compiled.prefixes.keys().map(|(address, length)| (address.0, u32::from(*length)));
    let prefixes: BTreeSet<(Address, u32)> = wanted.chain(kernel.prefixes()?).collect();
    let ends = prefixes.iter().flat_map(|(address, length)| {
        let last = u128::MAX.checked_shr(*length).unwrap_or(0);
        let first = u128::from_be_bytes(*address);
        [first, first | last, first + u128::from(last > 2)].map(u128::to_be_bytes)
    });
    let exact = compiled.exact.keys().map(|a| a.0).chain(kernel.addresses()?);
    let strangers = ["198.51.100.9", "2001:db8::9"].map(|a| a.parse().expect("an address"));
    let known = ends.chain(exact).map(|a| Addr(a).to_ip());
    Ok(known.chain(pods.iter().flat_map(|p| p.addresses.clone())).chain(strangers).collect())
}

const SERVICES: [(u8, u16); 16] = [
    (PROTO_TCP, 0),
    (PROTO_TCP, 53),
    (PROTO_TCP, 80),
    (PROTO_TCP, 3306),
    (PROTO_TCP, 8000),
    (PROTO_TCP, 8080),
    (PROTO_TCP, 8088),
    (PROTO_TCP, 8090),
    (PROTO_TCP, 8091),
    (PROTO_TCP, 9100),
    (PROTO_TCP, 20880),
    (PROTO_UDP, 5140),
    (PROTO_UDP, 9125),
    (PROTO_ICMP, 8),
    (PROTO_ICMPV6, 128),
    (47, 0),
];

/// The kernel decides as a compile of the files from scratch; the numbers of rules are each other's.
pub fn is_as_from_scratch(lab: &Lab, n: usize) -> Result<()> {
    let node = &lab.nodes[n];
    let kernel = Kernel::of(node)?;
    let objects = objects(lab, node)?;
    let wired = endpoints(node)?;
    let pods: Vec<LocalPod> = wired
        .iter()
        .map(|e| LocalPod {
            namespace: e.pod.namespace.clone(),
            name: e.pod.name.clone(),
            partition: e.partition.clone(),
            addresses: e.addresses.clone(),
        })
        .collect();
    let local = Local { node: &node.name, pods: &pods, partitions: None, former: None };
    let scratch =
        compile(&objects, &mut Interner::default(), &local).map_err(|e| Error::Unmet(e.to_string()))?;
    let place = |pod: &LocalPod| scratch.place(&objects, pod).ok_or(Error::Unmet("no policy".into()));
    let identity = |address: IpAddr| match pods.iter().find(|p| p.addresses.contains(&address)) {
        Some(pod) => place(pod).map(|placement| scratch.pod_identity(&placement, address)),
        None => Ok(scratch.identity(address).id),
    };
    has_all(&kernel, &scratch, &pods)?;
    let (mut there, mut here) = (BTreeMap::new(), BTreeMap::new());
    let peers = peers(&kernel, &scratch, &pods)?;
    for pod in &pods {
        let policy = policy_of(&kernel, pod)?;
        let wanted_policy = place(pod)?.policy;
        for peer in &peers {
            let (found, wanted) = (kernel.identity(*peer), identity(*peer)?);
            for (dir, (proto, port)) in
                [DIR_EGRESS, DIR_INGRESS].iter().flat_map(|d| SERVICES.map(|s| (*d, s)))
            {
                let flow = format!("{} direction {dir}, {peer}, {proto}/{port}", pod.key());
                let Some((said, rule)) = kernel.decide(policy, dir, found, proto, port) else {
                    return unmet(format!("{flow}: the kernel says nothing"));
                };
                let d = scratch.evaluate(wanted_policy, dir, wanted, proto, port);
                let same = said == [d.allowed, d.audit, d.keep, d.last, d.open];
                let numbers = *there.entry(rule).or_insert(d.rule) == d.rule
                    && *here.entry(d.rule).or_insert(rule) == rule;
                require(
                    same && numbers,
                    &format!("{flow}: the kernel says {said:?} by {rule}, {d:?} is right"),
                )?;
            }
        }
    }
    Ok(())
}

/// The policy of a pod's hooks, which is that of the way to it.
fn policy_of(kernel: &Kernel, pod: &LocalPod) -> Result<u32> {
    let Some(address) = pod.addresses.first() else { return unmet("a pod without an address") };
    let Some([ifindex, even, odd, ..]) = kernel.local.get(&Addr::from_ip(*address).0) else {
        return unmet(format!("no way to {}", pod.key()));
    };
    // `Endpoint::policies`, behind two addresses.
    let at_hook = kernel.endpoints.get(ifindex).map(|words| [words[8], words[9]]);
    let way = [*even, *odd];
    require(at_hook == Some(way), &format!("{} has {at_hook:?}, the way to it {way:?}", pod.key()))?;
    Ok(way[kernel.half as usize])
}

/// There are ways to the pods and to nobody else. Of addresses the maps may know more than is wanted: a generation also
/// serves pods that still have the policy of the one before.
fn has_all(kernel: &Kernel, scratch: &Compiled, pods: &[LocalPod]) -> Result<()> {
    let of_pods: BTreeSet<Address> =
        pods.iter().flat_map(|p| &p.addresses).map(|a| Addr::from_ip(*a).0).collect();
    let ways: BTreeSet<Address> = kernel.local.keys().copied().collect();
    require(ways == of_pods, &format!("ways to {ways:?}, pods at {of_pods:?}"))?;
    require(kernel.endpoints.len() == pods.len(), "there are more endpoints than pods, or fewer")?;
    let (exact, prefixes) = (kernel.addresses()?, kernel.prefixes()?);
    let mut wanted = scratch.exact.keys().map(|a| a.0).chain(of_pods);
    let mut wanted_prefixes = scratch.prefixes.keys().map(|(a, length)| (a.0, u32::from(*length)));
    let all = wanted.all(|a| exact.contains(&a)) && wanted_prefixes.all(|p| prefixes.contains(&p));
    require(all, &format!("the maps lack some of whom rules tell apart: {exact:?}, {prefixes:?}"))
}
