//! From nothing, or from the pins of a daemon before us, to a [`Datapath`].

use super::{
    Datapath, DatapathError, MapTables, OBJECT,
    apply::After,
    connections::{load_forget, monotonic_coarse},
    direct::{Narrow, Ranges},
    generation::{self, Half, absent_is_fine},
    identities::{Exact, Identities, Prefixes},
    links::{self, Hook},
    pins::{self, Pins},
    read::Entries,
    services::{self, Services},
    sys,
    table::{HashMap, Table, typed},
    values::Raw,
    verified,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapInfo},
    programs::SchedClassifier,
};
use bulkhead_ebpf_abi::{
    ABI_VERSION, Addr, Affinity, AffinityKey, BEGUN_BEFORE, BackendAddr, BackendKey, Cell, Connections,
    Counter, Delivery, DropKey, Endpoint, Flow, FlowKey, FlowName, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, Identity, MemberKey, PORT_SLOTS, PROTO_TCP, PolicyDir, PortDirectory, PortPage, RecentKey,
    RecentPage, RuleCounter, Share, Sizes, TranslatedKey, TranslatedValue, called_at,
};
use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// Connections between this node's addresses and pods of other nodes: those that this node sent on, and those of the pods.
const BEGUN: u32 = 16_384;
const CALLED: u32 = 16_384;
/// Pods of one node, with room for those that come before others have gone.
const ENDPOINTS: u32 = 4096;
/// Ranges of pods, and those that the configuration names.
const DIRECT_PREFIXES: u32 = 16_384;
/// Routes with an MTU of their own, and those without one within them.
const NARROW_PREFIXES: u32 = 16_384;
/// More than kubelets are set to run. Of still more pods, once so many have all their rings full, new entries cannot be evicted
/// by the next of their pod: they age, within its share.
const PODS_WITH_RINGS: u32 = 512;
const RINGS: &str = "RECENT";
/// Datagrams in pieces at one time: the rings of some pods that flood, and what the others need.
const FRAGMENTS: u32 = 16_384;
/// All rings of some 170 pods.
const FRAGMENT_RINGS: u32 = 65_536;
/// Different (reason, rule, policy, direction).
const DROP_COUNTERS: u32 = 16_384;
/// Rules that have decided on something.
const RULE_COUNTERS: u32 = 65_536;

/// Services times ports times addresses.
const FRONTENDS: u32 = 65_536;
/// Of all services that differ in them, and of those that have just changed.
const BACKENDS: u32 = 262_144;
const NODE_ADDRESSES: u32 = 32_768;
/// Clients of services with affinity times services, and sockets that send datagrams to services.
const AFFINITIES: u32 = 32_768;
/// Sockets that have called services; of those called longest ago the application sees the backend's address.
const TRANSLATED: u32 = 65_536;
const CALLERS: &str = "SERVICE_CALLER";

pub struct Opened {
    pub datapath: Datapath,
    /// The maps of a daemon before us were there, complete and of this layout: what is in force still is.
    pub adopted: bool,
}

/// A map as it must be.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    key: usize,
    value: usize,
    entries: u32,
}

const fn shape<K, V>(name: &'static str, entries: u32) -> Shape {
    Shape { name, key: size_of::<K>(), value: size_of::<V>(), entries }
}

