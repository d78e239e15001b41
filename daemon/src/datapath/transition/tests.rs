use super::*;
use bulkhead_ebpf_abi::IDENTITY_LOCAL_POD;

fn id(id: u32) -> Identity {
    Identity { id, flags: 0 }
}

fn v4(last: u8) -> Addr {
    Addr::v4([10, 0, 0, last])
}

fn known(prefixes: &[(Prefix, Identity)], exact: &[(Addr, Identity)]) -> Identities {
    Identities::of(prefixes.iter().copied().collect(), exact.iter().copied().collect())
}

fn plan(old: &Identities, new: &Identities, running: &[u32], next: &[u32]) -> Transition {
    let wanted = Wanted { prefixes: &new.prefixes, exact: &new.exact, pods: &BTreeMap::new() };
    Transition::of(old, &wanted, &Classes { running, next, room: 64, turn: 0, marks: &[] })
}

#[test]
fn a_new_identity_means_in_the_running_generation_what_its_address_meant() {
    let old = known(&[((v4(0), 120), id(20)), ((Addr::default(), 0), id(16))], &[]);
    let mut new = old.clone();
    new.prefixes.insert((v4(64), 122), id(30));
    new.exact.insert(Addr::v4([192, 0, 2, 1]), id(31));
    let mut classes = vec![0; 21];
    (classes[16], classes[20]) = (3, 7);
    let plan = plan(&old, &new, &classes, &[]);
    assert_eq!(plan.running, [(30, 7), (31, 3)].into());
    assert_eq!((plan.next, plan.after), Default::default());
}

#[test]
fn addresses_of_a_new_identity_that_were_different_keep_their_meanings_until_the_switch() {
    let old = known(&[((v4(0), 120), id(2))], &[]);
    let mut new = old.clone();
    new.exact.insert(v4(1), id(9));
    new.exact.insert(Addr::v4([192, 0, 2, 1]), id(9));
    let plan = plan(&old, &new, &[5, 6, 7], &[5, 6, 7, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(plan.running, [(9, 7), (62, 6)].into());
    assert_eq!(plan.next, [(62, 8)].into());
    assert_eq!(plan.after.exact, [(Addr::v4([192, 0, 2, 1]), Some(id(9)))]);
}

#[test]
fn an_identity_that_addresses_have_keeps_its_class() {
    let old = known(&[], &[(v4(1), id(2))]);
    let new = known(&[], &[(v4(1), id(2)), (v4(2), id(2))]);
    let plan = plan(&old, &new, &[0, 0, 4], &[0, 0, 4]);
    assert_eq!((plan.running, plan.next), ([(62, 0)].into(), [(62, 4)].into()));
}

#[test]
fn a_number_given_out_again_means_in_the_running_generation_what_its_address_meant() {
    let old = known(&[((v4(0), 120), id(2))], &[]);
    let mut new = old.clone();
    // The running generation has a class for each, which was another's.
    new.exact.insert(v4(1), id(3));
    new.exact.insert(v4(2), id(4));
    assert_eq!(plan(&old, &new, &[0, 0, 5, 0, 9], &[]).running, [(3, 5), (4, 5)].into());
}

#[test]
fn two_turns_have_no_spare_number_in_common() {
    let old = known(&[], &[(v4(1), id(2)), (v4(2), id(3))]);
    let new = known(&[], &[(v4(1), id(3)), (v4(2), id(2))]);
    let wanted = Wanted { prefixes: &new.prefixes, exact: &new.exact, pods: &BTreeMap::new() };
    let classes = [0, 0, 1, 2];
    let spare = |turn| {
        let classes = Classes { running: &classes, next: &classes, room: 64, turn, marks: &[] };
        Transition::of(&old, &wanted, &classes).next.into_keys().collect::<HashSet<_>>()
    };
    assert_eq!(spare(0).len(), 2);
    assert!(spare(0).is_disjoint(&spare(1)));
}

#[test]
fn of_local_pods_only_what_their_own_list_says_is_changed() {
    let pod = |id| Identity { id, flags: IDENTITY_LOCAL_POD };
    let old = known(&[], &[(v4(1), pod(20)), (v4(2), pod(20))]);
    let exact: Exact = [(v4(1), id(5)), (v4(3), id(6))].into_iter().collect();
    let pods = [(v4(2), pod(21)), (v4(4), pod(21))].into();
    let wanted = Wanted { prefixes: &Prefixes::new(), exact: &exact, pods: &pods };
    let classes = Classes { running: &[], next: &[], room: 64, turn: 0, marks: &[] };
    let plan = Transition::of(&old, &wanted, &classes);
    assert_eq!(plan.before.exact, [(v4(3), Some(id(6))), (v4(2), Some(pod(21)))]);
    assert_eq!(plan.after, Entries::default());
}

#[test]
fn what_is_no_longer_wanted_is_removed() {
    let old = known(&[((v4(0), 120), id(2))], &[(v4(1), id(3))]);
    let plan = plan(&old, &Identities::default(), &[], &[]);
    assert_eq!(plan.after.prefixes, [((v4(0), 120), None)]);
    assert_eq!(plan.after.exact, [(v4(1), None)]);
    assert_eq!(plan.before, Entries::default());
}
