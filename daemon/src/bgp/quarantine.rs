//! Who may announce a fixed address: never two nodes at once, whatever has become of the one that had it before. Pure.
//!
//! ```text
//!  claimed ──▶ waits ──every router of this node has said everything, and none has a way to it──────────▶ announced
//!                ▲                                                                                          │
//!                ├─────────── a session begins, and the claim cannot be asked for ──────────────────────────┤
//!                └─────────── the claim was gone, and is made anew ─────────────────────────────────────────┘
//!                             (is the claim another node's, it is no block of this node any more)
//! ```
//! The claim alone does not do: it goes with its `Node` object, and that node may be alive, cut off, or kept by its routers for the
//! time of a restart. Its route tells. The routers must tell it: those that hold back routes of our own AS are to be asked not to,
//! and [`Untold`](super::untold::Untold) names them.
//!
//! Time alone frees an address from silence only: a router that never says that it has said everything is believed after a while, and
//! one that cannot be reached is waited for no longer than that, for with a leaf that is out of order nothing could move. A router
//! that **has** a way is never overruled by time: that node carries packets, and the operator is told which router and which way it is.

use crate::ipam::{Asked, is_fixed};
use bulkhead_bgp::{Absent, PrefixAtPeer, RouteView, fsm::StateName};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

/// Some routers never say that they have said everything (RFC 4724): then the session must be that old. Without a session for as long
/// a router counts as out of order. A node that is cut off from this node's routers has asked for its claims in the meantime.
const SILENT: Duration = Duration::from_secs(30);
/// What was announced before is kept by routers meanwhile, until we have said everything ourselves. One that restarts says
/// nothing before that.
const DOUBT: Duration = Duration::from_secs(5);

/// Of the fixed addresses that this node has claimed.
#[derive(Debug, Default)]
pub struct Quarantine {
    ours: BTreeSet<IpNetwork>,
    waiting: BTreeMap<IpNetwork, Waiting>,
    /// Other nodes', though a pod here may have them.
    lost: BTreeMap<IpNetwork, String>,
}

#[derive(Debug)]
struct Waiting {
    /// It was announced before: that the claim is ours is enough.
    doubted: Option<Instant>,
    why: Why,
}

impl Waiting {
    fn is_in_doubt(&self, now: Instant) -> bool {
        self.doubted.is_some_and(|since| now < since + DOUBT)
    }
}

/// What a fixed address waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    NoRouter,
    /// This router has not said everything yet.
    Unheard(String),
    /// With this router there has been no session for a moment only.
    Away(String),
    /// This router has another way to it.
    Elsewhere(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("in quarantine, for another node may have the address still: ")?;
        match self {
            Why::NoRouter => f.write_str("no router can be heard that would know"),
            Why::Unheard(peer) => write!(f, "{peer} has not told all of its routes yet"),
            Why::Away(peer) => {
                let seconds = SILENT.as_secs();
                write!(
                    f,
                    "there is no session with {peer}, which is waited for until it has been away for {seconds} s"
                )
            }
            Why::Elsewhere(words) => write!(f, "{words}"),
        }
    }
}

impl Quarantine {
    /// `announced`: by a daemon before this one.
    pub fn new(announced: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self { ours: announced.into_iter().filter(is_fixed).collect(), ..Self::default() }
    }

    /// The blocks that this node has claimed: a fixed address that is new waits.
    pub fn follow<'a>(&mut self, blocks: impl Iterator<Item = &'a IpNetwork> + Clone) {
        let fixed: BTreeSet<IpNetwork> = blocks.clone().filter(|block| is_fixed(block)).copied().collect();
        self.ours.retain(|address| fixed.contains(address));
        self.waiting.retain(|address, _| fixed.contains(address));
        // Also one that a pod has now of a block that is shared.
        self.lost.retain(|address, _| !blocks.clone().any(|block| block.contains(address.ip())));
        for address in fixed.difference(&self.ours) {
            self.waiting.entry(*address).or_insert(Waiting { doubted: None, why: Why::NoRouter });
        }
    }

    /// What came of asking for the claims. `alone`: since it was known last that they are ours, there was a time without any
    /// session, in which another node may have taken over.
    pub fn asked(&mut self, now: Instant, answers: Vec<(IpNetwork, Asked)>, alone: bool) {
        for (address, answer) in answers {
            match answer {
                Asked::Ours => {
                    if self.waiting.get(&address).is_some_and(|waiting| waiting.doubted.is_some()) {
                        self.free(address);
                    }
                }
                // To whoever had it meanwhile there may be a way still: it is as one that was never ours.
                Asked::Again => {
                    self.ours.remove(&address);
                    self.waiting.insert(address, Waiting { doubted: None, why: Why::NoRouter });
                }
                Asked::Unknown => {
                    if alone && self.ours.remove(&address) {
                        self.waiting.insert(address, Waiting { doubted: Some(now), why: Why::NoRouter });
                    }
                }
                Asked::Anothers(node) => {
                    self.ours.remove(&address);
                    self.waiting.remove(&address);
                    self.lost.insert(address, node);
                }
            }
        }
    }

    /// What the routers say of one that waits. Whether it waits no longer.
    pub fn heard(&mut self, address: IpNetwork, routers: &[AtRouter]) -> bool {
        let Some(waiting) = self.waiting.get_mut(&address) else { return false };
        match judge(routers) {
            Some(why) => waiting.why = why,
            None => self.free(address),
        }
        self.ours.contains(&address)
    }

    fn free(&mut self, address: IpNetwork) {
        self.waiting.remove(&address);
        self.ours.insert(address);
    }

    pub fn waiting(&self) -> impl Iterator<Item = (&IpNetwork, &Why)> {
        self.waiting.iter().map(|(address, waiting)| (address, &waiting.why))
    }

    /// Whether it is to be announced, should nothing else speak against it.
    pub fn admits(&self, now: Instant, prefix: &IpNetwork) -> bool {
        self.waiting.get(prefix).is_none_or(|waiting| waiting.is_in_doubt(now))
    }

    /// Whether something may be taken for ours, or not, in a moment.
    pub fn is_in_doubt(&self, now: Instant) -> bool {
        self.waiting.values().any(|waiting| waiting.is_in_doubt(now))
    }

    pub fn why(&self, prefix: &IpNetwork) -> Option<&Why> {
        self.waiting.get(prefix).map(|waiting| &waiting.why)
    }

    /// With the nodes that have them.
    pub fn lost(&self) -> impl Iterator<Item = (&IpNetwork, &String)> {
        self.lost.iter()
    }
}

