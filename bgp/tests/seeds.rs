//! The recorded octets of BIRD, FRR and GoBGP that fuzzing starts from are read without a fault.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use bulkhead_bgp::bfd::Packet;
use bulkhead_bgp::wire::{Context, Framer, Message};
use std::path::Path;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect()
}

fn message(bytes: &[u8]) -> Message {
    let mut framer = Framer::default();
    framer.push(bytes);
    let context = Context { four_octet_as: true, external: true, ..Context::default() };
    framer.next(context).expect("a whole message").expect("without a fault")
}

fn of_each_router(target: &str, routers: &[&str]) {
    let names: Vec<String> = seeds(target).into_iter().map(|(name, _)| name).collect();
    for router in routers {
        assert!(names.iter().any(|name| name.starts_with(router)), "{target} of {router}: {names:?}");
    }
}

#[test]
fn opens() {
    of_each_router("open", &["bird", "frr", "gobgp"]);
    for (name, bytes) in seeds("open") {
        assert!(matches!(message(&bytes), Message::Open(_)), "{name}");
    }
}

#[test]
fn updates() {
    of_each_router("update", &["bird", "frr", "gobgp"]);
    for (name, bytes) in seeds("update") {
        let Message::Update(update) = message(&bytes) else { panic!("{name}") };
        assert_eq!(update.malformed, None, "{name}");
    }
}

#[test]
fn packets_of_bfd() {
    of_each_router("bfd", &["bird", "frr"]);
    for (name, bytes) in seeds("bfd") {
        Packet::decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
