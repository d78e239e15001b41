//! What a packet's way between two pods of one node costs, beside other ways to connect two namespaces.
//!
//! ```text
//! bulkhead   two pods of isolated partitions, a rule admits one to the other's port
//! bridge     two ports of a Linux bridge, no policy at all
//! set        a routing node, nftables: established by conntrack, the rest by one interval set
//! linear     10,000 rules in a row that each packet passes, as a list without conntrack has it
//! behind     the same list behind conntrack: the first packet of a connection passes it
//! redirect   programs at the hooks of ours that do nothing but a peer redirect: as fast as eBPF there gets
//! tracker    the same, with the least that keeps connections: one look-up a packet, an entry made and removed
//! ```
//! Both ends share one processor (two are slower by far, and noisy). Slices of milliseconds, by turns and in changing order;
//! each is compared with its neighbours of the same round, and the median of these ratios counts. The lists take turns with
//! us alone: a slice behind 10,000 rules leaves the caches to them, and whoever comes next is slower for it.

mod pair;
mod places;

use crate::{Lab, Result, figure::Figure};
use pair::{Pair, Pairs};
use places::Filter;
use std::time::Duration;

const ROUNDS: usize = 150;
/// Of a slice.
const TRIPS: u32 = 250;
const CALLS: u32 = 40;

pub fn run() -> Result<Vec<Figure>> {
    let mut lab = Lab::start()?;
    for n in 0..lab.pods.len() {
        let node = &lab.nodes[lab.pods[n].node];
        lab.pods[n].add(node)?;
    }
    let (web, db) = (lab.pod("web/front-0")?, lab.pod("payments/db-0")?);
    let bridge = places::bridge()?;
    let set = places::routed("set", Filter::IntervalSet)?;
    let linear = places::routed("linear", Filter::Linear(10_000))?;
    let behind = places::routed("behind", Filter::LinearBehindConntrack(10_000))?;
    let redirect = places::redirect()?;
    let tracker = places::tracker()?;
    let ours = Pair { client: &web.netns, server: &db.netns, to: db.v4 };
    let pairs =
        [ours, bridge.pair(), set.pair(), linear.pair(), behind.pair(), redirect.pair(), tracker.pair()];
    Pairs::with(&pairs, |pairs| {
        let mut figures = Vec::new();
        let trips = both(|which| pairs.trips(which, TRIPS))?;
        figures.extend(compare(
            "round_trips",
            "per s",
            TRIPS,
            &trips,
            [Some(1.10), Some(1.2), Some(3.5), None],
        ));
        let calls = both(|which| pairs.calls(which, CALLS))?;
        figures.extend(compare(
            "connections",
            "per s",
            CALLS,
            &calls,
            [Some(1.08), Some(1.2), Some(3.5), Some(3.5)],
        ));
        Ok(figures)
    })
}

const REFERENCES: [&str; 4] = ["bridge", "interval_set", "linear_rules", "linear_rules_behind_conntrack"];
/// Ours, the references, the bare redirect, the bare tracker.
const PLACES: usize = REFERENCES.len() + 3;
const OURS: usize = 0;
const BRIDGE: usize = 1;
const SET: usize = 2;
const REDIRECT: usize = PLACES - 2;
const TRACKER: usize = PLACES - 1;
/// Those of a round have a time.
type Round = [Duration; PLACES];

/// Rounds among those that are quick, and among ours and the lists.
struct Rounds {
    quick: Vec<Round>,
    lists: Vec<Round>,
}

fn both(mut slice: impl FnMut(usize) -> Result<Duration>) -> Result<Rounds> {
    Ok(Rounds {
        quick: rounds([OURS, BRIDGE, SET, REDIRECT, TRACKER], &mut slice)?,
        lists: rounds([OURS, SET + 1, SET + 2], &mut slice)?,
    })
}

fn rounds<const N: usize>(
    places: [usize; N],
    mut slice: impl FnMut(usize) -> Result<Duration>,
) -> Result<Vec<Round>> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for n in 0..ROUNDS {
        let mut round = [Duration::ZERO; PLACES];
        for turn in 0..N {
            // Every other round backwards: nobody always comes behind the same.
            let turn = if n % 2 == 0 { turn } else { N - 1 - turn };
            let which = places[(n / 2 + turn) % N];
            round[which] = slice(which)?;
        }
        rounds.push(round);
    }
    Ok(rounds)
}

fn compare(
    what: &str,
    unit: &'static str,
    per_slice: u32,
    Rounds { quick, lists }: &Rounds,
    targets: [Option<f64>; REFERENCES.len()],
) -> Vec<Figure> {
    // Of one place beside another: the slices of each round are compared with one another.
    let beside = |name: String, place: usize, reference: usize| {
        let rounds = if (SET + 1..REDIRECT).contains(&reference) { lists } else { quick };
        let per_second = f64::from(per_slice) / median(rounds.iter().map(|r| r[place].as_secs_f64()));
        let ratio = median(rounds.iter().map(|r| r[reference].as_secs_f64() / r[place].as_secs_f64()));
        Figure::new(name, per_second, unit).beside(per_second / ratio)
    };
    let promised = REFERENCES.into_iter().zip(targets).enumerate();
    let promised = promised.map(|(n, (reference, target))| {
        let figure = beside(format!("{what}_beside_{reference}"), OURS, n + 1);
        target.map_or(figure.clone(), |least| figure.ratio_at_least(least))
    });
    promised
        .chain([
            beside(format!("{what}_beside_bare_redirect"), OURS, REDIRECT),
            beside(format!("{what}_of_bare_redirect_beside_bridge"), REDIRECT, BRIDGE),
            beside(format!("{what}_beside_bare_tracker"), OURS, TRACKER),
            beside(format!("{what}_of_bare_tracker_beside_bridge"), TRACKER, BRIDGE),
            beside(format!("{what}_of_bare_tracker_beside_interval_set"), TRACKER, SET),
        ])
        .collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