fn shapes(sizes: &Sizes, connections: &Connections) -> Vec<Shape> {
    // Identities are fewer than the addresses that have them.
    let addresses = sizes.identities.saturating_mul(2);
    let halves = |half: u32| half.saturating_mul(2);
    vec![
        shape::<u32, u32>("GENERATION", 1),
        shape::<u32, u32>("ABI", 1),
        shape::<Addr, Identity>("IDENTITY_EXACT", addresses),
        shape::<[u8; 20], Identity>("IDENTITY_PREFIX", addresses),
        shape::<u32, Endpoint>("ENDPOINT", ENDPOINTS),
        shape::<u32, u32>("ENDPOINT_EPOCH", 1),
        shape::<Addr, Delivery>("LOCAL", ENDPOINTS * 2),
        shape::<[u8; 20], u32>("DIRECT", DIRECT_PREFIXES),
        shape::<[u8; 20], u32>("NARROW", NARROW_PREFIXES),
        shape::<u32, u32>("NARROWEST", 1),
        shape::<u32, u32>("ORIGIN_TURN", sizes.identities),
        shape::<u32, u32>("CLASS", halves(sizes.identities)),
        shape::<u32, PolicyDir>("POLICY", halves(sizes.policies.saturating_mul(2))),
        shape::<u32, PortDirectory>("PORT_DIR", halves(sizes.port_tables.saturating_mul(PORT_SLOTS))),
        shape::<u32, PortPage>("PORT_PAGE", halves(sizes.port_pages)),
        shape::<u32, u32>("ROW", halves(sizes.rows)),
        shape::<u32, Cell>("CELL", halves(sizes.cells)),
        shape::<FlowKey, Flow>("CONNTRACK", connections.entries),
        // Names of entries that are gone lie in it, too, until their turn comes.
        shape::<(), FlowName>("AGING", connections.entries.saturating_mul(2)),
        shape::<RecentKey, RecentPage>(RINGS, connections.pages_per_pod().saturating_mul(PODS_WITH_RINGS)),
        shape::<u32, Share>("SHARE", ENDPOINTS),
        shape::<FragmentKey, FragmentPorts>("FRAGMENT", FRAGMENTS),
        shape::<RecentKey, FragmentKey>("FRAGMENT_RING", FRAGMENT_RINGS),
        shape::<DropKey, Counter>("DROPS", DROP_COUNTERS),
        shape::<u32, RuleCounter>("RULES", RULE_COUNTERS),
    ]
}

/// Maps that pins of an older daemon lack.
fn later_shapes() -> Vec<Shape> {
    vec![
        shape::<[u8; 20], u32>("RANGE_POLICY", DIRECT_PREFIXES),
        shape::<FlowKey, u32>("BEGUN", BEGUN),
        shape::<FlowKey, u32>("CALLED", CALLED),
        shape::<u64, u32>("POD_NETNS", ENDPOINTS),
        shape::<Addr, u32>("NODE_ADDRESS", NODE_ADDRESSES),
        shape::<FrontendKey, FrontendValue>("FRONTEND", FRONTENDS),
        shape::<BackendKey, BackendAddr>("BACKEND", BACKENDS),
        shape::<MemberKey, u32>("MEMBER", BACKENDS),
        shape::<AffinityKey, Affinity>("AFFINITY", AFFINITIES),
        shape::<TranslatedKey, TranslatedValue>("TRANSLATED", TRANSLATED),
        // At the sockets themselves.
        shape::<u32, u32>(CALLERS, 0),
    ]
}

impl Datapath {
    /// Whether a daemon before us has left maps there, of whatever layout.
    pub fn is_pinned(pin_dir: &Path) -> bool {
        // Not found for sure is none; what cannot be looked at may be there.
        Pins::new(pin_dir).map("ABI").try_exists().unwrap_or(true)
    }

    /// Loads the programs on the maps pinned under `pin_dir`, or on new ones, and points pinned links to them.
    ///
    /// # Errors
    /// [`DatapathError::Version`] and [`DatapathError::Incompatible`] where the pins are not to be adopted; they are left
    /// as they are, and what is attached runs on.
    pub fn open(pin_dir: &Path, sizes: Sizes, connections: Connections) -> Result<Opened, DatapathError> {
        let pins = Pins::new(pin_dir);
        pins.prepare()?;
        let shapes = shapes(&sizes, &connections);
        let adopted = adoptable(&pins, &shapes)?;
        if !adopted {
            pins.clear_maps()?;
        }
        let shapes = [shapes, later_shapes()].concat();
        let mut object = load(&pins, &sizes, &connections, &shapes)?;
        for hook in Hook::ALL {
            load_program(&mut object, &pins, hook)?;
        }
        load_forget(&mut object)?;
        services::load(&mut object)?;
        let mut abi: Array<MapData, u32> = take(&mut object, "ABI")?;
        let mut datapath = Self::with_maps(pins, object, sizes, connections, adopted)?;
        datapath.update_links()?;
        if adopted {
            move_calls(&mut datapath.object)?;
        }
        abi.set(0, ABI_VERSION, 0)
            .map_err(|source| DatapathError::Map { what: "writing the layout version".into(), source })?;
        Ok(Opened { datapath, adopted })
    }

