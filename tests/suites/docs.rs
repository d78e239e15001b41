//! What the user guide shows must work as it stands there.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

use bulkhead_daemon::{
    config::Config,
    source::{Snapshot, parse},
};
use bulkhead_policy::{Objects, admit};
use std::fs;

const GUIDE: &str = include_str!("../../docs/user-guide.md");
/// Who is spoken of in the samples without being made there.
const OTHERS: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: payments}\n\
                      spec: {policyID: 10, namespaces: [payments], podCIDRs: [10.65.0.0/20]}\n";

/// Blocks of this language.
fn samples(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    GUIDE.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_objects_of_the_guide_are_accepted_as_they_stand() {
    let mut snapshot = Snapshot::default();
    let objects = samples("yaml").into_iter().filter(|s| s.starts_with("apiVersion:"));
    let mut kinds = 0;
    for text in objects.chain([OTHERS]) {
        for object in parse("guide.yaml", text).expect("readable objects") {
            snapshot.insert(object);
            kinds += 1;
        }
    }
    assert_eq!(
        kinds, 14,
        "Partition, NetworkGroup, BandwidthClass, BGPConfiguration twice, BGPPeer five times, IPReservation, Service, EndpointSlice, and the other one"
    );
    let (_, refused) = admit(&Objects::default(), snapshot.policy);
    assert!(refused.is_empty(), "{refused:?}");
}

fn read(dir: &tempfile::TempDir, name: &str, text: &str) -> Config {
    let path = dir.path().join(name);
    fs::write(&path, text).expect("a file");
    Config::read(&path).expect("a valid configuration")
}

#[test]
fn the_folders_of_the_plugin_in_the_guide_are_the_defaults() {
    let shown = samples("yaml").into_iter().find(|s| s.starts_with("cni:")).expect("the folders");
    let dir = tempfile::tempdir().expect("a folder");
    let with = |cni: &str| format!("node: n\nobjects: /o\nblocks: /b\n{cni}");
    assert_eq!(read(&dir, "shown", &with(shown)), read(&dir, "defaults", &with("cni: {}\n")));
}

#[test]
fn the_configuration_of_the_guide_is_accepted_and_says_the_defaults() {
    let text = samples("yaml").into_iter().find(|s| s.starts_with("node:")).expect("a configuration");
    let dir = tempfile::tempdir().expect("a folder");
    let without = |mark: &str| -> String {
        text.lines().filter(|l| !l.contains(mark)).map(|l| format!("{l}\n")).collect()
    };
    read(&dir, "whole.yaml", text);
    // After the colon a default is told in words, and an example stands before it.
    let shown = read(&dir, "shown.yaml", &without("# default:"));
    let defaults = read(&dir, "needed.yaml", &without("# default"));
    assert_eq!(shown, defaults, "what is called a default is one");
}
