#!/usr/bin/env bash
# Installs what building and testing Bulkhead needs on Debian 12, and nothing that is there already.
#
#   packages     a C linker, LLVM 22 (for bpf-linker), BIRD 2, FRR, GoBGP, iproute2 and nftables (for the lab), containerd,
#                runc, conntrack and busybox (for its kubelets and their pods), QEMU, kmod and cpio (for its virtual machine),
#                musl-tools (C of static programs)
#   rustup       rust-src (eBPF builds `core`), the static musl target, clippy and rustfmt
#   cargo        bpf-linker, of the LLVM that rustc itself carries
#
# Without rustup's servers: Debian's `rustc-web` and `rust-web-src` (1.96, own LLVM 22) build the eBPF programs too, with
# RUSTC and CARGO pointing at them; the static plugin then needs Debian's `libstd-rust-web-dev` for musl, or runs dynamic.
set -euo pipefail

packages=(build-essential ca-certificates iproute2 iputils-ping nftables bird2 frr gobgpd containerd runc
    containernetworking-plugins conntrack busybox-static qemu-system-x86 kmod cpio musl-tools llvm-22-dev libzstd-dev zlib1g-dev)
bpf_linker=0.13.0
musl=x86_64-unknown-linux-musl

say() { printf '==> %s\n' "$*"; }
fail() { printf 'deps: %s\n' "$*" >&2; exit 1; }

policy=/usr/sbin/policy-rc.d
policy_is_ours=
cleanup() { [ -z "$policy_is_ours" ] || rm -f "$policy"; }
trap cleanup EXIT

install_packages() {
    local missing=()
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "needs root to install: ${missing[*]}"
    say "installing ${missing[*]}"
    # A router or a runtime must not begin to run on this machine because its package came.
    if [ ! -e "$policy" ]; then
        policy_is_ours=yes
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}" \
        || fail "apt-get could not install ${missing[*]}; llvm-22-dev comes from Debian's security suite (bookworm-security)"
    local service
    for service in bird2 frr gobgpd containerd; do
        case " ${missing[*]} " in *" $service "*) keep_off "$service" ;; esac
    done
}

# Only where this script installed it: whoever had a router before keeps it as it was.
keep_off() {
    local service=${1%2}
    # Enabled by its package's link, whether systemd runs here or not.
    systemctl disable --quiet "$service.service" 2>/dev/null \
        || rm -f "/etc/systemd/system/multi-user.target.wants/$service.service"
    update-rc.d "$service" disable >/dev/null 2>&1 || true
}

install_rust() {
    command -v rustc >/dev/null && command -v cargo >/dev/null \
        || fail "no Rust toolchain: install one from https://rustup.rs"
    # bpf-linker reads what rustc writes only when both are of one LLVM.
    local llvm sysroot components=()
    llvm=$(rustc --version --verbose | sed -n 's/^LLVM version: //p')
    [ "${llvm%%.*}" = 22 ] \
        || fail "$(rustc --version) carries LLVM ${llvm:-unknown}, not 22: rustup toolchain install 1.95 && rustup default 1.95"
    sysroot=$(rustc --print sysroot)
    [ -d "$sysroot/lib/rustlib/src/rust/library/core" ] || components+=(rust-src)
    command -v cargo-clippy >/dev/null && cargo clippy --version >/dev/null 2>&1 || components+=(clippy)
    command -v cargo-fmt >/dev/null && cargo fmt --version >/dev/null 2>&1 || components+=(rustfmt)
    local wanted="${components[*]}"
    if [ -n "$wanted" ] || [ ! -d "$sysroot/lib/rustlib/$musl" ]; then
        command -v rustup >/dev/null || fail "the toolchain lacks $wanted $musl and there is no rustup (see the head of $0)"
    fi
    if [ ${#components[@]} -gt 0 ]; then
        say "adding ${components[*]} to the toolchain"
        rustup component add "${components[@]}" || fail "rustup could not add ${components[*]} (see the head of $0)"
    fi
    if [ ! -d "$sysroot/lib/rustlib/$musl" ]; then
        say "adding the target $musl"
        rustup target add "$musl" || fail "rustup could not add the target $musl (see the head of $0)"
    fi
}

install_bpf_linker() {
    [ "$(bpf-linker --version 2>/dev/null)" = "bpf-linker $bpf_linker" ] && return
    say "building bpf-linker $bpf_linker"
    # In a directory of its own, not in Bulkhead's target directory.
    env -u CARGO_TARGET_DIR LLVM_PREFIX=/usr/lib/llvm-22 \
        cargo install bpf-linker --version "$bpf_linker" --locked --force --no-default-features --features llvm-22 \
        || fail "cargo could not build bpf-linker $bpf_linker (see above); it needs the crate registry and llvm-22-dev"
    command -v bpf-linker >/dev/null || fail "bpf-linker is installed, but its directory (~/.cargo/bin) is not in PATH"
}

install_packages
install_rust
install_bpf_linker
