//! What the speaker does with each of three routers: one row for each feature, one cell for each router, and each cell is
//! tested here or says which side lacks what. `docs/bgp-matrix.md` shows the table; a cell that changes or goes is a failure.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

#[path = "bgp_matrix/attributes.rs"]
mod attributes;
#[path = "bgp_matrix/recorded.rs"]
mod recorded;
#[path = "bgp_matrix/restarts.rs"]
mod restarts;
#[path = "bgp_matrix/routes.rs"]
mod routes;
#[path = "bgp_matrix/sessions.rs"]
mod sessions;
#[path = "bgp_matrix/table.rs"]
mod table;

use bulkhead_lab::bgp::{
    Kind,
    site::{Site, speaker_process},
};
use bulkhead_lab::{Result, enter};
use libtest_mimic::{Arguments, Failed, Trial};
use std::env;

/// What one cell proves, with that router.
type Test = fn(&Site, Kind) -> Result<()>;

#[derive(Clone, Copy)]
enum Cell {
    Tested(Test),
    /// Which side lacks it, and what that means.
    Lacks(&'static str),
}

struct Row {
    feature: &'static str,
    rfc: &'static str,
    /// In the order of [`Kind::ALL`].
    cells: [Cell; 3],
}

const fn all(feature: &'static str, rfc: &'static str, test: Test) -> Row {
    Row { feature, rfc, cells: [Cell::Tested(test); 3] }
}

impl Row {
    const fn without(mut self, kind: Kind, why: &'static str) -> Row {
        self.cells[kind as usize] = Cell::Lacks(why);
        self
    }
}

fn rows() -> Vec<&'static Row> {
    let all = [sessions::ROWS, attributes::ROWS, routes::ROWS, restarts::ROWS, recorded::ROWS];
    all.into_iter().flatten().collect()
}

fn main() -> Result<()> {
    if let Some(role) = env::args().nth(1).and_then(|role| role.strip_prefix("speaker:").map(str::to_owned)) {
        return speaker_process(&role);
    }
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let mut trials = vec![Trial::test("the matrix in the docs is the one that is tested", || {
        table::check(&rows()).map_err(Failed::from)
    })];
    let mut number = 0;
    for row in rows() {
        for (kind, cell) in Kind::ALL.into_iter().zip(row.cells) {
            let Cell::Tested(test) = cell else { continue };
            number += 1;
            // A namespace is known by its name.
            let place = format!("{number}{kind}");
            let run = move || Site::create(&place).and_then(|site| test(&site, kind)).map_err(Failed::from);
            trials.push(Trial::test(format!("{} × {kind}", row.feature), run));
        }
    }
    for kind in Kind::ALL {
        number += 1;
        let place = format!("{number}{kind}");
        let run = move || {
            Site::create(&place).and_then(|site| recorded::messages(&site, kind)).map_err(Failed::from)
        };
        trials.push(Trial::test(format!("every message at the start of a session is read × {kind}"), run));
    }
    libtest_mimic::run(&arguments, trials).exit()
}
