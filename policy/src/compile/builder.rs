//! Policies into tables. Equal port pages, port tables, rows and lists of rows are stored once.

use super::{
    CompileError,
    classes::Classes,
    policy::Policy,
    ports::{PortClasses, Run},
    rules::Rule,
    tiers::{self, TIERS},
};
use crate::{atom::Atom, tables::Tables};
use bulkhead_ebpf_abi::{Cell, PORT_SLOTS, PolicyDir, PortPage};
use std::collections::{BTreeSet, HashMap};

const PAGE: usize = 256;

pub(crate) struct Builder<'a> {
    classes: &'a Classes,
    tables: Tables,
    port_tables: HashMap<Vec<Run>, u32>,
    pages: HashMap<PortPage, u32>,
    /// Pages of one class throughout: most of them.
    uniform_pages: HashMap<u16, u32>,
    rows: HashMap<Vec<Cell>, u32>,
    row_lists: HashMap<Vec<u32>, u32>,
}

impl<'a> Builder<'a> {
    pub fn new(classes: &'a Classes) -> Self {
        Self {
            classes,
            tables: Tables { classes: classes.by_identity.clone(), ..Tables::default() },
            port_tables: HashMap::new(),
            pages: HashMap::new(),
            uniform_pages: HashMap::new(),
            rows: HashMap::new(),
            row_lists: HashMap::new(),
        }
    }

    pub fn finish(self) -> Tables {
        self.tables
    }

    pub fn add(&mut self, policy: &Policy) -> Result<(), CompileError> {
        let too_large = || CompileError::TooLarge { partition: policy.partition.clone() };
        let ports = PortClasses::of(&policy.partition, &policy.rules)?;
        let port_table = self.port_table(&ports.runs).ok_or_else(too_large)?;
        let rows = self.rows(policy, &ports).ok_or_else(too_large)?;
        let row_count = u32::try_from(rows.len()).map_err(|_| too_large())?;
        let row_base = self.row_list(rows).ok_or_else(too_large)?;
        let number = policy.number as usize;
        if self.tables.policies.len() <= number {
            self.tables.policies.resize(number + 1, Default::default());
        }
        self.tables.policies[number][policy.dir as usize] =
            PolicyDir { port_table, row_base, row_count, flags: policy.flags };
        Ok(())
    }

    fn port_table(&mut self, runs: &[Run]) -> Option<u32> {
        if let Some(table) = self.port_tables.get(runs) {
            return Some(*table);
        }
        let table = u32::try_from(self.tables.port_directories.len()).ok()? / PORT_SLOTS;
        for slot in 0..PORT_SLOTS {
            let runs: Vec<Run> = runs.iter().filter(|r| r.slot == slot).copied().collect();
            let mut directory = [0; PAGE];
            let mut run = 0;
            for (high, page) in directory.iter_mut().enumerate() {
                let (first, last) = (high * PAGE, high * PAGE + PAGE - 1);
                while runs.get(run + 1).is_some_and(|r| usize::from(r.first) <= first) {
                    run += 1;
                }
                *page = match runs.get(run + 1) {
                    Some(next) if usize::from(next.first) <= last => self.mixed_page(&runs[run..], first)?,
                    _ => self.uniform_page(runs.get(run).map_or(0, |r| r.class))?,
                };
            }
            self.tables.port_directories.push(directory);
        }
        self.port_tables.insert(runs.to_vec(), table);
        Some(table)
    }

    /// The page that begins at port `first`; `runs` begins with the run that `first` is in.
    fn mixed_page(&mut self, runs: &[Run], first: usize) -> Option<u32> {
        let mut page = [0; PAGE];
        let mut run = 0;
        for (low, class) in page.iter_mut().enumerate() {
            while runs.get(run + 1).is_some_and(|r| usize::from(r.first) <= first + low) {
                run += 1;
            }
            *class = runs[run].class;
        }
        self.page(page)
    }

    fn uniform_page(&mut self, class: u16) -> Option<u32> {
        if let Some(page) = self.uniform_pages.get(&class) {
            return Some(*page);
        }
        let page = self.page([class; PAGE])?;
        self.uniform_pages.insert(class, page);
        Some(page)
    }

    fn page(&mut self, page: PortPage) -> Option<u32> {
        if let Some(number) = self.pages.get(&page) {
            return Some(*number);
        }
        let number = u32::try_from(self.tables.port_pages.len()).ok()?;
        self.tables.port_pages.push(page);
        self.pages.insert(page, number);
        Some(number)
    }

