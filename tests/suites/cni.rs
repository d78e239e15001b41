//! `bulkhead-cni` against a real `bulkheadd` and the kernel, in every version of the CNI specification.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "cni/runtime.rs"]
mod runtime;

use bulkhead_lab::{
    Netns, Node, Pod, Result, Single, enter,
    link::ip_output,
    pod::{Call, IFNAME},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// Not the usual one, so that it can only come from the uplink.
const MTU: u32 = 1400;
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const DNS: [&str; 1] = ["10.96.0.10"];

fn main() -> Result<()> {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let site = Arc::new(Mutex::new(None));
    let trial = |name: &str, case: fn(&mut Single) -> Result<()>| {
        let site = site.clone();
        Trial::test(name, move || {
            let mut site = site.lock().unwrap_or_else(PoisonError::into_inner);
            if site.is_none() {
                *site = Some(Single::start(MTU)?);
            }
            let site = site.as_mut().ok_or("no site")?;
            case(site).map_err(Failed::from)
        })
    };
    let trials = vec![
        trial("a result has the shape of the caller's version, with the uplink's MTU", results),
        trial("VERSION names the four versions", versions),
        trial("CHECK, GC and STATUS are refused in versions that have them not", verbs_by_version),
        trial("CHECK fails when the pod's interface was tampered with", check_compares),
        trial("GC frees what the runtime no longer names", gc),
        trial(
            "containerd's library and libcni have all verbs of the plugin, and leave nothing behind",
            runtime::verbs,
        ),
        trial("a version that is not known is refused with code 1", unknown_version),
    ];
    if arguments.list {
        libtest_mimic::run(&arguments, trials).exit();
    }
    let _inside = enter()?;
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let (true, Some(site)) =
        (conclusion.has_failed(), &*site.lock().unwrap_or_else(PoisonError::into_inner))
    {
        eprintln!("{}", site.node.log_tail(30));
    }
    // The daemon ends before the process does.
    *site.lock().unwrap_or_else(PoisonError::into_inner) = None;
    conclusion.exit()
}

fn done(call: &Call) -> &Value {
    assert!(call.status.success(), "{}", call.output);
    &call.output
}

fn refused(call: &Call, code: u64) {
    assert!(!call.status.success(), "{}", call.output);
    assert_eq!(call.output["code"], code, "{}", call.output);
    for key in ["msg", "details", "cniVersion"] {
        assert!(call.output[key].as_str().is_some_and(|s| !s.is_empty()), "{key}: {}", call.output);
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> =
        value.as_object().into_iter().flat_map(|o| o.keys().map(String::as_str)).collect();
    keys.sort_unstable();
    keys
}

fn results(site: &mut Single) -> Result<()> {
    for version in VERSIONS {
        let pod = Pod::create(0, "web", &format!("v{}", version.replace('.', "-")))?;
        let call = pod.call(&site.node, version, "ADD", json!({"dns": {"nameservers": DNS}}))?;
        let result = done(&call);
        shape(result, version);
        in_the_kernel(&site.node, &pod, result)?;
        assert_eq!(result["interfaces"][1]["sandbox"], json!(pod.netns.path()), "{version}");
        let again = pod.call(&site.node, version, "ADD", json!({"dns": {"nameservers": DNS}}))?;
        assert_eq!(done(&again), result, "{version}: the same request, the same answer");
        if version != "0.3.1" {
            done(&pod.call(&site.node, version, "CHECK", json!({"prevResult": result}))?);
        }
        let gone = pod.call(&site.node, version, "DEL", json!({"prevResult": result}))?;
        assert_eq!(done(&gone), &Value::Null, "{version}: DEL prints nothing");
    }
    Ok(())
}

/// Specification, "ADD Success": since 1.0 no `version` in `ips`, since 1.1 `mtu` in `interfaces`.
fn shape(result: &Value, version: &str) {
    let old = version.starts_with("0.");
    assert_eq!(keys(result), ["cniVersion", "dns", "interfaces", "ips", "routes"], "{version}");
    assert_eq!(result["cniVersion"], version);
    assert_eq!(result["dns"], json!({"nameservers": DNS}), "{version}");
    let mtu: &[&str] = if version == "1.1.0" { &["mtu"] } else { &[] };
    assert_eq!(keys(&result["interfaces"][0]), [&["mac"], mtu, &["name"]].concat(), "{version}");
    assert_eq!(keys(&result["interfaces"][1]), [&["mac"], mtu, &["name", "sandbox"]].concat(), "{version}");
    let family: &[&str] = if old { &["version"] } else { &[] };
    for (n, digit) in ["4", "6"].into_iter().enumerate() {
        let ip = &result["ips"][n];
        assert_eq!(keys(ip), [&["address", "gateway", "interface"], family].concat(), "{version}");
        assert_eq!(ip["interface"], 1, "{version}: the pod's, not the host's");
        assert!(!old || ip["version"] == digit, "{version}: {ip}");
    }
    let to: Vec<&Value> = result["routes"].as_array().expect("routes").iter().map(|r| &r["dst"]).collect();
    assert_eq!(to, ["0.0.0.0/0", "::/0"], "{version}");
    if version == "1.1.0" {
        assert_eq!([&result["interfaces"][0]["mtu"], &result["interfaces"][1]["mtu"]], [MTU, MTU]);
    }
}

/// What the result says is what stands in the kernel.
fn in_the_kernel(node: &Node, pod: &Pod, result: &Value) -> Result<()> {
    let link = |netns: &Netns, name: &str| -> Result<Value> {
        Ok(serde_json::from_str(&ip_output(Some(netns), &format!("-j address show dev {name}"))?)
            .expect("JSON"))
    };
    let [host, inside] = [&result["interfaces"][0], &result["interfaces"][1]];
    assert_eq!(inside["name"], IFNAME);
    let name = host["name"].as_str().expect("a name");
    for (found, said) in [(link(&node.netns, name)?, host), (link(&pod.netns, IFNAME)?, inside)] {
        assert_eq!(found[0]["mtu"], MTU);
        assert_eq!(found[0]["address"], said["mac"]);
    }
    let standing = link(&pod.netns, IFNAME)?[0]["addr_info"].to_string();
    for ip in result["ips"].as_array().expect("ips") {
        let (address, _) = ip["address"].as_str().and_then(|a| a.split_once('/')).expect("a prefix");
        assert!(standing.contains(&format!("\"{address}\"")), "{address} in {standing}");
    }
    Ok(())
}

fn versions(site: &mut Single) -> Result<()> {
    let pod = Pod::create(0, "web", "asks")?;
    let call = pod.call(&site.node, "1.1.0", "VERSION", json!({}))?;
    assert_eq!(done(&call)["supportedVersions"], json!(VERSIONS));
    Ok(())
}

fn verbs_by_version(site: &mut Single) -> Result<()> {
    let pod = Pod::create(0, "web", "early")?;
    for (verb, since) in [("CHECK", 1), ("GC", 3), ("STATUS", 3)] {
        for version in &VERSIONS[..since] {
            refused(&pod.call(&site.node, version, verb, json!({}))?, 1);
        }
    }
    done(&pod.call(&site.node, "1.1.0", "STATUS", json!({}))?);
    Ok(())
}

fn check_compares(site: &mut Single) -> Result<()> {
    let pod = Pod::create(0, "web", "tampered")?;
    let result = done(&pod.call(&site.node, "1.1.0", "ADD", json!({}))?).clone();
    let check = || pod.call(&site.node, "1.1.0", "CHECK", json!({"prevResult": result}));
    done(&check()?);
    pod.netns.ip(&format!("link set {IFNAME} mtu {}", MTU - 100))?;
    let found = check()?;
    assert!(!found.status.success() && found.output["code"].as_u64() >= Some(100), "{}", found.output);
    done(&pod.call(&site.node, "1.1.0", "DEL", json!({}))?);
    Ok(())
}

fn endpoints(node: &Node) -> Result<Vec<String>> {
    let all: Value = node.get("/v1/endpoints")?;
    let name = |e: &Value| e["pod"]["name"].as_str().unwrap_or_default().to_string();
    Ok(all.as_array().expect("a list").iter().map(name).collect())
}

fn gc(site: &mut Single) -> Result<()> {
    let (kept, lost) = (Pod::create(0, "web", "kept")?, Pod::create(0, "web", "lost")?);
    for pod in [&kept, &lost] {
        done(&pod.call(&site.node, "1.1.0", "ADD", json!({}))?);
    }
    let valid = json!([{"containerID": kept.container(), "ifname": IFNAME}]);
    done(&kept.call(&site.node, "1.1.0", "GC", json!({"cni.dev/valid-attachments": valid}))?);
    assert_eq!(endpoints(&site.node)?, ["kept"]);
    assert!(!ip_output(Some(&lost.netns), "-o link show")?.contains(IFNAME));
    done(&kept.call(&site.node, "1.1.0", "DEL", json!({}))?);
    assert!(endpoints(&site.node)?.is_empty());
    Ok(())
}

fn unknown_version(site: &mut Single) -> Result<()> {
    let pod = Pod::create(0, "web", "future")?;
    for version in ["0.2.0", "2.0.0", "one"] {
        refused(&pod.call(&site.node, version, "ADD", json!({}))?, 1);
    }
    Ok(())
}
