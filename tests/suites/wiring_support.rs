//! What the wiring suite stands on: a private node, pods, a fake eBPF side, and failures on demand.

use bulkhead_api::messages::{Attach, Attachment, AttachmentId, Detach, ErrorReply, PodRef};
use bulkhead_daemon::{
    datapath::{DatapathError, PodMaps},
    endpoint::{Endpoints, NodeNet, PodContext, Reconciled},
    ipam::ClaimFiles,
    net::{
        HostSide, HostState, Kernel, Limits, Link, Links, Nat, NetError, OwnRoute, Pair, PairIndex, PodSide,
        PodState, Routes, Shaper, Sources, Translation, nat, node,
    },
};
use bulkhead_ebpf_abi::{Addr, Delivery, Endpoint, Identity};
use bulkhead_lab::wait::until_true;
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// The node: an uplink `up0` with addresses of both families and default routes over it.
pub fn prepare_namespace() {
    // As distributions have it; the host sides must not inherit it.
    std::fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", "1").expect("rp_filter");
    run("ip link add up0 mtu 1400 type veth peer name router0");
    run("ip link set router0 up");
    run("ip link set up0 up");
    run("ip addr add 192.0.2.1/24 dev up0");
    run("ip addr add 2001:db8::1/64 dev up0 nodad");
    run("ip route add default via 192.0.2.254 dev up0");
    run("ip route add default via 2001:db8::fe dev up0");
}

/// Runs a command line (no quoting) and returns what it prints; panics when it fails.
pub fn run(line: &str) -> String {
    let (ok, text) = attempt(line);
    assert!(ok, "{line}: {text}");
    text
}

pub fn attempt(line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command");
    let output = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

pub fn json(line: &str) -> serde_json::Value {
    let text = run(line);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
}

/// Waits for a condition, up to five seconds.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    until_true(what, Duration::from_secs(5), || Ok(condition())).unwrap_or_else(|e| panic!("{e}"));
}

/// A network namespace; gone with the value.
pub struct Pod {
    pub name: String,
}

impl Pod {
    pub fn new(name: &str) -> Self {
        run(&format!("ip netns add {name}"));
        Self { name: name.into() }
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn run(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.name))
    }

    pub fn pings(&self, address: IpAddr) -> bool {
        attempt(&format!("ip netns exec {} ping -n -c 1 -W 1 {address}", self.name)).0
    }

    pub fn id(&self) -> AttachmentId {
        AttachmentId { container_id: self.name.clone(), ifname: "eth0".into() }
    }

    pub fn attach(&self) -> Attach {
        Attach {
            id: self.id(),
            netns: self.path(),
            pod: PodRef { namespace: "web".into(), name: self.name.clone(), uid: None },
            bandwidth: None,
            port_mappings: Vec::new(),
        }
    }

    pub fn detach(&self) -> Detach {
        Detach { id: self.id(), netns: Some(self.path()) }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        attempt(&format!("ip netns del {}", self.name));
    }
}

pub fn context() -> PodContext {
    PodContext {
        partition: "web".into(),
        ranges: vec!["10.65.0.0/24".parse().unwrap(), "fd00:65::/120".parse().unwrap()],
        fixed_ranges: Vec::new(),
        fixed: Vec::new(),
        policy: 3,
        limits: Limits::default(),
        bandwidth_class: None,
    }
}

/// Fails the n-th step that can fail, after it was really done: the worst moment.
#[derive(Clone, Default)]
pub struct Trap {
    /// Steps until the failure; 0: none.
    countdown: Arc<AtomicUsize>,
}

impl Trap {
    pub fn set(&self, step: usize) {
        self.countdown.store(step, Ordering::SeqCst);
    }

    /// Whether it went off since `set`.
    pub fn went_off(&self) -> bool {
        self.countdown.load(Ordering::SeqCst) == 0
    }

    fn springs(&self) -> bool {
        let step = |n: usize| n.checked_sub(1);
        self.countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step) == Ok(1)
    }
}

/// The kernel, with a trap.
pub struct Trapped {
    pub kernel: Kernel,
    pub trap: Trap,
}

impl Trapped {
    fn pass<T>(&self, result: Result<T, NetError>) -> Result<T, NetError> {
        let value = result?;
        if self.trap.springs() {
            return Err(NetError::Kernel { what: "trap", source: io::Error::other("injected") });
        }
        Ok(value)
    }
}

impl Links for Trapped {
    async fn create_pair(&self, pair: &Pair) -> Result<PairIndex, NetError> {
        self.pass(self.kernel.create_pair(pair).await)
    }
    async fn configure_pod(&self, ifindex: u32, pod: &PodSide) -> Result<(), NetError> {
        self.pass(self.kernel.configure_pod(ifindex, pod).await)
    }
    async fn delete(&self, name: &str) -> Result<(), NetError> {
        self.kernel.delete(name).await
    }
    async fn find(&self, name: &str) -> Result<Option<Link>, NetError> {
        self.kernel.find(name).await
    }
    async fn list(&self) -> Result<Vec<Link>, NetError> {
        self.kernel.list().await
    }
    async fn inspect_pod(&self, netns: &Path, ifname: &str) -> Result<Option<PodState>, NetError> {
        self.kernel.inspect_pod(netns, ifname).await
    }
    async fn netns_cookie(&self, netns: &Path) -> Result<u64, NetError> {
        self.kernel.netns_cookie(netns).await
    }
}

