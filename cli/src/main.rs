//! `bulkhead`: the command line for people.
//!
//! One request to the daemon of this node, one answer shown. It must hold no opinion of its own on what the daemon
//! says: whoever wants more than a table takes `-o json`.
//!
//! Exit status: 0 done (`explain` also when the answer is "denied"), 1 the daemon refused, 2 wrong usage or no answer.
//! `diff` as `kubectl diff`: 0 no change, 1 a change, 2 an error of any kind.

mod args;
mod offline;
mod paint;
mod table;
mod units;
mod views;

use args::{Args, BgpCommand, Command, NodeCommand, Output, PolicyCommand};
use bulkhead_api::{
    client::{self, ClientError},
    messages::{
        BgpDirection, BgpRoutesRequest, BgpWhyRequest, DiffRequest, DrainRequest, DrainScope, FileText,
        PolicyDiff, Rollback, RulesRequest,
    },
};
use bulkhead_policy::files;
use clap::{CommandFactory, Parser, error::ErrorKind};
use offline::OfflineError;
use paint::Paint;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The daemon answers from memory.
const DEADLINE: Duration = Duration::from_secs(10);
/// It compiles a whole cluster twice.
const DIFF_DEADLINE: Duration = Duration::from_secs(120);

const REFUSED: u8 = 1;
const UNREACHABLE: u8 = 2;
/// `diff` found some.
const CHANGES: u8 = 1;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Daemon(#[from] ClientError),
    #[error(transparent)]
    Offline(#[from] OfflineError),
    #[error("the daemon that writes {} has not begun: {source}", path.display())]
    NotBegun { path: PathBuf, source: io::Error },
    #[error("the standby has waited for {} s of {} s", age.as_secs(), least.as_secs())]
    JustBegun { age: Duration, least: Duration },
}

struct Answer {
    text: String,
    /// Of `diff`: something would change.
    changes: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let is_diff = matches!(args.command, Command::Diff { .. });
    match run(&args) {
        Ok(answer) => match show(&answer.text) {
            Ok(()) if answer.changes => ExitCode::from(CHANGES),
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(UNREACHABLE),
        },
        Err(e) => {
            // Nobody may read this either (`2>&1 | head`).
            let _ = writeln!(io::stderr(), "bulkhead: {e}{}", hint(&e));
            let refused = matches!(e, Failure::Daemon(ClientError::Refused(_))) && !is_diff;
            ExitCode::from(if refused { REFUSED } else { UNREACHABLE })
        }
    }
}

/// What to print.
fn run(args: &Args) -> Result<Answer, Failure> {
    let paint = Paint::for_terminal(io::stdout().is_terminal(), std::env::var_os("NO_COLOR"));
    let text = match &args.command {
        Command::Diff { files, delete, prune, objects, cluster } => {
            let files = files.iter().flat_map(|path| read_all(path).unwrap_or_else(|e| e.exit())).collect();
            let request = DiffRequest { files, delete: delete.clone(), prune: *prune };
            let diff = match objects {
                Some(directory) => offline::diff(directory, &request, cluster)?,
                None => ask_diff(args, &request)?,
            };
            let changes = !diff.changes.is_empty();
            return Ok(Answer { text: printed(args, &diff, |d| views::diff(d, paint))?, changes });
        }
        Command::Status { ready, standby, waited } => {
            if let Some(file) = standby
                && let Some(text) = stands_by(file, Duration::from_secs(*waited))?
            {
                return Ok(Answer { text, changes: false });
            }
            if *ready {
                get(args, "/v1/cni/status", |_: &serde_json::Value| String::new())?;
            }
            get(args, "/v1/status", |s| views::status(s, now(), paint))
        }
        Command::Endpoints => get(args, "/v1/endpoints", |e: &Vec<_>| views::endpoints(e, paint)),
        Command::Partitions => get(args, "/v1/partitions", |p: &Vec<_>| views::partitions(p, paint)),
        Command::Drops => get(args, "/v1/drops", |d: &Vec<_>| views::drops(d, paint)),
        Command::Services => get(args, "/v1/services", |s| views::services(s, paint)),
        Command::Explain(explain) => {
            let request = explain.request().unwrap_or_else(|e| e.exit());
            ask(args, "/v1/explain", Some(&request), |e| views::explain(e, paint))
        }
        Command::Policy(PolicyCommand::Generations { generation: None }) => {
            get(args, "/v1/policy/generations", |g: &Vec<_>| views::generations(g, now(), paint))
        }
        Command::Policy(PolicyCommand::Generations { generation: Some(number) }) => {
            let path = format!("/v1/policy/generations?generation={number}");
            get(args, &path, |g: &Vec<_>| views::generations_in_full(g, now(), paint))
        }
        Command::Policy(PolicyCommand::Rules { never_hit, partition }) => {
            let request = RulesRequest { never_hit: *never_hit, partition: partition.clone() };
            ask(args, "/v1/policy/rules", Some(&request), |r: &Vec<_>| views::rules(r, now(), paint))
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
        Command::Bgp(BgpCommand::Routes { limit }) => ask_routes(args, None, None, *limit, paint),
        Command::Bgp(BgpCommand::Advertised(of)) => {
            ask_routes(args, Some(BgpDirection::Advertised), of.peer.as_ref(), of.limit, paint)
        }
        Command::Bgp(BgpCommand::Received(of)) => {
            ask_routes(args, Some(BgpDirection::Received), of.peer.as_ref(), of.limit, paint)
        }
        Command::Bgp(BgpCommand::Why { prefix }) => {
            let request = BgpWhyRequest { prefix: *prefix };
            ask(args, "/v1/bgp/why", Some(&request), |why| views::bgp_why(why, paint))
        }
        Command::Bgp(BgpCommand::History { peer }) => {
            get(args, "/v1/bgp/peers", |p: &Vec<_>| views::bgp_history(p, peer.as_deref(), paint))
        }
        Command::Node(NodeCommand::DrainRoutes { peers, all, withdraw_after, undo }) => {
            let what = match (peers.as_slice(), all) {
                (_, true) => DrainScope::All,
                ([], false) => DrainScope::Services,
                (peers, false) => DrainScope::Peers(peers.to_vec()),
            };
            let request = DrainRequest { what, withdraw_after: *withdraw_after, undo: *undo };
            ask(args, "/v1/node/drain-routes", Some(&request), |d: &Vec<_>| views::drained(d))
        }
    }?;
    Ok(Answer { text, changes: false })
}

/// What a daemon that writes this file says it waits for; it has to have waited for so long.
fn stands_by(file: &Path, least: Duration) -> Result<Option<String>, Failure> {
    let not_begun = |source| Failure::NotBegun { path: file.into(), source };
    let waits = fs::read_to_string(file).map_err(not_begun)?;
    if waits.is_empty() {
        return Ok(None);
    }
    let since = fs::metadata(file).and_then(|m| m.modified()).map_err(not_begun)?;
    // A clock that was set back makes nobody wait for ever.
    let age = since.elapsed().unwrap_or(Duration::MAX);
    if age < least { Err(Failure::JustBegun { age, least }) } else { Ok(Some(waits)) }
}

fn ask_routes(
    args: &Args,
    direction: Option<BgpDirection>,
    peer: Option<&String>,
    limit: usize,
    paint: Paint,
) -> Result<String, ClientError> {
    let request = BgpRoutesRequest { direction, peer: peer.cloned(), limit };
    ask(args, "/v1/bgp/routes", Some(&request), |routes| views::bgp_routes(routes, direction, paint))
}

fn ask_diff(args: &Args, request: &DiffRequest) -> Result<PolicyDiff, ClientError> {
    client::request(&args.socket, "/v1/policy/diff", Some(request), DIFF_DEADLINE)
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
    printed(args, &reply, view)
}

fn printed<R: Serialize>(args: &Args, reply: &R, view: impl Fn(&R) -> String) -> Result<String, ClientError> {
    Ok(match args.output {
        Output::Table => view(reply),
        Output::Json => serde_json::to_string_pretty(reply).map_err(io::Error::from)? + "\n",
    })
}

/// A file, or those of a directory that hold objects.
fn read_all(path: &Path) -> Result<Vec<FileText>, clap::Error> {
    if !path.is_dir() {
        return Ok(vec![read(path)?]);
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|e| unreadable(&path.display().to_string(), &e))?;
    let mut paths: Vec<_> = entries.into_iter().map(|e| e.path()).collect();
    paths.retain(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(files::is_object_file));
    paths.sort();
    paths.iter().map(|p| read(p)).collect()
}

fn unreadable(name: &str, e: &io::Error) -> clap::Error {
    Args::command().error(ErrorKind::Io, format!("cannot read {name}: {e}"))
}

fn read(path: &Path) -> Result<FileText, clap::Error> {
    let text =
        if path == Path::new("-") { io::read_to_string(io::stdin()) } else { std::fs::read_to_string(path) };
    let name = path.display().to_string();
    text.map(|text| FileText { name: name.clone(), text }).map_err(|e| unreadable(&name, &e))
}

/// A reader that has seen enough (`| head`) is no error.
fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn hint(error: &Failure) -> &'static str {
    let Failure::Daemon(error) = error else { return "" };
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
