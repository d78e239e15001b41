//! `bulkhead-bench DIRECTORY`: the figures that Bulkhead promises, as a table and as rows in `DIRECTORY/results.jsonl`.
//!
//! With `ONLY=group` in the environment that group alone. Exit code 0 only if every target is met.

/// The daemon's allocator: parts of the daemon are measured in this process.
#[path = "../../../daemon/src/memory.rs"]
mod memory;

use bulkhead_lab::{Result, bench, unmet};
use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bulkhead-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<bool> {
    let Some(directory) = env::args().nth(1) else {
        return unmet("where do the results go? bulkhead-bench DIRECTORY");
    };
    if directory == bench::RECEIVER {
        return bench::receiver().map(|()| true);
    }
    let only = env::var("ONLY").ok().filter(|name| !name.is_empty());
    bench::run(Path::new(&directory), only.as_deref())
}
