#!/usr/bin/env bash
# Fetches a kernel of Debian's and makes what a virtual machine boots of it: build.sh DIRECTORY. Nothing is installed. Does nothing where
# that is done already.
#
#   vmlinuz   the kernel
#   initrd    busybox, the modules below, and `init`
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
export LC_ALL=C

fail() { printf 'kernel: %s\n' "$*" >&2; exit 1; }

# The newest long-term kernel that this release of Debian builds; `cloud`: small, with virtio built in.
package=linux-image-6.12-cloud-amd64
# In the guest nobody loads any afterwards.
modules=(overlay veth bridge bonding ifb sch_ingress sch_tbf cls_bpf sctp nf_tables nf_conntrack nft_ct nft_chain_nat nft_masq)

key=$(cat build.sh init | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/built" 2>/dev/null)" != "$key" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
image() { apt-cache depends "$package" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -1; }
fetch() { (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$(image)") >/dev/null; }
if [ -z "$(image)" ] || ! fetch; then
    apt-get update -q
    fetch || fail "cannot download $package: it comes from Debian's security suite (bookworm-security)"
fi
echo "==> a kernel for virtual machines: $(image)"
dpkg -x "$work"/*.deb "$work/root"
version=$(ls "$work/root/lib/modules")
/sbin/depmod -b "$work/root" "$version"

mkdir -p "$work/init"/{bin,modules,proc,sys,dev,host,own,root}
cp "$(command -v busybox)" "$work/init/bin/busybox"
install -m 755 init "$work/init/init"
# In the order in which they are loaded; of those that the kernel has built in there is no file.
/sbin/modprobe -C /dev/null -a -d "$work/root" -S "$version" --show-depends "${modules[@]}" > "$work/lines"
for module in "${modules[@]}"; do
    grep -qE "^builtin $module|/$module\.ko" "$work/lines" || fail "$(image) has no module $module"
done
sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/lines" | awk '!seen[$0]++' > "$work/order"
n=100
while read -r module; do
    case $module in
    *.xz) xz -dc "$module" ;;
    *) cat "$module" ;;
    esac > "$work/init/modules/$n-$(basename "${module%.xz}")"
    n=$((n + 1))
done < "$work/order"
(cd "$work/init" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initrd"
install -m 644 "$work/root/boot/vmlinuz-$version" "$out/vmlinuz"
install -m 644 "$work/initrd" "$out/initrd"
echo "$key" > "$out/built"