    /// Whether [`Self::open`] would take over what is pinned under `pin_dir`, as far as the layout of the maps and this kernel's
    /// verifier go. Changes nothing: whoever has pinned it may be at work. Returns the generation in force; 0: none.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn check(pin_dir: &Path, sizes: Sizes, connections: Connections) -> Result<u32, DatapathError> {
        let pins = Pins::new(pin_dir);
        let mut shapes = shapes(&sizes, &connections);
        if !adoptable(&pins, &shapes)? {
            return Ok(0);
        }
        // What is not there would be made, and pinned.
        shapes.extend(later_shapes().into_iter().filter(|shape| pins.map(shape.name).exists()));
        let mut object = load(&pins, &sizes, &connections, &shapes)?;
        for hook in Hook::ALL {
            verify_program(&mut object, hook)?;
        }
        load_forget(&mut object)?;
        services::load(&mut object)?;
        generation::running(&take(&mut object, "GENERATION")?)
    }

    fn with_maps(
        pins: Pins,
        mut object: Ebpf,
        sizes: Sizes,
        connections: Connections,
        adopted: bool,
    ) -> Result<Self, DatapathError> {
        let o = &mut object;
        let tables = MapTables {
            classes: table(o, "CLASS", sizes.identities)?,
            policies: table(o, "POLICY", sizes.policies * 2)?,
            port_directories: table(o, "PORT_DIR", sizes.port_tables * PORT_SLOTS)?,
            port_pages: table(o, "PORT_PAGE", sizes.port_pages)?,
            rows: table(o, "ROW", sizes.rows)?,
            cells: table(o, "CELL", sizes.cells)?,
        };
        // New maps are zero, and nothing has been switched; of adopted ones both is to be found out.
        let fresh = || (!adopted).then(Half::default);
        let (conntrack, endpoints) = (take_map(o, "CONNTRACK")?, take_map(o, "ENDPOINT")?);
        let barrier = sys::Barrier::new().map_err(|source| DatapathError::Kernel {
            what: "a map to wait for packets by".into(),
            source,
        })?;
        let mut datapath = Self {
            pins,
            sizes,
            generation: take(o, "GENERATION")?,
            tables,
            exact: take(o, "IDENTITY_EXACT")?,
            prefixes: take(o, "IDENTITY_PREFIX")?,
            endpoints_fd: owned_fd(&endpoints)?,
            endpoints: typed("ENDPOINT", endpoints)?,
            endpoint_epoch: take(o, "ENDPOINT_EPOCH")?,
            origin_turns: take(o, "ORIGIN_TURN")?,
            local: take(o, "LOCAL")?,
            direct: Ranges::new(take(o, "DIRECT")?),
            range_policies: Ranges::new(take(o, "RANGE_POLICY")?),
            narrow: Narrow { routes: Ranges::new(take(o, "NARROW")?), narrowest: take(o, "NARROWEST")? },
            conntrack_fd: owned_fd(&conntrack)?,
            conntrack: typed("CONNTRACK", conntrack)?,
            recent: take(o, "RECENT")?,
            fragment_rings: take(o, "FRAGMENT_RING")?,
            shares: take(o, "SHARE")?,
            connections,
            drops: take(o, "DROPS")?,
            rules: take(o, "RULES")?,
            services: Services {
                pods: take(o, "POD_NETNS")?,
                nodes: take(o, "NODE_ADDRESS")?,
                frontends: take(o, "FRONTEND")?,
                backends: take(o, "BACKEND")?,
                members: take(o, "MEMBER")?,
                translated: owned_fd(&take_map(o, "TRANSLATED")?)?,
                known: None,
            },
            identities: Identities::default(),
            shadow: [fresh(), fresh()],
            barrier,
            pending: adopted.then(After::default),
            before: None,
            object,
        };
        datapath.identities = datapath.read_identities()?;
        Ok(datapath)
    }

    /// Removes links, programs and maps: the node's pods have no network, and no policy, after it.
    pub fn remove_pins(pin_dir: &Path) -> Result<(), DatapathError> {
        Pins::new(pin_dir).clear()
    }
}

