//! A fresh lab for each case, and questions to the node, its kernel and its files.

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use bulkhead_api::messages::{EndpointInfo, PartitionInfo, Status};
use bulkhead_ebpf_abi::{Endpoint, IDENTITY_LOCAL_POD, Identity};
use bulkhead_lab::{
    Context, Error, Lab, Node, Pod, Result,
    enter::{BPFFS, WORK},
    lab::Baseline,
    programs, unmet, until,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

pub type Case = (&'static str, fn(&mut Lab) -> Result<()>);

/// For what follows a change at once, and for what the daemon looks after now and then.
pub const SOON: Duration = Duration::from_secs(8);
pub const LATER: Duration = Duration::from_secs(30);

/// Each case begins with empty folders, no pins, both daemons ready.
pub fn in_a_lab(case: fn(&mut Lab) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(WORK)?.flatten().map(|e| e.path()).filter(|p| !p.ends_with("tmp")) {
        let remove = if entry.is_dir() { fs::remove_dir_all } else { fs::remove_file };
        remove(&entry).during(|| entry.display().to_string())?;
    }
    for node in ["node1", "node2"] {
        remove_pins(&Path::new(BPFFS).join(node))?;
    }
    let mut lab = Lab::start()?;
    let held = case(&mut lab);
    if held.is_err() {
        eprintln!("{}", lab.logs(25));
    }
    held
}

pub fn remove_pins(dir: &Path) -> Result<()> {
    for sub in ["links", "programs", "maps"].map(|s| dir.join(s)).iter().filter(|d| d.exists()) {
        for pin in fs::read_dir(sub)?.flatten() {
            fs::remove_file(pin.path())?;
        }
        fs::remove_dir(sub)?;
    }
    match dir.exists() {
        true => fs::remove_dir(dir).during(|| dir.display().to_string()),
        false => Ok(()),
    }
}

/// Pods of the lab that live on this node.
pub fn pods_of(lab: &Lab, node: usize) -> Vec<usize> {
    (0..lab.pods.len()).filter(|p| lab.pods[*p].node == node).collect()
}

pub fn add(lab: &mut Lab, pod: usize) -> Result<()> {
    let node = &lab.nodes[lab.pods[pod].node];
    lab.pods[pod].add(node).map(drop)
}

pub fn del(lab: &Lab, pod: usize) -> Result<()> {
    lab.pods[pod].del(&lab.nodes[lab.pods[pod].node])
}

pub fn check(lab: &Lab, pod: usize) -> Result<()> {
    lab.pods[pod].check(&lab.nodes[lab.pods[pod].node])
}

pub fn index(lab: &Lab, reference: &str) -> usize {
    lab.pods.iter().position(|p| p.reference() == reference).expect("a pod of the lab")
}

pub fn status(node: &Node) -> Result<Status> {
    node.get("/v1/status")
}

pub fn endpoints(node: &Node) -> Result<Vec<EndpointInfo>> {
    node.get("/v1/endpoints")
}

pub fn partition(node: &Node, name: &str) -> Result<Option<PartitionInfo>> {
    let all: Vec<PartitionInfo> = node.get("/v1/partitions")?;
    Ok(all.into_iter().find(|p| p.name == name))
}

/// Everything that is refused now, in one text.
pub fn refusals(node: &Node) -> Result<String> {
    Ok(status(node)?.errors.iter().map(|e| format!("{e}\n")).collect())
}

pub fn until_refused(node: &Node, part: &str) -> Result<()> {
    until(&format!("{} tells of `{part}`", node.name), SOON, || {
        let said = refusals(node)?;
        if said.contains(part) { Ok(Some(())) } else { unmet(format!("it tells: {said}")) }
    })
}

pub fn until_content(node: &Node) -> Result<()> {
    until(&format!("{} refuses nothing any more", node.name), LATER, || {
        let said = refusals(node)?;
        if said.is_empty() { Ok(Some(())) } else { unmet(format!("it tells: {said}")) }
    })
}

/// Fails with what was said when it did not fail, or lacks one of the parts.
pub fn refused(outcome: Result<()>, parts: &[&str]) -> Result<()> {
    let Err(error) = outcome else { return unmet(format!("done, and not refused with {parts:?}")) };
    contains(&error.to_string(), parts)
}

pub fn contains(text: &str, parts: &[&str]) -> Result<()> {
    match parts.iter().find(|p| !text.contains(**p)) {
        None => Ok(()),
        Some(missing) => unmet(format!("`{missing}` is not in: {text}")),
    }
}

pub fn require(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { unmet(what) }
}

/// A folder of the lab beside the nodes' own.
pub fn lab_dir(name: &str) -> PathBuf {
    Path::new(WORK).join(name)
}

/// Runs the daemon of a node until it ends by itself, which it must do soon and with failure; what it said.
pub fn fails_to_start(node: &Node, arguments: &[&str]) -> Result<String> {
    let (code, said) = daemon_run(node, arguments)?;
    require(code == Some(1), &format!("ended with {code:?} and not with 1: {said}"))?;
    require(!said.contains("panicked"), &said)?;
    Ok(said)
}

/// Exit code and output of `bulkheadd` with these arguments; killed after a while.
pub fn daemon_run(node: &Node, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let out = lab_dir(&node.name).join("run.log");
    let file = fs::File::create(&out)?;
    let mut child = node
        .netns
        .command(programs::find("bulkheadd")?)
        .arg("--config")
        .arg(configuration(node))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    let ended = until("bulkheadd ends", SOON, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let said = fs::read_to_string(&out)?;
    let status = ended.map_err(|e| Error::Unmet(format!("{e}: {said}")))?;
    Ok((status.code(), said))
}

pub fn configuration(node: &Node) -> PathBuf {
    lab_dir(&node.name).join("bulkheadd.yaml")
}

/// Edits the node's configuration; the daemon reads it when it starts.
pub fn reconfigure(node: &Node, from: &str, to: &str) -> Result<()> {
    let path = configuration(node);
    let text = fs::read_to_string(&path)?;
    require(text.contains(from), &format!("`{from}` is in the configuration"))?;
    Ok(fs::write(&path, text.replace(from, to))?)
}

/// Makes the node's pins say another layout version; the one before.
pub fn set_layout(node: &Node, version: impl FnOnce(u32) -> u32) -> Result<u32> {
    let map = MapData::from_pin(node.pins().join("maps/ABI")).map_err(|e| Error::Unmet(e.to_string()))?;
    let mut map: Array<_, u32> =
        Map::Array(map).try_into().map_err(|e: MapError| Error::Unmet(e.to_string()))?;
    let before = map.get(&0, 0).expect("a version");
    map.set(0, version(before), 0).expect("writable");
    Ok(before)
}

/// Executes the plugin for a call that names no pod: (succeeded, what it printed).
pub fn plugin(node: &Node, command: &str, extra: Value) -> Result<(bool, Value)> {
    let mut configuration = json!({
        "cniVersion": "1.1.0", "name": "bulkhead", "type": "bulkhead-cni",
        "socket": node.socket(), "stateDir": node.state_dir(),
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        configuration[key] = value.clone();
    }
    let mut child = node
        .netns
        .command(programs::find("bulkhead-cni")?)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_PATH", "/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("piped").write_all(configuration.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok((output.status.success(), printed))
}

/// Nothing of any pod is left on this node: kernel, maps, pins, files, claims.
pub fn nothing_left(lab: &Lab, n: usize) -> Result<()> {
    let node = &lab.nodes[n];
    until(&format!("{} is as it was before the pods", node.name), SOON, || {
        lab.baselines[n].compare(&Baseline::of(node)?).map(Some)
    })?;
    require(endpoints(node)?.is_empty(), "an endpoint is left")?;
    maps_hold(node, 0)?;
    let mut pins = names(&node.pins().join("links"))?;
    pins.retain(|name| name.starts_with("bh"));
    require(pins.is_empty(), &format!("pins are left: {pins:?}"))?;
    for folder in ["endpoints", "pending-del"] {
        let files = names(&node.state_dir().join(folder))?;
        require(files.is_empty(), &format!("{folder} holds {files:?}"))?;
    }
    let claims = claims(node)?;
    require(claims.is_empty(), &format!("blocks are still claimed: {claims:?}"))
}

/// The maps know exactly this many pods, each with two addresses.
pub fn maps_hold(node: &Node, pods: usize) -> Result<()> {
    let endpoints = entries::<4, { size_of::<Endpoint>() }>(node, "ENDPOINT")?.len();
    let local = entries::<16, { size_of::<Identity>() }>(node, "IDENTITY_EXACT")?
        .iter()
        .filter(|(_, value)| {
            u32::from_ne_bytes([value[4], value[5], value[6], value[7]]) & IDENTITY_LOCAL_POD != 0
        })
        .count();
    require(
        (endpoints, local) == (pods, 2 * pods),
        &format!(
            "the maps hold {endpoints} endpoints and {local} addresses of pods, not {pods} and {}",
            2 * pods
        ),
    )
}

type Entries<const KEY: usize, const VALUE: usize> = Vec<([u8; KEY], [u8; VALUE])>;

fn entries<const KEY: usize, const VALUE: usize>(node: &Node, map: &str) -> Result<Entries<KEY, VALUE>> {
    let path = node.pins().join("maps").join(map);
    let error = |e: aya::maps::MapError| Error::Unmet(format!("{}: {e}", path.display()));
    let map: HashMap<_, [u8; KEY], [u8; VALUE]> =
        Map::HashMap(MapData::from_pin(&path).map_err(error)?).try_into().map_err(error)?;
    map.iter().collect::<std::result::Result<_, _>>().map_err(error)
}

pub fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).during(|| dir.display().to_string())?;
    Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
}

/// Files of the claims folder that name this node, and whatever else lies there half done. What nodes that claim take turns by
/// stays.
pub fn claims(node: &Node) -> Result<Vec<String>> {
    let dir = lab_dir("blocks");
    let mut found = Vec::new();
    for name in names(&dir)? {
        let text = fs::read_to_string(dir.join(&name)).unwrap_or_default();
        if name.starts_with('.') && name != ".lock" || text.contains(&node.name) {
            found.push(name);
        }
    }
    Ok(found)
}

/// One packet each way, from the node to the pod.
pub fn node_reaches(node: &Node, pod: &Pod) -> Result<()> {
    until(&format!("{} reaches {}", node.name, pod.reference()), SOON, || {
        for address in [pod.v4.to_string(), pod.v6.to_string()] {
            bulkhead_lab::link::run(node.netns.command("ping").args(["-n", "-c", "1", "-W", "1", &address]))?;
        }
        Ok(Some(()))
    })
}
