//! The definitions in `deploy/crds` are what the types say, and `deploy/bulkhead.yaml` is all that an installation needs in one
//! file. `make crds` writes both anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bulkhead_api::crds::crds;
use std::{collections::BTreeMap, env, fs, path::Path};

/// Set: writes the files in place of comparing them.
const WRITE: &str = "BULKHEAD_WRITE_CRDS";

/// File name → text.
fn generated() -> BTreeMap<String, String> {
    crds()
        .iter()
        .map(|crd| {
            let text = serde_saphyr::to_string(crd).unwrap();
            (format!("{}.yaml", crd.spec.names.plural), format!("# Made from the types: make crds\n{text}"))
        })
        .collect()
}

/// `deploy/bulkhead.yaml`, in the order in which it is applied.
fn manifest() -> String {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let parts = ["rbac.yaml", "daemon.yaml"].map(|name| fs::read_to_string(deploy.join(name)).unwrap());
    let documents: Vec<_> = generated().into_values().chain(parts).collect();
    format!(
        "# Bulkhead in one file, made of crds/, rbac.yaml and daemon.yaml: make crds\n{}",
        documents.join("---\n")
    )
}

#[test]
fn the_manifest_holds_all_parts_of_deploy() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bulkhead.yaml");
    if env::var_os(WRITE).is_some() {
        fs::write(&path, manifest()).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == manifest(), "deploy/bulkhead.yaml: run `make crds`");
}

#[test]
fn the_definitions_in_deploy_are_those_of_the_types() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    if env::var_os(WRITE).is_some() {
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in generated() {
            fs::write(dir.join(name), text).unwrap();
        }
    }
    let entries = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    let written: BTreeMap<_, _> = entries
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_string(), fs::read_to_string(path).unwrap())
        })
        .collect();
    let generated = generated();
    assert_eq!(written.keys().collect::<Vec<_>>(), generated.keys().collect::<Vec<_>>(), "run `make crds`");
    for (name, text) in generated {
        assert!(written[&name] == text, "deploy/crds/{name} is not what the types say: run `make crds`");
    }
}
