//! Which live connections of a node a change would cut: what the hooks will decide, by the tables that they will have.
//!
//! ```text
//! entry of a connection ─▶ each end that has admitted it: asked by the tables in force, and by those to come
//!                             no by those in force: cut already ── else no by those to come: would be cut
//! ```
//! Behind a node's address somebody else may speak (masqueraded). Such a connection is its initiator's, as whom the hook
//! knew it by its mark: everybody who was known as that is asked about, and one who would be refused is enough.

use crate::{Compiled, Decision, LocalPod, Objects, Placement};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, FLOW_CLOSED, FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_UNASKED, Flow, FlowKey,
    ID_WORLD, ORIGIN_UNKNOWN, origin_of,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// Tables, and what they were compiled of.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    pub compiled: &'a Compiled,
    pub objects: &'a Objects,
    /// The pods of this node, whom the tables know.
    pub local: &'a [LocalPod],
}

pub struct Cuts {
    before: View,
    after: View,
    /// By origin mark: who was known as that.
    initiators: HashMap<u32, BTreeSet<IpAddr>>,
}

/// A connection that would be cut, in its initiator's direction; `from` is who speaks, not the node that it speaks through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub from: IpAddr,
    pub to: IpAddr,
    pub proto: u8,
    pub port: u16,
}

/// The other end of a connection, to one that decides.
#[derive(Clone, Copy)]
enum Peer {
    Identity(u32),
    /// Nobody that a mark can name.
    Unknown,
}

impl Peer {
    fn by_mark(mark: u32) -> Self {
        if mark == ORIGIN_UNKNOWN { Self::Unknown } else { Self::Identity(mark) }
    }
}

/// What a connection asks for, and of whom.
struct Asked {
    proto: u8,
    port: u16,
    dir: u32,
    end: IpAddr,
    /// `established: Keep`.
    kept: bool,
}

impl Cuts {
    /// `addresses`: for everybody whom rules tell from others, one.
    pub fn of(before: Tables<'_>, after: Tables<'_>, addresses: impl Iterator<Item = IpAddr>) -> Self {
        let [before, after] = [before, after].map(View::of);
        let own = before.pods.keys().copied().collect::<BTreeSet<_>>();
        let mut initiators: HashMap<u32, BTreeSet<IpAddr>> = HashMap::new();
        for address in own.into_iter().chain(addresses) {
            initiators.entry(origin_of(before.identity(address))).or_default().insert(address);
        }
        Self { before, after, initiators }
    }

    /// None: it stays, is cut already, was begun by the node itself, which no policy cuts, or is closed, so that nobody
    /// misses it.
    pub fn cut(&self, key: &FlowKey, flow: &Flow) -> Option<Cut> {
        if flow.flags & (FLOW_UNASKED | FLOW_CLOSED) != 0 {
            return None;
        }
        let [(from, _), (to, _)] = key.ends(flow.flags);
        let cut = Cut { from: from.to_ip(), to: to.to_ip(), proto: key.proto, port: flow.service_port };
        let ends = [(DIR_EGRESS, FLOW_KEEP_EGRESS), (DIR_INGRESS, FLOW_KEEP_INGRESS)];
        let decided = ends.into_iter().filter(|(dir, _)| flow.generations[*dir as usize] != 0);
        let mut found = None;
        for (dir, keep) in decided {
            let end = if dir == DIR_EGRESS { cut.from } else { cut.to };
            let asked = Asked { proto: cut.proto, port: cut.port, dir, end, kept: flow.flags & keep != 0 };
            let (was_cut, by) = if dir == DIR_INGRESS && flow.origin != 0 {
                self.marked(&asked, u32::from(flow.origin), cut.from)
            } else {
                let peer = if dir == DIR_EGRESS { cut.to } else { cut.from };
                self.addressed(&asked, peer, cut.from)
            };
            if was_cut {
                return None;
            }
            found = found.or(by);
        }
        found.map(|from| Cut { from, ..cut })
    }

    /// Whether it is cut already, and else the initiator that the change cuts off.
    fn addressed(&self, asked: &Asked, peer: IpAddr, from: IpAddr) -> (bool, Option<IpAddr>) {
        let refused = |view: &View| view.refuses(asked, Peer::Identity(view.identity(peer)));
        (refused(&self.before), refused(&self.after).then_some(from))
    }

    fn marked(&self, asked: &Asked, mark: u32, from: IpAddr) -> (bool, Option<IpAddr>) {
        if self.before.refuses(asked, Peer::by_mark(mark)) {
            return (true, None);
        }
        // Those who are somebody else to the tables to come begin anew: nothing shields them.
        let refused = |address: &&IpAddr| match origin_of(self.after.identity(**address)) {
            same if same == mark => self.after.refuses(asked, Peer::by_mark(mark)),
            other => self.after.refuses(&Asked { kept: false, ..*asked }, Peer::by_mark(other)),
        };
        match self.initiators.get(&mark) {
            Some(known) => (false, known.iter().find(refused).copied()),
            // Gone since: the number still means what it meant.
            None => (false, self.after.refuses(asked, Peer::by_mark(mark)).then_some(from)),
        }
    }
}

/// One of the two states, as this node sees it.
struct View {
    compiled: Compiled,
    pods: BTreeMap<IpAddr, Placement>,
}

impl View {
    fn of(tables: Tables<'_>) -> Self {
        let mut pods = BTreeMap::new();
        for pod in tables.local {
            let Some(placement) = tables.compiled.place(tables.objects, pod) else { continue };
            pods.extend(pod.addresses.iter().map(|address| (*address, placement.clone())));
        }
        Self { compiled: tables.compiled.clone(), pods }
    }

    fn identity(&self, address: IpAddr) -> u32 {
        match self.pods.get(&address) {
            Some(placement) => self.compiled.pod_identity(placement, address),
            None => self.compiled.identity(address).id,
        }
    }

    /// As the hook of a pod here does; anybody else decides nothing.
    fn refuses(&self, asked: &Asked, peer: Peer) -> bool {
        let Some(pod) = self.pods.get(&asked.end) else { return false };
        let (identity, known) = match peer {
            Peer::Identity(identity) => (identity, true),
            Peer::Unknown => (ID_WORLD, false),
        };
        let Decision { allowed, audit, last, open, .. } =
            self.compiled.evaluate(pod.policy, asked.dir, identity, asked.proto, asked.port);
        let passes = (known || open) && allowed || audit;
        !passes && (last || !asked.kept)
    }
}