/// Why the address must wait; nothing if somebody would have told of another owner, and nobody has.
fn judge(routers: &[AtRouter]) -> Option<Why> {
    if let Some(words) = routers.iter().find_map(|at| at.way.clone()) {
        return Some(Why::Elsewhere(words));
    }
    let spoken_with = || routers.iter().filter_map(|at| Some((at, at.established?)));
    let silent = spoken_with().find(|(at, since)| !at.heard && *since < SILENT);
    let away = routers.iter().find(|at| at.away.is_some_and(|away| away < SILENT));
    match (silent, away) {
        (Some((at, _)), _) => Some(Why::Unheard(at.name.clone())),
        _ if spoken_with().count() == 0 => Some(Why::NoRouter),
        (None, Some(at)) => Some(Why::Away(at.name.clone())),
        (None, None) => None,
    }
}

/// What one router says of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtRouter {
    pub name: String,
    /// Since when there is a session.
    pub established: Option<Duration>,
    /// For how long there has been none, since the last one or since this node has known the router.
    pub away: Option<Duration>,
    /// It has said everything in it.
    pub heard: bool,
    /// Its way to it, in words; also one that is kept from a session before.
    pub way: Option<String>,
}

impl From<&PrefixAtPeer> for AtRouter {
    fn from(at: &PrefixAtPeer) -> Self {
        let established = at.peer.state == StateName::Established;
        Self {
            name: at.peer.name.clone(),
            established: established.then_some(at.peer.since),
            away: at.peer.away,
            heard: at.heard,
            way: at.received.iter().chain(&at.looped).next().map(words),
        }
    }
}

/// Of a range: a router that has not connected yet may know of another owner.
impl From<Absent> for AtRouter {
    fn from(absent: Absent) -> Self {
        Self { name: absent.name, away: Some(absent.away), ..Self::default() }
    }
}

