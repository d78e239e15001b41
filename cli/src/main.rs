//! `bulkhead`: the command line for people.
//!
//! One request to the daemon of this node, one answer shown. It must hold no opinion of its own on what the daemon
//! says: whoever wants more than a table takes `-o json`.
//!
//! Exit status: 0 done (`explain` also when the answer is "denied"), 1 the daemon refused, 2 wrong usage or no answer.

mod args;
mod paint;
mod table;
mod units;
mod views;

use args::{Args, BgpCommand, Command, Output, PolicyCommand};
use bulkhead_api::{
    client::{self, ClientError},
    messages::Rollback,
};
use clap::Parser;
use paint::Paint;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The daemon answers from memory.
const DEADLINE: Duration = Duration::from_secs(10);

const REFUSED: u8 = 1;
const UNREACHABLE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(text) => match show(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(UNREACHABLE),
        },
        Err(e) => {
            eprintln!("bulkhead: {e}{}", hint(&e));
            ExitCode::from(if matches!(e, ClientError::Refused(_)) { REFUSED } else { UNREACHABLE })
        }
    }
}

/// What to print.
fn run(args: &Args) -> Result<String, ClientError> {
    let paint = Paint::for_terminal(io::stdout().is_terminal(), std::env::var_os("NO_COLOR"));
    match &args.command {
        Command::Status => get(args, "/v1/status", |s| views::status(s, now(), paint)),
        Command::Endpoints => get(args, "/v1/endpoints", |e: &Vec<_>| views::endpoints(e, paint)),
        Command::Partitions => get(args, "/v1/partitions", |p: &Vec<_>| views::partitions(p, paint)),
        Command::Drops => get(args, "/v1/drops", |d: &Vec<_>| views::drops(d, paint)),
        Command::Explain(explain) => {
            let request = explain.request().unwrap_or_else(|e| e.exit());
            ask(args, "/v1/explain", Some(&request), |e| views::explain(e, paint))
        }
        Command::Policy(PolicyCommand::Generations) => {
            get(args, "/v1/policy/generations", |g: &Vec<_>| views::generations(g, now(), paint))
        }
        Command::Policy(PolicyCommand::Rollback { to }) => {
            let request = Rollback { to: *to };
            ask(args, "/v1/policy/rollback", Some(&request), views::generation)
        }
        Command::Policy(PolicyCommand::Release) => {
            let nothing = serde_json::Map::new();
            ask(args, "/v1/policy/release", Some(&nothing), views::generation)
        }
        Command::Bgp(BgpCommand::Peers) => {
            get(args, "/v1/bgp/peers", |p: &Vec<_>| views::bgp_peers(p, paint))
        }
        Command::Bgp(BgpCommand::Routes) => {
            get(args, "/v1/bgp/routes", |r: &Vec<_>| views::bgp_routes(r, paint))
        }
        Command::Bgp(BgpCommand::DrainRoutes) => {
            let nothing = serde_json::Map::new();
            ask(args, "/v1/bgp/drain-routes", Some(&nothing), |_: &serde_json::Value| views::drained())
        }
    }
}

fn get<R: DeserializeOwned + Serialize>(
    args: &Args,
    path: &str,
    view: impl Fn(&R) -> String,
) -> Result<String, ClientError> {
    ask::<(), R>(args, path, None, view)
}

fn ask<B: Serialize, R: DeserializeOwned + Serialize>(
    args: &Args,
    path: &str,
    body: Option<&B>,
    view: impl Fn(&R) -> String,
) -> Result<String, ClientError> {
    let reply: R = client::request(&args.socket, path, body, DEADLINE)?;
    Ok(match args.output {
        Output::Table => view(&reply),
        Output::Json => serde_json::to_string_pretty(&reply).map_err(io::Error::from)? + "\n",
    })
}

/// A reader that has seen enough (`| head`) is no error.
fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn hint(error: &ClientError) -> &'static str {
    match error {
        ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "\nhint: the socket belongs to root"
        }
        ClientError::Connect { .. } => {
            "\nhint: does bulkheadd run on this node? --socket names another socket"
        }
        _ => "",
    }
}

/// Unix time, seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
