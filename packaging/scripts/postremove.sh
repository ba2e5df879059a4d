#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# After the files were removed: dpkg's postrm, rpm's %postun. purge, and the removal of an
# rpm, leave nothing of what the programs made at the usual places.
set -eu

units='@UNITS@'

case ${1-} in
remove | purge | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" != purge ]; then
	echo 'nix-closure is removed: podman now starts containers with a nix-closure annotation WITHOUT' \
		'their closure. Remove such containers and units.' >&2
fi
[ "$1" != remove ] || exit 0

if command -v deb-systemd-helper >/dev/null; then
	for unit in $units; do
		deb-systemd-helper purge "$unit" >/dev/null || true
		deb-systemd-helper unmask "$unit" >/dev/null || true
	done
fi

rm -f /var/log/nix-closure.log /var/log/nix-closure.log.1
rm -f /etc/cdi/nix-closure.json
rmdir /etc/cdi 2>/dev/null || true
rm -rf /nix/var/nix/gcroots/nix-closure-cdi
rm -rf /etc/nix-closure/installed
rmdir /etc/nix-closure 2>/dev/null || true

# What a removal by force left running needs its GC roots, and its layers of an overlay.
for record in /run/nix-closure/containers/*.json; do
	[ -e "$record" ] || continue
	pid=$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$record")
	if [ ! -s "$record" ] || grep -q '"kind":' "$record" || [ -d "/proc/${pid:-self}" ]; then
		echo 'nix-closure: containers or views are still in use: /run/nix-closure and' \
			'/nix/var/nix/gcroots/nix-closure stay. Remove both when the containers have ended.' >&2
		exit 0
	fi
done
rm -rf --one-file-system /run/nix-closure || true
rm -rf /nix/var/nix/gcroots/nix-closure
