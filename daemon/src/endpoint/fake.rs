//! A kernel and maps that only remember, and that fail where they are told to.
//!
//! A green run with these shows the order of effects and what becomes of failures. It does not show that the real kernel
//! takes any of it: the wiring suite does.

use crate::{
    datapath::{DatapathError, PodMaps},
    net::{
        HostSide, HostState, Limits, Link, Links, Nat, NetError, OwnRoute, Pair, PairIndex, PodSide,
        PodState, Routes, Shaper, Translation, host_network,
        nat::{Found, HostPort, HostPorts},
    },
};
use bulkhead_ebpf_abi::{Addr, Delivery, Endpoint, Identity};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
};

#[derive(Debug, Default)]
pub struct State {
    pub links: BTreeMap<String, Link>,
    pub routes: BTreeSet<OwnRoute>,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub addresses: BTreeMap<IpAddr, Identity>,
    pub attached: BTreeSet<String>,
    pub netns: BTreeSet<u64>,
    pub nat: Nat,
    pub ruleset: u32,
    /// Host ports whose flows were forgotten by name.
    pub forgotten: Vec<HostPort>,
    /// A kernel that knows no tables.
    pub no_tables: bool,
    /// Every call that changes something, in order.
    pub calls: Vec<&'static str>,
    /// Calls that fail, after they were done.
    pub failing: BTreeSet<&'static str>,
    next_index: u32,
}

/// Both fakes share one state.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn change(&self, call: &'static str, change: impl FnOnce(&mut State)) -> bool {
        self.with(|state| {
            state.calls.push(call);
            change(state);
            !state.failing.contains(call)
        })
    }

    fn net(&self, call: &'static str, change: impl FnOnce(&mut State)) -> Result<(), NetError> {
        let error = || NetError::Kernel { what: call, source: io::Error::other("injected") };
        if self.change(call, change) { Ok(()) } else { Err(error()) }
    }

    fn has_tables(&self) -> Result<(), NetError> {
        let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        let error = NetError::Kernel { what: "tables", source };
        if self.with(|s| s.no_tables) { Err(error) } else { Ok(()) }
    }

    fn map(&self, call: &'static str, change: impl FnOnce(&mut State)) -> Result<(), DatapathError> {
        if self.change(call, change) { Ok(()) } else { Err(DatapathError::Other(call.into())) }
    }
}

impl State {
    fn add_link(&mut self, name: &str, mac: crate::net::Mac, mtu: u32, up: bool) -> u32 {
        self.next_index += 1;
        let index = self.next_index;
        self.links.insert(name.into(), Link { name: name.into(), index, peer: 2, mac, mtu, up });
        index
    }
}

impl Links for Fake {
    async fn create_pair(&self, pair: &Pair) -> Result<PairIndex, NetError> {
        let mut host = 0;
        self.net("create_pair", |s| host = s.add_link(&pair.host, pair.host_mac, pair.mtu, false))?;
        Ok(PairIndex { host, pod: 2 })
    }
    async fn configure_pod(&self, _: u32, _: &PodSide) -> Result<(), NetError> {
        self.net("configure_pod", |_| {})
    }
    async fn delete(&self, name: &str) -> Result<(), NetError> {
        self.net("delete", |s| {
            if let Some(link) = s.links.remove(name) {
                s.routes.retain(|r| r.ifindex != Some(link.index));
            }
        })
    }
    async fn find(&self, name: &str) -> Result<Option<Link>, NetError> {
        Ok(self.with(|s| s.links.get(name).cloned()))
    }
    async fn list(&self) -> Result<Vec<Link>, NetError> {
        Ok(self.with(|s| s.links.values().cloned().collect()))
    }
    async fn inspect_pod(&self, _: &Path, _: &str) -> Result<Option<PodState>, NetError> {
        Ok(None)
    }
    async fn netns_cookie(&self, netns: &Path) -> Result<u64, NetError> {
        // Another for each name.
        Ok(netns
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(1, |sum: u64, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b))))
    }
}

impl Routes for Fake {
    async fn open(&self, ifindex: u32, host: &HostSide) -> Result<(), NetError> {
        self.net("open", |s| {
            s.links.values_mut().filter(|l| l.index == ifindex).for_each(|l| l.up = true);
            let route = |a: &IpAddr| OwnRoute { dst: host_network(*a), ifindex: Some(ifindex) };
            s.routes.extend(host.addresses.iter().map(route));
        })
    }
    async fn inspect_host(&self, _: u32) -> Result<HostState, NetError> {
        Ok(HostState::default())
    }
    async fn list_routes(&self) -> Result<BTreeSet<OwnRoute>, NetError> {
        Ok(self.with(|s| s.routes.clone()))
    }
    async fn remove_routes(&self, routes: &[OwnRoute]) -> Result<(), NetError> {
        self.net("remove_routes", |s| s.routes.retain(|r| !routes.contains(r)))
    }
    async fn set_blocks(&self, blocks: &BTreeSet<IpNetwork>) -> Result<(), NetError> {
        self.net("set_blocks", |s| {
            s.routes.retain(|r| r.ifindex.is_some());
            s.routes.extend(blocks.iter().map(|&dst| OwnRoute { dst, ifindex: None }));
        })
    }
}

