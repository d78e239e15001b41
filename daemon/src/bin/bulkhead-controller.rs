//! `bulkhead-controller [KUBECONFIG]`: writes on each object's status what the nodes make of it. One in a cluster.
//!
//! KUBECONFIG says how to reach the API server; without it, as the service account of its own pod.

use bulkhead_daemon::{controller, source::kubernetes};
use std::{env, error::Error, io::IsTerminal, path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let kubeconfig = arguments.next().map(PathBuf::from);
    if arguments.next().is_some() || kubeconfig.as_ref().is_some_and(|k| k.to_string_lossy().starts_with('-'))
    {
        eprintln!("usage: bulkhead-controller [KUBECONFIG]");
        return ExitCode::from(2);
    }
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{},info", kubernetes::QUIET)))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(kubeconfig) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(kubeconfig: Option<PathBuf>) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = kubernetes::connect(kubeconfig.as_deref()).await?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            () = controller::run(client) => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    })
}
