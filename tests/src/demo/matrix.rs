//! Asks cells of the reachability matrix and holds them against the table.

use super::expected::expected;
use crate::{
    Lab, Result,
    probe::{Cell, Family, Service, Verdict, probe},
    unmet,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub allowed: usize,
    pub denied: usize,
}

impl Tally {
    pub fn cells(&self) -> usize {
        self.allowed + self.denied
    }
}

/// All ordered pairs of sites, both families, each service.
pub(super) fn cells(sites: usize, services: &[Service]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for from in 0..sites {
        for to in (0..sites).filter(|to| *to != from) {
            for family in [Family::V4, Family::V6] {
                cells.extend(services.iter().map(|service| Cell { from, to, family, service: *service }));
            }
        }
    }
    cells
}

/// Every pair and family for these services; fails by naming the cells that are not as the table says.
pub(super) fn holds(lab: &Lab, services: &[Service]) -> Result<Tally> {
    holds_for(lab, &cells(lab.sites().len(), services))
}

pub(super) fn holds_for(lab: &Lab, cells: &[Cell]) -> Result<Tally> {
    let sites = lab.sites();
    let verdicts = probe(&sites, cells)?;
    let (mut tally, mut wrong) = (Tally::default(), Vec::new());
    for (cell, verdict) in cells.iter().zip(verdicts) {
        let (allowed, why) = expected(lab, cell)?;
        match (allowed, verdict) {
            (true, Verdict::Allowed) => tally.allowed += 1,
            (false, Verdict::Denied) => tally.denied += 1,
            _ => wrong.push(format!(
                "{} → {} {:?} {}: {verdict:?}, but must be {} ({why})",
                sites[cell.from].name,
                sites[cell.to].name,
                cell.family,
                cell.service,
                if allowed { "allowed" } else { "denied" },
            )),
        }
    }
    if wrong.is_empty() {
        return Ok(tally);
    }
    let shown = wrong.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
    unmet(format!("{} of {} cells are wrong:\n{shown}", wrong.len(), cells.len()))
}

/// `12345` as `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ordered_pair_is_asked_in_both_families() {
        let cells = cells(3, &[Service::Ping, Service::Tcp(1)]);
        assert_eq!(cells.len(), 3 * 2 * 2 * 2);
        assert!(cells.iter().all(|c| c.from != c.to));
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([7, 1000, 1234567].map(grouped), ["7", "1,000", "1,234,567"]);
    }
}