fn words(route: &RouteView) -> String {
    let kept = if route.stale { ", kept while that router restarts" } else { "" };
    let path: Vec<String> = route.as_path.iter().map(ToString::to_string).collect();
    format!("{} has a way to it by {} (AS path {}{kept})", route.peer, route.next_hop, path.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "10.65.15.7/32";

    fn address() -> IpNetwork {
        ADDRESS.parse().unwrap()
    }

    fn at(heard: bool, way: Option<&str>) -> AtRouter {
        let established = Some(Duration::from_secs(1));
        AtRouter { name: "leaf".into(), established, away: None, heard, way: way.map(Into::into) }
    }

    fn claimed() -> Quarantine {
        let mut quarantine = Quarantine::default();
        quarantine.follow([address(), "10.65.0.0/26".parse().unwrap()].iter());
        quarantine
    }

    #[test]
    fn a_new_claim_waits_until_all_who_are_spoken_with_have_told_and_nobody_has_a_way() {
        let mut quarantine = claimed();
        assert_eq!(quarantine.waiting().count(), 1, "of blocks that are shared none waits");
        let away = |time| AtRouter { name: "spine".into(), away: Some(time), ..AtRouter::default() };
        let (down, lost) = (away(SILENT), away(SILENT / 2));
        let of_range = |away| AtRouter::from(Absent { name: "racks".into(), away });
        let old = AtRouter { established: Some(SILENT), ..at(false, None) };
        let elsewhere = || Why::Elsewhere("leaf has a way".into());
        for (routers, why) in [
            (vec![], Some(Why::NoRouter)),
            (vec![down.clone()], Some(Why::NoRouter)),
            (vec![at(false, None)], Some(Why::Unheard("leaf".into()))),
            (vec![at(true, Some("leaf has a way"))], Some(elsewhere())),
            (vec![at(true, None), at(true, Some("leaf has a way"))], Some(elsewhere())),
            (vec![AtRouter { established: None, ..at(false, Some("leaf has a way")) }], Some(elsewhere())),
            (vec![lost.clone()], Some(Why::NoRouter)),
            (vec![lost.clone(), at(false, None)], Some(Why::Unheard("leaf".into()))),
            (vec![lost, at(true, None)], Some(Why::Away("spine".into()))),
            (vec![at(true, None), of_range(SILENT / 2)], Some(Why::Away("racks".into()))),
            (vec![at(true, None), of_range(SILENT)], None),
            (vec![of_range(SILENT)], Some(Why::NoRouter)),
            (vec![down, at(true, None)], None),
            (vec![old], None),
        ] {
            let mut quarantine = claimed();
            assert_eq!(quarantine.heard(address(), &routers), why.is_none(), "{routers:?}");
            assert_eq!(quarantine.why(&address()), why.as_ref(), "{routers:?}");
        }
        // That the claim is ours says nothing of who had it before.
        quarantine.asked(Instant::now(), vec![(address(), Asked::Ours)], true);
        assert!(quarantine.why(&address()).is_some());
    }

    #[test]
    fn what_was_announced_before_stays_so_while_its_claim_is_ours() {
        let mut quarantine = Quarantine::new([address()]);
        quarantine.follow([address()].iter());
        let now = Instant::now();
        quarantine.asked(now, vec![(address(), Asked::Ours)], true);
        quarantine.asked(now, vec![(address(), Asked::Unknown)], false);
        assert_eq!(quarantine.waiting().count(), 0, "some router has had it all the time");
        // Nobody answers: then the routers are asked, or the claims again.
        for by_claim in [true, false] {
            quarantine.asked(now, vec![(address(), Asked::Unknown)], true);
            assert!(!quarantine.heard(address(), &[at(true, Some("leaf has a way"))]));
            assert!(quarantine.is_in_doubt(now) && quarantine.admits(now, &address()), "routers keep it");
            let late = now + DOUBT;
            assert!(!quarantine.is_in_doubt(late) && !quarantine.admits(late, &address()));
            quarantine.asked(late, vec![(address(), Asked::Unknown)], true);
            assert!(!quarantine.is_in_doubt(late), "it is doubted once");
            match by_claim {
                true => quarantine.asked(now, vec![(address(), Asked::Ours)], true),
                false => assert!(quarantine.heard(address(), &[at(true, None)])),
            }
            assert_eq!(quarantine.waiting().count(), 0);
        }
    }

    #[test]
    fn what_is_another_nodes_is_told_until_it_is_claimed_here_again_and_then_waits() {
        let mut quarantine = Quarantine::new([address()]);
        quarantine.follow([address()].iter());
        quarantine.asked(Instant::now(), vec![(address(), Asked::Anothers("n2".into()))], false);
        quarantine.follow([].iter());
        assert_eq!(quarantine.lost().collect::<Vec<_>>(), [(&address(), &"n2".to_owned())]);
        quarantine.follow([address()].iter());
        assert_eq!((quarantine.lost().count(), quarantine.waiting().count()), (0, 1));
    }

    #[test]
    fn what_was_claimed_anew_waits_for_the_routers_as_if_it_had_never_been_ours() {
        let mut quarantine = Quarantine::new([address()]);
        quarantine.follow([address()].iter());
        let now = Instant::now();
        quarantine.asked(now, vec![(address(), Asked::Again)], false);
        quarantine.follow([address()].iter());
        assert!(!quarantine.admits(now, &address()) && !quarantine.is_in_doubt(now));
        quarantine.asked(now, vec![(address(), Asked::Ours)], true);
        assert!(!quarantine.admits(now, &address()), "the claim says nothing of who had it meanwhile");
        assert!(!quarantine.heard(address(), &[at(true, Some("leaf has a way"))]));
        assert!(quarantine.heard(address(), &[at(true, None)]) && quarantine.admits(now, &address()));
    }

    #[test]
    fn what_lies_in_a_block_of_ours_is_nobody_elses() {
        let mut quarantine = Quarantine::default();
        quarantine.asked(Instant::now(), vec![(address(), Asked::Anothers("n2".into()))], false);
        quarantine.follow(["10.65.0.0/26".parse().unwrap()].iter());
        assert_eq!(quarantine.lost().count(), 1);
        quarantine.follow(["10.65.15.0/26".parse().unwrap()].iter());
        assert_eq!(quarantine.lost().count(), 0);
    }

    #[test]
    fn what_was_given_back_is_new_when_it_comes_again() {
        let mut quarantine = Quarantine::new([address()]);
        quarantine.follow([].iter());
        quarantine.follow([address()].iter());
        assert_eq!(quarantine.why(&address()), Some(&Why::NoRouter));
    }
}
