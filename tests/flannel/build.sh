#!/usr/bin/env bash
# Builds flannel, the plugin that the suite `cluster_moves` moves from: flanneld, its CNI plugin, and the manifest that users install it with:
# build.sh DIRECTORY. A module apart from Kubernetes', for it wants other versions of the same libraries. Does nothing where that is done already.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
key=$(sha256sum "$0" | cut -d' ' -f1)
[ "$(cat "$out/flannel.built" 2>/dev/null)" != "$key" ] || exit 0

fail() { printf 'flannel: %s\n' "$*" >&2; exit 1; }

daemon=github.com/flannel-io/flannel@v0.28.4
# Where the plugin was before it got a repository of its own, which no module proxy has.
plugin=github.com/containernetworking/plugins/plugins/meta/flannel@v0.9.1

command -v go >/dev/null || fail "building flannel needs Go 1.26: https://go.dev/dl"
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -p=${GO_JOBS:-2}"
echo "==> building flannel (once; a minute or two)"
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
cd "$sources"
dir=$(go mod download -json "$daemon" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
cp -r "$dir" daemon
chmod -R u+w daemon
# Backends that nobody here uses: with them come the libraries of two clouds, and C.
sed -i -E '/pkg\/backend\/(alloc|ipsec|tencentvpc|udp|wireguard)"/d' daemon/main.go
(cd daemon && go build -mod=readonly -ldflags "-s -w" -o "$sources/flanneld" .)
GOBIN=$sources go install -ldflags "-s -w" "$plugin"
install -m 755 flanneld flannel "$out/"
install -m 644 daemon/Documentation/kube-flannel.yml "$out/"
echo "$key" > "$out/flannel.built"