    /// Offsets of rows by class, cut after the last that is not the row of class 0.
    fn rows(&mut self, policy: &Policy, ports: &PortClasses) -> Option<Vec<u32>> {
        let row = RowMaker::new(policy, ports);
        let world = self.row(row.make(&[]))?;
        let mut rows = vec![world; self.classes.atoms.len()];
        let classes = self.classes;
        let asked: BTreeSet<&Atom> = row.by_atom.keys().copied().collect();
        let touched: BTreeSet<usize> = asked.into_iter().flat_map(|a| classes.having(a)).copied().collect();
        let mut known: HashMap<Vec<usize>, u32> = HashMap::new();
        for class in touched {
            let matched = row.matched_by(&classes.atoms[class]);
            rows[class] = match known.get(&matched) {
                Some(offset) => *offset,
                None => {
                    let offset = self.row(row.make(&matched))?;
                    known.insert(matched, offset);
                    offset
                }
            };
        }
        let used = rows.iter().rposition(|r| *r != world).unwrap_or(0) + 1;
        rows.truncate(used);
        Some(rows)
    }

    fn row(&mut self, row: Vec<Cell>) -> Option<u32> {
        if let Some(offset) = self.rows.get(&row) {
            return Some(*offset);
        }
        let offset = u32::try_from(self.tables.cells.len()).ok()?;
        self.tables.cells.extend_from_slice(&row);
        self.rows.insert(row, offset);
        Some(offset)
    }

    fn row_list(&mut self, rows: Vec<u32>) -> Option<u32> {
        if let Some(base) = self.row_lists.get(&rows) {
            return Some(*base);
        }
        let base = u32::try_from(self.tables.rows.len()).ok()?;
        self.tables.rows.extend_from_slice(&rows);
        self.row_lists.insert(rows, base);
        Some(base)
    }
}

/// Makes the rows of one policy: of every port class what the tiers say together.
struct RowMaker<'a> {
    rules: &'a [Rule],
    audit: bool,
    ports: &'a PortClasses,
    /// Rules that ask for an atom, by the atom.
    by_atom: HashMap<&'a Atom, Vec<usize>>,
}

impl<'a> RowMaker<'a> {
    fn new(policy: &'a Policy, ports: &'a PortClasses) -> Self {
        let mut by_atom: HashMap<&Atom, Vec<usize>> = HashMap::new();
        for (i, rule) in policy.rules.iter().enumerate() {
            for atom in rule.peers.iter().flatten() {
                by_atom.entry(atom).or_default().push(i);
            }
        }
        Self { rules: &policy.rules, audit: policy.audit(), ports, by_atom }
    }

    /// Indices of the rules that ask for these atoms, ascending.
    fn matched_by(&self, atoms: &[Atom]) -> Vec<usize> {
        let any: BTreeSet<usize> =
            atoms.iter().filter_map(|a| self.by_atom.get(a)).flatten().copied().collect();
        let has = |i: &usize| self.rules[*i].requires.as_ref().is_none_or(|r| atoms.contains(r));
        any.into_iter().filter(has).collect()
    }

    /// `by_peer`: the rules whose peers ask for this class; those for any peer match besides.
    fn make(&self, by_peer: &[usize]) -> Vec<Cell> {
        let mut peer_matches: Vec<bool> = self.rules.iter().map(|r| r.peers.is_none()).collect();
        for rule in by_peer {
            peer_matches[*rule] = true;
        }
        // By tier, the first that matches every port.
        let mut any_port = [None; TIERS.len()];
        for (i, rule) in self.rules.iter().enumerate().rev() {
            if rule.ports.is_none() && peer_matches[i] {
                any_port[rule.tier as usize] = Some(i);
            }
        }
        let cell = |with_ports: &Vec<usize>| {
            let mut firsts = any_port;
            for i in with_ports.iter().copied().filter(|i| peer_matches[*i]) {
                let first = &mut firsts[self.rules[i].tier as usize];
                *first = Some(first.map_or(i, |f: usize| f.min(i)));
            }
            tiers::cell(self.audit, &firsts.map(|first| first.map(|i| &self.rules[i])))
        };
        self.ports.matched.iter().map(cell).collect()
    }
}