/// Are there maps of a daemon before us? Those of a start that never finished do not count.
fn adoptable(pins: &Pins, shapes: &[Shape]) -> Result<bool, DatapathError> {
    match pinned_version(pins)? {
        Some(ABI_VERSION) => {}
        Some(found) if found != 0 => return Err(DatapathError::Version { found, needed: ABI_VERSION }),
        _ => return Ok(false),
    }
    let later = later_shapes().into_iter().filter(|shape| pins.map(shape.name).exists());
    for shape in shapes.iter().copied().chain(later) {
        let info = MapInfo::from_pin(pins.map(shape.name))
            .map_err(|source| DatapathError::Map { what: format!("pinned map {}", shape.name), source })?;
        let room = if shape.name == "CONNTRACK" { "room for (`conntrackEntries`)" } else { "room for" };
        // Fewer rings, of a daemon before us, do until the node starts anew: nothing is counted by them.
        let rings = shape.name == RINGS && info.max_entries() > 0;
        for (what, found, needed) in [
            ("key size", info.key_size(), shape.key as u32),
            ("value size", info.value_size(), shape.value as u32),
            (room, info.max_entries(), if rings { info.max_entries() } else { shape.entries }),
        ] {
            if found != needed {
                return Err(DatapathError::Incompatible { map: shape.name, what, found, needed });
            }
        }
    }
    Ok(true)
}

fn pinned_version(pins: &Pins) -> Result<Option<u32>, DatapathError> {
    let path = pins.map("ABI");
    if !path.exists() {
        return Ok(None);
    }
    let read = || {
        let map = Map::from_map_data(MapData::from_pin(&path)?)?;
        Array::<_, u32>::try_from(map)?.get(&0, 0)
    };
    read()
        .map(Some)
        .map_err(|source| DatapathError::Map { what: "reading the pinned layout version".into(), source })
}

fn load(
    pins: &Pins,
    sizes: &Sizes,
    connections: &Connections,
    shapes: &[Shape],
) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    // Nothing in the object depends on the layout of the kernel's own types.
    loader.btf(None);
    for shape in shapes {
        loader.map_max_entries(shape.name, shape.entries);
        loader.map_pin_path(shape.name, pins.map(shape.name));
    }
    // What called before there was such a mark is looked up, marked or not, until this daemon ends.
    let all_marked = u32::from(pins.map(CALLERS).exists() || !pins.map("TRANSLATED").exists());
    loader
        .override_global("ALL_CALLERS_MARKED", &all_marked, true)
        .override_global("HALF_IDENTITIES", &sizes.identities, true)
        .override_global("HALF_POLICIES", &sizes.policies, true)
        .override_global("HALF_PORT_TABLES", &sizes.port_tables, true)
        .override_global("HALF_PORT_PAGES", &sizes.port_pages, true)
        .override_global("HALF_ROWS", &sizes.rows, true)
        .override_global("HALF_CELLS", &sizes.cells, true)
        .override_global("FLOWS_PER_POD", &connections.per_pod, true)
        .override_global("FLOWS_UNANSWERED", &connections.unanswered, true)
        .override_global("FLOWS_CLOSED", &connections.closed, true);
    let (ages, least) = (&connections.ages, connections.ages.least());
    loader
        .override_global("AGE_UNANSWERED", &ages.unanswered, true)
        .override_global("AGE_TCP", &ages.tcp, true)
        .override_global("AGE_CLOSING", &ages.closing, true)
        .override_global("AGE_CLOSED", &ages.closed, true)
        .override_global("AGE_CUT", &ages.cut, true)
        .override_global("AGE_UDP", &ages.udp, true)
        .override_global("AGE_ECHO", &ages.echo, true)
        .override_global("AGE_OTHER", &ages.other, true)
        .override_global("AGE_LEAST", &least, true);
    Ok(loader.load(OBJECT)?)
}

