//! Services: what the source says of them, what of it stands in the kernel, and what people ask of it.

use super::{
    Node,
    orphans::{Gone, Orphans},
};
use crate::{
    datapath::{Datapath, Unwritten, find_cgroup},
    net::{Connected, end_connected},
    source::Snapshot,
};
use bulkhead_api::messages::{FrontendInfo, LeftInfo, ObjectError, Services as Told};
use bulkhead_ebpf_abi::{Addr, FRONTEND_ANY_NODE_V4, FRONTEND_ANY_NODE_V6, FrontendKey, PROTO_TCP};
use bulkhead_policy::{
    Named, NodeInfo,
    service::{Frontend, ServiceTable},
};
use std::{collections::BTreeSet, path::Path};
use tracing::{info, warn};

/// What follows the source, and what of it is still to be written.
#[derive(Default)]
pub(super) struct Services {
    pub table: ServiceTable,
    /// Frontends that may differ from the kernel's.
    to_write: BTreeSet<FrontendKey>,
    nodes_to_write: bool,
    /// The source has told of services once; until then what a daemon before us wrote stays.
    told: bool,
    /// The first write looks at all that the maps hold, later ones at what has changed.
    compared: bool,
    attached: bool,
    orphans: Orphans,
    gone: Gone,
    /// By what was tried last.
    errors: Vec<ObjectError>,
}

impl Services {
    /// Takes over what the source says.
    pub fn follow(&mut self, node: &str, nodes: &Named<NodeInfo>, snapshot: &Snapshot) {
        let changed = self.table.update(node, nodes, &snapshot.services, &snapshot.endpoint_slices);
        self.to_write.extend(changed);
        self.gone = self.orphans.follow(&snapshot.endpoint_slices, std::mem::take(&mut self.gone));
        // The first time they may differ from what a daemon before us wrote.
        self.nodes_to_write |= self.table.take_nodes_changed() || !self.told;
        self.told = true;
    }

    pub fn errors(&self) -> &[ObjectError] {
        &self.errors
    }

    /// Writes what has changed. What fails is tried again with the next call.
    pub fn write(&mut self, datapath: &mut Datapath, cgroup: Option<&Path>) {
        self.errors.clear();
        self.attach(datapath, cgroup);
        if !self.told {
            return;
        }
        if !self.compared {
            match datapath.frontends() {
                Ok(there) => self.to_write.extend(there),
                Err(e) => return self.failed(format!("services are as they were: {e}")),
            }
            self.to_write.extend(self.table.frontends().map(|(key, _)| *key));
            self.compared = true;
        }
        if self.nodes_to_write {
            match datapath.set_node_addresses(&self.table.node_addresses()) {
                Ok(()) => self.nodes_to_write = false,
                Err(e) => self.failed(format!("node ports: {e}")),
            }
        }
        let wanted = std::mem::take(&mut self.to_write);
        let table = &self.table;
        if let Some(Unwritten { keys, error }) =
            datapath.set_frontends(wanted.iter().map(|k| (*k, table.frontend(k))))
        {
            self.failed(format!(
                "{} addresses of services stand for what they stood for before: {error}",
                keys.len()
            ));
            self.to_write = keys;
        }
    }

    /// Sockets that stay connected to backends that are gone, behind the last [`Self::write`].
    fn orphaned(&mut self, datapath: &Datapath) -> BTreeSet<Connected> {
        // Whoever calls anew would be given a backend that is gone.
        if !self.compared || !self.to_write.is_empty() {
            return BTreeSet::new();
        }
        let gone = std::mem::take(&mut self.gone);
        if gone == Gone::Nobody {
            return BTreeSet::new();
        }
        datapath.udp_sockets_at(|backend| gone.holds(backend)).unwrap_or_else(|error| {
            warn!(%error, "cannot tell who is connected to backends that are gone; looked at with the next change");
            self.orphans = Orphans::default();
            BTreeSet::new()
        })
    }

    fn failed(&mut self, message: String) {
        self.errors.push(ObjectError { file: None, object: None, field: None, message });
    }

    fn attach(&mut self, datapath: &mut Datapath, configured: Option<&Path>) {
        if self.attached {
            return;
        }
        let found = match configured {
            Some(path) => Ok(Some(path.to_path_buf())),
            None => find_cgroup(),
        };
        let left = "services are left to kube-proxy";
        match found {
            Ok(Some(cgroup)) => match datapath.attach_services(&cgroup) {
                Ok(()) => {
                    self.attached = true;
                    info!(cgroup = %cgroup.display(), "services are translated at the socket");
                }
                Err(e) => self.failed(format!("{left}: {e}")),
            },
            Ok(None) => self.failed(format!(
                "{left}: the root of cgroup2 is mounted nowhere: mount -t cgroup2 cgroup2 DIR, or say `cgroup: DIR`"
            )),
            Err(e) => self.failed(format!("{left}: cannot read the mounts: {e}")),
        }
    }

    fn told(&self) -> Told {
        let mut frontends: Vec<_> = self.table.frontends().map(frontend_info).collect();
        frontends.sort_by(|a, b| {
            let by = |f: &FrontendInfo| (f.service.clone(), f.port_name.clone(), f.kind.clone(), f.address);
            by(a).cmp(&by(b))
        });
        let left = self.table.left().map(|(service, left)| LeftInfo {
            service: service.into(),
            what: (!left.what.is_empty()).then_some(left.what),
            why: left.why.into(),
        });
        Told { frontends, left: left.collect() }
    }
}

fn frontend_info((key, frontend): (&FrontendKey, &Frontend)) -> FrontendInfo {
    let any_node = [FRONTEND_ANY_NODE_V4, FRONTEND_ANY_NODE_V6].contains(&key.address);
    let is_v6 = |address: Addr| address == FRONTEND_ANY_NODE_V6 || address.to_ip().is_ipv6();
    FrontendInfo {
        service: frontend.service.clone(),
        port_name: frontend.port.clone(),
        kind: frontend.stands.text().into(),
        address: (!any_node).then(|| key.address.to_ip()),
        ipv6: is_v6(key.address),
        port: key.port,
        protocol: if key.proto == PROTO_TCP { "tcp" } else { "udp" }.into(),
        affinity_seconds: frontend.affinity_seconds,
        backends: frontend.backends.to_vec(),
    }
}

impl Node {
    pub fn services(&self) -> Told {
        self.services.told()
    }

    pub(super) fn write_services(&mut self) {
        let told = self.services.errors.clone();
        self.services.write(&mut self.datapath, self.config.cgroup.as_deref());
        for error in self.services.errors.iter().filter(|e| !told.contains(e)) {
            warn!("{error}");
        }
        let orphaned = self.services.orphaned(&self.datapath);
        if !orphaned.is_empty() {
            end_connected(self.endpoints.iter().map(|pod| pod.netns.clone()).collect(), orphaned);
        }
    }

    /// Now and then: tries again what failed, and removes backends that nobody names any more.
    pub(super) fn look_after_services(&mut self) {
        if !self.services.errors.is_empty() {
            self.write_services();
        }
        if let Err(e) = self.datapath.settle_services() {
            warn!(error = %e, "cannot remove backends of services that are gone; tried again");
        }
    }
}
