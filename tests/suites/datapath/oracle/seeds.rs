//! Where the packets of a run come from, and which have failed before.

use std::{
    env, fs,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

/// A node of a run: its seed, and the number of its first cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub seed: u64,
    pub first: u64,
}

impl Failed {
    fn of_line(line: &str) -> Option<Self> {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            return None;
        }
        let numbers: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
        let [seed, first] = numbers[..] else {
            panic!("{}: a line is `seed first`: {line}", path().display())
        };
        Some(Self { seed, first })
    }
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/suites/datapath/oracle.regressions"))
}

/// All that have ever failed.
pub fn failed() -> Vec<Failed> {
    let text = fs::read_to_string(path()).expect("the file of regressions");
    text.lines().filter_map(Failed::of_line).collect()
}

/// Of the clock, or as told. Numbers of clusters are in the upper half.
pub fn of_this_run() -> u64 {
    match env::var("BULKHEAD_SEED") {
        Ok(seed) => seed.parse().expect("BULKHEAD_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
            u64::from(now.subsec_nanos()) ^ now.as_secs() & 0xffff_ffff
        }
    }
}

/// Does it, and keeps the seed should it fail.
pub fn kept<T>(node: Failed, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let file = fs::OpenOptions::new().append(true).open(path());
        let line = format!("{} {}\n", node.seed, node.first);
        if let Err(e) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("cannot keep `{}` in {}: {e}", line.trim(), path().display());
        }
        resume_unwind(panic)
    })
}
