//! What stands in the table after what was said.

use super::*;
use crate::wire::{AsPath, Reach};

fn loops() -> Loops {
    Loops { asns: vec![65010], allowed: 0, router_id: Ipv4Addr::new(10, 0, 0, 10) }
}

fn take(rib: &mut AdjRibIn, update: Update) {
    rib.apply(update, &Family::ALL, &mut Changed::default());
}

fn announce(prefix: &str, path: &[u32]) -> Update {
    let attributes = Attributes { as_path: AsPath::sequence(path), ..Attributes::default() };
    let prefix: IpNetwork = prefix.parse().unwrap();
    let next_hop = IpAddr::from([192, 0, 2, 1]);
    Update::announce(attributes, Reach::new(Family::of(&prefix), next_hop, vec![prefix]))
}

fn rib(prefixes: &[&str]) -> AdjRibIn {
    let mut rib = AdjRibIn::new(loops());
    prefixes.iter().for_each(|prefix| take(&mut rib, announce(prefix, &[65020])));
    rib
}

fn held(rib: &AdjRibIn) -> Vec<(String, bool)> {
    rib.first(usize::MAX).into_iter().map(|route| (route.prefix.to_string(), route.stale)).collect()
}

fn fresh(prefix: &str) -> (String, bool) {
    (prefix.to_owned(), false)
}

fn stale(prefix: &str) -> (String, bool) {
    (prefix.to_owned(), true)
}

#[test]
fn a_route_through_our_own_as_is_a_loop_and_replaces_what_was_there() {
    let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24"]);
    take(&mut rib, announce("10.0.0.0/24", &[65020, 65010, 65030]));
    assert_eq!(held(&rib), [fresh("10.0.1.0/24")]);
}

#[test]
fn somebody_elses_host_route_through_our_own_as_is_known_and_never_used() {
    let mut rib = rib(&[]);
    let path = [65020, 65010];
    for prefix in ["10.0.0.7/32", "2001:db8::7/128", "10.0.0.0/26"] {
        take(&mut rib, announce(prefix, &path));
    }
    let looped = |rib: &AdjRibIn, prefix: &str| -> Vec<(String, bool)> {
        let routes = rib.looped(&prefix.parse().unwrap()).into_iter();
        routes.map(|route| (route.prefix.to_string(), route.stale)).collect()
    };
    assert_eq!((held(&rib), rib.len()), (vec![], 0));
    assert_eq!(looped(&rib, "10.0.0.7/32"), [fresh("10.0.0.7/32")]);
    assert_eq!((looped(&rib, "10.0.0.0/26"), looped(&rib, "10.0.0.8/32")), (vec![], vec![]));
    // Kept while the neighbour restarts, as routes are, and gone when it does not say it again.
    rib.mark_stale(&[Family::Ipv4Unicast], &mut Changed::default());
    assert_eq!(looped(&rib, "2001:db8::7/128"), []);
    assert_eq!((rib.has_stale(), looped(&rib, "10.0.0.7/32")), (true, vec![stale("10.0.0.7/32")]));
    take(&mut rib, announce("10.0.0.7/32", &path));
    rib.sweep(Family::Ipv4Unicast, &mut Changed::default());
    assert_eq!(looped(&rib, "10.0.0.7/32"), [fresh("10.0.0.7/32")]);
    // By another way it is a route like any other; and it can be taken back.
    take(&mut rib, announce("10.0.0.7/32", &[65020]));
    assert_eq!((held(&rib), looped(&rib, "10.0.0.7/32")), (vec![fresh("10.0.0.7/32")], vec![]));
    take(&mut rib, announce("10.0.0.7/32", &path));
    take(&mut rib, Update::withdraw(Family::Ipv4Unicast, vec!["10.0.0.7/32".parse().unwrap()]));
    assert_eq!((held(&rib), looped(&rib, "10.0.0.7/32")), (vec![], vec![]));
}

#[test]
fn a_family_that_was_not_negotiated_is_passed_over() {
    let mut rib = rib(&[]);
    rib.apply(announce("2001:db8::/64", &[65020]), &[Family::Ipv4Unicast], &mut Changed::default());
    assert!(rib.is_empty());
}

#[test]
fn a_withdrawal_removes() {
    let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24"]);
    take(&mut rib, Update::withdraw(Family::Ipv4Unicast, vec!["10.0.0.0/24".parse().unwrap()]));
    assert_eq!(held(&rib), [fresh("10.0.1.0/24")]);
}

#[test]
fn what_is_not_announced_again_until_end_of_rib_goes() {
    let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24", "2001:db8::/64"]);
    rib.mark_stale(&Family::ALL, &mut Changed::default());
    assert!(rib.has_stale());
    take(&mut rib, announce("10.0.0.0/24", &[65020]));
    rib.sweep(Family::Ipv4Unicast, &mut Changed::default());
    assert_eq!(held(&rib), [fresh("10.0.0.0/24"), stale("2001:db8::/64")]);
}

#[test]
fn a_second_restart_takes_what_the_first_left_stale() {
    let mut rib = rib(&["10.0.0.0/24", "10.0.1.0/24"]);
    rib.mark_stale(&[Family::Ipv4Unicast], &mut Changed::default());
    take(&mut rib, announce("10.0.1.0/24", &[65020]));
    rib.mark_stale(&[Family::Ipv4Unicast], &mut Changed::default());
    assert_eq!(held(&rib), [stale("10.0.1.0/24")]);
    rib.mark_stale(&[Family::Ipv6Unicast], &mut Changed::default());
    assert!(rib.is_empty());
}