impl Routes for Trapped {
    async fn open(&self, ifindex: u32, host: &HostSide) -> Result<(), NetError> {
        self.pass(self.kernel.open(ifindex, host).await)
    }
    async fn inspect_host(&self, ifindex: u32) -> Result<HostState, NetError> {
        self.kernel.inspect_host(ifindex).await
    }
    async fn list_routes(&self) -> Result<BTreeSet<OwnRoute>, NetError> {
        self.kernel.list_routes().await
    }
    async fn remove_routes(&self, routes: &[OwnRoute]) -> Result<(), NetError> {
        self.kernel.remove_routes(routes).await
    }
    async fn set_blocks(&self, blocks: &BTreeSet<IpNetwork>) -> Result<(), NetError> {
        self.pass(self.kernel.set_blocks(blocks).await)
    }
}

impl Shaper for Trapped {
    async fn set(&self, ifindex: u32, ifb: &str, limits: &Limits) -> Result<u32, NetError> {
        self.pass(self.kernel.set(ifindex, ifb, limits).await)
    }
    async fn clear_egress(&self, ifb: &str) -> Result<(), NetError> {
        self.kernel.clear_egress(ifb).await
    }
    async fn rates(&self, ifindex: u32, ifb: &str) -> Result<(Option<u64>, Option<u64>), NetError> {
        self.kernel.rates(ifindex, ifb).await
    }
}

impl Translation for Trapped {
    async fn translate(&self, before: &Nat, after: &Nat) -> Result<(), NetError> {
        let done = self.kernel.translate(before, after).await;
        // Taking away is undoing, which nothing interrupts.
        if after.ports.len() > before.ports.len() { self.pass(done) } else { done }
    }
    async fn translate_anew(&self, nat: &Nat) -> Result<(), NetError> {
        self.kernel.translate_anew(nat).await
    }
    async fn forget_flows(&self, gone: &nat::HostPorts) {
        self.kernel.forget_flows(gone).await;
    }
    async fn translated(&self) -> Result<nat::Found, NetError> {
        self.kernel.translated().await
    }
    async fn ruleset(&self) -> Result<u32, NetError> {
        self.kernel.ruleset().await
    }
}

/// Maps and pins that only remember.
#[derive(Default)]
pub struct FakeMaps {
    pub trap: Trap,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub addresses: BTreeMap<IpAddr, Identity>,
    pub attached: BTreeSet<String>,
    pub netns: BTreeSet<u64>,
    /// Look whether interfaces are up when programs are attached.
    pub watch: bool,
    pub open_at_attach: Vec<String>,
}

impl FakeMaps {
    fn pass(&self) -> Result<(), DatapathError> {
        if self.trap.springs() { Err(DatapathError::Other("injected".into())) } else { Ok(()) }
    }

    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
            && self.addresses.is_empty()
            && self.attached.is_empty()
            && self.netns.is_empty()
    }
}

impl PodMaps for FakeMaps {
    fn set_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.endpoints.insert(ifindex, *endpoint);
        self.pass()
    }
    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.endpoints.remove(&ifindex);
        Ok(())
    }
    fn set_address(&mut self, address: IpAddr, identity: Identity) -> Result<(), DatapathError> {
        self.addresses.insert(address, identity);
        self.pass()
    }
    fn remove_address(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        self.addresses.remove(&address);
        Ok(())
    }
    fn attach_pod(&mut self, ifname: &str, _: u32) -> Result<(), DatapathError> {
        let up = self.watch
            && json(&format!("ip -j link show dev {ifname}"))[0]["flags"].to_string().contains("\"UP\"");
        if up {
            self.open_at_attach.push(ifname.into());
        }
        self.attached.insert(ifname.into());
        self.pass()
    }
    fn detach_pod(&mut self, ifname: &str) -> Result<(), DatapathError> {
        self.attached.remove(ifname);
        Ok(())
    }
    fn forget_flows(&mut self, _: &[IpAddr]) -> Result<usize, DatapathError> {
        Ok(0)
    }
    fn set_netns(&mut self, cookie: u64) -> Result<(), DatapathError> {
        self.netns.insert(cookie);
        self.pass()
    }
    fn remove_netns(&mut self, cookie: u64) -> Result<(), DatapathError> {
        self.netns.remove(&cookie);
        Ok(())
    }
    fn netns(&self) -> Result<BTreeSet<u64>, DatapathError> {
        Ok(self.netns.clone())
    }
    fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, DatapathError> {
        Ok(self.endpoints.clone())
    }
    fn address(&self, address: IpAddr) -> Result<Option<Identity>, DatapathError> {
        Ok(self.addresses.get(&address).copied())
    }
    fn delivery(&self, address: IpAddr) -> Result<Option<Delivery>, DatapathError> {
        let of = |e: &Endpoint| [e.ipv4, e.ipv6].contains(&Addr::from_ip(address));
        Ok(self.endpoints.iter().find(|(_, e)| of(e)).map(|(ifindex, e)| Delivery::to(*ifindex, e)))
    }
    fn attached(&self) -> Result<BTreeSet<String>, DatapathError> {
        Ok(self.attached.clone())
    }
}

