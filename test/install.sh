#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Installs the programs that are needed and missing, where apt exists; elsewhere
# names them. Does nothing if all are there.
#
#   install.sh demo    what the demo needs
#   install.sh test    what the tests and the benchmark need too
set -eu

# Program, and the Debian package that has it. No program of Nix is run here:
# even nix-store --version makes /nix.
needed='podman podman
runc runc
conmon conmon
nix-build nix-bin
patchelf patchelf
busybox busybox-static
/usr/bin/python3 python3'

# An older kernel, for TestOlderKernel and TestVirtiofs to boot in QEMU: a kernel and
# modules out of Debian's package. Installing the package would make this machine boot it.
kernel=
case ${1-} in
demo) ;;
test)
	kernel=$(realpath "$(dirname "$0")/..")/bin/kernel
	needed="$needed
crun crun
bwrap bubblewrap
newuidmap uidmap
fuse-overlayfs fuse-overlayfs
podman-compose podman-compose
mkfs.ext4 e2fsprogs
qemu-system-x86_64 qemu-system-x86
shellcheck shellcheck
strace strace
tmux tmux
systemd-analyze systemd
apparmor_parser apparmor
gcc gcc
pkg-config pkg-config
/usr/include/seccomp.h libseccomp-dev
/usr/lib/cni/bridge containernetworking-plugins"
	;;
*)
	echo "usage: $0 demo|test" >&2
	exit 1
	;;
esac
kernel_package=linux-image-cloud-amd64

missing=
names=
while read -r program package; do
	command -v "$program" >/dev/null 2>&1 || [ -e "$program" ] || { missing="$missing $package"; names="$names $program"; }
done <<END
$needed
END
# A busybox that needs libraries is no use in a bare image.
if [ -d /usr/share/doc ] && ! [ -e /usr/share/doc/busybox-static ]; then
	missing="$missing busybox-static"
	names="$names busybox (static)"
fi
missing_kernel=
[ -z "$kernel" ] || [ -d "$kernel/virtiofs" ] || missing_kernel=" $kernel_package"
[ -n "$missing$missing_kernel" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing, and there is no apt to install it:$names$missing_kernel" >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "missing:$missing$missing_kernel; run $0 as root" >&2
	exit 1
fi
echo "installing:$missing$missing_kernel" >&2

log=$(mktemp)
work=$(mktemp -d)
finish() {
	[ "$?" -eq 0 ] || cat "$log" >&3
	rm -rf "$log" "$work"
}
trap finish EXIT
exec 3>&2 >"$log" 2>&1
export DEBIAN_FRONTEND=noninteractive

apt-get update -qq
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086 # a list of words
	apt-get install -y -qq --no-install-recommends $missing
fi
if [ -n "$missing_kernel" ]; then
	# kernel_package has no kernel: it depends on the newest one's package, which
	# has the version in its name.
	package=$(apt-cache show --no-all-versions "$kernel_package" |
		sed -n 's/^Depends: *\(linux-image-[^ ,]*\).*/\1/p')
	[ -n "$package" ] || { echo "$kernel_package depends on no kernel"; exit 1; }
	# As root, for $work is closed to the user that apt would be.
	(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package")
	rm -rf "$kernel.new"
	mkdir -p "$kernel.new"
	dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$kernel.new" --no-same-owner \
		--wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/fs/overlayfs/overlay.ko' \
		'./lib/modules/*/kernel/fs/fuse/*.ko' './lib/modules/*/kernel/drivers/virtio/*.ko'
	mkdir "$kernel.new/virtiofs" # earlier copies have no modules for that
	# Only what is complete has this name.
	rm -rf "$kernel"
	mv "$kernel.new" "$kernel"
fi
