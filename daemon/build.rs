//! Builds the eBPF programs for the BPF target and hands their object to the daemon as bytes.
//!
//! `build-std` is unstable; `RUSTC_BOOTSTRAP` lets the pinned stable compiler do it (needs the `rust-src` component and
//! `bpf-linker`, which `make deps` installs).

use std::{env, error::Error, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    for dir in ["ebpf-programs", "ebpf-abi"] {
        println!("cargo:rerun-if-changed={}", root.join(dir).display());
    }

    // One for all profiles and targets of the outer build, where it is known: the programs are the same.
    let known = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let target_dir = known.unwrap_or_else(|| out.clone()).join("ebpf");
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .current_dir(root.join("ebpf-programs"))
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        // The profile is that of a daemon, which is to be small.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                "-Clinker=bpf-linker",
                "-Clink-arg=--btf",
                "-Cdebuginfo=2",
                "-Cpanic=abort",
                "--cfg=bpf_target_arch=\"x86_64\"",
            ]
            .join("\x1f"),
        );
    // The outer build's choices are not the inner one's.
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(
            "the eBPF programs do not build: is bpf-linker installed, and rust-src? (make deps)".into()
        );
    }
    let object = out.join("bulkhead-ebpf");
    fs::copy(target_dir.join("bpfel-unknown-none/release/bulkhead-ebpf"), &object)?;
    println!("cargo:rustc-env=BULKHEAD_EBPF_OBJECT={}", object.display());
    Ok(())
}
