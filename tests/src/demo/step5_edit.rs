//! A rule is edited in its file: the new one holds at once, a connection that is no longer allowed is cut, others lose nothing.

use super::{
    Held,
    flows::{Flows, admitted, cut},
    matrix::grouped,
};
use crate::{Lab, Pod, Result, figure::Figure, traffic::Connection, unmet};
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

const FILE: &str = "payments.yaml";
const BEFORE: &str = "{port: 8000, endPort: 8090}";
const AFTER: &str = "{port: 8081, endPort: 8091}";
/// Allowed by the rule as it was, and no longer.
const LOST: u16 = 8080;
/// Allowed by the rule as it becomes, and not before.
const WON: u16 = 8091;
const DEADLINE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);

pub fn run(lab: &mut Lab) -> Result<Held> {
    let original = lab.objects.read(FILE)?;
    let edited = original.replacen(BEFORE, AFTER, 1);
    if edited == original {
        return unmet(format!("{FILE} does not say `{BEFORE}`"));
    }
    let outcome = edit(lab, &edited);
    // The steps that follow count on the rule as it was.
    lab.objects.write(FILE, &original)?;
    let held = outcome?;
    let (front, [db, far]) = ends(lab)?;
    for db in [db, far] {
        admitted(&front.netns, &db.netns, SocketAddr::new(db.v4.into(), LOST), DEADLINE)?;
    }
    Ok(held)
}

/// The caller, and the called on the same node and on the other one.
fn ends(lab: &Lab) -> Result<(&Pod, [&Pod; 2])> {
    Ok((lab.pod("web/front-0")?, [lab.pod("payments/db-0")?, lab.pod("payments/db-1")?]))
}

fn edit(lab: &Lab, text: &str) -> Result<Held> {
    let (front, called) = ends(lab)?;
    let [db, far] = called;
    let mut unrelated = Flows::default();
    unrelated.tcp("vm → db-0", &lab.vm.netns, &db.netns, SocketAddr::new(db.v4.into(), 20880))?;
    let other = lab.pod("web/front-1")?;
    unrelated.tcp("front-0 → front-1", &front.netns, &other.netns, SocketAddr::new(other.v6.into(), 7000))?;
    // Under the same rule, on a port that stays allowed: decided anew, and goes on.
    unrelated.udp("front-0 → db-1", &front.netns, &far.netns, SocketAddr::new(far.v4.into(), 9125))?;
    let doomed = called
        .iter()
        .map(|db| {
            Connection::start(
                &front.netns,
                &db.netns,
                SocketAddr::new(db.v4.into(), LOST),
                Duration::from_millis(1),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    unrelated.all_move()?;

    let (written, admissions) = thread::scope(|scope| {
        let callers = called.map(|db| {
            let address = SocketAddr::new(db.v4.into(), WON);
            scope.spawn(move || admitted(&front.netns, &db.netns, address, DEADLINE))
        });
        // The callers must have been refused before the write.
        thread::sleep(Duration::from_millis(50));
        let written = lab.objects.write(FILE, text)?;
        let admissions = callers
            .into_iter()
            .map(|c| c.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect::<Result<Vec<_>>>()?;
        Ok::<_, crate::Error>((written, admissions))
    })?;
    let mut cuts = Vec::new();
    for (connection, db) in doomed.iter().zip(called) {
        cuts.push(cut(&format!("front-0 → {}", db.name), connection, SILENCE, DEADLINE)?);
    }
    refused_now(front, &called)?;
    unrelated.all_move()?;
    let delivered = unrelated.finish()?;
    let (held, cut) = (latest(written, &admissions), latest(written, &cuts));
    Ok(Held {
        figure: format!(
            "held {held:.0} ms after the write; {} connections cut after {cut:.0} ms; {} others lost 0 of {} bytes",
            doomed.len(),
            delivered.flows,
            grouped(delivered.bytes + delivered.packets * 8),
        ),
        figures: vec![Figure::new("edit_to_enforcement", held, "ms"), Figure::new("edit_to_cut", cut, "ms")],
        ..Held::default()
    })
}

/// Milliseconds.
fn latest(from: Instant, moments: &[Instant]) -> f64 {
    let longest = moments.iter().map(|m| m.saturating_duration_since(from)).max().unwrap_or_default();
    longest.as_secs_f64() * 1e3
}

fn refused_now(front: &Pod, called: &[&Pod]) -> Result<()> {
    for db in called {
        let address = SocketAddr::new(db.v6.into(), LOST);
        if admitted(&front.netns, &db.netns, address, Duration::from_millis(200)).is_ok() {
            return unmet(format!("a new connection to {address} is still let in"));
        }
    }
    Ok(())
}