impl Shaper for Fake {
    async fn set(&self, _: u32, ifb: &str, limits: &Limits) -> Result<u32, NetError> {
        let mut index = 0;
        self.net("shape", |s| {
            if limits.egress.is_some() {
                let known = s.links.get(ifb).map(|l| l.index);
                index = known.unwrap_or_else(|| s.add_link(ifb, Default::default(), 1500, true));
            }
        })?;
        Ok(index)
    }
    async fn clear_egress(&self, ifb: &str) -> Result<(), NetError> {
        self.net("clear_egress", |s| drop(s.links.remove(ifb)))
    }
    async fn rates(&self, _: u32, _: &str) -> Result<(Option<u64>, Option<u64>), NetError> {
        Ok((None, None))
    }
}

impl Translation for Fake {
    async fn translate(&self, before: &Nat, after: &Nat) -> Result<(), NetError> {
        if before == after {
            return Ok(());
        }
        self.translate_anew(after).await
    }
    async fn translate_anew(&self, nat: &Nat) -> Result<(), NetError> {
        self.has_tables()?;
        self.net("translate", |s| {
            s.nat = nat.clone();
            s.ruleset += 1;
        })
    }
    async fn translated(&self) -> Result<Found, NetError> {
        self.has_tables()?;
        self.net("translated", |_| {})?;
        Ok(self.with(|s| Found::expected(&s.nat)))
    }
    async fn forget_flows(&self, gone: &HostPorts) {
        self.with(|s| s.forgotten.extend(gone.keys()));
    }
    async fn ruleset(&self) -> Result<u32, NetError> {
        self.has_tables()?;
        self.net("ruleset", |_| {})?;
        Ok(self.with(|s| s.ruleset))
    }
}

impl PodMaps for Fake {
    fn set_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.map("set_endpoint", |s| s.endpoints.extend([(ifindex, *endpoint)]))
    }
    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.map("remove_endpoint", |s| s.endpoints.retain(|i, _| *i != ifindex))
    }
    fn set_address(&mut self, address: IpAddr, identity: Identity) -> Result<(), DatapathError> {
        self.map("set_address", |s| s.addresses.extend([(address, identity)]))
    }
    fn remove_address(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        self.map("remove_address", |s| s.addresses.retain(|a, _| *a != address))
    }
    fn attach_pod(&mut self, ifname: &str, _: u32) -> Result<(), DatapathError> {
        self.map("attach_pod", |s| s.attached.extend([ifname.into()]))
    }
    fn detach_pod(&mut self, ifname: &str) -> Result<(), DatapathError> {
        self.map("detach_pod", |s| s.attached.retain(|n| n != ifname))
    }
    fn forget_flows(&mut self, _: &[IpAddr]) -> Result<usize, DatapathError> {
        self.map("forget_flows", |_| {}).map(|()| 0)
    }
    fn set_netns(&mut self, cookie: u64) -> Result<(), DatapathError> {
        self.map("set_netns", |s| s.netns.extend([cookie]))
    }
    fn remove_netns(&mut self, cookie: u64) -> Result<(), DatapathError> {
        self.map("remove_netns", |s| s.netns.retain(|c| *c != cookie))
    }
    fn netns(&self) -> Result<BTreeSet<u64>, DatapathError> {
        Ok(self.with(|s| s.netns.clone()))
    }
    fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, DatapathError> {
        Ok(self.with(|s| s.endpoints.clone()))
    }
    fn address(&self, address: IpAddr) -> Result<Option<Identity>, DatapathError> {
        Ok(self.with(|s| s.addresses.get(&address).copied()))
    }
    fn delivery(&self, address: IpAddr) -> Result<Option<Delivery>, DatapathError> {
        let of = |e: &Endpoint| [e.ipv4, e.ipv6].contains(&Addr::from_ip(address));
        Ok(self.with(|s| s.endpoints.iter().find(|(_, e)| of(e)).map(|(i, e)| Delivery::to(*i, e))))
    }
    fn attached(&self) -> Result<BTreeSet<String>, DatapathError> {
        Ok(self.with(|s| s.attached.clone()))
    }
}
