//! Taking what others can carry off this node: first announced as the last choice (RFC 8326), then withdrawn. Pure.
//!
//! ```text
//!   asked for ──▶ marked: GRACEFUL_SHUTDOWN, local preference 0 ──after a time──▶ withdrawn ──undone──▶ as before
//! ```
//! Routers that know the community choose another way while this one still carries what is under way. A block has no
//! other home than its node: it stays until its last pod is gone, unless everything is asked for.

use crate::announce::Routes;
use bulkhead_api::messages::{DrainInfo, DrainRequest, DrainScope};
use bulkhead_bgp::{Family, export::GRACEFUL_SHUTDOWN, neighbour::Leaving};
use serde::{Deserialize, Serialize};

/// Of an annotation, which says no time.
pub const WITHDRAW_AFTER: u64 = 60;

/// Who asked for what, kept over restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drains {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Drain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotation: Option<Drain>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Drain {
    what: DrainScope,
    /// Unix time, seconds.
    since: u64,
    withdraw_after: u64,
}

impl Drain {
    fn left(&self, now: u64) -> u64 {
        self.since.saturating_add(self.withdraw_after).saturating_sub(now)
    }

    fn leaving(&self, now: u64) -> Leaving {
        if self.left(now) == 0 { Leaving::Withdrawn } else { Leaving::Marked }
    }
}

impl Drains {
    pub fn command(&mut self, request: &DrainRequest, now: u64) {
        let drain =
            || Drain { what: request.what.clone(), since: now, withdraw_after: request.withdraw_after };
        self.command = (!request.undo).then(drain);
    }

    /// What the node's annotation says; what it said before goes on counting.
    pub fn annotate(&mut self, text: Option<&str>, now: u64) {
        let Some(what) = text.and_then(scope) else {
            self.annotation = None;
            return;
        };
        if self.annotation.as_ref().is_none_or(|known| known.what != what) {
            self.annotation = Some(Drain { what, since: now, withdraw_after: WITHDRAW_AFTER });
        }
    }

    fn all(&self) -> impl Iterator<Item = &Drain> {
        self.command.iter().chain(&self.annotation)
    }

    pub fn told(&self, now: u64) -> Vec<DrainInfo> {
        let one = |drain: &Drain, by: &str| DrainInfo {
            what: drain.what.clone(),
            by: by.into(),
            withdrawn: drain.left(now) == 0,
            withdraw_in: drain.left(now),
        };
        let command = self.command.iter().map(|drain| one(drain, "command"));
        command.chain(self.annotation.iter().map(|drain| one(drain, "annotation"))).collect()
    }

    /// What comes of the routes that other nodes announce as well.
    pub fn services(&self, now: u64) -> Leaving {
        self.furthest(now, |what| matches!(what, DrainScope::Services | DrainScope::All))
    }

    pub fn blocks(&self, now: u64) -> Leaving {
        self.furthest(now, |what| *what == DrainScope::All)
    }

    /// What comes of this peer. `other`: each family of it goes by another session too, which stays; else nothing is withdrawn.
    pub fn peer(&self, name: &str, now: u64, other: bool) -> Leaving {
        let is_of =
            |what: &DrainScope| matches!(what, DrainScope::Peers(names) if names.iter().any(|n| n == name));
        match self.furthest(now, is_of) {
            Leaving::Withdrawn if !other => Leaving::Marked,
            leaving => leaving,
        }
    }

    /// The same of the annotation alone.
    pub fn annotated(&self, name: &str, now: u64) -> Leaving {
        Self { command: None, annotation: self.annotation.clone() }.peer(name, now, true)
    }

    fn furthest(&self, now: u64, concerns: impl Fn(&DrainScope) -> bool) -> Leaving {
        let of = self.all().filter(|drain| concerns(&drain.what)).map(|drain| drain.leaving(now));
        of.fold(Leaving::No, |furthest, next| match (furthest, next) {
            (Leaving::Withdrawn, _) | (_, Leaving::Withdrawn) => Leaving::Withdrawn,
            (Leaving::Marked, _) | (_, Leaving::Marked) => Leaving::Marked,
            (Leaving::No, Leaving::No) => Leaving::No,
        })
    }
}

/// `true`, or names of peers. `false` and nothing at all are no wish.
fn scope(text: &str) -> Option<DrainScope> {
    let names: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match names.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["false"] => None,
        ["true"] => Some(DrainScope::Services),
        _ => Some(DrainScope::Peers(names)),
    }
}

/// The first of the families that is to be left and that none carries of those that stay.
pub fn uncarried(
    mut left: impl Iterator<Item = Family>,
    stay: impl Iterator<Item = Family> + Clone,
) -> Option<Family> {
    left.find(|family| !stay.clone().any(|other| other == *family))
}

