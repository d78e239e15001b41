//! `bulkhead-cluster up|down DIRECTORY`: a cluster on this machine, with Bulkhead installed as a user would; and its end.
//!
//! It lives in namespaces of its own. DIRECTORY holds its kubeconfig, and what `down` must know.

use bulkhead_lab::{
    Context, Error, Result,
    cluster::{Cluster, cgroups, door},
    enter::{Ended, enter_then},
    leftovers::Machine,
    unmet, until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

const STOP: Duration = Duration::from_secs(20);
/// The lab's init and its pid namespace, of a cluster that is up.
const LAB: &str = "lab";
const KUBECONFIG: &str = "kubeconfig";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up", directory] => up(Path::new(directory)),
        ["down", directory] => down(Path::new(directory)),
        _ => unmet("usage: bulkhead-cluster up|down DIRECTORY"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bulkhead-cluster: {e}");
            ExitCode::FAILURE
        }
    }
}

fn up(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).during(|| directory.display().to_string())?;
    let directory = directory.canonicalize().during(|| directory.display().to_string())?;
    if std::process::id() != 1 && directory.join(LAB).exists() {
        return unmet(format!("{} says that a cluster is up: make cluster-down", directory.display()));
    }
    let (listener, before) = if std::process::id() == 1 {
        (door::inherited()?, None)
    } else {
        (door::open()?, Some(Machine::now()?))
    };
    let inside = enter_then(|ended| afterwards(&directory, before.as_ref(), ended))?;
    println!("==> starting a control plane and two nodes");
    // Lives as long as this process.
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start()?));
    println!("==> installing Bulkhead: kubectl apply -f deploy/bulkhead.yaml");
    cluster.install()?;
    println!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
    let port = listener.local_addr()?.port();
    cluster.control.export_kubeconfig(&directory.join(KUBECONFIG), port)?;
    door::serve(listener, &cluster.control.netns, cluster.control.endpoint());
    match inside.keep(0)? {}
}

/// The outer process, when the cluster is up or has failed: the exit code.
fn afterwards(directory: &Path, before: Option<&Machine>, ended: &Ended) -> i32 {
    let Some(pid) = ended.kept else {
        let cgroups = cgroups::remove(&cgroups::name(&ended.pid_namespace));
        if let Err(e) = cgroups.and_then(|()| before.map_or(Ok(()), |b| b.nothing_left(ended))) {
            eprintln!("left on the machine: {e}");
        }
        return ended.code.max(1);
    };
    if let Err(e) = fs::write(directory.join(LAB), format!("{pid} {}", ended.pid_namespace)) {
        eprintln!("cannot remember the cluster: {e}; end it with: kill {pid}");
        return 1;
    }
    let kubeconfig = directory.join(KUBECONFIG);
    println!(
        "The cluster is up:\n    export KUBECONFIG={}\n    kubectl get nodes,pods -A\n\
         Its nodes, from inside:\n    nsenter -t {pid} -a ip netns exec node1 ip route\nEnd it:\n    make cluster-down",
        kubeconfig.display()
    );
    0
}

fn down(directory: &Path) -> Result<()> {
    let lab = directory.join(LAB);
    let Ok(text) = fs::read_to_string(&lab) else {
        println!("no cluster is up");
        return Ok(());
    };
    let Some((pid, namespace)) = text.split_once(' ').and_then(|(p, n)| Some((p.parse().ok()?, n))) else {
        return Err(Error::Unmet(format!("{} is not what `up` wrote", lab.display())));
    };
    // The number may be somebody else's by now.
    let lives = || namespace_of(pid).is_some_and(|n| n == namespace);
    if lives() {
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        until("the cluster's processes are gone", STOP, || Ok((!lives()).then_some(())))?;
    }
    cgroups::remove(&cgroups::name(namespace))?;
    fs::remove_dir_all(directory).during(|| directory.display().to_string())?;
    println!("the cluster is gone");
    Ok(())
}

fn namespace_of(pid: i32) -> Option<String> {
    let link: PathBuf = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(link.display().to_string())
}