#[test]
fn ones_own_routes_are_known_by_path_originator_and_cluster() {
    let attributes = Attributes { as_path: AsPath::sequence([65020]), ..Attributes::default() };
    let ours = Ipv4Addr::new(10, 0, 0, 10);
    let path = |asns: &[u32]| Attributes { as_path: AsPath::sequence(asns), ..attributes.clone() };
    let is_loop = |allowed, attributes: &Attributes| Loops { allowed, ..loops() }.is_loop(attributes);
    assert!(!is_loop(0, &attributes));
    assert!(is_loop(0, &path(&[65020, 65010])) && !is_loop(1, &path(&[65020, 65010])));
    assert!(is_loop(1, &path(&[65010, 65020, 65010])), "allowed once, seen twice");
    assert!(is_loop(9, &Attributes { originator: Some(ours), ..attributes.clone() }));
    assert!(is_loop(9, &Attributes { cluster_list: vec![1, ours.to_bits()], ..attributes.clone() }));
    assert!(!is_loop(0, &Attributes { cluster_list: vec![1], ..attributes }));
}

fn with_paths(prefix: &str, path_ids: &[u32]) -> Update {
    let mut update = announce(prefix, &[65020]);
    let reach = &mut update.announced.as_mut().unwrap().reach[0];
    reach.prefixes = vec![reach.prefixes[0]; path_ids.len()];
    reach.path_ids = path_ids.to_vec();
    update
}

#[test]
fn paths_of_one_prefix_stand_beside_each_other_and_go_one_by_one() {
    for prefix in ["10.0.0.0/24", "2001:db8::/64"] {
        let net: IpNetwork = prefix.parse().unwrap();
        let mut rib = rib(&[]);
        take(&mut rib, with_paths(prefix, &[3, 1, 2, 1]));
        let ids = |rib: &AdjRibIn| rib.paths(&net).iter().map(|route| route.path_id).collect::<Vec<_>>();
        assert_eq!((ids(&rib), rib.len()), (vec![1, 2, 3], 3));
        let mut gone = Update::withdraw(Family::of(&net), vec![net]);
        gone.unreach[0].path_ids = vec![2];
        take(&mut rib, gone);
        assert_eq!(ids(&rib), [1, 3]);
        rib.begin_refresh(Family::of(&net));
        take(&mut rib, with_paths(prefix, &[3]));
        rib.sweep(Family::of(&net), &mut Changed::default());
        assert_eq!(ids(&rib), [3]);
    }
}

#[test]
fn what_changed_is_told_to_those_who_ask() {
    let mut rib = rib(&["10.0.0.0/24"]);
    let net = |text: &str| text.parse::<IpNetwork>().unwrap();
    let mut told = Changed::watched();
    rib.apply(announce("10.0.1.0/24", &[65020]), &Family::ALL, &mut told);
    rib.begin_refresh(Family::Ipv4Unicast);
    rib.apply(announce("10.0.1.0/24", &[65020]), &Family::ALL, &mut told);
    rib.sweep(Family::Ipv4Unicast, &mut told);
    assert_eq!(told.into_prefixes(), ["10.0.1.0/24", "10.0.1.0/24", "10.0.0.0/24"].map(net));
}

#[test]
fn long_lived_routes_carry_the_mark_and_those_that_forbid_it_go() {
    let mut rib = rib(&["10.0.0.0/24"]);
    let mut forbidding = announce("10.0.1.0/24", &[65020]);
    forbidding.announced.as_mut().unwrap().attributes.communities = vec![NO_LLGR];
    take(&mut rib, forbidding);
    rib.mark_stale(&Family::ALL, &mut Changed::default());
    for _ in 0..2 {
        rib.make_long_lived(Family::Ipv4Unicast, &mut Changed::default());
    }
    assert_eq!(held(&rib), [stale("10.0.0.0/24")]);
    assert_eq!(rib.first(usize::MAX)[0].path.attributes.communities, [LLGR_STALE]);
}

#[test]
fn long_lived_routes_share_their_path_as_before() {
    let mut rib = rib(&[]);
    // In turns, as they may stand in a table.
    for path in [65020, 65021] {
        let mut two = announce("10.0.0.0/24", &[path]);
        let prefixes = ["0", "1"].map(|n| format!("10.{}.{n}.0/24", path - 65000));
        two.announced.as_mut().unwrap().reach[0].prefixes = prefixes.map(|p| p.parse().unwrap()).into();
        take(&mut rib, two);
    }
    rib.mark_stale(&Family::ALL, &mut Changed::default());
    rib.make_long_lived(Family::Ipv4Unicast, &mut Changed::default());
    let [a, b, c, d] = &rib.first(usize::MAX)[..] else { panic!("four routes") };
    assert!(Arc::ptr_eq(&a.path, &b.path) && Arc::ptr_eq(&c.path, &d.path) && !Arc::ptr_eq(&b.path, &c.path));
    for route in [a, b, c, d] {
        assert!(route.stale);
        assert_eq!(route.path.attributes.communities, [LLGR_STALE]);
    }
}

#[test]
fn the_first_routes_are_those_with_the_lowest_prefixes_however_many_there_are() {
    let prefixes: Vec<String> = (0..200).map(|n| format!("10.{}.0.0/16", (n * 77) % 200)).collect();
    let rib = rib(&prefixes.iter().map(String::as_str).collect::<Vec<_>>());
    let first: Vec<String> = rib.first(3).iter().map(|route| route.prefix.to_string()).collect();
    assert_eq!(first, ["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!((rib.first(0).len(), rib.first(1000).len()), (0, 200));
}