/// The routes as far as they are left.
pub fn leave(routes: Routes, leaving: Leaving) -> Routes {
    match leaving {
        Leaving::No => routes,
        Leaving::Withdrawn => Routes::new(),
        Leaving::Marked => routes
            .into_iter()
            .map(|(prefix, mut attributes)| {
                attributes.communities.push(GRACEFUL_SHUTDOWN);
                (prefix, attributes)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bgp::RouteAttributes;

    fn request(what: DrainScope, withdraw_after: u64) -> DrainRequest {
        DrainRequest { what, withdraw_after, undo: false }
    }

    #[test]
    fn services_are_marked_and_then_withdrawn_and_blocks_stay() {
        let mut drains = Drains::default();
        drains.command(&request(DrainScope::Services, 60), 1000);
        for (now, expected) in [(1000, Leaving::Marked), (1059, Leaving::Marked), (1060, Leaving::Withdrawn)]
        {
            assert_eq!((drains.services(now), drains.blocks(now)), (expected, Leaving::No));
        }
        // A clock that was set back withdraws nothing anew and forgets nothing.
        assert_eq!(drains.services(10), Leaving::Marked);
        drains.command(&request(DrainScope::Services, u64::MAX), 2000);
        assert_eq!(drains.services(u64::MAX - 1), Leaving::Marked, "never");
        drains.command(&DrainRequest { undo: true, ..request(DrainScope::Services, 60) }, 2000);
        assert_eq!(drains, Drains::default());
    }

    #[test]
    fn everything_takes_the_blocks_along() {
        let mut drains = Drains::default();
        drains.command(&request(DrainScope::All, 0), 1000);
        assert_eq!((drains.services(1000), drains.blocks(1000)), (Leaving::Withdrawn, Leaving::Withdrawn));
    }

    #[test]
    fn the_last_way_out_is_marked_and_never_withdrawn() {
        let mut drains = Drains::default();
        drains.command(&request(DrainScope::Peers(vec!["leaf-a".into()]), 10), 1000);
        assert_eq!(drains.peer("leaf-a", 1010, true), Leaving::Withdrawn);
        assert_eq!(drains.peer("leaf-a", 1010, false), Leaving::Marked);
        assert_eq!(drains.peer("leaf-b", 1010, true), Leaving::No);
    }

    #[test]
    fn a_session_of_one_family_is_no_other_way_for_the_other() {
        let (v4, v6) = ([Family::Ipv4Unicast], [Family::Ipv6Unicast]);
        let uncarried =
            |left: &[Family], stay: &[Family]| uncarried(left.iter().copied(), stay.iter().copied());
        assert_eq!(uncarried(&v4, &v6), Some(Family::Ipv4Unicast));
        assert_eq!(uncarried(&Family::ALL, &v4), Some(Family::Ipv6Unicast));
        assert_eq!(uncarried(&v4, &[]), Some(Family::Ipv4Unicast));
        assert_eq!(uncarried(&v4, &Family::ALL), None);
        assert_eq!(uncarried(&Family::ALL, &[v6, v4].concat()), None, "one each");
    }

    #[test]
    fn a_peer_that_the_annotation_drains_is_known_beside_the_command() {
        let mut drains = Drains::default();
        drains.annotate(Some("leaf-a"), 1000);
        drains.command(&request(DrainScope::Peers(vec!["leaf-b".into()]), 0), 1000);
        assert_eq!(
            (drains.annotated("leaf-a", 1000), drains.annotated("leaf-b", 1000)),
            (Leaving::Marked, Leaving::No)
        );
    }

    #[test]
    fn an_annotation_counts_from_when_it_was_first_seen() {
        let mut drains = Drains::default();
        drains.annotate(Some("true"), 1000);
        drains.annotate(Some("true"), 1050);
        assert_eq!((drains.services(1059), drains.services(1060)), (Leaving::Marked, Leaving::Withdrawn));
        drains.annotate(Some("leaf-a, leaf-b"), 1060);
        assert_eq!(
            (drains.services(1200), drains.peer("leaf-b", 1061, true)),
            (Leaving::No, Leaving::Marked)
        );
        for nothing in [None, Some(""), Some("false")] {
            drains.annotate(nothing, 1061);
            assert_eq!(drains, Drains::default(), "{nothing:?}");
            drains.annotate(Some("true"), 1061);
        }
    }

    #[test]
    fn what_is_marked_keeps_what_it_has() {
        let attributes = RouteAttributes { communities: vec![7], ..RouteAttributes::default() };
        let routes = Routes::from([("10.96.0.0/16".parse().unwrap(), attributes)]);
        let marked = leave(routes.clone(), Leaving::Marked);
        assert_eq!(marked.into_values().next().unwrap().communities, [7, GRACEFUL_SHUTDOWN]);
        assert_eq!(leave(routes.clone(), Leaving::No), routes);
        assert_eq!(leave(routes, Leaving::Withdrawn), Routes::new());
    }
}
