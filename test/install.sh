#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Installs the programs that the tests, the demo and the benchmark need, where
# apt exists; elsewhere names those that are missing. Does nothing if all are
# there.
set -eu

# Program, and the Debian package that has it. No program of Nix is run here:
# even nix-store --version makes /nix.
needed='podman podman
runc runc
crun crun
conmon conmon
newuidmap uidmap
nix-build nix-bin
patchelf patchelf
busybox busybox-static
/usr/bin/python3 python3
ip iproute2
make make
gcc gcc
shellcheck shellcheck'

missing=
while read -r program package; do
	command -v "$program" >/dev/null 2>&1 || missing="$missing $package"
done <<END
$needed
END
# A busybox that needs libraries is no use in a bare image.
if [ -d /usr/share/doc ] && ! [ -e /usr/share/doc/busybox-static ]; then
	missing="$missing busybox-static"
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing, and there is no apt to install it:$missing" >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "missing:$missing; install as root: apt-get install --no-install-recommends$missing" >&2
	exit 1
fi
echo "installing:$missing" >&2
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
	cat "$log" >&2
	rm -f "$log"
	exit 1
fi
rm -f "$log"
