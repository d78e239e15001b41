#!/usr/bin/env bash
# Builds etcd, the control plane, the node agents and kubectl of the release that go.mod names, Helm and a runtime for network
# plugins into one program, with a link for each command beside it, and CoreDNS, which goes into an image: build.sh DIRECTORY. Does nothing
# where that is done already.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

fail() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }

# Of the API group that ClusterNetworkPolicy is of: its definition is upstream's.
policy_api=sigs.k8s.io/network-policy-api@v0.2.0

commands=(cni-runtime etcd helm kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet)
key=$(sha256sum go.mod go.sum ./*.go coredns/*.go build.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/built" 2>/dev/null)" != "$key" ] || exit 0

command -v go >/dev/null || fail "building Kubernetes' own programs needs Go 1.26: https://go.dev/dl"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes) || fail "cannot read the module (see above): Go 1.26 and a module proxy are needed"
IFS=. read -r major minor _ <<<"${version#v}"
set_version() { printf -- '-X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s ' "$1" "$version" "$1" "$major" "$1" "$minor"; }
export CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false -trimpath -p=${GO_JOBS:-2}"
packages=$(go list -deps . ./coredns | wc -l)
echo "==> building Kubernetes $version, $packages packages (once; minutes)"
# -v names each package as it is compiled.
mkdir -p "$out/new"
go build -v -ldflags "-s -w $(set_version k8s.io/component-base/version) $(set_version k8s.io/client-go/pkg/version)" \
    -o "$out/new/" . ./coredns 2>&1 \
    | awk -v all="$packages" '/^[^ ]+$/ { if (++n % 200 == 0) { print "    " n " of " all; fflush() }; next } { print > "/dev/stderr" }'
mv "$out"/new/* "$out"
rmdir "$out/new"
for command in "${commands[@]}"; do
    ln -sf kubernetes "$out/$command"
done
policies=$(cd / && go mod download -json "$policy_api" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
install -m 644 "$policies/config/crd/standard/policy.networking.k8s.io_clusternetworkpolicies.yaml" "$out/clusternetworkpolicies.yaml"
echo "$key" > "$out/built"
