//! The classes of all ports of one policy as pages: few of them are different.

use super::{
    ports::{PortClasses, Run},
    spans::{Hashed, Map},
};
use bulkhead_ebpf_abi::{PORT_SLOTS, PortPage};

pub(crate) const PAGE: usize = 256;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PortTable {
    pub runs: Hashed<Vec<Run>>,
    /// Each once.
    pub pages: Vec<Hashed<PortPage>>,
    /// By slot and the high byte of the port: an index into `pages`.
    pub of_ports: Vec<u16>,
}

impl PortTable {
    pub fn of(ports: &PortClasses) -> Self {
        let of_ports = Vec::with_capacity(PORT_SLOTS as usize * PAGE);
        let mut table = Self { runs: Hashed::new(ports.runs.clone()), pages: Vec::new(), of_ports };
        let mut uniform: Map<u16, u16> = Map::default();
        for slot in 0..PORT_SLOTS {
            let runs: Vec<Run> = ports.runs.iter().filter(|r| r.slot == slot).copied().collect();
            let mut run = 0;
            for first in (0..PAGE).map(|high| high * PAGE) {
                while runs.get(run + 1).is_some_and(|r| usize::from(r.first) <= first) {
                    run += 1;
                }
                let page = match runs.get(run + 1) {
                    Some(next) if usize::from(next.first) < first + PAGE => {
                        table.page(mixed(&runs[run..], first))
                    }
                    _ => {
                        let class = runs.get(run).map_or(0, |r| r.class);
                        *uniform.entry(class).or_insert_with(|| table.page([class; PAGE]))
                    }
                };
                table.of_ports.push(page);
            }
        }
        table
    }

    fn page(&mut self, page: PortPage) -> u16 {
        let page = Hashed::new(page);
        let known = self.pages.iter().position(|p| *p == page);
        let number = known.unwrap_or_else(|| {
            self.pages.push(page);
            self.pages.len() - 1
        });
        // There are no more than places that ask for one.
        number as u16
    }
}

/// The page that begins at port `first`; `runs` begins with the run that `first` is in.
fn mixed(runs: &[Run], first: usize) -> PortPage {
    let mut page = [0; PAGE];
    let mut run = 0;
    for (low, class) in page.iter_mut().enumerate() {
        while runs.get(run + 1).is_some_and(|r| usize::from(r.first) <= first + low) {
            run += 1;
        }
        *class = runs[run].class;
    }
    page
}
