#!/usr/bin/env bash
# Cargo's runner for test programs: bounded.sh PROGRAM [ARGUMENT...]. Each has a limit of time, so that one that hangs
# fails by name, and says how long it took.
#
# What a lab's suite sees depends on how fast routers, kernels and a shared processor are, so a lab that failed is run once
# more, and that is told at the end (BULKHEAD_HELD_AGAIN). What depends on values alone (units, property tests, programs
# in the kernel by test-run) has one attempt. Those that BULKHEAD_LEFT_OUT names are told and not run.
set -uo pipefail

name=$(basename "$1" | sed -E 's/-[0-9a-f]{16}$//')
case $name in
# One story from the install to the uninstall.
cluster) limit=1500 ;;
*) limit=900 ;;
esac
limit=${BULKHEAD_SUITE_SECONDS:-$limit}
case " ${BULKHEAD_LEFT_OUT:-} " in *" $name "*) echo "==> $name is left to \`make test-full\`" && exit 0 ;; esac
labs=" another_kernel bfd bgp_bfd bgp_bird bgp_bmp bgp_drain bgp_faults bgp_guide bgp_learned bgp_lossless bgp_matrix bgp_moves bgp_services bgp_unnumbered bgp_views bgp_withdrawals
    change cluster cluster_moves cni forwarding harness kube_api lab lifecycle metrics restart services vanish wiring "

attempt() {
    local start=$SECONDS status
    timeout --kill-after=20 "$limit" "$@"
    status=$?
    [ "$status" != 124 ] && [ "$status" != 137 ] || echo "==> $name did not end within $limit s and was killed" >&2
    [ $((SECONDS - start)) -lt 5 ] || echo "==> $name took $((SECONDS - start)) s"
    return "$status"
}

attempt "$@" && exit 0
status=$?
case $labs in *[[:space:]]"$name"[[:space:]]*) ;; *) exit "$status" ;; esac
echo "==> $name failed; a second attempt" >&2
attempt "$@" || exit
[ -z "${BULKHEAD_HELD_AGAIN:-}" ] || echo "$name" >> "$BULKHEAD_HELD_AGAIN"
