//! `bulkhead-cni`: what the container runtime executes (CNI specification 0.3.1 to 1.1.0).
//!
//! Environment and configuration in, one request to the daemon, result or error out. It must never touch the network
//! itself, and never hang: whatever happens to the daemon, it answers within its deadline.
//!
//! ```text
//! environment ─ env ──┐
//!                     ├─ verbs ─ api::client ─ bulkheadd ─ result ─ standard output
//! standard input ─ config ┘  └─ queue (DEL while the daemon is down)
//! ```

mod config;
mod env;
mod error;
mod queue;
mod result;
mod verbs;

use bulkhead_api::messages::{ErrorReply, code};
use config::{Config, Version};
use serde_json::Value;
use std::{
    io::{Read, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let mut version = Version::NEWEST;
    let (output, status) = match run(&mut version) {
        Ok(result) => (result, ExitCode::SUCCESS),
        Err(e) => (Some(error::object(&e, version)), ExitCode::FAILURE),
    };
    match output.map(print) {
        Some(Err(_)) => ExitCode::FAILURE,
        _ => status,
    }
}

/// `version` becomes the caller's as soon as it is known, so that errors too speak it.
fn run(version: &mut Version) -> Result<Option<Value>, ErrorReply> {
    let call = env::read(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))?;
    if call == env::Call::Version {
        return Ok(Some(result::versions()));
    }
    let mut input = Vec::new();
    std::io::stdin()
        .read_to_end(&mut input)
        .map_err(|e| error::new(code::IO_FAILURE, "cannot read the configuration from standard input", e))?;
    *version = config::version(&input)?;
    let config = Config::parse(&input, *version)?;
    verbs::run(call, &config)
}

fn print(value: Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value:#}")?;
    out.flush()
}
