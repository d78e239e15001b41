#!/usr/bin/env bash
# The walls between the crates (docs/ARCHITECTURE.md): what each must not depend on, however deep.
set -euo pipefail
cd "$(dirname "$0")/.."

broken=0

# wall CRATE NAME...: no dependency of CRATE is called NAME, or NAME-something.
wall() {
    local crate=$1 tree names
    shift
    tree=$(cargo tree --locked -p "$crate" -e normal,build --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
    names=$(IFS='|'; echo "$*")
    if found=$(grep -E "^($names)(-.*)?$" <<<"$tree"); then
        echo "$crate must not depend on: ${found//$'\n'/ }" >&2
        broken=1
    fi
}

wall bulkhead-policy tokio aya kube
wall bulkhead-bgp tokio aya kube
wall bulkhead-cni tokio aya kube
wall bulkhead-cli tokio aya kube
wall bulkhead-api tokio aya kube

if [ "$(cargo tree --locked -p bulkhead-ebpf-abi -e normal,build --prefix none | wc -l)" != 1 ]; then
    echo "bulkhead-ebpf-abi must not depend on anything" >&2
    broken=1
fi

[ $broken = 0 ] && echo "the crate walls stand"
exit $broken