fn verify_program(object: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, DatapathError> {
    let program = links::program(object, hook)?;
    verified::load(hook.name(), || program.load())?;
    Ok(program)
}

/// Calls that the programs noted before there was `CALLED`, as if they came just now. None of those programs runs any more, and
/// ours leave such notes as they are (but those of TCP).
fn move_calls(object: &mut Ebpf) -> Result<(), DatapathError> {
    let begun = take_map(object, "BEGUN")?;
    let begun_fd = owned_fd(&begun)?;
    let mut begun: HashMap<FlowKey, u32> = typed("BEGUN", begun)?;
    let mut called: HashMap<FlowKey, u32> = take(object, "CALLED")?;
    let failed = |source| DatapathError::Map { what: "moving notes of calls".into(), source };
    let at = called_at(monotonic_coarse()?);
    for note in Entries::of(begun_fd.as_fd(), "notes of calls", 1024) {
        let (flow, by): (FlowKey, u32) = note?;
        if by == BEGUN_BEFORE && flow.proto != PROTO_TCP {
            called.insert(Raw(flow), Raw(at), 0).map_err(failed)?;
            // Or it has made way meanwhile.
            absent_is_fine(begun.remove(&Raw(flow))).map_err(failed)?;
        }
    }
    Ok(())
}

/// Loads a program and puts its pin in the place of the one before.
fn load_program(object: &mut Ebpf, pins: &Pins, hook: Hook) -> Result<(), DatapathError> {
    let program = verify_program(object, hook)?;
    let path = pins.program(hook);
    let new = path.with_file_name(format!("{}-new", hook.name()));
    pins::unpin(&new)?;
    program.pin(&new).map_err(|e| pins::error("cannot pin", &new, std::io::Error::other(e)))?;
    fs::rename(&new, &path).map_err(|e| pins::error("cannot replace", &path, e))
}

fn take<M>(object: &mut Ebpf, name: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    typed(name, take_map(object, name)?)
}

/// A descriptor of our own: aya keeps that of a typed map to itself.
fn owned_fd(map: &Map) -> Result<OwnedFd, DatapathError> {
    match map {
        Map::HashMap(data) | Map::LruHashMap(data) => data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| DatapathError::Kernel { what: "another handle of a map".into(), source }),
        _ => Err(DatapathError::Other("a map that is read in batches is no hash".into())),
    }
}

fn table<T: super::values::Entry>(
    object: &mut Ebpf,
    name: &'static str,
    half: u32,
) -> Result<Table<T>, DatapathError> {
    Table::new(name, take_map(object, name)?, half)
}

fn take_map(object: &mut Ebpf, name: &'static str) -> Result<Map, DatapathError> {
    object.take_map(name).ok_or_else(|| DatapathError::Other(format!("the object has no map {name}")))
}

#[cfg(test)]
mod documented;

impl Datapath {
    /// Both identity maps as the kernel holds them.
    pub fn read_identities(&self) -> Result<Identities, DatapathError> {
        let failed = |source| DatapathError::Map { what: "reading identities".into(), source };
        let (mut prefixes, mut exact) = (Prefixes::new(), Exact::new());
        for entry in self.exact.iter() {
            let (Raw(addr), Raw(identity)) = entry.map_err(failed)?;
            exact.insert(addr, identity);
        }
        for entry in self.prefixes.iter() {
            let (key, Raw(identity)) = entry.map_err(failed)?;
            let length = u8::try_from(key.prefix_len()).unwrap_or(128);
            prefixes.insert((key.data().0, length), identity);
        }
        Ok(Identities::of(prefixes, exact))
    }
}
