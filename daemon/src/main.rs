//! `bulkheadd`: one per node.

mod memory;

use bulkhead_daemon::{
    config::{Config, Origin},
    install::{self, Installer},
    ipam::{ClaimFiles, ClaimObjects, Claims},
    metrics,
    node::{Node, preflight, uninstall},
    pod_events::PodEvents,
    report, resident, server,
    source::{self, Observed, kubernetes},
    store::{self, Ownership, StoreError},
};
use clap::Parser;
use kube::Client;
use std::{
    error::Error,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, OwnedMutexGuard, watch},
    task::JoinHandle,
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// How often the node is looked after: queued DELs, what failed, the socket's file.
const INTERVAL: Duration = Duration::from_secs(5);

/// How often a standby looks whether the other has ended.
const TURN: Duration = Duration::from_millis(50);

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
    /// Looks whether this daemon could take over what is on the node, changes nothing, and ends: fails where it could not.
    #[arg(long, conflicts_with_all = ["uninstall", "idle"])]
    preflight: bool,
    /// Waits until the daemon that runs on this node has ended, and takes over then. FILE says what it
    /// waits for, and is empty once it waits no more.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uninstall", "idle", "preflight"])]
    standby: Option<PathBuf>,
    /// Does nothing until it is told to end: for a pod whose work its init container has done.
    #[arg(long, conflicts_with = "uninstall")]
    idle: bool,
}

fn filter(log: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(format!("{},{log}", kubernetes::QUIET))
        .map_err(|e| format!("`log` in the configuration: {e}"))
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Where nobody reads it there is nobody to tell.
            let _ = writeln!(io::stderr(), "bulkheadd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.idle {
        return Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(idle())?);
    }
    let config = Config::read(&arguments.config)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter(&config.log)?)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        // It would panic where nobody reads standard error.
        .log_internal_errors(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if arguments.preflight {
        return Ok(runtime.block_on(preflight(&config))?);
    }
    let owner = match &arguments.standby {
        None => Ownership::take(&config.state_dir)?,
        Some(file) => match runtime.block_on(await_turn(&config, file))? {
            Some(owner) => owner,
            None => return Ok(()),
        },
    };
    if arguments.uninstall {
        // First of all: the runtime must send us no more pods.
        if let Some(cni) = &config.cni {
            install::remove(cni)?;
        }
        return runtime.block_on(async {
            let (claims, _) = claims(&config).await?;
            Ok(uninstall(&config, claims).await?)
        });
    }
    let node = runtime.block_on(run(config))?;
    // Requests that still wait for the node are dropped before they have begun.
    drop(runtime);
    drop(node);
    drop(owner);
    Ok(())
}

/// The node, once nobody else has it; none where we are told to end first.
async fn await_turn(config: &Config, standby: &Path) -> Result<Option<Ownership>, Box<dyn Error>> {
    let _ = fs::remove_file(standby);
    let say = |what: &str| fs::write(standby, what).map_err(|e| format!("{}: {e}", standby.display()));
    let turn = async {
        let mut told = false;
        loop {
            match Ownership::take(&config.state_dir) {
                Err(StoreError::Owned(_)) => {}
                taken => {
                    let owner = taken?;
                    // Nobody else answers on the socket from here on.
                    say("")?;
                    return Ok::<_, Box<dyn Error>>(owner);
                }
            }
            if !told {
                info!("another daemon runs: waiting until it has ended");
                say("waiting until the daemon that runs has ended\n")?;
                told = true;
            }
            tokio::time::sleep(TURN).await;
        }
    };
    tokio::select! {
        owner = turn => owner.map(Some),
        ended = idle() => {
            let _ = fs::remove_file(standby);
            Ok(ended.map(|()| None)?)
        }
    }
}

async fn idle() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Where blocks are claimed, and the way to the API server where that is the place.
async fn claims(config: &Config) -> Result<(Claims, Option<Client>), Box<dyn Error>> {
    Ok(match config.origin()? {
        Origin::Directories { blocks, .. } => (Claims::Files(ClaimFiles::new(blocks.into())?), None),
        Origin::Kubernetes(kubernetes) => {
            let client = kubernetes::connect(kubernetes.kubeconfig.as_deref()).await?;
            let memory = config.state_dir.join("blocks.json");
            (Claims::Objects(Box::new(ClaimObjects::new(client.clone(), memory))), Some(client))
        }
    })
}

