//! `bulkhead-bench`: the figures that Bulkhead promises, measured in the lab, as a table and as rows in `results.jsonl`.
//!
//! `bulkhead-bench DIRECTORY`; with `ONLY=name` in the environment that figure alone. Exit code 0 only if every target is met.

use bulkhead_api::{
    client,
    messages::{Attach, Attachment, AttachmentId, PodRef},
};
use bulkhead_lab::{
    Context, Lab, Pod, Result,
    demo::STEPS,
    enter,
    figure::Figure,
    pod::{CNI_VERSION, IFNAME},
    programs, unmet,
};
use serde_json::json;
use std::{
    env, fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

const CALLS: usize = 51;
const DEADLINE: Duration = Duration::from_secs(5);
const SIZE: &str = "cni_binary_size";
const CALL: &str = "cni_own_time";

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bulkhead-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every target is met.
fn bench() -> Result<bool> {
    let Some(directory) = env::args().nth(1) else {
        return unmet("where do the results go? bulkhead-bench DIRECTORY");
    };
    let only = env::var("ONLY").ok().filter(|name| !name.is_empty());
    let _inside = enter()?;
    let mut figures = vec![size()?];
    if only.as_deref() != Some(SIZE) {
        figures.extend(in_the_lab(only.as_deref() == Some(CALL))?);
    }
    if let Some(only) = &only {
        let names: Vec<&str> = figures.iter().map(|f| f.name).collect();
        if !names.contains(&only.as_str()) {
            return unmet(format!("no figure is called {only}; there are: {}", names.join(", ")));
        }
        figures.retain(|f| f.name == only);
    }
    write(Path::new(&directory), &figures)?;
    figures.iter().for_each(show);
    Ok(figures.iter().all(|f| f.met != Some(false)))
}

/// The whole demo, and on its way the plugin; `call_only` ends there.
fn in_the_lab(call_only: bool) -> Result<Vec<Figure>> {
    let start = Instant::now();
    let mut lab = Lab::start()?;
    let (mut figures, mut aside) = (Vec::new(), Duration::ZERO);
    for (n, step) in STEPS.iter().enumerate() {
        eprintln!("    step {}: {}", n + 1, step.title);
        figures.extend((step.run)(&mut lab)?.figures);
        if n == 0 {
            let begun = Instant::now();
            figures.push(call(&lab)?);
            aside = begun.elapsed();
        }
        if call_only {
            return Ok(figures);
        }
    }
    drop(lab);
    let seconds = (start.elapsed() - aside).as_secs_f64();
    figures.push(Figure::new("demo_duration", seconds, "s").at_most(90.0));
    Ok(figures)
}

fn size() -> Result<Figure> {
    let program = programs::find("bulkhead-cni")?;
    let bytes = fs::metadata(&program).during(|| program.display().to_string())?.len();
    Ok(Figure::new(SIZE, bytes as f64, "bytes").at_most(3e6))
}

/// A call of the plugin less what the daemon takes to answer it, beside a program that does nothing.
fn call(lab: &Lab) -> Result<Figure> {
    let pod = lab.pod("shop/cart-0")?;
    let node = lab.node_of(pod);
    // The same ADD again: the daemon has the answer ready.
    let whole = median(|| {
        let call = pod.call(node, CNI_VERSION, "ADD", json!({}))?;
        if call.status.success() { Ok(()) } else { unmet(call.output.to_string()) }
    })?;
    let request = attach(pod);
    let daemon = median(|| {
        client::request::<_, Attachment>(&node.socket(), "/v1/cni/add", Some(&request), DEADLINE)?;
        Ok(())
    })?;
    let nothing = median(|| {
        node.netns.command("/bin/true").env_clear().output().during(|| "executing true".into())?;
        Ok(())
    })?;
    Ok(Figure::new(CALL, whole - daemon, "ms").beside(nothing).at_most(5.0))
}

fn attach(pod: &Pod) -> Attach {
    Attach {
        id: AttachmentId { container_id: pod.container().into(), ifname: IFNAME.into() },
        netns: pod.netns.path().display().to_string(),
        pod: PodRef { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: None },
        bandwidth: None,
    }
}

/// Milliseconds.
fn median(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[CALLS / 2].as_secs_f64() * 1e3)
}

fn write(directory: &Path, figures: &[Figure]) -> Result<()> {
    let path = directory.join("results.jsonl");
    let row = |f: &Figure| {
        serde_json::to_string(f)
            .map(|row| row + "\n")
            .map_err(|source| bulkhead_lab::Error::Json { what: f.name.into(), source })
    };
    let text = figures.iter().map(row).collect::<Result<String>>()?;
    fs::create_dir_all(directory).during(|| directory.display().to_string())?;
    fs::write(&path, text).during(|| path.display().to_string())
}

fn show(figure: &Figure) {
    let Figure { name, ours, unit, .. } = figure;
    let beside = figure.reference.map_or(String::new(), |r| format!("  (beside {r:.2})"));
    let target = match (figure.target, figure.met) {
        (Some(target), Some(met)) => format!("  at most {target}: {}", if met { "met" } else { "NOT MET" }),
        _ => String::new(),
    };
    let ours = if ours.fract() == 0.0 { format!("{ours:.0}") } else { format!("{ours:.2}") };
    println!("    {name:<32}{ours:>10} {unit:<6}{beside}{target}");
}
