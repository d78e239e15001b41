# The front door. `make` alone says what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help deps build image kubernetes kernel crds cluster cluster-down demo test test-full fuzz bench lint

MUSL := x86_64-unknown-linux-musl
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
PROFILE ?= release
IN_IMAGE := bulkheadd bulkhead-bfd bulkhead-controller bulkhead
# Where the lab looks for the programs it runs.
PROGRAMS = $(TARGET)/$(1):$(TARGET)/$(MUSL)/cni:$(TARGET)/kubernetes:$(TARGET)/image:$(TARGET)/kernel
# An invocation of its own, so that the plugin is built with its own features only.
BUILD_CNI := cargo build --locked --profile cni --target $(MUSL) -p bulkhead-cni

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

deps: ## Install what is missing: Debian packages, Rust components, bpf-linker
	@deploy/install-build-deps.sh

build: deps ## All programs, release: bulkheadd, bulkhead-bfd, bulkhead, bulkhead-cni, bulkhead-demo
	@echo "==> building (release)"
	cargo build --locked --release --bin bulkheadd --bin bulkhead-bfd --bin bulkhead --bin bulkhead-demo
	$(BUILD_CNI)

image: deps ## The container image, as an OCI archive: target/image/bulkhead.tar; PROFILE=lab builds it faster, for tests
	@echo "==> building the image ($(PROFILE), static)"
	cargo build --locked --profile $(PROFILE) --target $(MUSL) -p bulkhead-daemon -p bulkhead-cli --bins
	$(BUILD_CNI)
	mkdir -p $(TARGET)/image
	static=$(TARGET)/$(MUSL)
	cargo run --locked --release -p bulkhead-image -- bulkhead.dev/bulkhead:$(VERSION) amd64 $(TARGET)/image/bulkhead.tar \
		$(foreach program,$(IN_IMAGE),usr/bin/$(program)=$$static/$(PROFILE)/$(program)) \
		opt/cni/bin/bulkhead-cni=$$static/cni/bulkhead-cni

kubernetes: ## Kubernetes' own programs and flannel, for the tests: built once with Go, minutes
	@tests/kubernetes/build.sh $(TARGET)/kubernetes
	tests/flannel/build.sh $(TARGET)/kubernetes

kernel: ## A kernel of Debian's for a virtual machine, for the tests: fetched once
	@tests/kernel/build.sh $(TARGET)/kernel

crds: ## What is made from the types, anew: deploy/crds, deploy/bulkhead.yaml, docs/reference.md
	@BULKHEAD_WRITE_CRDS=yes cargo test --locked -p bulkhead-api --features kube --test crds --test reference

cluster: image kubernetes ## A cluster on this machine with Bulkhead installed; its kubeconfig: target/cluster/kubeconfig
	@cargo build --locked --release --bin bulkhead-cluster
	BULKHEAD_BIN_PATH=$(call PROGRAMS,release) $(TARGET)/release/bulkhead-cluster up $(TARGET)/cluster

cluster-down: ## The end of that cluster, without a trace
	@$(TARGET)/release/bulkhead-cluster down $(TARGET)/cluster

demo: build ## A data centre on this machine, the whole job in ten steps; KEEP=1 leaves it up
	@BULKHEAD_BIN_PATH=$(call PROGRAMS,release) $(TARGET)/release/bulkhead-demo $(if $(KEEP),--keep)

# Stories of whole clusters.
LONGEST := cluster cluster_moves

test: deps ## Everything that tests but the longest suites: units, eBPF by test-run, the lab, BGP with BIRD, FRR and GoBGP, an API server
test-full: deps ## The same, and whole clusters: install, upgrade, services, policy, migration, uninstall

test test-full:
	@SECONDS=0
	$(MAKE) --no-print-directory kubernetes kernel
	$(MAKE) --no-print-directory image PROFILE=lab
	echo "==> building what the suites execute"
	cargo build --locked --bins
	$(BUILD_CNI)
	echo "==> testing"
	export BULKHEAD_HELD_AGAIN=$(TARGET)/held-again
	rm -f $$BULKHEAD_HELD_AGAIN
	BULKHEAD_LEFT_OUT="$(if $(filter test,$@),$(LONGEST))" CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/tests/bounded.sh \
		BULKHEAD_BIN_PATH=$(call PROGRAMS,debug) cargo test --locked --no-fail-fast
	[ ! -e $$BULKHEAD_HELD_AGAIN ] || echo "==> held only at the second attempt: $$(xargs < $$BULKHEAD_HELD_AGAIN)"
	echo "==> all tests held ($$((SECONDS / 60)) min $$((SECONDS % 60)) s)"

# What libFuzzer wants to know of each branch and comparison. Without a sanitizer, which stable Rust has none of: a panic is what is
# looked for.
SECONDS ?= 60
COVERAGE := -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
GNU := x86_64-unknown-linux-gnu

fuzz: deps ## Bytes of routers, changed at random, at the codecs of BGP and BFD for SECONDS=60 in all
	@echo "==> building the fuzz targets"
	RUSTFLAGS="$(COVERAGE) --cfg fuzzing" cargo build --locked --profile fuzz --target $(GNU) -p bulkhead-fuzz
	for target in open update bfd; do
		echo "==> fuzzing $$target"
		mkdir -p $(TARGET)/fuzz/corpus/$$target $(TARGET)/fuzz/found
		timeout --kill-after=10 $$(( $(SECONDS) / 3 + 30 )) $(TARGET)/$(GNU)/fuzz/fuzz-$$target \
			-max_total_time=$$(( $(SECONDS) / 3 )) -timeout=5 -rss_limit_mb=512 -max_len=4096 -print_final_stats=1 -print_funcs=0 -verbosity=0 \
			-artifact_prefix=$(TARGET)/fuzz/found/$$target- $(TARGET)/fuzz/corpus/$$target fuzz/seeds/$$target 2>&1 |
			sed '/Recommended dictionary/,/End of recommended dictionary/d; /^INFO\|^WARNING: Failed to find/d'
	done

bench: build ## The figures that are promised, into target/bench/results.jsonl; ONLY=group for one group
	@echo "==> measuring"
	cargo build --locked --release --bin bulkhead-bench
	BULKHEAD_BIN_PATH=$(call PROGRAMS,release) $(TARGET)/release/bulkhead-bench $(TARGET)/bench

lint: deps ## Format, clippy with warnings denied, the crate walls
	@echo "==> format"
	cargo fmt --all --check
	echo "==> clippy"
	cargo clippy --locked --all-targets -- -D warnings
	echo "==> clippy, eBPF programs"
	RUSTC_BOOTSTRAP=1 RUSTFLAGS='--cfg=bpf_target_arch="x86_64" -Cpanic=abort' cargo clippy --locked --release \
		-p bulkhead-ebpf-programs --target bpfel-unknown-none -Z build-std=core -- -D warnings
	echo "==> crate walls"
	tests/crate-walls.sh
