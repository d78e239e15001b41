//! A fixed address moves to another node, whatever has become of its old owner: the routers never have two ways to it. What
//! counts is what real routers have in their tables.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::Status;
use bulkhead_lab::bgp::{
    pair::{ADDRESS, Pair, Routers},
    site::DEADLINE,
};
use bulkhead_lab::{Error, Result, enter, unmet, until};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fs;

type Test = fn(&mut Pair) -> Result<()>;

const OLD: usize = 0;
const NEW: usize = 1;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let all: [(&str, Test); 7] = [
        ("in order: given back there, announced here", in_order),
        ("the old owner is dead: its route is kept for a time, and so long the new one waits", dead),
        ("the old owner is cut off from the routers, and is no owner when it comes back", cut_off),
        ("nor when it comes back without a way to the claims", cut_off_from_everything),
        ("the old owner speaks with the routers and knows of no claims: the new one waits", knows_nothing),
        ("the old owner restarts, and hears of its pod's end then", restarts),
        ("the old owner restarts, and its claim is another's", restarts_without_its_claim),
    ];
    let two: [(&str, Test); 3] = [
        ("the old owner is cut off from one of two routers, and from the claims", cut_off_from_one),
        ("the old owner is cut off from one router, and the new one from the other", cut_off_crosswise),
        ("a second session begins while the old owner waits for its claim's answer", claims_are_slow),
    ];
    let mut trials: Vec<Trial> = all.map(|(name, test)| trial(name, Routers::Bird, test)).into();
    for routers in [Routers::TwoBirds, Routers::GuideBird, Routers::GuideFrr, Routers::Gobgp] {
        trials.extend(all.map(|(name, test)| trial(name, routers, test)));
    }
    trials.extend(two.map(|(name, test)| trial(name, Routers::TwoBirds, test)));
    trials.push(trial("the old owner is known to one of them that comes back late", Routers::Range, late));
    trials.push(trial("a router that holds host routes back is named", Routers::Deaf, holds_back));
    libtest_mimic::run(&arguments, trials).exit()
}

fn trial(name: &str, routers: Routers, test: Test) -> Trial {
    let name = format!("{name} × {routers}");
    let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
    let place = place.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
    Trial::test(name, move || {
        let mut pair = Pair::create_at(&place, routers)?;
        pair.add(OLD)?;
        pair.wait_owners("at first", &["node1"])?;
        let held = test(&mut pair).and_then(|()| never_two(&pair));
        if held.is_err() {
            eprintln!("{}", pair.logs());
        }
        held.map_err(Failed::from)
    })
}

fn never_two(pair: &Pair) -> Result<()> {
    let history = pair.history()?;
    match history.iter().find(|owners| owners.len() > 1) {
        Some(both) => unmet(format!("{both:?} had a way to the address at once: {history:?}")),
        None => Ok(()),
    }
}

/// The new owner has it, and keeps it.
fn moved(pair: &Pair) -> Result<()> {
    pair.wait_owners("in the end", &["node2"])?;
    let why = pair.why(NEW)?;
    if why.contains("not announced") { unmet(why) } else { Ok(()) }
}

/// The old one knows that the address is none of its own.
fn told(pair: &Pair) -> Result<()> {
    until("the old owner's status says so", DEADLINE, || {
        let status: Status = pair.nodes[OLD].get("/v1/status")?;
        let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
        let words = format!("its fixed address 10.65.15.7 is node {}'s now", pair.nodes[NEW].name);
        if said.iter().any(|error| error.contains(&words)) {
            Ok(Some(()))
        } else {
            Err(Error::Unmet(format!("{said:?}")))
        }
    })
}

/// The claim goes with the old owner's `Node`, and the pod is made anew.
fn taken_over(pair: &mut Pair) -> Result<()> {
    pair.forget_claim()?;
    pair.add(NEW)
}

fn in_order(pair: &mut Pair) -> Result<()> {
    pair.del(OLD)?;
    pair.add(NEW)?;
    moved(pair)
}

fn dead(pair: &mut Pair) -> Result<()> {
    pair.nodes[OLD].kill_daemon()?;
    until("the router's session with the dead node is over", DEADLINE, || {
        Ok((!pair.leaf().established(OLD)?).then_some(()))
    })?;
    taken_over(pair)?;
    pair.wait_why(NEW, "in quarantine, for another node may have the address still: leaf has a way to it")?;
    let status = pair.nodes[NEW].cli(&["status"])?;
    assert!(status.contains("its fixed address 10.65.15.7 is not announced"), "{status}");
    moved(pair)
}

fn cut_off(pair: &mut Pair) -> Result<()> {
    pair.cut(OLD)?;
    taken_over(pair)?;
    pair.wait_why(NEW, "in quarantine")?;
    moved(pair)?;
    pair.mend(OLD)?;
    back_without_it(pair)
}

/// Its session is there again, and it has said all that it has.
fn back_without_it(pair: &Pair) -> Result<()> {
    told(pair)?;
    pair.leaf().wait_established(OLD)?;
    pair.leaf().wait_restarts_over()?;
    moved(pair)
}

