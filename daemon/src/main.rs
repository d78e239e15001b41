//! `bulkheadd`: one per node.

use bulkhead_daemon::{config::Config, node::Node, server, source};
use clap::Parser;
use std::{error::Error, io::IsTerminal, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// How often queued DELs are looked for.
const QUEUE_INTERVAL: Duration = Duration::from_secs(5);

/// The node daemon of Bulkhead.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration of this node.
    #[arg(long, default_value = "/etc/bulkhead/bulkheadd.yaml")]
    config: PathBuf,
    /// Removes programs, maps, interfaces and routes of this node, and ends. For uninstalling.
    #[arg(long)]
    uninstall: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            error!("{e}");
            eprintln!("bulkheadd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let config = Config::read(&arguments.config)?;
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.log)?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if arguments.uninstall {
            Node::uninstall(config).await.map_err(Into::into)
        } else {
            run(config).await
        }
    })
}

async fn run(config: Config) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::fs::create_dir_all(&config.state_dir).map_err(|e| format!("{}: {e}", config.state_dir.display()))?;
    let listener = server::bind(&config.socket).map_err(|e| format!("{}: {e}", config.socket.display()))?;
    let mut observed = source::watch(&config.objects, &config.state_dir.join("objects.json"))
        .map_err(|e| format!("cannot watch the objects in {}: {e}", config.objects.display()))?;
    let socket = config.socket.clone();
    let node = Arc::new(Mutex::new(Node::open(config, observed.clone()).await?));
    let server = tokio::spawn(axum::serve(listener, server::router(node.clone())).into_future());
    observed.mark_changed();
    let mut queue = tokio::time::interval(QUEUE_INTERVAL);
    loop {
        tokio::select! {
            changed = observed.changed() => {
                changed?;
                let latest = observed.borrow_and_update().clone();
                node.lock().await.apply(latest).await;
            }
            // The plugin may have queued a DEL an instant before we listened.
            _ = queue.tick() => node.lock().await.replay_queued().await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!("stopping; programs, maps and routes stay");
    server.abort();
    node.lock().await.stop().await;
    std::fs::remove_file(socket)?;
    Ok(())
}
