//! The matrix as a table of the docs.

use crate::{Cell, Row};
use bulkhead_lab::{Result, unmet};
use std::fmt::Write;

const PAGE: &str = include_str!("../../../docs/bgp-matrix.md");

pub fn check(rows: &[&Row]) -> Result<()> {
    let table = render(rows);
    if PAGE.contains(&table) {
        return Ok(());
    }
    let missing = table.lines().find(|line| !PAGE.lines().any(|other| other == *line));
    unmet(format!("docs/bgp-matrix.md differs, first at {missing:?}; it should hold:\n{table}"))
}

fn render(rows: &[&Row]) -> String {
    let mut table =
        "| feature | RFC | BIRD 2.0.12 | FRR 8.4 | GoBGP 3.10 |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for row in rows {
        let cells = row.cells.map(|cell| match cell {
            Cell::Tested(_) => "✓",
            Cell::Lacks(why) => why,
        });
        let _ = writeln!(table, "| {} | {} | {} |", row.feature, row.rfc, cells.join(" | "));
    }
    table
}
