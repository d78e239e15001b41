//! The plugin: what a runtime reads from disk and executes at every pod.

use crate::{
    Context, Lab, Pod, Result,
    demo::STEPS,
    figure::Figure,
    pod::{CNI_VERSION, IFNAME},
    programs, unmet,
};
use bulkhead_api::{
    client,
    messages::{Attach, Attachment, AttachmentId, PodRef},
};
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};

const CALLS: usize = 51;
const DEADLINE: Duration = Duration::from_secs(5);

pub fn run() -> Result<Vec<Figure>> {
    let mut lab = Lab::start()?;
    // The first step wires the pods.
    if let Some(step) = STEPS.first() {
        (step.run)(&mut lab)?;
    }
    Ok(vec![size()?, call(&lab)?])
}

fn size() -> Result<Figure> {
    let program = programs::find("bulkhead-cni")?;
    let bytes = fs::metadata(&program).during(|| program.display().to_string())?.len();
    Ok(Figure::new("cni_binary_size", bytes as f64, "bytes").at_most(3e6))
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
    Ok(Figure::new("cni_own_time", whole - daemon, "ms").beside(nothing).at_most(5.0))
}

fn attach(pod: &Pod) -> Attach {
    Attach {
        id: AttachmentId { container_id: pod.container().into(), ifname: IFNAME.into() },
        netns: pod.netns.path().display().to_string(),
        pod: PodRef { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: None },
        bandwidth: None,
        port_mappings: Vec::new(),
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
