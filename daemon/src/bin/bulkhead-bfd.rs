//! `bulkhead-bfd [SOCKET]`: BFD sessions of this node (RFC 5880 to 5883), which outlive the daemon that asks for them.
//!
//! SOCKET is where the daemon asks, `/run/bulkhead/bfd.sock` by default. SIGTERM tells every neighbour AdminDown, and ends.

use bulkhead_bgp::bfd::process;
use std::{env, io::IsTerminal, path::PathBuf, process::ExitCode};

const SOCKET: &str = "/run/bulkhead/bfd.sock";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let socket = arguments.next().map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    if arguments.next().is_some() || socket.as_os_str().as_encoded_bytes().starts_with(b"-") {
        eprintln!("usage: bulkhead-bfd [SOCKET]");
        return ExitCode::from(2);
    }
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_ansi(ansi).with_writer(std::io::stderr).init();
    match process::run(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