/// A daemon's worth of wiring, with its state on disk.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub trap: Trap,
    pub maps: FakeMaps,
    pub endpoints: Endpoints<Trapped, ClaimFiles>,
}

impl Node {
    pub async fn start() -> Self {
        let trap = Trap::default();
        let dir = tempfile::tempdir().unwrap();
        let endpoints = load(dir.path(), &trap).await;
        let maps = FakeMaps { trap: trap.clone(), ..FakeMaps::default() };
        let mut node = Self { dir, trap, maps, endpoints };
        node.reconcile().await;
        node
    }

    pub async fn reconcile(&mut self) -> Reconciled {
        let reconciled = self.endpoints.reconcile(&mut self.maps, |_| None).await.unwrap();
        self.endpoints.set_masquerade(Default::default()).await.unwrap();
        reconciled
    }

    /// As if the daemon was killed: all that was only in memory is gone. Maps and pins outlive it.
    pub async fn restart(&mut self) -> Reconciled {
        self.endpoints = load(self.dir.path(), &self.trap).await;
        self.reconcile().await
    }

    pub async fn add(&mut self, pod: &Pod) -> Vec<IpAddr> {
        self.add_with(pod, &context()).await
    }

    pub async fn add_with(&mut self, pod: &Pod, context: &PodContext) -> Vec<IpAddr> {
        let attachment = self.try_add(context, &pod.attach()).await.unwrap();
        attachment.addresses.iter().map(|a| a.ip()).collect()
    }

    pub async fn try_add(
        &mut self,
        context: &PodContext,
        request: &Attach,
    ) -> Result<Attachment, ErrorReply> {
        self.endpoints.add(&mut self.maps, context, |_| 17, request).await
    }

    pub async fn del(&mut self, pod: &Pod) {
        self.endpoints.del(&mut self.maps, &pod.detach()).await.unwrap();
    }

    pub fn host_name(&self, pod: &Pod) -> String {
        self.endpoints.get(&pod.id()).unwrap().host_interface.clone()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Nothing of any pod is left anywhere.
    pub fn assert_nothing_left(&self) {
        let names: Vec<_> = json("ip -j link show")
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["ifname"].as_str().unwrap().to_string())
            .filter(|n| !["lo", "up0", "router0"].contains(&n.as_str()))
            .collect();
        assert!(names.is_empty(), "interfaces left: {names:?}");
        for family in ["-4", "-6"] {
            let routes = run(&format!("ip {family} route show proto 66"));
            let left: Vec<_> = routes.lines().filter(|l| !l.starts_with("blackhole")).collect();
            assert!(left.is_empty(), "routes left: {left:?}");
        }
        let neighbours = run("ip neigh show nud permanent");
        assert!(neighbours.is_empty(), "neighbours left: {neighbours}");
        let tables = run("nft list tables");
        assert!(!tables.contains("bulkhead"), "tables left: {tables}");
        let files: Vec<_> = std::fs::read_dir(self.file("state/endpoints")).unwrap().collect();
        assert!(files.is_empty(), "records left: {files:?}");
        assert!(self.maps.is_empty(), "map entries left");
        assert_eq!(self.endpoints.iter().count(), 0);
    }
}

impl Drop for Node {
    /// The next case begins with an empty kernel, also after a failure.
    fn drop(&mut self) {
        for link in json("ip -j link show").as_array().unwrap() {
            let name = link["ifname"].as_str().unwrap();
            if name.starts_with("bh") || name.starts_with("bi") {
                attempt(&format!("ip link del {name}"));
            }
        }
        attempt("ip -4 route flush proto 66");
        attempt("ip -6 route flush proto 66");
    }
}

async fn load(dir: &Path, trap: &Trap) -> Endpoints<Trapped, ClaimFiles> {
    let kernel = Kernel::open().unwrap();
    let uplinks = kernel.uplinks(&[]).await.unwrap();
    node::prepare_node(&uplinks).unwrap();
    let node = NodeNet { mtu: uplinks[0].mtu, sources: uplinks[0].sources() };
    assert_ne!(node.sources, Sources::default());
    let claims = ClaimFiles::new(dir.join("blocks")).unwrap();
    let net = Trapped { kernel, trap: trap.clone() };
    Endpoints::load(net, claims, &dir.join("state"), "n1", node).await.unwrap().0
}