fn cut_off_from_everything(pair: &mut Pair) -> Result<()> {
    pair.cut(OLD)?;
    pair.claims_reachable(OLD, false)?;
    taken_over(pair)?;
    moved(pair)?;
    pair.mend(OLD)?;
    pair.leaf().wait_established(OLD)?;
    pair.wait_why(OLD, "in quarantine, for another node may have the address still: leaf has a way to it")?;
    moved(pair)?;
    pair.claims_reachable(OLD, true)?;
    told(pair)
}

fn knows_nothing(pair: &mut Pair) -> Result<()> {
    pair.claims_reachable(OLD, false)?;
    taken_over(pair)?;
    pair.wait_why(NEW, "leaf has a way to it")?;
    pair.wait_owners("while nobody has told the old one", &["node1"])?;
    pair.claims_reachable(OLD, true)?;
    told(pair)?;
    moved(pair)
}

/// The other router tells of it.
fn cut_off_from_one(pair: &mut Pair) -> Result<()> {
    pair.cut_from(OLD, 0)?;
    pair.claims_reachable(OLD, false)?;
    taken_over(pair)?;
    pair.wait_tables("the first router's wait is over", &[&[], &["node1"]])?;
    pair.wait_why(NEW, "second has a way to it")?;
    pair.claims_reachable(OLD, true)?;
    told(pair)?;
    moved(pair)
}

/// Each router knows of one node alone: the new owner waits for the one that it does not speak with, and the old one has asked for its
/// claim meanwhile.
fn cut_off_crosswise(pair: &mut Pair) -> Result<()> {
    pair.cut_from(OLD, 0)?;
    pair.wait_tables("the first router's wait is over", &[&[], &["node1"]])?;
    pair.cut_from(NEW, 1)?;
    until("the new one speaks with the first router alone", DEADLINE, || {
        Ok((!pair.established(NEW, 1)?).then_some(()))
    })?;
    taken_over(pair)?;
    pair.wait_why(NEW, "there is no session with second")?;
    told(pair)?;
    pair.wait_tables("in the end", &[&["node2"], &[]])?;
    pair.mend(NEW)?;
    moved(pair)
}

/// Of a session that begins meanwhile nothing is known of the time before: it does not vouch for the address when the answer is none.
fn claims_are_slow(pair: &mut Pair) -> Result<()> {
    pair.cut(OLD)?;
    taken_over(pair)?;
    moved(pair)?;
    let claim = pair.claims_slow(OLD)?;
    pair.mend_but(OLD, 1)?;
    let asked = claim.wait_asked()?;
    pair.mend(OLD)?;
    for router in [0, 1] {
        until("the old one has sessions with both routers again", DEADLINE, || {
            Ok(pair.established(OLD, router)?.then_some(()))
        })?;
    }
    asked.answer("no claim that anybody can read")?;
    pair.wait_why(OLD, "in quarantine, for another node may have the address still: leaf has a way to it")?;
    pair.leaf().wait_restarts_over()?;
    moved(pair)?;
    pair.claims_reachable(OLD, true)?;
    told(pair)?;
    moved(pair)
}

/// The routers connect, and nobody has configured them one by one: a daemon that begins anew waits for those that were there before.
fn late(pair: &mut Pair) -> Result<()> {
    pair.claims_reachable(OLD, false)?;
    pair.cut_from(OLD, 0)?;
    pair.wait_tables("the first router's wait is over", &[&[], &["node1"]])?;
    until("the new one will remember both routers", DEADLINE, || {
        let known = fs::read_to_string(pair.nodes[NEW].state_dir().join("bgp-members.json"))?;
        Ok((known.contains("172.31.9.1") && known.contains("172.31.9.4")).then_some(()))
    })?;
    pair.nodes[NEW].kill_daemon()?;
    pair.cut_from(NEW, 1)?;
    pair.nodes[NEW].start_daemon()?;
    taken_over(pair)?;
    pair.wait_why(NEW, "there is no session with leaf[172.31.9.4]")?;
    pair.mend(NEW)?;
    pair.wait_why(NEW, "leaf[172.31.9.4] has a way to it")?;
    pair.claims_reachable(OLD, true)?;
    told(pair)?;
    moved(pair)
}

fn holds_back(pair: &mut Pair) -> Result<()> {
    let words = format!(
        "leaf tells this node of no fixed address that another node has (10.65.15.7 of node {})",
        pair.nodes[OLD].name
    );
    // A claim of a minute, and a session of one.
    until("the new one's status names the router", 4 * DEADLINE, || {
        let status: Status = pair.nodes[NEW].get("/v1/status")?;
        let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
        let named = said.iter().any(|error| error.contains(&words));
        if named { Ok(Some(())) } else { Err(Error::Unmet(format!("{said:?}"))) }
    })
}

fn restarts(pair: &mut Pair) -> Result<()> {
    pair.nodes[OLD].kill_daemon()?;
    // On disk until its daemon is back, and so is the claim.
    pair.del(OLD)?;
    let refused = pair.add(NEW).unwrap_err().to_string();
    assert!(refused.contains(&format!("{ADDRESS} of node {}", pair.nodes[OLD].name)), "{refused}");
    pair.nodes[OLD].start_daemon()?;
    until("the claim is given back", DEADLINE, || pair.add(NEW).map(Some))?;
    moved(pair)
}

fn restarts_without_its_claim(pair: &mut Pair) -> Result<()> {
    pair.nodes[OLD].kill_daemon()?;
    taken_over(pair)?;
    pair.nodes[OLD].start_daemon()?;
    back_without_it(pair)
}
