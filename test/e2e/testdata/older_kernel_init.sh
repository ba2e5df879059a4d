#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# The only process of the machine that TestOlderKernel boots, with a busybox for
# its shell. For each directory in /containers it does what a runtime does
# around the hook. What it sees goes to the second serial port, where the
# kernel writes nothing, a line each:
#
#	CONTAINER KEY VALUE
#
# /containers/ID/bundle     name of the bundle
# /containers/ID/unshare    options of unshare: the container's namespaces
# /containers/ID/state.json the OCI state, but for pid
# /store-paths              shell variables with store paths to look at
#
# Where it ends early, the kernel panics and the machine ends with it.
set -eu
PATH=/bin:/usr/local/bin

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=0755 tmpfs /run
stty -F /dev/ttyS1 raw
exec 3>/dev/ttyS1
insmod /overlay.ko
# As systemd does, so that a mount that propagates would be seen.
mount --make-rshared none /
# shellcheck disable=SC1091 # the test writes it
. /store-paths
set +e # what fails from here on is for the test to see

# say KEY VALUE and lines KEY print for the container $id.
say() { echo "$id $1 $2" >&3; }
lines() { sed "s|^|$id $1 |" >&3; }

# hook STAGE STATUS calls the hook with the container's state.
hook() {
	said=$(sed "s|\"pid\":0|\"pid\":$pid|; s|\"status\":\"created\"|\"status\":\"$2\"|" "$dir/state.json" |
		nix-closure-hook "$1" 2>&1)
	say "$1" "$? $said"
}

# inside runs a program in the container, as its own processes will.
inside() { nsenter -m -t "$pid" chroot "$rootfs" "$@"; }

# kept prints what the host keeps of the container.
kept() {
	for file in "/run/nix-closure/containers/$id.json" "/nix/var/nix/gcroots/nix-closure/$id"/*; do
		if [ -e "$file" ] || [ -L "$file" ]; then say "$1" "$file"; fi
	done
}

id=machine
say kernel "$(uname -r)"
for dir in /containers/*; do
	id=${dir##*/}
	bundle=$(cat "$dir/bundle")
	rootfs=$bundle/rootfs
	# What runc and crun have done by now: the root directory is a mount, and the
	# process has not entered it.
	# shellcheck disable=SC2016,SC2046 # expanded by the other shell; a list of words
	unshare $(cat "$dir/unshare") sh -c \
		'mount -o bind "$0" "$0" && : >"$0.ready"; exec sleep 600' "$rootfs" &
	pid=$!
	while ! [ -e "$rootfs.ready" ] && kill -0 "$pid"; do usleep 10000; done

	hook createRuntime created
	inside /bin/busybox ls -A /nix/store 2>/dev/null | lines name
	grep " $rootfs/nix" "/proc/$pid/mountinfo" | lines mount
	kept kept
	sed -n 's|.*"mode":"\([a-z]*\)".*|\1|p' "/run/nix-closure/containers/$id.json" 2>/dev/null | lines mode
	# shellcheck disable=SC2154 # these are in /store-paths
	{
		inside /bin/busybox ls -d "$foreign" 2>&1 | lines foreign
		for place in /nix/store "$directory"; do
			inside /bin/busybox touch "$place/new" 2>&1 | lines write
		done
		for file in "$regular" "$inside_directory"; do
			inside /bin/busybox sha256sum "$file" 2>&1 | lines sum
		done
		inside /bin/busybox readlink "$symlink" | lines link
		inside "$regular" "$id" 2>&1 | lines runs
	}
	kill "$pid"
	wait "$pid"
	pid=0
	hook poststop stopped
	kept left
done

id=machine
grep /nix /proc/self/mountinfo | lines mount
cat /var/log/nix-closure.log
say end .
poweroff -f