fn observe(config: &Config, client: Option<&Client>) -> Result<watch::Receiver<Observed>, Box<dyn Error>> {
    match (config.origin()?, client) {
        (Origin::Directories { objects, blocks }, _) => {
            let observed = source::watch(objects, &config.state_dir.join(store::OBJECTS))
                .map_err(|e| format!("cannot watch the objects in {}: {e}", objects.display()))?;
            source::with_blocks(observed, blocks)
                .map_err(|e| format!("cannot watch the blocks in {}: {e}", blocks.display()).into())
        }
        (Origin::Kubernetes(_), Some(client)) => Ok(kubernetes::watch(client)),
        (Origin::Kubernetes(_), None) => Err("there is no way to the API server".into()),
    }
}

/// Serves until a signal; returns the node, which nobody else has from then on.
async fn run(config: Config) -> Result<OwnedMutexGuard<Node>, Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = server::bind(&config.socket).map_err(|e| format!("{}: {e}", config.socket.display()))?;
    let (claims, client) = claims(&config).await?;
    let mut observed = observe(&config, client.as_ref())?;
    let (socket, metrics_address) = (config.socket.clone(), config.metrics_address);
    let passwords = config.passwords();
    let mut installer = Installer::new(&config);
    let name = config.node.clone();
    let mut node = Node::open(config, observed.clone(), claims).await?;
    let mut narrow_routes = node.watch_narrow_routes()?;
    let (mut uplinks, kernel) = (node.watch_uplinks()?, node.kernel());
    let attention = node.bgp.attention();
    if let Some(client) = client {
        node.set_events(PodEvents::publish(client.clone(), name.clone()));
        node.bgp.set_secrets(client.clone(), passwords);
        tokio::spawn(report::publish(client, name, node.reports()));
    }
    let node = Arc::new(Mutex::new(node));
    let mut server = serve(listener, &node);
    let mut exporter: Option<JoinHandle<()>> = None;
    observed.mark_changed();
    // Until the start is over.
    let mut begun = Some(Instant::now());
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            changed = observed.changed() => {
                changed?;
                let latest = observed.borrow_and_update().clone();
                let ready = {
                    let mut node = node.lock().await;
                    node.apply(latest).await;
                    installer.is_awaited() && node.available().is_ok()
                };
                installer.look_after(ready);
            }
            changed = narrow_routes.changed() => {
                changed?;
                let latest = narrow_routes.borrow_and_update().clone();
                node.lock().await.set_narrow_routes(&latest);
            }
            Ok(()) = uplinks.changed() => {
                let seen = kernel.candidates().await;
                node.lock().await.look_at_uplinks(seen).await;
            }
            () = attention.notified() => node.lock().await.look_after_fixed().await,
            _ = interval.tick() => {
                let starting = begun.is_some_and(|begun| begun.elapsed() >= INTERVAL);
                let ready = {
                    let mut node = node.lock().await;
                    node.look_after().await;
                    (starting || installer.is_wanted()) && node.available().is_ok()
                };
                installer.look_after(ready);
                if starting && ready {
                    begun = None;
                    give_back_pages();
                }
                if let Some(address) = metrics_address.filter(|_| exporter.is_none()) {
                    match metrics::serve(address, node.clone()).await {
                        Ok(task) => exporter = Some(task),
                        Err(e) => warn!(%address, error = %e, "cannot serve metrics; tried again"),
                    }
                }
                // Whoever cleans /run must not cost the node its pods.
                if !socket.exists() {
                    warn!(socket = %socket.display(), "the socket's file is gone: made again");
                    match server::bind(&socket) {
                        Ok(listener) => std::mem::replace(&mut server, serve(listener, &node)).abort(),
                        Err(e) => warn!(socket = %socket.display(), error = %e, "cannot make it"),
                    }
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!("stopping; programs, maps and routes stay");
    server.abort();
    exporter.inspect(JoinHandle::abort);
    let mut node = node.lock_owned().await;
    node.stop().await;
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(node),
    }
}

fn give_back_pages() {
    match resident::give_back() {
        Ok(kb) => info!(kb, "the start is over: what it had mapped of the program's files is given back"),
        Err(e) => warn!(error = %e, "cannot give back what only the start has needed of the program's files"),
    }
}

fn serve(listener: tokio::net::UnixListener, node: &Arc<Mutex<Node>>) -> JoinHandle<io::Result<()>> {
    tokio::spawn(axum::serve(listener, server::router(node.clone())).into_future())
}
